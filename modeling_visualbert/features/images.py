"""Which images to extract: those of a folder, of a list, or of a dataset, and what they are called in a store."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets import Image as ImageColumn
from PIL import Image

from ..data.files import IMAGE_SUFFIXES, check_new, is_unicode, read_lines
from .extract import ImageOrFile


def image_id_from_number(name: str) -> str:
    """`COCO_train2014_000000132417.jpg` -> `132417`, as COCO, VQA and Flickr30k call their images.

    Raises:
        ValueError: The name does not end in a number.
    """
    number = re.search(r"(\d+)$", image_id_from_stem(name))
    if not number:
        raise ValueError(f"image name {name!r} does not end in a number; choose other ids")
    return str(int(number[1]))


def image_id_from_stem(name: str) -> str:
    """`train/dev-1-0-img0.png.npz` -> `dev-1-0-img0`, as NLVR2 calls its images."""
    stem = name.rsplit("/", 1)[-1]
    while (shorter := re.sub(r"\.(npz|npy|jpe?g|png|webp|bmp)$", "", stem, flags=re.IGNORECASE)) != stem:
        stem = shorter
    return stem


def image_id_from_name(name: str) -> str:
    """The name as it is: of a file in a folder, its path in the folder."""
    return name


IMAGE_IDS: dict[str, Callable[[str], str]] = {
    "number": image_id_from_number,
    "stem": image_id_from_stem,
    "name": image_id_from_name,
}


def list_images(source: str | Path, ids: str = "stem") -> list[tuple[str, ImageOrFile]]:
    """(image id, file) of the images in a folder or a list, in the order of their paths or of the list.

    Args:
        source: A folder, with all below it; or a text file with a path in each line, relative to its folder or absolute.
        ids: One of `IMAGE_IDS`.

    Raises:
        FileNotFoundError: The source is not there. (A missing image of a list is found out when it is read.)
        ValueError: There are no images, two have the same id, or one has none of this kind.
    """
    source = Path(source)
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        named = [(path.relative_to(source).as_posix(), path, str(path)) for path in paths]
    else:
        lines = read_lines(source)
        named = [(line, source.parent / line, f"{source}: image {n}") for n, line in enumerate(lines, start=1)]
    return _identified([(name, path, where) for name, path, where in named], IMAGE_IDS[ids], source)


def list_dataset_images(
    name: str, image_column: str, id_column: str | None = None, split: str = "train"
) -> list[tuple[str, ImageOrFile]]:
    """(image id, what opens the image) of a dataset's image column.

    Args:
        name: Folder of `save_to_disk`, or what `load_dataset` takes.
        image_column: Column of images.
        id_column: Column of ids; by default the row's number.
        split: Which split.

    Raises:
        ValueError: The dataset has no such split or column, or two images have the same id.
    """
    data = _load(name, split)
    for column in (image_column, *([id_column] if id_column else [])):
        if column not in data.column_names:
            raise ValueError(
                f"{name}: no column {column!r} in split {split}; expected one of {', '.join(data.column_names)}"
            )
    encoded = data.cast_column(image_column, ImageColumn(decode=False))  # so that one bad image does not stop all
    keys = data[id_column] if id_column else range(len(data))
    rows = [
        (str(key), partial(_open, encoded, row, image_column), f"{name}: row {row}") for row, key in enumerate(keys)
    ]
    return _identified(rows, image_id_from_name, name)


def _load(name: str, split: str) -> Dataset:
    is_saved = any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))
    data = load_from_disk(name) if is_saved else load_dataset(name, split=split)
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"{name}: no split {split!r}; expected one of {', '.join(data)}")
        data = data[split]
    return data


def _open(data: Dataset, row: int, column: str) -> Image.Image:
    record = data[row][column]
    if record is None:
        raise ValueError("there is no image in this row")
    return Image.open(io.BytesIO(record["bytes"]) if record["bytes"] is not None else record["path"])


def _identified(
    named: list[tuple[str, Any, str]], image_id: Callable[[str], str], source: str | Path
) -> list[tuple[str, ImageOrFile]]:
    if not named:
        raise ValueError(f"{source}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    seen: set[str] = set()
    images = []
    for name, image, where in named:
        try:
            key = image_id(name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if not is_unicode(key):
            raise ValueError(f"{where}: the name {key!r} is not UTF-8")
        check_new(key, seen, "image id", where)
        images.append((key, image))
    return images
