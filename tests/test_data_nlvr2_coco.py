"""Loaders of NLVR2 and of COCO captions: real files, and every kind of broken one."""

import json
import logging

import pytest
from helpers import shared

from modeling_visualbert.data.coco import EXPECTED_CAPTIONS, EXPECTED_IMAGES, load_coco_captions
from modeling_visualbert.data.nlvr2 import EXPECTED_EXAMPLES, FEATURES, find_nlvr2_file, image_names, load_nlvr2

EXAMPLE = {"identifier": "dev-1-0-0", "sentence": "Two dogs.", "label": "True"}


def lines(tmp_path, *records):
    path = tmp_path / "dev.json"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_real_nlvr2(caplog):
    with caplog.at_level(logging.WARNING):
        rows = load_nlvr2(shared("real/nlvr2/dev_first400.jsonl"))
    assert len(rows) == 400
    assert set(rows["label"]) == {0, 1}
    assert "400 examples; the full dev has 6982" in caplog.text
    few = load_nlvr2(shared("real/nlvr2/dev_850.jsonl"))
    assert len(few) == 8
    assert few[0]["label"] == 0
    assert few[0]["images"] == ["dev-850-0-img0", "dev-850-0-img1"]
    assert few[0]["sentence"].startswith("The right image shows a curving walkway")


def test_the_file_of_a_split_is_found_by_its_name(tmp_path):
    for name in ("dev.json", "test1.jsonl", "a/test2.json", "a/test2.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for split, name in (("dev", "dev.json"), ("test1", "test1.jsonl"), ("test2", "a/test2.json")):
        assert find_nlvr2_file(tmp_path, split) == tmp_path / name
    with pytest.raises(FileNotFoundError, match="no file of split 'train'; expected a file like"):
        find_nlvr2_file(tmp_path, "train")
    assert EXPECTED_EXAMPLES == {"train": 86_373, "dev": 6_982, "test1": 6_967, "test2": 6_970}


def test_no_example_has_the_columns(tmp_path):
    assert load_nlvr2(lines(tmp_path)).features == FEATURES


def test_a_split_without_labels(tmp_path):
    rows = load_nlvr2(lines(tmp_path, {"identifier": "test2-1-0-0", "sentence": "A."}))
    assert rows["label"][:] == [None]


def test_a_line_without_a_label_among_others_is_named_or_left_out(tmp_path):
    path = lines(
        tmp_path, EXAMPLE, {"identifier": "dev-2-0-0", "sentence": "A."}, {**EXAMPLE, "identifier": "dev-3-0-0"}
    )
    message = "dev.json: line 2: identifier 'dev-2-0-0' has no 'label', but others have; expected all or none"
    with pytest.raises(ValueError, match=message):
        load_nlvr2(path)
    skipped = []
    assert load_nlvr2(path, skipped=skipped)["identifier"][:] == ["dev-1-0-0", "dev-3-0-0"]
    assert skipped == [f"{path.parent}/{message}"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([EXAMPLE, EXAMPLE], "dev.json: line 2: identifier 'dev-1-0-0' occurs twice"),
        ([{**EXAMPLE, "label": "true"}], "dev.json: line 1: 'label' is 'true'; expected 'True' or 'False'"),
        ([{**EXAMPLE, "identifier": "dev-1-0"}], "line 1: identifier 'dev-1-0'; expected split-set-pair-sentence"),
        ([{"identifier": "dev-1-0-0"}], "line 1: key 'sentence' is missing"),
        ([{**EXAMPLE, "sentence": None}], "line 1: 'sentence' is None; expected str"),
        ([{**EXAMPLE, "sentence": "half a pair: \ud83d"}], "line 1: 'sentence' is 'half a pair: .*; expected str"),
        ([{**EXAMPLE, "label": ["True"]}], r"line 1: 'label' is \['True'\]; expected str"),
        ([{**EXAMPLE, "sentence": " \t"}], "line 1: the sentence of 'dev-1-0-0' is empty; expected at least one word"),
        (["dev-1-0-0"], "line 1: key 'identifier' is missing"),
    ],
    ids=["twice", "label", "identifier", "missing", "none", "half-pair", "label-list", "empty", "no-record"],
)
def test_broken_nlvr2_is_named(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        load_nlvr2(lines(tmp_path, *records))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', "line 1: key"),
        (b'{"identifier": "\xff"}', "line 1: not UTF-8"),
        (b"{", "line 1: malformed"),
    ],
)
def test_lines_that_are_no_json_are_named(tmp_path, content, message):
    (tmp_path / "dev.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_nlvr2(tmp_path / "dev.json")


def test_image_names():
    assert image_names("train-10171-0-1") == ["train-10171-0-img0", "train-10171-0-img1"]


@pytest.mark.parametrize(("name", "images", "captions"), [("train", 80, 400), ("val", 79, 395)])
def test_real_captions(name, images, captions):
    rows = load_coco_captions(shared(f"real/coco_captions/captions_{name}2017_mini.json"))
    assert len(rows) == images
    assert sum(map(len, rows["captions"])) == captions
    first = rows[0]
    fewer = load_coco_captions(shared(f"real/coco_captions/captions_{name}2017_mini.json"), exclude=[first["image_id"]])
    assert len(fewer) == images - 1
    assert first["image_id"] not in fewer["image_id"]


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([{"id": 1, "file_name": "1.jpg"}] * 2, [], "image 1: image id 1 occurs twice"),
        ([], [{"id": 5, "image_id": 1, "caption": "A."}], "caption 0: image 1 is not listed"),
        (
            [{"id": 1, "file_name": "1.jpg"}],
            [{"id": 5, "image_id": 1, "caption": " "}],
            "caption 0: the caption is empty",
        ),
        (
            [{"id": 1, "file_name": "1.jpg"}],
            [{"id": 5, "image_id": 1, "caption": "A."}] * 2,
            "caption 1: caption id 5 occurs twice",
        ),
        ([{"id": 1}], [], "image 0: key 'file_name' is missing"),
        ([{"id": 1, "file_name": "../1.jpg"}], [], "image 0: 'file_name' is '../1.jpg'; expected a relative path"),
        ([{"id": 2**63, "file_name": "1.jpg"}], [], "image 0: 'id' is 9223372036854775808; expected a 64-bit int"),
        ([{"id": True, "file_name": "1.jpg"}], [], "image 0: 'id' is True; expected a 64-bit int"),
    ],
    ids=["image-twice", "not-listed", "empty", "caption-twice", "missing", "path", "large", "true"],
)
def test_broken_captions_are_named(tmp_path, images, annotations, message):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(ValueError, match=message):
        load_coco_captions(path)


def test_official_sizes_are_checked(tmp_path, caplog):
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}))
    with caplog.at_level(logging.WARNING):
        load_coco_captions(path)
        load_coco_captions(path.rename(tmp_path / "captions_mine.json"))
    assert [line.split(": ", 1)[1] for line in caplog.messages] == [
        "1 images; the full val2017 has 5000",
        "0 captions; the full val2017 has 25014",
    ]
    assert EXPECTED_IMAGES == {"train2014": 82_783, "val2014": 40_504, "train2017": 118_287, "val2017": 5_000}
    assert EXPECTED_CAPTIONS == {"train2014": 414_113, "val2014": 202_654, "train2017": 591_753, "val2017": 25_014}
