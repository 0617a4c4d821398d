"""Explanations of an answer against plain loops, small changes of the input, and inputs without the region."""

from types import SimpleNamespace

import pytest
import torch
from helpers import NUM_LABELS, inputs_for, pad, tiny_model

from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.hub_code.explain_visualbert import (
    attention_rollout,
    explain_answers,
    gradient_x_input,
    logits_without_each_region,
    outputs_with_attention,
)
from modeling_visualbert.hub_code.processing_visualbert import VisualBertProcessor

ANSWERS = ["<unk>", *(f"answer {i}" for i in range(1, NUM_LABELS["vqa"]))]


@pytest.fixture(scope="module")
def model():
    return tiny_model("vqa")


@pytest.fixture(scope="module")
def inputs():
    return inputs_for("vqa")


@pytest.mark.parametrize("late_fusion", [False, True])
@torch.no_grad()
def test_rollout_is_that_of_plain_loops(inputs, late_fusion):
    model = tiny_model("vqa", bypass_transformer=late_fusion)
    rolled = attention_rollout(model, **inputs)
    model.set_attn_implementation("eager")
    layers = model(**inputs, output_attentions=True).attentions
    text, size = 9, 15
    for row in range(3):
        position = int(inputs["attention_mask"][row].sum()) - 2
        weights = [
            float(place == position) for place in range(size)
        ]  # of each place in what is read, from the top down
        for layer in reversed(layers):
            mixed = layer[row].mean(dim=0)
            below = [weight / 2 for weight in weights]
            for place, weight in enumerate(weights):
                if place >= len(mixed):  # a region, in a layer that reads only text
                    below[place] += weight / 2
                    continue
                for source in range(len(mixed)):
                    below[source] += weight / 2 * float(mixed[place, source])
            weights = below
        assert rolled[row].tolist() == pytest.approx(weights, abs=1e-5)
        assert sum(weights) == pytest.approx(1.0, abs=1e-5)
        assert rolled[row, text:].sum() > 0.05
        assert rolled[row, text:][inputs["visual_attention_mask"][row] == 0].sum() == 0


def test_gradients_are_those_of_small_changes(inputs):
    model = tiny_model("vqa").double()
    given = {**inputs, "visual_embeds": inputs["visual_embeds"].double()}
    labels = torch.tensor([3, 0, 7])
    found = gradient_x_input(model, labels, **given)
    assert found.shape == (3, 15)
    step = 1e-5
    words = model.get_input_embeddings()(given["input_ids"]).detach()
    rest = {name: tensor for name, tensor in given.items() if name not in ("input_ids", "visual_embeds")}

    def log_probability(row, words, regions):
        logits = model(inputs_embeds=words, visual_embeds=regions, **rest).logits
        return logits[row].log_softmax(dim=-1)[labels[row]].item()

    for row in range(3):
        for place in (0, 3, 9, 11):
            changed = []
            for sign in (1, -1):
                both = [words.clone(), given["visual_embeds"].clone()]
                part, index = (0, place) if place < 9 else (1, place - 9)
                both[part][row, index] *= 1 + sign * step  # longer or shorter: along the input itself
                with torch.no_grad():
                    changed.append(log_probability(row, *both))
            slope = (changed[0] - changed[1]) / (2 * step)
            assert found[row, place].item() == pytest.approx(slope, rel=1e-4, abs=1e-7)


@torch.no_grad()
def test_without_a_region_is_without_it(model, inputs):
    """Masking a region is the same as not having it in the input at all."""
    found = logits_without_each_region(model, **inputs)
    assert found.shape == (3, 6, NUM_LABELS["vqa"])
    for row in range(3):
        count = int(inputs["visual_attention_mask"][row].sum())
        for region in range(count):
            kept = [i for i in range(count) if i != region]
            left = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
            for name in ("visual_embeds", "visual_attention_mask", "visual_token_type_ids"):
                left[name] = left[name][:, kept]
            torch.testing.assert_close(found[row, region], model(**left).logits[0], atol=1e-5, rtol=1e-5)
        whole = model(**{name: tensor[row : row + 1] for name, tensor in inputs.items()}).logits[0]
        for region in range(count, 6):
            torch.testing.assert_close(found[row, region], whole, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def processor():
    return VisualBertProcessor(tokenizer=corpus_tokenizer(), answers=ANSWERS, region_dim=10)


@pytest.fixture(scope="module")
def answering():
    return tiny_model("vqa", vocab_size=len(corpus_tokenizer()))


QUESTIONS = ["What color is it?", "Is there a small red circle to the left of the big star?"]


@pytest.mark.parametrize("inference", [True, False])
def test_explained_answers(answering, processor, inference):
    generator = torch.Generator().manual_seed(0)
    one = {"visual_embeds": torch.randn(4, 10, generator=generator)}
    with torch.inference_mode(inference):
        inputs = processor(images=one, text=QUESTIONS)
        explained = explain_answers(answering, processor, inputs)
        answers = processor.post_process_question_answering(answering(**inputs), top_k=1)
        rollout = attention_rollout(answering, **inputs)
    for row, (found, ((best,))) in enumerate(zip(explained, answers, strict=True)):
        assert (found["answer"], found["score"]) == (best["answer"], pytest.approx(best["score"], abs=1e-6))
        assert found["answer"] != "<unk>"
        pieces = corpus_tokenizer().tokenize(QUESTIONS[row].rstrip("?").lower())
        assert [word["piece"] for word in found["words"]] == ["[CLS]", *pieces, "?", "[MASK]", "[SEP]"]
        assert sum(part["rollout"] for part in (*found["words"], *found["regions"])) == pytest.approx(1, abs=1e-5)
        assert found["regions"][2]["rollout"] == pytest.approx(rollout[row, -2].item(), abs=1e-6)
        assert len(found["regions"]) == 4
        for region, kept in enumerate([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]):
            left = {"visual_embeds": one["visual_embeds"][kept]}
            with torch.no_grad():
                logits = answering(**processor(images=left, text=QUESTIONS[row])).logits
            ((without, *_), scores) = (
                processor.post_process_question_answering(logits, 1)[0],
                processor.answer_scores(logits),
            )
            assert found["regions"][region]["answer_without"] == without["answer"]
            drop = found["score"] - scores[0, ANSWERS.index(found["answer"])].item()
            assert found["regions"][region]["drop"] == pytest.approx(drop, abs=1e-5)
    assert len({region["answer_without"] for found in explained for region in found["regions"]}) > 1


def test_padding_changes_nothing(answering, processor):
    inputs = {n: t for n, t in inputs_for("vqa").items() if not n.endswith("token_type_ids")}
    inputs["input_ids"] = inputs["input_ids"] % len(corpus_tokenizer())
    plain, padded = (explain_answers(answering, processor, given) for given in (inputs, pad(inputs, text=2, regions=3)))
    for first, second in zip(plain, padded, strict=True):
        assert first["answer"] == second["answer"]
        for part in ("words", "regions"):
            for one, other in zip(first[part], second[part], strict=True):
                for key, value in one.items():
                    assert other[key] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value)


def test_no_regions(answering, processor):
    inputs = processor(images={"visual_embeds": torch.zeros(0, 10)}, text="Is it red?")
    (found,) = explain_answers(answering, processor, inputs)
    assert found["regions"] == []
    assert sum(word["rollout"] for word in found["words"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "explain",
    [
        attention_rollout,
        logits_without_each_region,
        lambda model, **inputs: gradient_x_input(model, torch.zeros(3).long(), **inputs),
        lambda model, **inputs: explain_answers(model, None, inputs),
    ],
)
@pytest.mark.parametrize("missing", ["visual_embeds", "attention_mask"])
def test_pixels_and_texts_without_mask_are_refused(model, inputs, explain, missing):
    given = {name: tensor for name, tensor in inputs.items() if name != missing}
    with pytest.raises(ValueError, match=f"explanations need `{missing}`.*get_image_features"):
        explain(model, **given)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_model_has_the_attention_afterwards_that_it_had_before(inputs, implementation):
    model = tiny_model("vqa")
    model.set_attn_implementation(implementation)
    outputs = outputs_with_attention(model, **inputs)
    assert [weights.shape for weights in outputs.attentions] == [(3, 4, 15, 15)] * 2
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("attentions", [None, (), (None, None)])
def test_a_model_without_attention_weights_is_refused(inputs, attentions):
    model = tiny_model("vqa")
    model.forward = lambda **inputs: SimpleNamespace(attentions=attentions)
    with pytest.raises(ValueError, match="VisualBertForQuestionAnswering returns no attention weights"):
        outputs_with_attention(model, **inputs)


def test_leaving_out_regions_where_there_are_none(model, inputs):
    none = {name: tensor[:, :0] if "visual" in name else tensor for name, tensor in inputs.items()}
    assert logits_without_each_region(model, **none).shape == (3, 0, NUM_LABELS["vqa"])


def test_each_of_two_questions_has_the_regions_of_its_image(answering, processor):
    regions = [{"visual_embeds": torch.ones(count, 10)} for count in (4, 2)]
    explained = explain_answers(answering, processor, processor(images=regions, text=QUESTIONS))
    assert [len(found["regions"]) for found in explained] == [4, 2]
