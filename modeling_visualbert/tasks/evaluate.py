"""Scoring a checkpoint on one split, or predicting where there are no labels: `visualbert evaluate`, `examples/evaluate.py`.

The files are those that a training script writes for its dev and test splits, with the same content.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list

from ..disk import write_json
from ..features.store import FeatureStore
from ..training.accelerator import end_run
from ..training.evaluation import evaluate, with_own_scores, write_predictions
from ..training.loop import list_skipped, run_facts
from ..training.task import Predictions, Task
from . import vcr
from .batch_errors import naming_examples, one_line_errors
from .common import TaskArgs
from .one_split import (
    BUILDERS,
    EvaluateArgs,
    Opened,
    given_options,
    kind_of_files,
    load_rows,
    open_checkpoint,
    split_name,
    subtask_of,
    task_args,
    vcr_task_over,
)
from .run import summary

Metrics = dict[str, Any]

# Of the embedded corpus, where no split is named.
_TEST_SPLITS = {"vqa": "test", "nlvr2": "test1", "snli_ve": "test", "vcr": "test", "flickr30k": "test", "coco": "test"}


def run_evaluation(args: EvaluateArgs) -> Metrics:
    """Evaluate, write everything to `args.output_dir` and print what was found.

    Returns:
        The contents of `metrics.json`.

    Raises:
        FileExistsError: `output_dir` already holds an evaluation, or a training run.
        FileNotFoundError, ValueError, OSError: Checkpoint, data and arguments are not there or do not fit together.
    """
    started = time.time()
    # The first process may find regions for hours, while the others wait.
    waiting = InitProcessGroupKwargs(timeout=timedelta(days=30))
    accelerator = Accelerator(cpu=args.cpu, mixed_precision=args.mixed_precision, kwargs_handlers=[waiting])
    output_dir = Path(args.output_dir)
    _check_output_dir(output_dir, args.overwrite)
    _check_folders(args)
    accelerator.wait_for_everyone()  # all processes have looked before the first one writes
    with accelerator.main_process_first():
        opened = open_checkpoint(args.model, args)
        other = None if args.rationale_model is None else open_checkpoint(args.rationale_model, args)
    args = replace(args, split=args.split or _default_split(opened, args))
    with one_line_errors():
        if other is not None:
            task, metrics, predictions = _evaluate_both(opened, other, args, accelerator)
        else:
            task = BUILDERS[opened.task](opened, args, accelerator)
            metrics, predictions = _evaluate(task, args, accelerator)
    record = {
        "task": task.name,
        "best_metric": task.best_metric,
        "splits": {split_name(args): metrics},
        "evaluation": {
            "args": asdict(args),
            "task_options": {**opened.options, **given_options(args)},
            **run_facts(task, started, accelerator),
        },
    }
    if accelerator.is_main_process:
        _write(task, record, predictions, output_dir)
    end_run(accelerator)
    return record


def _default_split(opened: Opened, args: EvaluateArgs) -> str:
    return "test" if _has_table(args) else _TEST_SPLITS[kind_of_files(opened, args)]


def _has_table(args: EvaluateArgs) -> bool:
    return args.dataset_name is not None or args.test_file is not None


def _evaluate(task: Task, args: EvaluateArgs, accelerator: Accelerator) -> tuple[Metrics, Predictions]:
    run = TaskArgs(args.output_dir, eval_batch_size=args.batch_size, num_workers=args.num_workers)
    task = replace(task, collate=naming_examples(task.collate))
    return evaluate(task, task.model, split_name(args), run, accelerator)


def _evaluate_both(
    answers: Opened, rationales: Opened, args: EvaluateArgs, accelerator: Accelerator
) -> tuple[Task, Metrics, Predictions]:
    """VCR's Q->AR from two checkpoints, one after the other: the rationales are scored given each of the four answers."""
    if _has_table(args):
        raise ValueError("--rationale_model with own data; expected one model, and its sub-task is what is scored")
    for opened, subtask in ((answers, "answer"), (rationales, "rationale")):
        if opened.task != "vcr":
            raise ValueError(f"--rationale_model is for VCR, but {opened.title} is a {opened.task} checkpoint")
        subtask_of(opened, subtask)
    runs = [
        task_args(vcr.VcrArgs, opened, args, subtask=subtask)
        for opened, subtask in ((answers, "answer"), (rationales, "rationale"))
    ]
    load = cache(lambda objects: load_rows(vcr.load_vcr_data, replace(runs[0], objects=objects), "vcr", args))
    data, other = load(runs[0].objects), load(runs[1].objects)
    # One model at a time.
    first = vcr_task_over(data, answers, runs[0], "answer", accelerator)
    rows = first.splits[split_name(args)]
    _, predictions = _evaluate(first, args, accelerator)
    del first
    task = vcr_task_over(other, rationales, runs[1], "rationale", accelerator)
    run = replace(runs[1], eval_batch_size=args.batch_size, num_workers=args.num_workers)
    task = replace(task, collate=naming_examples(task.collate))
    given = vcr.rationale_scores(task, task.model, split_name(args), run, accelerator)
    scores = {record["id"]: record["scores"] for record in predictions}
    scored = [vcr.score_both(scores, given, rows) if accelerator.is_main_process else None]
    metrics = {**broadcast_object_list(scored)[0], "num_examples": len(rows)}
    predictions = [{**record, "rationales": given[record["id"]]} for record in predictions]

    def write_results(predictions: Predictions, path: Path) -> None:
        vcr.write_leaderboard(scores, given, rows, path.with_suffix(".csv"))

    task = replace(
        task,
        name="vcr",
        best_metric="joint",
        score_each=lambda predictions, split: vcr.own_joint_accuracies(predictions, rows),
        write_results=write_results,
    )
    return task, metrics, predictions


# -------------------------------------------------------------------------------------------------------------- output


def _check_output_dir(output_dir: Path, overwrite: bool) -> None:
    if (output_dir / "log.jsonl").exists():
        raise FileExistsError(f"{output_dir} holds a training run; choose another --output_dir")
    if _files_of_evaluation(output_dir) and not overwrite:
        raise FileExistsError(
            f"{output_dir} already holds an evaluation; choose another --output_dir or pass --overwrite"
        )
    if output_dir.exists() and not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is a file; choose another --output_dir")
    output_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(output_dir, os.W_OK):  # said now, not after hours of work
        raise PermissionError(f"{output_dir} cannot be written; choose another --output_dir")


def _files_of_evaluation(output_dir: Path) -> list[Path]:
    patterns = ("metrics.json", "predictions_*.jsonl", "results_*", "skipped.txt")
    return [path for pattern in patterns for path in output_dir.glob(pattern)]


def _check_folders(args: EvaluateArgs) -> None:
    for flag in ("data_dir", "images_dir"):
        folder = getattr(args, flag)
        if folder is not None and not Path(folder).is_dir():
            raise FileNotFoundError(f"--{flag} {folder}: no such folder")
    if args.features_dir is not None:
        FeatureStore(args.features_dir)


def _write(task: Task, record: Metrics, predictions: Predictions, output_dir: Path) -> None:
    """Write all files, `metrics.json` last, and print scores and places."""
    ((split, metrics),) = record["splits"].items()
    for path in _files_of_evaluation(output_dir):
        path.unlink()
    list_skipped(task.skipped, output_dir)
    write_predictions(output_dir / f"predictions_{split}.jsonl", with_own_scores(task, predictions, split))
    results: list[Path] = []
    if task.write_results is not None:
        task.write_results(predictions, output_dir / f"results_{split}")
        results = sorted(output_dir.glob(f"results_{split}.*"))
    write_json(output_dir / "metrics.json", record)
    if task.best_metric in metrics:
        print(summary({**record, "baselines": {}}, split))
    else:
        print(f"split {split!r} has no labels, so nothing is scored: {metrics['num_examples']} examples are predicted")
        for path in results:
            print(f"file for the evaluation server: {path}")
    if task.name.startswith("vcr_") and not _has_table(EvaluateArgs(**record["evaluation"]["args"])):
        print(
            "the leaderboard's file needs the models of both sub-tasks: --model ANSWER_MODEL --rationale_model RATIONALE_MODEL"
        )
    files = ["metrics.json", f"predictions_{split}.jsonl", *(path.name for path in results)]
    print(f"written to {output_dir}: {', '.join(files)}")


__all__ = ["EvaluateArgs", "run_evaluation"]
