"""VQA v2 (Goyal et al. 2017, https://visualqa.org/download.html): official questions and annotations JSON.

One question and its annotation in the files, shortened::

    {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000}
    {"question_type": "what is this", "multiple_choice_answer": "net", "image_id": 458752, "answer_type": "other",
     "question_id": 458752000, "answers": [{"answer": "net", "answer_confidence": "maybe", "answer_id": 1}, ...]}

become one row of the dataset (`annotation` fields are None for files without annotations, such as test)::

    {"question_id": 458752000, "image_id": 458752, "question": "What is this photo taken looking through?",
     "answers": ["net", ...], "question_type": "what is this", "answer_type": "other"}
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, List, Value

from .files import find_one, read_json, require

logger = logging.getLogger(__name__)

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
    """Where a split lies. `annotations` is None for splits without answers."""

    questions: Path
    annotations: Path | None


def find_vqa_files(data_dir: str | Path, split: str) -> VqaFiles:
    """Find the official files of a split below `data_dir`: by name, `*OpenEnded*<split>*questions.json` and the like.

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


def load_vqa(questions_file: str | Path, annotations_file: str | Path | None = None) -> Dataset:
    """Read one split, in the order of the questions file.

    Returns:
        A `datasets.Dataset` with the columns of `FEATURES`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: JSON is malformed, a key is missing, a question id occurs twice, a question has no annotation or an
            annotation no question, or their image ids differ. Names the file and the record.
    """
    content = read_json(questions_file)
    questions = require(content, "questions", str(questions_file), list)
    _check_count(content, len(questions), questions_file)
    annotations = {} if annotations_file is None else _annotations_by_id(annotations_file)
    rows: dict[str, list] = {name: [] for name in FEATURES}
    seen: set[int] = set()
    for number, record in enumerate(questions):
        where = f"{questions_file}: question {number}"
        question_id = require(record, "question_id", where, int)
        if question_id in seen:
            raise ValueError(f"{where}: question id {question_id} occurs twice; expected each once")
        seen.add(question_id)
        annotation = annotations.get(question_id)
        if annotations_file is not None and annotation is None:
            raise ValueError(f"{where}: question id {question_id} has no annotation in {annotations_file}")
        image_id = require(record, "image_id", where, int)
        if annotation is not None and annotation.get("image_id", image_id) != image_id:
            raise ValueError(f"{where}: image {image_id}, but the annotation says image {annotation['image_id']}")
        rows["question_id"].append(question_id)
        rows["image_id"].append(image_id)
        rows["question"].append(require(record, "question", where, str))
        rows["answers"].append(None if annotation is None else [answer["answer"] for answer in annotation["answers"]])
        for key in ("question_type", "answer_type"):
            rows[key].append(None if annotation is None else annotation.get(key))
    surplus = annotations.keys() - seen
    if surplus:
        raise ValueError(f"{annotations_file}: {len(surplus)} annotations without a question, the first {min(surplus)}")
    return Dataset.from_dict(rows, features=FEATURES)


def _annotations_by_id(path: str | Path) -> dict[int, dict]:
    by_id: dict[int, dict] = {}
    for number, record in enumerate(require(read_json(path), "annotations", str(path), list)):
        where = f"{path}: annotation {number}"
        question_id = require(record, "question_id", where, int)
        if question_id in by_id:
            raise ValueError(f"{where}: question id {question_id} occurs twice; expected each once")
        answers = require(record, "answers", where)
        if not isinstance(answers, list) or not answers:
            raise ValueError(f"{where}: 'answers' is empty; expected the ten annotators")
        for answer in answers:
            require(answer, "answer", where, str)
        by_id[question_id] = record
    return by_id


def _check_count(content: dict, count: int, path: str | Path) -> None:
    expected = EXPECTED_QUESTIONS.get(str(content.get("data_subtype")))
    if expected is not None and count != expected:
        logger.warning("%s: %d questions; the full %s has %d", path, count, content["data_subtype"], expected)
