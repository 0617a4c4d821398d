"""Rows of data -> prepared batches, in this process or in workers; what goes wrong names its row."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

_ONE_IMAGE = (str, Path, bytes, io.IOBase, Image.Image, np.ndarray, torch.Tensor, Mapping)
_ERRORS = (FileNotFoundError, OSError, TypeError, ValueError)


def holds_many(value: Any) -> bool:
    """Whether it is a list, a column or rows of a data set, or a generator, and not one image or its regions."""
    return not isinstance(value, _ONE_IMAGE) and (hasattr(value, "__iter__") or hasattr(value, "__getitem__"))


def is_streamed(rows: Any) -> bool:
    """Whether results are computed while they are read, as `transformers` does it for generators and PyTorch's data sets (and for
    the iterable ones of `datasets`, which are among these)."""
    return isinstance(rows, (GeneratorType, Dataset))


def prepared_batches(
    rows: Any, prepare: Callable[[Sequence[tuple[int, Any]]], Any], batch_size: int, num_workers: int
) -> Iterator[Any]:
    """
    What `prepare` makes of the rows, `batch_size` at a time.

    Args:
        rows: Anything that can be iterated over.
        prepare: Takes a list of numbered rows.
        num_workers: Processes that read and prepare rows, for rows that have a length and are found by their number. All others
            are read in this process.

    Raises:
        ValueError: A number is not positive.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size {batch_size}, num_workers {num_workers}; expected at least 1, and at least 0")
    if num_workers and isinstance(rows, Sized) and hasattr(rows, "__getitem__"):
        # The workers get the numbers of the rows, so that they read the rows too.
        read = partial(_prepare_in_worker, rows, prepare)
        for batch in DataLoader(range(len(rows)), batch_size, num_workers=num_workers, collate_fn=read):  # type: ignore[arg-type]
            if isinstance(batch, Exception):
                raise batch
            yield batch
        return
    numbered = enumerate(_each(rows))
    while chunk := list(islice(numbered, batch_size)):
        yield prepare(chunk)


def _each(rows: Any) -> Iterable[Any]:
    # Without `__iter__`, Python reads until an IndexError, which data sets of PyTorch need not raise.
    return rows if hasattr(rows, "__iter__") else (rows[number] for number in range(len(rows)))


def _prepare_in_worker(rows: Any, prepare: Callable, numbers: Sequence[int]) -> Any:
    try:
        return prepare([(number, rows[number]) for number in numbers])
    except _ERRORS as error:  # raised here, it would arrive with the whole traceback as its message
        return error


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Put a name in front of what goes wrong inside."""
    try:
        yield
    except _ERRORS as error:
        if not name:
            raise
        kind = next(kind for kind in _ERRORS if isinstance(error, kind))
        raise kind(f"{name}: {error}") from error


__all__ = ["holds_many", "is_streamed", "named_errors", "prepared_batches"]
