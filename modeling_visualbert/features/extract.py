"""Pictures -> regions, in batches, through a region encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..image_processing_visualbert import VisualBertImageProcessor
from ..modeling_region_encoder import QueryRegionEncoder
from ..regions_visualbert import split_regions


@torch.inference_mode()
def extract_regions(
    region_encoder: QueryRegionEncoder,
    image_processor: VisualBertImageProcessor,
    images: Iterable[tuple[int, Path]],
    batch_size: int = 32,
    total: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Yield (image id, regions with boxes in pixels) for each (image id, path), in order.

    Raises:
        ValueError, FileNotFoundError: A picture cannot be used; see [`load_picture`].
    """
    region_encoder.eval()
    images = iter(images)
    with tqdm(total=total, desc="finding regions", unit="picture", disable=not progress) as bar:
        while batch := list(islice(images, batch_size)):
            inputs = image_processor([path for _, path in batch], return_tensors="pt").to(region_encoder.device)
            found = region_encoder(inputs["pixel_values"], inputs.get("pixel_mask"))
            pictures = split_regions(found, inputs["image_sizes"].tolist())
            yield from zip((image_id for image_id, _ in batch), pictures, strict=True)
            bar.update(len(batch))
