"""VQA v2: official answer normalisation and accuracy, and training targets.

The results equal those of the official evaluation script (GT-Vision-Lab/VQA, `vqaEval.py`) on every case in
`tests/fixtures/golden`. All are pure functions: lists in, dicts out.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from numbers import Integral
from typing import Any

import numpy as np

TABLES_FILE = files("modeling_visualbert") / "assets" / "vqa_normalisation_tables.json"
_TABLES = json.loads(TABLES_FILE.read_text("utf-8"))
_PUNCTUATION: tuple[str, ...] = tuple(_TABLES["punctuation"])
_ARTICLES = frozenset(_TABLES["articles"])
_NUMBER_WORDS: dict[str, str] = _TABLES["number_words"]
_CONTRACTIONS: dict[str, str] = _TABLES["contractions"]
MIN_ANNOTATORS = 3  # the official accuracy asks that so many agree
_DELETABLE_PERIOD = re.compile(
    r"(?!<=\d)(\.)(?!\d)"
)  # the official script misspells the look-behind; kept for equality
_DELETABLE_PERIODS = int(_TABLES["period_removal_limit"])  # the official script passes a flag in place of this count
_THOUSANDS_COMMA = re.compile(r"(\d)(\,)(\d)")


def _strip_whitespace(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _process_punctuation(answer: str) -> str:
    processed = answer
    has_thousands_comma = _THOUSANDS_COMMA.search(answer) is not None
    for mark in _PUNCTUATION:
        # The conditions look at the original answer, the replacements accumulate.
        if f"{mark} " in answer or f" {mark}" in answer or has_thousands_comma:
            processed = processed.replace(mark, "")
        else:
            processed = processed.replace(mark, " ")
    return _DELETABLE_PERIOD.sub("", processed, count=_DELETABLE_PERIODS)


def _process_words(answer: str) -> str:
    words = (_NUMBER_WORDS.get(word, word) for word in answer.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@lru_cache(maxsize=1 << 17)  # the annotators of a data set give few different answers
def _normalise_stripped(answer: str) -> str:
    return _process_words(_process_punctuation(answer))


def normalise_answer(answer: str) -> str:
    """The official normalisation: whitespace, punctuation, periods, then number words, articles and contractions.

    >>> normalise_answer("The two dogs, dont!")
    "2 dogs don't"
    """
    return _normalise_stripped(_strip_whitespace(answer))


def question_accuracy(prediction: str, annotator_answers: Sequence[str | Mapping]) -> float:
    """Official accuracy in 0..1 of one answer: the mean over annotators of min(1, agreements among the others / 3).

    Nothing is normalised if all annotators gave the same string.

    Args:
        prediction: The answer to score.
        annotator_answers: The annotators' answers: strings, or records with an `answer`. "The others" are the records
            that differ from an annotator's own; strings are distinguished by their position. (Equal records without
            `answer_id` are therefore left out together, as in the official script.)

    Raises:
        ValueError: There are no annotator answers.
    """
    if not annotator_answers:
        raise ValueError("no annotator answers; expected ten")
    prediction = _strip_whitespace(prediction)
    records: list[dict[str, Any]] = [
        dict(a) if isinstance(a, Mapping) else {"answer": a, "answer_id": i} for i, a in enumerate(annotator_answers)
    ]
    for record in records:
        record["answer"] = _strip_whitespace(record["answer"])
    if len({record["answer"] for record in records}) > 1:
        prediction = _normalise_stripped(prediction)
        for record in records:
            record["answer"] = _normalise_stripped(record["answer"])
    agreeing = [record for record in records if record["answer"] == prediction]
    scores = (min(1.0, sum(other != record for other in agreeing) / 3) for record in records)
    return sum(scores) / len(records)


def answer_accuracy(
    prediction: str, annotator_answers: Sequence[str], answer_scores: Sequence[float] | None = None
) -> float:
    """Accuracy in 0..1 of one answer to a question of any data set.

    Where at least three annotators answered it is the official accuracy of VQA v2, which asks for three that agree. With fewer
    it is 1 for the answer of any of them, and with scores that of the answer. Answers are compared as normalised.
    """
    if answer_scores is None and len(annotator_answers) >= MIN_ANNOTATORS:
        return question_accuracy(prediction, annotator_answers)
    given = zip(annotator_answers, answer_scores or [1.0] * len(annotator_answers), strict=True)
    found = normalise_answer(prediction)
    return max((score for answer, score in given if normalise_answer(answer) == found), default=0.0)


def vqa_accuracy(predictions: Mapping[int, str], annotations: Sequence[Mapping]) -> dict:
    """Official VQA v2 accuracy in percent.

    Args:
        predictions: Answer by question id.
        annotations: Records of the official annotation file: `question_id`, `answers` (each with an `answer`) and, where
            known, `question_type` and `answer_type`.

    Returns:
        `overall`, `per_question_type`, `per_answer_type` (only types that occur), `per_question` and `num_examples`.

    Raises:
        ValueError: A question has no prediction, or a prediction has no question, or a question occurs twice, or an id is not
            an integer: JSON makes strings of the keys of an object, and `"1"` is not the question 1.
    """
    for source, question_ids in (
        ("predictions", predictions),
        ("annotations", (r["question_id"] for r in annotations)),
    ):
        for question_id in question_ids:
            if not isinstance(question_id, Integral):
                raise ValueError(f"question id {question_id!r:.80} in the {source}; expected an integer")
    known = Counter(record["question_id"] for record in annotations)
    repeated = [question_id for question_id, count in known.items() if count > 1]
    missing, surplus = sorted(known.keys() - predictions.keys()), sorted(predictions.keys() - known.keys())
    for problem, ids in (("repeated in the annotations", repeated), ("not answered", missing), ("unknown", surplus)):
        if ids:
            raise ValueError(
                f"{len(ids)} question ids {problem}, the first is {ids[0]}; expected one answer per question"
            )
    if not annotations:
        raise ValueError("no annotations to score against")
    per_question: dict[int, float] = {}
    by_type: dict[str, dict[str, list[float]]] = {"question_type": defaultdict(list), "answer_type": defaultdict(list)}
    for record in annotations:
        accuracy = 100.0 * question_accuracy(predictions[record["question_id"]], record["answers"])
        per_question[record["question_id"]] = accuracy
        for field, groups in by_type.items():
            if field in record:
                groups[record[field]].append(accuracy)
    return {
        "overall": _mean(per_question.values()),
        "per_question_type": {name: _mean(values) for name, values in by_type["question_type"].items()},
        "per_answer_type": {name: _mean(values) for name, values in by_type["answer_type"].items()},
        "per_question": per_question,
        "num_examples": len(per_question),
    }


def answer_targets(
    annotator_answers: Sequence[str],
    answer_scores: Sequence[float] | None,
    answer_to_index: Mapping[str, int],
    rule: str = "visualbert",
) -> dict[int, float]:
    """Training target of a question of any data set as {answer index: score}.

    Where at least three annotators answered it is that of [`soft_targets`]. With fewer each answer scores 1, and with scores
    what they say. An answer is looked up as it is written, then as normalised.
    """
    if answer_scores is None and len(annotator_answers) >= MIN_ANNOTATORS:
        return soft_targets(annotator_answers, answer_to_index, rule=rule)
    targets: dict[int, float] = {}
    for answer, score in zip(annotator_answers, answer_scores or [1.0] * len(annotator_answers), strict=True):
        index = answer_to_index.get(answer, answer_to_index.get(normalise_answer(answer)))
        if index is not None:
            targets[index] = max(score, targets.get(index, 0.0))
    return targets


def soft_targets(
    annotator_answers: Sequence[str],
    answer_to_index: Mapping[str, int],
    unknown: str | None = "<unk>",
    rule: str = "visualbert",
) -> dict[int, float]:
    """Training target of a question as {answer index: score}, without answers outside the vocabulary and without `unknown`.

    Args:
        annotator_answers: The annotators' answers, as written in the file.
        answer_to_index: The answer vocabulary.
        unknown: The vocabulary's entry for unknown answers, if it has one.
        rule: `"visualbert"`, as in the authors' code: an answer given by c annotators scores min(1, 0.3 c).
            `"uniform"`, as in the text of the paper: the same probability for each distinct answer.
            `"mmf"`: answers are cleaned as in MMF, repeated up to ten, and scored like the official accuracy.

    Raises:
        ValueError: The rule is unknown.
    """
    if rule == "mmf":
        annotator_answers = [_mmf_answer(answer) for answer in annotator_answers]
    known = [a if a in answer_to_index and a != unknown else None for a in annotator_answers]
    if rule == "mmf" and known:
        known = [known[i % len(known)] for i in range(max(10, len(known)))]
    counts = Counter(answer for answer in known if answer is not None)
    if rule == "visualbert":
        return {answer_to_index[answer]: min(1.0, 0.3 * count) for answer, count in counts.items()}
    if rule == "uniform":
        return {answer_to_index[answer]: 1.0 / len(counts) for answer in counts}
    if rule == "mmf":
        return {answer_to_index[a]: _leave_one_out_mean(count, len(known)) for a, count in counts.items()}
    raise ValueError(f"unknown rule {rule!r}; expected 'visualbert', 'uniform' or 'mmf'")


def best_known_answers(logits: Sequence[Sequence[float]], unknown_index: int | None = 0) -> list[int]:
    """Index of the best answer of each row, never `unknown_index` (the authors' validation rule)."""
    scores = np.array(logits, dtype=np.float64)
    if unknown_index is not None:
        scores[:, unknown_index] = -np.inf
    return scores.argmax(axis=1).tolist()


def _mmf_answer(answer: str) -> str:
    return answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def _leave_one_out_mean(agreeing: int, total: int) -> float:
    return ((total - agreeing) * min(1.0, agreeing / 3) + agreeing * min(1.0, (agreeing - 1) / 3)) / total


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


__all__ = [
    "answer_accuracy",
    "answer_targets",
    "best_known_answers",
    "normalise_answer",
    "question_accuracy",
    "soft_targets",
    "vqa_accuracy",
]
