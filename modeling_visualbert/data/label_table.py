"""A table of an image or two, a text and a label -> the rows that classification reads. A row of the result::

    {"identifier": 42953, "images": ["img/42953.png"], "text": "its their character not their color that matters", "label": 0}

`label` is the number of the label's name in the order of the names, None where the table has no labels. Names are texts, whole
numbers, truth values or classes of `datasets`.

Two data sets are read as they are published. Hateful Memes (Kiela et al. 2020), `train.jsonl`, `dev_seen.jsonl`, ...::

    {"id": 42953, "img": "img/42953.png", "label": 0, "text": "its their character not their color that matters"}

and SNLI-VE (Xie et al. 2019, https://github.com/necla-ml/SNLI-VE), `snli_ve_train.jsonl`, ..., with the images of Flickr30k::

    {"Flickr30K_ID": "3416050480", "gold_label": "entailment", "sentence1": "...", "sentence2": "Two women are outside.",
     "pairID": "3416050480.jpg#4r1e", ...}

There the text is the hypothesis, `sentence2`; the premise, `sentence1`, is what the image stands for. Rows whose `gold_label` is
"-", for which the annotators found no majority, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from .files import find_one, index_images_by_name
from .reasoning_table import LABEL_COLUMNS, TEXT_COLUMNS, class_names, image_columns, join_keys
from .table_images import TableImages
from .table_rows import Keys, as_text, column_of_labels, read_rows, value_of_id
from .tables import Table

_SNLI_VE_IMAGE, _SNLI_VE_TEXT, _SNLI_VE_LABEL = "Flickr30K_ID", "sentence2", "gold_label"
_UNDECIDED = "-"
_IMAGE_COLUMNS = ("images", "image", "img", _SNLI_VE_IMAGE)
_TEXT_COLUMNS = (*TEXT_COLUMNS, _SNLI_VE_TEXT)
_LABEL_COLUMNS = (*LABEL_COLUMNS, _SNLI_VE_LABEL)


@dataclass
class LabelTables:
    """Reads the splits of a data set one after another. The first one says what the labels are and how many images there are to
    a text, unless that is known.

    Args:
        image_column: Column of images or of lists of two images, or two columns with a comma between them.
        text_column, label_column: Names of the other columns; usual names by default. `identifier` or `id` is read too.
        labels: Names of the labels in the order of their numbers.
        num_images: Images that each text is about, one or two.
        order: Labels in an order that is taken if they are the same; they are sorted otherwise, except classes of `datasets`.
        undecided: What was left out because its annotators disagreed; grows while splits are read.
    """

    image_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    labels: list[str] | None = None
    num_images: int | None = None
    order: Sequence[str] = ()
    undecided: list[str] = field(default_factory=list)

    def __call__(
        self, table: Table, images: TableImages, *, needs_labels: bool = True, skipped: list[str] | None = None
    ) -> Dataset:
        """Read one split.

        Args:
            table: Its rows.
            images: Where their images are entered.
            needs_labels: Whether a table without labels is refused.
            skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.

        Raises:
            FileNotFoundError: An image does not exist.
            ValueError: A column is missing, all labels are the same, a row has another number of images than the first, no words
                or no label, or a label that is none of `labels`, or an id occurs twice; the message names the row.
        """
        table = _with_image_names(table)
        sides = image_columns(table, self.image_column, _IMAGE_COLUMNS)
        text_column = table.column("text_column", *((self.text_column,) if self.text_column else _TEXT_COLUMNS))
        names = (self.label_column,) if self.label_column else _LABEL_COLUMNS
        label_column = column_of_labels(table, needs_labels, "label_column", names)
        keys = join_keys([images.add(table, column, skipped) for column in sides])
        if label_column == _SNLI_VE_LABEL:
            keys = self._without_undecided(table, keys)
        if self.num_images is None:
            self.num_images = next((len(found) for found in keys if found and len(found) <= 2), 1)
        classes = class_names(table, label_column)
        if self.labels is None and label_column is not None:
            values = [
                value for value, found in zip(table.rows[label_column][:], keys, strict=True) if found is not None
            ]
            self.labels = self._in_order(_names(values, classes), classes, table.name, label_column)
        columns = {"text": text_column, "label": label_column}

        def make_row(values: Mapping[str, Any], found: Keys, where: str) -> dict[str, Any]:
            return self._row(values, found, classes, where)

        rows = read_rows(table, columns, keys, make_row, "identifier", skipped)
        return Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]}, features=_features(rows[0]))

    def _row(self, values: Mapping[str, Any], keys: Keys, classes: list[str] | None, where: str) -> dict[str, Any]:
        if len(keys) != self.num_images:
            count = "1 image" if len(keys) == 1 else f"{len(keys)} images"
            expected = "one, or a pair in every row" if self.num_images == 1 else "two"
            raise ValueError(f"{where} has {count}; expected {expected}")
        text = as_text(values["text"], f"{where}: the text")
        label = None
        if "label" in values:
            name, labels = label_name(values["label"], classes, where), self.labels or []
            if name not in labels:
                shown = ", ".join(map(repr, labels[:8])) + (", ..." if len(labels) > 8 else "")
                raise ValueError(f"{where}: the label is {name!r:.40}; expected one that is trained: {shown}")
            label = labels.index(name)
        return {"images": keys, "text": text, "label": label}

    def _without_undecided(self, table: Table, keys: list[Keys | None]) -> list[Keys | None]:
        """The keys, None for the rows without a gold label; these are noted."""
        gold = table.rows[_SNLI_VE_LABEL][:]
        rows = [row for row, label in enumerate(gold) if label == _UNDECIDED]
        self.undecided += [f"{table.place(row)}: the gold label is '-': its annotators disagreed" for row in rows]
        return [None if label == _UNDECIDED else found for label, found in zip(gold, keys, strict=True)]

    def find_labels(self, tables: Iterable[Table]) -> None:
        """Find out what the labels of a table are that is read in parts, unless that is known.

        Raises:
            ValueError: There is no column of labels, or all of them are the same.
        """
        if self.labels is not None:
            return
        found: set[str] = set()
        for table in tables:
            column = table.column("label_column", *((self.label_column,) if self.label_column else _LABEL_COLUMNS))
            classes = class_names(table, column)
            values = table.rows[column][:]
            found |= _names(
                values if column != _SNLI_VE_LABEL else [one for one in values if one != _UNDECIDED], classes
            )
        self.labels = self._in_order(found, classes, table.name, column)

    def _in_order(self, found: set[str], classes: list[str] | None, name: str, column: str) -> list[str]:
        """The names of the labels, in the order of their numbers."""
        if len(found) < 2:
            only = f"every label is {next(iter(found))!r:.40}" if found else "there is no label"
            raise ValueError(f"{name}: {only}; expected at least two different ones in {column!r}")
        if found == set(self.order):
            return list(self.order)
        return classes if classes is not None else sorted(found, key=_by_number)


def _names(values: Iterable[Any], classes: list[str] | None) -> set[str]:
    """The different labels of rows; what is none is refused, with its row, when the row is read."""
    found: set[str] = set()
    for value in values:
        with suppress(ValueError):
            found.add(label_name(value, classes, ""))
    return found


def label_name(value: Any, classes: Sequence[str] | None, where: str) -> str:
    """The name of a label.

    Args:
        value: A text, a whole number or a truth value.
        classes: What the numbers stand for, where they are classes of `datasets`.
        where: For the message.

    Raises:
        ValueError: It is nothing of that, or empty.
    """
    if classes is not None and type(value) is int and 0 <= value < len(classes):
        return classes[value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap
    if not isinstance(value, (str, int)) or not str(value).strip():
        raise ValueError(f"{where}: the label is {value!r:.40}; expected a name, a whole number or a truth value")
    return str(value).strip()


def _by_number(name: str) -> tuple[bool, int, str]:
    number = name.removeprefix("-")
    return (False, int(name), name) if number.isascii() and number.isdigit() else (True, 0, name)


def find_label_file(folder: str | Path, split: str) -> Path:
    """The file of a split below a folder: `dev_seen.jsonl`, `snli_ve_dev.jsonl`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Several files could be meant.
    """
    return find_one(folder, (f"**/{split}.jsonl", f"**/*_{split}.jsonl"), f"file of split {split!r}")


def _with_image_names(table: Table) -> Table:
    """A table of SNLI-VE with the names of its image files and with ids; any other as it is."""
    if not {_SNLI_VE_IMAGE, _SNLI_VE_TEXT} <= set(table.rows.column_names):
        return table
    numbers = table.rows[_SNLI_VE_IMAGE][:]
    files = index_images_by_name(table.folder, {"": {str(number) for number in numbers}})  # in it, or in a folder below
    paths = {name: str(path.absolute()) for name, path in files.items()}
    names = [None if number is None else paths.get(str(number), f"{number}.jpg") for number in numbers]
    rows = table.rows.remove_columns(_SNLI_VE_IMAGE).add_column(_SNLI_VE_IMAGE, names)
    if "pairID" in rows.column_names and not {"id", "identifier"} & set(rows.column_names):
        rows = rows.rename_column("pairID", "identifier")
    return replace(table, rows=rows)


def _features(row: Mapping[str, Any]) -> Features:
    return Features(
        {
            "identifier": value_of_id(row["identifier"]),
            "images": List(Value("string")),
            "text": Value("string"),
            "label": Value("int64"),
        }
    )


__all__ = ["LabelTables", "find_label_file", "label_name"]
