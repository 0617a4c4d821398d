"""What the loop has to know about a task; everything else in the loop is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

Rows = list[Any]
Batch = dict[str, Any]
Predictions = list[dict[str, Any]]


@dataclass
class Task:
    """
    Args:
        name: For titles and file names.
        model: The model to train.
        processor: Processor or image processor; saved beside the model.
        splits: Examples by split, anything with a length and access by index; `train` and `dev` are needed, others are
            scored at the end.
        collate: Rows -> model inputs, labels included.
        predict: Model outputs and rows -> one record per row, with an `id`.
        score: Predictions of a split -> metrics; `metrics[best_metric]` is to be maximised.
        best_metric: Name of the metric that decides which weights are kept.
        count_items: Batch -> number of items its loss is divided by, for models whose `forward` takes
            `num_items_in_batch`. None leaves the loss as the model returns it.
        augment: Changes a training row at random, with the given generator only.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    splits: Mapping[str, Any]
    collate: Callable[[Rows], Batch]
    predict: Callable[[Any, Rows], Predictions]
    score: Callable[[Predictions, str], dict[str, Any]]
    best_metric: str
    count_items: Callable[[Batch], int] | None = None
    augment: Callable[[Any, torch.Generator], Any] | None = None

    def __post_init__(self) -> None:
        missing = {"train", "dev"} - set(self.splits)
        if missing:
            raise ValueError(f"task {self.name!r} has no split {sorted(missing)[0]!r}")


def batch_size_of(batch: Batch) -> int:
    """Number of examples: the length of the labels."""
    return len(batch["labels"])


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a nested batch."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_device(item, device) for item in value]
    return value
