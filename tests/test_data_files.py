"""Helpers that read annotation files and folders of images: limits from both sides, and what is refused."""

import json
import re

import pytest

from modeling_visualbert.data import files, json_stream
from modeling_visualbert.data.files import (
    files_below,
    find_one,
    index_images,
    index_images_by_name,
    optional,
    read_json_records,
    read_lines,
    require,
    require_texts,
)


def test_lines_of_a_text_file(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("one\n\n  two  \n \nthrée", encoding="utf-8")
    assert read_lines(path) == ["one", "two", "thrée"]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: no such file"):
        read_lines(tmp_path / "nowhere.txt")
    path.write_bytes(b"one\n\xff")
    with pytest.raises(ValueError, match=r"list\.txt: not UTF-8 text at byte 4"):
        read_lines(path)


@pytest.mark.parametrize("number", [0, -(2**63), 2**63 - 1])
def test_integers_of_64_bits(number):
    assert require({"id": number}, "id", "here", int) == number


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**63, True, False, 1.0, "1", None])
def test_what_is_no_integer_of_64_bits(number):
    with pytest.raises(ValueError, match=f"^here: 'id' is {re.escape(repr(number))}; expected a 64-bit int"):
        require({"id": number}, "id", "here", int)


def test_a_key_may_be_missing_or_none_where_it_is_optional():
    assert optional({}, "id", "here", int) is None and optional({"id": None}, "id", "here", int) is None
    assert optional({"id": 3}, "id", "here", int) == 3
    for record in ({"id": "3"}, [], None):
        with pytest.raises(ValueError, match="^here: "):
            optional(record, "id", "here", int)


def test_images_by_name(tmp_path):
    names = ("a/dev-1-0-img0.png", "a/notes.txt", "b/dev-1-0-img1.JPG", "b/c/train-2.jpeg", "z.webp", "zz.bmp")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = {name.split("/")[-1].split(".")[0]: tmp_path / name for name in names if "notes" not in name}
    assert index_images_by_name(tmp_path) == expected
    (tmp_path / "b" / "z.png").touch()
    with pytest.raises(ValueError, match=r"image 'z' occurs twice: .*z\.png and .*z\.webp"):
        index_images_by_name(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such image folder"):
        index_images_by_name(tmp_path / "nowhere")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def below(folder):
    return [path.relative_to(folder).as_posix() for path in files_below(folder)]


def test_links_are_followed_and_hidden_files_left_out(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    touch(data, "a/2.jpg", "a/._2.jpg", ".cache/3.jpg", ".DS_Store", "1.jpg")
    touch(elsewhere, "4.jpg", "deep/5.jpg")
    (data / "linked").symlink_to(elsewhere)
    (data / "6.jpg").symlink_to(elsewhere / "4.jpg")
    (data / "gone.jpg").symlink_to(elsewhere / "nothing.jpg")
    expected = ["1.jpg", "6.jpg", "a/2.jpg", "linked/4.jpg", "linked/deep/5.jpg"]
    assert below(data) == expected
    (tmp_path / "name").symlink_to(data)  # the folder itself may be a link
    assert below(tmp_path / "name") == expected


def test_links_in_circles_end(tmp_path):
    data, elsewhere = tmp_path / "all" / "data", tmp_path / "elsewhere"
    touch(data, "train/1.jpg")
    touch(elsewhere, "2.jpg")
    touch(tmp_path / "all", "not_ours.jpg")
    links = {"again": data / "train", "down": elsewhere, "self": data, "train/up": data, "out": data.parent}
    for name, target in links.items():
        (data / name).symlink_to(target)
    (data / "loop").symlink_to("loop")
    (elsewhere / "back").symlink_to(data)
    (elsewhere / "me").symlink_to(elsewhere)
    assert below(data) == ["down/2.jpg", "train/1.jpg"]


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (["a/q.json", "a/._q.json", ".trash/q.json"], "**/q.json", "a/q.json"),
        (["q.json"], "**/q.json", "q.json"),
        (["a/q.json", "q.json"], "q.json", "q.json"),
        (["a/q_train.json", "a/q_val.json"], "**/q_[t]*.json", "a/q_train.json"),
    ],
)
def test_the_file_that_is_meant(tmp_path, names, pattern, expected):
    touch(tmp_path, *names)
    assert find_one(tmp_path, (pattern,), "questions") == tmp_path / expected


def test_files_of_one_name_are_told_with_their_folders(tmp_path):
    touch(tmp_path, "new/dev.json", "old/dev.json")
    message = f"^{tmp_path}: 2 files could be the file of 'dev': new/dev.json, old/dev.json, ...; expected one$"
    with pytest.raises(ValueError, match=message):
        find_one(tmp_path, ("**/dev.json",), "file of 'dev'")
    (tmp_path / "new/dev.json").unlink()
    (tmp_path / "new/dev.json").symlink_to("../old/dev.json")  # the same file
    assert find_one(tmp_path, ("**/dev.json",), "file of 'dev'").samefile(tmp_path / "old/dev.json")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "old")
    assert find_one(tmp_path, ("**/dev.json",), "file of 'dev'").samefile(tmp_path / "old/dev.json")


SPLITS = (
    "images/train2014/COCO_train2014_000000000007.jpg",
    "images/val2014/7.png",
    "thumbnails/7.jpg",
    "val2014/8.jpg",
)


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (SPLITS, {"train2014": [7]}, {7: SPLITS[0]}),
        (SPLITS, {"val2014": [7, 8]}, {7: SPLITS[1], 8: SPLITS[3]}),
        (SPLITS, {"val": [7]}, {7: SPLITS[1]}),
        (SPLITS, {"train2014+val2014": [8]}, {8: SPLITS[3]}),
        (SPLITS, {"test": [8, 9]}, {8: SPLITS[3]}),  # wherever it lies; missing ones are for the caller to name
        (SPLITS, {"train2014": [7], "val2014": [8]}, {7: SPLITS[0], 8: SPLITS[3]}),
        (("train/1.jpg", "train_small/1.jpg", "val/1.jpg"), {"val": [1]}, {1: "val/1.jpg"}),
        (("COCO_train2014_01.jpg", "COCO_val2014_01.jpg"), {"val2014": [1]}, {1: "COCO_val2014_01.jpg"}),
        (("trainers/1.jpg", "x/1.jpg"), {"train": [2]}, {}),
    ],
)
def test_ids_are_looked_up_in_the_folder_of_the_split(tmp_path, names, wanted, expected):
    touch(tmp_path, *names)
    assert index_images(tmp_path, wanted) == {key: tmp_path / name for key, name in expected.items()}


@pytest.mark.parametrize(
    ("names", "wanted", "message"),
    [
        (("a/1.jpg", "b/1.png"), None, "image id 1 occurs twice: a/1.jpg and b/1.png; expected one file"),
        (("a/1.jpg", "b/1.png"), {"val": [1]}, "image id 1 of split 'val' occurs twice: a/1.jpg and b/1.png"),
        (("val/1.jpg", "val/01.jpg", "x/1.jpg"), {"val": [1]}, "split 'val' occurs twice: val/01.jpg and val/1.jpg"),
        (("trainers/1.jpg", "x/1.jpg"), {"train": [1]}, "image id 1 of split 'train' occurs twice"),
        (
            ("train/1.jpg", "val/1.jpg"),
            {"train": [1], "val": [1]},
            "image id 1 occurs twice: train/1.jpg and val/1.jpg; expected one file",
        ),
    ],
)
def test_two_images_of_one_id_are_named(tmp_path, names, wanted, message):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=f"^{tmp_path}: .*{re.escape(message)}"):
        index_images(tmp_path, wanted)


def test_two_names_of_one_image_are_one(tmp_path):
    touch(tmp_path, "train/1.jpg")
    (tmp_path / "all").mkdir()
    (tmp_path / "all/1.jpg").symlink_to("../train/1.jpg")
    assert index_images(tmp_path)[1].samefile(tmp_path / "train/1.jpg")
    assert index_images_by_name(tmp_path, {"dev": ["1"]})["1"].samefile(tmp_path / "train/1.jpg")


DOCUMENTS = (
    '{"info": {"a": [1, 2]}, "records": [{"n": 1}, {"n": "zwei", "deep": [[{}]]}, 3.5], "other": [1, {"x": "]"}], "end": "é"}',
    '\ufeff {"records" : [ ] }\n',
    '{"records": [1, 23, 456], "n": 12}',
    '[{"n": 1}, {"n": "\\ud83d\\ude00"}]',
)


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
@pytest.mark.parametrize("text", DOCUMENTS)
def test_records_are_those_of_the_document_however_it_is_cut(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(json_stream, "_BLOCK", block)
    monkeypatch.setattr(files, "read_json", None)  # nothing needs the whole document
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    content, others = json.loads(text.removeprefix("\ufeff")), {}
    records = list(read_json_records(tmp_path / "a.json", "records", others, bare="n"))
    assert records == (content if isinstance(content, list) else content["records"])
    if isinstance(content, dict):
        assert others == {name: value for name, value in content.items() if not isinstance(value, list)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"records": [1, 2', r"a.json: malformed JSON at line 1, column 18: Expecting ',' delimiter"),
        (b'{"records": [1,\n 2,]}', r"a.json: malformed JSON at line 2, column"),
        (b'{"records": [1, 2]} 3', r"a.json: malformed JSON at line 1, column 21: Extra data"),
        (b'{"records": [1, 2],}', r"a.json: malformed JSON at line 1"),
        (b'{"records": [1 2]}', r"a.json: malformed JSON at line 1, column 16"),
        (b'{"records": {"n": 1}}', r"a.json: 'records' is a record with keys 'n'; expected list"),
        (b'{"others": [1]}', r"a.json: key 'records' is missing; expected a record with it"),
        (b'[{"m": 1}]', r"a.json: key 'records' is missing: found a list of 1 record; expected a record with it"),
        (b"[]", r"a.json: key 'records' is missing: found \[\]"),
        (b"3", r"a.json: key 'records' is missing: found 3"),
        (b"", r"a.json: malformed JSON at line 1, column 1: the file is empty"),
        (b'{"records": ["a", "\xff"]}', r"a.json: not UTF-8 text at byte 19"),
        (b'{"records": [1], "x": "\xc3', r"a.json: not UTF-8 text at byte 23"),
        (b'{"records": [' + b"[" * 100_000, r"a.json: malformed JSON"),
        (b'{1: 2, "records": []}', r"a.json: malformed JSON at line 1, column 2"),
    ],
)
def test_a_document_without_records_is_named_as_when_read_whole(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_json_records(tmp_path / "a.json", "records", bare="n"))
    with pytest.raises(FileNotFoundError, match="b.json: no such file"):
        list(read_json_records(tmp_path / "b.json", "records"))


def test_texts_are_checked_as_one_by_one():
    assert require_texts([{"a": "x"}, {"a": "é", "b": 1}], "a", "here") == ["x", "é"]
    for bad, message in (
        ({"b": 1}, "here: key 'a' is missing; expected a record with it"),
        ({"a": 1}, "here: 'a' is 1; expected str"),
        ({"a": "\ud800"}, r"here: 'a' is '\\ud800'; expected str"),
        ("a", "here: key 'a' is missing: found 'a'; expected a record with it"),
    ):
        with pytest.raises(ValueError, match=message):
            require_texts([{"a": "x"}, bad], "a", "here")
