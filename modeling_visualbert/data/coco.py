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

from datasets import Dataset, Features, List, Value

from .files import read_json, require

FEATURES = Features({"image_id": Value("int64"), "file_name": Value("string"), "captions": List(Value("string"))})


def load_coco_captions(path: str | Path, exclude: Collection[int] = ()) -> Dataset:
    """Read one captions file, in the order of its images.

    Args:
        path: The file.
        exclude: Image ids to leave out, such as the VQA minival images when pre-training (the authors train on train2014 and
            val2014 without them).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: JSON is malformed, a key is missing, an image id or caption id occurs twice, a caption is empty or
            belongs to an image that is not listed; names file and record.
    """
    content = read_json(path)
    names: dict[int, str] = {}
    for number, image in enumerate(require(content, "images", str(path), list)):
        where = f"{path}: image {number}"
        image_id = require(image, "id", where, int)
        if image_id in names:
            raise ValueError(f"{where}: image id {image_id} occurs twice; expected each once")
        names[image_id] = require(image, "file_name", where, str)
    captions: dict[int, list[str]] = defaultdict(list)
    seen: set[int] = set()
    for number, record in enumerate(require(content, "annotations", str(path), list)):
        where = f"{path}: caption {number}"
        caption_id, image_id = require(record, "id", where, int), require(record, "image_id", where, int)
        if caption_id in seen:
            raise ValueError(f"{where}: caption id {caption_id} occurs twice; expected each once")
        if image_id not in names:
            raise ValueError(f"{where}: image {image_id} is not listed; expected an entry in 'images'")
        seen.add(caption_id)
        text = require(record, "caption", where, str).strip()
        if not text:
            raise ValueError(f"{where}: the caption is empty; expected a sentence")
        captions[image_id].append(text)
    left_out = frozenset(exclude)
    kept = [image_id for image_id in names if image_id in captions and image_id not in left_out]
    rows = {
        "image_id": kept,
        "file_name": [names[image_id] for image_id in kept],
        "captions": [captions[image_id] for image_id in kept],
    }
    return Dataset.from_dict(rows, features=FEATURES)
