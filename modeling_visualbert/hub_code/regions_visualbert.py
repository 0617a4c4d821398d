"""Boxes and regions: the numbers that pass from an image to the text model.

A *region* is a box with a feature vector. The regions of an image are a mapping with these keys, not an instance of a
class (a checkpoint brings a copy of this file along, and a class that is defined in two files is two classes):

    visual_embeds          float [R, V]  one feature per region
    visual_attention_mask  int   [R]     1 = a region, 0 = padding (batches only)
    boxes                  float [R, 4]  x1, y1, x2, y2
    scores                 float [R]     detector's confidence in 0..1 (optional)
    class_ids              int   [R]     detector's class (optional)
    attribute_ids          int   [R]     detector's attribute, such as a colour (optional)
    attribute_scores       float [R]     its confidence in 0..1 (optional)
    image_size             int   [2]     height, width of the image in pixels (optional, needed to draw)

`boxes` of a single image are in pixels of the original image. Inside the model, where the original size is unknown,
they are normalised: divided by the width and height of the image, so that they lie in 0..1. Their key is `boxes_unit`
then. [`find_regions`] is the way from pixels to regions, [`encode_boxes`] the way from boxes in pixels to model inputs.

Letters: B batch, R regions, V feature.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .configuration_region_detector import NUM_SPATIAL_FEATURES

logger = logging.getLogger(__name__)

UNKNOWN_DETECTOR = "unknown"  # name of the detector of features that others made, unless it is given
_UNIT_SLACK = 1e-3  # by which rounding takes a normalised box beyond 0..1
_FEW_PIXELS = 8  # in an image of so few, boxes in 0..1 may be in pixels
_PER_REGION = ("scores", "class_ids", "attribute_ids", "attribute_scores")  # what may be known of a region
_KNOWN = ("visual_embeds", "boxes", "scores", "class_ids", "image_size", "attribute_ids", "attribute_scores")


def center_to_corners(boxes: torch.Tensor) -> torch.Tensor:
    """[..., 4] boxes from centre x, centre y, width, height to x1, y1, x2, y2."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def corners_to_center(boxes: torch.Tensor) -> torch.Tensor:
    """[..., 4] boxes from x1, y1, x2, y2 to centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def scale_boxes(boxes: torch.Tensor, image_size: Sequence[float]) -> torch.Tensor:
    """[..., 4] normalised corner boxes to pixels; `image_size` is (height, width)."""
    height, width = (float(side) for side in image_size)
    return boxes * boxes.new_tensor([width, height, width, height])


def normalise_boxes(boxes: torch.Tensor, image_size: Sequence[float]) -> torch.Tensor:
    """[..., 4] corner boxes in pixels to normalised ones; `image_size` is (height, width)."""
    height, width = image_size
    return scale_boxes(boxes, (1 / height, 1 / width))


def pad_boxes(boxes: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Normalised boxes [R, 4] of B images, padded to the longest list: `boxes_unit` [B, R, 4], and `boxes_mask` [B, R] with 1
    for a box and 0 for padding."""
    masks = [torch.ones(len(rows), dtype=torch.long) for rows in boxes]
    return {
        "boxes_unit": pad_sequence(list(boxes), batch_first=True),
        "boxes_mask": pad_sequence(masks, batch_first=True),
    }


def encode_boxes(
    boxes: Sequence[Any], image_sizes: Sequence[Sequence[int]], whole_image: bool = False
) -> dict[str, torch.Tensor]:
    """Boxes in pixels that regions are wanted of -> what region encoders read: `boxes_unit` and `boxes_mask`, see [`pad_boxes`].

    Args:
        boxes: For each image corner boxes [R, 4] (tensor or list). What reaches beyond its border by rounding is cut off.
        image_sizes: (height, width) of each image.
        whole_image: Whether to put the box of the whole image before the others.

    Raises:
        ValueError: The boxes of an image are not [R, 4], or not boxes in pixels of it, see [`check_boxes`].
    """
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * whole_image).reshape(-1, 4)
    rows = []
    for number, (corners, size) in enumerate(zip(boxes, image_sizes, strict=True)):
        given = given_boxes(corners, size, f"boxes {number}")
        rows.append(torch.cat((whole, normalise_boxes(given, size).clamp(0.0, 1.0))))
    return pad_boxes(rows)


def given_boxes(boxes: Any, image_size: Sequence[float], what: str) -> torch.Tensor:
    """Boxes of one image that regions are wanted of, as a tensor [R, 4].

    Raises:
        ValueError: They are not [R, 4], or not boxes in pixels of the image, see [`check_boxes`]; the message starts with `what`.
    """
    try:
        corners = torch.as_tensor(boxes, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what}: {boxes!r:.60}; expected numbers of shape (boxes, 4)") from error
    if not corners.numel():
        return corners.reshape(0, 4)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise ValueError(f"{what}: shape {tuple(corners.shape)}; expected (boxes, 4), x1, y1, x2, y2 in pixels")
    check_boxes(corners, image_size, what)
    return corners


def box_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pairwise intersection over union of corner boxes: [..., N, 4] x [..., M, 4] -> [..., N, M].

    Areas are plain differences (no + 1 for inclusive pixels). Two boxes without area have IoU 0.
    """
    low = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    high = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    area_first = (first[..., 2:] - first[..., :2]).prod(dim=-1)
    area_second = (second[..., 2:] - second[..., :2]).prod(dim=-1)
    union = area_first[..., :, None] + area_second[..., None, :] - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def suppress_overlaps(boxes: torch.Tensor, keep: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression of [B, R, 4] corner boxes that are sorted by falling confidence.

    `keep` [B, R] (bool) marks the candidates; returns the survivors in the same form. The loop runs over positions, for
    all images at once, so that it compiles and exports.
    """
    overlaps = box_iou(boxes, boxes) > threshold
    survivors = [keep[:, 0]]
    for i in range(1, boxes.shape[1]):
        beaten = (overlaps[:, i, :i] & torch.stack(survivors, dim=1)).any(dim=1)
        survivors.append(keep[:, i] & ~beaten)
    return torch.stack(survivors, dim=1)


def box_geometry(boxes_unit: torch.Tensor) -> torch.Tensor:
    """[..., 4] normalised corner boxes -> [..., 9]: corners, centre, width, height, area."""
    center = corners_to_center(boxes_unit)
    return torch.cat((boxes_unit, center, center[..., 2:3] * center[..., 3:4]), dim=-1)


def spatial_features(boxes_unit: torch.Tensor) -> torch.Tensor:
    """[..., 4] normalised corner boxes -> [..., 6]: x1, y1, x2, y2, width, height, which the features of Flickr30k end with.

    The width is x2 - x1, without + 1, whatever detector the boxes are from.
    """
    return torch.cat((boxes_unit, boxes_unit[..., 2:] - boxes_unit[..., :2]), dim=-1)


def spatial_hint(dim: int, expected: int) -> str:
    """What an error about features of another length adds when the spatial numbers make the difference; else nothing."""
    if expected - dim == NUM_SPATIAL_FEATURES:
        return "; the six spatial numbers are missing: make them with --spatial (of `convert`, `extract` or `convert-features`)"
    if dim - expected == NUM_SPATIAL_FEATURES:
        return "; they end with six spatial numbers, which this model does not read: make them without --spatial"
    return ""


def check_regions(regions: Mapping[str, Any], region_dim: int | None, name: str = "regions") -> dict[str, torch.Tensor]:
    """Check one image's regions and return them as tensors (see the module's docstring for the keys).

    Args:
        regions: Mapping with at least `visual_embeds`; arrays, tensors or lists.
        region_dim: Expected length of a feature, or `None` to accept any.
        name: What to call these regions in an error.

    Raises:
        ValueError: A key is unknown or missing, a shape is wrong, a number is not finite, or a box is inverted,
            outside the image or not in pixels. The message names the key and the first offending row.
    """
    unknown = sorted(set(regions) - set(_KNOWN))
    if unknown:
        raise ValueError(f"{name}: unknown key {unknown[0]!r}; expected {', '.join(_KNOWN)}")
    if regions.get("visual_embeds") is None:
        raise ValueError(f"{name}: key 'visual_embeds' is missing; expected an array of shape (regions, dim)")
    checked = {key: _as_tensor(value, f"{name}: '{key}'") for key, value in regions.items() if value is not None}
    features = checked["visual_embeds"] = checked["visual_embeds"].float()
    if features.dim() != 2:
        raise ValueError(f"{name}: 'visual_embeds' has shape {tuple(features.shape)}; expected (regions, dim)")
    if region_dim is not None and features.shape[1] != region_dim:
        hint = spatial_hint(features.shape[1], region_dim)
        raise ValueError(f"{name}: features have dim {features.shape[1]}, this model expects {region_dim}{hint}")
    _check_rows_finite(features, f"{name}: 'visual_embeds'")
    expected = {
        "boxes": (len(features), 4),
        "image_size": (2,),
        **{key: (len(features),) for key in _PER_REGION},
    }
    for key, shape in expected.items():
        if key in checked and tuple(checked[key].shape) != shape:
            raise ValueError(f"{name}: '{key}' has shape {tuple(checked[key].shape)}; expected {shape}")
    for key in ("scores", "attribute_scores"):
        if key in checked:
            _check_rows_finite(checked[key][:, None], f"{name}: '{key}'")
    if "boxes" in checked:
        checked["boxes"] = checked["boxes"].float()
        size = checked["image_size"].tolist() if "image_size" in checked else None
        check_boxes(checked["boxes"], size, f"{name}: 'boxes'")
    return checked


def check_detector(features: str, found: Mapping[str, Any], model: str, expected: Mapping[str, Any] | None) -> None:
    """Refuse features of another detector than the model was trained on: they may have the same length, but mean nothing to it.

    A detector is a mapping with `name` and `fingerprint`, as in the index of a feature store. Where both fingerprints are known
    they decide, otherwise the names do. A model that does not say what it was trained on gets a warning only.

    Args:
        features: Where the features come from, for the message.
        found: Their detector.
        model: The model (or a region encoder in its place), for the message.
        expected: The detector of the features that it was trained on, if it says so.

    Raises:
        ValueError: The detectors differ, or it is not known whether they do.
    """
    if expected is None or _is_unknown(expected):
        logger.warning(
            "%s does not say which detector its features came from; those of %s are of %s",
            *(model, features, _name_detector(found)),
        )
        return
    both = [detector.get("fingerprint") for detector in (found, expected)]
    if both[0] == both[1] if all(both) else found["name"] == expected["name"]:
        return
    raise ValueError(
        f"{features}: features of {_name_detector(found)}, but {model} expects those of {_name_detector(expected)}; "
        "expected the same detector (--any_detector, or any_detector=True, lets them pass)"
    )


def _is_unknown(detector: Mapping[str, Any]) -> bool:
    return detector["name"] == UNKNOWN_DETECTOR and not detector.get("fingerprint")


def _name_detector(detector: Mapping[str, Any]) -> str:
    if _is_unknown(detector):
        return "an unknown detector"
    fingerprint = detector.get("fingerprint")
    return f"{detector['name']} ({fingerprint})" if fingerprint else str(detector["name"])


def pad_regions(regions: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad checked regions of B images to the longest: `visual_embeds` [B, R, V] and `visual_attention_mask` [B, R], and
    `visual_token_type_ids` [B, R] where the regions have them."""
    lengths = [len(item["visual_embeds"]) for item in regions]
    dim = regions[0]["visual_embeds"].shape[1]
    for row, item in enumerate(regions):
        if item["visual_embeds"].shape[1] != dim:
            raise ValueError(
                f"regions {row}: features have dim {item['visual_embeds'].shape[1]}; expected {dim} as in regions 0"
            )
    features = regions[0]["visual_embeds"].new_zeros(len(regions), max(lengths), dim)
    mask = torch.zeros(features.shape[:2], dtype=torch.long)
    for row, (item, length) in enumerate(zip(regions, lengths, strict=True)):
        features[row, :length] = item["visual_embeds"]
        mask[row, :length] = 1
    batch = {"visual_embeds": features, "visual_attention_mask": mask}
    if "visual_token_type_ids" in regions[0]:
        segments = torch.zeros_like(mask)
        for row, (item, length) in enumerate(zip(regions, lengths, strict=True)):
            segments[row, :length] = item["visual_token_type_ids"]
        batch["visual_token_type_ids"] = segments
    return batch


def join_regions(images: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The checked regions of several images as those of one, with segment 0 for the first image, 1 for the next, ..."""
    features = [image["visual_embeds"] for image in images]
    if len({rows.shape[1] for rows in features}) > 1:
        raise ValueError(f"features of dims {[rows.shape[1] for rows in features]} in one pair; expected the same")
    segments = [torch.full((len(rows),), i) for i, rows in enumerate(features)]
    return {"visual_embeds": torch.cat(features), "visual_token_type_ids": torch.cat(segments)}


@torch.no_grad()
def find_regions(
    model: Any, inputs: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None
) -> list[dict[str, torch.Tensor]]:
    """
    Pixels -> regions: one mapping for each image, boxes in pixels of the original image (see the module's docstring).

    Args:
        model: A region encoder, or a VisualBERT with one inside.
        inputs: What the image processor made of the images: `pixel_values`, `image_sizes` and what else the region encoder
            reads; `boxes_unit` and `boxes_mask` of [`encode_boxes`] when given boxes are to be described.
        dtype: Floating point type of the result; the one that the model computes in when not given.

    Raises:
        ValueError: The model is a VisualBERT without a region encoder; or its region encoder fails on images of this size, which
            its configuration or the image processor is to blame for.
    """
    read = {name: value.to(model.device) for name, value in inputs.items()}
    read["pixel_values"] = read["pixel_values"].to(model.dtype)
    try:
        if hasattr(model, "get_image_features"):
            found = model.get_image_features(**read, return_dict=True)
        else:  # a region encoder takes only what it reads
            names = ("pixel_values", "pixel_mask", "boxes_unit", "boxes_mask", *model.region_inputs)
            found = model(**{name: read[name] for name in names if name in read})
    except (ValueError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any type: detectors of others compute here, with numbers of a configuration file
        height, width = read["pixel_values"].shape[-2:]
        raise ValueError(
            f"{model.name_or_path or type(model).__name__}: fails on images that were made {height} x {width} pixels "
            f"({type(error).__name__}: {' '.join(str(error).split()):.300})"
        ) from error
    if dtype is not None:
        found = {name: value.to(dtype) if value.is_floating_point() else value for name, value in found.items()}
    return split_regions(found, inputs["image_sizes"].tolist())


def split_regions(
    batch: Mapping[str, torch.Tensor], image_sizes: Sequence[Sequence[int]]
) -> list[dict[str, torch.Tensor]]:
    """What a region encoder returned for B images -> one mapping per image, padding removed, boxes in pixels.

    Boxes are cut at the border of the image: pyramid detectors let theirs reach into the padding.

    Args:
        batch: `visual_embeds` [B, R, V], `visual_attention_mask` [B, R], `boxes_unit` [B, R, 4] and optionally `scores`,
            `class_ids`, `attribute_ids` and `attribute_scores` [B, R].
        image_sizes: Original (height, width) of each image.

    Raises:
        ValueError: The number of sizes is not B.
    """
    if len(image_sizes) != len(batch["visual_embeds"]):
        raise ValueError(f"{len(image_sizes)} image sizes for regions of {len(batch['visual_embeds'])} images")
    images = []
    for row, image_size in enumerate(image_sizes):
        keep = batch["visual_attention_mask"][row].bool()
        image = {"visual_embeds": batch["visual_embeds"][row][keep]}
        image["boxes"] = scale_boxes(batch["boxes_unit"][row][keep].clamp(0.0, 1.0), image_size)
        for key in _PER_REGION:
            if batch.get(key) is not None:
                image[key] = batch[key][row][keep]
        image["image_size"] = torch.as_tensor([int(side) for side in image_size])
        images.append(image)
    return images


def _as_tensor(value: Any, what: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{what} has rows of unequal length; expected an array") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{what} holds {array.dtype}; expected numbers")
    return torch.from_numpy(array.copy() if not array.flags.writeable else array)


def _check_rows_finite(rows: torch.Tensor, what: str) -> None:
    bad = ~torch.isfinite(rows).all(dim=-1)
    if bad.any():
        raise ValueError(f"{what}: row {int(bad.nonzero()[0])} holds NaN or infinity; expected finite numbers")


def are_normalised(boxes: torch.Tensor, image_size: Sequence[float] | None = None) -> bool:
    """Whether corner boxes [R, 4] can only be normalised: all lie in 0..1, but the image has more than a few pixels."""
    if not len(boxes) or (image_size is not None and max(image_size) <= _FEW_PIXELS):
        return False
    any_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).any()
    return bool(any_area and ((boxes >= -_UNIT_SLACK) & (boxes <= 1 + _UNIT_SLACK)).all())


def check_boxes(boxes: torch.Tensor, image_size: Sequence[float] | None, what: str) -> None:
    """Check corner boxes [R, 4] in pixels of one image; `image_size` is (height, width), where it is known.

    Raises:
        ValueError: A box is not finite, inverted, or more than a pixel (of large images: a thousandth) outside the image, or
            all are normalised. The message names the first offending row.
    """
    bad = ~torch.isfinite(boxes).all(dim=-1)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"{what}: row {row} holds NaN or infinity, {boxes[row].tolist()}; expected finite numbers")
    inverted = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    if inverted.any():
        row = int(inverted.nonzero()[0])
        raise ValueError(f"{what}: row {row} is inverted, {boxes[row].tolist()}; expected x1 <= x2 and y1 <= y2")
    if image_size is None:
        return
    height, width = image_size
    if are_normalised(boxes, image_size):
        raise ValueError(
            f"{what}: all boxes lie in 0..1 (row 0: {boxes[0].tolist()}), but the image has {width} x {height} pixels; "
            "expected x1, y1, x2, y2 in pixels"
        )
    # Detectors overshoot the border by rounding, in an image they made smaller.
    slack = max(1.0, 1e-3 * max(height, width))
    limit = boxes.new_tensor([width, height, width, height])
    outside = ((boxes < -slack) | (boxes > limit + slack)).any(dim=-1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"{what}: row {row} {boxes[row].tolist()} is outside the image of {width} x {height} pixels; "
            "expected x1, y1, x2, y2 in pixels"
        )


__all__ = [
    "are_normalised",
    "box_geometry",
    "box_iou",
    "center_to_corners",
    "check_boxes",
    "check_regions",
    "corners_to_center",
    "encode_boxes",
    "find_regions",
    "given_boxes",
    "join_regions",
    "normalise_boxes",
    "pad_boxes",
    "pad_regions",
    "scale_boxes",
    "spatial_features",
    "spatial_hint",
    "split_regions",
    "suppress_overlaps",
]
