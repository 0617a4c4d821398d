"""A table of images, questions and choices -> the rows that multiple choice (VCR) reads.

The choices of a row are a list of two texts or more. What is right is the number of a choice (from 0), its text, or its
letter (A is the first); labels that are texts are all read in the same way.

Objects are optional: boxes x1, y1, x2, y2 in pixels, and class names, for which "[0]" or "[0,2]" stands in the texts, as in VCR.
Without boxes the model reads the regions that its region encoder finds. In CSV files lists are written as in JSON:
`["red", "blue"]`. A row of the result::

    {"annot_id": 17, "image": "photos/17.jpg", "question": ["What", "is", "[0]", "doing", "?"],
     "answer_choices": [["[0]", "sleeps", "."], ...], "answer_label": 2, "objects": ["person"], "object_ids": [0],
     "boxes": [[10.0, 20.0, 80.0, 200.0]]}

Rationales, where they are wanted, are choices with a label of their own; in the row `rationale_choices` and `rationale_label`.

`answer_label` is None where the table has no labels, `boxes` and `object_ids` where it has no boxes. `object_ids` are indices of
the boxes among those of all rows about the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, List, Value

from ..hub_code.text_visualbert import split_tags, tag_objects
from .table_boxes import Box, box_lists, checked_boxes, image_size
from .table_images import TableImages
from .table_rows import Keys, as_list, as_text, column_of_labels, only_image, optional_column, read_rows, value_of_id
from .tables import Table

LABEL_COLUMNS = ("label", "answer")
Readings = Mapping[str, "LabelReading"]  # of answers and, if there are any, of rationales
_KINDS = {"answer": ("choices", "label"), "rationale": ("rationales", "rationale_label")}  # their columns


def read_choice_table(
    table: Table,
    images: TableImages,
    image_boxes: dict[str, list[Box]],
    image_column: str = "image",
    question_column: str = "question",
    choices_column: str = "choices",
    label_column: str | None = None,
    objects_column: str | None = None,
    boxes_column: str | None = None,
    rationales: bool = False,
    rationales_column: str = "rationales",
    rationale_label_column: str = "rationale_label",
    with_boxes: bool = True,
    streamed: Mapping[str, Readings] | None = None,
    needs_labels: bool = True,
    skipped: list[str] | None = None,
) -> Dataset:
    """Read one split.

    Args:
        table: Its rows.
        images: Where their images are entered.
        image_boxes: Where the boxes of each image are entered, by its key: that of the whole image first.
        image_column, question_column, choices_column, label_column: Names of the columns; that of the label is the first of
            `LABEL_COLUMNS` that there is by default. `annot_id` or `id` is read too.
        objects_column, boxes_column: Columns that may be missing, `objects` and `boxes` by default.
        rationales: Whether rationales are read.
        rationales_column, rationale_label_column: Their columns.
        with_boxes: Whether objects and boxes are read, if there are any.
        streamed: What [`find_readings`] says of tables that come in parts, by their names.
        needs_labels: Whether a table without labels is refused.
        skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.

    Raises:
        FileNotFoundError: An image does not exist.
        ValueError: A column is missing, a text is empty or names an object that does not exist, a row has fewer than two choices,
            a label is none of them, a box is not in the image, or an id occurs twice; the message names the row.
    """
    image_column = table.column("image_column", image_column)
    columns: dict[str, str | None] = {"question": table.column("question_column", question_column)}
    labels = (label_column,) if label_column else LABEL_COLUMNS
    columns["choices"] = table.column("choices_column", choices_column)
    columns["label"] = column_of_labels(table, needs_labels, "label_column", labels)
    if with_boxes:
        columns["objects"] = optional_column(table, "objects_column", objects_column, "objects")
        columns["boxes"] = optional_column(table, "boxes_column", boxes_column, "boxes")
        if columns["objects"] and not columns["boxes"]:
            raise ValueError(f"{table.name}: objects without boxes; expected a column of boxes, one for each object")
    if rationales:
        labels = (rationale_label_column,)
        columns["rationales"] = table.column("rationales_column", rationales_column)
        columns["rationale_label"] = column_of_labels(table, needs_labels, "rationale_label_column", labels)
    readings = (streamed or {}).get(table.name) or _readings(table, columns)
    rows = _Rows(images, image_boxes, image_column, {kind: reading.how for kind, reading in readings.items()})
    found = read_rows(table, columns, images.add(table, image_column, skipped), rows.read, "annot_id", skipped)
    return Dataset.from_dict({name: [row[name] for row in found] for name in found[0]}, features=_features(found[0]))


def _readings(table: Table, columns: Mapping[str, str | None]) -> Readings:
    """How the labels of a whole table are read, which may have none."""
    found = {kind: LabelReading() for kind, (choices, _) in _KINDS.items() if choices in columns}
    for kind, reading in found.items():
        choices, label = (columns[column] for column in _KINDS[kind])
        if choices is not None and label is not None:
            reading.add_column(table, choices, label)
            reading.decide(table.name)
    return found


def find_readings(
    tables: Iterable[Table],
    choices_column: str = "choices",
    label_column: str | None = None,
    rationales: bool = False,
    rationales_column: str = "rationales",
    rationale_label_column: str = "rationale_label",
) -> tuple[str, Readings]:
    """The name of a table that comes in parts, and how its labels are read; arguments and errors as of [`read_choice_table`]."""
    found = {kind: LabelReading() for kind in (_KINDS if rationales else ("answer",))}
    name = ""
    for table in tables:
        name = table.name
        labels = (label_column,) if label_column else LABEL_COLUMNS
        columns = {
            "choices": table.column("choices_column", choices_column),
            "label": table.column("label_column", *labels),
        }
        if rationales:
            columns["rationales"] = table.column("rationales_column", rationales_column)
            columns["rationale_label"] = table.column("rationale_label_column", rationale_label_column)
        for kind, reading in found.items():
            reading.add_column(table, *(columns[column] for column in _KINDS[kind]))
    for reading in found.values():
        reading.decide(name)
    return name, found


class LabelReading:
    """How the labels of a column that are texts are read: as the `text` of a choice, its `number` or its `letter`, whichever is
    possible in most rows. `numbers_of_choices` counts rows by how many choices they have."""

    def __init__(self) -> None:
        self.how = "text"
        self.numbers_of_choices: Counter[int] = Counter()
        self._possible = Counter(text=0, number=0, letter=0)
        self._texts: list[str] = []  # the first label that is a text
        self._count, self._differ = 0, False

    def add_column(self, table: Table, choices_column: str, label_column: str) -> None:
        """Look at the rows of a table."""
        choices: list[list[Any]] = []
        for cell in table.rows[choices_column][:]:
            choices.append([])
            with suppress(ValueError):  # which is raised, with its row, when the row is read
                choices[-1] = as_list(cell, "")
        self.add(table.rows[label_column][:], choices)

    def add(self, labels: Sequence[Any], choices: Sequence[Sequence[Any]]) -> None:
        """Look at labels and the choices of their rows."""
        self.numbers_of_choices.update(len(given) for given in choices if given)
        for label, given in zip(labels, choices, strict=True):
            if not isinstance(label, str):
                continue
            self._texts = self._texts or [label]
            self._count += 1
            found = {how: _index(label, given, how) for how in self._possible}
            self._possible.update(how for how, index in found.items() if index is not None)
            self._differ |= found["text"] != found["number"]

    def decide(self, name: str) -> None:
        """Say how, in `how`, when all rows were looked at; `name` is that of the table, for the message.

        Raises:
            ValueError: All could be read as text and as number, and would mean different choices.
        """
        if self._differ and self._possible["text"] == self._possible["number"] == self._count:
            raise ValueError(
                f"{name}: the label {self._texts[0]!r} is the text of a choice and could be the number of another; expected "
                "numbers that are no texts (json, parquet), or letters (A is the first)"
            )
        self.how = max(self._possible, key=self._possible.__getitem__)


def _index(label: str, choices: Sequence[Any], how: str) -> int | None:
    """The choice that a label means; None if it means none."""
    label = label.strip()
    if how == "text":
        places = [i for i, choice in enumerate(choices) if str(choice).strip() == label]
        return places[0] if len(places) == 1 else None
    if how == "number":
        index = int(label) if label.isascii() and label.isdigit() and len(label) < 5 else -1
    else:
        index = ord(label.upper()) - ord("A") if len(label) == 1 else -1
    return index if 0 <= index < len(choices) else None


@dataclass
class _Rows:
    """Makes rows of the cells of a table."""

    images: TableImages
    image_boxes: dict[str, list[Box]]
    image_column: str
    readings: Mapping[str, str]  # how labels that are texts are read, of answers and rationales

    def read(self, values: Mapping[str, Any], keys: Keys, where: str) -> dict[str, Any]:
        """A row."""
        key = only_image(keys, f"{where}: {self.image_column!r}")
        boxes = _listed_boxes(values.get("boxes"), f"{where}: the boxes")
        objects = [] if values.get("objects") in (None, "", []) else as_list(values["objects"], f"{where}: the objects")
        if objects and len(objects) != len(boxes):
            raise ValueError(f"{where}: {len(objects)} objects with {len(boxes)} boxes; expected one for each")
        row = {
            "image": key,
            "question": _words(values["question"], len(objects), f"{where}: the question"),
            **self._choices("answer", values, len(objects), where),
            "objects": [as_text(name, f"{where}: an object") for name in objects],
        }
        if "rationale" in self.readings:
            row |= self._choices("rationale", values, len(objects), where)
        if "boxes" not in values:
            return {**row, "object_ids": None, "boxes": None}
        return {**row, "object_ids": self._enter(key, boxes, where), "boxes": boxes}

    def _choices(self, kind: str, values: Mapping[str, Any], num_objects: int, where: str) -> dict[str, Any]:
        """The answers or rationales of a row, and which is right: None where the table has no labels."""
        (of_choices, of_label), how = _KINDS[kind], self.readings[kind]
        choices = as_list(values[of_choices], f"{where}: the {of_choices}")
        if len(choices) < 2:
            raise ValueError(f"{where}: {len(choices)} {of_choices}; expected at least 2")
        texts = [str(choice) if type(choice) in (int, float) else choice for choice in choices]
        what = of_choices.removesuffix("s")
        return {
            f"{kind}_choices": [_words(text, num_objects, f"{where}: a {what}") for text in texts],
            f"{kind}_label": _label(values[of_label], texts, how, where) if of_label in values else None,
        }

    def _enter(self, key: str, boxes: list[Box], where: str) -> list[int]:
        """Enter the boxes of a row, and find them among those of its image."""
        height, width = image_size(self.images, key, f"{where}: {self.image_column!r}")
        if boxes:
            checked_boxes(boxes, (height, width), f"{where}: the boxes")
        known = self.image_boxes.setdefault(key, [[0.0, 0.0, float(width), float(height)]])
        known += [box for number, box in enumerate(boxes) if box not in known[1:] and box not in boxes[:number]]
        return [known.index(box, 1) - 1 for box in boxes]


def _label(label: Any, choices: list[str], how: str, where: str) -> int:
    is_number = type(label) is int or (type(label) is float and label.is_integer())
    index = int(label) if is_number else _index(label, choices, how) if isinstance(label, str) else None
    if index is None or not 0 <= index < len(choices):
        raise ValueError(
            f"{where}: the label is {label!r:.40}; expected 0 to {len(choices) - 1}, or the text of one choice"
        )
    return index


def _listed_boxes(value: Any, what: str) -> list[Box]:
    """The boxes of a row, which may have none."""
    if value in (None, "", []):
        return []
    (boxes,) = box_lists([value], 1, what) if isinstance(value, list) else box_lists(value, 1, what)
    return boxes


def _words(text: Any, num_objects: int, what: str) -> list[str]:
    """Words and tags of a text, which may be given as such.

    Raises:
        ValueError: It is empty, or a tag stands for no object; the message starts with `what`.
    """
    listed = isinstance(text, list) and all(isinstance(word, str) for word in text)
    words = split_tags([*text] if listed else as_text(text, what))
    if not any(word.strip() for word in words):
        raise ValueError(f"{what} is {text!r:.40}; expected at least one word")
    for word in words:
        if any(number >= num_objects for number in tag_objects(word)):
            raise ValueError(f"{what}: tag {word}, but the row has {num_objects} objects; expected numbers from 0")
    return words


def _features(row: Mapping[str, Any]) -> Features:
    rationales = {"rationale_choices": List(List(Value("string"))), "rationale_label": Value("int64")}
    return Features(
        {
            **{name: value for name, value in rationales.items() if name in row},
            "annot_id": value_of_id(row["annot_id"]),
            "image": Value("string"),
            "question": List(Value("string")),
            "answer_choices": List(List(Value("string"))),
            "answer_label": Value("int64"),
            "objects": List(Value("string")),
            "object_ids": List(Value("int32")),
            "boxes": List(List(Value("float32"))),
        }
    )


__all__ = ["LABEL_COLUMNS", "LabelReading", "find_readings", "read_choice_table"]
