"""VCR (Zellers et al. 2019, https://visualcommonsense.com): questions as JSON Lines, and a metadata JSON for each image.

One line of `val.jsonl`, shortened (a list among the words is a tag: indices of `objects`, counted from 0)::

    {"annot_id": "val-1", "img_fn": "lsmdc_1054/1054_00.01.46@0.jpg", "metadata_fn": "lsmdc_1054/1054_00.01.46@0.json",
     "objects": ["person", "person", "person", "car", "cellphone", "clock"],
     "question": ["Does", [0], "live", "in", "this", "house", "?"],
     "answer_choices": [["No", ",", [0], "lives", "nowhere", "close", "."], ..., ["No", [1], "does", "not", ...]],
     "rationale_choices": [..., [[2], "sits", "comfortably", ...], ...], "answer_label": 2, "rationale_label": 3, ...}

and the metadata, whose objects are the same (boxes are x1, y1, x2, y2, score; an object may have several polygons)::

    {"names": ["person", ...], "boxes": [[955.7, 52.3, 1551.6, 789.0, 0.999], ...], "segms": [[[[1133, 64], ...]], ...],
     "width": 1920, "height": 797}

become one row, with the objects that its texts mention (persons 0, 1 and 2)::

    {"annot_id": "val-1", "image": "lsmdc_1054/1054_00.01.46@0.jpg", "metadata": "lsmdc_1054/1054_00.01.46@0.json",
     "question": ["Does", "[0]", "live", "in", "this", "house", "?"], "answer_choices": [["No", ",", "[0]", ...], ...],
     "rationale_choices": [...], "answer_label": 2, "rationale_label": 3, "objects": ["person", "person", "person"],
     "object_ids": [0, 1, 2], "boxes": [[955.7, 52.3, 1551.6, 789.0], ...], "width": 1920, "height": 797}

A tag is one word, "[0]" or "[0,2]", whose numbers are indices into the row's own `objects`; `object_ids` are the indices of these
objects in the metadata. `boxes` are in pixels. They do not include the whole image, the model's region 0, which is added later.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from .cache import Notes, batches, cached_table, content_of, size_of, stamp_of, table_of
from .columns import column_of, labelled_alike
from .files import (
    check_count,
    check_new,
    is_unicode,
    optional,
    read_json,
    read_json_lines,
    require,
    require_path,
    skipping,
)

EXPECTED_QUESTIONS = {"train": 212_923, "val": 26_534, "test": 25_263}
NUM_CHOICES = 4
FEATURES = Features(
    {
        "annot_id": Value("string"),
        "image": Value("string"),
        "metadata": Value("string"),
        "question": List(Value("string")),
        "answer_choices": List(List(Value("string"))),
        "rationale_choices": List(List(Value("string"))),
        "answer_label": Value("int64"),
        "rationale_label": Value("int64"),
        "objects": List(Value("string")),
        "object_ids": List(Value("int32")),
        "boxes": List(List(Value("float32"))),
        "width": Value("int32"),
        "height": Value("int32"),
    }
)
METADATA = Features(  # of the files of a split; boxes as precise as they are written
    {
        "metadata": Value("string"),
        "names": List(Value("string")),
        "boxes": List(List(Value("float64"))),
        "width": Value("int32"),
        "height": Value("int32"),
        "error": Value("string"),
        "missing": Value("bool"),
    }
)
_PLACED = Features({**FEATURES, "where": Value("string")})  # with the place of each row, for error messages
_METADATA_NAME = re.compile(rb'"metadata_fn"\s*:\s*"((?:[^"\\]|\\.)*)"')
TAG = re.compile(r"\[[0-9]+(,[0-9]+)*\]")  # among the words of a row

Text = list[str | list[int]]


@dataclass(frozen=True)
class VcrMetadata:
    """Contents of the metadata file of an image, in pixels; every list has one entry for each object.

    A polygon is a list of points x, y. An object with at least one polygon of three points may also have shorter ones.
    """

    names: list[str]
    boxes: list[list[float]]
    scores: list[float]
    segms: list[list[list[list[float]]]]
    width: int
    height: int


def read_metadata(path: str | Path) -> VcrMetadata:
    """Read the metadata of an image.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The JSON is malformed, a key is missing, the size is not positive, the lists differ in length, a box is not
            five numbers, is inverted or lies outside the image, or an object has no polygon of three points; the message
            names the file and the object.
    """
    where = str(path)
    content = read_json(path)
    width, height = (_size(content, key, where) for key in ("width", "height"))
    names, boxes, segms = (require(content, key, where, list) for key in ("names", "boxes", "segms"))
    if not len(names) == len(boxes) == len(segms):
        raise ValueError(
            f"{where}: {len(names)} names, {len(boxes)} boxes and {len(segms)} segms; expected one each for every object"
        )
    for number, (name, box, polygons) in enumerate(zip(names, boxes, segms, strict=True)):
        _check_name(name, f"{where}: object {number}")
        _check_box(box, width, height, f"{where}: object {number}")
        _check_polygons(polygons, f"{where}: object {number}")
    corners = [[float(number) for number in box[:4]] for box in boxes]
    return VcrMetadata(names, corners, [float(box[4]) for box in boxes], segms, width, height)


def load_vcr(
    annotations_file: str | Path,
    images_dir: str | Path | None = None,
    objects: str = "mentioned",
    skipped: list[str] | None = None,
) -> Dataset:
    """Read one split, in the order of the file; labels are None if there are none (test).

    Args:
        annotations_file: `train.jsonl`, `val.jsonl` or `test.jsonl`.
        images_dir: The folder `vcr1images`; without it no metadata is read, and `boxes`, `width` and `height` are None.
        objects: `"mentioned"`: the objects that the question, the answers and the rationales mention, as in the authors' code
            (following R2C). If they mention none, all people; if there are no people, all objects. The word "everyone" adds
            all people. `"all"`: all objects. The order is that of the metadata.
        skipped: If given, records that are bad or have bad metadata are left out, and their errors are added to this list
            instead of being raised.

    Returns:
        A `datasets.Dataset` with the columns of `FEATURES`.

    Raises:
        FileNotFoundError: The file, the folder or the metadata of a record is missing.
        ValueError: A line or its metadata is malformed, they name different objects, a tag refers to an object that does not
            exist, there are not four choices, a label is not one of them, only some lines have a label, a path leads out of
            the folder, an annot_id occurs twice, or `objects` is unknown; the message names the file and the line.
    """
    if objects not in ("mentioned", "all"):
        raise ValueError(f"objects {objects!r}; expected 'mentioned' or 'all'")
    images_dir = None if images_dir is None else Path(images_dir)
    if images_dir is not None and not images_dir.is_dir():
        raise FileNotFoundError(f"{images_dir}: no such image folder; expected vcr1images")
    metadata = None if images_dir is None else read_all_metadata(annotations_file, images_dir)
    read = partial(_read, annotations_file, metadata, images_dir, objects, skipped is not None)
    size = size_of(annotations_file) + (0 if metadata is None else metadata.size)
    identity = content_of(annotations_file), metadata and metadata.stamp, objects, skipped is not None
    rows, notes = cached_table("vcr", FEATURES, read, size, *identity)
    check_count(annotations_file, len(rows), "questions", notes["split"], EXPECTED_QUESTIONS)
    if skipped is not None:
        skipped += notes["skipped"]
    return rows


@dataclass(frozen=True)
class AllMetadata:
    """What the metadata files of a split say, except the outlines.

    Args:
        rows: A row for each file, with the columns of `METADATA`; `error` says why one cannot be read.
        size, stamp: Of the files.
    """

    rows: Dataset
    size: int
    stamp: str

    @cached_property
    def places(self) -> dict[str, int]:
        """Number of the row by the name of the file."""
        return {name: place for place, name in enumerate(column_of(self.rows, "metadata").to_pylist())}

    def of(self, name: str, where: str) -> dict[str, Any]:
        """The row of a file.

        Raises:
            ValueError: It was not found in the annotations file; the message starts with `where`.
        """
        if name not in self.places:
            raise ValueError(f"{where}: 'metadata_fn' is spelled with escapes; expected plain characters")
        return self.rows.data.slice(self.places[name], 1).to_pylist()[0]


def read_all_metadata(annotations_file: str | Path, images_dir: str | Path) -> AllMetadata:
    """The metadata of all images that a split is about. Each file is read once, and then only when its size or time changed.

    Raises:
        FileNotFoundError: There is no annotations file.
    """
    names = _metadata_names(annotations_file)
    size, stamp = stamp_of(os.path.join(images_dir, name) for name in names)
    read = partial(_read_metadata_files, Path(images_dir), names)
    return AllMetadata(cached_table("vcr_metadata", METADATA, read, size, stamp)[0], size, stamp)


def _metadata_names(path: str | Path) -> list[str]:
    """Names of the metadata files of all lines; found without parsing these, which takes much longer."""
    names: dict[bytes, None] = {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with Path(path).open("rb") as file:
        for line in file:
            names.update(dict.fromkeys(_METADATA_NAME.findall(line)))
    checked = []
    for name in names:
        with suppress(ValueError):  # raised, with its line, when that is read
            checked.append(require_path({"metadata_fn": json.loads(b'"%s"' % name)}, "metadata_fn", str(path)))
    return checked


def _read_metadata_files(images_dir: Path, names: Sequence[str], notes: Notes) -> Iterator[pa.Table]:
    return batches((_metadata_row(images_dir, name) for name in names), METADATA)


def _metadata_row(images_dir: Path, name: str) -> dict[str, Any]:
    try:
        found = read_metadata(images_dir / name)
    except (ValueError, FileNotFoundError) as error:
        return {"metadata": name, "error": str(error), "missing": isinstance(error, FileNotFoundError)}
    return {
        "metadata": name,
        **{"names": found.names, "boxes": found.boxes, "width": found.width, "height": found.height},
    }


def _read(
    path: str | Path,
    metadata: AllMetadata | None,
    images_dir: Path | None,
    objects: str,
    skip: bool,
    notes: Notes,
) -> Iterator[pa.Table]:
    skipped: list[str] | None = [] if skip else None
    rows = table_of(_rows(path, metadata, images_dir, objects, skipped), _PLACED)
    for label in ("answer_label", "rationale_label"):
        rows = labelled_alike(rows, "annot_id", label, skipped)
    notes["split"] = rows["annot_id"][0].as_py().split("-")[0] if len(rows) else ""
    notes["skipped"] = skipped or []
    yield rows.select(list(FEATURES))


def _rows(
    path: str | Path,
    metadata: AllMetadata | None,
    images_dir: Path | None,
    objects: str,
    skipped: list[str] | None,
) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for where, record in read_json_lines(path, skipped):
        with skipping(skipped):
            row = _row(record, objects, where)
            if metadata is not None and images_dir is not None:
                found = metadata.of(row["metadata"], where)
                row |= _from_metadata(record["objects"], row["object_ids"], found, images_dir, where)
            check_new(row["annot_id"], seen, "annot_id", where)
            yield {**row, "where": where}


def objects_to_keep(names: Sequence[str], texts: Iterable[Text]) -> list[int]:
    """Indices of the objects that the texts mention, in order, by the rules of R2C: "everyone" means all people, and if nothing
    is mentioned, all people (or, without people, all objects) are kept."""
    people = {index for index, name in enumerate(names) if name == "person"}
    kept: set[int] = set()
    for text in texts:
        for item in text:
            if isinstance(item, list):
                kept.update(item)
            elif item.lower() in ("everyone", "everyones"):
                kept |= people
    return sorted(kept or people or range(len(names)))


def _row(record: Any, objects: str, where: str) -> dict[str, Any]:
    """A row without the columns that come from the metadata."""
    names = require(record, "objects", where, list)
    for name in names:
        _check_name(name, where)
    question = require(record, "question", where)
    _check_text(question, len(names), f"{where}: 'question'")
    answers, rationales = _choices(record, "answer", names, where), _choices(record, "rationale", names, where)
    if answers is None:
        raise ValueError(f"{where}: key 'answer_choices' is missing; expected {NUM_CHOICES} answers")
    texts = [question, *answers, *(rationales or [])]
    kept = objects_to_keep(names, texts) if objects == "mentioned" else list(range(len(names)))
    new_index = {old: new for new, old in enumerate(kept)}
    return {
        "annot_id": require(record, "annot_id", where, str),
        "image": require_path(record, "img_fn", where),
        "metadata": require_path(record, "metadata_fn", where),
        "question": _words(question, new_index),
        "answer_choices": [_words(text, new_index) for text in answers],
        "rationale_choices": None if rationales is None else [_words(text, new_index) for text in rationales],
        "answer_label": _label(record, "answer", where),
        "rationale_label": _label(record, "rationale", where),
        "objects": [names[index] for index in kept],
        "object_ids": kept,
        "boxes": None,
        "width": None,
        "height": None,
    }


def _choices(record: Any, kind: str, names: list[str], where: str) -> list[Text] | None:
    """The answers or rationales, checked; None if there are none."""
    choices = optional(record, f"{kind}_choices", where, list)
    if choices is None:
        return None
    if len(choices) != NUM_CHOICES:
        raise ValueError(f"{where}: {len(choices)} '{kind}_choices'; expected {NUM_CHOICES}")
    for number, text in enumerate(choices):
        _check_text(text, len(names), f"{where}: {kind} {number}")
    return choices


def _label(record: Any, kind: str, where: str) -> int | None:
    label = optional(record, f"{kind}_label", where, int)
    if label is not None and not 0 <= label < NUM_CHOICES:
        raise ValueError(f"{where}: '{kind}_label' is {label}; expected 0 to {NUM_CHOICES - 1}")
    if label is not None and record.get(f"{kind}_choices") is None:
        raise ValueError(f"{where}: '{kind}_label' is {label}, but there are no choices; expected '{kind}_choices'")
    return label


def _check_text(text: Any, num_objects: int, where: str) -> None:
    if not isinstance(text, list) or not text:
        raise ValueError(f"{where} is {text!r:.40}; expected a list of words and tags")
    for item in text:
        if isinstance(item, list):
            _check_tag(item, num_objects, where)
        elif not isinstance(item, str) or not is_unicode(item):
            raise ValueError(f"{where}: {item!r:.40}; expected a word or a list of objects")
        elif TAG.fullmatch(item):  # in the row, it would look like a tag
            raise ValueError(f"{where}: the word {item!r:.40} looks like a tag; expected a list of objects")
    if not any(item if isinstance(item, list) else item.strip() for item in text):
        raise ValueError(f"{where} is empty ({text!r:.40}); expected a list of words and tags")


def _check_tag(tag: list[Any], num_objects: int, where: str) -> None:
    if not tag:
        raise ValueError(f"{where}: a tag is empty; expected indices of objects")
    for index in tag:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_objects:
            raise ValueError(f"{where}: tag {tag!r:.40} is outside the {num_objects} objects; expected indices from 0")


def _words(text: Text, new_index: dict[int, int]) -> list[str]:
    """Words unchanged, tags with indices of the row's objects. Equal words share memory, since a split has millions."""
    return [
        sys.intern(item) if isinstance(item, str) else f"[{','.join(str(new_index[index]) for index in item)}]"
        for item in text
    ]


def _from_metadata(
    names: list[str], kept: list[int], metadata: dict[str, Any], images_dir: Path, where: str
) -> dict[str, Any]:
    """The columns that come from the metadata file."""
    if metadata["error"] is not None:
        raise (FileNotFoundError if metadata["missing"] else ValueError)(f"{where}: {metadata['error']}")
    if metadata["names"] != names:
        raise ValueError(
            f"{where}: 'objects' are {names!r:.60}, but 'names' in {images_dir / metadata['metadata']} are "
            f"{metadata['names']!r:.60}; expected the same"
        )
    boxes = [metadata["boxes"][index] for index in kept]
    return {"boxes": boxes, "width": metadata["width"], "height": metadata["height"]}


def _size(content: Any, key: str, where: str) -> int:
    size = require(content, key, where, int)
    if not 0 < size < 2**31:
        raise ValueError(f"{where}: {key!r} is {size}; expected a positive number of pixels")
    return size


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not name or not is_unicode(name):
        raise ValueError(f"{where}: name {name!r:.40}; expected the class of an object")


def _check_box(box: Any, width: int, height: int, where: str) -> None:
    if not isinstance(box, list) or len(box) != 5 or not all(_is_finite(number) for number in box):
        raise ValueError(f"{where}: box {box!r:.80}; expected five finite numbers x1, y1, x2, y2, score")
    x1, y1, x2, y2 = box[:4]
    if x2 < x1 or y2 < y1:
        raise ValueError(f"{where}: box {box[:4]} is inverted; expected x1 <= x2 and y1 <= y2")
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise ValueError(f"{where}: box {box[:4]} is outside the image; expected it within {width} x {height} pixels")
    # Detectors may overshoot the border slightly, but not by the size of the image.
    if x1 < -width or y1 < -height or x2 > 2 * width or y2 > 2 * height:
        raise ValueError(
            f"{where}: box {box[:4]!r:.80} is far outside the image; expected it within {width} x {height} pixels"
        )


def _check_polygons(polygons: Any, where: str) -> None:
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError(f"{where}: polygons {polygons!r:.40}; expected a list of lists of points")
    for polygon in polygons:
        for point in polygon:
            if not isinstance(point, list) or len(point) != 2 or not (_is_finite(point[0]) and _is_finite(point[1])):
                raise ValueError(f"{where}: polygon with point {point!r:.40}; expected two finite numbers x, y")
    if not any(len(polygon) >= 3 for polygon in polygons):
        raise ValueError(f"{where}: polygon is empty; expected one with at least three points")


def _is_finite(number: Any) -> bool:
    """Whether it is a number that a finite float can hold: not NaN (which compares as False), not infinite, not too large an
    int, and not a bool."""
    return type(number) in (int, float) and abs(number) <= sys.float_info.max
