"""A table of images, questions and answers -> the rows that VQA reads. The forms of the answers that are in use:

    "net"                                                one answer
    ["net", "net", "netting"]                            those of several annotators
    [{"answer": "net", "answer_id": 1, ...}, ...]        the same, as in the annotations of VQA v2
    {"ids": ["net", "netting"], "weights": [1.0, 0.3]}   answers with their scores (data of the tutorials of `transformers`)

Numbers are taken as they are written. A row of the result::

    {"question_id": 17, "image_id": "photos/17.jpg", "question": "What is this photo taken looking through?",
     "answers": ["net", "netting"], "answer_scores": [1.0, 0.3], "question_type": None, "answer_type": None}

`answer_scores` is None where the table has no weights, and `answers` where it has no answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Dataset, Features, List, Value

from .table_images import TableImages
from .table_rows import Keys, column_of_labels, only_image, read_rows, value_of_id
from .tables import Table

ANSWER_COLUMNS = ("answers", "answer", "label")


def read_vqa_table(
    table: Table,
    images: TableImages,
    image_column: str = "image",
    question_column: str = "question",
    answer_column: str | None = None,
    needs_labels: bool = True,
    skipped: list[str] | None = None,
) -> Dataset:
    """Read one split.

    Args:
        table: Its rows.
        images: Where their images are entered.
        image_column, question_column, answer_column: Names of the columns; the first of `ANSWER_COLUMNS` that there is by
            default. Of other columns, `question_id` or `id`, `question_type` and `answer_type` are read.
        needs_labels: Whether a table without answers is refused.
        skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.

    Raises:
        FileNotFoundError: An image does not exist.
        ValueError: A column is missing, a question or an answer is empty or no text, or an id occurs twice; the message names
            the row.
    """
    image_column = table.column("image_column", image_column)
    question_column = table.column("question_column", question_column)
    answer_names = (answer_column,) if answer_column else ANSWER_COLUMNS
    answer_column = column_of_labels(table, needs_labels, "answer_column", answer_names)
    columns = {"question": question_column, "answers": answer_column}
    columns |= {name: name if name in table.rows.column_names else None for name in ("question_type", "answer_type")}
    keys = images.add(table, image_column, skipped)
    rows = read_rows(table, columns, keys, partial(_row, image_column), "question_id", skipped)
    return Dataset.from_dict({name: [row[name] for row in rows] for name in rows[0]}, features=_features(rows[0]))


def _features(row: Mapping[str, Any]) -> Features:
    texts = ("image_id", "question", "question_type", "answer_type")
    return Features(
        {
            "question_id": value_of_id(row["question_id"]),
            **{name: Value("string") for name in texts},
            "answers": List(Value("string")),
            "answer_scores": List(Value("float32")),
        }
    )


def _row(image_column: str, values: Mapping[str, Any], keys: Keys, where: str) -> dict[str, Any]:
    question = values["question"]
    if not isinstance(question, str) or not re.search(r"[^\s,?]", question):
        raise ValueError(f"{where}: the question is {question!r:.40}; expected at least one word")
    answers, scores = (None, None) if "answers" not in values else _answers(values["answers"], where)
    return {
        "image_id": only_image(keys, f"{where}: {image_column!r}"),
        "question": question,
        "answers": answers,
        "answer_scores": scores,
        **{name: values.get(name) or None for name in ("question_type", "answer_type")},
    }


def _answers(value: Any, where: str) -> tuple[list[str], list[float] | None]:
    """The answers of a cell, and their scores where it holds some."""
    if isinstance(value, Mapping) and {"ids", "weights"} <= value.keys():
        return _weighted(value["ids"], value["weights"], where)
    if isinstance(value, Mapping) and isinstance(value.get("answer"), list):  # a list of records, as columns
        value = value["answer"]
    found = value if isinstance(value, list) else [value]
    answers = [_text(answer.get("answer") if isinstance(answer, Mapping) else answer, where) for answer in found]
    if not answers:
        raise ValueError(f"{where}: there is no answer; expected at least one")
    return answers, None


def _weighted(ids: Sequence[Any], weights: Sequence[Any], where: str) -> tuple[list[str], list[float]]:
    if not ids or len(ids) != len(weights):
        raise ValueError(
            f"{where}: {len(ids)} answers with {len(weights)} weights; expected one for each, and at least one"
        )
    if any(weight is None or not 0 <= weight <= 1 for weight in weights):
        raise ValueError(f"{where}: weights {list(weights)}; expected numbers in 0..1")
    return [_text(answer, where) for answer in ids], [float(weight) for weight in weights]


def _text(answer: Any, where: str) -> str:
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and answer == answer:
        return str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{where}: an answer is {answer!r:.40}; expected a text or a number")
    return answer


__all__ = ["ANSWER_COLUMNS", "read_vqa_table"]
