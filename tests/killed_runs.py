"""Toy runs in processes of their own, to be killed or stopped by signals. They are forked, because imports take seconds."""

import multiprocessing
import os
import sys
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from toy_training import toy_args, toy_task

from modeling_visualbert.cli.errors import exit_status
from modeling_visualbert.training.loop import train

STEPS = 30
CONTEXT = multiprocessing.get_context("fork")


def run_toy(folder: str, changes: dict, pause: float) -> None:
    """The body of the process: a toy run that sleeps a little in each step and each evaluation, and marks its evaluations."""
    torch.set_num_threads(1)  # threads of the parent do not exist here
    sys.stderr = open(f"{folder}.stderr", "a", buffering=1)  # noqa: SIM115 (until the process ends)
    os.dup2(sys.stderr.fileno(), 2)
    task = toy_task()
    collate, predict = task.collate, task.predict

    def slow_collate(rows):
        time.sleep(pause)
        return collate(rows)

    def slow_predict(outputs, rows):
        mark = Path(f"{folder}.evaluating")
        mark.touch()
        time.sleep(pause)
        mark.unlink(missing_ok=True)
        return predict(outputs, rows)

    task.collate, task.predict = slow_collate, slow_predict
    args = toy_args(
        folder, max_steps=STEPS, save_steps=4, evals_per_epoch=1, eval_batch_size=3, report_to="none", **changes
    )
    sys.exit(exit_status("toy", lambda: train(task, args)))


def start(folder: Path, pause: float = 0.0, **changes) -> BaseProcess:
    """Start a run in another process."""
    process = CONTEXT.Process(target=run_toy, args=(str(folder), changes, pause))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking while libraries have threads
        process.start()
    return process


def finish(folder: Path, **changes) -> None:
    """Run to the end, or go on to it."""
    process = start(folder, resume=True, **changes)
    process.join(60)
    assert process.exitcode == 0, Path(f"{folder}.stderr").read_text()[-2000:]


def wait_for(process: BaseProcess, happens, seconds: float = 30.0) -> bool:
    """Wait until something happens; False if the process ended before."""
    end = time.monotonic() + seconds
    while not happens():
        if not process.is_alive():
            return False
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.0005)
    return True


__all__ = ["STEPS", "finish", "start", "wait_for"]
