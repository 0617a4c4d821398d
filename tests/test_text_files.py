"""Every text file that the package reads: as editors, spreadsheets and broken transfers leave it."""

import json

import pytest
from test_analysis_trees import DONT
from test_data_flickr30k import BOX, XML
from test_data_nlvr2_coco import EXAMPLE
from test_data_vcr import metadata, record
from test_data_vqa import annotation, question

from modeling_visualbert.analysis.trees import read_trees
from modeling_visualbert.convert.region_detector import _read_names, _read_settings
from modeling_visualbert.data.coco import load_coco_captions
from modeling_visualbert.data.files import read_lines
from modeling_visualbert.data.flickr30k import load_flickr30k, read_boxes, read_split
from modeling_visualbert.data.nlvr2 import load_nlvr2
from modeling_visualbert.data.vcr import load_vcr, read_metadata
from modeling_visualbert.data.vqa2 import load_vqa
from modeling_visualbert.demo.examples import read_examples
from modeling_visualbert.features.images import list_images
from modeling_visualbert.metrics.submissions import VCR_HEADER, read_vcr_leaderboard
from modeling_visualbert.publish.card import load_facts
from modeling_visualbert.publish.push import _find_metrics
from modeling_visualbert.tasks.detection import CocoDetection
from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import read_recipe

IMAGE = {"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}
CAPTIONS = {"images": [IMAGE], "annotations": [{"id": 1, "image_id": 1, "caption": "Ein grünes Quadrat."}]}
OBJECT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25}
BOXES = {"images": [IMAGE], "annotations": [OBJECT], "categories": [{"id": 1, "name": "Würfel"}]}


def lines_of(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def sentences(path):
    """`load_flickr30k` reads a file by the id of its image."""
    (path.parent / "Sentences").mkdir(exist_ok=True)
    path.replace(path.parent / "Sentences" / "36.txt")
    return load_flickr30k(path.parent, [36], grounded=False).to_list()


def answers(path):
    content = {"questions": [question(5)]}
    path.with_name("q.json").write_text(json.dumps(content))
    return load_vqa(path.with_name("q.json"), path).to_list()


def detection(path):
    data = CocoDetection(path, path.parent)
    return data.names, data.images, data.objects


# Name of the file, its content, and what is read of it.
JSON_FILES = {
    "questions": (
        "a.json",
        json.dumps({"questions": [question(5, text="Wo ist die Tür?")]}),
        lambda p: load_vqa(p).to_list(),
    ),
    "answers": ("a.json", json.dumps({"annotations": [annotation(5)]}), answers),
    "captions": ("a.json", json.dumps(CAPTIONS), lambda p: load_coco_captions(p).to_list()),
    "boxes": ("a.json", json.dumps(BOXES), detection),
    "metadata": ("a.json", json.dumps(metadata()), read_metadata),
    "metrics": ("metrics.json", json.dumps({"accuracy": 1.0}), lambda p: _find_metrics(p.parent, p)),
}
JSON_LISTS = {"demo examples": ("a.json", "[]", read_examples)}
JSON_LINES = {
    "nlvr2": ("dev.json", lines_of(EXAMPLE, EXAMPLE | {"identifier": "dev-1-0-1"}), lambda p: load_nlvr2(p).to_list()),
    "vcr": ("val.jsonl", lines_of(record("val-0"), record("val-1")), lambda p: load_vcr(p).to_list()),
}
MAPPINGS = {  # yaml
    "recipe": ("a.yaml", "epochs: 2\nlearning_rate: 1e-4\n", lambda p: read_recipe(p, VqaArgs)),
    "settings": ("a.yaml", "MODEL:\n  WEIGHTS: Löwe\n", _read_settings),
}
OTHERS = {
    "image ids": ("val.txt", "36\n37\n", read_split),
    "sentences": ("36.txt", "[/EN#1/people Zwei Männer] gehen\n[/EN#2/other Ein Haus]\n", sentences),
    "words": ("words.txt", "grün\nblau\n", read_lines),
    "images": ("images.txt", "a/Bäume.jpg\nb/2.png\n", lambda p: [(key, str(file)) for key, file in list_images(p)]),
    "classes": ("classes.txt", "Tür\nHaus\n", lambda p: _read_names(p, 2, "classes")),
    "objects": ("36.xml", XML.format(box=BOX.format(7)) + "\n", read_boxes),
    "leaderboard": (
        "leaderboard.csv",
        "\n".join([",".join(VCR_HEADER), "tést-1" + ",1" * 20, "test-2" + ",0" * 20]) + "\n",
        read_vcr_leaderboard,
    ),
    "trees": ("a.conllu", DONT.replace("stop", "störe"), read_trees),
}
FILES = {**JSON_FILES, **JSON_LISTS, **JSON_LINES, **MAPPINGS, **OTHERS}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") + b"\r\n",
        lambda content: content + b"\n",
        lambda content: content + b"\n\n\n",
        lambda content: content.rstrip(b"\n"),
    ],
    ids=["byte-order-mark", "windows-lines", "both", "empty-line", "empty-lines", "no-last-line-end"],
)
@pytest.mark.parametrize("kind", FILES)
def test_what_editors_and_spreadsheets_add_changes_nothing(tmp_path, kind, change):
    name, content, read = FILES[kind]
    found = []
    for data in (content.encode(), change(content.encode())):
        (tmp_path / name).write_bytes(data)
        found.append(read(tmp_path / name))
    assert found[0] == found[1] and (found[0] or kind == "demo examples")


@pytest.mark.parametrize("kind", FILES)
def test_text_in_another_encoding_is_refused_by_name(tmp_path, kind):
    name, content, read = FILES[kind]
    (tmp_path / name).write_bytes("ä".encode("latin1") + content.encode("utf-16"))
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        read(tmp_path / name)
    assert name in str(refused.value) and str(refused.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("[{}, {}]", "key '.*' is missing: found a list of 2 records; expected a record with it"),
        ('["a", "b"]', r"key '.*' is missing: found \['a', 'b'\]; expected a record with it"),
        ("null", "key '.*' is missing: found None; expected a record with it"),
        ("{}", "key '.*' is missing; expected a record with it"),
        ('{"a": 1}\n{"a": 2}', r"Extra data \(a record on each line is JSON Lines; expected one JSON document\)"),
    ],
)
@pytest.mark.parametrize("kind", [kind for kind in JSON_FILES if kind != "metrics"])
def test_json_of_another_form_is_refused_by_name(tmp_path, kind, content, message):
    name, _, read = FILES[kind]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}[^\n]*{message}$"):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", [kind for kind in JSON_FILES if kind not in ("metrics", "metadata")])
def test_records_by_key_where_a_list_was_expected(tmp_path, kind):
    name, content, read = FILES[kind]
    first = next(iter(json.loads(content)))
    (tmp_path / name).write_text(json.dumps({**json.loads(content), first: {"7": {}, "8": {}}}))
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/{name}: '{first}' is a record with keys '7', '8'; expected list$"
    ):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", [*JSON_FILES, *JSON_LINES, "objects", "leaderboard", "trees"])
def test_files_that_are_cut_off_are_refused_by_name(tmp_path, kind):
    name, content, read = FILES[kind]
    (tmp_path / name).write_bytes(content.encode()[:-20])
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}[^\n]*$"):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", JSON_LINES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda records: json.dumps(records),
            "line 1: key '.*' is missing: found a list of 2 records; expected a record",
        ),
        (
            lambda records: json.dumps(records, indent=1),
            r"line 1: malformed JSON .* \(a document over several lines; expected JSON Lines, a record on each line\)$",
        ),
        (
            lambda records: lines_of(records[0]) + "\n" + lines_of(records[1]),
            "line 2: malformed JSON: the line is empty",
        ),
    ],
    ids=["list", "document", "gap"],
)
def test_json_lines_of_another_form_are_refused_by_name(tmp_path, kind, change, message):
    name, content, read = FILES[kind]
    (tmp_path / name).write_text(change([json.loads(line) for line in content.splitlines()]))
    with pytest.raises(ValueError, match=message) as refused:
        read(tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", MAPPINGS)
def test_yaml_of_another_form_is_refused_by_name(tmp_path, kind):
    name, _, read = FILES[kind]
    for content, message in (("- 1\n- 2\n", "expected"), ("a: [1\n", "yaml|YAML")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}[^\n]*({message})[^\n]*$"):
            read(tmp_path / name)


def test_a_facts_file_with_a_byte_order_mark(tmp_path):
    plain, marked = tmp_path / "plain.yaml", tmp_path / "marked.yaml"
    from modeling_visualbert.publish.card import cards_folder

    content = (cards_folder() / "shapes-vqa.yaml").read_bytes()
    for path, data in ((plain, content), (marked, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))):
        path.write_bytes(data)
    for shared in cards_folder().glob("*.yaml"):
        if not (tmp_path / shared.name).exists():
            (tmp_path / shared.name).write_bytes(shared.read_bytes())
    assert load_facts(plain) == load_facts(marked)
