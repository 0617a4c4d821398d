"""VQA v2 files: what is read from them, how they are found, and every way in which they can be wrong."""

import hashlib
import json
import logging
import random
from collections import Counter
from importlib.resources import files

import pyarrow as pa
import pytest
from helpers import shared

from modeling_visualbert.answers import build_answer_vocabulary, pythia_answers
from modeling_visualbert.data import given_answers
from modeling_visualbert.data.files import find_one, index_images, read_json, require
from modeling_visualbert.data.given_answers import GivenAnswers
from modeling_visualbert.data.vqa2 import EXPECTED_QUESTIONS, FEATURES, find_vqa_files, load_vqa
from modeling_visualbert.metrics.vqa import normalise_answer

OFFICIAL_FILES = {  # as they lie in one folder after unpacking what visualqa.org offers
    "train2014": ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"),
    "val2014": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
    "test2015": ("v2_OpenEnded_mscoco_test2015_questions.json", None),
    "test-dev2015": ("v2_OpenEnded_mscoco_test-dev2015_questions.json", None),
}
OTHER_FILES = (  # lie beside them and must not be mistaken for them
    "v2_mscoco_train2014_complementary_pairs.json",
    "v2_mscoco_val2014_complementary_pairs.json",
    "v2_OpenEnded_mscoco_train2014_results.json",
    "MultipleChoice_mscoco_train2014_questions.json",  # VQA v1
)


def question(question_id, image_id=17, text="What is this?"):
    """A record of the questions file."""
    return {"image_id": image_id, "question": text, "question_id": question_id}


def annotation(question_id, image_id=17, answers=("net",) * 10, **fields):
    """A record of the annotations file."""
    records = [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)]
    return {"question_id": question_id, "image_id": image_id, "answers": records, **fields}


def write_files(folder, questions, annotations, **header):
    """Write both files; returns their paths."""
    paths = folder / "questions.json", folder / "annotations.json"
    paths[0].write_text(json.dumps({**header, "questions": questions}))
    paths[1].write_text(json.dumps({**header, "annotations": annotations}))
    return paths


def test_rows_are_what_the_files_say(tmp_path):
    asked = [question(171, text="Is it a nét?"), question(42, image_id=4)]
    said = [
        annotation(42, image_id=4, answers=("yes", "no"), question_type="is it", answer_type="yes/no"),
        annotation(171, answers=("nét",), question_type="what", answer_type="other"),
    ]
    assert load_vqa(*write_files(tmp_path, asked, said)).to_list() == [
        {
            "question_id": 171,
            "image_id": 17,
            "question": "Is it a nét?",
            "answers": ["nét"],
            "question_type": "what",
            "answer_type": "other",
        },
        {
            "question_id": 42,
            "image_id": 4,
            "question": "What is this?",
            "answers": ["yes", "no"],
            "question_type": "is it",
            "answer_type": "yes/no",
        },
    ]


def test_without_annotations_the_answers_are_none(tmp_path):
    questions_file, _ = write_files(tmp_path, [question(1), question(2)], [])
    rows = load_vqa(questions_file)
    assert rows["question_id"][:] == [1, 2]
    for column in ("answers", "question_type", "answer_type"):
        assert rows[column][:] == [None, None]


def test_real_sample():
    folder = shared("real/vqa_v2")
    rows = load_vqa(folder / "train2014_sample_questions.json", folder / "train2014_sample_annotations.json")
    raw = json.loads((folder / "train2014_sample_annotations.json").read_text("utf-8"))["annotations"]
    answers_of = {record["question_id"]: [a["answer"] for a in record["answers"]] for record in raw}
    assert len(rows) == len(answers_of) == 689
    assert {len(answers) for answers in rows["answers"]} == {10}
    assert dict(zip(rows["question_id"], rows["answers"], strict=True)) == answers_of
    assert sum(Counter(rows["answer_type"]).values()) == 689
    assert set(rows["answer_type"]) == {"yes/no", "number", "other"}
    known_types = set((folder / "mscoco_question_types.txt").read_text().splitlines())
    assert set(rows["question_type"]) <= known_types | {"none of the above"}


def test_real_annotations_without_types_and_image_ids():
    folder = shared("real/vqa_v2")
    rows = load_vqa(folder / "fixture_3q_questions.json", folder / "fixture_3q_annotations.json")
    asked = json.loads((folder / "fixture_3q_questions.json").read_text("utf-8"))["questions"]
    assert rows["question"][:] == [record["question"] for record in asked]
    assert rows["image_id"][:] == [record["image_id"] for record in asked]
    assert [len(answers) for answers in rows["answers"]] == [10, 10, 10]
    assert rows["question_type"][:] == rows["answer_type"][:] == [None] * 3


@pytest.mark.parametrize("which", [0, 1], ids=["questions", "annotations"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n "questions": [\n  {"image_id": }]}', r"malformed JSON at line 3, column 16"),
        (b"", r"malformed JSON at line 1, column 1"),
        (b'{"questions": ["caf\xe9"]}', r"not UTF-8 text at byte 19"),
        (b'{"info": 1}', r"key '(questions|annotations)' is missing"),
        (b"[]", r"key '(questions|annotations)' is missing"),
    ],
    ids=["malformed", "empty", "latin-1", "no-list", "not-a-record"],
)
def test_a_file_of_the_wrong_kind_is_named(tmp_path, which, content, message):
    paths = write_files(tmp_path, [question(1)], [annotation(1)])
    paths[which].write_bytes(content)
    with pytest.raises(ValueError, match=rf"{paths[which].name}: {message}"):
        load_vqa(*paths)


@pytest.mark.parametrize("which", [0, 1], ids=["questions", "annotations"])
def test_a_missing_file_is_named(tmp_path, which):
    paths = write_files(tmp_path, [question(1)], [annotation(1)])
    paths[which].unlink()
    with pytest.raises(FileNotFoundError, match=rf"{paths[which]}: no such file"):
        load_vqa(*paths)


@pytest.mark.parametrize(
    ("which", "key"),
    [(0, "question_id"), (0, "image_id"), (0, "question"), (1, "question_id"), (1, "answers")],
)
def test_a_missing_key_is_named_with_its_record(tmp_path, which, key):
    records = [question(1), question(2)], [annotation(1), annotation(2)]
    del records[which][1][key]
    paths = write_files(tmp_path, *records)
    kind = ("question", "annotation")[which]
    with pytest.raises(ValueError, match=rf"{paths[which].name}: {kind} 1: key '{key}' is missing; expected a record"):
        load_vqa(*paths)


def test_an_annotator_without_an_answer_is_named(tmp_path):
    said = annotation(1)
    del said["answers"][4]["answer"]
    paths = write_files(tmp_path, [question(1)], [said])
    with pytest.raises(ValueError, match=r"annotations.json: annotation 0: key 'answer' is missing"):
        load_vqa(*paths)


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        (
            [question(5), question(6), question(5)],
            [annotation(5), annotation(6)],
            r"questions.json: question 2: question id 5 occurs twice; expected it only once",
        ),
        (
            [question(5), question(6)],
            [annotation(6)],
            r"questions.json: question 0: question id 5 has no annotation in .*annotations.json",
        ),
        (
            [question(5)],
            [annotation(5), annotation(8), annotation(7)],
            r"annotations.json: annotation 1: question id 8 has no question in .*questions.json",
        ),
        (
            [question(5)],
            [annotation(5), annotation(5)],
            r"annotations.json: annotation 1: question id 5 occurs twice; expected it only once",
        ),
        (
            [question(4), question(5, image_id=17)],
            [annotation(4), annotation(5, image_id=18)],
            r"questions.json: question 1: image 17, but the annotation says image 18",
        ),
        (
            [question(5)],
            [annotation(5, answers=())],
            r"annotations.json: annotation 0: 'answers' is empty; expected those of ten annotators",
        ),
        (
            [question(4), question(5, text=" ?, ")],
            [annotation(4), annotation(5)],
            r"questions.json: question 1: question id 5 is empty \(' \?, '\); expected at least one word",
        ),
    ],
    ids=["question-twice", "no-annotation", "no-question", "annotation-twice", "images-differ", "no-answers", "empty"],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, questions, annotations, message):
    with pytest.raises(ValueError, match=message):
        load_vqa(*write_files(tmp_path, questions, annotations))


def test_a_question_that_is_no_record_is_named(tmp_path):
    questions_file, _ = write_files(tmp_path, [question(1), "What?"], [])
    with pytest.raises(ValueError, match=r"questions.json: question 1: key 'question_id' is missing"):
        load_vqa(questions_file)


@pytest.mark.parametrize(
    ("which", "key", "value"),
    [
        (0, "question_id", "5x"),
        (0, "image_id", None),
        (0, "question", ["What?"]),
        (0, "question", None),
        (1, "question_id", [5]),
        (1, "answers", [{"answer": None}]),
    ],
)
def test_a_value_of_the_wrong_type_is_named(tmp_path, which, key, value):
    records = [question(1), question(5)], [annotation(1), annotation(5)]
    records[which][1][key] = value
    paths = write_files(tmp_path, *records)
    with pytest.raises(
        ValueError, match=rf"{paths[which].name}: (question|annotation) 1: .*{key.rstrip('s')}.*expected"
    ):
        load_vqa(*paths[: which + 1])


@pytest.mark.parametrize(("which", "name"), [(0, "questions"), (1, "annotations")])
def test_a_list_that_is_none_is_named(tmp_path, which, name):
    paths = write_files(tmp_path, [question(1)], [annotation(1)])
    paths[which].write_text(json.dumps({name: None}))
    with pytest.raises(ValueError, match=rf"{paths[which].name}: '{name}'.*expected"):
        load_vqa(*paths)


def test_a_partial_official_split_is_noted(tmp_path, caplog):
    paths = write_files(tmp_path, [question(1)], [annotation(1)], data_subtype="train2014")
    with caplog.at_level(logging.WARNING):
        load_vqa(*paths)
    assert "questions.json: 1 questions; the full train2014 has 443757" in caplog.text
    assert EXPECTED_QUESTIONS["val2014"] == 214_354


@pytest.mark.parametrize("split", OFFICIAL_FILES)
@pytest.mark.parametrize("layout", ["one folder", "folder per split"])
def test_official_files_of_all_splits_are_told_apart(tmp_path, split, layout):
    for name, pair in OFFICIAL_FILES.items():
        folder = tmp_path / name if layout == "folder per split" else tmp_path
        folder.mkdir(exist_ok=True)
        for file in filter(None, pair):
            (folder / file).write_text("{}")
    for file in OTHER_FILES:
        (tmp_path / file).write_text("{}")
    found = find_vqa_files(tmp_path, split)
    questions_name, annotations_name = OFFICIAL_FILES[split]
    assert found.questions.name == questions_name
    assert (found.annotations and found.annotations.name) == annotations_name


@pytest.mark.parametrize(("split", "full"), [("train", "train2014"), ("val", "val2014"), ("test", "test2015")])
def test_a_short_split_name_finds_its_year(tmp_path, split, full):
    for pair in OFFICIAL_FILES.values():
        for file in filter(None, pair):
            (tmp_path / file).write_text("{}")
    assert find_vqa_files(tmp_path, split).questions.name == OFFICIAL_FILES[full][0]


def test_annotations_of_another_split_are_not_taken_for_test(tmp_path):
    for split in ("train2014", "test2015"):
        for file in filter(None, OFFICIAL_FILES[split]):
            (tmp_path / file).write_text("{}")
    assert find_vqa_files(tmp_path, "test2015").annotations is None


def test_two_candidate_files_are_refused_by_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / OFFICIAL_FILES["val2014"][0]).write_text("{}")
    with pytest.raises(
        ValueError, match=r"2 files could be the questions file of split 'val2014': a/v2_OpenEnded_.*, b/v2_OpenEnded_"
    ):
        find_vqa_files(tmp_path, "val2014")


def test_a_split_without_questions_says_what_was_looked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no questions file of split 'val2014'; expected a file like \*\*/\*Open"
    ):
        find_vqa_files(tmp_path, "val2014")


def test_patterns_are_tried_in_order(tmp_path):
    for name in ("a_2.json", "b_1.json", "b_2.json"):
        (tmp_path / name).touch()
    assert find_one(tmp_path, ("c_*.json", "a_*.json", "b_*.json"), "list").name == "a_2.json"
    with pytest.raises(ValueError, match=r"2 files could be the list: b_1.json, b_2.json"):
        find_one(tmp_path, ("c_*.json", "b_*.json"), "list")


def test_images_are_found_by_the_number_in_their_name(tmp_path):
    names = {
        "train2014/COCO_train2014_000000000042.jpg": 42,
        "val2014/COCO_val2014_000000458752.JPG": 458752,
        "17.png": 17,
        "shapes_test_000002000001.jpeg": 2000001,
    }
    for name in [*names, "notes_7.txt", "cover.jpg", "COCO_train2014_000000000099.json"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert index_images(tmp_path) == {number: tmp_path / name for name, number in names.items()}


def test_two_images_with_one_number_are_refused(tmp_path):
    for name in ("COCO_train2014_000000000042.jpg", "42.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"image id 42 occurs twice: 42.png and COCO_train2014_000000000042.jpg"):
        index_images(tmp_path)


def test_a_missing_image_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such image folder"):
        index_images(tmp_path / "nowhere")


def test_require_returns_what_is_there(tmp_path):
    (tmp_path / "a.json").write_text('{"key": null}')
    assert require(read_json(tmp_path / "a.json"), "key", "a.json") is None


def test_published_answers_are_those_of_the_checkpoints():
    answers = pythia_answers()
    assert len(answers) == len(set(answers)) == 3129
    assert answers[0] == "<unk>"
    assert list(answers[1:]) == sorted(answers[1:])
    indices = {"yes": 3117, "no": 1840, "2": 95, "red": 2261}
    assert {answer: answers.index(answer) for answer in indices} == indices


def test_packaged_answer_file_is_the_published_one():
    packaged = (files("modeling_visualbert") / "assets" / "pythia_answers_vqa.txt").read_bytes()
    assert hashlib.md5(packaged).hexdigest() == "971cad957919ff2cf1f5f1c70bef4d90"


def test_published_answers_are_the_real_file_and_lxmert_s_set():
    folder = shared("real/vqa_v2")
    assert "\n".join(pythia_answers()) + "\n" == (folder / "pythia_answers_vqa.txt").read_text("utf-8")
    lxmert = json.loads((folder / "lxmert_trainval_label2ans.json").read_text("utf-8"))
    assert set(lxmert) - {""} == set(pythia_answers()) - {"<unk>"}


def test_vocabulary_counts_the_most_common_answer_of_each_question():
    answers = [
        ["red"] * 6 + ["blue"] * 4,
        ["The red!", "red", "blue"],  # normalised, then most common
        ["two", "2", "blue"],
        ["2"],
        ["blue"],  # once only: blue is never most common elsewhere
        ["the"],  # normalises to nothing
        ["a", "an"],
        ["b", "c"],  # of equally common ones the first
        ["b"],
    ]
    assert build_answer_vocabulary(answers, min_count=2) == ["<unk>", "2", "b", "red"]
    assert build_answer_vocabulary(answers, min_count=1) == ["<unk>", "2", "b", "blue", "red"]
    assert build_answer_vocabulary(answers) == ["<unk>"]


def counted_one_by_one(answers):
    """How many questions have each normalised answer as their most common one."""
    return Counter(Counter(map(normalise_answer, given)).most_common(1)[0][0] for given in answers)


@pytest.mark.parametrize("seed", range(5))
def test_answers_are_counted_as_one_by_one(monkeypatch, seed):
    monkeypatch.setattr(given_answers, "_BLOCK", 7)  # a number that does not divide the questions
    draw = random.Random(seed)
    texts = ["A dog", "dog", "two", "2", "the cat.", "cat", "", "né", "1,000", "1000"]
    answers = [draw.choices(texts, k=draw.randint(1, 10)) for _ in range(100)]
    column = pa.chunked_array([answers[:30], answers[30:31], answers[31:]], pa.list_(pa.string()))
    given, counts = GivenAnswers(column), counted_one_by_one(answers)
    for least in (1, 5, 20):
        expected = sorted(answer for answer, count in counts.items() if count >= least and answer)
        assert given.vocabulary(least) == ["<unk>", *expected]
    known = {"dog", "1000"}
    assert given.count_covered(known) == sum(bool(known & set(map(normalise_answer, a))) for a in answers)
    assert GivenAnswers(column.slice(10, 50)).vocabulary(3) == [
        "<unk>",
        *sorted(answer for answer, count in counted_one_by_one(answers[10:60]).items() if count >= 3 and answer),
    ]


def test_questions_without_answers_are_not_covered():
    given = GivenAnswers(pa.chunked_array([[["dog"], None, ["cat", "dog"]], [None]], pa.list_(pa.string())))
    assert given.count_covered(["dog"]) == 2
    assert given.vocabulary(1) == ["<unk>", "cat", "dog"]


def test_many_answers_are_normalised_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path))
    column = pa.chunked_array([[[f"The {number} dogs!" * 20] for number in range(6000)]], pa.list_(pa.string()))
    first = GivenAnswers(column).vocabulary(1)
    assert len(first) == 6001 and "the" not in first[1].split()
    monkeypatch.setattr(given_answers, "normalise_answer", None)
    assert GivenAnswers(column).vocabulary(1) == first


def test_no_question_has_the_columns(tmp_path):
    (tmp_path / "questions.json").write_text(json.dumps({"questions": []}))
    assert load_vqa(tmp_path / "questions.json").features == FEATURES
