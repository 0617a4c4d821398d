"""VCR accuracies for `evaluate`: a thin wrapper of `modeling_visualbert.metrics.vcr`."""

import datasets
import evaluate

from modeling_visualbert.data.files import require
from modeling_visualbert.metrics.vcr import vcr_accuracy

_DESCRIPTION = """
Q->A, QA->R and Q->AR of VCR: the answer, the rationale given the correct answer, and both for the same question.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: One mapping per question: `answer_scores` and `rationale_scores`, four numbers each, the latter given the
        *correct* answer. Logits or probabilities; ties go to the first choice.
    references: One mapping per question: `answer_label` and `rationale_label`, the index of the right choice, 0 to 3.

Returns:
    `answer`, `rationale` and `joint` in 0..1, and `num_examples`.
"""
_CITATION = """
@inproceedings{zellers2019recognition,
  title     = {From Recognition to Cognition: Visual Commonsense Reasoning},
  author    = {Zellers, Rowan and Bisk, Yonatan and Farhadi, Ali and Choi, Yejin},
  booktitle = {CVPR},
  year      = {2019}
}
"""
_CHOICES = range(4)
_SCORES = datasets.List(datasets.Value("float64"))
_LABEL = datasets.Value("int64")


class VcrAccuracy(evaluate.Metric):
    """Q->A, QA->R and Q->AR of VCR."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {"answer_scores": _SCORES, "rationale_scores": _SCORES},
                    "references": {"answer_label": _LABEL, "rationale_label": _LABEL},
                }
            ),
            reference_urls=["https://visualcommonsense.com/"],
        )

    def _compute(self, predictions, references):
        scores = (_scores(predictions, key) for key in ("answer_scores", "rationale_scores"))
        labels = (_labels(references, key) for key in ("answer_label", "rationale_label"))
        return vcr_accuracy(*scores, *labels)


def _scores(predictions, key):
    """A complete column: `evaluate` sets keys that are missing after the first row to None."""
    column = [require(row, key, f"predictions, row {number}", list) for number, row in enumerate(predictions)]
    for number, scores in enumerate(column):
        if len(scores) != len(_CHOICES):
            raise ValueError(f"predictions, row {number}: {key!r} are {len(scores)}; expected {len(_CHOICES)}")
    return column


def _labels(references, key):
    column = [row[key] for row in references]
    for number, label in enumerate(column):
        if label not in _CHOICES:
            raise ValueError(f"references, row {number}: {key!r} is {label}; expected 0 to {_CHOICES[-1]}")
    return column
