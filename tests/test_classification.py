"""An image or two with a text -> a label: forms of data, what is refused, scores, and a model from training to answers."""

import json
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageColumn
from published_layouts import write_tokenizer
from table_files import write_photos, write_table
from transformers import AutoModelForSequenceClassification, AutoProcessor

from modeling_visualbert.cli import main
from modeling_visualbert.corpus.vocabulary import ASSETS
from modeling_visualbert.data.label_table import LabelTables
from modeling_visualbert.data.table_images import TableImages
from modeling_visualbert.data.tables import open_files
from modeling_visualbert.hub_code.losses_visualbert import cross_entropy
from modeling_visualbert.hub_code.processing_visualbert import VisualBertProcessor
from modeling_visualbert.metrics.classification import best_threshold, calibration_error, classification_scores
from modeling_visualbert.tasks.classification import (
    ClassificationArgs,
    balanced_weights,
    classification_task,
    label_tables,
    load_label_data,
)
from modeling_visualbert.tokenizer import open_tokenizer
from modeling_visualbert.training.loop import train

CPU = Accelerator(cpu=True)
DETECTOR = str(ASSETS / "shapes_detector")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TRAINING = {"batch_size": 4, "learning_rate": 2e-2, "dropout": 0.0, "cpu": True, "evals_per_epoch": 0.1}
TEXTS = ["it is red", "it is green", "it is red", "it is white"]
LABELS = ["entailment", "contradiction", "contradiction", "entailment"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for tables, with images in `photos`; nothing is kept in the caches of this machine."""
    write_photos(tmp_path / "photos")
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def tokenizer(folder):
    words = sorted({word for text in TEXTS for word in text.split()})
    return str(write_tokenizer(folder / "tokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *words]))


def rows(labels=LABELS, **columns):
    """Four records with an image, a text and a label each, and other columns."""
    found = [{"image": f"photos/{n}.png", "text": TEXTS[n], "label": labels[n]} for n in range(4)]
    return [{**record, **{name: value[n] for name, value in columns.items()}} for n, record in enumerate(found)]


def read(path, tables=None, **options):
    (table,) = open_files({"train": str(path)}).values()
    tables = tables or LabelTables()
    return tables(table, TableImages(), **options), tables


def refused(path, tables=None, **options):
    """The error about a table: one line."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(path, tables, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# ----------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    "labels, names",
    [
        (LABELS, ["contradiction", "entailment"]),
        ([1, 0, 0, 1], ["0", "1"]),
        ([10, 9, 9, 10], ["9", "10"]),
        ([True, False, False, True], ["False", "True"]),
        ([1.0, 0.0, 0.0, 1.0], ["0", "1"]),
        (["b", " a", "a ", "b"], ["a", "b"]),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_every_form_of_labels(folder, name, labels, names):
    if name == "a.csv" and labels[0] == 1.0:  # texts stay what they are in CSV files
        names = [str(label) for label in sorted(set(labels))]
    found, tables = read(write_table(folder / name, rows(labels)))
    assert tables.labels == names and tables.num_images == 1
    assert found["label"][:] == [1, 0, 0, 1] and found["text"][:] == TEXTS
    assert found["images"][:] == [[str(folder / "photos" / f"{number}.png")] for number in range(4)]


def test_classes_of_data_sets_keep_their_order(folder):
    features = Features(
        {"image": ImageColumn(), "text": Value("string"), "label": ClassLabel(names=["yes", "no", "?"])}
    )
    records = [{**row, "image": str(folder / row["image"]), "label": n % 2} for n, row in enumerate(rows())]
    Dataset.from_list(records, features=features).save_to_disk(str(folder / "saved"))
    args = ClassificationArgs("run", dataset_name=str(folder / "saved"), train_val_split=0.3)
    tables = label_tables(args)
    data = load_label_data(args, tables)
    assert tables.labels == ["yes", "no", "?"]
    assert {role: len(split) for role, split in data.splits.items()} == {"train": 3, "dev": 1}


def test_pairs_of_images(folder):
    pairs = [[f"photos/{n}.png", "photos/3.png"] for n in range(4)]
    found, tables = read(write_table(folder / "a.jsonl", rows(image=pairs)))
    assert tables.num_images == 2 and found["images"][1] == [str(folder / "photos" / f"{n}.png") for n in (1, 3)]
    single = write_table(folder / "b.jsonl", rows(image=[pairs[0], pairs[1], ["photos/0.png"], pairs[3]]))
    assert refused(single) == "row 2 has 1 image; expected two"
    sides = [{"a": "photos/0.png", "b": "photos/1.png", "text": "x", "label": str(n)} for n in range(2)]
    found, _ = read(write_table(folder / "c.csv", sides), LabelTables(image_column="a,b"))
    assert len(found["images"][0]) == 2


HATEFUL_MEMES = [
    {"id": 42953, "img": "img/0.png", "label": 0, "text": "it is red"},
    {"id": 23058, "img": "img/1.png", "label": 1, "text": "it is green"},
]


def test_hateful_memes_as_published(folder):
    write_photos(folder / "memes" / "img")
    write_table(folder / "memes" / "train.jsonl", HATEFUL_MEMES * 1)
    write_table(folder / "memes" / "dev_seen.jsonl", HATEFUL_MEMES)
    unlabelled = [{key: value for key, value in row.items() if key != "label"} for row in HATEFUL_MEMES]
    write_table(folder / "memes" / "test_seen.jsonl", unlabelled)
    args = ClassificationArgs("run", data_dir=str(folder / "memes"), dev_split="dev_seen", test_split="test_seen")
    tables = label_tables(args)
    splits = load_label_data(args, tables).splits
    assert tables.labels == ["0", "1"] and splits["dev"]["identifier"][:] == [42953, 23058]
    assert splits["train"]["label"][:] == [0, 1] and splits["test"]["label"][:] == [None, None]
    with pytest.raises(FileNotFoundError, match=r"no file of split 'dev'; expected a file like \*\*/dev.jsonl or"):
        load_label_data(ClassificationArgs("run", data_dir=str(folder / "memes")), label_tables(args))


def snli_ve(gold, number):
    sentence = {"sentence1": "A woman in red.", "sentence2": TEXTS[number], "annotator_labels": [gold]}
    return {
        "Flickr30K_ID": str(number),
        "captionID": f"{number}.jpg#0",
        "gold_label": gold,
        **sentence,
        "pairID": f"{number}r1n",
    }


def test_snli_ve_as_published(folder, caplog):
    for number in range(4):
        (folder / "photos" / f"{number}.png").rename(folder / "photos" / f"{number}.jpg")
    golds = ["entailment", "-", "neutral", "contradiction"]
    records = [snli_ve(gold, number) for number, gold in enumerate(golds)]
    path = write_table(folder / "snli_ve_train.jsonl", records)
    write_table(folder / "snli_ve_dev.jsonl", records)
    args = ClassificationArgs("run", data_dir=str(folder), images_dir=str(folder / "photos"))
    tables = label_tables(args)
    data = load_label_data(args, tables)
    assert tables.labels == ["contradiction", "entailment", "neutral"]
    train_rows = data.splits["train"]
    assert train_rows["identifier"][:] == ["0r1n", "2r1n", "3r1n"] and train_rows["text"][0] == "it is red"
    assert train_rows["label"][:] == [1, 2, 0] and train_rows["images"][2] == [str(folder / "photos" / "3.jpg")]
    assert (
        data.skipped[0] == f"{path}: row 1: the gold label is '-': its annotators disagreed" and len(data.skipped) == 2
    )
    assert "left out 2 rows without a gold label" in caplog.text
    missing = write_table(folder / "b.jsonl", [snli_ve("neutral", 1), {**snli_ve("neutral", 2), "Flickr30K_ID": "9"}])
    assert refused(missing, LabelTables(labels=["neutral"])).startswith("row 1: 'Flickr30K_ID': no such image file")


# --------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "records, message",
    [
        (rows(["a", None, "b", "a"]), "row 1: the label is None; expected a name, a whole number or a truth value"),
        (rows(["a", "", "b", "a"]), "row 1: the label is ''; expected a name"),
        (rows([0.5, 1.0, 0.0, 1.0]), "row 0: the label is 0.5; expected a name"),
        (rows(["a"] * 4), "every label is 'a'; expected at least two different ones in 'label'"),
        (rows(text=["a", " ", "b", "c"]), "row 1: the text is ' '; expected at least one word"),
        (rows(id=[1, 2, 2, 3]), "row 2: identifier 2 occurs twice; expected it only once"),
        (rows(image=["photos/0.png", "photos/9.png"] * 2), "row 1: 'image': no such image file"),
        (rows(image=[["photos/0.png"] * 3] * 4), "row 0 has 3 images; expected one, or a pair in every row"),
    ],
)
def test_bad_rows_are_named(folder, records, message):
    assert refused(write_table(folder / "a.json", records)).startswith(message)


def test_bad_rows_can_be_left_out(folder):
    skipped = []
    found, tables = read(write_table(folder / "a.json", rows(["a", None, "b", "a"])), skipped=skipped)
    assert found["identifier"][:] == [0, 2, 3] and len(skipped) == 1 and tables.labels == ["a", "b"]


def test_labels_that_were_not_trained_are_refused_by_row(folder):
    own = write_table(folder / "a.csv", rows())
    other = write_table(folder / "b.csv", rows(["entailment", "neutral", "entailment", "contradiction"]))
    args = ClassificationArgs("run", train_file=own, validation_file=other)
    message = "row 1: the label is 'neutral'; expected one that is trained: 'contradiction', 'entailment'"
    with pytest.raises(ValueError, match=f"b.csv: {message}$"):
        load_label_data(args, label_tables(args))


def test_columns_that_are_missing(folder):
    path = write_table(folder / "a.csv", [{"img": "photos/0.png", "claim": "x", "class": "y"}])
    assert refused(path).startswith("no column 'text' or 'sentence' or 'statement'")
    assert refused(path, LabelTables(text_column="claim")).endswith(
        "there are 'img', 'claim', 'class': pass --label_column"
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"threshold": "1.5"}, r"--threshold 1.5; expected a number in \[0, 1\], or dev"),
        ({"threshold": "half"}, r"--threshold half; expected a number in \[0, 1\], or dev"),
        ({"init_from": "runs/none/best"}, "runs/none/best.*train the earlier stage first, or pass another --init_from"),
        ({"threshold": "0.5", "labels": "abca"}, "--threshold 0.5 with 3 labels; it is for two"),
        ({"best_metric": "auroc", "labels": "abca"}, "--best_metric auroc with 3 labels; expected two"),
        (
            {"best_metric": "auroc", "labels": "abba", "dev": 1},
            "--best_metric auroc, but all 1 examples of the dev split have the label 'a'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(folder, tokenizer, fields, message):
    labels, dev = fields.pop("labels", None), fields.pop("dev", 4)
    if labels is not None:
        fields |= {"train_file": write_table(folder / "a.csv", rows(labels)), "tokenizer": tokenizer}
        fields["validation_file"] = write_table(folder / "b.csv", rows(labels)[:dev])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        classification_task(ClassificationArgs(str(folder / "run"), **fields, cpu=True), CPU)


# ---------------------------------------------------------------------------------------------------------------- scores


def test_scores_of_a_hand_made_example():
    scores = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]]
    found = classification_scores(scores, [0, 1, 0, 1], [0, 0, 1, 1])
    assert found["accuracy"] == 0.5 and found["f1"] == {0: 0.5, 1: 0.5} and found["macro_f1"] == 0.5
    assert found["auroc"] == 0.75  # of the four pairs, only 0.6 against 0.3 is wrong
    # Each confidence is in a bin of its own: 0.9 right, 0.6 wrong, 0.7 wrong, 0.8 right.
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.7 + 0.2) / 4) and found["num_examples"] == 4
    assert "auroc" not in classification_scores(scores[:2], [0, 1], [0, 0])
    three = classification_scores([[0.2, 0.3, 0.5]], [2], [2])
    assert "auroc" not in three and three["f1"] == {2: 1.0}
    with pytest.raises(ValueError, match="4 scores and 3 labels for 4 examples; expected as many"):
        classification_scores(scores, [0, 1, 0], [0, 0, 1, 1])


def test_calibration_counts_by_bin():
    scores = np.array([[0.61, 0.39]] * 4)  # one bin: three of four are right
    assert calibration_error(scores, [0, 0, 0, 1]) == pytest.approx(abs(0.61 - 0.75))
    assert calibration_error(np.array([[1.0, 0.0]]), [0]) == 0.0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_threshold_is_the_best_of_all(metric):
    draw = random.Random(1)
    for _ in range(30):
        scores = [round(draw.random(), 1 + draw.randrange(2)) for _ in range(12)]
        truth = [0, 1, *(int(draw.random() < 0.3 + 0.4 * score) for score in scores[2:])]

        def quality(threshold, scores=scores, truth=truth):
            given = [int(score >= threshold) for score in scores]
            right = [sum(a == b == label for a, b in zip(given, truth, strict=True)) for label in (0, 1)]
            if metric == "accuracy":
                return sum(right) / len(truth)
            return sum(right[label] / (given.count(label) + truth.count(label)) for label in (0, 1))

        found = best_threshold(scores, truth, metric)
        assert quality(found) == pytest.approx(max(map(quality, np.linspace(0, 1, 401))))
    assert best_threshold([0.9, 0.8, 0.1], [1, 1, 0], metric) == pytest.approx(0.5)  # of all between 0.1 and 0.8
    assert best_threshold([0.9, 0.1], [1, 1], metric) is None


def test_balanced_weights_and_the_loss():
    weights = balanced_weights(Dataset.from_dict({"label": [0, 0, 0, 1]}), 3)
    assert weights == [pytest.approx(2 / 3), 2.0, 1.0]
    logits, labels = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1])
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected = (each * torch.tensor([2 / 3, 2.0])).sum() / 2
    assert cross_entropy(logits, labels, None, weights) == pytest.approx(float(expected))
    smoothed = 0.7 * each + 0.3 * -logits.log_softmax(-1).mean(-1)
    assert cross_entropy(logits, labels, label_smoothing=0.3) == pytest.approx(float(smoothed.mean()))


# ------------------------------------------------------------------------------------------------------------- processor


def test_a_threshold_decides(tokenizer):
    processor = VisualBertProcessor(None, open_tokenizer(tokenizer), task="nlvr2", labels=["ok", "bad"], threshold=0.25)
    logits = torch.tensor([[0.7, 0.3], [0.9, 0.1]]).log()
    assert [found["label"] for found in processor.post_process_visual_reasoning(logits)] == ["bad", "ok"]
    ranked = processor.post_process_visual_reasoning(logits, top_k=5)[0]
    assert [found["label"] for found in ranked] == ["bad", "ok"] and ranked[0]["score"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="3 logits for 2 labels; expected as many"):
        processor.post_process_visual_reasoning(torch.zeros(1, 3))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"task": "vqa", "labels": ["a", "b"]}, "labels for task 'vqa'; expected it for 'nlvr2' only"),
        ({"task": "vqa", "num_images": 2}, "num_images 2 for task 'vqa'; expected 1"),
        ({"task": "nlvr2", "num_images": 3}, "num_images 3 for task 'nlvr2'; expected 1 or 2"),
        ({"task": "nlvr2", "labels": ["a", "a"]}, r"labels \['a', 'a'\]; expected at least two different names"),
        ({"task": "nlvr2", "labels": list("abc"), "threshold": 0.5}, "threshold 0.5 for 3 labels"),
        ({"task": "nlvr2", "threshold": 2}, r"threshold 2 for 2 labels; expected a number in \[0, 1\]"),
    ],
)
def test_processors_refuse_what_cannot_be(tokenizer, fields, message):
    with pytest.raises(ValueError, match=message):
        VisualBertProcessor(None, open_tokenizer(tokenizer), **fields)


# -------------------------------------------------------------------------------------------------------------- training


def run(folder, tokenizer, table, **fields):
    fields = {"train_file": table, "validation_file": table, "tokenizer": tokenizer, **fields}
    args = ClassificationArgs(str(folder / "run"), **{**SIZES, **TRAINING, "epochs": 80.0, **fields})
    task = classification_task(args, CPU)
    return task, train(task, args, CPU)["splits"]["dev"]


def test_a_model_is_trained_on_single_images_and_evaluated(folder, tokenizer, capsys):
    """The same text has another label with another image: it is learned by heart, from pixels."""
    table = write_table(folder / "a.csv", rows())
    task, metrics = run(folder, tokenizer, table, grid_backbone="small", grid_size="2", learning_rate=5e-3)
    assert metrics["accuracy"] == metrics["auroc"] == metrics["macro_f1"] == 100.0
    assert metrics["per_label_f1"] == {"contradiction": 100.0, "entailment": 100.0} and metrics["ece"] < 50
    best = str(folder / "run" / "best")
    processor, model = AutoProcessor.from_pretrained(best), AutoModelForSequenceClassification.from_pretrained(best)
    assert (processor.num_images, processor.labels) == (1, ["contradiction", "entailment"])
    assert processor.threshold == task.processor.threshold is not None
    assert json.loads((folder / "run" / "metrics.json").read_text())["run"]["threshold"] == processor.threshold
    assert model.config.id2label == {0: "contradiction", 1: "entailment"} and model.config.class_weights is None
    inputs = processor(images=[str(folder / "photos" / "2.png")], text=["it is red"])
    found = processor.post_process_visual_reasoning(model(**inputs))
    assert inputs["pixel_values"].ndim == 4 and found[0]["label"] == "contradiction"
    output = folder / "evaluated"
    command = ["evaluate", "--model", best, "--output_dir", str(output), "--cpu", "--test_file"]
    assert main([*command, table]) == 0
    assert json.loads((output / "metrics.json").read_text())["splits"]["test"]["accuracy"] == 100.0
    records = [json.loads(line) for line in (output / "predictions_test.jsonl").read_text().splitlines()]
    assert records[1]["label"] == "contradiction" and sum(records[1]["scores"]) == pytest.approx(1)
    assert records[1]["metrics"] == {"accuracy": 100.0}
    capsys.readouterr()
    assert main([*command, write_table(folder / "b.csv", rows(["neutral"] * 4)), "--overwrite"]) == 2
    assert "row 0: the label is 'neutral'; expected one that is trained" in capsys.readouterr().err
    unlabelled = [{"image": row["image"], "text": row["text"]} for row in rows()]
    assert main([*command, write_table(folder / "c.csv", unlabelled), "--overwrite"]) == 0
    assert "has no labels, so nothing is scored: 4 examples are predicted" in capsys.readouterr().out


def test_three_labels_and_two_images_with_weights(folder, tokenizer):
    pairs = [[f"photos/{n}.png", "photos/3.png"] for n in range(4)]
    table = write_table(folder / "a.json", rows(["a", "b", "c", "c"], image=pairs))
    fields = {"class_weights": "balanced", "best_metric": "macro_f1", "region_encoder": DETECTOR, "epochs": 2.0}
    fields["label_smoothing"] = 0.1
    task, metrics = run(folder, tokenizer, table, **fields)
    assert {"accuracy", "macro_f1", "ece", "per_label_f1"} < metrics.keys() and "auroc" not in metrics
    assert task.processor.num_images == 2 and task.fit_threshold is None and task.processor.threshold is None
    assert task.model.config.task_options["num_images"] == 2 and task.model.config.label_smoothing == 0.1
    assert task.model.config.class_weights == [pytest.approx(4 / 3), pytest.approx(4 / 3), pytest.approx(2 / 3)]
    segments = task.collate([task.splits["train"][0]]).get("visual_token_type_ids")
    assert segments is None or set(segments.flatten().tolist()) <= {0, 1}


def test_a_model_that_classifies_is_trained_further_with_its_labels(folder, tokenizer, caplog):
    table = write_table(folder / "a.json", rows([1, 0, 0, 1]))
    fields = {"region_encoder": DETECTOR, "max_steps": 1}
    first, _ = run(folder, tokenizer, table, **fields)
    best = str(folder / "run" / "best")
    again = ClassificationArgs("again", train_file=table, validation_file=table, init_from=best, cpu=True)
    weights = classification_task(again, CPU).model.cls.weight
    assert torch.equal(weights, AutoModelForSequenceClassification.from_pretrained(best).cls.weight)
    assert first.processor.labels == ["0", "1"] and "given up" not in caplog.text
    again.train_file = again.validation_file = write_table(folder / "b.json", rows())
    other = classification_task(again, CPU).model.cls.weight
    assert not torch.equal(weights, other)
    assert f"the 2 labels of {best} are given up for 2 others" in caplog.text
