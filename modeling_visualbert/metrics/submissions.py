"""Submission files for the official evaluations of VQA v2, NLVR2 and VCR. All input is checked before anything is written.

Each file contains exactly what was passed in; whether it covers a whole split is checked by the server (or the metric).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import read_text
from .vcr import NUM_CHOICES

_LABELS = ("True", "False")
_SUM_TOLERANCE = 1e-4
_GROUPS = ("answer", *(f"rationale_conditioned_on_a{given}" for given in range(NUM_CHOICES)))
VCR_HEADER = ("annot_id", *(f"{group}_{choice}" for group in _GROUPS for choice in range(NUM_CHOICES)))


def write_vqa_results(answers: Mapping[int, str], path: str | Path) -> None:
    """Write the results file of VQA v2: `[{"question_id": 1, "answer": "yes"}, ...]`.

    Raises:
        ValueError: There are no answers, an id is not an integer or an answer is not a string; the message names the question.
    """
    records = []
    for question_id, answer in _some(answers, "answers").items():
        if not isinstance(question_id, Integral):
            raise ValueError(f"question id {question_id!r:.80}; expected an integer")
        if not isinstance(answer, str):
            raise ValueError(f"question {question_id}: answer {answer!r:.40}; expected a string")
        records.append({"question_id": int(question_id), "answer": answer})
    Path(path).write_text(json.dumps(records), encoding="utf-8")


def write_nlvr2_predictions(predictions: Mapping[str, str], path: str | Path) -> None:
    """Write the predictions file of NLVR2: lines such as `test1-0-1-0,True`, without a header.

    Raises:
        ValueError: There are no predictions, an identifier is not `split-set-pair-sentence`, or a label is not "True" or
            "False"; the message names the identifier.
    """
    lines = []
    for identifier, label in _some(predictions, "predictions").items():
        if not isinstance(identifier, str) or not _is_nlvr2_identifier(identifier):
            raise ValueError(
                f"identifier {identifier!r:.80}; expected split-set-pair-sentence without commas or blanks"
            )
        if not isinstance(label, str) or label not in _LABELS:
            raise ValueError(f"{identifier}: label {label!r:.40}; expected the string 'True' or 'False'")
        lines.append(f"{identifier},{label}\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def write_vcr_leaderboard(
    annot_ids: Sequence[str],
    answer_probabilities: Sequence[Sequence[float]] | np.ndarray,
    rationale_probabilities: Sequence[Sequence[Sequence[float]]] | np.ndarray,
    path: str | Path,
) -> None:
    """Write the CSV of the VCR leaderboard, like `eval_for_leaderboard.py` of R2C.

    Args:
        annot_ids: The `annot_id` of each question.
        answer_probabilities: Of shape (questions, 4).
        rationale_probabilities: Of shape (questions, 4, 4): `[question, given answer, rationale]`.
        path: Where to write.

    Raises:
        ValueError: There are no questions, shapes do not fit, an id is repeated or not a string, or four numbers are not
            probabilities (finite, in 0..1, with a sum of 1 within 1e-4); the message names row, id and columns.
    """
    annot_ids = list(_some(annot_ids, "questions"))
    answers = _of_shape(answer_probabilities, (len(annot_ids), NUM_CHOICES), "answer_probabilities")
    rationales = _of_shape(
        rationale_probabilities, (len(annot_ids), NUM_CHOICES, NUM_CHOICES), "rationale_probabilities"
    )
    _check_ids((f"row {row}", annot_id) for row, annot_id in enumerate(annot_ids))
    groups = np.concatenate((answers[:, None], rationales), axis=1)
    _check_probabilities(groups, annot_ids)
    rows = groups.reshape(len(groups), -1).tolist()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(VCR_HEADER)
    writer.writerows([annot_id, *row] for annot_id, row in zip(annot_ids, rows, strict=True))
    Path(path).write_text(text.getvalue(), encoding="utf-8", newline="")


def read_vcr_leaderboard(path: str | Path) -> dict[str, list[float]]:
    """The 20 numbers of each `annot_id`, in the order of the file: the rows that `leaderboard_accuracy` scores.

    The numbers may be logits or probabilities.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The header is wrong, there are no rows, a row does not have 21 columns, an id is repeated or a value is not
            a finite number; the message names the file, line and column.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    header = tuple(next(reader, ()))
    if header != VCR_HEADER:
        raise ValueError(f"{path}: header {','.join(header)!r:.60}; expected {','.join(VCR_HEADER)}")
    lines = [(f"{path}: line {reader.line_num}", line) for line in reader]
    while lines and not "".join(lines[-1][1]).strip():  # empty lines at the end
        lines.pop()
    _some(lines, f"questions in {path}")
    for where, line in lines:
        if len(line) != len(VCR_HEADER):
            raise ValueError(f"{where}: {len(line)} columns; expected {len(VCR_HEADER)}")
    _check_ids((where, line[0]) for where, line in lines)
    return {line[0]: list(_numbers(line, where)) for where, line in lines}


def _some(items: Any, what: str) -> Any:
    if not len(items):
        raise ValueError(f"no {what}; expected at least one")
    return items


def _is_nlvr2_identifier(identifier: str) -> bool:
    """The official script splits lines at commas and strips blanks; the metric needs four parts."""
    is_one_word = "," not in identifier and identifier.split() == [identifier]
    return is_one_word and len(identifier.split("-")) == 4


def _of_shape(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are not numbers of shape {shape}: {error}") from error
    if array.shape != shape:
        raise ValueError(f"{name} of shape {array.shape}; expected {shape}")
    return array


def _check_ids(ids: Iterable[tuple[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for where, annot_id in ids:
        if not isinstance(annot_id, str) or not annot_id:
            raise ValueError(f"{where}: annot_id {annot_id!r:.40}; expected a string")
        if annot_id in seen:
            raise ValueError(f"{where}: annot_id {annot_id!r:.80} was already in {seen[annot_id]}; expected it once")
        seen[annot_id] = where


def _check_probabilities(groups: np.ndarray, annot_ids: Sequence[str]) -> None:
    """Refuse (questions, groups, choices) in which four numbers are not a distribution; NaN fails both tests."""
    in_range = ((groups >= 0) & (groups <= 1)).all(axis=2)
    wrong = ~(in_range & (np.abs(groups.sum(axis=2) - 1) <= _SUM_TOLERANCE))
    if wrong.any():
        row, group = np.argwhere(wrong)[0]
        raise ValueError(
            f"row {row} ({annot_ids[row]}): {_GROUPS[group]} is {groups[row, group].tolist()}; expected four probabilities "
            "in 0..1 with a sum of 1"
        )


def _numbers(line: Sequence[str], where: str) -> Iterator[float]:
    for name, value in zip(VCR_HEADER[1:], line[1:], strict=True):
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not np.isfinite(number):
            raise ValueError(f"{where}: {name} is {value!r:.40}; expected a finite number")
        yield number


__all__ = [
    "VCR_HEADER",
    "read_vcr_leaderboard",
    "write_nlvr2_predictions",
    "write_vcr_leaderboard",
    "write_vqa_results",
]
