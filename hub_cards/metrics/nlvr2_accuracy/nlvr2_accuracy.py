"""NLVR2 accuracy and consistency for `evaluate`: a thin wrapper of `modeling_visualbert.metrics.nlvr2`."""

import datasets
import evaluate

from modeling_visualbert.data.files import require
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy

_DESCRIPTION = """
Accuracy and consistency of NLVR2. Consistency is the share of sentences that are judged correctly for all their image pairs.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: Mappings with `identifier` (`split-set-pair-sentence`) and `label` ("True" or "False", in any letter case;
        anything else counts as wrong). If an identifier is repeated, the last row counts, as in the official script.
    references: Mappings with the same keys, as many as predictions. Rows are joined by identifier, so the order may
        differ. Other keys are ignored.

Returns:
    `accuracy` and `consistency` in 0..1, and `num_examples`.
"""
_CITATION = """
@inproceedings{suhr2019corpus,
  title     = {A Corpus for Reasoning About Natural Language Grounded in Photographs},
  author    = {Suhr, Alane and Zhou, Stephanie and Zhang, Ally and Zhang, Iris and Bai, Huajun and Artzi, Yoav},
  booktitle = {ACL},
  year      = {2019}
}
"""
_ROW = {"identifier": datasets.Value("string"), "label": datasets.Value("string")}


class Nlvr2Accuracy(evaluate.Metric):
    """Accuracy and consistency of NLVR2."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": _ROW, "references": _ROW}),
            reference_urls=["https://github.com/lil-lab/nlvr/tree/master/nlvr2"],
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add rows. Raises ValueError, naming row and key, if a value is missing or not a string."""
        predictions = [_row(prediction, f"predictions, row {row}") for row, prediction in enumerate(predictions)]
        references = [_row(reference, f"references, row {row}") for row, reference in enumerate(references)]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one row. Raises ValueError, naming the key, if a value is missing or not a string."""
        super().add(prediction=_row(prediction, "prediction"), reference=_row(reference, "reference"), **kwargs)

    def _compute(self, predictions, references):
        return nlvr2_accuracy(_by_identifier(predictions), _labels(references))


def _row(row, where):
    """The keys of the features, both strings: `evaluate` checks only the first row."""
    return {key: require(row, key, where, str) for key in _ROW}


def _by_identifier(rows):
    return {row["identifier"]: row["label"] for row in rows}


def _labels(references):
    labels = _by_identifier(references)
    for row, reference in enumerate(references):
        if reference["label"] != labels[reference["identifier"]]:
            raise ValueError(
                f"references, row {row}: {reference['identifier']} is {reference['label']!r} here and "
                f"{labels[reference['identifier']]!r} further down; expected one label"
            )
    return labels
