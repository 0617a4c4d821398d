"""VQA v2 accuracy for `evaluate`: a thin wrapper of `modeling_visualbert.metrics.vqa`."""

import datasets
import evaluate

from modeling_visualbert.data.files import require
from modeling_visualbert.metrics.vqa import vqa_accuracy

_DESCRIPTION = """
Official accuracy of VQA v2: answers are normalised, and an answer scores the mean over the annotators of
min(1, agreements among the other annotators / 3).
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions: One answer per question, a string.
    references: One mapping per question: `answers`, the annotators' answers, normally ten strings; and, if known, the
        strings `question_type` and `answer_type`. Other keys are ignored, so rows of a dataset can be passed unchanged.

Returns:
    `overall`, accuracy in percent; `per_question_type` and `per_answer_type`, the same for each type that occurs;
    `per_question`, a list in the order of the rows; `num_examples`.
"""
_CITATION = """
@inproceedings{goyal2017making,
  title     = {Making the {V} in {VQA} Matter: Elevating the Role of Image Understanding in Visual Question Answering},
  author    = {Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  booktitle = {CVPR},
  year      = {2017}
}
"""
_TEXT = datasets.Value("string")
_TYPES = ("question_type", "answer_type")


class VqaAccuracy(evaluate.Metric):
    """Official accuracy of VQA v2."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": _TEXT,
                    "references": {"answers": datasets.List(_TEXT), **dict.fromkeys(_TYPES, _TEXT)},
                }
            ),
            reference_urls=["https://visualqa.org/evaluation.html"],
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add rows. Raises ValueError, naming the row, if an answer is not a string."""
        predictions = [_text(prediction, row) for row, prediction in enumerate(predictions)]
        references = [_reference(reference, row) for row, reference in enumerate(references)]
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one row. Raises ValueError if an answer is not a string."""
        super().add(prediction=_text(prediction, 0), reference=_reference(reference, 0), **kwargs)

    def _compute(self, predictions, references):
        annotations = [
            {"question_id": row, **{key: value for key, value in reference.items() if value}}  # without empty types
            for row, reference in enumerate(references)
        ]
        scored = vqa_accuracy(dict(enumerate(predictions)), annotations)
        return {**scored, "per_question": list(scored["per_question"].values())}


def _text(prediction, row):
    if not isinstance(prediction, str):
        raise ValueError(f"predictions, row {row}: {prediction!r:.40}; expected a string")
    return prediction


def _reference(reference, row):
    """The keys of the features. Types may be missing, which `evaluate` cannot express: they become empty.

    Answers are checked here because a list of strings and numbers would be stored as JSON.
    """
    answers = require(reference, "answers", f"references, row {row}", list)
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"references, row {row}: 'answers' is {answers!r:.60}; expected strings, one per annotator")
    return {"answers": answers, **{key: reference.get(key) or "" for key in _TYPES}}
