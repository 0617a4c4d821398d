"""Flickr30k Entities: markup, boxes and rows, against the dataset's own parser and BAN's loader."""

import json
import logging
from pathlib import Path

import pytest
from helpers import shared

from modeling_visualbert.data.flickr30k import (
    FEATURES,
    first_occurrence,
    load_flickr30k,
    parse_sentence,
    read_boxes,
    read_split,
)
from modeling_visualbert.metrics.grounding import matching_proposals

GOLDEN = json.loads((Path(__file__).parent / "fixtures/golden/metrics/flickr30k.json").read_text())
REAL = "real/flickr30k_entities"
XML = "<annotation><object><name>1</name><name>2</name>{box}</object></annotation>"
BOX = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"


def as_official(line):
    """A sentence in the form of the dataset's own parser."""
    words, phrases = parse_sentence(line)
    found = [
        {
            "first_word_index": p.first_word,
            "phrase": " ".join(p.words),
            "phrase_id": str(p.entity_id),
            "phrase_type": list(p.types),
        }
        for p in phrases
    ]
    return {"sentence": " ".join(words), "phrases": found}


@pytest.mark.parametrize("case", GOLDEN["markup_cases"], ids=lambda case: case["plain"][:20])
def test_markup(case):
    words, phrases = parse_sentence(case["line"])
    assert as_official(case["line"]) == case["official_parser"][0]
    assert " ".join(words) == case["plain"]
    assert [first_occurrence(words, p.words) for p in phrases] == case["ban_last_word_index"]


@pytest.mark.parametrize("space", [" ", "  ", "\t", "\u00a0", " \u3000 ", "\x1c"])
def test_words_are_separated_by_any_white_space(space):
    """As the dataset's own parser has it, and as the processor splits the sentence."""
    line = "A man in [/EN#1/clothing a hat] sees [/EN#2/other the dog ] ."
    words, phrases = parse_sentence(line.replace(" ", space))
    assert words == ["A", "man", "in", "a", "hat", "sees", "the", "dog", "."]
    assert [(phrase.words, phrase.last_word) for phrase in phrases] == [(("a", "hat"), 4), (("the", "dog"), 7)]
    assert " ".join(words).split() == words


def test_a_phrase_that_is_nowhere():
    assert first_occurrence(["a", "man"], ["the", "man"]) == -1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[/EN#1/people A man walks", "line 3: the phrase of entity 1 is not closed"),
        ("A man] walks", r"line 3: 'man\]' closes a phrase that was not opened"),
        ("[/EN#1/people A [/EN#2/other b] c]", "line 3: '.*EN#2/other' where a phrase cannot start"),
        ("A [/EN#1/people ] walks", "line 3: the phrase of entity 1 has no words; expected at least one"),
        ("[/EN#x/people A man]", r"line 3: .* expected \[/EN#id/type words\]"),
    ],
)
def test_broken_markup_is_named(line, message):
    with pytest.raises(ValueError, match=message):
        parse_sentence(line, "line 3")


def test_real_sentences_and_boxes():
    folder = shared(REAL)
    expected = json.loads((folder / "expected_parse.json").read_text())
    for name, sentences in expected["sentences"].items():
        lines = (folder / "Sentences" / name).read_text().splitlines()
        assert [as_official(line) for line in lines] == sentences
    for name, annotation in expected["annotations"].items():
        found = read_boxes(folder / "Annotations" / name)
        one_less = {str(k): [[c - 1 for c in box] for box in boxes] for k, boxes in found.items()}
        assert one_less == annotation["boxes"]


def test_rows_of_real_images_match_the_authors_loader():
    entries, codes = GOLDEN["loader"]["entries"], GOLDEN["loader"]["type_codes"]
    images = sorted({int(entry["image"]) for entry in entries})
    rows = load_flickr30k(shared(REAL), images, positions="original")
    assert len(rows) == len(entries)
    for row, entry in zip(rows, entries, strict=True):
        assert (str(row["image_id"]), row["sentence_number"]) == (entry["image"], entry["line"])
        assert row["last_words"] == entry["last_word_index"]
        assert row["entity_ids"] == entry["entity_ids"]
        padded = [([codes[t] for t in types] + [-1] * 3)[:3] for types in row["entity_types"]]
        assert padded == entry["entity_types"]
        proposals = GOLDEN["loader"]["proposals"][entry["image"]]
        assert [matching_proposals(boxes, proposals) for boxes in row["boxes"]] == entry["matched"]


def test_official_splits_have_the_expected_size(caplog):
    assert len(read_split(shared(f"{REAL}/val.txt"))) == len(read_split(shared(f"{REAL}/test.txt"))) == 1000
    assert not caplog.records


def write(tmp_path, content):
    (tmp_path / "1.xml").write_text(content)
    return tmp_path / "1.xml"


def test_a_box_may_belong_to_several_entities(tmp_path):
    path = write(tmp_path, XML.format(box=BOX.format(10)))
    assert read_boxes(path) == {1: [[10.0, 2.0, 30.0, 40.0]], 2: [[10.0, 2.0, 30.0, 40.0]]}


def test_a_box_may_be_one_pixel_wide_or_high(tmp_path):
    assert read_boxes(write(tmp_path, XML.format(box=BOX.format(30))))[1] == [[30.0, 2.0, 30.0, 40.0]]
    flat = BOX.format(10).replace("40", "2")
    assert read_boxes(write(tmp_path, XML.format(box=flat)))[1] == [[10.0, 2.0, 30.0, 2.0]]


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LAUGHS, "1.xml: declares a document type or entities"),
        (EXTERNAL, "1.xml: declares a document type or entities"),
        ("<annotation><object>", "1.xml: malformed XML: no element found: line 1, column 20"),
        (XML.format(box=BOX.format("ten")), "1.xml: object 0: xmin is 'ten'; expected a number"),
        (XML.format(box=BOX.format("nan")), "1.xml: object 0: xmin is 'nan'; expected a number of pixels"),
        (XML.format(box=BOX.format("-1e300")), "1.xml: object 0: xmin is '-1e300'; expected a number of pixels"),
        (
            XML.format(box=BOX.format(1)).replace("<name>2", "<name>two"),
            "1.xml: object 0: name is 'two'; expected the number",
        ),
        (
            XML.format(box=BOX.format(1)).replace("<name>2", "<name>"),
            "1.xml: object 0: name is ''; expected the number",
        ),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "1.xml: malformed XML: unknown encoding"),
        ('<?xml version="1.0" encoding="utf-7"?><annotation/>', "1.xml: malformed XML: multi-byte encodings"),
        ("<!DOCTYPE annotation><annotation/>", "1.xml: declares a document type or entities"),
        (XML.format(box=BOX.format(10).replace("40", "1")), r"object 0: box \[10.0, 2.0, 30.0, 1.0\] is inverted"),
        (XML.format(box=BOX.format(31)), r"1.xml: object 0: box \[31.0, 2.0, 30.0, 40.0\] is inverted"),
    ],
    ids=[
        "laughs",
        "external",
        "cut",
        "number",
        "nan",
        "huge",
        "name",
        "no-name",
        "encoding",
        "multi-byte",
        "type",
        "inverted-y",
        "inverted",
    ],
)
def test_hostile_or_broken_xml_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_boxes(write(tmp_path, content))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; expected one with Sentences/"):
        load_flickr30k(tmp_path / "nowhere", [7], skipped=[])
    with pytest.raises(FileNotFoundError, match="Annotations/7.xml: no such annotation file"):
        load_flickr30k(tmp_path, [7])
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "7.xml").write_text("<annotation/>")
    with pytest.raises(FileNotFoundError, match="Sentences/7.txt: no such sentence file"):
        load_flickr30k(tmp_path, [7])
    with pytest.raises(ValueError, match="positions 'last'; expected 'marked' or 'original'"):
        load_flickr30k(tmp_path, [], positions="last")


def test_a_split_file_is_checked(tmp_path, caplog):
    path = tmp_path / "val.txt"
    path.write_text("12\n34\n\n")
    assert read_split(path) == [12, 34]
    assert "val.txt: 2 images; the full val has 1000" in caplog.text
    path.write_text("12\n34.jpg\n")
    with pytest.raises(ValueError, match="val.txt: line 2 is b'34.jpg'; expected an image id"):
        read_split(path)
    with pytest.raises(FileNotFoundError, match="test.txt: no such split file"):
        read_split(tmp_path / "test.txt")


def test_an_image_occurs_once_in_a_split(tmp_path):
    (tmp_path / "val.txt").write_text("36\n\n17\n036\n")
    with pytest.raises(ValueError, match="val.txt: line 4: image id 36 occurs twice; expected it only once"):
        read_split(tmp_path / "val.txt")


def test_what_is_left_out_is_counted(tmp_path, caplog):
    write_image(
        tmp_path, 1, ["[/EN#1/people A man] sees [/EN#9/scene the sky]", "[/EN#9/scene The sky] is blue", "Blue."]
    )
    with caplog.at_level(logging.INFO):
        rows = load_flickr30k(tmp_path, [1])
    assert rows["phrases"][:] == [["A man"]]
    assert "1 sentences; left out: 2 without a phrase that has a box, 2 phrases without a box" in caplog.text


@pytest.mark.parametrize(("positions", "last_words"), [("marked", [1, 5]), ("original", [1, 1])])
def test_a_phrase_that_occurs_twice(tmp_path, positions, last_words):
    """Marked where it is meant, up to the end of the sentence; the authors' loader takes the first occurrence."""
    write_image(tmp_path, 1, ["[/EN#1/people a man] behind and [/EN#2/people a man]"])
    (row,) = load_flickr30k(tmp_path, [1], positions=positions)
    assert row["sentence"] == "a man behind and a man"
    assert row["last_words"] == last_words and row["entity_ids"] == [1, 2]


def test_the_first_occurrence_may_be_the_end_of_the_sentence():
    assert first_occurrence(["see", "a", "man"], ["a", "man"]) == 2
    assert first_occurrence(["a", "man"], ["a", "man"]) == 1
    assert first_occurrence(["man"], ["a", "man"]) == -1


def test_no_image_has_the_columns(tmp_path):
    assert load_flickr30k(tmp_path, []).column_names == list(FEATURES)


def write_image(folder, image_id, sentences):
    """The two files of an image whose entities 1 and 2 share a box."""
    for name, content in (
        (f"Annotations/{image_id}.xml", XML.format(box=BOX.format(10))),
        (f"Sentences/{image_id}.txt", "\n".join(sentences)),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
