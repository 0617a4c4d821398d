"""VCR: real records, which objects are kept, and every way in which a line or its metadata can be wrong."""

import json
import logging
from pathlib import Path

import pytest
from helpers import shared

from modeling_visualbert.data import vcr
from modeling_visualbert.data.vcr import EXPECTED_QUESTIONS, load_vcr, objects_to_keep, read_metadata

NAMES = ["dog", "person", "car", "person"]
SQUARE = [[10, 10], [20, 10], [20, 20.5]]


def record(annot_id="val-0", **fields):
    """A line whose texts mention the car (2) and the last person (3)."""
    return {
        "annot_id": annot_id,
        "img_fn": "movie/1.jpg",
        "metadata_fn": "movie/1.json",
        "objects": NAMES,
        "question": ["Is", [3], "late", "?"],
        "answer_choices": [["Yes", "."], [[3, 2], "are", "."], ["No", "."], ["Maybe", "."]],
        "rationale_choices": [["A", "."], ["B", "."], [[2], "runs", "."], ["D", "."]],
        "answer_label": 1,
        "rationale_label": 0,
    } | fields


def metadata(**fields):
    """The metadata of `record`."""
    boxes = [[10 * i, 5, 10 * i + 30.5, 40, 0.9] for i in range(len(NAMES))]
    return {"names": NAMES, "boxes": boxes, "segms": [[SQUARE]] * len(NAMES), "width": 100, "height": 50} | fields


def write(folder, *records, **files):
    """Lines, and the metadata beside them; returns both paths."""
    images = folder / "vcr1images"
    (images / "movie").mkdir(parents=True, exist_ok=True)
    for name, content in ({"1": metadata()} | files).items():
        (images / "movie" / f"{name}.json").write_text(json.dumps(content))
    path = folder / "val.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in records))
    return path, images


def test_a_real_record_with_its_metadata(caplog):
    folder = shared("real/vcr")
    with caplog.at_level(logging.WARNING):
        row = load_vcr(folder / "val_sample.jsonl", folder / "vcr1images")[0]
    assert "val_sample.jsonl: 1 questions; the full val has 26534" in caplog.text
    raw = json.loads((folder / "val_sample.jsonl").read_text())
    content = json.loads((folder / "vcr1images" / raw["metadata_fn"]).read_text())
    assert (row["annot_id"], row["answer_label"], row["rationale_label"]) == ("val-1", 2, 3)
    assert (row["image"], row["metadata"]) == (raw["img_fn"], raw["metadata_fn"])
    assert row["question"] == ["Does", "[0]", "live", "in", "this", "house", "?"]
    assert row["rationale_choices"][1][:5] == ["[2]", "sits", "comfortably", "in", "a"]
    assert (row["objects"], row["object_ids"]) == (["person"] * 3, [0, 1, 2])
    assert row["boxes"] == [box[:4] for box in content["boxes"][:3]]
    assert (row["width"], row["height"]) == (1920, 797)


def test_a_real_record_without_metadata():
    row = load_vcr(shared("real/vcr/train_sample.jsonl"))[0]
    assert (row["annot_id"], row["answer_label"], row["rationale_label"]) == ("train-0", 1, 1)
    assert (row["objects"], row["object_ids"]) == (["person"], [2])  # of three people and a car only [2] is mentioned
    assert row["question"] == ["Does", "[0]", "feel", "comfortable", "?"]
    assert row["rationale_choices"][3][0] == "[0]"
    assert row["boxes"] is row["width"] is row["height"] is None


def test_real_metadata():
    folder = shared("real/vcr")
    raw = json.loads((folder / "val_sample.jsonl").read_text())
    path = folder / "vcr1images" / raw["metadata_fn"]
    content, found = json.loads(path.read_text()), read_metadata(path)
    assert (found.names, found.segms) == (content["names"], content["segms"])
    assert [[*box, score] for box, score in zip(found.boxes, found.scores, strict=True)] == content["boxes"]
    assert (found.width, found.height) == (1920, 797)


def test_rows_count_their_own_objects(tmp_path):
    row = load_vcr(*write(tmp_path, record()))[0]
    assert (row["objects"], row["object_ids"]) == (["car", "person"], [2, 3])
    assert row["question"] == ["Is", "[1]", "late", "?"]
    assert row["answer_choices"] == [["Yes", "."], ["[1,0]", "are", "."], ["No", "."], ["Maybe", "."]]
    assert row["rationale_choices"] == [["A", "."], ["B", "."], ["[0]", "runs", "."], ["D", "."]]
    assert row["boxes"] == [[20, 5, 50.5, 40], [30, 5, 60.5, 40]]


def test_all_objects(tmp_path):
    row = load_vcr(*write(tmp_path, record()), objects="all")[0]
    assert (row["objects"], row["object_ids"]) == (NAMES, [0, 1, 2, 3])
    assert row["answer_choices"][1] == ["[3,2]", "are", "."]
    assert len(row["boxes"]) == 4


@pytest.mark.parametrize(
    ("names", "texts", "kept"),
    [
        (NAMES, [["a", [2]], [[0, 2], "b"]], [0, 2]),
        (NAMES, [["a"], ["b"]], [1, 3]),
        (["dog", "car"], [["a"], ["b"]], [0, 1]),
        (NAMES, [[[0]], ["Is", "everyone", "here"]], [0, 1, 3]),
        (NAMES, [[[0]], ["EveryOnes", "hats"]], [0, 1, 3]),
        (NAMES, [[[0]], ["everyone's", "people", "person"]], [0]),
        (["dog", "car"], [[[1]], ["everyone"]], [1]),
        ([], [["a"]], []),
    ],
    ids=["mentioned", "nobody", "no-people", "everyone", "everyones", "other-words", "everyone-of-none", "no-objects"],
)
def test_objects_that_are_kept(names, texts, kept):
    assert objects_to_keep(names, texts) == kept


@pytest.mark.parametrize("key", ["question", "answer_choices", "rationale_choices"])
def test_every_text_counts_for_the_objects(tmp_path, key):
    quiet = {"question": ["A"], "answer_choices": [["A"]] * 4, "rationale_choices": [["A"]] * 4}
    said = ["Everyone"] if key == "question" else [["A"], ["A"], ["A"], [[0]]]
    row = load_vcr(write(tmp_path, record(**quiet | {key: said}))[0])[0]
    assert row["object_ids"] == ([1, 3] if key == "question" else [0])


def test_a_test_split_has_no_labels(tmp_path):
    line = record("test-0")
    del line["answer_label"], line["rationale_label"]
    row = load_vcr(*write(tmp_path, line))[0]
    assert row["answer_label"] is row["rationale_label"] is None
    assert len(row["rationale_choices"]) == 4
    del line["rationale_choices"]
    assert load_vcr(*write(tmp_path, line))[0]["rationale_choices"] is None


@pytest.mark.parametrize("label", ["answer_label", "rationale_label"])
def test_a_line_without_a_label_among_others_is_named_or_left_out(tmp_path, label):
    paths = write(tmp_path, record("val-0"), record("val-1", **{label: None}), record("val-2"))
    message = f"val.jsonl: line 2: annot_id 'val-1' has no '{label}', but others have; expected all or none"
    with pytest.raises(ValueError, match=message):
        load_vcr(*paths)
    skipped = []
    assert load_vcr(*paths, skipped=skipped)["annot_id"][:] == ["val-0", "val-2"]
    assert skipped == [f"{tmp_path}/{message}"]


def test_an_empty_file_has_the_columns(tmp_path):
    assert load_vcr(*write(tmp_path)).column_names == list(vcr.FEATURES)


def test_questions_of_one_image_read_its_metadata_once(tmp_path, monkeypatch):
    lines = [record(f"val-{i}", metadata_fn=f"movie/{i % 2 + 1}.json") for i in range(6)]
    read = []
    real = vcr.read_metadata
    monkeypatch.setattr(vcr, "read_metadata", lambda path: read.append(Path(path).name) or real(path))
    rows = load_vcr(*write(tmp_path, *lines, **{"2": metadata(width=200)}))
    assert read == ["1.json", "2.json"]
    assert rows["width"][:] == [100, 200] * 3


def test_official_sizes_are_checked(tmp_path, caplog):
    assert EXPECTED_QUESTIONS == {"train": 212_923, "val": 26_534, "test": 25_263}
    with caplog.at_level(logging.WARNING):
        load_vcr(*write(tmp_path, record("test-0"), record("test-1")))
    assert "val.jsonl: 2 questions; the full test has 25263" in caplog.text


TAG = "expected indices from 0"
FOUR = [["A"]] * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": ["Is", [4], "?"]}, rf"'question': tag \[4\] is outside the 4 objects; {TAG}"),
        ({"question": ["Is", [1, -1], "?"]}, rf"'question': tag \[1, -1\] is outside the 4 objects; {TAG}"),
        ({"answer_choices": [["A"], ["A"], [["1"]], ["A"]]}, rf"answer 2: tag \['1'\] is outside .*; {TAG}"),
        ({"rationale_choices": [["A"], ["A"], ["A"], [[True]]]}, rf"rationale 3: tag \[True\] is outside .*; {TAG}"),
        ({"question": ["Is", [], "?"]}, "'question': a tag is empty; expected indices of objects"),
        ({"question": ["Is", "[1]", "?"]}, r"'question': the word '\[1\]' looks like a tag; expected a list"),
        ({"answer_choices": [["[0,12]"], *FOUR[1:]]}, r"answer 0: the word '\[0,12\]' looks like a tag"),
        ({"question": ["Is", 1, "?"]}, "'question': 1; expected a word or a list of objects"),
        ({"question": ["Is", "\ud800"]}, r"'question': '\\ud800'; expected a word or a list of objects"),
        ({"question": "Is it?"}, "'question' is 'Is it.'; expected a list of words and tags"),
        ({"question": []}, r"'question' is \[\]; expected a list of words and tags"),
        ({"question": ["", " "]}, r"'question' is empty \(\['', ' '\]\); expected a list of words and tags"),
        ({"answer_choices": FOUR[:3]}, "3 'answer_choices'; expected 4"),
        ({"answer_choices": None}, "key 'answer_choices' is missing; expected 4 answers"),
        ({"rationale_choices": [*FOUR, ["A"]]}, "5 'rationale_choices'; expected 4"),
        ({"answer_label": 4}, "'answer_label' is 4; expected 0 to 3"),
        ({"rationale_label": -1}, "'rationale_label' is -1; expected 0 to 3"),
        ({"answer_label": "1"}, "'answer_label' is '1'; expected a 64-bit int"),
        ({"answer_label": True}, "'answer_label' is True; expected a 64-bit int"),
        ({"rationale_choices": None}, "'rationale_label' is 0, but there are no choices; expected 'rationale_choices'"),
        ({"annot_id": "val-0"}, "annot_id 'val-0' occurs twice; expected it only once"),
        ({"annot_id": 1}, "'annot_id' is 1; expected str"),
        ({"objects": ["dog", 1, "car", "person"]}, "name 1; expected the class of an object"),
        ({"objects": None}, "'objects' is None; expected list"),
        ({"metadata_fn": "movie/9.json"}, "/vcr1images/movie/9.json: no such file"),
        ({"metadata_fn": "movie/2.json"}, "/movie/2.json: 'width' is 0; expected a positive number of pixels"),
        (
            {"objects": ["cat", *NAMES[1:]]},
            r"'objects' are \['cat', .*, but 'names' in .*/movie/1.json are \['dog', .*; expected the same",
        ),
        ({"metadata_fn": "../../secret.json"}, "'metadata_fn' is '../../secret.json'; expected a relative path"),
        ({"img_fn": "movie/../../1.jpg"}, "'img_fn' is 'movie/../../1.jpg'; expected a relative path without"),
        ({"img_fn": "/etc/hostname"}, "'img_fn' is '/etc/hostname'; expected a relative path"),
        ({"img_fn": "C:\\1.jpg"}, "'img_fn' is .*; expected a relative path"),
        ({"img_fn": "movie\\..\\..\\1.jpg"}, "'img_fn' is .*; expected a relative path"),
        ({"img_fn": ""}, "'img_fn' is ''; expected a relative path"),
        ({"img_fn": "a\0.jpg"}, "'img_fn' is .*; expected a relative path"),
    ],
)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path, fields, message):
    bad = record("val-1") | fields
    paths = write(tmp_path, record("val-0"), bad, record("val-2"), **{"2": metadata(width=0)})
    kind = FileNotFoundError if "no such file" in message else ValueError
    with pytest.raises(kind, match=rf"val.jsonl: line 2: .*{message}"):
        load_vcr(*paths)
    skipped = []
    assert load_vcr(*paths, skipped=skipped)["annot_id"][:] == ["val-0", "val-2"]
    assert len(skipped) == 1
    assert skipped[0].startswith(f"{paths[0]}: line 2: ")


@pytest.mark.parametrize("key", ["annot_id", "img_fn", "metadata_fn", "objects", "question", "answer_choices"])
def test_a_missing_key_is_named(tmp_path, key):
    line = record()
    del line[key]
    with pytest.raises(ValueError, match=f"val.jsonl: line 1: key '{key}' is missing"):
        load_vcr(*write(tmp_path, line))


@pytest.mark.parametrize("line", ["[]", '"val-1"', "null", "{", "[" * 99_999, '{"annot_id": ' + "1" * 5000 + "}", ""])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path, _ = write(tmp_path, record("val-0"), record("val-1"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[1]]) + "\n")
    with pytest.raises(ValueError, match="val.jsonl: line 2: (malformed JSON|key 'objects' is missing)"):
        load_vcr(path)
    skipped = []
    assert load_vcr(path, skipped=skipped)["annot_id"][:] == ["val-0", "val-1"]
    assert len(skipped) == 1


@pytest.mark.parametrize(
    "box",
    [
        *([99, 2, 110, 4], [1, 49, 3, 60], [-9, 2, 1, 4], [1, -9, 3, 1]),  # a pixel of it is inside
        *([-100, 2, 3, 4], [1, -50, 3, 4], [1, 2, 200, 4], [1, 2, 3, 100]),  # as far outside as it may be
        *([5, 2, 5, 4], [1, 4, 3, 4]),  # without width, without height
    ],
)
def test_boxes_at_the_limits(tmp_path, box):
    paths = write(tmp_path, record(), **{"1": metadata(boxes=boxes([*box, 0.5]))})
    assert load_vcr(*paths)[0]["boxes"][0] == box


@pytest.mark.parametrize("box", [[-101, 2, 3, 4], [1, -51, 3, 4], [1, 2, 201, 4], [1, 2, 3, 101]])
def test_boxes_beyond_the_limits(tmp_path, box):
    paths = write(tmp_path, record(), **{"1": metadata(boxes=boxes([*box, 0.5]))})
    with pytest.raises(ValueError, match="object 2: box .* is far outside the image; expected it within 100 x 50"):
        load_vcr(*paths)


@pytest.mark.parametrize("side", ["width", "height"])
def test_sizes_at_the_limits(tmp_path, side):
    for size in (1, 2**31 - 1):
        corner = {"width": [0, 0, 1, 5], "height": [0, 0, 5, 1]}[side] if size == 1 else [1, 2, 3, 4]
        content = metadata(**{side: size, "boxes": [[*corner, 0.5]] * len(NAMES)})
        assert load_vcr(*write(tmp_path, record(), **{"1": content}))[0][side] == size
    for size in (0, -1, 2**31):
        with pytest.raises(ValueError, match=f"'{side}' is {size}; expected a positive number of pixels"):
            load_vcr(*write(tmp_path, record(), **{"1": metadata(**{side: size})}))


def boxes(box):
    """Boxes of four objects, the third of which is the given one."""
    good = metadata()["boxes"]
    return [good[0], good[1], box, good[3]]


def segms(polygons):
    """Polygons of four objects, the third of which has the given ones."""
    return [[SQUARE], [SQUARE], polygons, [SQUARE]]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"boxes": boxes([1, 2, 3, 4])}, r"object 2: box \[1, 2, 3, 4\]; expected five finite numbers"),
        ({"boxes": boxes([1, 2, NAN, 4, 0.5])}, "object 2: box .*; expected five finite numbers"),
        ({"boxes": boxes([1, 2, INF, 4, 0.5])}, "object 2: box .*; expected five finite numbers"),
        ({"boxes": boxes([1, 2, 3, 4, NAN])}, "object 2: box .*; expected five finite numbers"),
        ({"boxes": boxes([1, 2, "3", 4, 0.5])}, "object 2: box .*; expected five finite numbers"),
        ({"boxes": boxes([1, 2, True, 4, 0.5])}, "object 2: box .*; expected five finite numbers"),
        ({"boxes": boxes([1, 2, 10**400, 4, 0.5])}, "object 2: box .*; expected five finite numbers"),
        ({"boxes": boxes(None)}, "object 2: box None; expected five finite numbers"),
        ({"boxes": boxes([3, 2, 1, 4, 0.5])}, r"object 2: box \[3, 2, 1, 4\] is inverted; expected x1 <= x2"),
        ({"boxes": boxes([1, 4, 3, 2, 0.5])}, "object 2: box .* is inverted; expected x1 <= x2 and y1 <= y2"),
        ({"boxes": boxes([100, 2, 110, 4, 0.5])}, "object 2: box .* is outside the image; expected it within 100 x 50"),
        ({"boxes": boxes([1, 50, 3, 60, 0.5])}, "object 2: box .* is outside the image"),
        ({"boxes": boxes([-9, 2, -1, 4, 0.5])}, "object 2: box .* is outside the image"),
        ({"boxes": boxes([1, -9, 3, -1, 0.5])}, "object 2: box .* is outside the image"),
        (
            {"boxes": boxes([1, 2, 1e30, 4, 0.5])},
            "object 2: box .* is far outside the image; expected it within 100 x 50",
        ),
        ({"boxes": boxes([1, -51, 3, 4, 0.5])}, "object 2: box .* is far outside the image"),
        ({"segms": segms([])}, "object 2: polygon is empty; expected one with at least three points"),
        ({"segms": segms([[]])}, "object 2: polygon is empty"),
        ({"segms": segms([[[1, 1], [2, 2]]])}, "object 2: polygon is empty"),
        ({"segms": segms([[*SQUARE, [1]]])}, r"object 2: polygon with point \[1\]; expected two finite numbers"),
        ({"segms": segms([[*SQUARE, [1, NAN]]])}, r"object 2: polygon with point \[1, nan\]; expected two finite"),
        ({"segms": segms([[*SQUARE, 5]])}, "object 2: polygon with point 5; expected two finite"),
        ({"segms": segms(None)}, "object 2: polygons None; expected a list of lists of points"),
        ({"segms": segms([5])}, r"object 2: polygons \[5\]; expected a list of lists of points"),
        ({"names": ["dog", "person", None, "person"]}, "object 2: name None; expected the class of an object"),
        ({"names": NAMES[:3]}, "3 names, 4 boxes and 4 segms; expected one each"),
        ({"boxes": []}, "4 names, 0 boxes and 4 segms; expected one each"),
        ({"segms": [[SQUARE]] * 5}, "4 names, 4 boxes and 5 segms; expected one each"),
        ({"segms": {}}, "'segms' is {}; expected list"),
        ({"width": 0}, "'width' is 0; expected a positive number of pixels"),
        ({"height": -3}, "'height' is -3; expected a positive number of pixels"),
        ({"height": 2**31}, "'height' is 2147483648; expected a positive number of pixels"),
        ({"width": 99.5}, "'width' is 99.5; expected a 64-bit int"),
    ],
)
def test_bad_metadata_is_named(tmp_path, fields, message):
    _, images = write(tmp_path, **{"1": metadata(**fields)})
    with pytest.raises(ValueError, match=rf"movie/1.json: {message}"):
        read_metadata(images / "movie" / "1.json")


@pytest.mark.parametrize("key", ["names", "boxes", "segms", "width", "height"])
def test_a_missing_key_of_the_metadata_is_named(tmp_path, key):
    content = metadata()
    del content[key]
    _, images = write(tmp_path, **{"1": content})
    with pytest.raises(ValueError, match=f"movie/1.json: key '{key}' is missing"):
        read_metadata(images / "movie" / "1.json")


def test_slack_and_specks_are_kept_as_they_are(tmp_path):
    box, polygons = [-2.5, 3, 104, 51, 0.5], [[[1, 1]], SQUARE]
    _, images = write(tmp_path, **{"1": metadata(boxes=boxes(box), segms=segms(polygons))})
    found = read_metadata(images / "movie" / "1.json")
    assert found.boxes[2] == box[:4]
    assert found.scores[2] == 0.5
    assert found.segms[2] == polygons


def test_what_is_wrong_with_the_whole_is_raised_even_when_skipping(tmp_path):
    path, images = write(tmp_path, record())
    with pytest.raises(ValueError, match="objects 'some'; expected 'mentioned' or 'all'"):
        load_vcr(path, images, objects="some", skipped=[])
    with pytest.raises(FileNotFoundError, match="nowhere: no such image folder; expected vcr1images"):
        load_vcr(path, tmp_path / "nowhere", skipped=[])
    with pytest.raises(FileNotFoundError, match="train.jsonl: no such file"):
        load_vcr(tmp_path / "train.jsonl", images, skipped=[])
