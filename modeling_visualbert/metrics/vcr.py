"""VCR (Zellers et al. 2019): Q->A, QA->R and Q->AR, equal to the script of the R2C release."""

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
    """Accuracies in 0..1. Scores may be logits or probabilities; of equal scores the first wins.

    Args:
        answer_scores: Four scores for each question.
        rationale_scores: Four scores for each question, given the *correct* answer.
        answer_labels, rationale_labels: Index of the right choice, 0 to 3.

    Returns:
        `answer` (Q->A), `rationale` (QA->R), `joint` (Q->AR: both right for the same question) and `num_examples`.

    Raises:
        ValueError: There are no questions, lengths differ, or there are not four scores.
    """
    answers, rationales = _choices(answer_scores, "answer_scores"), _choices(rationale_scores, "rationale_scores")
    lengths = {len(answers), len(rationales), len(answer_labels), len(rationale_labels)}
    if len(lengths) != 1:
        raise ValueError(
            f"{len(answers)} and {len(rationales)} rows of scores for {len(answer_labels)} and {len(rationale_labels)} "
            "labels; expected as many of each"
        )
    answer_right, rationale_right = answers == np.asarray(answer_labels), rationales == np.asarray(rationale_labels)
    return {
        "answer": float(answer_right.mean()),
        "rationale": float(rationale_right.mean()),
        "joint": float((answer_right & rationale_right).mean()),
        "num_examples": len(answers),
    }


def leaderboard_accuracy(
    rows: Sequence[Sequence[float]], answer_labels: Sequence[int], rationale_labels: Sequence[int]
) -> dict[str, float | int]:
    """The same from rows of the leaderboard file: 4 answer scores, then 4 rationale scores for each of the 4 answers.

    The evaluation takes the rationales of the correct answer, not of the predicted one.

    Raises:
        ValueError: A row has not 20 numbers, or lengths differ.
    """
    scores = np.asarray(rows, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != NUM_CHOICES * (1 + NUM_CHOICES):
        raise ValueError(f"rows of shape {scores.shape}; expected (questions, 20)")
    if len(scores) != len(answer_labels):
        raise ValueError(f"{len(scores)} rows for {len(answer_labels)} labels; expected as many of each")
    rationales = scores[:, NUM_CHOICES:].reshape(-1, NUM_CHOICES, NUM_CHOICES)
    given_correct = rationales[np.arange(len(scores)), np.asarray(answer_labels)]
    return vcr_accuracy(scores[:, :NUM_CHOICES].tolist(), given_correct.tolist(), answer_labels, rationale_labels)


def _choices(scores: Sequence[Sequence[float]], name: str) -> np.ndarray:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != NUM_CHOICES or not len(array):
        raise ValueError(f"{name} of shape {array.shape}; expected (questions, {NUM_CHOICES})")
    return array.argmax(axis=1)


__all__ = ["leaderboard_accuracy", "vcr_accuracy"]
