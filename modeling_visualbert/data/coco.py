"""COCO captions (Chen et al. 2015, https://cocodataset.org/#download): captions JSON, about five for each image.

One image and one caption in the file, shortened::

    {"id": 397133, "file_name": "000000397133.jpg", "height": 427, "width": 640}
    {"image_id": 397133, "id": 370509, "caption": "A man is in a kitchen making pizzas."}

become one row for each image that has captions::

    {"image_id": 397133, "file_name": "000000397133.jpg", "captions": ["A man is in a kitchen making pizzas.", ...]}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from .cache import Notes, batches, cached_table, content_of, size_of
from .files import check_count, check_new, read_json_records, require, require_path, skipping

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
    excluded = sorted(exclude)
    read = partial(_read, path, frozenset(excluded), skipped is not None)
    identity = content_of(path), excluded, skipped is not None
    rows, notes = cached_table("coco", FEATURES, read, size_of(path), *identity)
    split = Path(path).stem.removeprefix("captions_")
    check_count(path, notes["images"], "images", split, EXPECTED_IMAGES)
    check_count(path, notes["captions"], "captions", split, EXPECTED_CAPTIONS)
    if skipped is not None:
        skipped += notes["skipped"]
    return rows


def _read(path: str | Path, exclude: Collection[int], skip: bool, notes: Notes) -> Iterator[pa.Table]:
    skipped: list[str] | None = [] if skip else None
    names = _file_names(path, skipped, notes)
    captions = _captions(names, path, skipped, notes)
    notes["skipped"] = skipped or []
    rows = (
        {"image_id": image_id, "file_name": name, "captions": captions[image_id]}
        for image_id, name in names.items()
        if image_id in captions and image_id not in exclude
    )
    yield from batches(rows, FEATURES)


def _file_names(path: str | Path, skipped: list[str] | None, notes: Notes) -> dict[int, str]:
    """File names by image id."""
    number = -1
    names: dict[int, str] = {}
    seen: set[int] = set()
    for number, record in enumerate(read_json_records(path, "images")):
        where = f"{path}: image {number}"
        with skipping(skipped):
            image_id, name = require(record, "id", where, int), require_path(record, "file_name", where)
            check_new(image_id, seen, "image id", where)
            names[image_id] = name
    notes["images"] = number + 1
    return names


def _captions(names: dict[int, str], path: str | Path, skipped: list[str] | None, notes: Notes) -> dict[int, list[str]]:
    """Captions by image id."""
    number = -1
    captions: dict[int, list[str]] = defaultdict(list)
    seen: set[int] = set()
    for number, record in enumerate(read_json_records(path, "annotations")):
        where = f"{path}: caption {number}"
        with skipping(skipped):
            image_id, text = _caption(record, names, where)
            check_new(require(record, "id", where, int), seen, "caption id", where)
            captions[image_id].append(text)
    notes["captions"] = number + 1
    return captions


def _caption(record: Any, names: dict[int, str], where: str) -> tuple[int, str]:
    """Image id and text of a caption."""
    image_id, text = require(record, "image_id", where, int), require(record, "caption", where, str).strip()
    if image_id not in names:
        raise ValueError(f"{where}: image {image_id} is not listed; expected an entry in 'images'")
    if not text:
        raise ValueError(f"{where}: the caption is empty; expected a sentence")
    return image_id, text
