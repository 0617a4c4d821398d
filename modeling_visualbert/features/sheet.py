"""A contact sheet of a feature store: some of its pictures with their regions drawn in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from ..hub_code.image_processing_visualbert import load_picture
from ..visualization import captioned, draw_regions, grid, region_labels
from .extract import PictureSource
from .store import FeatureStore

_SIDE = 480
_DRAWN = 12  # regions of a picture that are drawn, the most confident ones; more cannot be read on a sheet


def store_sheet(store: FeatureStore, pictures: Mapping[str, PictureSource], count: int = 9) -> Image.Image:
    """Pictures spread over the store, with boxes, attributes, classes and confidences.

    Args:
        store: The store.
        pictures: Picture files by image id; those that are in the store are drawn.
        count: How many.

    Raises:
        ValueError: None of the pictures is in the store, it holds no boxes, or a picture has another size than stored.
    """
    if count < 1:
        raise ValueError(f"{count} pictures; expected at least 1")
    ids = [image_id for image_id in store if image_id in pictures]
    if not ids:
        raise ValueError(f"{store.folder}: none of the {len(pictures)} pictures is in it; other --ids or --images?")
    step = max(1, len(ids) // count)
    return grid([_drawn(store, image_id, pictures[image_id]) for image_id in ids[::step][:count]])


def _drawn(store: FeatureStore, image_id: str, source: PictureSource) -> Image.Image:
    regions, picture = store[image_id], load_picture(source)
    if "boxes" not in regions:
        raise ValueError(f"{store.folder}: no boxes are stored of image {image_id}")
    if "image_size" in regions and regions["image_size"].tolist() != [picture.height, picture.width]:
        height, width = regions["image_size"].tolist()
        raise ValueError(
            f"{source}: {picture.width} x {picture.height} pixels, but its regions are of {width} x {height} pixels"
        )
    drawn = draw_strongest(picture, regions, store.info["classes"], store.info["attributes"])
    drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    count = len(regions["boxes"])
    return captioned(drawn, [f"{image_id}: {count} regions{f', {_DRAWN} drawn' if count > _DRAWN else ''}"])


def draw_strongest(
    picture: Image.Image,
    regions: Mapping[str, torch.Tensor],
    classes: Sequence[str] | None = None,
    attributes: Sequence[str] | None = None,
    count: int = _DRAWN,
) -> Image.Image:
    """The most confident regions drawn into a picture, with attribute, class and confidence."""
    order = regions["scores"].argsort(descending=True, stable=True) if "scores" in regions else slice(None)
    kept = {name: value if name == "image_size" else value[order][:count] for name, value in regions.items()}
    weights = kept["scores"].tolist() if "scores" in kept else None
    return draw_regions(picture, kept["boxes"].tolist(), weights, region_labels(kept, classes, attributes))
