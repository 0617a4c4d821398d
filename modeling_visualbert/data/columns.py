"""Columns of data sets as Arrow: what is asked of all rows is asked of a column, which no loop in Python walks through."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset


def column_of(split: Dataset, name: str) -> pa.ChunkedArray:
    """A column of the rows, in their order."""
    return split.select_columns([name]).with_format("arrow")[:][name]


def different_values(split: Dataset, name: str) -> list[Any]:
    """The different values of a column, or of its lists, in the order in which they occur first."""
    column = column_of(split, name)
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    return pc.unique(column).to_pylist()


def has_missing(split: Dataset, name: str) -> bool:
    """Whether a row has no value in a column."""
    return column_of(split, name).null_count > 0


__all__ = ["column_of", "different_values", "has_missing"]
