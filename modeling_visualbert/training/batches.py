"""Which examples make up which step: a pure function of the seed, so that resuming and sharding are exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..data.table_stream import StreamedRows


@dataclass(frozen=True)
class StepPlan:
    """The order of examples in training.

    Each epoch is shuffled anew. Epochs follow each other without a gap, and every step takes the next `batch_size` examples, so
    every batch is full and no example is dropped or repeated within an epoch. Each process takes a contiguous share of a step,
    in micro-batches.

    Raises:
        ValueError: `batch_size` is not divisible, or there are no examples.
    """

    num_examples: int
    batch_size: int
    num_processes: int
    micro_batch_size: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ValueError("no training examples")
        if self.batch_size % self.num_processes:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of the {self.num_processes} processes")
        if self.batch_size % (self.num_processes * self.micro_size):
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_size} "
                f"x {self.num_processes} processes"
            )

    @property
    def micro_size(self) -> int:
        """Examples in one forward pass of one process."""
        return self.micro_batch_size or self.batch_size // self.num_processes

    @property
    def accumulation(self) -> int:
        """Forward passes of one process in a step."""
        return self.batch_size // (self.num_processes * self.micro_size)

    def __str__(self) -> str:
        """How a step is made up, for people."""
        parts = [
            f"{self.micro_size} example{'s' * (self.micro_size > 1)}",
            f"{self.num_processes} process{'es' * (self.num_processes > 1)}",
        ]
        if self.accumulation > 1:
            parts.append(f"{self.accumulation} forward passes")
        return f"{self.batch_size} example{'s' * (self.batch_size > 1)} in a step = {' x '.join(parts)}"

    def num_steps(self, epochs: float, max_steps: int | None = None) -> int:
        """`max_steps` if given, otherwise the number of steps nearest to `epochs` passes over the data, at least one."""
        return max_steps or max(1, math.floor(epochs * self.num_examples / self.batch_size + 0.5))

    def step_indices(self, step: int) -> list[int]:
        """Indices of the examples of a step, over all processes."""
        start = step * self.batch_size
        places = (divmod(place, self.num_examples) for place in range(start, start + self.batch_size))
        return [_epoch_order(self.num_examples, self.seed, epoch)[place] for epoch, place in places]


@lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(num_examples, generator=generator).tolist()


class MicroBatches(Sampler[list[tuple[int, int]]]):
    """Batch sampler of one process: its micro-batches of the steps `first_step` to `last_step - 1`, as (step, example) pairs."""

    def __init__(self, plan: StepPlan, process: int, first_step: int, last_step: int):
        self.plan, self.process, self.steps = plan, process, range(first_step, last_step)

    def __len__(self) -> int:
        return len(self.steps) * self.plan.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share, micro = self.plan.batch_size // self.plan.num_processes, self.plan.micro_size
        for step in self.steps:
            mine = self.plan.step_indices(step)[self.process * share : (self.process + 1) * share]
            for start in range(0, share, micro):
                yield [(step, example) for example in mine[start : start + micro]]


class AugmentedRows(Dataset):
    """Training examples, changed at random by `augment(row, generator)`; the generator depends on seed, step and example only."""

    def __init__(self, rows: Sequence[Any], augment: Callable[[Any, torch.Generator], Any] | None, seed: int):
        self.rows, self.augment, self.seed = rows, augment, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, places: list[tuple[int, int]]) -> list[Any]:
        examples = [example for _, example in places]
        # `datasets` reads many rows at once much faster than one by one.
        fetch = getattr(self.rows, "__getitems__", None)
        rows = fetch(examples) if fetch else [self.rows[example] for example in examples]
        if self.augment is None:
            return rows
        return [self.augment(row, self._generator(*place)) for row, place in zip(rows, places, strict=True)]

    def __getitem__(self, place: tuple[int, int]) -> Any:
        return self.__getitems__([place])[0]

    def _generator(self, step: int, example: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * 1_000_003 + step) * 1_000_003 + example) % 2**63)


class StreamedBatches(IterableDataset):
    """Micro-batches of one process of the steps `first_step` to `last_step - 1`, each with the errors of rows that were left out.

    Every process, and every worker of a process, reads all rows and makes its own batches of them, so that a step is the same on
    any number of processes.

    Args:
        rows: What is streamed.
        plan: Sizes of the batches.
        process: Which process this is.
        first_step, last_step: Which steps.
        collate: Rows -> batch.
    """

    def __init__(
        self,
        rows: StreamedRows,
        plan: StepPlan,
        process: int,
        first_step: int,
        last_step: int,
        collate: Callable[[list[Any]], Any],
    ):
        self.rows, self.plan, self.process = rows, plan, process
        self.steps, self.collate = range(first_step, last_step), collate

    def __iter__(self) -> Iterator[tuple[Any, list[str]]]:
        worker = get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stream = self.rows.read_from(self.steps.start * self.plan.batch_size)
        share, micro = self.plan.batch_size // self.plan.num_processes, self.plan.micro_size
        numbers = count()
        for _ in self.steps:
            step = list(islice(stream, self.plan.batch_size))
            mine = step[self.process * share : (self.process + 1) * share]
            for start in range(0, share, micro):
                if next(numbers) % workers == own:  # the loader takes one of each worker in turn
                    yield self._batch(mine[start : start + micro])

    def _batch(self, rows: list[Any]) -> tuple[Any, list[str]]:
        errors, self.rows.errors = self.rows.errors, []
        if self.rows.skipped is None:
            return self.collate(rows), errors
        try:
            return self.collate(rows), errors
        except (ValueError, OSError) as error:
            last = error
        kept = []
        for row in rows:
            try:
                self.collate([row])
                kept.append(row)
            except (ValueError, OSError) as error:
                errors.append(str(error))
        if not kept:
            raise last
        return self.collate(kept), errors
