"""Where the numbers of a run go: `log.jsonl`, and the trackers of `--report_to` through Accelerate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, get_available_trackers

from ..data.files import parse_json_line, require
from .args import TrainArgs, recorded_args

_PACKAGES = {
    "tensorboard": '"modeling-visualbert[train]"',
    "comet_ml": "comet-ml",
}  # others are called as their tracker


def make_trackers(args: TrainArgs) -> list[Any]:
    """The trackers of `args.report_to`, as an `Accelerator` takes them.

    Raises:
        ImportError: The package of one is not installed.
    """
    installed = [str(tracker) for tracker in get_available_trackers()]
    chosen = dict.fromkeys(name for name in args.report_to if name not in ("all", "none"))
    for name in chosen:
        if name not in installed:
            raise ImportError(f"--report_to {name} needs a package: pip install {_PACKAGES.get(name, name)}")
    if "all" in args.report_to:
        chosen |= dict.fromkeys(installed)
    # TensorBoard reads folders, so that its project is one in `output_dir`; elsewhere projects are shared by runs.
    return [TensorBoardTracker("tensorboard", args.output_dir) if name == "tensorboard" else name for name in chosen]


class RunLog:
    """`log.jsonl` and the accelerator's trackers. Lines after the step that a run is resumed from are removed first.

    Args:
        task: Name of the task; the project of the trackers is called after it, and the run after its folder.
        args: The run's arguments, which the trackers get too.
        accelerator: Has the trackers.
        step: Where the run begins.

    Raises:
        ConnectionError: A tracker does not start.
        ValueError: A line of the log is damaged; the message names it.
    """

    def __init__(self, task: str, args: TrainArgs, accelerator: Accelerator, step: int):
        self.accelerator, self.path = accelerator, Path(args.output_dir) / "log.jsonl"
        values = recorded_args(args).items()
        config = {name: ", ".join(value) if isinstance(value, list) else value for name, value in values}
        run = self.path.parent.resolve().name
        options = {
            "wandb": {"name": run, "dir": args.output_dir},
            "trackio": {"name": run},
            "mlflow": {"run_name": run},
        }
        try:
            accelerator.init_trackers(f"visualbert-{task}", config, options)
        except Exception as error:  # of any kind: packages of others, accounts, networks
            names, reason = " ".join(args.report_to), " ".join(str(error).split())
            raise ConnectionError(f"--report_to {names}: a tracker does not start ({reason})") from error
        if accelerator.is_main_process:
            self.path.touch()
            # A killed run may leave half a line, which belongs to a later step in any case.
            whole = [line for line in self.path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            kept = [line for number, line in enumerate(whole, start=1) if self._step_of(line, number) <= step]
            draft = self.path.with_name(f".{self.path.name}.tmp")
            draft.write_bytes(b"".join(kept))
            draft.replace(self.path)

    def _step_of(self, line: bytes, number: int) -> int:
        where = f"{self.path}: line {number}"
        return require(parse_json_line(line, where), "step", where, int)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Flush the trackers. (`Accelerator.end_training` would also end the process group, which is still needed.)"""
        for tracker in self.accelerator.trackers:
            tracker.finish()


__all__ = ["RunLog", "make_trackers"]
