"""What asks a run to stop or to save between its steps: signals, `--max_hours` and `--save_minutes`."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from ..system import STOP_SIGNALS
from .args import TrainArgs

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, call again
_REPEAT_SECONDS = 1.0  # launchers pass on the Ctrl-C that the terminal has sent already


class RunStoppedError(Exception):
    """The run was asked to stop, and has saved a checkpoint. Scripts then exit with `STOPPED_STATUS`. The message is empty in all
    processes but one."""


class StopRequestedError(Exception):
    """Raised between steps, by all processes at the same place, where a run is asked to stop."""


class StopWatch:
    """Watches for what ends a run early. As a context it catches signals: the first only leaves a mark, so that the step is
    finished; a second Ctrl-C interrupts at once.

    Args:
        args: `max_hours` counts from their making, so that it covers the loading of the data.
        accelerator: Its processes stop and save after the same step, whichever of them is asked.
    """

    def __init__(self, args: TrainArgs, accelerator: Accelerator):
        self.accelerator = accelerator
        self._end = None if args.max_hours is None else args.started + 3600 * args.max_hours
        self._save_seconds = None if args.save_minutes is None else 60 * args.save_minutes
        self._last_save = time.monotonic()
        self._signal: str | None = None
        self._signal_time = 0.0
        self._earlier: dict[signal.Signals, Any] = {}
        self._pending: torch.Tensor | None = None  # what the processes want, not yet read

    def __enter__(self) -> StopWatch:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            pid = os.getpid()
            self._earlier = {
                number: signal.signal(number, lambda number, frame: self._note(number, frame, pid))
                for number in STOP_SIGNALS
            }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _note(self, number: int, _: FrameType | None, pid: int) -> None:
        if os.getpid() != pid:  # a process that prepares batches: it ends with this one
            return
        is_first, now = self._signal is None, time.monotonic()
        if number == signal.SIGINT and not is_first and now - self._signal_time > _REPEAT_SECONDS:
            raise KeyboardInterrupt
        if is_first:
            self._signal, self._signal_time = signal.Signals(number).name, now
            if self.accelerator.is_main_process:  # not by print, which may be at work when the signal comes
                os.write(2, f"\n{self._signal}: stopping and saving; Ctrl-C stops without saving\n".encode())

    @property
    def reason(self) -> str | None:
        """What asks this process to stop, if anything does."""
        if self._signal is None and self._end is not None and time.monotonic() > self._end:
            return "--max_hours"
        return self._signal

    def after_step(self) -> tuple[bool, bool]:
        """Whether all processes stop now, and whether all save. To be called by all of them after each step.

        On a GPU this is what they wanted one step ago: that number has arrived, and nothing waits for the device.
        """
        saves = self._save_seconds is not None and time.monotonic() - self._last_save > self._save_seconds
        wishes = [float(self.reason is not None), float(saves and self.accelerator.is_main_process)]
        if self.accelerator.num_processes > 1:
            agreed = self.accelerator.reduce(torch.tensor(wishes, device=self.accelerator.device), "sum")
            if agreed.device.type != "cpu":
                agreed, self._pending = self._pending, agreed
            wishes = [0.0, 0.0] if agreed is None else agreed.tolist()
        return wishes[0] > 0, wishes[1] > 0

    def anyone_stops(self) -> bool:
        """Whether a process is asked to stop. To be called by all of them; waits for all."""
        wish = torch.tensor(float(self.reason is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(wish, "sum") > 0)

    def note_save(self) -> None:
        """A checkpoint was saved: `--save_minutes` counts from here."""
        self._last_save = time.monotonic()


__all__ = ["STOPPED_STATUS", "RunStoppedError", "StopRequestedError", "StopWatch"]
