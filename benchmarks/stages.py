"""Training runs on the embedded corpus that the benchmarks compare: one recipe, each run trained once and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from modeling_visualbert.data.files import read_json
from modeling_visualbert.tasks.common import TaskArgs
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, flickr30k_task
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
from modeling_visualbert.tasks.vcr import VcrArgs, vcr_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.accelerator import end_run, make_accelerator
from modeling_visualbert.training.args import read_recipe
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.task import Task

RECIPE = Path(__file__).parents[1] / "examples" / "recipes" / "vqa_corpus.yaml"
TASKS: dict[str, tuple[Callable[[Any, Accelerator], Task], type[TaskArgs], dict[str, Any]]] = {
    "vqa": (vqa_task, VqaArgs, {}),
    "nlvr2": (nlvr2_task, Nlvr2Args, {"second_segment_std": 1.0}),  # as in nlvr2_corpus.yaml
    "vcr": (vcr_task, VcrArgs, {"subtask": "answer"}),
    "flickr30k": (flickr30k_task, Flickr30kArgs, {}),
}
Args = TypeVar("Args", bound=TaskArgs)


def corpus_args(args_class: type[Args], output_dir: Path, **changes: Any) -> Args:
    """Arguments of a run with the recipe that all of them share."""
    return args_class(**{**read_recipe(RECIPE, args_class), "output_dir": str(output_dir), **changes})


def run_once(build: Callable[[Args, Accelerator], Task], args: Args, evaluations: int = 1) -> dict[str, Any]:
    """Train and score on the dev split, or read the result of an earlier call.

    Args:
        build: Arguments and accelerator -> the task.
        args: The run's arguments; `max_steps` decides its length.
        evaluations: How many points the dev curve has.

    Returns:
        `metric` (the best one on dev), `metrics` (all of that evaluation) and `curve`, a list of (step, metric).
    """
    folder = Path(args.output_dir)
    if not (folder / "metrics.json").is_file():
        accelerator = make_accelerator(args)
        task = build(args, accelerator)
        assert args.max_steps is not None
        steps_per_epoch = len(task.splits["train"]) / args.batch_size
        args = replace(args, evals_per_epoch=evaluations * steps_per_epoch / args.max_steps)
        task = replace(task, splits={name: task.splits[name] for name in ("train", "dev")})
        train(task, args, accelerator)
        end_run(accelerator)
    record = read_json(folder / "metrics.json")
    name = f"dev_{record['best_metric']}"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "metric": record["splits"]["dev"][record["best_metric"]],
        "metrics": record["splits"]["dev"],
        "curve": [(line["step"], line[name]) for line in lines if name in line],
    }
