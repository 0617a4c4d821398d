"""Which images to extract: those of a folder, a list or a dataset, and their ids in the store."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from datasets import Column, Dataset, DatasetDict, load_dataset, load_from_disk
from datasets import Image as ImageColumn
from PIL import Image

from ..data.files import IMAGE_SUFFIXES, files_below, is_unicode, read_lines, skipping
from ..hub_code.image_processing_visualbert import FORMATS
from .extract import ImageOrFile

Named = Sequence[tuple[str, ImageOrFile, str]]  # name, image, and where it comes from, for errors


def image_id_from_number(name: str) -> str:
    """`COCO_train2014_000000132417.jpg` -> `132417`, the way COCO, VQA and Flickr30k identify their images.

    Raises:
        ValueError: The name does not end in a number.
    """
    number = re.search(r"(\d+)$", image_id_from_stem(name))
    if not number:
        raise ValueError(f"image name {name!r} does not end in a number; choose other ids")
    return str(int(number[1]))


def image_id_from_stem(name: str) -> str:
    """`train/dev-1-0-img0.png.npz` -> `dev-1-0-img0`, the way NLVR2 identifies its images."""
    return re.sub(r"(\.(npz|npy|jpe?g|png|webp|bmp))+$", "", name.rsplit("/", 1)[-1], flags=re.IGNORECASE)


IMAGE_IDS: dict[str, Callable[[str], str]] = {
    "number": image_id_from_number,
    "stem": image_id_from_stem,
    "name": str,  # the name itself: for a file in a folder, its path in the folder
}


def list_images(
    source: str | Path, ids: str = "stem", skipped: list[str] | None = None
) -> list[tuple[str, ImageOrFile]]:
    """(image id, file) of the images in a folder or a list, in the order of their paths or of the list.

    Args:
        source: A folder, searched with its subfolders and the folders that links in it lead to, without hidden files; or a
            text file with one path per line, absolute or relative to the file's folder.
        ids: One of `IMAGE_IDS`.
        skipped: If given, images whose name gives no id, or an id that occurred before, are left out, and their errors are added
            to this list instead of being raised.

    Raises:
        FileNotFoundError: The source does not exist. (A missing image in a list is only noticed when it is read.)
        ValueError: There are no images, two have the same id, or a name gives no id of this kind.
    """
    source = Path(source)
    if source.is_dir():
        paths = [path for path in files_below(source) if path.suffix.lower() in IMAGE_SUFFIXES]
        named: Named = [(path.relative_to(source).as_posix(), path, str(path)) for path in paths]
    else:
        lines = enumerate(read_lines(source), start=1)
        named = [(line, source.parent / line, f"{source}: image {number}") for number, line in lines]
    return _identified(named, IMAGE_IDS[ids], source, skipped)


def list_dataset_images(
    name: str, image_column: str, id_column: str | None = None, split: str = "train"
) -> list[tuple[str, ImageOrFile]]:
    """(image id, what opens the image) of a dataset's image column.

    Args:
        name: A folder written by `save_to_disk`, or anything that `load_dataset` takes.
        image_column: Column of images.
        id_column: Column of ids; by default, ids are row numbers.
        split: The split.

    Raises:
        ValueError: The dataset has no such split or column, or two images have the same id.
    """
    data = _load(name, split)
    for column in (image_column, id_column or image_column):
        if column not in data.column_names:
            raise ValueError(
                f"{name}: no column {column!r} in split {split}; expected one of {', '.join(data.column_names)}"
            )
    encoded = data.cast_column(image_column, ImageColumn(decode=False))[image_column]  # a bad image stops only itself
    keys = map(str, data[id_column] if id_column else range(len(data)))
    rows = [(key, partial(_open, encoded, row), f"{name}: row {row}") for row, key in enumerate(keys)]
    return _identified(rows, str, name, None)


def _load(name: str, split: str) -> Dataset:
    is_saved = any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))
    data = load_from_disk(name) if is_saved else load_dataset(name, split=split)
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"{name}: no split {split!r}; expected one of {', '.join(data)}")
        data = data[split]
    return data


def _open(column: Column, row: int) -> Image.Image:
    record = column[row]
    if record is None:
        raise ValueError("there is no image in this row")
    return Image.open(io.BytesIO(record["bytes"]) if record["bytes"] is not None else record["path"], formats=FORMATS)


def _identified(
    named: Named, image_id: Callable[[str], str], source: str | Path, skipped: list[str] | None
) -> list[tuple[str, ImageOrFile]]:
    if not named:
        raise ValueError(f"{source}: no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    found: dict[str, tuple[ImageOrFile, str]] = {}
    for name, image, where in named:
        with skipping(skipped):
            key = _image_id(name, image_id, where)
            if key not in found:
                found[key] = image, where
            elif not _are_one_file(image, found[key][0]):
                raise ValueError(
                    f"{where}: image id {key!r:.80} occurs twice, first as {found[key][1]}; expected it only once"
                )
    return [(key, image) for key, (image, _) in found.items()]


def _image_id(name: str, image_id: Callable[[str], str], where: str) -> str:
    try:
        key = image_id(name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not is_unicode(key):
        raise ValueError(f"{where}: the name {key!r:.80} is not UTF-8")
    return key


def _are_one_file(one: ImageOrFile, other: ImageOrFile) -> bool:
    """Whether both are names of the same file, one a link to the other; an image that is listed twice is not."""
    if not isinstance(one, Path) or not isinstance(other, Path) or one == other:
        return False
    return one.is_file() and other.is_file() and one.samefile(other)
