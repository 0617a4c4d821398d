"""Files of other data sets in their published layouts: tables are read, others are refused with the line that converts them."""

import json
import subprocess
import sys
from functools import partial

import pytest
from table_files import write_photos

from modeling_visualbert.data.caption_table import read_caption_table
from modeling_visualbert.data.choice_table import read_choice_table
from modeling_visualbert.data.layouts import recognise
from modeling_visualbert.data.table_images import TableImages
from modeling_visualbert.data.tables import open_files
from modeling_visualbert.data.vqa_table import read_vqa_table
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, load_flickr30k_data
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, load_nlvr2_data
from modeling_visualbert.tasks.pretraining import PretrainingArgs, load_source
from modeling_visualbert.tasks.vcr import VcrArgs, load_vcr_data
from modeling_visualbert.tasks.vqa import VqaArgs, load_vqa_data

GQA = {
    "07333408": {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "wall (722332)"}],
        "entailed": ["07333405"],
        "equivalent": ["07333408"],
        "question": "What is on the white wall?",
        "imageId": "0",
        "isBalanced": True,
        "groups": {"global": None, "local": "14-wall_on,s"},
        "answer": "pipe",
        "semanticStr": "select: wall (722332)",
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
        "fullAnswer": "The pipe is on the wall.",
    }
}
CLEVR = {
    "info": {"split": "train", "license": "CC BY 4.0", "version": "1.0", "date": "2/14/2017"},
    "questions": [
        {
            "image_index": 0,
            "program": [{"inputs": [], "function": "scene", "value_inputs": []}],
            "question_index": 0,
            "image_filename": "0.png",
            "question_family_index": 2,
            "split": "train",
            "answer": "yes",
            "question": "Are there more big green things than large purple shiny cubes?",
        }
    ],
}
VISUAL7W = {
    "dataset": "v7w_telling",
    "images": [
        {
            "image_id": 2,
            "split": split,
            "filename": "0.png",
            "qa_pairs": [
                {
                    "qa_id": 59383,
                    "question": "When was this taken?",
                    "answer": "During the daytime.",
                    "image_id": 2,
                    "type": "when",
                    "multiple_choices": ["Nighttime.", "Dusk.", "Dawn."],
                }
            ],
        }
        for split in ("train", "val")
    ],
}
KARPATHY = {
    "images": [
        {
            "filepath": "",
            "sentids": [770337, 771687],
            "filename": "0.png",
            "imgid": 0,
            "split": "train",
            "sentences": [
                {"tokens": ["a", "man"], "raw": "A man with a red helmet. ", "imgid": 0, "sentid": 770337},
                {"tokens": ["a", "man"], "raw": "Man riding a motor bike.", "imgid": 0, "sentid": 771687},
            ],
            "cocoid": 391895,
        }
    ],
    "dataset": "coco",
}
VIZWIZ = [
    {
        "image": "0.png",
        "question": "What's the name of this product?",
        "answers": [
            {"answer_confidence": "yes", "answer": "basil leaves"},
            {"answer_confidence": "no", "answer": "basil"},
        ],
        "answer_type": "other",
        "answerable": 1,
    }
]
MEMES = {"id": 42953, "img": "img/0.png", "label": 0, "text": "its their character not their color that matters"}


@pytest.fixture
def folder(tmp_path):
    """A folder with images, some of them where data sets have them."""
    write_photos(tmp_path)
    write_photos(tmp_path / "img")
    (tmp_path / "0.jpg").write_bytes((tmp_path / "0.png").read_bytes())
    return tmp_path


def table(path):
    (opened,) = open_files({"train": str(path)}).values()
    return opened


def converted(path):
    """What the line in the error about a file writes, run in a shell."""
    with pytest.raises(ValueError) as caught:
        table(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: a file of ")
    line = message.partition("which this line writes: python ")[2]
    assert line
    subprocess.run(["/bin/sh", "-c", f"{sys.executable} {line}"], check=True, cwd=path.parent)
    return path.parent / f"{path.stem}_table.jsonl"


read_choices = partial(read_choice_table, image_boxes={})


@pytest.mark.parametrize(
    "name, content, read, expected",
    [
        ("train_balanced_questions.json", GQA, read_vqa_table, {"question_id": "07333408", "answers": ["pipe"]}),
        ("CLEVR_train_questions.json", CLEVR, read_vqa_table, {"answers": ["yes"]}),
        (
            "dataset_v7w_telling.json",
            VISUAL7W,
            read_choices,
            {"answer_label": 1, "annot_id": 59383, "question": ["When", "was", "this", "taken?"]},
        ),
        (
            "dataset_coco.json",
            KARPATHY,
            read_caption_table,
            {"captions": ["A man with a red helmet.", "Man riding a motor bike."]},
        ),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_files_that_are_no_tables_are_converted_by_the_line_in_the_error(folder, name, content, read, expected, indent):
    path = folder / name
    path.write_text(json.dumps(content, indent=indent))
    if name.startswith("train_balanced"):
        (folder / "0.jpg").touch()
    (row,) = read(table(converted(path)), TableImages())
    assert {key: row[key] for key in expected} == expected


def test_names_of_files_are_quoted_in_the_line(folder):
    path = folder / "clevr's questions; x.json"
    path.write_text(json.dumps(CLEVR))
    assert len(read_vqa_table(table(converted(path)), TableImages())) == 1
    assert json.loads(path.read_text()) == CLEVR


def test_tables_are_read_as_they_are(folder):
    """VizWiz' list of records, and the JSON lines of Hateful Memes."""
    (folder / "train.json").write_text(json.dumps(VIZWIZ))
    (row,) = read_vqa_table(table(folder / "train.json"), TableImages())
    assert row["answers"] == ["basil leaves", "basil"] and row["answer_type"] == "other"
    (folder / "train.jsonl").write_text(
        "".join(json.dumps({**MEMES, "id": 42953 + n, "label": n}) + "\n" for n in (0, 1))
    )
    with pytest.raises(
        ValueError, match="no column 'image'; there are 'id', 'img', 'label', 'text': pass --image_column img"
    ):
        read_vqa_table(table(folder / "train.jsonl"), TableImages())
    columns = {"image_column": "img", "question_column": "text", "answer_column": "label"}
    rows = read_vqa_table(table(folder / "train.jsonl"), TableImages(), **columns)
    assert rows["answers"][:] == [["0"], ["1"]] and rows["question_id"][:] == [42953, 42954]


def test_vqa_cp_and_ok_vqa_are_official_files(folder):
    """VQA-CP's files are lists; those of OK-VQA are named otherwise and have stemmed answers beside the raw ones."""
    question = {"image_id": 0, "question": "What sport can you use this for?", "question_id": 1}
    answers = [
        {"answer_id": n, "raw_answer": "racing", "answer_confidence": "yes", "answer": "race"} for n in range(10)
    ]
    annotation = {"image_id": 0, "answer_type": "other", "question_type": "one", "question_id": 1, "answers": answers}
    for name in ("vqacp", "okvqa"):
        (folder / name).mkdir()
    for kind, records in (("questions", [{**question, "coco_split": "train2014"}]), ("annotations", [annotation])):
        for split in ("train", "test"):
            (folder / "vqacp" / f"vqacp_v2_{split}_{kind}.json").write_text(json.dumps(records))
    head = {"info": {}, "license": {}, "data_subtype": "train2014", "data_type": "mscoco"}
    for split in ("train2014", "val2014"):
        questions = {**head, "task_type": "Open-Ended", "questions": [question]}
        (folder / "okvqa" / f"OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps(questions))
        annotations = {**head, "annotations": [annotation]}
        (folder / "okvqa" / f"mscoco_{split}_annotations.json").write_text(json.dumps(annotations))
    for name, splits in (("vqacp", ("train", "test")), ("okvqa", ("train2014", "val2014"))):
        fields = {"train_split": splits[0], "dev_split": splits[1]}
        data = load_vqa_data(VqaArgs("run", data_dir=str(folder / name), **fields))
        assert [split["answers"][0] for split in data.splits.values()] == [["race"] * 10] * 2
        path = next((folder / name).glob("*questions.json"))
        with pytest.raises(ValueError, match=r"which is read from its folder; expected --data_dir .*" + name):
            table(path)


@pytest.mark.parametrize(
    "load, columns",
    [
        (lambda folder: load_vqa_data(VqaArgs("run", data_dir=folder)), "image, question and answer"),
        (lambda folder: load_nlvr2_data(Nlvr2Args("run", data_dir=folder)), r"images \(two\), text and label"),
        (lambda folder: load_vcr_data(VcrArgs("run", data_dir=folder)), "image, question, choices and label"),
        (
            lambda folder: load_flickr30k_data(Flickr30kArgs("run", data_dir=folder)),
            "image, sentence, phrases and boxes",
        ),
        (lambda folder: load_source(PretrainingArgs("run", data_dir=folder), None), "image and captions"),
    ],
)
def test_missing_official_files_say_how_to_bring_own_data(tmp_path, load, columns):
    with pytest.raises(
        FileNotFoundError,
        match=f"; for your own data pass --train_file FILE or --dataset_name NAME, a table with {columns}$",
    ):
        load(str(tmp_path))
    (tmp_path / "dataset_coco.json").write_text(json.dumps(KARPATHY))
    with pytest.raises(
        FileNotFoundError, match=r"dataset_coco\.json is a file of Karpathy's splits; expected a table with"
    ):
        load(str(tmp_path))


def test_folders_of_other_data_sets_are_refused_with_the_line(folder):
    (folder / "CLEVR_train_questions.json").write_text(json.dumps(CLEVR))
    with pytest.raises(
        ValueError, match=r"CLEVR_train_questions\.json: a file of CLEVR; expected a table with .*python -c"
    ):
        load_vqa_data(VqaArgs("run", data_dir=str(folder), dev_split="train"))


def test_own_tables_with_such_keys_are_tables(folder):
    records = [
        {"image": "0.png", "question": "what?", "answer": "a", "imageId": "0", "isBalanced": True, "coco_split": "x"}
    ]
    (folder / "own.json").write_text(json.dumps(records))
    assert recognise(folder / "own.json") is None
    assert len(read_vqa_table(table(folder / "own.json"), TableImages())) == 1
