"""Helpers that read annotation files and folders of images: limits from both sides, and what is refused."""

import re

import pytest

from modeling_visualbert.data.files import index_images_by_name, optional, read_lines, require


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
