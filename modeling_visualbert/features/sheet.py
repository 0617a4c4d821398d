"""A contact sheet of a feature store: some of its images with their regions drawn in."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from ..hub_code.image_processing_visualbert import load_image
from ..visualization import captioned, draw_regions, grid, region_labels
from .extract import ImageOrFile
from .store import FeatureStore

_SIDE = 480
_DRAWN = 12  # regions of an image that are drawn, the most confident ones; more cannot be read on a sheet


def store_sheet(store: FeatureStore, images: Mapping[str, ImageOrFile], count: int = 9) -> Image.Image:
    """Images spread over the store, with boxes, attributes, classes and confidences.

    Args:
        store: The store.
        images: Image files by image id; those that are in the store are drawn.
        count: How many.

    Raises:
        ValueError: None of the images is in the store, it holds no boxes, or an image has another size than stored.
    """
    if count < 1:
        raise ValueError(f"{count} images; expected at least 1")
    ids = [image_id for image_id in store if image_id in images]
    if not ids:
        raise ValueError(f"{store.folder}: none of the {len(images)} images is in it; other --ids or --images?")
    step = max(1, len(ids) // count)
    return grid([_drawn(store, image_id, images[image_id]) for image_id in ids[::step][:count]])


def _drawn(store: FeatureStore, image_id: str, source: ImageOrFile) -> Image.Image:
    regions, image = store[image_id], load_image(source)
    if "boxes" not in regions:
        raise ValueError(f"{store.folder}: no boxes are stored of image {image_id}")
    if "image_size" in regions and regions["image_size"].tolist() != [image.height, image.width]:
        height, width = regions["image_size"].tolist()
        raise ValueError(
            f"{source}: {image.width} x {image.height} pixels, but its regions are of {width} x {height} pixels"
        )
    order = regions["scores"].argsort(descending=True, stable=True) if "scores" in regions else slice(None)
    kept = {name: value if name == "image_size" else value[order][:_DRAWN] for name, value in regions.items()}
    labels = region_labels(kept, store.info["classes"], store.info["attributes"])
    drawn = draw_regions(image, kept["boxes"].tolist(), kept["scores"].tolist() if "scores" in kept else None, labels)
    drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    count = len(regions["boxes"])
    return captioned(drawn, [f"{image_id}: {count} regions{f', {_DRAWN} drawn' if count > _DRAWN else ''}"])
