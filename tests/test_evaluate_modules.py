"""The `evaluate` modules, loaded by path: values of the pure functions on all recorded cases, row by row, bad input."""

import doctest
import json
import re
from pathlib import Path

import datasets
import pytest
from helpers import FIXTURES

from modeling_visualbert.metrics.grounding import grounding_recall
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy
from modeling_visualbert.metrics.vcr import leaderboard_accuracy, vcr_accuracy
from modeling_visualbert.metrics.vqa import vqa_accuracy

evaluate = pytest.importorskip("evaluate")

ROOT = Path(__file__).parents[1]
FOLDERS = {path.name: path for path in sorted((ROOT / "hub_cards" / "metrics").iterdir()) if path.is_dir()}
VQA, NLVR2, VCR, FLICKR = (
    json.loads((FIXTURES / "golden" / "metrics" / f"{name}.json").read_text("utf-8"))
    for name in ("vqa_accuracy", "nlvr2", "vcr", "flickr30k")
)


def named(cases):
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.fixture(scope="session")
def modules():
    """Each module as a user gets it: from its folder."""
    return {name: evaluate.load(str(folder)) for name, folder in FOLDERS.items()}


def vqa_rows(questions):
    """(predictions, references) of a recorded set; answers as strings."""
    types = ("question_type", "answer_type")
    references = [
        {"answers": [a["answer"] for a in q["answers"]], **{key: q[key] for key in types if key in q}}
        for q in questions
    ]
    return [question["prediction"] for question in questions], references


def nlvr2_rows(case):
    """As many predictions as references: the last row of the shorter column is repeated, which changes nothing."""
    columns = [[{"identifier": i, "label": label} for i, label in case[key]] for key in ("predictions", "labels")]
    length = max(map(len, columns))
    return [column + [column[-1]] * (length - len(column)) for column in columns]


def vcr_rows(case):
    predictions = [
        {"answer_scores": answer, "rationale_scores": rationale}
        for answer, rationale in zip(case["answer_scores"], case["rationale_scores"], strict=True)
    ]
    references = [
        {"answer_label": answer, "rationale_label": rationale}
        for answer, rationale in zip(case["answer_labels"], case["rationale_labels"], strict=True)
    ]
    return predictions, references


def grounding_rows(case):
    predictions = [
        {"proposals": s["proposals"], "scores": [entity["scores"] for entity in s["entities"]]}
        for s in case["sentences"]
    ]
    return predictions, [{"gold": [entity["gold"] for entity in s["entities"]]} for s in case["sentences"]]


ROWS = {
    "vqa_accuracy": vqa_rows(VQA["sets"][0]["questions"]),
    "nlvr2_accuracy": nlvr2_rows(NLVR2["sets"][0]),
    "vcr_accuracy": vcr_rows(VCR["sets"][-1]),
    "grounding_recall": grounding_rows(FLICKR["evaluation"][0]),
}


def test_there_is_a_module_for_each_task(modules):
    assert sorted(modules) == sorted(ROWS)
    for name, module in modules.items():
        assert module.name == name  # the class is named after the folder
        assert module.description and module.citation and module.inputs_description


@pytest.mark.parametrize("case", named(VQA["sets"]))
def test_vqa_equals_the_pure_function(modules, case):
    predictions, references = vqa_rows(case["questions"])
    found = modules["vqa_accuracy"].compute(predictions=predictions, references=references)
    annotations = [{"question_id": row, **reference} for row, reference in enumerate(references)]
    expected = vqa_accuracy(dict(enumerate(predictions)), annotations)
    assert found.pop("per_question") == list(expected.pop("per_question").values())
    assert found == expected
    if case["name"] != "no_answer_id":  # whose equal records are left out together; strings are told apart by position
        for field in ("overall", "per_question_type", "per_answer_type"):
            assert found[field] == pytest.approx(case["expected"][field], abs=1e-9)


@pytest.mark.parametrize("case", named(NLVR2["sets"]))
def test_nlvr2_equals_the_pure_function(modules, case):
    predictions, references = nlvr2_rows(case)
    if case["expected"]["accuracy"] is None:
        with pytest.raises(ValueError, match=r"examples without a prediction, the first is \S+"):
            modules["nlvr2_accuracy"].compute(predictions=predictions, references=references)
        return
    found = modules["nlvr2_accuracy"].compute(predictions=predictions, references=references)
    assert found == nlvr2_accuracy(dict(case["predictions"]), dict(case["labels"]))
    assert found["accuracy"] == pytest.approx(case["expected"]["accuracy"], abs=1e-9)
    assert found["consistency"] == pytest.approx(case["expected"]["consistency"], abs=1e-9)


@pytest.mark.parametrize("case", named(VCR["sets"]))
def test_vcr_equals_the_pure_function(modules, case):
    predictions, references = vcr_rows(case)
    found = modules["vcr_accuracy"].compute(predictions=predictions, references=references)
    names = ("answer_scores", "rationale_scores", "answer_labels", "rationale_labels")
    assert found == vcr_accuracy(*(case[name] for name in names))
    for name, value in case["expected"].items():
        assert found[name] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("case", VCR["leaderboard_form"])
def test_vcr_equals_the_score_of_leaderboard_rows(modules, case):
    rationales = [row[4 + 4 * label :][:4] for row, label in zip(case["rows"], case["answer_labels"], strict=True)]
    scores = {"answer_scores": [row[:4] for row in case["rows"]], "rationale_scores": rationales}
    predictions, references = vcr_rows({**case, **scores})
    found = modules["vcr_accuracy"].compute(predictions=predictions, references=references)
    assert found == leaderboard_accuracy(case["rows"], case["answer_labels"], case["rationale_labels"])


@pytest.mark.parametrize("case", named(FLICKR["evaluation"]))
def test_grounding_equals_the_pure_function(modules, case):
    predictions, references = grounding_rows(case)
    found = modules["grounding_recall"].compute(predictions=predictions, references=references)
    assert found == grounding_recall(case["sentences"])
    for name, value in case["expected"]["ban"].items():
        assert found[name] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_rows_added_one_by_one_or_in_batches_score_the_same(modules, name):
    predictions, references = ROWS[name]
    module, expected = modules[name], modules[name].compute(predictions=predictions, references=references)
    for prediction, reference in zip(predictions, references, strict=True):
        module.add(prediction=prediction, reference=reference)
    assert module.compute() == expected
    for start in range(0, len(predictions), 7):
        module.add_batch(predictions=predictions[start : start + 7], references=references[start : start + 7])
    assert module.compute() == expected


@pytest.mark.parametrize("name", ROWS)
def test_rows_have_the_documented_features(modules, name):
    predictions, references = ROWS[name]
    rows = {"predictions": predictions, "references": references}
    assert datasets.Dataset.from_dict(rows, features=modules[name].features).num_rows == len(predictions)


def test_vqa_types_are_optional_in_any_row(modules):
    yes = ["yes"] * 10
    references = [
        {"answers": yes},
        {"answers": yes, "answer_type": "yes/no", "question_type": None},
        {"answers": yes, "question_type": "is", "answer_type": "yes/no", "question_id": 5},  # a row of a data set
    ]
    found = modules["vqa_accuracy"].compute(predictions=["yes", "no", "yes"], references=references)
    assert found["per_question"] == [100.0, 0.0, 100.0]
    assert found["per_answer_type"] == {"yes/no": 50.0}
    assert found["per_question_type"] == {"is": 100.0}


def test_nlvr2_rows_are_joined_by_identifier(modules):
    references = [{"identifier": "dev-1-0-0", "label": "True"}, {"identifier": "dev-1-1-0", "label": "False"}]
    found = modules["nlvr2_accuracy"].compute(predictions=references[::-1], references=references)
    assert found == {"accuracy": 1.0, "consistency": 1.0, "num_examples": 2}


def test_grounding_without_proposals_or_gold_boxes(modules):
    predictions = [{"proposals": [], "scores": [[]]}, {"proposals": [[0, 0, 1, 1]], "scores": [[1.0], [1.0]]}]
    references = [{"gold": [[[0, 0, 1, 1]]]}, {"gold": [[], [[0, 0, 1, 1]]]}]
    found = modules["grounding_recall"].compute(predictions=predictions, references=references)
    assert found["recall_at_1"] == found["upper_bound"] == pytest.approx(1 / 3)
    assert found["num_examples"] == 3


FOUR = {"answer_scores": [1.0, 2.0, 3.0, 4.0], "rationale_scores": [1.0, 2.0, 3.0, 4.0]}
RIGHT = {"answer_label": 3, "rationale_label": 3}
BOXES, GOLD = {"proposals": [[0, 0, 1, 1]], "scores": [[0.5]]}, {"gold": [[[0, 0, 1, 1]]]}
ANSWERS, TRUE = {"answers": ["yes", "no"]}, {"identifier": "dev-1-0-0", "label": "True"}


@pytest.mark.parametrize(
    ("name", "predictions", "references", "message"),
    [
        ("vqa_accuracy", ["yes", 2], [ANSWERS] * 2, "predictions, row 1: 2; expected a string"),
        (
            "vqa_accuracy",
            ["2"] * 2,
            [ANSWERS, {"answers": ["two", 2]}],
            "references, row 1: 'answers' is ['two', 2]; exp",
        ),
        ("vqa_accuracy", ["2"], [{"answers": []}], "references, row 0: 'answers' is []; expected strings, one per"),
        ("vqa_accuracy", ["2"], [{"answers": "2"}], "references, row 0: 'answers' is '2'; expected list"),
        ("vqa_accuracy", ["2"], [{"answer_type": "number"}], "references, row 0: key 'answers' is missing"),
        ("vqa_accuracy", ["2", "3"], [ANSWERS], "Mismatch in the number of predictions (2) and references (1)"),
        (
            "nlvr2_accuracy",
            [TRUE] * 2,
            [TRUE, {**TRUE, "label": True}],
            "references, row 1: 'label' is True; expected s",
        ),
        ("nlvr2_accuracy", [TRUE, {"label": "True"}], [TRUE] * 2, "predictions, row 1: key 'identifier' is missing"),
        (
            "nlvr2_accuracy",
            [TRUE] * 2,
            [{**TRUE, "label": "False"}, TRUE],
            "row 0: dev-1-0-0 is 'False' here and 'True' ",
        ),
        (
            "vcr_accuracy",
            [FOUR] * 2,
            [RIGHT, {"answer_label": 3}],
            "references, row 1: 'rationale_label' is None; expec",
        ),
        (
            "vcr_accuracy",
            [FOUR] * 2,
            [RIGHT, {**RIGHT, "answer_label": 4}],
            "row 1: 'answer_label' is 4; expected 0 to 3",
        ),
        (
            "vcr_accuracy",
            [FOUR, {**FOUR, "answer_scores": [1]}],
            [RIGHT] * 2,
            "row 1: 'answer_scores' are 1; expected 4",
        ),
        (
            "vcr_accuracy",
            [FOUR, {"answer_scores": [1] * 4}],
            [RIGHT] * 2,
            "predictions, row 1: 'rationale_scores' is No",
        ),
        (
            "grounding_recall",
            [BOXES, {"proposals": []}],
            [GOLD] * 2,
            "predictions, row 1: 'scores' is None; expected list",
        ),
        (
            "grounding_recall",
            [BOXES] * 2,
            [GOLD, {"gold": []}],
            "row 1: scores for 1 phrases, gold boxes for 0; expected",
        ),
        (
            "grounding_recall",
            [BOXES],
            [{"gold": [[[0, 0, 1]]]}],
            "row 0: a box does not have four numbers; expected x1",
        ),
        ("grounding_recall", [{**BOXES, "scores": [[1, 2]]}], [GOLD], "sentence 0, phrase 0: 2 scores for 1 proposals"),
    ],
)
def test_bad_rows_are_refused_by_name(name, predictions, references, message):
    module = evaluate.load(str(FOLDERS[name]), keep_in_memory=True)  # a fresh one: rows of a failed call stay in it
    with pytest.raises(ValueError, match=re.escape(message)):
        module.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("name", ["vqa_accuracy", "nlvr2_accuracy"])
def test_a_refused_row_leaves_the_others_alone(name):
    module = evaluate.load(str(FOLDERS[name]))
    predictions, references = ROWS[name]
    module.add(prediction=predictions[0], reference=references[0])
    with pytest.raises(ValueError, match="2; expected a string|'identifier' is missing: found 2; expected a record"):
        module.add(prediction=2, reference=references[1])
    assert module.compute()["num_examples"] == 1


@pytest.mark.parametrize("name", FOLDERS)
def test_a_card_is_complete_and_its_example_prints_what_it_says(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = (FOLDERS[name] / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "- evaluate\n- metric\n" in card.split("---")[1]
    (session,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert f'evaluate.load("hub_cards/metrics/{name}")' in session
    example = doctest.DocTestParser().get_doctest(session, {}, name, "README.md", 0)
    assert sum(bool(step.want) for step in example.examples) >= 1
    assert doctest.DocTestRunner().run(example).failed == 0
    requirements = (FOLDERS[name] / "requirements.txt").read_text("utf-8").splitlines()
    assert "modeling-visualbert" in requirements
