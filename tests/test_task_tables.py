"""One's own tables for the other tasks: the forms in which people have them, what is refused, and a model for each."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageColumn
from PIL import ExifTags, Image
from published_layouts import write_tokenizer
from table_files import write_photos, write_table

from modeling_visualbert.cli import main
from modeling_visualbert.corpus.vocabulary import ASSETS
from modeling_visualbert.data.caption_table import read_caption_table
from modeling_visualbert.data.choice_table import LabelReading, read_choice_table
from modeling_visualbert.data.grounding_table import read_grounding_table
from modeling_visualbert.data.reasoning_table import read_reasoning_table
from modeling_visualbert.data.table_images import TableImages
from modeling_visualbert.data.tables import open_files
from modeling_visualbert.features.store import write_store
from modeling_visualbert.tasks import vqa
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, flickr30k_task
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, load_nlvr2_data, nlvr2_task, own_accuracies, score_sentences
from modeling_visualbert.tasks.pretraining import PretrainingArgs, load_source, pretraining_task
from modeling_visualbert.tasks.vcr import VcrArgs, vcr_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.tokenizer import open_tokenizer
from modeling_visualbert.training.loop import train

DETECTOR = str(ASSETS / "shapes_detector")
CPU = Accelerator(cpu=True)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TRAINING = {"batch_size": 4, "learning_rate": 2e-2, "dropout": 0.0, "cpu": True, "evals_per_epoch": 0.1}
PAIRS = [["photos/0.png", "photos/1.png"], ["photos/0.png", "photos/2.png"], ["photos/1.png", "photos/1.png"]]
SENTENCES = ["one is red", "one is green", "both are green"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for tables, with images in `photos`; nothing is kept in the caches of this machine."""
    write_photos(tmp_path / "photos")
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def tokenizer(folder):
    words = sorted(
        {word for sentence in SENTENCES for word in sentence.split()} | {"what", "colour", "is", "it", "[", "]"}
    )
    return str(write_tokenizer(folder / "tokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *words]))


def read(reader, path, **options):
    (table,) = open_files({"train": str(path)}).values()
    return reader(table, TableImages(), **options)


def refused(reader, path, **options):
    """The error about a table: one line."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(reader, path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# -------------------------------------------------------------------------------------------------------------- reasoning


def judged(labels=(True, False, True), pairs=PAIRS, **columns):
    """Three records with two images, a text and a label each, and other columns."""
    found = [{"images": pairs[n], "text": SENTENCES[n], "label": labels[n]} for n in range(3)]
    return [{**record, **{name: value[n] for name, value in columns.items()}} for n, record in enumerate(found)]


read_reasoning = partial(read, read_reasoning_table)


@pytest.mark.parametrize(
    "labels", [(True, False, True), (1, 0, 1), ("True", "False", "true"), ("yes", "no", "Yes"), (1.0, 0.0, 1.0)]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_every_spelling_of_the_truth(folder, name, labels):
    found = read_reasoning(write_table(folder / name, judged(labels)))
    assert found["label"][:] == [1, 0, 1] and found["sentence"][:] == SENTENCES
    assert found["images"][:] == [[str(folder / path) for path in pair] for pair in PAIRS]
    assert found["identifier"][:] == [0, 1, 2]


@pytest.mark.parametrize("names, given", [(("left_image", "right_image"), None), (("a", "b"), "a, b")])
def test_images_in_a_column_each(folder, names, given):
    records = [
        dict(zip(names, pair, strict=True)) | {"sentence": SENTENCES[n], "label": n} for n, pair in enumerate(PAIRS[:2])
    ]
    found = read_reasoning(write_table(folder / "a.csv", records), image_column=given)
    assert found["images"][:] == [[str(folder / path) for path in pair] for pair in PAIRS[:2]]
    assert found["label"][:] == [0, 1]


def test_classes_and_image_columns_of_data_sets(folder):
    features = Features(
        {"images": List(ImageColumn()), "text": Value("string"), "label": ClassLabel(names=["True", "False"])}
    )
    records = judged(("True", "False", "True"), [[str(folder / path) for path in pair] for pair in PAIRS])
    data = Dataset.from_list(records, features=features)
    DatasetDict({"train": data, "validation": data.select([1])}).save_to_disk(str(folder / "saved"))
    found = load_nlvr2_data(Nlvr2Args(str(folder / "run"), dataset_name=str(folder / "saved")))
    assert {role: split["label"][:] for role, split in found.splits.items()} == {"train": [1, 0, 1], "dev": [0]}
    assert len(found.find_paths(folder, wanted=found.wanted())) == 3


@pytest.mark.parametrize(
    "records, message",
    [
        (
            judged(pairs=[["photos/0.png"], *PAIRS[1:]]),
            "row 0: 'images' holds 1 image; expected two (one: run_classification.py)",
        ),
        (judged(pairs=[*PAIRS[:2], PAIRS[0] * 2]), "row 2: 'images' holds 4 images; expected two"),
        (judged(("True", "maybe", "False")), "row 1: the label is 'maybe'; expected true or false"),
        (judged((1, None, 0)), "row 1: the label is None; expected true or false"),
        (judged((1, 0, 2)), "row 2: the label is 2; expected true or false"),
        (judged(text=["a", " ", "b"]), "row 1: the text is ' '; expected at least one word"),
        (judged(identifier=["x", "y", "x"]), "row 2: identifier 'x' occurs twice; expected it only once"),
        (judged(pairs=[PAIRS[0], ["photos/0.png", "no.png"], PAIRS[1]]), "row 1: 'images': no such image file"),
    ],
)
def test_bad_rows_of_reasoning_are_named(folder, records, message):
    path = write_table(folder / "a.json", records)
    assert refused(read_reasoning_table, path).startswith(message)
    skipped = []
    assert len(read_reasoning(path, skipped=skipped)) == 2 and len(skipped) == 1


def test_columns_of_reasoning_that_are_missing(folder):
    path = write_table(folder / "a.jsonl", [{"images": PAIRS[0], "claim": "x", "truth": True}])
    assert refused(read_reasoning_table, path) == (
        "no column 'text' or 'sentence' or 'statement'; there are 'images', 'claim', 'truth': pass --text_column"
    )
    found = refused(read_reasoning_table, path, text_column="claim", label_column="truths")
    assert found == "no column 'truths'; there are 'images', 'claim', 'truth': pass --label_column truth"
    assert read_reasoning(path, text_column="claim", needs_labels=False)["label"][:] == [None]
    assert refused(read_reasoning_table, path, image_column="left,right").startswith("no column 'left'; there are")


def test_consistency_is_that_of_the_same_sentence(folder):
    records = judged(text=["a", "b", "a"], id=["x", "y", "z"])
    found = read_reasoning(write_table(folder / "a.json", records))
    judgements = {"x": "True", "y": "False", "z": "False"}
    assert score_sentences(judgements, found) == {
        "accuracy": pytest.approx(200 / 3),
        "consistency": 50.0,
        "num_examples": 3,
    }
    assert [one["group"] for one in own_accuracies(judgements, found)] == ["a", "b", "a"]


def test_a_model_is_trained_on_a_table_and_reasons(folder, tokenizer, capsys):
    table = write_table(folder / "a.json", judged())
    fields = {"train_file": table, "validation_file": table, "tokenizer": tokenizer, "epochs": 80.0}
    args = Nlvr2Args(str(folder / "run"), **SIZES, **TRAINING, **fields, region_encoder=DETECTOR)
    task = nlvr2_task(args, CPU)
    metrics = train(task, args, CPU)["splits"]["dev"]
    assert metrics == {"accuracy": 100.0, "consistency": 100.0, "num_examples": 3} and task.write_results is None
    best, output = str(folder / "run" / "best"), folder / "evaluated"
    renamed = [{"pair": r["images"], "claim": r["text"], "label": r["label"]} for r in judged()]
    table = write_table(folder / "b.json", renamed)
    command = ["evaluate", "--model", best, "--test_file", table, "--output_dir", str(output), "--cpu"]
    capsys.readouterr()
    assert main(command) == 2
    assert "no column 'images' or 'image'; there are 'pair', 'claim', 'label'" in capsys.readouterr().err
    assert main([*command, "--question_column", "claim"]) == 2
    assert "--question_column: " in capsys.readouterr().err
    assert main([*command, "--image_column", "pair", "--text_column", "claim"]) == 0
    assert json.loads((output / "metrics.json").read_text())["splits"]["test"]["accuracy"] == 100.0
    assert not list(output.glob("results_*"))


# ------------------------------------------------------------------------------------------------------------ pre-training


def test_captions_of_an_image_are_gathered(folder):
    records = [
        {"image": "photos/0.png", "caption": "one is red"},
        {"image": "photos/1.png", "caption": "one is green"},
        {"image": "photos/0.png", "caption": " it is red "},
    ]
    found = read(read_caption_table, write_table(folder / "a.csv", records))
    assert found["captions"][:] == [["one is red", "it is red"], ["one is green"]]
    assert found["image_id"][:] == [str(folder / "photos" / name) for name in ("0.png", "1.png")]
    lists = [
        {"image": "photos/0.png", "captions": ["a", "b"], "id": 1},
        {"image": "photos/1.png", "captions": ["c"], "id": 1},
    ]
    assert read(read_caption_table, write_table(folder / "a.jsonl", lists))["captions"][:] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    "records, message",
    [
        ([{"image": "photos/0.png", "captions": ["a", ""]}], "row 0: the caption is ''; expected at least one word"),
        ([{"image": "photos/0.png", "captions": []}], "row 0: the caption is []; expected a list"),
        ([{"image": "photos/0.png", "caption": 3}], "row 0: the caption is 3; expected at least one word"),
        (
            [{"image": "photos/0.png", "title": "a"}],
            "no column 'captions' or 'caption' or 'text' or 'sentences'; there are",
        ),
    ],
)
def test_bad_captions_are_named(folder, records, message):
    assert refused(read_caption_table, write_table(folder / "a.json", records)).startswith(message)


def captioned(count=4):
    return [{"image": f"photos/{n}.png", "caption": SENTENCES[n % 3]} for n in range(count)]


def test_a_model_is_pretrained_on_a_table(folder, tokenizer, capsys):
    table = write_table(folder / "a.csv", captioned())
    fields = {"train_file": table, "tokenizer": tokenizer, "epochs": 2.0, "region_encoder": DETECTOR}
    args = PretrainingArgs(str(folder / "run"), **SIZES, **TRAINING, **fields)
    task = pretraining_task(args, CPU)
    assert len(task.splits["train"]) == 2  # the other two are kept: a caption of another image is needed
    train(task, args, CPU)
    command = ["evaluate", "--model", str(folder / "run" / "best"), "--test_file", table]
    assert main([*command, "--output_dir", str(folder / "evaluated"), "--cpu"]) == 0
    scores = json.loads((folder / "evaluated" / "metrics.json").read_text())["splits"]["test"]
    assert {"mlm_accuracy", "match_accuracy"} <= scores.keys()


def test_the_text_of_a_task_is_read_from_its_table(folder, tokenizer):
    """The later stages read the tables of the tasks; none reads the embedded corpus in their place."""
    loaded = partial(load_source, tokenizer=open_tokenizer(tokenizer))
    fields = {"tokenizer": tokenizer}
    asked = [{"image": f"photos/{n}.png", "query": "what is it?", "reply": "red"} for n in range(4)]
    columns = {"question_column": "query", "answer_column": "reply"}
    fields["train_file"] = write_table(folder / "vqa.jsonl", asked)
    found = loaded(PretrainingArgs("run", stage="vqa", **fields, **columns)).data.splits
    assert {name: len(split) for name, split in found.items()} == {"train": 3, "dev": 1}
    fields["train_file"] = write_table(folder / "nlvr2.jsonl", judged())
    both = {**fields, "validation_file": fields["train_file"]}
    found = loaded(PretrainingArgs("run", stage="nlvr2", **both)).data.splits
    assert {name: len(split) for name, split in found.items()} == {"train": 3, "dev": 3}
    with pytest.raises(ValueError, match="nlvr2.jsonl: all rows are about the same image, or share images with others"):
        loaded(PretrainingArgs("run", stage="nlvr2", **fields))
    with pytest.raises(ValueError, match="--answer_column: stage 'nlvr2' reads no such column; leave it out"):
        loaded(PretrainingArgs("run", stage="nlvr2", **fields, answer_column="reply"))
    with pytest.raises(ValueError, match="--answer_column: stage 'coco' reads no such column; leave it out"):
        loaded(PretrainingArgs("run", **fields, answer_column="reply"))
    with pytest.raises(ValueError, match="--text_column without a table; expected --train_file or --dataset_name"):
        Nlvr2Args("run", text_column="x")
    fields["train_file"] = write_table(folder / "few.csv", captioned(3))
    with pytest.raises(ValueError, match="few.csv: only 3 images, so none can be kept for validation"):
        loaded(PretrainingArgs("run", **fields))


# --------------------------------------------------------------------------------------------------------------- grounding

SENTENCE = "A red  square, and a dog near a red square."
BOXES = [[1, 2, 10, 12], [0, 0, 32, 24]]


def grounded(**columns):
    record = {"image": "photos/0.png", "sentence": SENTENCE, "phrases": ["a red square", "a dog"], "boxes": BOXES}
    return [{**record, **columns}]


read_grounding = partial(read, read_grounding_table)


@pytest.mark.parametrize(
    "phrases, boxes, texts, last_words, found",
    [
        (["a red square", "A dog"], BOXES, ["a red square", "A dog"], [2, 5], [[BOXES[0]], [BOXES[1]]]),
        ([[30, 42], [19, 24]], [[BOXES[0]], BOXES], ["a red square", "a dog"], [9, 5], [[BOXES[0]], BOXES]),
        (["square"], BOXES, ["square"], [2], [BOXES]),
        (["square"], BOXES[:1], ["square"], [2], [BOXES[:1]]),
        ("red square", BOXES[0], ["red square"], [2], [BOXES[:1]]),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_every_form_of_phrases_and_boxes(folder, name, phrases, boxes, texts, last_words, found):
    records = grounded(phrases=phrases, boxes=boxes)
    if name == "a.csv":
        records[0]["sentence"] = f'"{SENTENCE}"'
    (row,) = read_grounding(write_table(folder / name, records))
    assert (row["phrases"], row["last_words"]) == (texts, last_words)
    assert row["boxes"] == found and row["sentence"] == " ".join(SENTENCE.split())


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"phrases": ["a cat"]}, "row 0: the phrases: 'a cat' is not in the sentence 'A red"),
        ({"phrases": ["a do"], "boxes": BOXES[:1]}, "row 0: the phrases: 'a do' is not in the sentence"),
        ({"phrases": [[5, 99]]}, "row 0: the phrases: [5, 99] in a sentence of 43 characters; expected [start, end]"),
        ({"phrases": []}, "row 0: the phrases is []; expected a list"),
        (
            {"boxes": BOXES[:1]},
            "row 0: 'boxes' is [[1, 2, 10, 12]]; expected boxes x1, y1, x2, y2, 2 of them, or 2 lists",
        ),
        ({"boxes": [BOXES, []]}, "row 0: 'boxes' holds no box for one of them; expected at least one"),
        ({"boxes": [[1, 2, 3], [1, 2, 3]]}, "row 0: 'boxes' holds [1, 2, 3]; expected four numbers x1, y1, x2, y2"),
        ({"boxes": [[5, 2, 1, 9], BOXES[0]]}, "row 0: 'boxes': row 0 is inverted, [5.0, 2.0, 1.0, 9.0]"),
        ({"boxes": [[1, 2, 1, 9], BOXES[0]]}, "row 0: 'boxes' holds [1.0, 2.0, 1.0, 9.0], without area"),
        (
            {"boxes": [[1, 2, 60, 9], BOXES[0]]},
            "row 0: 'boxes': row 0 [1.0, 2.0, 60.0, 9.0] is outside the image of 32 x 24",
        ),
        ({"boxes": [[0.1, 0.2, 0.5, 0.9]] * 2}, "row 0: 'boxes': all boxes lie in 0..1"),
        ({"image": "broken.png"}, "row 0: 'image' cannot be read (broken.png: not an image that Pillow can read)"),
        ({"sentence": ""}, "row 0: the sentence is ''; expected at least one word"),
    ],
)
def test_bad_rows_of_grounding_are_named(folder, columns, message):
    (folder / "broken.png").write_bytes(b"not an image")
    good = grounded()
    path = write_table(folder / "a.json", grounded(**columns))
    assert refused(read_grounding_table, path).replace(f"{folder}/", "").startswith(message)
    if columns.get("phrases") != []:  # of another type in the table
        skipped = []
        path = write_table(folder / "a.json", [*grounded(**columns), *good])
        assert read_grounding(path, skipped=skipped)["sentence_id"][:] == [1] and len(skipped) == 1


def test_boxes_of_images_that_lie_on_their_side(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (32, 24), "red").save(folder / "photos" / "turned.jpg", exif=exif)
    tall = {"image": "photos/turned.jpg", "boxes": [[0, 0, 24, 32]] * 2}
    assert len(read_grounding(write_table(folder / "a.json", grounded(**tall)))) == 1
    assert "is outside the image of 24 x 32 pixels" in refused(
        read_grounding_table, write_table(folder / "b.json", grounded(**tall | {"boxes": [[0, 0, 32, 24]] * 2}))
    )


def test_a_model_is_trained_on_a_table_and_grounds(folder, tokenizer, capsys):
    """The cells of a grid are the regions; the first phrase is on the left, the second on the right."""
    sides = [[[0, 0, 16, 12], [0, 12, 16, 24]], [[16, 0, 32, 12], [16, 12, 32, 24]]]
    records = [
        {
            "image": f"photos/{n}.png",
            "text": "what is red colour",
            "phrase": ["what", "red"],
            "box": sides,
            "id": f"s-{n}",
        }
        for n in range(4)
    ]
    table = write_table(folder / "a.json", records)
    columns = {"phrases_column": "phrase", "boxes_column": "box"}
    fields = {"train_file": table, "validation_file": table, "tokenizer": tokenizer, "features_dir": grid_store(folder)}
    args = Flickr30kArgs(str(folder / "run"), **SIZES, **TRAINING, **fields, **columns, epochs=60.0)
    metrics = train(flickr30k_task(args, CPU), args, CPU)["splits"]["dev"]
    assert metrics["num_examples"] == 8 and metrics["recall_at_1"] == 100.0
    output = folder / "evaluated"
    command = ["evaluate", "--model", str(folder / "run" / "best"), "--features_dir", fields["features_dir"], "--cpu"]
    unlabelled = [{name: value for name, value in record.items() if name != "box"} for record in records]
    table = write_table(folder / "b.json", unlabelled)
    command += ["--test_file", table, "--phrases_column", "phrase", "--output_dir", str(output)]
    assert main(command) == 0
    assert json.loads((output / "metrics.json").read_text())["splits"]["test"] == {"num_examples": 8}
    first = json.loads((output / "predictions_test.jsonl").read_text().splitlines()[0])
    assert first["id"] == "s-0" and first["phrases"][0][0]["box"][0] == 0.0


def grid_store(folder):
    """A store with the four quarters of each image as its regions."""
    quarters = torch.tensor([[0, 0, 16, 12], [16, 0, 32, 12], [0, 12, 16, 24], [16, 12, 32, 24]], dtype=torch.float32)
    regions = {"visual_embeds": torch.eye(4), "boxes": quarters, "image_size": torch.tensor([24, 32])}
    write_store(folder / "store", ((str(n), regions) for n in range(4)), 4, {"name": "quarters"})
    return str(folder / "store")


# --------------------------------------------------------------------------------------------------------- multiple choice

CHOICES = ["red", "green", "blue", "white"]


def asked(labels=(0, 1, 2, 3), **columns):
    """Four records with an image, a question, choices and a label each, and other columns."""
    found = [
        {"image": f"photos/{n}.png", "question": "what colour is it?", "choices": CHOICES, "label": labels[n]}
        for n in range(4)
    ]
    return [{**record, **{name: value[n] for name, value in columns.items()}} for n, record in enumerate(found)]


def read_choices(path, boxes=None, **options):
    return read(partial(read_choice_table, image_boxes={} if boxes is None else boxes), path, **options)


@pytest.mark.parametrize(
    "labels", [(0, 1, 2, 3), ("red", " green", "blue", "white"), ("0", "1", "2", "3"), ("A", "b", "C", "D")]
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_every_form_of_the_right_choice(folder, name, labels):
    found = read_choices(write_table(folder / name, asked(labels)))
    assert found["answer_label"][:] == [0, 1, 2, 3]
    row = found[2]
    assert row["question"] == ["what", "colour", "is", "it?"] and row["answer_choices"] == [[word] for word in CHOICES]
    assert (row["objects"], row["object_ids"], row["boxes"]) == ([], None, None)


def test_lists_as_pandas_writes_them(folder):
    path = folder / "a.csv"
    path.write_text('image,question,choices,label\nphotos/0.png,what?,"[""it\'s"", \'b\']",1\n')
    assert read_choices(path)["answer_choices"][0] == [["it's"], ["b"]]


@pytest.mark.parametrize(
    "labels, choices, how",
    [
        (["2", "3"], [["1", "2", "3"], ["3", "4", "5"]], "text"),
        (["1", "0"], [["1", "4"], ["0", "5"]], None),
        (["1", "0"], [["4", "1"], ["0", "5"]], "text"),  # both mean the same
        (["A", "B"], [["A", "B"], ["B", "C"]], "text"),
        (["A", "B"], [["x", "y"], ["A", "z"]], "letter"),
        (["1", "x"], [["x", "y"], ["x", "z"]], "text"),
    ],
)
def test_labels_of_a_column_are_read_in_one_way(labels, choices, how):
    whole, parts = LabelReading(), LabelReading()
    whole.add(labels, choices)
    for label, given in zip(labels, choices, strict=True):  # as a stream does
        parts.add([label], [given])
    for reading in (whole, parts):
        if how is None:
            with pytest.raises(
                ValueError, match=r"a.csv: the label '1' is the text of a choice and could be the number of another"
            ):
                reading.decide("a.csv")
        else:
            reading.decide("a.csv")
            assert reading.how == how


def test_objects_are_boxes_that_the_texts_name(folder):
    """Rows about the same image share its boxes."""
    images = ["photos/0.png", "photos/0.png", "photos/1.png", "photos/1.png"]
    boxes = [[[1, 1, 9, 9], [2, 2, 8, 8]], [[2, 2, 8, 8], [0, 0, 5, 5]], [[1, 1, 9, 9]], []]
    objects = [["person", "dog"], ["dog", "cat"], ["person"], []]
    questions = ["What is [0] doing with [1]?", "Is [0,1] red?", "is [0] red?", "is it?"]
    records = asked(image=images, boxes=boxes, objects=objects, question=questions)
    found = {}
    rows = read_choices(write_table(folder / "a.jsonl", records), found)
    assert rows["question"][0] == ["What", "is", "[0]", "doing", "with", "[1]", "?"]
    assert rows["object_ids"][:] == [[0, 1], [1, 2], [0], []]
    assert found == {
        str(folder / "photos/0.png"): [[0, 0, 32, 24], [1, 1, 9, 9], [2, 2, 8, 8], [0, 0, 5, 5]],
        str(folder / "photos/1.png"): [[0, 0, 32, 24], [1, 1, 9, 9]],
    }


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"label": [0, 4, 1, 2]}, "row 1: the label is 4; expected 0 to 3, or the text of one choice"),
        (
            {"label": ["red", "pink", "blue", "white"]},
            "row 1: the label is 'pink'; expected 0 to 3, or the text of one choice",
        ),
        ({"choices": [CHOICES, CHOICES[:1], CHOICES, CHOICES]}, "row 1: 1 choices; expected at least 2"),
        (
            {"choices": [CHOICES, CHOICES[:2], CHOICES, CHOICES], "label": [0, 2, 1, 2]},
            "row 1: the label is 2; expected 0 to 1, or the text of one choice",
        ),
        (
            {"choices": [CHOICES, ["red", "", "a", "b"], CHOICES, CHOICES]},
            "row 1: a choice is ''; expected at least one word",
        ),
        ({"choices": [["red"]] * 4}, "row 0: 1 choices; expected at least 2"),
        ({"choices": ["red"] * 4}, "row 0: the choices is 'red'; expected a list"),
        ({"question": ["a", "b", "", "c"]}, "row 2: the question is ''; expected at least one word"),
        ({"question": ["a", "b", "is [0] red?", "c"]}, "row 2: the question: tag [0], but the row has 0 objects"),
        ({"objects": [["a"]] * 4}, "objects without boxes; expected a column of boxes, one for each object"),
        (
            {"objects": [["a"]] * 4, "boxes": [[[1, 1, 2, 2], [3, 3, 4, 4]]] * 4},
            "row 0: 1 objects with 2 boxes; expected one for each",
        ),
        ({"boxes": [[[1, 1, 99, 2]]] * 4}, "row 0: the boxes: row 0 [1.0, 1.0, 99.0, 2.0] is outside the image"),
        ({"id": [1, 2, 3, 3]}, "row 3: annot id 3 occurs twice"),
    ],
)
def test_bad_rows_of_choices_are_named(folder, columns, message):
    assert refused(
        partial(read_choice_table, image_boxes={}), write_table(folder / "a.json", asked(**columns))
    ).startswith(message)


def test_rows_of_a_test_file_may_lack_labels(folder):
    records = [{name: value for name, value in record.items() if name != "label"} for record in asked()]
    assert read_choices(write_table(folder / "a.json", records), needs_labels=False)["answer_label"][:] == [None] * 4
    assert refused(partial(read_choice_table, image_boxes={}), folder / "a.json").startswith(
        "no column 'label' or 'answer'; there are"
    )


def vcr_args(folder, tokenizer, table, **fields):
    fields = {
        "train_file": table,
        "validation_file": table,
        "tokenizer": tokenizer,
        "region_encoder": DETECTOR,
        **fields,
    }
    return VcrArgs(str(folder / "run"), **SIZES, **TRAINING, **fields)


def test_a_model_is_trained_on_choices_and_chooses(folder, tokenizer, capsys):
    """Without boxes: from the regions that are found, stored or in every step."""
    choices = [*CHOICES, "black"]
    table = write_table(folder / "a.jsonl", asked([CHOICES[n] for n in range(4)], choices=[choices] * 4))
    args = vcr_args(folder, tokenizer, table, epochs=2.0, num_regions=7)
    task = vcr_task(args, CPU)
    batch = task.collate([task.splits["train"][n] for n in range(4)])
    assert batch["visual_embeds"].shape[0] == 4 and batch["labels"].tolist() == [0, 1, 2, 3]
    assert not task.processor.whole_image and task.model.config.task_options["objects"] == "found"
    train(task, args, CPU)
    pixels = vcr_task(replace(args, from_pixels=True), CPU)
    batch = pixels.collate([pixels.splits["train"][0]])
    assert "pixel_values" in batch and "image_text_alignment" not in batch and "boxes_unit" not in batch
    assert pixels.model(**batch).logits.shape == (1, 5)
    command = ["evaluate", "--model", str(folder / "run" / "best"), "--test_file", table, "--cpu"]
    capsys.readouterr()
    for name, options in (("stored", []), ("pixels", ["--from_pixels"])):
        assert main([*command, "--output_dir", str(folder / name), *options]) == 0
    assert "leaderboard" not in capsys.readouterr().out
    stored, pixels = (json.loads((folder / name / "metrics.json").read_text()) for name in ("stored", "pixels"))
    assert stored["splits"] == pixels["splits"] and stored["splits"]["test"]["num_examples"] == 4
    first = json.loads((folder / "stored" / "predictions_test.jsonl").read_text().splitlines()[0])
    choose = [
        "choose",
        "--model",
        str(folder / "run" / "best"),
        str(folder / "photos" / "0.png"),
        "-",
        "what colour is it?",
    ]
    assert main([*choose, *choices, "--json"]) == 0
    chosen = {row["index"]: row["score"] for row in json.loads(capsys.readouterr().out)[0]["choices"]}
    assert [chosen[n] for n in range(5)] == pytest.approx(first["scores"], abs=1e-4)


@pytest.mark.parametrize("boxes", [False, True])
def test_questions_have_different_numbers_of_choices(folder, tokenizer, caplog, boxes):
    """In a batch each is worth what it is alone; training, evaluation and the command line agree."""
    choices = [CHOICES, CHOICES[:2], [*CHOICES, "black"], CHOICES[:3]]
    columns = (
        {"boxes": [[[1, 1, 9, 9]]] * 4, "objects": [["dog"]] * 4, "question": ["is [0] red?"] * 4} if boxes else {}
    )
    table = write_table(folder / "a.jsonl", asked((3, 1, 4, 0), choices=choices, **columns))
    args = vcr_args(folder, tokenizer, table, epochs=2.0, label_smoothing=0.1)
    task = vcr_task(args, CPU)
    assert "different numbers of choices: 2 of 2, 2 of 3, 2 of 4, 2 of 5; what some lack is masked" in caplog.text
    rows, model = [task.splits["train"][n] for n in range(4)], task.model.eval()
    with torch.no_grad():
        together = model(**task.collate(rows))
        alone = [model(**task.collate([row])) for row in rows]
    assert together.logits.shape == (4, 5)
    for logits, single in zip(together.logits, alone, strict=True):
        torch.testing.assert_close(logits[: single.logits.shape[1]], single.logits[0], atol=1e-5, rtol=0)
        assert (logits[single.logits.shape[1] :] == -torch.inf).all()
    torch.testing.assert_close(together.loss, torch.stack([single.loss for single in alone]).mean())
    assert [len(found["scores"]) for found in task.predict(together, rows)] == [4, 2, 5, 3]
    trained = train(task, args, CPU)["splits"]["dev"]
    command = ["evaluate", "--model", str(folder / "run" / "best"), "--test_file", table, "--cpu"]
    assert main([*command, "--output_dir", str(folder / "scores")]) == 0
    assert json.loads((folder / "scores" / "metrics.json").read_text())["splits"]["test"] == trained
    lines = (folder / "scores" / "predictions_test.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["scores"]) for line in lines] == [4, 2, 5, 3]


def test_a_model_that_reads_boxes_is_trained_on_choices(folder, tokenizer, capsys):
    boxes = [[[1, 1, 9, 9], [2, 2, 20, 20]], [[0, 0, 30, 20]], [[5, 5, 9, 9]], []]
    objects = [["person", "dog"], ["cat"], ["dog"], []]
    questions = ["is [0] red or [1]?", "is [0] red?", "what is [0]?", "what is it?"]
    table = write_table(folder / "a.jsonl", asked(boxes=boxes, objects=objects, question=questions))
    args = vcr_args(folder, tokenizer, table, epochs=1.0)
    task = vcr_task(args, CPU)
    batch = task.collate([task.splits["train"][n] for n in range(4)])
    assert batch["visual_attention_mask"].sum(dim=1).tolist() == [3, 2, 2, 1]  # the whole image, then the objects
    pixels = vcr_task(replace(args, from_pixels=True), CPU)
    pixel_batch = pixels.collate([pixels.splits["train"][n] for n in range(4)])
    torch.testing.assert_close(pixel_batch["image_text_alignment"], batch["image_text_alignment"])
    for model in (task.model, pixels.model):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(task.model(**batch).logits, pixels.model(**pixel_batch).logits, atol=1e-4, rtol=0)
    train(task, args, CPU)
    command = ["evaluate", "--model", str(folder / "run" / "best"), "--cpu", "--output_dir", str(folder / "evaluated")]
    capsys.readouterr()
    bare = write_table(folder / "b.jsonl", asked())
    assert main([*command, "--test_file", bare]) == 2
    assert (
        "reads the regions of given boxes, and the table has none; expected a column of boxes"
        in capsys.readouterr().err
    )
    assert main([*command, "--test_file", table]) == 0
    with pytest.raises(
        ValueError, match="no boxes in split dev, but others have some; expected all or none, or --objects found"
    ):
        vcr_task(replace(args, validation_file=bare), CPU)
    with pytest.raises(ValueError, match="--objects found: 0 names objects; expected texts without tags"):
        vcr_task(replace(args, objects="found"), CPU)
    with pytest.raises(ValueError, match="--num_regions: the regions are those of the boxes; expected --objects found"):
        vcr_task(replace(args, num_regions=3), CPU)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"train_file": "a.csv", "subtask": "rationale", "score_with": "x"},
            "--score_with: own data has no leaderboard",
        ),
        (
            {"train_file": "a.csv", "rationales_column": "why"},
            "--rationales_column chooses rationales; expected it with --subtask rationale",
        ),
        ({"rationale_label_column": "right"}, "--rationale_label_column without a table"),
        ({"objects": "found"}, "--objects found: official files name objects"),
        ({"num_regions": 3}, "--num_regions: the regions of VCR are the objects of its metadata"),
    ],
)
def test_flags_of_choices_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        VcrArgs("run", **fields)


def test_questions_with_their_choice_are_read_by_pretraining(folder, tokenizer):
    table = write_table(folder / "a.jsonl", asked())
    args = PretrainingArgs("run", stage="vcr", train_file=table, validation_file=table, tokenizer=tokenizer)
    source = load_source(args, open_tokenizer(tokenizer))
    assert {name: len(split) for name, split in source.data.splits.items()} == {"train": 4, "dev": 4}
    text = source.probe_text(source.data.splits["train"][1])
    assert open_tokenizer(tokenizer).decode(text.input_ids).startswith("[CLS] what colour is it")


def test_rationales_are_choices_of_their_own(folder, tokenizer):
    reasons = [["it is red", "it is green", "it is what"]] * 4
    records = asked(rationales=reasons, rationale_label=[0, "it is green", 1, 0])
    with pytest.raises(ValueError, match="a.jsonl: no column 'rationales'; there are 'image', .*--rationales_column"):
        read_choices(write_table(folder / "a.jsonl", asked()), rationales=True)
    labels = ["it is red", "it is green", "it is what", "it is red"]
    records = asked(rationales=reasons, rationale_label=labels)
    table = write_table(folder / "a.jsonl", records)
    row = read_choices(table, rationales=True)[1]
    assert row["rationale_choices"][2] == ["it", "is", "what"] and row["rationale_label"] == 1
    assert "rationale_label" not in read_choices(table).column_names
    args = VcrArgs(
        **{"output_dir": str(folder / "run"), "train_file": table, "validation_file": table, "subtask": "rationale"},
        **{"tokenizer": tokenizer, "region_encoder": DETECTOR, "max_steps": 2, "images_dir": str(folder)},
        **SIZES,
        **TRAINING,
    )
    metrics = train(vcr_task(args, CPU), args, CPU)
    assert metrics["task"] == "vcr_rationale" and metrics["splits"]["dev"]["num_examples"] == 4
    evaluate = ["evaluate", "--model", str(folder / "run" / "best"), "--test_file", table, "--images_dir", str(folder)]
    assert main([*evaluate, "--output_dir", str(folder / "scores"), "--cpu"]) == 0
    scored = json.loads((folder / "scores" / "metrics.json").read_text())["splits"]["test"]
    assert scored == metrics["splits"]["dev"]
    renamed = [
        {{"rationales": "why", "rationale_label": "right"}.get(name, name): value for name, value in record.items()}
        for record in records
    ]
    named = [*evaluate[:4], write_table(folder / "b.jsonl", renamed), *evaluate[5:]]
    named += ["--rationales_column", "why", "--rationale_label_column", "right", "--cpu"]
    assert main([*named, "--output_dir", str(folder / "renamed")]) == 0
    assert json.loads((folder / "renamed" / "metrics.json").read_text())["splits"]["test"] == scored


def test_pretraining_on_sentences_needs_no_phrases(folder, tokenizer):
    rows = [{"image": f"photos/{n}.png", "sentence": SENTENCES[n % 3]} for n in range(4)]
    table = write_table(folder / "a.csv", rows)
    args = PretrainingArgs("run", stage="flickr30k", train_file=table, validation_file=table, tokenizer=tokenizer)
    source = load_source(args, open_tokenizer(tokenizer))
    assert source.data.splits["train"]["sentence"][:] == [SENTENCES[n % 3] for n in range(4)]
    with pytest.raises(ValueError, match="--boxes_column: stage 'flickr30k' reads sentences only; leave it out"):
        load_source(replace(args, boxes_column="boxes"), open_tokenizer(tokenizer))
    with pytest.raises(ValueError, match="--streaming: pre-training reads stored regions, and texts of other images"):
        pretraining_task(replace(args, streaming=True), CPU)


@pytest.mark.parametrize("ids", ["stem", "name", "number"])
@pytest.mark.parametrize("extracted", [".", "photos"])
def test_stores_of_any_ids_serve_tables_of_paths(folder, tokenizer, ids, extracted):
    (folder / "photos" / "more").mkdir()
    (folder / "photos" / "3.png").rename(folder / "photos" / "more" / "3.png")
    store = str(folder / "store")
    extract = ["extract", str(folder / extracted), store, "--region_encoder", DETECTOR, "--ids", ids, "--cpu"]
    assert main(extract) == 0
    paths = [f"photos/{n}.png" for n in range(3)] + ["photos/more/3.png"]
    rows = [{"image": path, "question": "what is it", "answer": "red"} for path in paths]
    table = write_table(folder / "a.csv", rows)
    args = VqaArgs("run", train_file=table, validation_file=table, tokenizer=tokenizer, features_dir=store, cpu=True)
    task = vqa_task(args, CPU)
    assert task.collate([task.splits["train"][n] for n in range(4)])["visual_embeds"].shape[0] == 4


def test_answers_are_scored_once(folder, tokenizer, monkeypatch):
    scored = []
    monkeypatch.setattr(vqa, "answer_accuracy", lambda *given: scored.append(given) or 1.0)
    rows = [{"image": f"photos/{n}.png", "question": "what is it", "answer": "red"} for n in range(4)]
    table = write_table(folder / "a.csv", rows)
    files = {"train_file": table, "validation_file": table, "test_file": table, "images_dir": str(folder)}
    args = VqaArgs(str(folder / "run"), **files, tokenizer=tokenizer, region_encoder=DETECTOR, **SIZES, **TRAINING)
    args.max_steps = 1
    assert train(vqa_task(args, CPU), args, CPU)["splits"]["test"]["accuracy"] == 100.0
    assert len(scored) == 8  # of dev and test
    lines = (folder / "run" / "predictions_test.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"]["accuracy"] for line in lines] == [100.0] * 4
