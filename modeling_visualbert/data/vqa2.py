"""VQA v2 (Goyal et al. 2017, https://visualqa.org/download.html): the official JSON files of questions and annotations.

One question and its annotation in the files, shortened::

    {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000}
    {"question_type": "what is this", "multiple_choice_answer": "net", "image_id": 458752, "answer_type": "other",
     "question_id": 458752000, "answers": [{"answer": "net", "answer_confidence": "maybe", "answer_id": 1}, ...]}

become one row of the dataset (without an annotations file, as for test, the fields that come from it are None)::

    {"question_id": 458752000, "image_id": 458752, "question": "What is this photo taken looking through?",
     "answers": ["net", ...], "question_type": "what is this", "answer_type": "other"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from .cache import BATCH, Notes, cached_table, content_of, size_of, table_of
from .files import check_count, check_new, find_one, optional, read_json_records, require, require_texts, skipping
from .layouts import recognise

EXPECTED_QUESTIONS = {"train2014": 443_757, "val2014": 214_354, "test2015": 447_793, "test-dev2015": 107_394}

FEATURES = Features(
    {
        "question_id": Value("int64"),
        "image_id": Value("int64"),
        "question": Value("string"),
        "answers": List(Value("string")),
        "question_type": Value("string"),
        "answer_type": Value("string"),
    }
)


_ASKED = ("question_id", "image_id", "question")  # columns of the questions file


@dataclass(frozen=True)
class VqaFiles:
    """Paths of the files of a split. `annotations` is None for splits without answers."""

    questions: Path
    annotations: Path | None


def find_vqa_files(data_dir: str | Path, split: str) -> VqaFiles:
    """Find the official files of a split below `data_dir` by their names, such as `*OpenEnded*<split>*questions.json`.

    Raises:
        FileNotFoundError: There is no questions file.
        ValueError: Several files could be meant.
    """
    questions = find_one(
        data_dir,
        (
            f"**/*OpenEnded*_{split}_questions.json",
            f"**/*OpenEnded*_{split}[0-9]*_questions.json",
            f"**/*{split}*questions.json",
        ),
        f"questions file of split {split!r}",
    )
    try:
        annotations = find_one(
            data_dir,
            (f"**/*_{split}_annotations.json", f"**/*_{split}[0-9]*_annotations.json", f"**/*{split}*annotations.json"),
            f"annotations file of split {split!r}",
        )
    except FileNotFoundError:
        annotations = None
    return VqaFiles(questions, annotations)


def load_vqa(
    questions_file: str | Path, annotations_file: str | Path | None = None, skipped: list[str] | None = None
) -> Dataset:
    """Read one split, in the order of the questions file.

    Args:
        questions_file: The questions.
        annotations_file: Their answers, if there are any.
        skipped: If given, bad records are left out and their errors are added to this list instead of being raised. So are the
            annotation of a question that was left out, and the question of an annotation that was left out.

    Returns:
        A `datasets.Dataset` with the columns of `FEATURES`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The JSON is malformed, a key is missing, a question is empty, a question id occurs twice, a question has no
            annotation or an annotation no question, or their image ids differ; the message names the file and the record.
    """
    if (layout := recognise(questions_file)) is not None and layout.rows is not None:
        raise ValueError(f"{questions_file}: {layout.advice(Path(questions_file))}")
    files = [path for path in (questions_file, annotations_file) if path is not None]
    contents = [content_of(path) for path in files]
    read = partial(_read, questions_file, annotations_file, skipped is not None)
    rows, notes = cached_table("vqa", FEATURES, read, size_of(*files), contents, skipped is not None)
    check_count(questions_file, notes["questions"], "questions", notes["split"], EXPECTED_QUESTIONS)
    if skipped is not None:
        skipped += notes["skipped"]
    return rows


def _read(path: str | Path, annotations_file: str | Path | None, skip: bool, notes: Notes) -> Iterator[pa.Table]:
    """The rows, in batches."""
    skipped: list[str] | None = [] if skip else None
    annotations = None if annotations_file is None else _Annotations(annotations_file, skipped)
    asked: set[int] = set()
    rows = _questions(path, annotations, asked, skipped, notes)
    while batch := list(islice(rows, BATCH)):
        table = pa.Table.from_pylist(batch, FEATURES.arrow_schema)
        yield table if annotations is None else annotations.answer(table)
    if annotations is not None:
        annotations.check_all_asked(asked, path, skipped)
    notes["skipped"] = skipped or []


def _questions(
    path: str | Path, annotations: _Annotations | None, asked: set[int], skipped: list[str] | None, notes: Notes
) -> Iterator[dict[str, Any]]:
    """The columns of the questions file; adds the ids to `asked`."""
    others: dict[str, Any] = {}
    number = -1
    for number, record in enumerate(read_json_records(path, "questions", others, bare="question_id")):
        where = f"{path}: question {number}"
        with skipping(skipped):
            row = _row(record, where)
            if annotations is not None:
                annotations.check_asked(row, where)
            check_new(row["question_id"], asked, "question id", where)
            yield row
    notes["questions"], notes["split"] = number + 1, str(others.get("data_subtype", ""))


def _row(record: Any, where: str) -> dict[str, Any]:
    question_id, question = require(record, "question_id", where, int), require(record, "question", where, str)
    if not re.search(r"[^\s,?]", question):  # commas and question marks are left out
        raise ValueError(f"{where}: question id {question_id} is empty ({question!r:.80}); expected at least one word")
    return {
        "question_id": question_id,
        "image_id": require(record, "image_id", where, int),
        "question": question,
    }


class _Annotations:
    """The annotations file, as a table whose rows are found by the ids of the questions.

    Args:
        path: The file.
        skipped: If given, bad records are left out and their errors are added to this list.
    """

    _FEATURES = Features(
        {
            "question_id": Value("int64"),
            "image_id": Value("int64"),
            **{name: FEATURES[name] for name in ("answers", "question_type", "answer_type")},
            "number": Value("int64"),
        }
    )

    def __init__(self, path: str | Path, skipped: list[str] | None):
        self.path = path
        # Rows are found quickly in one chunk only.
        self.table = table_of(self._read(path, skipped), self._FEATURES).combine_chunks()
        self.image_ids = self.table["image_id"].to_pylist()
        self.place = {key: place for place, key in enumerate(self.table["question_id"].to_pylist())}

    @staticmethod
    def _read(path: str | Path, skipped: list[str] | None) -> Iterator[dict[str, Any]]:
        seen: set[int] = set()
        for number, record in enumerate(read_json_records(path, "annotations", bare="question_id")):
            where = f"{path}: annotation {number}"
            with skipping(skipped):
                question_id, annotation = require(record, "question_id", where, int), _annotation(record, where)
                check_new(question_id, seen, "question id", where)
                yield {"question_id": question_id, **annotation, "number": number}

    def check_asked(self, row: dict[str, Any], where: str) -> None:
        """
        Raises:
            ValueError: The question has no annotation, or it is about another image.
        """
        place = self.place.get(row["question_id"])
        if place is None:
            raise ValueError(f"{where}: question id {row['question_id']} has no annotation in {self.path}")
        if self.image_ids[place] not in (None, row["image_id"]):
            raise ValueError(f"{where}: image {row['image_id']}, but the annotation says image {self.image_ids[place]}")

    def check_all_asked(self, asked: set[int], questions_file: str | Path, skipped: list[str] | None) -> None:
        """
        Raises:
            ValueError: An annotation has no question.
        """
        for question_id, place in self.place.items():
            if question_id in asked:
                continue
            with skipping(skipped):
                where = f"{self.path}: annotation {self.table['number'][place].as_py()}"
                raise ValueError(f"{where}: question id {question_id} has no question in {questions_file}")

    def answer(self, questions: pa.Table) -> pa.Table:
        """The questions with the columns of their annotations."""
        found = self.table.take([self.place[key] for key in questions["question_id"].to_pylist()])
        return pa.table(
            [(questions if name in _ASKED else found)[name] for name in FEATURES], schema=FEATURES.arrow_schema
        )


def _annotation(record: Any, where: str) -> dict[str, Any]:
    answers = require(record, "answers", where)
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"{where}: 'answers' is empty; expected those of ten annotators")
    return {
        "answers": require_texts(answers, "answer", where),
        "question_type": optional(record, "question_type", where, str),
        "answer_type": optional(record, "answer_type", where, str),
        "image_id": optional(record, "image_id", where, int),
    }
