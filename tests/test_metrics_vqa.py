"""VQA accuracy and training targets against what the official scripts computed (`fixtures/golden/metrics`)."""

import json

import pytest
from helpers import FIXTURES, shared

from modeling_visualbert.answers import pythia_answers
from modeling_visualbert.metrics.vqa import (
    best_known_answers,
    normalise_answer,
    question_accuracy,
    soft_targets,
    vqa_accuracy,
)

EXACT, FLOAT32 = 1e-9, 1e-6  # the references compute accuracy in double, targets in float32
ACCURACY = json.loads((FIXTURES / "golden" / "metrics" / "vqa_accuracy.json").read_text("utf-8"))
TARGETS = json.loads((FIXTURES / "golden" / "metrics" / "vqa_soft_targets.json").read_text("utf-8"))
SETS = {golden["name"]: golden for golden in ACCURACY["sets"]}
VOCABULARY = {answer: index for index, answer in enumerate(TARGETS["vocabulary"])}


def record(question_id, *answers, **fields):
    """One record of an annotation file."""
    return {
        "question_id": question_id,
        "answers": [{"answer": answer, "answer_id": i + 1} for i, answer in enumerate(answers)],
        **fields,
    }


def sparse(pairs):
    """[[index, score], ...] of the fixtures as a dict that compares with a tolerance."""
    return pytest.approx({index: score for index, score in pairs}, abs=FLOAT32)


def real_annotations():
    """The records of the real sample; the test is skipped where it is not at hand."""
    path = shared("real") / ACCURACY["real_sample"]["annotations_file"]
    return json.loads(path.read_text("utf-8"))["annotations"]


@pytest.mark.parametrize("case", ACCURACY["normalisation_cases"], ids=lambda case: ascii(case["raw"]))
def test_normalisation_is_the_official_one(case):
    once = normalise_answer(case["raw"])
    assert once == case["normalised"]
    assert normalise_answer(once) == case["normalised_twice"]


@pytest.mark.parametrize("blank", ["\t", "\n"])
def test_a_mark_before_any_blank_is_deleted_everywhere(blank):
    """As before a space: the official script makes blanks of tabs and line breaks first."""
    assert normalise_answer(f"x-y-{blank}b") == normalise_answer("x-y- b") == "xy b"


def test_normalising_twice_matters_only_for_many_periods():
    changed = [c for c in ACCURACY["normalisation_cases"] if c["normalised"] != c["normalised_twice"]]
    assert 0 < len(changed) < 10
    for case in changed:
        assert case["raw"].count(".") > 32
        assert len(normalise_answer(case["raw"])) > len(normalise_answer(normalise_answer(case["raw"])))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("field", ["overall", "per_question", "per_question_type", "per_answer_type"])
def test_accuracy_of_a_set_is_the_official_one(name, field):
    questions = SETS[name]["questions"]
    scored = vqa_accuracy({q["question_id"]: q["prediction"] for q in questions}, questions)
    expected = SETS[name]["expected"][field]
    if field == "per_question":
        expected = {int(question_id): value for question_id, value in expected.items()}
    assert scored[field] == pytest.approx(expected, abs=EXACT)
    assert scored["num_examples"] == len(questions)


def test_accuracy_of_the_real_sample_is_the_official_one():
    sample = ACCURACY["real_sample"]
    scored = vqa_accuracy({int(i): answer for i, answer in sample["predictions"].items()}, real_annotations())
    for field in ("overall", "per_question_type", "per_answer_type"):
        assert scored[field] == pytest.approx(sample["expected"][field], abs=EXACT)
    by_question = {str(i): value for i, value in scored["per_question"].items()}
    assert by_question == pytest.approx(sample["expected"]["per_question"], abs=EXACT)
    assert scored["num_examples"] == 689


@pytest.mark.parametrize("agreeing", range(11))
def test_agreement_of_ten_annotators(agreeing):
    answers = ["cat"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert question_accuracy("cat", answers) == pytest.approx(min(1.0, 0.3 * agreeing))


def test_identical_annotators_are_not_normalised():
    assert question_accuracy("two", ["2"] * 10) == 0.0
    assert question_accuracy("two", ["2"] * 9 + ["3"]) == 1.0


def test_equal_records_without_an_id_are_left_out_together():
    assert question_accuracy("cat", [{"answer": "cat"}] * 10) == 0.0
    assert question_accuracy("cat", [{"answer": "cat", "answer_id": i} for i in range(10)]) == 1.0
    assert question_accuracy("cat", ["cat"] * 10) == 1.0  # strings are told apart by position


def test_scoring_leaves_the_records_as_they_were():
    records = [record(1, "The  Cat", "a dog\n", *["two"] * 8)]
    before = json.dumps(records)
    vqa_accuracy({1: "2"}, records)
    assert json.dumps(records) == before


def test_types_that_are_not_given_are_absent():
    records = [record(1, *["yes"] * 10, answer_type="yes/no"), record(2, *["yes"] * 10)]
    scored = vqa_accuracy({1: "yes", 2: "no"}, records)
    assert scored["overall"] == 50.0
    assert scored["per_answer_type"] == {"yes/no": 100.0}
    assert scored["per_question_type"] == {}


@pytest.mark.parametrize(
    ("predictions", "questions", "message"),
    [
        ({1: "yes"}, [1, 2, 3], "2 question ids not answered, the first is 2; expected one answer per question"),
        ({1: "yes", 7: "no", 8: "no"}, [1], "2 question ids unknown, the first is 7; expected one answer"),
        ({1: "yes", 5: "no"}, [1, 5, 5], "1 question ids repeated in the annotations, the first is 5; expected one"),
        ({"1": "yes"}, [1], "question id '1' in the predictions; expected an integer"),
        ({1: "yes", "1": "no"}, [1], "question id '1' in the predictions; expected an integer"),
        ({1: "yes"}, ["1"], "question id '1' in the annotations; expected an integer"),
        ({}, [], "no annotations to score against"),
    ],
    ids=["missing", "surplus", "repeated", "string", "both", "annotation", "none"],
)
def test_ids_that_do_not_match_are_refused(predictions, questions, message):
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(predictions, [record(question_id, *["yes"] * 10) for question_id in questions])


def test_a_question_without_annotators_is_refused():
    with pytest.raises(ValueError, match="no annotator answers; expected ten"):
        question_accuracy("yes", [])


@pytest.mark.parametrize("case", TARGETS["index_cases"])
@pytest.mark.parametrize(("rule", "expected"), [("visualbert", "visualbert"), ("mmf", "mmf_leave_one_out")])
def test_targets_of_indices_are_the_reference_s(case, rule, expected):
    vocabulary = {str(index): index for index in range(case["num_answers"])}
    answers = [str(index) for index in case["valid_answer_indices"]]
    known = [pair for pair in case[expected] if pair[0] != case["unk_index"]]  # the reference stores a 0 for it
    assert soft_targets(answers, vocabulary, unknown=str(case["unk_index"]), rule=rule) == sparse(known)


@pytest.mark.parametrize("case", TARGETS["index_cases_without_unk"])
def test_without_an_unknown_entry_every_answer_scores(case):
    vocabulary = {str(index): index for index in range(case["num_answers"])}
    answers = [str(index) for index in case["valid_answer_indices"]]
    assert soft_targets(answers, vocabulary, unknown=None) == sparse(case["visualbert"])


@pytest.mark.parametrize("case", TARGETS["string_cases"])
def test_targets_of_strings_are_the_references_(case):
    assert soft_targets(case["annotators"], VOCABULARY) == sparse(case["visualbert"])
    assert soft_targets(case["annotators"], VOCABULARY) == sparse(case["soft_score_table"])
    assert soft_targets(case["annotators"], VOCABULARY, rule="mmf") == sparse(case["mmf"]["scores"])


@pytest.mark.parametrize("key", ["visualbert_pythia_vocab", "lxmert_vocab_soft_score"])
def test_targets_of_the_real_sample_are_the_references_(key):
    answers_of = {r["question_id"]: [a["answer"] for a in r["answers"]] for r in real_annotations()}
    if key == "visualbert_pythia_vocab":
        vocabulary, unknown = {answer: index for index, answer in enumerate(pythia_answers())}, "<unk>"
    else:
        path = shared("real") / TARGETS["real_sample"]["lxmert_vocabulary_file"]
        vocabulary, unknown = json.loads(path.read_text("utf-8")), None
    for case in TARGETS["real_sample"]["cases"]:
        assert soft_targets(answers_of[case["question_id"]], vocabulary, unknown) == sparse(case[key]), case


@pytest.mark.parametrize(
    ("rule", "answers", "expected"),
    [
        ("visualbert", ["bird"], {7: 0.3}),
        ("mmf", ["bird"], {7: 1.0}),  # repeated up to ten
        ("uniform", ["bird"] * 7 + ["3", "3", "never heard of"], {7: 0.5, 6: 0.5}),
        ("uniform", ["never heard of"] * 10, {}),
        ("visualbert", ["Bird"] * 10, {}),  # read raw
        ("mmf", ["Bird,"] * 10, {7: 1.0}),  # cleaned
        ("visualbert", ["<unk>"] * 10, {}),
        ("mmf", [], {}),
    ],
)
def test_rules_on_hand_made_answers(rule, answers, expected):
    assert soft_targets(answers, VOCABULARY, rule=rule) == pytest.approx(expected)


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'median'; expected 'visualbert', 'uniform' or 'mmf'"):
        soft_targets(["yes"], VOCABULARY, rule="median")


@pytest.mark.parametrize("case", TARGETS["batch_metric"])
def test_best_known_answers_score_as_the_reference_does(case):
    best = best_known_answers(case["logits"])
    scores = [target[index] for target, index in zip(case["targets"], best, strict=True)]
    assert scores == pytest.approx(case["per_example_score"], abs=FLOAT32)
    assert sum(scores) / len(scores) == pytest.approx(case["accuracy"], abs=FLOAT32)
    assert best_known_answers(case["logits"], unknown_index=None) == case["argmax_unmasked"]


def test_a_confident_unknown_does_not_hide_the_others():
    case = TARGETS["batch_metric_underflow"]
    assert best_known_answers(case["logits"]) == [2, 2]  # the reference divides 0 by 0 in the first row


def test_whole_numbers_are_scores_too():
    assert best_known_answers([[9, 1, 2], [9, 3, 2]]) == [2, 1]
