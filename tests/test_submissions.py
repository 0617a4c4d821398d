"""Submission files: read back as the official programs do and scored by the pure metrics; bad input."""

import json

import numpy as np
import pytest
import torch
from helpers import FIXTURES

from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy
from modeling_visualbert.metrics.submissions import (
    VCR_HEADER,
    read_vcr_leaderboard,
    write_nlvr2_predictions,
    write_vcr_leaderboard,
    write_vqa_results,
)
from modeling_visualbert.metrics.vcr import leaderboard_accuracy, vcr_accuracy
from modeling_visualbert.metrics.vqa import vqa_accuracy

VQA, NLVR2, VCR = (
    json.loads((FIXTURES / "golden" / "metrics" / f"{name}.json").read_text("utf-8"))
    for name in ("vqa_accuracy", "nlvr2", "vcr")
)
LABELLED = [case for case in NLVR2["sets"] if case["name"].startswith(("random", "extra", "duplicate"))]
DISTRIBUTIONS = [
    case for case in VCR["sets"] if not case["name"].endswith("ties")
]  # scores of the ties sum to 0.9..1.1
UNIFORM = [0.25] * 4


def random_probabilities(questions, seed=0):
    """(answers, rationales) of unequal probabilities in float32, as a model gives them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(questions, 5, 4, generator=generator) * 3
    probabilities = logits.softmax(-1)
    return probabilities[:, 0], probabilities[:, 1:]


@pytest.mark.parametrize("case", VQA["sets"], ids=lambda case: case["name"])
def test_vqa_results_score_as_recorded(tmp_path, case):
    answers = {question["question_id"]: question["prediction"] for question in case["questions"]}
    write_vqa_results(answers, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert all(sorted(record) == ["answer", "question_id"] for record in results)
    assert [record["question_id"] for record in results] == list(answers)
    scored = vqa_accuracy({record["question_id"]: record["answer"] for record in results}, case["questions"])
    assert scored["overall"] == pytest.approx(case["expected"]["overall"], abs=1e-9)


def test_vqa_results_keep_every_character_and_take_numpy_ids(tmp_path):
    write_vqa_results({np.int64(7): 'café "ß"\n'}, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results == [{"question_id": 7, "answer": 'café "ß"\n'}]


@pytest.mark.parametrize("case", LABELLED, ids=lambda case: case["name"])
def test_nlvr2_predictions_are_read_by_the_official_script(tmp_path, case):
    write_nlvr2_predictions(dict(case["predictions"]), tmp_path / "predictions.csv")
    predictions = {}
    for line in (tmp_path / "predictions.csv").read_text().splitlines():  # as `metrics.py` reads it
        splits = line.strip().split(",")
        predictions[splits[0]] = splits[1]
    assert list(predictions.items()) == list(dict(case["predictions"]).items())
    found = nlvr2_accuracy(predictions, dict(case["labels"]))
    for name in ("accuracy", "consistency"):
        assert found[name] == pytest.approx(case["expected"][name], abs=1e-9)


def test_nlvr2_lines(tmp_path):
    write_nlvr2_predictions({"test1-0-1-0": "True", "test1-0-2-0": "False"}, tmp_path / "predictions.csv")
    assert (tmp_path / "predictions.csv").read_bytes() == b"test1-0-1-0,True\ntest1-0-2-0,False\n"


@pytest.mark.parametrize("case", DISTRIBUTIONS, ids=lambda case: case["name"])
def test_a_leaderboard_file_scores_as_recorded(tmp_path, case):
    """The recorded rationale scores stand at the correct answer, others elsewhere."""
    ids = [f"val-{row}" for row in range(len(case["answer_labels"]))]
    _, rationales = random_probabilities(len(ids))
    rationales[torch.arange(len(ids)), torch.tensor(case["answer_labels"])] = torch.tensor(case["rationale_scores"])
    write_vcr_leaderboard(ids, case["answer_scores"], rationales, tmp_path / "submission.csv")
    rows = read_vcr_leaderboard(tmp_path / "submission.csv")
    assert list(rows) == ids
    labels = case["answer_labels"], case["rationale_labels"]
    found = leaderboard_accuracy(list(rows.values()), *labels)
    assert found == vcr_accuracy(case["answer_scores"], case["rationale_scores"], *labels)
    for name, value in case["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-9)


def test_a_leaderboard_file_has_the_official_columns(tmp_path):
    answers, rationales = np.eye(4)[[0, 1]], np.eye(4)[[[0, 1, 2, 3], [3, 2, 1, 0]]]
    write_vcr_leaderboard(["test-0", "test-1"], answers, rationales, tmp_path / "submission.csv")
    header, *lines = (tmp_path / "submission.csv").read_bytes().decode().split("\n")
    assert header.split(",") == ["annot_id", *VCR["leaderboard_form"][0]["columns"]]
    assert header.startswith("annot_id,answer_0,answer_1,answer_2,answer_3,rationale_conditioned_on_a0_0,")
    assert header.endswith(",rationale_conditioned_on_a3_3")
    assert [line.replace(".0", "") for line in lines] == [
        "test-0,1,0,0,0,1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1",
        "test-1,0,1,0,0,0,0,0,1,0,0,1,0,0,1,0,0,1,0,0,0",
        "",
    ]


def test_a_leaderboard_file_loses_no_digit(tmp_path):
    answers, rationales = random_probabilities(20)
    ids = [f'test, "{row}"' for row in range(20)]
    write_vcr_leaderboard(ids, answers, rationales, tmp_path / "submission.csv")
    rows = read_vcr_leaderboard(tmp_path / "submission.csv")
    assert list(rows) == ids
    assert torch.equal(torch.tensor(list(rows.values())), torch.cat((answers, rationales.flatten(1)), dim=1))


@pytest.mark.parametrize("case", VCR["leaderboard_form"])
def test_files_of_others_may_hold_logits(tmp_path, case):
    lines = [",".join(VCR_HEADER)]
    lines += [",".join(map(str, (i, *row))) for i, row in zip(case["annot_ids"], case["rows"], strict=True)]
    (tmp_path / "submission.csv").write_text("\r\n".join(lines) + "\r\n", newline="")
    rows = read_vcr_leaderboard(tmp_path / "submission.csv")
    assert rows == dict(zip(case["annot_ids"], case["rows"], strict=True))
    found = leaderboard_accuracy(list(rows.values()), case["answer_labels"], case["rationale_labels"])
    for name, value in case["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("write", "content", "message"),
    [
        (write_vqa_results, {}, "no answers; expected at least one"),
        (write_vqa_results, {"1": "yes"}, "question id '1'; expected an integer"),
        (write_vqa_results, {1: "yes", 2: None}, "question 2: answer None; expected a string"),
        (write_nlvr2_predictions, {}, "no predictions; expected at least one"),
        (
            write_nlvr2_predictions,
            {"dev-1-0-0": "true"},
            "dev-1-0-0: label 'true'; expected the string 'True' or 'False'",
        ),
        (write_nlvr2_predictions, {"dev-1-0-0": True}, "dev-1-0-0: label True; expected the string"),
        (
            write_nlvr2_predictions,
            {"dev-1-0-0-0": "True"},
            "identifier 'dev-1-0-0-0'; expected split-set-pair-sentence",
        ),
        (write_nlvr2_predictions, {"dev-1-0": "True"}, "identifier 'dev-1-0'; expected split-set-pair-sentence"),
        (
            write_nlvr2_predictions,
            {"dev-1-0-0,a": "True"},
            "identifier 'dev-1-0-0,a'; expected split-set-pair-sentence",
        ),
        (
            write_nlvr2_predictions,
            {"dev-1-0-0\n": "True"},
            r"identifier 'dev-1-0-0\\n'; expected split-set-pair-sentence",
        ),
        (write_nlvr2_predictions, {7: "True"}, "identifier 7; expected split-set-pair-sentence"),
    ],
)
def test_bad_answers_are_refused_before_a_file_is_there(tmp_path, write, content, message):
    with pytest.raises(ValueError, match=message):
        write(content, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def leaderboard(**changes):
    """Arguments of `write_vcr_leaderboard` for two questions."""
    return {
        "annot_ids": ["val-0", "val-1"],
        "answer_probabilities": [UNIFORM] * 2,
        "rationale_probabilities": [[UNIFORM] * 4] * 2,
        **changes,
    }


def second(*wrong):
    """Rationale probabilities that are wrong in the second question, given answer 2."""
    return [[UNIFORM] * 4, [UNIFORM, UNIFORM, list(wrong), UNIFORM]]


PLACE = r"row 1 \(val-1\): rationale_conditioned_on_a2 is .*; expected four probabilities in 0..1 with a sum of 1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annot_ids": []}, "no questions; expected at least one"),
        ({"annot_ids": ["val-0", "val-0"]}, "row 1: annot_id 'val-0' was already in row 0; expected it once"),
        ({"annot_ids": ["val-0", 1]}, "row 1: annot_id 1; expected a string"),
        ({"annot_ids": ["val-0", ""]}, "row 1: annot_id ''; expected a string"),
        ({"annot_ids": ["val-0"]}, r"^answer_probabilities of shape \(2, 4\); expected \(1, 4\)"),
        ({"answer_probabilities": [[0.5, 0.5]] * 2}, r"answer_probabilities of shape \(2, 2\); expected \(2, 4\)"),
        ({"answer_probabilities": [UNIFORM, [1.0]]}, r"answer_probabilities are not numbers of shape \(2, 4\)"),
        (
            {"rationale_probabilities": [UNIFORM] * 2},
            r"rationale_probabilities of shape \(2, 4\); expected \(2, 4, 4\)",
        ),
        (
            {"answer_probabilities": [UNIFORM, [2, -1, 0, 0]]},
            r"row 1 \(val-1\): answer is \[2.0, -1.0, 0.0, 0.0\]; exp",
        ),
        ({"rationale_probabilities": second(0.25, 0.25, 0.25, 0.2498)}, PLACE),
        ({"rationale_probabilities": second(0.25, 0.25, 0.25, 0.24988)}, PLACE),
        ({"rationale_probabilities": second(0.25, 0.25, 0.25, float("nan"))}, PLACE),
        ({"rationale_probabilities": second(0.0, 0.0, 0.0, float("inf"))}, PLACE),
        ({"rationale_probabilities": second(1.5, -0.5, 0.0, 0.0)}, PLACE),
        ({"rationale_probabilities": second(0.6, 0.6, -0.1, -0.1)}, PLACE),
        ({"rationale_probabilities": second(1.00005, 0.0, 0.0, 0.0)}, PLACE),
    ],
)
def test_bad_probabilities_are_refused_before_a_file_is_there(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_vcr_leaderboard(**leaderboard(**changes), path=tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_sum_may_be_off_by_rounding(tmp_path):
    write_vcr_leaderboard(
        **leaderboard(rationale_probabilities=second(0.25, 0.25, 0.25, 0.25005)), path=tmp_path / "file"
    )
    assert read_vcr_leaderboard(tmp_path / "file")["val-1"][15] == 0.25005


def test_scores_that_are_no_distributions_are_refused(tmp_path):
    (case,) = (case for case in VCR["sets"] if case["name"].endswith("ties"))
    rationales = np.full((len(case["answer_labels"]), 4, 4), 0.25)
    ids = [f"val-{row}" for row in range(len(rationales))]
    with pytest.raises(ValueError, match=r"row \d+ \(val-\d+\): answer is \["):
        write_vcr_leaderboard(ids, case["answer_scores"], rationales, tmp_path / "file")


HEADER = ",".join(VCR_HEADER)
LINE = ",".join(["0.25"] * 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header ''; expected annot_id,answer_0,"),
        (f"val-0,{LINE}\n", "header 'val-0,0.25,.*; expected annot_id,answer_0,"),
        (f"{HEADER}\n", "no questions in .*file; expected at least one"),
        (f"{HEADER}\nval-0,0.25\n", "file: line 2: 2 columns; expected 21"),
        (f"{HEADER}\nval-0,{LINE}\n\nval-1,{LINE}\n", "file: line 3: 0 columns; expected 21"),
        (
            f"{HEADER}\nval-0,{LINE}\nval-0,{LINE}\n",
            "file: line 3: annot_id 'val-0' was already in .*file: line 2; exp",
        ),
        (f"{HEADER}\n,{LINE}\n", "file: line 2: annot_id ''; expected a string"),
        (f"{HEADER}\nval-0,x{LINE}\n", "file: line 2: answer_0 is 'x0.25'; expected a finite number"),
        (
            f"{HEADER}\nval-0,{LINE[:-4]}nan\n",
            "line 2: rationale_conditioned_on_a3_3 is 'nan'; expected a finite number",
        ),
    ],
)
def test_bad_leaderboard_files_are_refused_by_line(tmp_path, text, message):
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_vcr_leaderboard(tmp_path / "file")


def test_a_missing_leaderboard_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_vcr_leaderboard(tmp_path / "file")
