"""VCR (Zellers et al. 2019): Q->A, QA->R and Q->AR, with the same results as the script of the R2C release."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_CHOICES = 4


def vcr_accuracy(
    answer_scores: Sequence[Sequence[float]],
    rationale_scores: Sequence[Sequence[float]],
    answer_labels: Sequence[int],
    rationale_labels: Sequence[int],
) -> dict[str, float | int]:
    """Accuracies in 0..1. Scores may be logits or probabilities; ties go to the first choice.

    Args:
        answer_scores: Four scores for each question.
        rationale_scores: Four scores for each question, given the *correct* answer.
        answer_labels, rationale_labels: Index of the right choice, 0 to 3.

    Returns:
        `answer` (Q->A), `rationale` (QA->R), `joint` (Q->AR: both right for the same question) and `num_examples`.

    Raises:
        ValueError: There are no questions, lengths differ, there are not four scores, or a
            label is not 0 to 3.
    """
    answers, rationales = _choices(answer_scores, "answer_scores"), _choices(rationale_scores, "rationale_scores")
    lengths = {len(answers), len(rationales), len(answer_labels), len(rationale_labels)}
    if len(lengths) != 1:
        raise ValueError(
            f"{len(answers)} and {len(rationales)} rows of scores for {len(answer_labels)} and {len(rationale_labels)} "
            "labels; expected the same number of each"
        )
    answer_right = answers == _labels(answer_labels, "answer_labels")
    rationale_right = rationales == _labels(rationale_labels, "rationale_labels")
    return {
        "answer": float(answer_right.mean()),
        "rationale": float(rationale_right.mean()),
        "joint": float((answer_right & rationale_right).mean()),
        "num_examples": len(answers),
    }


def choice_accuracy(scores: Sequence[Sequence[float]], labels: Sequence[int], num_choices: int = NUM_CHOICES) -> float:
    """Accuracy in 0..1 of one sub-task: Q->A, or QA->R given the correct answer; or of other data with another number of choices.

    Raises:
        ValueError: There are no questions, numbers of scores and labels differ, there are not `num_choices` scores, or a label
            is none of them.
    """
    choices = _choices(scores, "scores", num_choices)
    if len(choices) != len(labels):
        raise ValueError(f"{len(choices)} rows of scores for {len(labels)} labels; expected the same number of each")
    return float((choices == _labels(labels, "labels", num_choices)).mean())


def leaderboard_accuracy(
    rows: Sequence[Sequence[float]], answer_labels: Sequence[int], rationale_labels: Sequence[int]
) -> dict[str, float | int]:
    """Like `vcr_accuracy`, for rows of the leaderboard file: 4 answer scores, then 4 rationale scores for each answer.

    The evaluation uses the rationales of the correct answer, not of the predicted one.

    Raises:
        ValueError: A row does not have 20 numbers, lengths differ, or a label is not 0 to 3.
    """
    scores = np.asarray(rows, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != NUM_CHOICES * (1 + NUM_CHOICES):
        raise ValueError(f"rows of shape {scores.shape}; expected (questions, 20)")
    if len(scores) != len(answer_labels):
        raise ValueError(f"{len(scores)} rows for {len(answer_labels)} labels; expected the same number of each")
    rationales = scores[:, NUM_CHOICES:].reshape(-1, NUM_CHOICES, NUM_CHOICES)
    given_correct = rationales[np.arange(len(scores)), _labels(answer_labels, "answer_labels")]
    return vcr_accuracy(scores[:, :NUM_CHOICES].tolist(), given_correct.tolist(), answer_labels, rationale_labels)


def _choices(scores: Sequence[Sequence[float]], name: str, num_choices: int = NUM_CHOICES) -> np.ndarray:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != num_choices or not len(array):
        raise ValueError(f"{name} of shape {array.shape}; expected (questions, {num_choices})")
    return array.argmax(axis=1)


def _labels(labels: Sequence[int], name: str, num_choices: int = NUM_CHOICES) -> np.ndarray:
    array = np.asarray(labels)
    wrong = [row for row, label in enumerate(array.tolist()) if label not in range(num_choices)]
    if wrong:
        raise ValueError(f"{name}: row {wrong[0]} is {array[wrong[0]]!r}; expected 0 to {num_choices - 1}")
    return array


__all__ = ["choice_accuracy", "leaderboard_accuracy", "vcr_accuracy"]
