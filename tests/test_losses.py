"""The losses of the heads: sums over labels, divided by their number here or in the whole step."""

import pytest
import torch
from torch.nn import functional as F

from modeling_visualbert.hub_code.losses_visualbert import cross_entropy, kl_divergence

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
