"""docs/trainer.md: its example trains a small model on a small table, and what it says about labels holds."""

import pytest
import torch
from documents import ROOT, blocks
from helpers import inputs_for, labels_for, tiny_model
from PIL import Image
from test_tower_sizes import save_tower
from transformers import Trainer, TrainingArguments
from user_folder import COLORS, save_bert, write_photos

from modeling_visualbert.hub_code.modeling_visualbert import VisualBertForQuestionAnswering
from modeling_visualbert.hub_code.pipeline_visualbert import ask
from modeling_visualbert.hub_code.processing_visualbert import VisualBertProcessor

DOCUMENT = (ROOT / "docs" / "trainer.md").read_text()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with `data/photos.csv`, 20 questions about photos of one colour, and small models called as the real ones."""
    monkeypatch.chdir(tmp_path)
    save_bert(tmp_path / "google-bert" / "bert-base-uncased")
    save_tower(tmp_path / "microsoft" / "resnet-50")
    write_photos(tmp_path / "data")
    return tmp_path


def test_the_example_trains_and_answers(place):
    (code,) = [block for language, block in blocks(DOCUMENT) if language == "python"]
    assert len([line for line in code.splitlines() if line]) <= 36
    # CPU and a rate for small models; everything else is as it is written.
    code = code.replace("learning_rate=5e-5", "learning_rate=2e-2, use_cpu=True, report_to='none', disable_tqdm=True")
    scope = {}
    exec(compile(code, "docs/trainer.md", "exec"), scope)
    log = scope["trainer"].state.log_history
    assert [line["eval_accuracy"] for line in log if "eval_accuracy" in line][-1] == 1.0
    model = VisualBertForQuestionAnswering.from_pretrained(place / "runs/trainer/best").eval()
    processor = VisualBertProcessor.from_pretrained(place / "runs/trainer/best")
    for name, color in COLORS.items():
        answers, _ = ask(model, processor, Image.new("RGB", (64, 64), color), ["What color is it?"])
        assert answers[0][0]["answer"] == name


def smoothed_loss(head, labels, tmp_path, factor):
    """Loss of one step of the `Trainer` with label smoothing."""
    model, inputs = tiny_model(head), inputs_for(head)
    rows = [{name: value[i] for name, value in inputs.items()} | {"labels": label} for i, label in enumerate(labels)]
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=len(rows),
        max_steps=1,
        learning_rate=0.0,
        label_smoothing_factor=factor,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = Trainer(model, arguments, train_dataset=rows).train().training_loss
    return loss, model.eval()(**inputs).logits


@pytest.mark.parametrize("head", ["nlvr2", "vcr"])
def test_class_numbers_can_be_smoothed(head, tmp_path):
    labels = labels_for(head, inputs_for(head))["labels"]
    loss, logits = smoothed_loss(head, labels, tmp_path, 0.3)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_a_question_without_known_answers_adds_nothing():
    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    labels = labels_for("vqa", inputs)["labels"]
    labels[0] = 0
    rest = {name: value[1:] for name, value in inputs.items()}
    alone = model(**rest, labels=labels[1:], num_items_in_batch=len(labels)).loss
    assert model(**inputs, labels=labels).loss.item() == pytest.approx(alone.item(), rel=1e-5)


def test_soft_targets_are_smoothed_as_the_document_says():
    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    classes = model.config.num_labels
    labels = torch.nn.functional.one_hot(torch.arange(len(inputs["input_ids"])) % classes, classes).float()
    smooth = 0.9 * labels + 0.1 / classes
    outputs = model(**inputs, labels=smooth)
    entropy = -(smooth * smooth.log()).sum(-1).mean()  # a divergence is a cross entropy without it
    expected = torch.nn.functional.cross_entropy(outputs.logits, labels.argmax(-1), label_smoothing=0.1) - entropy
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-4)
