"""Metrics of NLVR2, VCR and Flickr30k Entities: every recorded case of the official programs."""

import json
from pathlib import Path

import pytest
import torch
from helpers import shared

from modeling_visualbert.hub_code.regions_visualbert import box_iou
from modeling_visualbert.metrics.grounding import grounding_recall, matching_proposals
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy
from modeling_visualbert.metrics.vcr import choice_accuracy, leaderboard_accuracy, vcr_accuracy

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "metrics"
NLVR2, VCR, FLICKR = (json.loads((GOLDEN / f"{name}.json").read_text()) for name in ("nlvr2", "vcr", "flickr30k"))


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("case", named(NLVR2["sets"]))
def test_nlvr2(case):
    predictions, labels = dict(case["predictions"]), dict(case["labels"])
    if case["expected"]["accuracy"] is None:
        with pytest.raises(ValueError, match=r"examples without a prediction, the first is \S+; expected one for each"):
            nlvr2_accuracy(predictions, labels)
        return
    found = nlvr2_accuracy(predictions, labels)
    assert found["accuracy"] == pytest.approx(case["expected"]["accuracy"], abs=1e-9)
    assert found["consistency"] == pytest.approx(case["expected"]["consistency"], abs=1e-9)
    assert found["num_examples"] == len(labels)


def test_nlvr2_on_the_real_sample():
    sample = NLVR2["real_sample"]
    lines = shared(f"real/{sample['labels_file']}").read_text().splitlines()
    labels = {record["identifier"]: record["label"] for record in map(json.loads, lines)}
    found = nlvr2_accuracy(dict(sample["predictions"]), labels)
    for name, value in sample["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "message"),
    [({}, "no labels"), ({"dev-1-2": "True"}, "identifier 'dev-1-2'; expected split-set-pair-sen")],
)
def test_nlvr2_refuses(labels, message):
    with pytest.raises(ValueError, match=message):
        nlvr2_accuracy({"dev-1-2": "True"}, labels)


@pytest.mark.parametrize("case", named(VCR["sets"]))
def test_vcr(case):
    names = ("answer_scores", "rationale_scores", "answer_labels", "rationale_labels")
    found = vcr_accuracy(*(case[name] for name in names))
    for name, value in case["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("case", VCR["leaderboard_form"])
def test_vcr_leaderboard_rows(case):
    found = leaderboard_accuracy(case["rows"], case["answer_labels"], case["rationale_labels"])
    for name, value in case["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-9)


def test_vcr_refuses_what_does_not_fit():
    four = [[0.1, 0.2, 0.3, 0.4]]
    with pytest.raises(ValueError, match=r"rationale_scores of shape \(1, 3\); expected \(questions, 4\)"):
        vcr_accuracy(four, [[1, 2, 3]], [0], [0])
    with pytest.raises(ValueError, match="1 and 1 rows of scores for 2 and 1 labels"):
        vcr_accuracy(four, four, [0, 1], [0])
    with pytest.raises(ValueError, match=r"rows of shape \(1, 4\); expected \(questions, 20\)"):
        leaderboard_accuracy(four, [0], [0])


def test_accuracy_of_one_choice():
    scores = [[0.1, 0.4, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1], [0.25] * 4, [1, 2, 3, 4]]
    assert choice_accuracy(scores, [1, 0, 0, 2]) == 0.75
    assert choice_accuracy(scores, [0, 1, 3, 0]) == 0.0


WRONG_LABEL = r"labels: row 1 is .*4.*; expected 0 to 3"
FOUR = [[0.1, 0.2, 0.3, 0.4]] * 2


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: choice_accuracy([], []), r"^scores of shape \(0,\); expected \(questions, 4\)"),
        (lambda: choice_accuracy(torch.zeros(0, 4), []), r"^scores of shape \(0, 4\); expected \(questions, 4\)"),
        (lambda: choice_accuracy([[1, 2, 3]], [0]), r"^scores of shape \(1, 3\); expected \(questions, 4\)"),
        (lambda: choice_accuracy(FOUR, [0]), "^2 rows of scores for 1 labels; expected the same number of each"),
        (lambda: choice_accuracy(FOUR, [0, 4]), f"^{WRONG_LABEL}"),
        (lambda: vcr_accuracy([[1, 2, 3]], FOUR, [0], [0]), r"^answer_scores of shape \(1, 3\)"),
        (lambda: vcr_accuracy(FOUR, FOUR, [0, 4], [0, 0]), f"^answer_{WRONG_LABEL}"),
        (lambda: vcr_accuracy(FOUR, FOUR, [0, 0], [0, 4]), f"^rationale_{WRONG_LABEL}"),
        (lambda: leaderboard_accuracy([[0.25] * 20] * 2, [0, 4], [0, 0]), f"^answer_{WRONG_LABEL}"),
        (lambda: leaderboard_accuracy([[0.25] * 20] * 2, [0], [0]), "^2 rows for 1 labels; expected the same number"),
    ],
)
def test_what_vcr_cannot_score_is_named(score, message):
    with pytest.raises(ValueError, match=message):
        score()


def test_scores_given_as_text_are_read_as_numbers():
    """As read from a CSV file: "10" is more than "9"."""
    assert choice_accuracy([["9", "10", "8", "1"]], [1]) == 1.0


def test_vcr_says_how_many_questions_it_scored():
    found = vcr_accuracy(FOUR, FOUR, [3, 3], [3, 0])
    assert found == {"answer": 1.0, "rationale": 0.5, "joint": 0.5, "num_examples": 2}


def test_iou():
    for case in FLICKR["iou"]:
        first, second = (torch.tensor([case[key]], dtype=torch.float64) for key in ("a", "b"))
        assert float(box_iou(first, second)) == pytest.approx(case["iou"], abs=1e-9)


def test_matching():
    for case in FLICKR["match"]:
        assert matching_proposals(case["gold"], case["proposals"]) == case["matched"]
    assert matching_proposals([], [[0, 0, 1, 1]]) == matching_proposals([[0, 0, 1, 1]], []) == []


def test_an_overlap_of_exactly_one_half_matches_in_large_images():
    """In single precision it is 0.49999997."""
    assert matching_proposals([[0.1, 0.1, 3686.1, 3847.1]], [[0.1, 0.1, 1843.1, 3847.1]]) == [0]


@pytest.mark.parametrize("boxes", [[[0, 0, 1]], [0, 0, 1, 1], [[[0, 0, 1, 1]]]])
def test_boxes_of_another_shape_are_named(boxes):
    good = [[0, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"^proposals of shape \(.*\); expected \(boxes, 4\)"):
        matching_proposals(good, boxes)
    with pytest.raises(ValueError, match=r"^gold of shape \(.*\); expected \(boxes, 4\)"):
        matching_proposals(boxes, good)


@pytest.mark.parametrize("case", named(FLICKR["evaluation"]))
def test_grounding(case):
    found = grounding_recall(case["sentences"])
    counts, total = case["expected"]["counts"], case["expected"]["counts"]["entities"]
    assert found["num_examples"] == total
    assert found["upper_bound"] == counts["matchable"] / total
    for k in (1, 5, 10):
        assert found[f"recall_at_{k}"] == counts[f"hits_at_{k}"] / total
        assert found[f"recall_at_{k}"] == pytest.approx(case["expected"]["ban"][f"recall_at_{k}"], abs=1e-6)


def test_grounding_refuses_what_does_not_fit():
    entity = {"gold": [[0, 0, 1, 1]], "scores": [0.5, 0.5]}
    with pytest.raises(ValueError, match="sentence 0, phrase 0: 2 scores for 1 proposals; expected one for each"):
        grounding_recall([{"proposals": [[0, 0, 1, 1]], "entities": [entity]}])
    with pytest.raises(ValueError, match="no phrases"):
        grounding_recall([])
