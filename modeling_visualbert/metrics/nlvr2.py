"""NLVR2 (Suhr et al. 2019): accuracy and consistency, with the same results as the official `metrics.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Any


def nlvr2_accuracy(
    predictions: Mapping[Any, str], labels: Mapping[Any, str], groups: Mapping[Any, Hashable] | None = None
) -> dict[str, float | int]:
    """Accuracy and consistency in 0..1.

    Args:
        predictions: "True" or "False" by identifier (in any letter case; anything else counts as wrong). Identifiers
            without a label are ignored.
        labels: "True" or "False" by identifier, `split-set-pair-sentence`.
        groups: What the examples with the same sentence have in common, by identifier, where these are others; by default
            [`sentence_of`] them.

    Returns:
        `accuracy`, `consistency` (share of sentences that are right for all their image pairs; their identifiers differ only
        in the third part) and `num_examples`.

    Raises:
        ValueError: There are no labels, an example has no prediction, or an identifier does not have four parts.
    """
    if not labels:
        raise ValueError("no labels to score against")
    missing = sorted(labels.keys() - predictions.keys())
    if missing:
        raise ValueError(
            f"{len(missing)} examples without a prediction, the first is {missing[0]}; expected one for each"
        )
    right = {identifier: predictions[identifier].lower() == label.lower() for identifier, label in labels.items()}
    by_sentence: dict[Hashable, list[bool]] = defaultdict(list)
    for identifier, is_right in right.items():
        by_sentence[sentence_of(identifier) if groups is None else groups[identifier]].append(is_right)
    return {
        "accuracy": sum(right.values()) / len(right),
        "consistency": sum(map(all, by_sentence.values())) / len(by_sentence),
        "num_examples": len(right),
    }


def sentence_of(identifier: str) -> str:
    """What the examples with the same sentence have in common: "dev-850-3-0" -> "dev-850-0", without the number of the pair.

    Raises:
        ValueError: The identifier does not have four parts.
    """
    parts = identifier.split("-")
    if len(parts) != 4:
        raise ValueError(f"identifier {identifier!r:.80}; expected split-set-pair-sentence")
    split, image_set, _, sentence = parts
    return f"{split}-{image_set}-{sentence}"


__all__ = ["nlvr2_accuracy", "sentence_of"]
