"""Flickr30k Entities (Plummer et al. 2015): recall of phrases and its upper bound, with the same results as BAN's evaluation.

A proposal matches a phrase if its IoU with *any one* of the phrase's gold boxes is at least 0.5. Phrases without a matching
proposal count as misses; averages are over the phrases of the whole split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..hub_code.regions_visualbert import box_iou

IOU_THRESHOLD = 0.5
RECALLS = (1, 5, 10)

Boxes = Sequence[Sequence[float]]


def matching_proposals(gold: Boxes, proposals: Boxes, threshold: float = IOU_THRESHOLD) -> list[int]:
    """Indices of the proposals that match any gold box, in ascending order. Boxes are x1, y1, x2, y2 in the same unit.

    Raises:
        ValueError: A box does not have four numbers.
    """
    if not len(gold) or not len(proposals):
        return []
    overlaps = box_iou(_boxes(proposals, "proposals"), _boxes(gold, "gold"))
    return (overlaps >= threshold).any(dim=1).nonzero()[:, 0].tolist()


def grounding_recall(sentences: Sequence[Mapping]) -> dict[str, float | int]:
    """Recall@1, 5 and 10 and their upper bound, in 0..1.

    Args:
        sentences: Mappings with `proposals` (boxes of the image) and `entities`: for each phrase its `gold` boxes and
            `scores`, one for each proposal. With fewer than k proposals, recall@k uses all of them.

    Returns:
        `recall_at_1`, `recall_at_5`, `recall_at_10`, `upper_bound` and `num_examples` (phrases).

    Raises:
        ValueError: There are no phrases, or scores and proposals differ in number; the message names sentence and phrase.
    """
    hits, matchable, phrases = dict.fromkeys(RECALLS, 0), 0, 0
    for number, sentence in enumerate(sentences):
        proposals = sentence["proposals"]
        for place, entity in enumerate(sentence["entities"]):
            if len(entity["scores"]) != len(proposals):
                raise ValueError(
                    f"sentence {number}, phrase {place}: {len(entity['scores'])} scores for {len(proposals)} proposals; "
                    "expected one for each"
                )
            matched = set(matching_proposals(entity["gold"], proposals))
            ranking = sorted(range(len(proposals)), key=lambda i: -entity["scores"][i])
            phrases += 1
            matchable += bool(matched)
            for k in RECALLS:
                hits[k] += not matched.isdisjoint(ranking[:k])
    if not phrases:
        raise ValueError("no phrases to score")
    recalls = {f"recall_at_{k}": hits[k] / phrases for k in RECALLS}
    return {**recalls, "upper_bound": matchable / phrases, "num_examples": phrases}


def _boxes(boxes: Boxes, name: str) -> torch.Tensor:
    tensor = torch.as_tensor(boxes, dtype=torch.float64)
    if tensor.dim() != 2 or tensor.shape[1] != 4:
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}; expected (boxes, 4)")
    return tensor


__all__ = ["IOU_THRESHOLD", "grounding_recall", "matching_proposals"]
