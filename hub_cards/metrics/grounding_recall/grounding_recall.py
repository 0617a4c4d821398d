"""Flickr30k Entities recall for `evaluate`: a thin wrapper of `modeling_visualbert.metrics.grounding`."""

import datasets
import evaluate

from modeling_visualbert.data.files import require
from modeling_visualbert.metrics.grounding import grounding_recall

_DESCRIPTION = """
Recall@1, 5 and 10 of phrases in Flickr30k Entities and its upper bound. A proposal matches a phrase if its IoU with any
one of the phrase's gold boxes is at least 0.5; phrases without a matching proposal count as misses.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: One mapping per sentence: `proposals`, the boxes of its image, and `scores`, which has one number per
        proposal for each phrase.
    references: One mapping per sentence: `gold`, the boxes of each phrase.
        Boxes are x1, y1, x2, y2, all in the same unit.

Returns:
    `recall_at_1`, `recall_at_5`, `recall_at_10` and `upper_bound` in 0..1 over the phrases of all sentences, and
    `num_examples`, the number of phrases.
"""
_CITATION = """
@inproceedings{plummer2015flickr30k,
  title     = {Flickr30k Entities: Collecting Region-to-Phrase Correspondences for Richer Image-to-Sentence Models},
  author    = {Plummer, Bryan A. and Wang, Liwei and Cervantes, Chris M. and Caicedo, Juan C. and Hockenmaier, Julia and
               Lazebnik, Svetlana},
  booktitle = {ICCV},
  year      = {2015}
}
"""
_NUMBERS = datasets.List(datasets.Value("float64"))


class GroundingRecall(evaluate.Metric):
    """Recall of phrases in Flickr30k Entities."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {"proposals": datasets.List(_NUMBERS), "scores": datasets.List(_NUMBERS)},
                    "references": {"gold": datasets.List(datasets.List(_NUMBERS))},
                }
            ),
            reference_urls=["https://github.com/BryanPlummer/flickr30k_entities"],
        )

    def _compute(self, predictions, references):
        rows = enumerate(zip(predictions, references, strict=True))
        return grounding_recall([_sentence(*pair, f"row {row}") for row, pair in rows])


def _sentence(prediction, reference, where):
    """A row in the form of the pure function. `evaluate` sets keys that are missing after the first row to None."""
    proposals, scores = (require(prediction, key, f"predictions, {where}", list) for key in ("proposals", "scores"))
    gold = require(reference, "gold", f"references, {where}", list)
    if len(scores) != len(gold):
        raise ValueError(
            f"{where}: scores for {len(scores)} phrases, gold boxes for {len(gold)}; expected the same number"
        )
    for boxes in (proposals, *gold):
        if any(len(box) != 4 for box in boxes):
            raise ValueError(f"{where}: a box does not have four numbers; expected x1, y1, x2, y2")
    return {
        "proposals": proposals,
        "entities": [{"gold": boxes, "scores": row} for boxes, row in zip(gold, scores, strict=True)],
    }
