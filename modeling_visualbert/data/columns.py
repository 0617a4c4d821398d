"""Columns of data sets as Arrow: what is asked of all rows is asked of a column, which no loop in Python walks through."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .files import skipping


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


def labelled_alike(rows: pa.Table, key: str, label: str, skipped: list[str] | None) -> pa.Table:
    """Rows of which all or none have a label: where some have it, one without it is a bad record.

    Args:
        rows: With a column `where`, the place of each row, for error messages.
        key: Column that identifies a row.
        label: Column of the label, null where there is none.
        skipped: If given, rows without label are left out and their errors are added to this list instead of being raised.

    Raises:
        ValueError: A row has no label, although others have one; the message names its place and identifier.
    """
    if rows[label].null_count in (0, len(rows)):
        return rows
    is_missing = rows[label].is_null()
    for row in rows.select(["where", key]).filter(is_missing).to_pylist():
        with skipping(skipped):
            raise ValueError(
                f"{row['where']}: {key} {row[key]!r:.80} has no {label!r}, but others have; expected all or none"
            )
    return rows.filter(pc.invert(is_missing))


__all__ = ["column_of", "different_values", "has_missing", "labelled_alike"]
