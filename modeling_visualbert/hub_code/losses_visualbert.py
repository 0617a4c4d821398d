"""The losses of the heads.

Both are sums, divided by the number of labels. Where a training step accumulates several batches, `num_items_in_batch` is the
number of labels in all of them, so that it does not matter how the examples were divided.

Labels of another shape than the scores would be broadcast without a word, so heads check it (`check_shape`).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def check_shape(labels: torch.Tensor, shape: Sequence[int], dimensions: str, name: str = "labels") -> None:
    """
    Raises:
        ValueError: The labels have another shape; the message says what its dimensions are.
    """
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"`{name}` of shape {tuple(labels.shape)}; expected {dimensions}, here {tuple(shape)}")


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    class_weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Sum over the labels other than -100, divided by their number (in the global batch, if given); 0 when there are none.

    With `class_weights`, each label's part of the sum is multiplied with its weight.
    """
    labels = labels.to(logits.device)
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), weight=weights, reduction="sum")
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def kl_divergence(
    logits: torch.Tensor, scores: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over the batch, divided by its size (or that of the global batch, if given).

    Raises:
        ValueError: A score is negative or NaN (on a CPU; elsewhere the loss is NaN).
    """
    # Looking at values would wait for another device, and break a graph.
    in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if scores.device.type == "cpu" and not in_graph and not (scores >= 0).all():
        raise ValueError(f"a label is {scores[~(scores >= 0)][0].item()}; expected scores of at least 0")
    count = scores.shape[0] if num_items_in_batch is None else num_items_in_batch
    return F.kl_div(logits.float().log_softmax(dim=-1), scores.float(), reduction="sum") / count


__all__ = ["check_shape", "cross_entropy", "kl_divergence"]
