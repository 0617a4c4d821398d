"""Vision towers as region encoders: what their images look like, and into how many cells these are cut.

tower's own preprocessing, sizes of the data's images ──► image processor ──► map ──► grid
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from .checkpoints import check_name
from .hub_code.image_processing_visualbert import VisualBertImageProcessor
from .hub_code.modeling_grid_encoder import GridRegionEncoder
from .hub_code.towers_visualbert import load_tower, map_shape, own_size, patch_shape

logger = logging.getLogger(__name__)

SAMPLE = 64  # images whose sizes are looked at
MAX_CELLS = 144  # as many regions as the paper reads of an image (NLVR2)
MAX_GROWTH = (
    2.0  # an image that a convolutional tower's size would enlarge to more than this many times its area keeps its own
)
_LONGEST = 2  # a longer side than so many times the shorter one is made smaller
Size = tuple[int, int]  # height, width


def open_tower(
    name: str | Path, grid_size: str | None = None, image_size: str | None = None, sizes: Sequence[Size] = ()
) -> tuple[GridRegionEncoder, VisualBertImageProcessor]:
    """
    The vision tower of a checkpoint as a region encoder, in evaluation mode, with its image processor.

    Args:
        name: Folder or Hub name of a vision model, or of one for images and text.
        grid_size: Cells, as `"6"` (rows and columns) or `"6x8"` (rows x columns). By default those of the tower's map, two by two
            as one while there are more than 144.
        image_size: Pixels of the images, as `"224"` or `"384x512"` (height x width). By default those that the tower was trained
            with; a tower without learned positions does not enlarge small images.
        sizes: Height and width of some images of the data.

    Raises:
        FileNotFoundError: It can only be a local folder, and there is none.
        ValueError: It is no vision model, weights are missing, or it does not read images of this size.
    """
    name = str(name)
    check_name(name, "backbone")
    tower = load_tower(name)
    config = tower.config
    fields = _preprocessing(name, config)
    size = image_size_of(config, fields, image_size, sizes)
    rows, columns = grid_of(config, size, grid_size, sizes)
    encoder = GridRegionEncoder.from_backbone(
        tower, grid_rows=rows, grid_columns=columns, bgr=bool(fields.get("do_flip_channel_order"))
    )
    return encoder, VisualBertImageProcessor(**_shared(fields), size=size)


def read_size(flag: str, value: str | None) -> Size | None:
    """`"6"` and `"6x8"` as numbers.

    Raises:
        ValueError: It is something else; names the flag.
    """
    if value is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", value)
    if not found:
        raise ValueError(f"--{flag} {value}; expected a number, or two such as 6x8 (height x width)")
    return int(found[1]), int(found[2] or found[1])


def image_size_of(
    config: PretrainedConfig, fields: Mapping[str, Any], given: str | None, sizes: Sequence[Size]
) -> dict[str, int]:
    """
    The `size` of the image processor of a tower.

    Args:
        config: Configuration of the tower.
        fields: What its own image processor does.
        given: The size that was asked for.
        sizes: Height and width of some images of the data.

    Raises:
        ValueError: The tower does not read images of the size that was asked for.
    """
    asked = read_size("image_size", given)
    if asked is not None:
        try:
            map_shape(config, asked)
        except ValueError as error:
            raise ValueError(f"--image_size {given}: {error}") from error
        return _fixed(asked)
    own = _own_size(fields, config)
    if patch_shape(config) is not None:  # its positions are learned, or it was trained on squares
        return _fixed(_one_size(own))
    if not _reads_any_size(config):
        return _fixed(own_size(config))
    typical = typical_size(sizes)
    if typical is None or _area(resized(typical, own)) <= MAX_GROWTH * _area(typical):
        return own
    if len(set(sizes)) == 1:
        return _fixed(typical)
    shortest = median_low(min(size) for size in sizes)
    return {"shortest_edge": shortest, "longest_edge": _LONGEST * shortest}


def grid_of(config: PretrainedConfig, size: Mapping[str, int], given: str | None, sizes: Sequence[Size]) -> Size:
    """Rows and columns of cells: those asked for, or those of the map of a typical image, two by two as one while there are too
    many."""
    asked = read_size("grid_size", given)
    if asked is not None:
        return asked
    pixels = resized(typical_size(sizes) or _one_size(size), size)
    _, rows, columns = map_shape(config, pixels)
    while rows * columns > MAX_CELLS:
        rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
    return rows, columns


def typical_size(sizes: Sequence[Size]) -> Size | None:
    """The one of median shape, which is an image's size, unlike medians of height and width; None if there are none."""
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))[len(sizes) // 2] if sizes else None


def resized(image: Size, size: Mapping[str, int]) -> Size:
    """Height and width of an image after the image processor with this `size`."""
    if "height" in size:
        return size["height"], size["width"]
    return get_size_with_aspect_ratio(image, size["shortest_edge"], size["longest_edge"])


def _own_size(fields: Mapping[str, Any], config: PretrainedConfig) -> dict[str, int]:
    """The size of the images that the tower was trained with: what is left after cutting out the middle, if that is done. Here
    nothing is cut off, because regions are those of the whole image."""
    size = fields.get("size")
    crop = fields.get("crop_size")
    if crop and fields.get("do_center_crop"):
        crop_hw = _one_size(_as_mapping(crop))
        is_square = crop_hw[0] == crop_hw[1]
        return _keeping_shape(crop_hw[0]) if is_square else _fixed(crop_hw)
    if not size:
        return _fixed(own_size(config))
    size = _as_mapping(size)
    return _fixed(_one_size(size)) if "height" in size else _keeping_shape(_one_size(size)[0])


def _as_mapping(size: Any) -> Mapping[str, int]:
    """`size` in its older forms too: one number."""
    return {"shortest_edge": size} if isinstance(size, int) else size


def _one_size(size: Mapping[str, int]) -> Size:
    """Height and width; square where only one side is told."""
    side = size.get("shortest_edge") or size.get("longest_edge") or 0
    return size.get("height", side), size.get("width", side)


def _fixed(size: Size) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _keeping_shape(side: int) -> dict[str, int]:
    return {"shortest_edge": side, "longest_edge": _LONGEST * side}


def _area(size: Size) -> int:
    return size[0] * size[1]


def _reads_any_size(config: PretrainedConfig) -> bool:
    height, width = own_size(config)
    try:
        map_shape(config, (height, 2 * width))
    except ValueError:
        return False
    return True


def _preprocessing(name: str, config: PretrainedConfig) -> dict[str, Any]:
    """What the image processor that lies beside a tower does; where there is none, that of its family, with a warning."""
    try:
        return VisualBertImageProcessor.get_image_processor_dict(name)[0]
    except OSError:
        fields = _preprocessing_of_family(config)
        logger.warning(
            "%s: no preprocessor_config.json; images are scaled as is usual for %s: mean %s, deviation %s",
            name,
            config.model_type,
            fields["image_mean"],
            fields["image_std"],
        )
        return fields


def _preprocessing_of_family(config: PretrainedConfig) -> dict[str, Any]:
    family = config.model_type.removesuffix("_model").removesuffix("_vision")
    classes = IMAGE_PROCESSOR_MAPPING.get(CONFIG_MAPPING[family], {}) if family in CONFIG_MAPPING else {}
    if "pil" not in classes:
        return {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
    sized = ("size", "crop_size")  # the configuration knows better
    return {name: value for name, value in classes["pil"]().to_dict().items() if name not in sized}


def _shared(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `VisualBertImageProcessor` has, with what only EfficientNet's has said in them."""
    names = ("resample", "do_rescale", "rescale_factor", "image_mean", "image_std")
    shared = {name: fields[name] for name in names if fields.get(name) is not None}
    shared["do_normalize"] = bool(fields.get("do_normalize", True)) and {"image_mean", "image_std"} <= shared.keys()
    if not shared["do_normalize"]:
        return shared
    if fields.get("rescale_offset"):  # -1..1 instead of 0..1, before anything else
        shared["image_mean"] = [1.0 + value for value in shared["image_mean"]]
    if fields.get("include_top"):  # divided by the deviation twice
        shared["image_std"] = [value * value for value in shared["image_std"]]
    return shared


__all__ = ["SAMPLE", "grid_of", "image_size_of", "open_tower", "read_size", "resized", "typical_size"]
