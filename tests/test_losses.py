"""The losses of the heads: sums over labels, divided by their number here or in the whole step."""

import pytest
import torch
from helpers import inputs_for, labels_for, tiny_model
from torch.nn import functional as F

from modeling_visualbert.hub_code.losses_visualbert import choice_cross_entropy, cross_entropy, kl_divergence

LOGITS = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("as_type", [int, torch.tensor])
@pytest.mark.parametrize(("labels", "count"), [([4, -100, -100], 1), ([4, 0, -100], 2), ([4, 0, 3], 3)])
def test_cross_entropy_is_the_mean_over_the_labels_there_are(labels, count, as_type):
    labels, logits = torch.tensor(labels), LOGITS[0]
    total = sum(-row.log_softmax(dim=-1)[label] for row, label in zip(logits, labels, strict=True) if label >= 0)
    torch.testing.assert_close(cross_entropy(logits, labels), total / count)
    for items in (1, 2, 7):
        torch.testing.assert_close(cross_entropy(logits, labels, as_type(items)), total / items)
    torch.testing.assert_close(cross_entropy(LOGITS, torch.stack((labels, labels.clone().fill_(-100)))), total / count)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_choices_that_are_masked_count_for_nothing(smoothing):
    """Each row is worth what it is without them, its gradient too; with all choices the loss is that of classes."""
    logits, labels = LOGITS[0].clone().requires_grad_(), torch.tensor([1, -100, 3])
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    found = choice_cross_entropy(logits, labels, mask, 5, smoothing)
    rows = [cross_entropy(logits[:1, :2], labels[:1], 5, label_smoothing=smoothing)]
    rows.append(cross_entropy(logits[2:, :4], labels[2:], 5, label_smoothing=smoothing))
    torch.testing.assert_close(found, sum(rows))
    (gradient,), (expected,) = (torch.autograd.grad(loss, logits) for loss in (found, sum(rows)))
    torch.testing.assert_close(gradient, expected)
    assert not gradient[mask == 0].any()
    whole = choice_cross_entropy(logits, labels, torch.ones_like(mask), None, smoothing)
    torch.testing.assert_close(whole, cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)])
def test_no_labels_cost_nothing(items):
    assert cross_entropy(LOGITS[0], torch.full((3,), -100), items).item() == 0.0


def test_divergence_is_the_mean_over_the_examples():
    scores = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.3]])
    expected = F.kl_div(LOGITS[:, 0, :3].log_softmax(dim=-1), scores, reduction="none").sum()
    torch.testing.assert_close(kl_divergence(LOGITS[:, 0, :3], scores), expected / 2)
    for items in (1, 5, torch.tensor(5)):
        torch.testing.assert_close(kl_divergence(LOGITS[:, 0, :3], scores, items), expected / items)


def test_divergence_of_several_distributions_of_an_example():
    """As of phrases over regions: each is normalised over the last dimension."""
    scores = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    expected = F.kl_div(LOGITS.log_softmax(dim=2), scores, reduction="none").sum() / 2
    torch.testing.assert_close(kl_divergence(LOGITS, scores), expected)


OTHER_SHAPES = {
    "pretraining": [
        *(
            ("labels", shape, r"\(batch_size, text_length\), here \(3, 9\)")
            for shape in [(3,), (1, 9), (3, 8), (3, 10), ()]
        ),
        *(("sentence_image_labels", shape, r"\(batch_size,\), here \(3,\)") for shape in [(3, 1), (1,), (), (2,)]),
    ],
    "vqa": [
        ("labels", shape, r"\(batch_size, num_labels\), here \(3, 11\)") for shape in [(3,), (3, 1), (1, 11), (11,), ()]
    ],
    "vcr": [("labels", shape, r"\(batch_size,\), here \(3,\)") for shape in [(3, 1), (1,), (3, 4), ()]],
    "nlvr2": [("labels", shape, r"\(batch_size,\), here \(3,\)") for shape in [(3, 1), (1, 3), (1,), (3, 2), ()]],
    "flickr30k": [
        ("labels", shape, r"\(batch_size, phrases, regions\), here \(3, 4, 6\)")
        for shape in [(3, 4), (4, 6), (3, 1, 6), (3, 4, 1), (1, 4, 6), (6,)]
    ],
}


@pytest.mark.parametrize(
    ("head", "name", "shape", "expected"), [(h, *case) for h in OTHER_SHAPES for case in OTHER_SHAPES[h]]
)
def test_labels_are_not_broadcast(head, name, shape, expected):
    model, inputs = tiny_model(head), inputs_for(head)
    labels = labels_for(head, inputs)
    labels[name] = torch.zeros(shape, dtype=labels[name].dtype)
    said = str(tuple(shape)).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"`{name}` of shape {said}; expected {expected}"):
        model(**inputs, **labels)


@pytest.mark.parametrize("head", ["vqa", "flickr30k"])
@pytest.mark.parametrize("value", [-100.0, 1.5, float("inf"), float("nan")])
def test_scores_that_mean_nothing_are_refused(head, value):
    model, inputs = tiny_model(head), inputs_for(head)
    labels = labels_for(head, inputs)["labels"]
    labels.view(-1)[1] = value
    with pytest.raises(ValueError, match=f"a label is {value}; expected scores in 0..1"):
        model(**inputs, labels=labels)


CLASSES = [("vcr", "labels"), ("nlvr2", "labels"), ("pretraining", "labels"), ("pretraining", "sentence_image_labels")]


@pytest.mark.parametrize(("head", "name"), CLASSES)
def test_classes_are_whole_numbers_of_any_size(head, name):
    model, inputs = tiny_model(head), inputs_for(head)
    labels = {name: labels_for(head, inputs)[name]}
    expected = model(**inputs, **labels).loss
    torch.testing.assert_close(model(**inputs, **{name: labels[name].to(torch.int32)}).loss, expected)
    for other in (torch.float32, torch.bool):
        with pytest.raises(ValueError, match=f"`{name}` of {other}; expected whole numbers: 0 to"):
            model(**inputs, **{name: labels[name].to(other)})
    for wrong in (-1, 1000):
        labels[name].view(-1)[0] = wrong
        with pytest.raises(ValueError, match=f"`{name}` holds {wrong}; expected 0 to .*, or -100 for none"):
            model(**inputs, **labels)
    with pytest.raises(ValueError, match=f"`{name}` is a list; expected a tensor"):
        model(**inputs, **{name: labels[name].tolist()})


def test_masked_labels_of_the_text_are_checked_too():
    model, inputs = tiny_model("pretraining"), inputs_for("pretraining")
    labels = labels_for("pretraining", inputs)["labels"]
    places = torch.tensor([[1, 2]] * 3)
    with pytest.raises(
        ValueError, match=r"`labels` of shape \(4, 9\); expected"
    ):  # gather would take the first three rows
        model(**inputs, labels=torch.cat((labels, labels[:1])), masked_positions=places)


def test_compiled_losses_are_those_of_torch():
    scores = torch.rand(2, 5, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(kl_divergence, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(LOGITS[:, 0], scores), kl_divergence(LOGITS[:, 0], scores))
    compiled = torch.compile(cross_entropy, backend="eager", fullgraph=True)
    labels = torch.tensor([4, -100, 1])
    torch.testing.assert_close(compiled(LOGITS[0], labels), cross_entropy(LOGITS[0], labels))
