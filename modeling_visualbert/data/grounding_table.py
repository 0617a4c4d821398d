"""A table of images, sentences, phrases of them and boxes -> the rows that phrase grounding (Flickr30k Entities) reads.

Phrases are a list of texts that stand in the sentence (of several places the first one is meant), a list of character spans
`[start, end]`, or a single text, such as the sentence itself (referring expressions: `--phrases_column sentence`). Boxes are
x1, y1, x2, y2 in pixels of the image: one for each phrase, or a list of boxes for each. In CSV files lists are written as in
JSON. A row of the result::

    {"sentence_id": 17, "image_id": "photos/17.jpg", "sentence": "A man climbing a rock.", "phrases": ["A man", "a rock"],
     "last_words": [1, 4], "boxes": [[[10.0, 20.0, 80.0, 200.0]], [[0.0, 120.0, 300.0, 240.0]]]}

`last_words` are indices of words of the sentence, split at blanks. `boxes` is None where the table has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from datasets import Dataset, Features, List, Value

from .table_boxes import box_lists, checked_boxes, image_size
from .table_images import TableImages
from .table_rows import Keys, as_list, as_text, column_of_labels, only_image, read_rows, value_of_id
from .tables import Table

SENTENCE_COLUMNS = ("sentence", "caption", "text")


def read_grounding_table(
    table: Table,
    images: TableImages,
    image_column: str = "image",
    sentence_column: str | None = None,
    phrases_column: str = "phrases",
    boxes_column: str = "boxes",
    positions: str = "marked",
    needs_labels: bool = True,
    skipped: list[str] | None = None,
    needs_phrases: bool = True,
) -> Dataset:
    """Read one split.

    Args:
        table: Its rows.
        images: Where their images are entered.
        image_column, sentence_column, phrases_column, boxes_column: Names of the columns; the sentence's is the first of
            `SENTENCE_COLUMNS` that there is by default. `sentence_id` or `id` is read too.
        positions: `"marked"`: where a character span says that the phrase is; `"original"`: its first place, as in
            [`load_flickr30k`].
        needs_labels: Whether a table without boxes is refused.
        skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.
        needs_phrases: Whether phrases and boxes are read; pre-training reads the sentences only.

    Raises:
        FileNotFoundError: An image does not exist.
        ValueError: A column is missing, a phrase is not in its sentence, a phrase has no box or one that is not in the image, or
            an id occurs twice; the message names the row.
    """
    image_column = table.column("image_column", image_column)
    columns: dict[str, str | None] = {
        "sentence": table.column("sentence_column", *((sentence_column,) if sentence_column else SENTENCE_COLUMNS))
    }
    if needs_phrases:
        columns["phrases"] = table.column("phrases_column", phrases_column)
        columns["boxes"] = column_of_labels(table, needs_labels, "boxes_column", (boxes_column,))
    keys = images.add(table, image_column, skipped)
    make_row = partial(_row, images, image_column, boxes_column, positions)
    rows = read_rows(table, columns, keys, make_row, "sentence_id", skipped)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]}, features=_features(rows[0]))


def find_phrase(sentence: str, phrase: str) -> int | None:
    """Where a phrase ends that stands in a sentence as whole words, whatever the case and the blanks; None if it does not."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    found = re.search(rf"(?<!\w){words}(?!\w)", sentence, re.IGNORECASE)
    return None if found is None else found.end()


def _row(
    images: TableImages,
    image_column: str,
    boxes_column: str,
    positions: str,
    values: Mapping[str, Any],
    keys: Keys,
    where: str,
) -> dict[str, Any]:
    sentence = as_text(values["sentence"], f"{where}: the sentence")
    phrases, ends = _phrases(values["phrases"], sentence, f"{where}: the phrases") if "phrases" in values else ([], [])
    if positions == "original":
        ends = [find_phrase(sentence, phrase) or end for phrase, end in zip(phrases, ends, strict=True)]
    key = only_image(keys, f"{where}: {image_column!r}")
    boxes = None
    if "boxes" in values:
        what = f"{where}: {boxes_column!r}"
        boxes = box_lists(values["boxes"], len(phrases), what)
        size = image_size(images, key, f"{where}: {image_column!r}")
        checked_boxes([box for of_phrase in boxes for box in of_phrase], size, what)
    return {
        "image_id": key,
        "sentence": " ".join(sentence.split()),
        "phrases": phrases,
        "last_words": [len(sentence[:end].split()) - 1 for end in ends],
        "boxes": boxes,
    }


def _phrases(value: Any, sentence: str, what: str) -> tuple[list[str], list[int]]:
    """The phrases as texts, and where in the sentence they end."""
    is_text = isinstance(value, str) and not value.lstrip().startswith("[")
    found = [value] if is_text else as_list(value, what)
    placed = [_span(p, sentence, what) if isinstance(p, list) else _placed(p, sentence, what) for p in found]
    return [" ".join(phrase.split()) for phrase, _ in placed], [end for _, end in placed]


def _placed(phrase: Any, sentence: str, what: str) -> tuple[str, int]:
    end = find_phrase(sentence, as_text(phrase, f"{what}: one"))
    if end is None:
        raise ValueError(f"{what}: {phrase!r:.80} is not in the sentence {sentence!r:.60}")
    return phrase, end


def _span(span: list[Any], sentence: str, what: str) -> tuple[str, int]:
    is_span = len(span) == 2 and all(type(number) is int for number in span) and 0 <= span[0] < span[1] <= len(sentence)
    if not is_span or not sentence[span[0] : span[1]].strip():
        raise ValueError(f"{what}: {span} in a sentence of {len(sentence)} characters; expected [start, end] of words")
    phrase = sentence[span[0] : span[1]].rstrip()
    return phrase, span[0] + len(phrase)


def _features(row: Mapping[str, Any]) -> Features:
    return Features(
        {
            "sentence_id": value_of_id(row["sentence_id"]),
            "image_id": Value("string"),
            "sentence": Value("string"),
            "phrases": List(Value("string")),
            "last_words": List(Value("int32")),
            "boxes": List(List(List(Value("float32")))),
        }
    )


__all__ = ["SENTENCE_COLUMNS", "find_phrase", "read_grounding_table"]
