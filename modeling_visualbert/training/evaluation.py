"""Evaluation of a split: predictions of all processes, and their scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..data.files import read_json_lines
from .args import TrainArgs
from .loaders import evaluation_batches
from .preemption import StopRequestedError, StopWatch
from .sharding import is_sharded
from .task import Predictions, Task, to_device

_SAMPLE = "dev_sample"


@dataclass
class DevResult:
    """Metrics, predictions (on the main process) and the threshold of decisions that some weights have on the dev split."""

    metrics: dict[str, Any]
    predictions: Predictions
    threshold: float | None


def evaluate(
    task: Task,
    model: torch.nn.Module,
    split: str,
    args: TrainArgs,
    accelerator: Accelerator,
    watch: StopWatch | None = None,
) -> tuple[dict, Predictions]:
    """Metrics of a split, the same on every process, and on the main one its predictions; each example is predicted once.

    The processes take whole batches in turn, so that the batches, and with them the bits of the scores, do not depend on the
    number of processes.

    Raises:
        StopRequestedError: `watch` says that the run is to stop.
    """
    model.eval()
    predictions: Predictions = []
    (batches, own), is_main = evaluation_batches(task, split, args, accelerator), accelerator.is_main_process
    # The bar does not iterate itself: tqdm would start the processes that prepare batches twice.
    bar = tqdm(total=len(batches), desc=f"evaluating {split}", leave=False, disable=not is_main)
    with bar, torch.inference_mode(), accelerator.autocast():
        for number, (rows, batch) in enumerate(batches):
            outputs = accelerator.unwrap_model(model)(**to_device(batch, accelerator.device))
            if number < own:
                predictions += task.predict(outputs, rows)
            bar.update()
            if watch is not None and _stops(watch, accelerator):
                break
    if watch is not None and watch.anyone_stops():
        raise StopRequestedError
    predictions = sorted(_gather_on_main(predictions, accelerator), key=lambda record: record["id"])
    fits = split in ("dev", _SAMPLE) and task.fit_threshold is not None
    result: list[Any] = [None, None]
    if is_main:
        predictions = task.fit_threshold(predictions) if fits and task.fit_threshold is not None else predictions
        result = [task.score(predictions, split), task.processor.threshold if fits else None]
    metrics, threshold = broadcast_object_list(result)
    if fits:
        task.processor.threshold = threshold
    return metrics, predictions


def _stops(watch: StopWatch, accelerator: Accelerator) -> bool:
    """Whether this process is to stop; where the next forward pass needs all of them, whether all are."""
    return watch.anyone_stops() if is_sharded(accelerator) else watch.reason is not None


def _gather_on_main(predictions: Predictions, accelerator: Accelerator) -> Predictions:
    """The predictions of all processes; nothing on the others, which have no use for them."""
    if accelerator.num_processes == 1:
        return predictions
    parts: list[Any] | None = [None] * accelerator.num_processes if accelerator.is_main_process else None
    torch.distributed.gather_object(predictions, parts)
    return [record for part in parts or () for record in part]


@contextmanager
def dev_sample(task: Task, args: TrainArgs) -> Iterator[str]:
    """Name of the split that is evaluated during training: dev, or with `eval_samples` examples of it that are spread evenly."""
    rows = task.splits["dev"]
    if args.eval_samples is None or args.eval_samples >= len(rows):
        yield "dev"
        return
    places = [len(rows) * number // args.eval_samples for number in range(args.eval_samples)]
    task.splits[_SAMPLE] = rows.select(places) if hasattr(rows, "select") else [rows[place] for place in places]
    try:
        yield _SAMPLE
    finally:
        del task.splits[_SAMPLE]


def with_own_scores(task: Task, predictions: Predictions, split: str) -> Predictions:
    """The predictions as they are written: where there are labels, each with its share of the metrics and its group."""
    own = [] if task.score_each is None else task.score_each(predictions, split)
    if not own:
        return predictions
    return [{**record, **scores} for record, scores in zip(predictions, own, strict=True)]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write one JSON record per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(prediction) + "\n" for prediction in predictions)


def read_predictions(path: Path) -> Predictions:
    """Read what [`write_predictions`] wrote.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return [record for _, record in read_json_lines(path)]


__all__ = ["DevResult", "dev_sample", "evaluate", "read_predictions", "with_own_scores", "write_predictions"]
