"""A table of two images and a text that is true of them or not -> the rows that visual reasoning (NLVR2) reads. The images are

    a list of two in one column                   `images`, `image`, or the one that was named
    in a column each                              `left_image` and `right_image`, or those that were named: "first,second"

and the truth is a boolean, 1 or 0, a class of `datasets`, or written: true, yes, t, y or 1; false, no, f, n or 0. A row of the
result::

    {"identifier": 17, "images": ["photos/17a.jpg", "photos/17b.jpg"], "sentence": "There is a dog in both.", "label": 1,
     "group": "There is a dog in both."}

`label` is None where the table says nothing about the truth. Rows with the same sentence are a group: NLVR2's consistency is the
share of sentences that are judged right for all their pairs of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from .table_images import TableImages
from .table_rows import Keys, as_text, column_of_labels, read_rows, value_of_id
from .tables import Table

TEXT_COLUMNS = ("text", "sentence", "statement")
LABEL_COLUMNS = ("label", "answer")
_SIDES = ("left_image", "right_image")
_TRUE, _FALSE = ("true", "yes", "t", "y", "1", "1.0"), ("false", "no", "f", "n", "0", "0.0")


def read_reasoning_table(
    table: Table,
    images: TableImages,
    image_column: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    needs_labels: bool = True,
    skipped: list[str] | None = None,
) -> Dataset:
    """Read one split.

    Args:
        table: Its rows.
        images: Where their images are entered.
        image_column: Column of pairs of images, or two columns with a comma between them.
        text_column, label_column: Names of the other columns; the first of `TEXT_COLUMNS` and `LABEL_COLUMNS` that there is
            by default. `identifier` or `id` is read too.
        needs_labels: Whether a table without truth is refused.
        skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.

    Raises:
        FileNotFoundError: An image does not exist.
        ValueError: A column is missing, a row has another number of images than two, no words or no truth, or an id occurs twice;
            the message names the row.
    """
    sides = image_columns(table, image_column)
    text_column = table.column("text_column", *((text_column,) if text_column else TEXT_COLUMNS))
    names = (label_column,) if label_column else LABEL_COLUMNS
    label_column = column_of_labels(table, needs_labels, "label_column", names)
    keys = join_keys([images.add(table, column, skipped) for column in sides])
    make_row = partial(_row, ",".join(sides), class_names(table, label_column))
    columns = {"sentence": text_column, "label": label_column}
    rows = read_rows(table, columns, keys, make_row, "identifier", skipped)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]}, features=_features(rows[0]))


def image_columns(table: Table, given: str | None, names: Sequence[str] = ("images", "image")) -> list[str]:
    """The column of images, or the columns of the first and the second image.

    Args:
        table: The table.
        given: The columns that were named, with a comma between them.
        names: What the column may be called where none was named.

    Raises:
        ValueError: There is no such column.
    """
    there = {*table.rows.column_names, *table.unread}
    if given is None and there >= {*_SIDES}:
        return [*_SIDES]
    if given is None:
        return [table.column("image_column", *names)]
    if given in there:
        return [given]
    return [table.column("image_column", name.strip()) for name in given.split(",")]


def join_keys(columns: list[list[Keys | None]]) -> list[Keys | None]:
    """The images of each row, of all columns; None for a row that one of them left out."""
    return [
        None if any(keys is None for keys in row) else [key for keys in row for key in keys or ()]
        for row in zip(*columns, strict=True)
    ]


def class_names(table: Table, column: str | None) -> list[str] | None:
    """Names of the classes that the numbers of a column stand for."""
    feature = None if column is None else table.rows.features[column]
    return feature.names if isinstance(feature, ClassLabel) else None


def _row(
    image_column: str, classes: list[str] | None, values: Mapping[str, Any], keys: Keys, where: str
) -> dict[str, Any]:
    if len(keys) != 2:
        count = "1 image" if len(keys) == 1 else f"{len(keys)} images"
        raise ValueError(f"{where}: {image_column!r} holds {count}; expected two (one: run_classification.py)")
    sentence = as_text(values["sentence"], f"{where}: the text")
    label = _truth(values["label"], classes, where) if "label" in values else None
    return {"images": keys, "sentence": sentence, "label": label, "group": sentence}


def _truth(value: Any, classes: list[str] | None, where: str) -> int:
    if classes is not None and isinstance(value, int) and 0 <= value < len(classes):
        value = classes[value]
    written = str(value).strip().lower()
    if written in _TRUE:
        return 1
    if written in _FALSE:
        return 0
    raise ValueError(f"{where}: the label is {value!r:.40}; expected true or false (or yes and no, 1 and 0)")


def _features(row: Mapping[str, Any]) -> Features:
    return Features(
        {
            "identifier": value_of_id(row["identifier"]),
            "images": List(Value("string")),
            "sentence": Value("string"),
            "label": Value("int64"),
            "group": Value("string"),
        }
    )


__all__ = ["LABEL_COLUMNS", "TEXT_COLUMNS", "class_names", "image_columns", "join_keys", "read_reasoning_table"]
