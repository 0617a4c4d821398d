"""The losses of the heads.

They are sums, divided by the number of labels. Where a training step accumulates several batches, `num_items_in_batch` is the
number of labels in all of them, so that it does not matter how the examples were divided.

Labels of another shape than the scores would be broadcast without a word, so heads check them (`check_classes`, `check_scores`).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .sequence_visualbert import has_values

_ROUNDING = 1e-2  # scores may be stored in half precision


def check_classes(
    labels: torch.Tensor, shape: Sequence[int], dimensions: str, num_classes: int, name: str = "labels"
) -> None:
    """Labels that are numbers of classes; -100 is none.

    Raises:
        ValueError: They are of another shape, no whole numbers, or (on a CPU) no numbers of classes. The message says what the
            dimensions are.
    """
    _check_shape(labels, shape, dimensions, name)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"`{name}` of {labels.dtype}; expected whole numbers: 0 to {num_classes - 1}, or -100 for none"
        )
    if has_values(labels):
        wrong = labels[(labels != -100) & ((labels < 0) | (labels >= num_classes))]
        if len(wrong):
            raise ValueError(f"`{name}` holds {wrong[0].item()}; expected 0 to {num_classes - 1}, or -100 for none")


def check_choices_mask(mask_BC: torch.Tensor, logits_BC: torch.Tensor, labels: torch.Tensor | None = None) -> None:
    """A mask of choices, and labels that are none of those that fill up a batch.

    Raises:
        ValueError: It has another shape than the logits, or (on a CPU) masks all choices of a question or the right one.
    """
    if mask_BC.shape != logits_BC.shape:
        raise ValueError(
            f"`choices_mask` of shape {tuple(mask_BC.shape)}; expected (batch_size, num_choices), here {tuple(logits_BC.shape)}"
        )
    if not has_values(mask_BC):
        return
    counts = mask_BC.bool().sum(dim=1)
    if not counts.all():
        raise ValueError(f"`choices_mask`: question {counts.argmin().item()} has no choice; expected at least one")
    if labels is None:
        return
    right = mask_BC.bool().gather(1, labels.to(mask_BC.device).long().clamp(min=0)[:, None])[:, 0] | (labels == -100)
    if not right.all():
        row = int((~right).nonzero()[0])
        raise ValueError(
            f"`labels`: question {row} has {counts[row]} choices, and {labels[row].item()} is masked; expected one of its own"
        )


def check_scores(labels: torch.Tensor, shape: Sequence[int], dimensions: str, name: str = "labels") -> None:
    """Labels that are scores of all classes in 0..1.

    Raises:
        ValueError: They are of another shape or (on a CPU) no such scores.
    """
    _check_shape(labels, shape, dimensions, name)
    if labels.is_complex():
        raise ValueError(f"`{name}` of {labels.dtype}; expected scores in 0..1")
    if not has_values(labels):
        return
    scores = labels.float()
    if not ((scores >= 0) & (scores <= 1 + _ROUNDING)).all():
        wrong = labels[~((scores >= 0) & (scores <= 1 + _ROUNDING))][0].item()
        raise ValueError(f"a label is {wrong}; expected scores in 0..1")


def _check_shape(labels: torch.Tensor, shape: Sequence[int], dimensions: str, name: str) -> None:
    if not isinstance(labels, torch.Tensor):
        raise ValueError(f"`{name}` is a {type(labels).__name__}; expected a tensor, {dimensions}")
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"`{name}` of shape {tuple(labels.shape)}; expected {dimensions}, here {tuple(shape)}")


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Sum over the labels other than -100, divided by their number (in the global batch, if given); 0 when there are none.

    With `class_weights`, each label's part of the sum is multiplied with its weight. `label_smoothing` is the share of each label
    that is spread over all classes evenly.
    """
    labels = labels.to(logits.device)
    weights = None if class_weights is None else torch.tensor(class_weights, device=logits.device)
    scores, classes = logits.flatten(0, -2).float(), labels.flatten().long()
    total = F.cross_entropy(scores, classes, weight=weights, label_smoothing=label_smoothing, reduction="sum")
    return _per_label(total, labels, num_items_in_batch)


def choice_cross_entropy(
    logits_BC: torch.Tensor,
    labels: torch.Tensor,
    mask_BC: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """[`cross_entropy`] where not every row has all classes: where the mask is 0 there is none, and nothing is spread over it."""
    labels, given_BC = labels.to(logits_BC.device).long(), mask_BC.to(logits_BC.device).bool()
    logs_BC = logits_BC.float().masked_fill(~given_BC, -torch.inf).log_softmax(dim=-1)
    total = (1.0 - label_smoothing) * F.nll_loss(logs_BC, labels, reduction="sum")
    if label_smoothing:
        mean_B = logs_BC.masked_fill(~given_BC, 0.0).sum(dim=-1) / given_BC.sum(dim=-1)
        total = total - label_smoothing * mean_B[labels != -100].sum()
    return _per_label(total, labels, num_items_in_batch)


def _per_label(
    total: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
) -> torch.Tensor:
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1))


def kl_divergence(
    logits: torch.Tensor, scores: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over the batch, divided by its size (or that of the global batch, if given)."""
    count = scores.shape[0] if num_items_in_batch is None else num_items_in_batch
    return F.kl_div(logits.float().log_softmax(dim=-1), scores.float(), reduction="sum") / count


def binary_cross_entropy(
    logits: torch.Tensor, scores: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Sum over classes and batch, divided by the batch's size (or that of the global batch, if given)."""
    count = scores.shape[0] if num_items_in_batch is None else num_items_in_batch
    return F.binary_cross_entropy_with_logits(logits.float(), scores.float(), reduction="sum") / count


__all__ = [
    "binary_cross_entropy",
    "check_choices_mask",
    "check_classes",
    "check_scores",
    "choice_cross_entropy",
    "cross_entropy",
    "kl_divergence",
]
