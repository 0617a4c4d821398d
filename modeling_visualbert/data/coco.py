"""COCO captions (Chen et al. 2015, https://cocodataset.org/#download): captions JSON, about five for each image.

One image and one caption in the file, shortened::

    {"id": 397133, "file_name": "000000397133.jpg", "height": 427, "width": 640}
    {"image_id": 397133, "id": 370509, "caption": "A man is in a kitchen making pizzas."}

become one row for each image that has captions::

    {"image_id": 397133, "file_name": "000000397133.jpg", "captions": ["A man is in a kitchen making pizzas.", ...]}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from .files import check_count, check_new, read_json, require, require_path, skipping

# Official sizes of `captions_<split>.json`.
EXPECTED_IMAGES = {"train2014": 82_783, "val2014": 40_504, "train2017": 118_287, "val2017": 5000}
EXPECTED_CAPTIONS = {"train2014": 414_113, "val2014": 202_654, "train2017": 591_753, "val2017": 25_014}
FEATURES = Features({"image_id": Value("int64"), "file_name": Value("string"), "captions": List(Value("string"))})


def load_coco_captions(path: str | Path, exclude: Collection[int] = (), skipped: list[str] | None = None) -> Dataset:
    """Read one captions file, in the order of its images.

    Args:
        path: The file. If it has an official name, a warning is logged when it is incomplete.
        exclude: Image ids to leave out, such as the VQA minival images in pre-training (the authors train on train2014 and
            val2014 without them).
        skipped: If given, bad records are left out and their errors are added to this list instead of being raised. So are
            the captions of an image that was left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The JSON is malformed, a key is missing, an image id or caption id occurs twice, or a caption is empty or
            belongs to an image that is not listed; the message names the file and the record.
    """
    content = read_json(path)
    images = require(content, "images", str(path), list)
    annotations = require(content, "annotations", str(path), list)
    split = Path(path).stem.removeprefix("captions_")
    check_count(path, len(images), "images", split, EXPECTED_IMAGES)
    check_count(path, len(annotations), "captions", split, EXPECTED_CAPTIONS)
    names = _file_names(images, path, skipped)
    captions = _captions(annotations, names, path, skipped)
    left_out = frozenset(exclude)
    kept = [image_id for image_id in names if image_id in captions and image_id not in left_out]
    rows = {
        "image_id": kept,
        "file_name": [names[image_id] for image_id in kept],
        "captions": [captions[image_id] for image_id in kept],
    }
    return Dataset.from_dict(rows, features=FEATURES)


def _file_names(images: list[Any], path: str | Path, skipped: list[str] | None) -> dict[int, str]:
    """File names by image id."""
    names: dict[int, str] = {}
    seen: set[int] = set()
    for number, record in enumerate(images):
        where = f"{path}: image {number}"
        with skipping(skipped):
            image_id, name = require(record, "id", where, int), require_path(record, "file_name", where)
            check_new(image_id, seen, "image id", where)
            names[image_id] = name
    return names


def _captions(
    annotations: list[Any], names: dict[int, str], path: str | Path, skipped: list[str] | None
) -> dict[int, list[str]]:
    """Captions by image id."""
    captions: dict[int, list[str]] = defaultdict(list)
    seen: set[int] = set()
    for number, record in enumerate(annotations):
        where = f"{path}: caption {number}"
        with skipping(skipped):
            image_id, text = _caption(record, names, where)
            check_new(require(record, "id", where, int), seen, "caption id", where)
            captions[image_id].append(text)
    return captions


def _caption(record: Any, names: dict[int, str], where: str) -> tuple[int, str]:
    """Image id and text of a caption."""
    image_id, text = require(record, "image_id", where, int), require(record, "caption", where, str).strip()
    if image_id not in names:
        raise ValueError(f"{where}: image {image_id} is not listed; expected an entry in 'images'")
    if not text:
        raise ValueError(f"{where}: the caption is empty; expected a sentence")
    return image_id, text
