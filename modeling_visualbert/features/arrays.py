"""The arrays of one image as others published them -> regions.

What the arrays say of one another decides, never a guess: on which side of the features the regions are, whether all are
of as many regions, and whether boxes are in pixels. Where they contradict one another, or say nothing, the image is
refused by name.

Letters: R regions of an image, V feature.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..hub_code.regions_visualbert import are_normalised, check_boxes, scale_boxes, spatial_features
from .store import Regions

logger = logging.getLogger(__name__)

# What others call the arrays of an image.
SYNONYMS = {
    "visual_embeds": ("features", "box_features", "image_features", "image_feat", "x"),
    "boxes": ("boxes", "cls_boxes", "bbox", "bboxes", "image_bb", "image_bboxes", "norm_bb"),
    "scores": ("scores", "max_conf", "objects_conf", "obj_conf"),
    "class_ids": ("class_ids", "objects_id", "object_ids", "objects"),
    "attribute_ids": ("attribute_ids", "attrs_id", "attr_ids"),
    "attribute_scores": ("attribute_scores", "attrs_conf", "attr_conf"),
    "height": ("height", "img_h", "image_h", "image_height"),
    "width": ("width", "img_w", "image_w", "image_width"),
    "count": ("num_boxes", "num_bbox", "num_regions"),
    "spatial_features": ("spatial_features",),  # BAN's, which holds no image sizes to make them from
}
NUMBERS = ("height", "width", "count")
KNOWN = {name: key for key, names in SYNONYMS.items() for name in names}
LAYOUTS = ("regions_first", "features_first")
_TWO_LAYOUTS = "x"  # [V, R] in MCAN's files, [R, V] in those of MILVLG's extraction
_UNIT_BOXES = "norm_bb"  # UNITER's: x1, y1, x2, y2, width, height and area in units of the image
_UNIT_SLACK = 1e-2  # by which boxes in 0..1 may reach beyond it
_LEGACY_PIXEL = 1.0  # boxes that end at x1 + width - 1 end up to a pixel before they start


@dataclass(frozen=True)
class ArrayOptions:
    """What the files themselves may not tell.

    Args:
        layout: `regions_first` ([R, V]) or `features_first` ([V, R]).
        normalised_boxes: Whether boxes are in units of the image instead of pixels.
    """

    layout: str | None = None
    normalised_boxes: bool = False


def to_regions(found: Mapping[str, Any], where: str, options: ArrayOptions) -> Regions:
    """Arrays under any of the names that are in use -> regions; padding (zeros) after the first `num_boxes` is cut off.

    Raises:
        ValueError: There are no features; an array is not of numbers, or of as many regions as the others; nothing tells
            on which side of the features the regions are; or boxes are not in pixels of the image.
    """
    names = {"visual_embeds": name_of_features(found, where)}
    names |= {key: name for key, known in SYNONYMS.items() if (name := _first_of(known, found))}
    values = {key: _array(found[name], key, name, where) for key, name in names.items()}
    numbers = {key: _whole_number(values.pop(key), names[key], where) for key in NUMBERS if key in values}
    if len(lone := numbers.keys() & {"height", "width"}) == 1:
        raise ValueError(
            f"{where}: '{names[lone.pop()]}' is the only side of the image; expected height and width, or neither"
        )
    count = numbers.get("count")
    values["visual_embeds"] = _regions_first(values, count, names["visual_embeds"], options.layout, where)
    _check_twice(found, names, numbers, len(values["visual_embeds"]), where)
    regions = _cut(values, count, names, where)
    if "height" in numbers and "width" in numbers:
        regions["image_size"] = (numbers["height"], numbers["width"])
    if "boxes" in regions:
        normalised = options.normalised_boxes or names["boxes"] == _UNIT_BOXES
        regions |= _boxes(regions.pop("boxes"), regions, normalised, names["boxes"], where)
    return regions


def name_of_features(found: Mapping[str, Any], where: str) -> str:
    """What the features are called among these arrays.

    Raises:
        ValueError: There are none.
    """
    expected = SYNONYMS["visual_embeds"]
    name = _first_of(expected, found)
    if name is None:
        raise ValueError(f"{where}: no features among {', '.join(map(str, found))}; expected one of {expected}")
    return name


def _first_of(names: tuple[str, ...], found: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in found), None)


def _array(value: Any, key: str, name: str, where: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.float() if value.is_floating_point() else value
        value = value.detach().numpy()
    array = np.asarray(value)
    if key == "visual_embeds" and (array.ndim != 2 or array.dtype.kind not in "fiu"):
        raise ValueError(f"{where}: features are {array.dtype} {array.shape}; expected numbers (regions, dim)")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{where}: '{name}' holds {array.dtype}; expected numbers")
    if key in NUMBERS and array.size != 1:
        raise ValueError(f"{where}: '{name}' has shape {array.shape}; expected one number")
    return array


def _whole_number(array: np.ndarray, name: str, where: str) -> int:
    number = array.item()
    least = int(KNOWN[name] != "count")  # images have at least a pixel
    if not (least <= number < 10**9 and number == int(number)):
        raise ValueError(f"{where}: '{name}' is {number}; expected a whole number from {least} on")
    return int(number)


def _regions_first(
    values: Mapping[str, np.ndarray], count: int | None, name: str, layout: str | None, where: str
) -> np.ndarray:
    """The features as [R, V]. The other arrays say which side that is, else their number, else how the file is published."""
    features = values["visual_embeds"]
    sides = features.shape
    if layout is not None:
        return features if layout == LAYOUTS[0] else features.T
    lengths = {len(array) for key, array in values.items() if key != "visual_embeds" and array.ndim}
    for told in (lengths & set(sides), {count} & set(sides)):
        if len(told) == 1 and sides[0] != sides[1]:
            return features if sides[0] in told else features.T
    if (
        max(sides) <= 1 or len(lengths) > 1 or lengths - {*sides, count}
    ):  # the same either way, or named as contradictions later
        return features
    if name != _TWO_LAYOUTS and sides[0] < sides[1]:
        return features
    raise ValueError(
        f"{where}: '{name}' has shape {sides}, and nothing beside it tells which side the regions are; say "
        "--regions_first or --features_first (in Python: layout)"
    )


def _check_twice(
    found: Mapping[str, Any], names: Mapping[str, str], numbers: Mapping[str, int], num_regions: int, where: str
) -> None:
    """What is there under a second name too must not contradict what is read."""
    for name in (name for name in found if name in KNOWN and name not in names.values()):
        key = KNOWN[name]
        array = _array(found[name], key, name, where)
        if key in NUMBERS:
            contradicts = _whole_number(array, name, where) != numbers[key]
        elif key == "visual_embeds":
            chosen = np.asarray(found[names[key]])
            contradicts = not any(np.array_equal(array, side) for side in (chosen, chosen.T))
        else:
            contradicts = num_regions not in array.shape and numbers.get("count") not in array.shape
        if contradicts:
            value = array.item() if key in NUMBERS else f"of shape {array.shape}"
            raise ValueError(
                f"{where}: '{name}' is {value} beside '{names[key]}' of {num_regions} regions; expected the same"
            )


def _cut(values: Mapping[str, np.ndarray], count: int | None, names: Mapping[str, str], where: str) -> dict[str, Any]:
    """The arrays without padding. All must be of as many regions as the features, or as the file says that there are."""
    features, called = values["visual_embeds"], f"'{names['visual_embeds']}' of {len(values['visual_embeds'])} regions"
    kept = len(features) if count is None else count
    for key, array in values.items():
        if array.ndim == 0 or len(array) not in (len(features), kept):
            said = "" if count is None else f" and '{names['count']}' {count}"
            raise ValueError(f"{where}: '{names[key]}' has shape {array.shape} beside {called}{said}; expected as many")
    if kept > len(features):
        raise ValueError(f"{where}: '{names['count']}' is {kept} beside {called}; expected as many")
    if features[kept:].any():
        row = kept + int(features[kept:].any(axis=1).argmax())
        raise ValueError(
            f"{where}: '{names['count']}' is {kept} beside {called}, but row {row} is no padding; expected zeros after the last"
        )
    return {key: array[:kept] for key, array in values.items()}


def _boxes(boxes: np.ndarray, regions: Regions, normalised: bool, name: str, where: str) -> Regions:
    """`boxes` in pixels; where only normalised ones and no size of the image are known, their spatial numbers instead."""
    what, size = f"{where}: '{name}'", regions.get("image_size")
    lengths = (4, 6, 7) if name == _UNIT_BOXES else (4,)
    if boxes.ndim != 2 or boxes.shape[1] not in lengths:
        expected = " or ".join(map(str, lengths))
        raise ValueError(
            f"{what} has shape {boxes.shape}; expected {expected} numbers for each of {len(boxes)} regions"
        )
    corners = boxes[:, :4]
    if not normalised:
        return {"boxes": _in_pixels(corners, size, what)}
    unit = torch.from_numpy(np.array(corners, np.float32))
    check_boxes(unit, None, what)
    outside = ((unit < -_UNIT_SLACK) | (unit > 1 + _UNIT_SLACK)).any(dim=1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"{what}: row {row} {unit[row].tolist()} is not in 0..1; expected boxes in units of the image")
    if size is not None:
        return {"boxes": scale_boxes(unit, size).numpy()}
    if name != _UNIT_BOXES:
        raise ValueError(
            f"{what}: boxes in units of the image, whose height and width are not beside them; expected both"
        )
    _warn_of_unit_boxes(name)
    return {"spatial_features": spatial_features(unit).numpy()}


def _in_pixels(corners: np.ndarray, size: tuple[int, int] | None, what: str) -> np.ndarray:
    """The boxes of legacy detectors that are thinner than a pixel end before they start; here they end where they start."""
    low, high = corners[:, :2], corners[:, 2:]
    thin = (high < low) & (high >= low - _LEGACY_PIXEL)
    if thin.any():
        corners = np.concatenate((low, np.where(thin, low, high)), axis=1)
    boxes = torch.from_numpy(np.array(corners, np.float32))
    check_boxes(boxes, None, what)
    if are_normalised(boxes, size):
        beside = "" if size is None else f", but the image has {size[1]} x {size[0]} pixels"
        raise ValueError(
            f"{what}: all boxes lie in 0..1 (row 0: {boxes[0].tolist()}){beside}; expected pixels, or --normalised_boxes if "
            "those of all images are like that (in Python: normalised_boxes=True)"
        )
    check_boxes(boxes, size, what)
    return corners


@functools.cache
def _warn_of_unit_boxes(name: str) -> None:
    logger.warning(
        f"'{name}' holds boxes in units of the image, whose size is not beside them: boxes in pixels are not known "
        "(--spatial reads the spatial numbers from it)"
    )
