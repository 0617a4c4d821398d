"""Runs in processes of their own, to be killed or stopped by signals. They are forked, because imports take seconds."""

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from toy_training import questions, toy_args, toy_task

from modeling_visualbert.cli.errors import exit_status
from modeling_visualbert.data import cache
from modeling_visualbert.disk import whole_folder
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.loop import train

STEPS = 30
TEST_ID = 200  # ids of the questions of the test split begin here, those of the dev split at 100
CONTEXT = multiprocessing.get_context("fork")


def begin(folder: str) -> None:
    """What each process does first; its messages are in `<folder>.stderr`."""
    torch.set_num_threads(1)  # threads of the parent do not exist here
    sys.stderr = open(f"{folder}.stderr", "a", buffering=1)  # noqa: SIM115 (until the process ends)
    os.dup2(sys.stderr.fileno(), 2)


def run_toy(folder: str, changes: dict, pause: float, tests: bool = False) -> None:
    """The body of the process: a toy run that sleeps a little in each step and each evaluation, marks its evaluations and lists
    the first question of each batch. With `tests`, its final evaluation has a test split."""
    begin(folder)
    task = toy_task()
    if tests:  # `make_task` reads the same splits
        task.splits["test"] = questions(9, first_id=TEST_ID)
    collate, predict = task.collate, task.predict

    def slow_collate(rows):
        with Path(f"{folder}.batches").open("a") as file:
            file.write(f"{rows[0]['question_id']}\n")
        time.sleep(pause)
        return collate(rows)

    def slow_predict(outputs, rows):
        mark = Path(f"{folder}.{'testing' if rows[0]['question_id'] >= TEST_ID else 'evaluating'}")
        mark.touch()
        time.sleep(pause)
        mark.unlink(missing_ok=True)
        return predict(outputs, rows)

    task.collate, task.predict = slow_collate, slow_predict
    args = toy_args(
        folder, max_steps=STEPS, save_steps=4, evals_per_epoch=1, eval_batch_size=3, report_to="none", **changes
    )
    sys.exit(exit_status("toy", lambda: train(task, args)))


def run_vqa(folder: str, tables: str) -> None:
    """The body of the process: VQA on an embedded corpus, from an empty cache to the metrics, regions included."""
    begin(folder)
    os.environ["MODELING_VISUALBERT_CACHE"] = tables
    cache.KEPT = 0  # small tables are kept too

    @contextmanager
    def slow_folder(place: Path) -> Iterator[Path]:
        with whole_folder(place) as draft:
            time.sleep(0.2)  # long enough to be met
            yield draft

    cache.whole_folder = slow_folder

    def run() -> None:
        args = VqaArgs(
            *(folder,),
            train_scenes=100,
            val_scenes=20,
            test_scenes=20,
            region_encoder=str(DETECTOR),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_steps=STEPS,
            batch_size=16,
            log_steps=3,
            save_steps=4,
            evals_per_epoch=1,
            cpu=True,
            resume=True,
            report_to="none",
        )
        accelerator = make_accelerator(args)
        train(vqa_task(args, accelerator), args, accelerator)

    sys.exit(exit_status("vqa", run))


def start(folder: Path, pause: float = 0.0, tests: bool = False, **changes) -> BaseProcess:
    """Start a toy run in another process."""
    return fork(run_toy, str(folder), changes, pause, tests)


def fork(body: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process that runs this."""
    process = CONTEXT.Process(target=body, args=arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking while libraries have threads
        process.start()
    return process


def finish(folder: Path, **changes) -> None:
    """Run to the end, or go on to it."""
    join(start(folder, resume=True, **changes), folder)


def join(process: BaseProcess, folder: Path, seconds: float = 60.0) -> None:
    """Wait for a run that is to end well."""
    process.join(seconds)
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


__all__ = ["STEPS", "TEST_ID", "finish", "fork", "join", "run_vqa", "start", "wait_for"]
