"""Pictures -> regions, in batches, through a region encoder."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ..image_processing_visualbert import VisualBertImageProcessor
from ..modeling_region_encoder import RegionEncoder
from ..regions_visualbert import scale_boxes, split_regions

Key = TypeVar("Key", bound=Hashable)


@torch.inference_mode()
def extract_regions(
    region_encoder: RegionEncoder,
    image_processor: VisualBertImageProcessor,
    images: Iterable[tuple[Key, Path]],
    batch_size: int = 32,
    total: int | None = None,
    progress: bool = True,
    boxes: Mapping[Key, Sequence[Sequence[float]]] | None = None,
) -> Iterator[tuple[Key, dict[str, torch.Tensor]]]:
    """Yield (image key, regions with boxes in pixels) for each (image key, path), in order.

    Args:
        region_encoder, image_processor: What finds the regions.
        images: Picture files; keys are what the caller likes.
        batch_size: Pictures in one forward pass.
        total: Number of pictures, for the progress bar.
        progress: Whether to show one.
        boxes: By image key, boxes x1, y1, x2, y2 in pixels to describe instead of finding some.

    Raises:
        ValueError, FileNotFoundError: A picture cannot be used; see [`load_picture`].
    """
    region_encoder.eval()
    images = iter(images)
    with tqdm(total=total, desc="finding regions", unit="picture", disable=not progress) as bar:
        while batch := list(islice(images, batch_size)):
            inputs = image_processor([path for _, path in batch], return_tensors="pt").to(region_encoder.device)
            sizes = inputs["image_sizes"].tolist()
            given = {} if boxes is None else _given_boxes([boxes[key] for key, _ in batch], sizes)
            given = {name: tensor.to(region_encoder.device) for name, tensor in given.items()}
            found = region_encoder(inputs["pixel_values"], inputs.get("pixel_mask"), **given)
            yield from zip((key for key, _ in batch), split_regions(found, sizes), strict=True)
            bar.update(len(batch))


def _given_boxes(boxes: Sequence[Sequence[Sequence[float]]], sizes: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Boxes in pixels -> `boxes_unit` [B, R, 4] and `boxes_mask` [B, R]."""
    units = [
        scale_boxes(torch.tensor(corners, dtype=torch.float32), (1 / height, 1 / width)).clamp(0.0, 1.0)
        for corners, (height, width) in zip(boxes, sizes, strict=True)
    ]
    masks = [torch.ones(len(unit), dtype=torch.long) for unit in units]
    return {
        "boxes_unit": pad_sequence(units, batch_first=True),
        "boxes_mask": pad_sequence(masks, batch_first=True),
    }
