"""What the readers of tables share: rows are checked one by one, and an error names the row and the column."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from datasets import Value

from .files import check_new, skipping
from .tables import Table

Keys = list[str]  # of the images of a row

_NO_LABEL = (None, "", -1)  # -1 is that of the classes of `datasets`


class NoRowsLeftError(ValueError):
    """All rows of a table are bad."""


def column_of_labels(table: Table, needs_labels: bool, flag: str, names: Sequence[str]) -> str | None:
    """The column of the labels; None if a table that can do without has none, or an empty one.

    Args:
        table: The table.
        needs_labels: Whether a table without labels is refused.
        flag: The argument that names the column, for the message.
        names: Names to look for.

    Raises:
        ValueError: There is no such column.
    """
    if not needs_labels:
        there = [name for name in names if name in table.rows.column_names]
        if not there or all(value in _NO_LABEL for value in table.rows[there[0]][:]):
            return None
    return table.column(flag, *names)


def optional_column(table: Table, flag: str, given: str | None, default: str) -> str | None:
    """The column that was asked for, or else the default one, None if there is none.

    Raises:
        ValueError: There is no column of the name that was asked for.
    """
    if given is not None:
        return table.column(flag, given)
    return default if default in table.rows.column_names else None


def value_of_id(identifier: int | str) -> Value:
    """The column of the ids: of one kind in a table, numbers or texts."""
    return Value("string" if isinstance(identifier, str) else "int64")


def read_rows(
    table: Table,
    columns: Mapping[str, str | None],
    keys: Sequence[Keys | None],
    make_row: Callable[[Mapping[str, Any], Keys, str], dict[str, Any]],
    id_name: str | None,
    skipped: list[str] | None,
) -> list[dict[str, Any]]:
    """Read all rows that have images.

    Args:
        table: The table.
        columns: Columns to read, by what `make_row` calls them; those that are None are left out.
        keys: Keys of the images of each row; None for a row that was left out already.
        make_row: Values by the names in `columns`, keys of the images, and the place for error messages -> a row.
        id_name: What the id of a row is called. It is that of the column of this name, of the column `id`, or the number of the
            row. None for rows without ids.
        skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.

    Raises:
        ValueError: A row is bad, an id occurs twice, or no row is left.
    """
    id_column = next((name for name in (id_name, "id") if id_name and name in table.rows.column_names), None)
    values = {name: table.rows[column][:] for name, column in {**columns, "id": id_column}.items() if column}
    rows: list[dict[str, Any]] = []
    seen: set[Hashable] = set()
    for number, images in enumerate(keys):
        if images is None:
            continue
        with skipping(skipped):
            where = table.place(number)
            cells = {name: column[number] for name, column in values.items()}
            identifier = _identifier(cells.pop("id", table.first_row + number), where)
            row = make_row(cells, images, where)
            if id_name is not None:
                check_new(identifier, seen, id_name.replace("_", " "), where)
                row = {id_name: identifier, **row}
            rows.append(row)
    if not rows:
        raise NoRowsLeftError(
            f"{table.name}: no row is left of {len(keys)}; the first was left out because of: {(skipped or [''])[0]}"
        )
    return rows


def _identifier(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError(f"{where}: the id is {value!r:.40}; expected a number or a text")
    return value


def only_image(keys: Keys, where: str) -> str:
    """The key of the image of a row.

    Raises:
        ValueError: It has several; the message starts with `where`.
    """
    if len(keys) != 1:
        raise ValueError(f"{where} holds {len(keys)} images; expected one")
    return keys[0]


def as_text(value: Any, what: str) -> str:
    """A cell with at least one word; `what` says where it is and what it is, for the message.

    Raises:
        ValueError: It is empty, or no text.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r:.40}; expected at least one word")
    return value


def as_list(value: Any, what: str) -> list[Any]:
    """A cell that holds a list. In CSV files it is written as in JSON or Python: `["a man", "a dog"]`.

    Raises:
        ValueError: It is no list, or an empty one; the message starts with `what`.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _written_list(value)
    if not isinstance(value, list) or not value:
        hint = ', in CSV files such as ["a", "b"]' if isinstance(value, str) else ""
        raise ValueError(f"{what} is {value!r:.40}; expected a list{hint}")
    return value


def _written_list(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


__all__ = [
    "Keys",
    "NoRowsLeftError",
    "as_list",
    "as_text",
    "column_of_labels",
    "only_image",
    "optional_column",
    "read_rows",
]
