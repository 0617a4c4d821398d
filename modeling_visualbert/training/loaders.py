"""Batches of a task for a process: which rows and prepared by how many processes."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.table_stream import StreamedRows
from ..system import can_fork
from .args import TrainArgs
from .batches import AugmentedRows, MicroBatches, StepPlan, StreamedBatches
from .sharding import is_sharded
from .task import LABELS, Batch, Rows, Task

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
_WORKER_BYTES = 128 << 20  # of shared memory: two batches of 64 x (100 x 2048) in half precision, twice


def training_batches(
    task: Task, plan: StepPlan, args: TrainArgs, accelerator: Accelerator, first_step: int, last_step: int
) -> Iterator[Batch]:
    """The batches of this process in these steps. One iterator for all epochs: its processes live as long as the run."""
    rows, part = task.splits["train"], (plan, accelerator.process_index, first_step, last_step)
    options = _processes(num_workers(args, accelerator), accelerator)
    options["generator"] = torch.Generator().manual_seed(args.seed)
    if isinstance(rows, StreamedRows):
        batches = DataLoader(StreamedBatches(rows, *part, task.collate), batch_size=None, **options)
        return _noting_errors(batches, task, Path(args.output_dir))
    augmented = AugmentedRows(rows, task.augment, args.seed)
    return iter(DataLoader(augmented, batch_sampler=MicroBatches(*part), collate_fn=task.collate, **options))


def _noting_errors(batches: Iterable[tuple[Batch, list[str]]], task: Task, output_dir: Path) -> Iterator[Batch]:
    """The batches of a stream; rows that are left out on the way are counted and listed."""
    for batch, errors in batches:
        if new := [error for error in errors if error not in task.skipped]:
            task.skipped = [*task.skipped, *new]
            with (output_dir / "skipped.txt").open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in new)
            logger.warning("left out %d bad records while streaming, such as %s", len(new), new[0])
        yield batch


def evaluation_batches(task: Task, split: str, args: TrainArgs, accelerator: Accelerator) -> tuple[DataLoader, int]:
    """Rows and model inputs without labels, of this process' batches of a split, and how many of these there are.

    Where all processes take part in every forward pass, they get equally many batches: the split's first one fills the gaps.
    """
    examples, size = task.splits[split], args.eval_batch_size
    batches = [range(start, min(start + size, len(examples))) for start in range(0, len(examples), size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    own = len(mine)
    if is_sharded(accelerator):
        mine += batches[:1] * (-(-len(batches) // accelerator.num_processes) - own)
    workers = min(num_workers(args, accelerator), max(0, own - 1))  # the first batch is waited for in any case

    def collate(rows: Rows) -> tuple[Rows, Batch]:
        return rows, {name: value for name, value in task.collate(rows).items() if name not in LABELS}

    sampler = [list(batch) for batch in mine]
    loader = DataLoader(examples, batch_sampler=sampler, collate_fn=collate, **_processes(workers, accelerator))
    return loader, own


def num_workers(args: TrainArgs, accelerator: Accelerator) -> int:
    """Processes that prepare batches for this one: with a GPU half of its share of the machine's cores, at most eight, as far as
    shared memory allows. Without one none: the cores compute, and a batch takes a hundredth of a step.

    Raises:
        ValueError: The system cannot make the processes that were asked for.
    """
    if args.num_workers and not can_fork():
        raise ValueError(
            f"--num_workers {args.num_workers}: what prepares batches is a fork, which this system does not have; expected 0"
        )
    if args.num_workers is not None:
        return args.num_workers
    shared = Path("/dev/shm")  # batches pass through it; in containers it often has 64 MB
    if accelerator.device.type == "cpu" or not shared.is_dir():
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    room = shutil.disk_usage(shared).free // (here * _WORKER_BYTES)
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) // (2 * here), room)


def _processes(workers: int, accelerator: Accelerator) -> dict[str, Any]:
    """The part of a `DataLoader`'s arguments that is the same for all."""
    if workers:  # a tokenizer that used threads of its own says so at every fork, and must not do it in the new process
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return {
        "num_workers": workers,
        "multiprocessing_context": "fork" if workers else None,  # what tasks are made of cannot be sent to a process
        "pin_memory": accelerator.device.type == "cuda",  # copied while the device computes
    }


__all__ = ["evaluation_batches", "num_workers", "training_batches"]
