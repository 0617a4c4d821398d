"""Question and image, multiplied (`config.image_fusion_size`), and the loss of what is in an image."""

import math

import pytest
import torch
from accelerate import Accelerator
from helpers import NUM_LABELS, alone, inputs_for, labels_for, pad, randomise, tiny_config, tiny_model
from huggingface_hub.errors import StrictDataclassClassValidationError
from published_layouts import write_tokenizer
from table_files import write_photos, write_table
from torch.nn import functional as F

from modeling_visualbert.data.image_words import answers_in_questions
from modeling_visualbert.hub_code.configuration_visualbert import VisualBertConfig
from modeling_visualbert.hub_code.explain_visualbert import gradient_x_input, logits_without_each_region
from modeling_visualbert.hub_code.modeling_visualbert import VisualBertForQuestionAnswering, VisualBertModel
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.loop import train

FUSED = {"image_fusion_size": 12, "image_fusion_dropout": 0.0, "mentioned_answers_weight": 0.3}
late_too = pytest.mark.parametrize("late", [False, True], ids=["early", "late"])


def some_answers(batch=3):
    return torch.eye(batch, NUM_LABELS["vqa"])


@late_too
def test_the_scores_are_those_of_the_formula(late):
    model, inputs = tiny_model("vqa", bypass_transformer=late, **FUSED), inputs_for("vqa")
    lengths, regions = inputs["attention_mask"].sum(1).tolist(), inputs["visual_attention_mask"].sum(1).tolist()
    with torch.no_grad():
        found = model(**inputs).logits
        states = model.visual_bert(**inputs).last_hidden_state
        for row, (length, count) in enumerate(zip(lengths, regions, strict=True)):
            words, cells = states[row, :length].mean(0), inputs["visual_embeds"][row, :count].mean(0)
            question = model.fusion.question(F.layer_norm(words, words.shape))
            product = question * model.fusion.image(F.layer_norm(cells, cells.shape))
            expected = model.cls(states[row, length - 2]) + model.fusion.answers(product)
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


@late_too
def test_padding_and_batching_change_nothing(late):
    model, inputs = tiny_model("vqa", bypass_transformer=late, **FUSED), inputs_for("vqa")
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(model(**pad(inputs, text=3, regions=2)).logits, expected, atol=2e-5, rtol=1e-5)
        single = torch.cat([model(**alone(inputs, row)).logits for row in range(3)])
    torch.testing.assert_close(single, expected, atol=2e-5, rtol=1e-5)


def test_an_image_serves_several_questions():
    model, inputs = tiny_model("vqa", **FUSED), inputs_for("vqa", batch=4)
    regions = {name: tensor[:2] for name, tensor in inputs.items() if name.startswith("visual")}
    twice = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in regions.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**{**inputs, **regions}).logits, model(**{**inputs, **twice}).logits)


def test_it_is_off_by_default_and_adds_nothing_without_regions():
    off = VisualBertForQuestionAnswering(tiny_config("vqa"))
    assert off.fusion is None and not [name for name in off.state_dict() if name.startswith("fusion")]
    fused = tiny_model("vqa", **FUSED)
    off.load_state_dict({name: value for name, value in fused.state_dict().items() if name in off.state_dict()})
    off, inputs = off.eval(), inputs_for("vqa")
    text = {name: value for name, value in inputs.items() if not name.startswith("visual")}
    with torch.no_grad():
        assert torch.equal(fused(**text).logits, off(**text).logits)
        assert not torch.allclose(fused(**inputs).logits, off(**inputs).logits, atol=1e-2)
        hidden = {**inputs, "visual_attention_mask": torch.zeros_like(inputs["visual_attention_mask"])}
        torch.testing.assert_close(fused(**hidden).logits, off(**hidden).logits)


def test_every_part_learns_and_the_image_is_explained():
    model, inputs = tiny_model("vqa", **FUSED).train(), inputs_for("vqa")
    inputs["visual_embeds"].requires_grad_()
    model(**inputs, **labels_for("vqa", inputs), mentioned_answers=some_answers()).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.fusion.parameters())
    assert inputs["visual_embeds"].grad.abs().sum() > 0
    inputs["visual_embeds"] = inputs["visual_embeds"].detach()
    model.eval()
    explained = gradient_x_input(model, torch.tensor([0, 1, 2]), **inputs)
    assert explained.shape == (3, 9 + 6) and explained[:, 9:].abs().sum() > 0
    assert logits_without_each_region(model, **inputs).shape == (3, 6, NUM_LABELS["vqa"])


def test_the_loss_of_the_image_is_added_with_its_weight():
    model, inputs = tiny_model("vqa", **FUSED), inputs_for("vqa")
    labels = labels_for("vqa", inputs)
    with torch.no_grad():
        more = model(**inputs, **labels, mentioned_answers=some_answers()).loss - model(**inputs, **labels).loss
        image_BF = model.fusion.project_image(inputs["visual_embeds"], inputs["visual_attention_mask"])
        scores = model.fusion.answers(image_BF) + model.fusion.image_bias
    expected = F.binary_cross_entropy_with_logits(scores, some_answers(), reduction="sum") / 3
    assert float(more) == pytest.approx(0.3 * float(expected), rel=1e-4)


def test_labels_of_images_that_cannot_be_used_are_refused():
    inputs = inputs_for("vqa")
    labels = {**labels_for("vqa", inputs), "mentioned_answers": some_answers()}
    text = {name: value for name, value in inputs.items() if not name.startswith("visual")}
    no_weight = tiny_model("vqa", **{**FUSED, "mentioned_answers_weight": 0.0})
    for model, given in ((tiny_model("vqa"), inputs), (no_weight, inputs), (tiny_model("vqa", **FUSED), text)):
        with pytest.raises(ValueError, match="`mentioned_answers` without regions, or for a model without"):
            model(**given, **labels)
    with pytest.raises(ValueError, match=r"`mentioned_answers` of shape \(3, 4\); expected \(batch_size, num_labels\)"):
        tiny_model("vqa", **FUSED)(**inputs, **{**labels, "mentioned_answers": torch.zeros(3, 4)})
    for name, value in (("image_fusion_size", -1), ("image_fusion_dropout", 1.0), ("mentioned_answers_weight", -0.1)):
        with pytest.raises(StrictDataclassClassValidationError, match=f"{name} {value}; expected"):
            VisualBertConfig(**{name: value})


def test_it_starts_at_one_and_is_saved_with_the_rest(tmp_path):
    model = VisualBertForQuestionAnswering(tiny_config("vqa", **FUSED))
    assert (model.fusion.question.bias == 1).all()
    assert model.fusion.image_bias[0].item() == pytest.approx(-math.log(NUM_LABELS["vqa"]))
    randomise(model).save_pretrained(tmp_path)
    inputs = inputs_for("vqa")
    with torch.no_grad():
        opened = VisualBertForQuestionAnswering.from_pretrained(tmp_path)
        assert torch.equal(opened(**inputs).logits, model(**inputs).logits)
        base = VisualBertModel.from_pretrained(tmp_path)
        assert torch.equal(base(**inputs).last_hidden_state, model.visual_bert(**inputs).last_hidden_state)


# ------------------------------------------------------------------------------------------------------------------- words


def test_answers_that_the_questions_about_an_image_mention():
    answers = ["<unk>", "table", "night_stand", "books", "2", "chair", "red chair"]
    questions = ["what is on the Night stand?", "are 2 chairs by the tables", "a red chair", "why", "one book"]
    found = answers_in_questions(questions, ["a", "a", "b", "c", 7], answers)
    assert found == {"a": [1, 2, 5], "b": [5, 6], 7: [3]}


ROWS = [
    {"image": "photos/0.png", "question": "what is it", "answer": "red"},
    {"image": "photos/0.png", "question": "is it green", "answer": "no"},
    {"image": "photos/1.png", "question": "what is it", "answer": "green"},
    {"image": "photos/2.png", "question": "what is it", "answer": "blue"},
]


@pytest.fixture
def make_args(tmp_path, monkeypatch):
    write_photos(tmp_path / "photos")
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(tmp_path / "cache"))
    words = sorted({word for row in ROWS for word in row["question"].split()})
    tokenizer = write_tokenizer(tmp_path / "tokenizer", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *words])
    table = write_table(tmp_path / "rows.jsonl", ROWS)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    fields = {"train_file": table, "validation_file": table, "tokenizer": str(tokenizer), "min_answer_count": 1}
    fields |= {"batch_size": 4, "max_steps": 2, "dropout": 0.0, "cpu": True, "region_encoder": "corpus", **sizes}
    fields |= {"image_fusion_size": 8, "mentioned_answers_weight": 0.1}
    return lambda **changes: VqaArgs(str(tmp_path / "run"), **{**fields, **changes})


def test_a_row_learns_what_questions_about_its_image_mention_and_no_answers(make_args):
    task = vqa_task(make_args(), Accelerator(cpu=True))
    batch = task.collate([task.splits["train"][number] for number in range(4)])
    answers = task.processor.answers
    mentioned = [{answers[index] for index in row.nonzero().flatten().tolist()} for row in batch["mentioned_answers"]]
    # "red" and "no" are answers about the first image, "green" is in a question about it.
    assert mentioned == [{"green"}, {"green"}, set(), set()]


def test_a_run_with_it_is_trained_and_its_model_opened(make_args, tmp_path):
    args = make_args()
    assert (
        train(vqa_task(args, Accelerator(cpu=True)), args, Accelerator(cpu=True))["splits"]["dev"]["num_examples"] == 4
    )
    opened = VisualBertForQuestionAnswering.from_pretrained(tmp_path / "run" / "best")
    assert opened.config.image_fusion_size == 8 and opened.config.mentioned_answers_weight == 0.1
    # Another run may start from it, but not without the flag: what was trained would be lost silently.
    start = {"init_from": str(tmp_path / "run" / "best"), "tokenizer": None}
    for size in (8, 4):  # another size is new
        model = vqa_task(make_args(**start, image_fusion_size=size), Accelerator(cpu=True)).model
        kept = torch.equal(model.fusion.question.weight, opened.fusion.question.weight) if size == 8 else None
        assert kept is not False and model.config.image_fusion_size == size
    with pytest.raises(ValueError, match="its configuration has no place for the weights fusion"):
        vqa_task(make_args(**start, image_fusion_size=0, mentioned_answers_weight=0.0), Accelerator(cpu=True))


def test_the_text_alone_has_no_words_of_images(make_args):
    task = vqa_task(make_args(text_only=True), Accelerator(cpu=True))
    batch = task.collate([task.splits["train"][0]])
    assert "mentioned_answers" not in batch and task.model(**batch).loss > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_fusion_size": 0}, "--mentioned_answers_weight without --image_fusion_size; expected both"),
        ({"image_fusion_size": -1}, "--image_fusion_size -1; expected at least 0"),
        ({"image_fusion_dropout": 1.0}, r"--image_fusion_dropout 1.0; expected a number in \[0, 1\)"),
        ({"streaming": True}, "--mentioned_answers_weight with --streaming"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(make_args, changes, message):
    with pytest.raises(ValueError, match=message):
        make_args(**changes)
