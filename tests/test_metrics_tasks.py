"""Metrics of NLVR2, VCR and Flickr30k Entities: every recorded case of the official programs."""

import json
from pathlib import Path

import pytest
import torch
from helpers import shared

from modeling_visualbert.hub_code.regions_visualbert import box_iou
from modeling_visualbert.metrics.grounding import grounding_recall, matching_proposals
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy
from modeling_visualbert.metrics.vcr import leaderboard_accuracy, vcr_accuracy

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


def test_iou():
    for case in FLICKR["iou"]:
        first, second = (torch.tensor([case[key]], dtype=torch.float64) for key in ("a", "b"))
        assert float(box_iou(first, second)) == pytest.approx(case["iou"], abs=1e-9)


def test_matching():
    for case in FLICKR["match"]:
        assert matching_proposals(case["gold"], case["proposals"]) == case["matched"]
    assert matching_proposals([], [[0, 0, 1, 1]]) == matching_proposals([[0, 0, 1, 1]], []) == []


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
