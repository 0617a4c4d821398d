"""The interface between a task and the training loop, which is the same for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

Rows = list[Any]
Batch = dict[str, Any]
Predictions = list[dict[str, Any]]
LABELS = ("labels", "sentence_image_labels", "mentioned_answers")  # the part of a batch that only the loss reads


@dataclass
class Task:
    """
    Args:
        name: For titles and file names.
        model: The model to train.
        processor: Processor or image processor; saved beside the model.
        splits: Examples by split, as anything with a length and access by index. Training needs `train` and `dev`; all but
            `train` are scored at the end.
        collate: Rows -> model inputs, labels included.
        predict: Model outputs and rows -> one record per row, with an `id`.
        score: Predictions and the name of their split -> metrics; a larger `metrics[best_metric]` is better.
        best_metric: Name of the metric that decides which weights are kept.
        score_each: Predictions and the name of their split -> for each prediction its share of the metrics and the group that
            it belongs to, `{"metrics": {"accuracy": 60.0}, "group": 42}`; see `metrics/compare.py`. Empty without labels.
        fit_threshold: Predictions for the dev split -> the same, decided by the threshold that is best for them, which the
            processor keeps. None where nothing is chosen on the dev split but the weights.
        count_items: Batch -> the numbers that its loss is divided by, as arguments of the model's `forward`
            (`{"num_items_in_batch": 64}`). None uses the loss as the model returns it.
        augment: Changes a training row at random, with no other randomness than the given generator.
        draw: Model, row and its prediction -> an image that shows them.
        write_results: Writes predictions as the official evaluation expects them, to a path that is given without its suffix.
        images: Image files (paths or bytes) by their key in the rows, for drawing.
        skipped: Bad records that were left out.
        trains_all: Whether every batch gives every trained parameter that the head reads a gradient. Otherwise data-parallel
            training searches for those without one in every step, which takes time and excludes gradient checkpointing.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    splits: dict[str, Any]
    collate: Callable[[Rows], Batch]
    predict: Callable[[Any, Rows], Predictions]
    score: Callable[[Predictions, str], dict[str, Any]]
    best_metric: str
    score_each: Callable[[Predictions, str], Predictions] | None = None
    fit_threshold: Callable[[Predictions], Predictions] | None = None
    count_items: Callable[[Batch], dict[str, int]] | None = None
    augment: Callable[[Any, torch.Generator], Any] | None = None
    draw: Callable[[PreTrainedModel, Any, dict[str, Any]], Image.Image] | None = None
    write_results: Callable[[Predictions, Path], None] | None = None
    images: Mapping[Any, Any] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    trains_all: bool = False


def count_examples(batch: Batch) -> dict[str, int]:
    """`count_items` for a loss that is a mean over examples."""
    return {"num_items_in_batch": len(batch["labels"])}


def to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a nested batch."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_device(item, device) for item in value]
    return value
