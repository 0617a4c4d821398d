"""`visualbert train`: the training scripts, for who has the package without the repository."""

from __future__ import annotations

import argparse
import runpy
import sys
from importlib.util import find_spec
from typing import Any

from ..training.recipes import examples_folder

SCRIPTS = {
    "vqa": "run_vqa.py",
    "nlvr2": "run_nlvr2.py",
    "classification": "run_classification.py",
    "vcr": "run_vcr.py",
    "flickr30k": "run_flickr30k.py",
    "pretraining": "run_pretraining.py",
    "detector": "train_detector.py",
}


def add_training_command(commands: Any) -> None:
    """Add the command to the parser of `visualbert`."""
    help_text = "train a model: what the scripts in examples/ do"
    command = commands.add_parser(
        "train",
        help=help_text,
        description=f"{help_text}. `visualbert train TASK --help` lists the options of a task. On several processes: "
        "`accelerate launch -m modeling_visualbert.cli train TASK ...`",
    )
    command.add_argument("task", choices=sorted(SCRIPTS), help="what is trained")
    command.add_argument("options", nargs=argparse.REMAINDER, help="options of the script")
    command.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    if find_spec("accelerate") is None:
        raise ImportError('training needs more packages: pip install "modeling-visualbert[train]"')
    path = examples_folder() / SCRIPTS[args.task]
    script = runpy.run_path(str(path), run_name=path.stem)
    sys.argv = [f"visualbert train {args.task}", *args.options]
    script["main"]()


__all__ = ["SCRIPTS", "add_training_command"]
