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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from .files import check_count, check_new, find_one, optional, read_json, require, skipping
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
    content = read_json(questions_file)
    questions = _records(content, "questions", questions_file)
    split = str(content.get("data_subtype")) if isinstance(content, dict) else ""
    check_count(questions_file, len(questions), "questions", split, EXPECTED_QUESTIONS)
    annotations = None if annotations_file is None else _annotations_by_id(annotations_file, skipped)
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    for number, record in enumerate(questions):
        where = f"{questions_file}: question {number}"
        with skipping(skipped):
            row = _row(record, where) | _answers_to(record, annotations, where, annotations_file)
            check_new(row["question_id"], seen, "question id", where)
            rows.append(row)
    for question_id, annotation in (annotations or {}).items():
        with skipping(skipped):
            if question_id not in seen:
                raise ValueError(f"{annotation.where}: question id {question_id} has no question in {questions_file}")
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def _records(content: Any, key: str, path: str | Path) -> list[Any]:
    """The records of a file; those of VQA-CP are nothing but the list."""
    is_list = isinstance(content, list) and bool(content) and isinstance(content[0], dict)
    return content if is_list and "question_id" in content[0] else require(content, key, str(path), list)


@dataclass(frozen=True)
class _Annotation:
    """The annotation of a question, and `where` it was found, for errors."""

    where: str
    image_id: int | None
    fields: dict[str, Any]


def _annotations_by_id(path: str | Path, skipped: list[str] | None) -> dict[int, _Annotation]:
    by_id: dict[int, _Annotation] = {}
    seen: set[int] = set()
    for number, record in enumerate(_records(read_json(path), "annotations", path)):
        where = f"{path}: annotation {number}"
        with skipping(skipped):
            question_id, annotation = require(record, "question_id", where, int), _annotation(record, where)
            check_new(question_id, seen, "question id", where)
            by_id[question_id] = annotation
    return by_id


def _annotation(record: Any, where: str) -> _Annotation:
    answers = require(record, "answers", where)
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"{where}: 'answers' is empty; expected those of ten annotators")
    fields = {
        "answers": [require(answer, "answer", where, str) for answer in answers],
        "question_type": optional(record, "question_type", where, str),
        "answer_type": optional(record, "answer_type", where, str),
    }
    return _Annotation(where, optional(record, "image_id", where, int), fields)


def _row(record: Any, where: str) -> dict[str, Any]:
    question_id, question = require(record, "question_id", where, int), require(record, "question", where, str)
    if not re.search(r"[^\s,?]", question):  # commas and question marks are left out
        raise ValueError(f"{where}: question id {question_id} is empty ({question!r}); expected at least one word")
    return {
        "question_id": question_id,
        "image_id": require(record, "image_id", where, int),
        "question": question,
    }


def _answers_to(
    question: dict[str, Any], annotations: dict[int, _Annotation] | None, where: str, path: str | Path | None
) -> dict[str, Any]:
    """The columns that come from the annotations file; None if there is no such file."""
    if annotations is None:
        return {"answers": None, "question_type": None, "answer_type": None}
    annotation = annotations.get(question["question_id"])
    if annotation is None:
        raise ValueError(f"{where}: question id {question['question_id']} has no annotation in {path}")
    if annotation.image_id not in (None, question["image_id"]):
        raise ValueError(f"{where}: image {question['image_id']}, but the annotation says image {annotation.image_id}")
    return annotation.fields
