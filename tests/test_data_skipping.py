"""Bad records among good ones: raised by name, or left out by name while all the others are there. VCR's: test_data_vcr.py."""

import json
import logging
import re

import pytest

from modeling_visualbert.data.coco import load_coco_captions
from modeling_visualbert.data.files import read_json_lines, skipping
from modeling_visualbert.data.flickr30k import load_flickr30k
from modeling_visualbert.data.nlvr2 import load_nlvr2
from modeling_visualbert.data.vqa2 import load_vqa


def raised_and_skipped(load, *arguments):
    """The message that is raised by default; rows and messages when skipping. The raised one is the first skipped."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load(*arguments)
    skipped: list[str] = []
    rows = load(*arguments, skipped=skipped)
    assert skipped[0] == str(caught.value)
    return rows, skipped


def assert_named(skipped, messages):
    """As many messages as expected, in this order."""
    assert len(skipped) == len(messages), skipped
    for text, message in zip(skipped, messages, strict=True):
        assert re.search(message, text)


def test_errors_about_a_record_are_noted_and_others_are_not():
    skipped = []
    with skipping(skipped):
        raise ValueError("a.json: record 1")
    with skipping(skipped):
        raise FileNotFoundError("b.json: no such file")
    assert skipped == ["a.json: record 1", "b.json: no such file"]
    with pytest.raises(ValueError, match="a.json: record 2"), skipping(None):
        raise ValueError("a.json: record 2")
    with pytest.raises(TypeError), skipping(skipped):
        raise TypeError("a mistake of ours")
    assert len(skipped) == 2


def test_malformed_lines_keep_the_numbers_of_the_others(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'1\n{\n"\xff"\n4\n')
    skipped = []
    assert list(read_json_lines(path, skipped)) == [(f"{path}: line 1", 1), (f"{path}: line 4", 4)]
    assert [message.split(": ", 2)[1] for message in skipped] == ["line 2", "line 3"]


def test_an_error_of_the_reader_s_user_is_not_taken_for_a_bad_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("1\n2\n")
    skipped = []
    with pytest.raises(ValueError, match="mine"):
        for _ in read_json_lines(tmp_path / "a.jsonl", skipped):
            raise ValueError("mine")
    assert not skipped


def question(question_id, **fields):
    """A VQA question."""
    return {"question_id": question_id, "image_id": question_id // 10, "question": "What?"} | fields


def annotation(question_id, **fields):
    """A VQA annotation."""
    return {"question_id": question_id, "image_id": question_id // 10, "answers": [{"answer": "net"}]} | fields


@pytest.mark.parametrize(
    ("questions", "annotations", "messages"),
    [
        ([question(10)], [], ["q.json: question 1: question id 10 occurs twice"]),
        ([question(30)], [], ["q.json: question 1: question id 30 has no annotation in .*a.json"]),
        ([], [annotation(30)], ["a.json: annotation 1: question id 30 has no question in .*q.json"]),
        ([], [annotation(10)], ["a.json: annotation 1: question id 10 occurs twice"]),
        ([question(30)], [annotation(30, image_id=4)], ["q.json: question 1: image 3, but .* image 4", "annotation 1"]),
        ([question(30, question=None)], [annotation(30)], ["q.json: question 1: 'question' is None", "annotation 1"]),
        ([question(30)], [annotation(30, answers=[])], ["a.json: annotation 1: 'answers' is empty", "question 1"]),
        (
            [question(30)],
            [annotation(30, answer_type=1)],
            ["a.json: annotation 1: 'answer_type' is 1; exp", "question 1"],
        ),
        ([question(2**70)], [], ["q.json: question 1: 'question_id' is .*; expected a 64-bit int"]),
        (["What?", None], [], ["q.json: question 1: key 'question_id'", "q.json: question 2: key 'question_id'"]),
    ],
    ids=[
        "twice",
        "unanswered",
        "unasked",
        "annotated-twice",
        "images",
        "text",
        "answers",
        "type",
        "large",
        "no-record",
    ],
)
def test_vqa(tmp_path, questions, annotations, messages):
    paths = tmp_path / "q.json", tmp_path / "a.json"
    paths[0].write_text(json.dumps({"questions": [question(10), *questions, question(20)]}))
    paths[1].write_text(json.dumps({"annotations": [annotation(10), *annotations, annotation(20)]}))
    rows, skipped = raised_and_skipped(load_vqa, *paths)
    assert rows["question_id"][:] == [10, 20]
    assert rows["answers"][:] == [["net"], ["net"]]
    assert_named(skipped, messages)


def test_a_good_record_after_a_bad_one_of_the_same_id_is_there(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"questions": [question(10, question=None), question(10)]}))
    rows, skipped = raised_and_skipped(load_vqa, path)
    assert rows["question"][:] == ["What?"]
    assert len(skipped) == 1


EXAMPLE = {"identifier": "dev-1-0-0", "sentence": "Two dogs.", "label": "True"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (EXAMPLE, "dev.json: line 2: identifier 'dev-1-0-0' occurs twice"),
        (EXAMPLE | {"label": "yes"}, "dev.json: line 2: 'label' is 'yes'"),
        (EXAMPLE | {"identifier": "dev-1"}, "dev.json: line 2: identifier 'dev-1'; expected split-set-pair-sentence"),
        ({"identifier": "dev-7-0-0"}, "dev.json: line 2: key 'sentence' is missing"),
        (None, "dev.json: line 2: key 'identifier' is missing"),
        ("{", "dev.json: line 2: malformed JSON at column 2"),
    ],
    ids=["twice", "label", "identifier", "missing", "no-record", "malformed"],
)
def test_nlvr2(tmp_path, line, message):
    path = tmp_path / "dev.json"
    good = [json.dumps(EXAMPLE), json.dumps(EXAMPLE | {"identifier": "dev-2-0-0", "label": "False"})]
    path.write_text("\n".join([good[0], line if line == "{" else json.dumps(line), good[1]]))
    rows, skipped = raised_and_skipped(load_nlvr2, path)
    assert rows["identifier"][:] == ["dev-1-0-0", "dev-2-0-0"]
    assert rows["label"][:] == [1, 0]
    assert_named(skipped, [message])


def image(image_id, **fields):
    """A COCO image."""
    return {"id": image_id, "file_name": f"{image_id}.jpg"} | fields


def caption(caption_id, image_id, text="A dog."):
    """A COCO caption."""
    return {"id": caption_id, "image_id": image_id, "caption": text}


@pytest.mark.parametrize(
    ("images", "captions", "messages"),
    [
        ([image(1)], [], ["c.json: image 1: image id 1 occurs twice"]),
        ([image(3, file_name=5)], [caption(7, 3)], ["image 1: 'file_name' is 5", "caption 1: image 3 is not listed"]),
        ([image(3, file_name="/3.jpg")], [], ["c.json: image 1: 'file_name' is '/3.jpg'"]),
        ([], [caption(7, 3)], ["c.json: caption 1: image 3 is not listed"]),
        ([], [caption(1, 2)], ["c.json: caption 1: caption id 1 occurs twice"]),
        ([], [caption(7, 1, "  ")], ["c.json: caption 1: the caption is empty"]),
        ([], [caption(7, 1, None), "A dog."], ["c.json: caption 1: 'caption' is None", "caption 2: key 'image_id'"]),
    ],
    ids=["image-twice", "name", "path", "not-listed", "caption-twice", "empty", "no-text"],
)
def test_coco(tmp_path, images, captions, messages):
    path = tmp_path / "c.json"
    content = {"images": [image(1), *images, image(2)], "annotations": [caption(1, 1), *captions, caption(2, 2)]}
    path.write_text(json.dumps(content))
    rows, skipped = raised_and_skipped(load_coco_captions, path)
    assert rows.to_list() == [{"image_id": i, "file_name": f"{i}.jpg", "captions": ["A dog."]} for i in (1, 2)]
    assert_named(skipped, messages)


BOXES = """<annotation><object><name>1</name>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"""
SENTENCE = "[/EN#1/people A man] walks"


@pytest.fixture
def flickr30k(tmp_path):
    """Images 1, 2 and 3 of two sentences each."""
    for name, content in (("Annotations/{}.xml", BOXES), ("Sentences/{}.txt", f"{SENTENCE}\n{SENTENCE}\n")):
        for image_id in (1, 2, 3):
            (tmp_path / name.format(image_id)).parent.mkdir(exist_ok=True)
            (tmp_path / name.format(image_id)).write_text(content)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Annotations/2.xml", None, "Annotations/2.xml: no such annotation file"),
        ("Annotations/2.xml", b"<annotation>", "Annotations/2.xml: malformed XML"),
        ("Annotations/2.xml", BOXES.replace("4", "x").encode(), "Annotations/2.xml: object 0: ymax is 'x'"),
        ("Sentences/2.txt", None, "Sentences/2.txt: no such sentence file"),
        ("Sentences/2.txt", f"{SENTENCE}\n{SENTENCE[:-7]}".encode(), "Sentences/2.txt: line 2: .*is not closed"),
        (
            "Sentences/2.txt",
            f"{SENTENCE}\ncaf\xe9".encode("latin-1"),
            "Sentences/2.txt: line 2: not UTF-8 text at byte 3",
        ),
    ],
    ids=["no-boxes", "xml", "box", "no-sentences", "markup", "latin-1"],
)
def test_flickr30k(flickr30k, file, content, message):
    if content is None:
        (flickr30k / file).unlink()
    else:
        (flickr30k / file).write_bytes(content)
    rows, skipped = raised_and_skipped(load_flickr30k, flickr30k, [1, 2, 3])
    kept = [(2, 0)] if "line 2" in message else []  # of an image with one bad line the other is there
    places = [(row["image_id"], row["sentence_number"]) for row in rows]
    assert places == [(1, 0), (1, 1), *kept, (3, 0), (3, 1)]
    assert_named(skipped, [message])


def test_files_that_are_wrong_as_a_whole_are_raised_even_when_skipping(tmp_path):
    path = tmp_path / "a.json"
    for load in (load_vqa, load_nlvr2, load_coco_captions):
        with pytest.raises(FileNotFoundError, match="a.json: no such file"):
            load(path, skipped=[])
    for content in ("{}", "{", "[" * 99_999, f"[{'1' * 5000}]"):
        path.write_text(content)
        for load in (load_vqa, load_coco_captions):
            with pytest.raises(ValueError, match="a.json: (key|malformed JSON)"):
                load(path, skipped=[])


def test_a_file_of_bad_records_only_has_the_columns(tmp_path, caplog):
    (tmp_path / "dev.json").write_text("{\n")
    (tmp_path / "q.json").write_text('{"questions": [1]}')
    skipped = []
    with caplog.at_level(logging.WARNING):
        assert load_nlvr2(tmp_path / "dev.json", skipped=skipped).column_names[0] == "identifier"
        assert load_vqa(tmp_path / "q.json", skipped=skipped).column_names[0] == "question_id"
    assert len(skipped) == 2
