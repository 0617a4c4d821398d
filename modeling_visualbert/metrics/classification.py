"""Classification: accuracy, macro F1 and AUROC as scikit-learn computes them, calibration, and the threshold of a decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_BINS = 15  # of the calibration error, as in the paper that made it usual


def classification_scores(
    scores: Sequence[Sequence[float]], predicted: Sequence[int], truth: Sequence[int]
) -> dict[str, Any]:
    """Scores in 0..1.

    Args:
        scores: Probability of each label, for each example.
        predicted: Index of the label that each example was given.
        truth: Index of its right label.

    Returns:
        `accuracy`; `f1`, by the index of each label that was given or is right, and `macro_f1`, their mean; `auroc`, for two
        labels that both are right somewhere, of the scores of the second one; `ece`, see [`calibration_error`]; `num_examples`.

    Raises:
        ValueError: There are no examples, or the numbers of scores, labels and right labels differ.
    """
    from sklearn.metrics import f1_score, roc_auc_score  # half a second that the other tasks do not need

    if not len(scores) == len(predicted) == len(truth) or not len(truth):
        raise ValueError(
            f"{len(scores)} scores and {len(predicted)} labels for {len(truth)} examples; expected as many"
        )
    labels = sorted({*predicted, *truth})
    f1 = f1_score(truth, predicted, labels=labels, average=None, zero_division=0.0)
    probabilities = np.asarray(scores, dtype=np.float64)
    found: dict[str, Any] = {
        "accuracy": float(np.mean(np.asarray(predicted) == np.asarray(truth))),
        "macro_f1": float(f1.mean()),
    }
    if probabilities.shape[1] == 2 and len(set(truth)) == 2:
        found["auroc"] = float(roc_auc_score(truth, probabilities[:, 1]))
    return {
        **found,
        "ece": calibration_error(probabilities, truth),
        "f1": dict(zip(labels, f1.tolist(), strict=True)),
        "num_examples": len(truth),
    }


def calibration_error(scores: np.ndarray, truth: Sequence[int]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599): how far the probability of the most probable label is from
    the share of examples for which it is right, in 15 bins of equal width, weighted by their examples. In 0..1; 0 is best.

    Args:
        scores: Probability of each label, of shape `(examples, labels)`.
        truth: Index of the right label of each example.
    """
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == np.asarray(truth)
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    differences = np.bincount(bins, weights=confidence - right, minlength=_BINS)
    return float(np.abs(differences).sum() / len(truth))


def best_threshold(scores: Sequence[float], truth: Sequence[int], metric: str) -> float | None:
    """The threshold on the probability of the second of two labels that is best for these examples.

    Args:
        scores: Its probability for each example.
        truth: 1 where it is right, else 0.
        metric: `"accuracy"` or `"macro_f1"`.

    Returns:
        Half the way between two of the scores, or 0.5; of several that are as good the one nearest to 0.5. None if all examples
        have the same label.
    """
    if len(set(truth)) < 2:
        return None
    order = np.argsort(scores)
    values, is_second = np.asarray(scores, dtype=np.float64)[order], np.asarray(truth)[order]
    cuts = np.unique(values)
    thresholds = np.concatenate([[0.5], (cuts[1:] + cuts[:-1]) / 2, [cuts[0] / 2, (1 + cuts[-1]) / 2]])
    below = np.searchsorted(values, thresholds)  # examples that are given the first label
    missed = np.concatenate([[0], np.cumsum(is_second)])[below]  # those of them that have the second
    total, positive = len(values), int(is_second.sum())
    hits, rejected = positive - missed, below - missed
    if metric == "accuracy":
        quality = (hits + rejected) / total
    else:
        quality = hits / (positive + total - below) + rejected / (total - positive + below)
    best = np.flatnonzero(np.isclose(quality, quality.max(), rtol=0, atol=1e-12))
    return float(min(thresholds[best], key=lambda threshold: abs(threshold - 0.5)))


__all__ = ["best_threshold", "calibration_error", "classification_scores"]
