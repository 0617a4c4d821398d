"""The boxes of a table: x1, y1, x2, y2 in pixels of the upright image, checked against its size."""

from __future__ import annotations

from typing import Any

import torch

from ..hub_code.regions_visualbert import check_boxes
from .image_size import upright_size
from .table_images import TableImages
from .table_rows import as_list

Box = list[float]


def image_size(images: TableImages, key: str, what: str) -> tuple[int, int]:
    """Height and width of an image of a table; `what` says where it is, for the message.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        if key not in images.sizes:  # many rows are about the same image
            images.sizes[key] = upright_size(images[key])
        return images.sizes[key]
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({' '.join(str(error).split()):.300}); expected an image") from error


def box_lists(value: Any, count: int, what: str) -> list[list[Box]]:
    """The boxes of each of `count` things: one box each, or a list of boxes each; a single thing may have its boxes alone.

    Args:
        value: The cell.
        count: Of how many things.
        what: Where the cell is, for the message.

    Raises:
        ValueError: It holds something else, or boxes of another number of things; the message starts with `what`.
    """
    listed = as_list(value, what)
    depth = _depth(listed)
    if count == 1 and (depth == 1 or (depth == 2 and len(listed) > 1)):
        listed = [listed]
    if len(listed) != count or depth not in (1, 2, 3):
        expected = f"{count} of them, or {count} lists of them" if count > 1 else "one, or a list of them"
        raise ValueError(f"{what} is {value!r:.60}; expected boxes x1, y1, x2, y2, {expected}")
    return [_boxes(boxes, what) for boxes in listed]


def checked_boxes(boxes: list[Box], size: tuple[int, int], what: str) -> list[Box]:
    """The same boxes.

    Raises:
        ValueError: One is inverted, without area, beyond the image of this height and width, or all are in units of it.
    """
    height, width = size
    is_inside = all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in boxes)
    if is_inside and all(max(x2, y2) > 2 for _, _, x2, y2 in boxes):  # most rows; tensors take longer
        return boxes
    check_boxes(torch.tensor(boxes), size, what)
    for box in boxes:
        if box[0] == box[2] or box[1] == box[3]:
            raise ValueError(f"{what} holds {box}, without area; expected x1 < x2 and y1 < y2")
    return boxes


def _boxes(value: Any, what: str) -> list[Box]:
    """The boxes of one thing."""
    boxes = [value] if value and _depth(value) == 1 else value
    for box in boxes if isinstance(boxes, list) else [boxes]:
        is_box = isinstance(box, list) and len(box) == 4
        if not is_box or not all(type(side) in (int, float) for side in box):
            raise ValueError(f"{what} holds {box!r:.60}; expected four numbers x1, y1, x2, y2")
    if not boxes:
        raise ValueError(f"{what} holds no box for one of them; expected at least one")
    return [[float(side) for side in box] for box in boxes]


def _depth(value: Any) -> int:
    """How many lists lie in one another."""
    depth = 0
    while isinstance(value, list):
        depth, value = depth + 1, next(iter(value), None)
    return depth


__all__ = ["Box", "box_lists", "checked_boxes", "image_size"]
