"""What a training script does: train, compare with baselines, and write figures, official result files and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from ..disk import write_json
from ..publish.push import check_push, push_checkpoint
from ..training.accelerator import make_accelerator
from ..training.args import TrainArgs
from ..training.evaluation import read_predictions
from ..training.loop import train
from ..training.report import plot_curves, table
from ..training.sharding import class_of
from ..training.task import LABELS, Task, to_device
from ..visualization import grid
from .batch_errors import naming_examples, one_line_errors
from .common import TaskArgs

Args = TypeVar("Args", bound=TaskArgs)
Metrics = dict[str, Any]


def run_task(
    build: Callable[[Args, Accelerator], Task],
    args: Args,
    text_baseline: bool = False,
    baselines: Callable[[Task, str], Mapping[str, Metrics]] | None = None,
) -> tuple[Task, Metrics, Accelerator]:
    """Train a task, train or compute its baselines, report, and publish the model if `args.push_to_hub`.

    Args:
        build: Arguments and accelerator -> the task.
        args: The run's arguments.
        text_baseline: Whether to train the same model for one epoch without regions too, to see how far the text alone leads.
        baselines: Task and split -> metrics by name of the baseline, for baselines that need no training.

    Returns:
        The task, the contents of `metrics.json`, and the accelerator; the caller ends the run (`end_run`).

    Raises:
        PermissionError, ConnectionError: The model cannot be published; as far as possible, this is known before training.
    """
    accelerator = make_accelerator(args)
    if args.hub_model_id is not None and accelerator.is_main_process:
        check_push(args.hub_model_id, private=args.hub_private_repo, token=args.hub_token)
    task = build(args, accelerator)
    metrics = _train(task, args, accelerator)
    last = list(task.splits)[-1]
    metrics["baselines"] = dict(baselines(task, last)) if baselines is not None else {}
    if text_baseline:
        text_args = replace(
            args, text_only=True, output_dir=f"{args.output_dir}/text_only", epochs=1.0, evals_per_epoch=2
        )
        text_args.started = args.started
        # An accelerator of its own: checkpoints and TensorBoard of the two runs stay apart.
        other = make_accelerator(text_args)
        metrics["baselines"]["text only"] = _train(build(text_args, other), text_args, other)["splits"][last]
    if accelerator.is_main_process:
        report(task, args, metrics, accelerator.device)
        if args.hub_model_id is not None:
            _publish(args, args.hub_model_id)
    accelerator.wait_for_everyone()
    return task, metrics, accelerator


def _train(task: Task, args: TaskArgs, accelerator: Accelerator) -> Metrics:
    with one_line_errors():
        return train(replace(task, collate=naming_examples(task.collate)), args, accelerator)


def report(task: Task, args: TrainArgs, metrics: Metrics, device: torch.device) -> None:
    """Write figures, official result files and images, and print a table of scores on the last split."""
    output_dir = Path(args.output_dir)
    write_json(output_dir / "metrics.json", metrics)
    if task.write_results is not None:
        for split in metrics["splits"]:
            predictions = read_predictions(output_dir / f"predictions_{split}.jsonl")
            task.write_results(predictions, output_dir / f"results_{split}")
    plot_curves(output_dir, task.name)
    last = list(task.splits)[-1]
    if task.draw is not None:
        draw_sheet(task, last, output_dir, device)
    print(f"\n{summary(metrics, last)}")
    run = metrics["run"]
    if run.get("threshold") is not None:
        print(f"threshold of the second label, chosen on the dev split: {run['threshold']:.3f}")
    memory = f", peak memory {run['peak_memory_mib']} MiB" if "peak_memory_mib" in run else ""
    print(f"{run['steps']} steps, {run['seconds']:.0f} s{memory}")
    print(f"model in {output_dir / 'best'}")


def _publish(args: TaskArgs, repo_id: str) -> None:
    try:
        pushed = push_checkpoint(args.output_dir, repo_id, private=args.hub_private_repo, token=args.hub_token)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"{error}; the trained model is in {args.output_dir}/best, and `visualbert push {args.output_dir} {repo_id}` sends it"
        ) from error
    print(f"published: {pushed.url}")


@torch.inference_mode()
def draw_sheet(task: Task, split: str, output_dir: Path, device: torch.device, count: int = 9) -> Path:
    """Draw `examples.png`: examples from the whole split with the predictions of the best weights."""
    assert task.draw is not None
    model = class_of(task.model).from_pretrained(output_dir / "best").to(device).eval()
    data = task.splits[split]
    rows = [data[i] for i in range(0, len(data), max(1, len(data) // count))][:count]
    batch = {name: value for name, value in task.collate(rows).items() if name not in LABELS}
    predictions = task.predict(model(**to_device(batch, device)), rows)
    path = output_dir / "examples.png"
    grid([task.draw(model, row, found) for row, found in zip(rows, predictions, strict=True)]).save(path)
    return path


def summary(metrics: Metrics, split: str) -> str:
    """A table of the scores on a split: this model and the baselines."""
    columns = {"VisualBERT": _flat(metrics["splits"][split])}
    columns |= {name: _flat(scores) for name, scores in metrics["baselines"].items()}
    rows = [[split, *columns]]
    for name in columns["VisualBERT"]:
        cells = [scores.get(name) for scores in columns.values()]
        rows.append([name, *("-" if c is None else str(c) if isinstance(c, int) else f"{c:.1f}" for c in cells)])
    return table(rows)


def _flat(metrics: Metrics) -> dict[str, float]:
    """Nested scores, by names such as "question type: color"."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= {f"{name.removeprefix('per_').replace('_', ' ')}: {key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat
