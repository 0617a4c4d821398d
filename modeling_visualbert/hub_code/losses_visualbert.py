"""The losses of the heads.

Both are sums, divided by the number of labels. Where a training step accumulates several batches, `num_items_in_batch` is the
number of labels in all of them, so that it does not matter how the examples were divided.
"""

import torch
from torch.nn import functional as F


def cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over the labels other than -100, divided by their number (in the global batch, if given); 0 when there are none."""
    labels = labels.to(logits.device)
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def kl_divergence(
    logits: torch.Tensor, scores: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over the batch, divided by its size (or that of the global batch, if given)."""
    count = scores.shape[0] if num_items_in_batch is None else num_items_in_batch
    return F.kl_div(logits.float().log_softmax(dim=-1), scores.float(), reduction="sum") / count


__all__ = ["cross_entropy", "kl_divergence"]
