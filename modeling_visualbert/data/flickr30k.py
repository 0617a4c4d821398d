"""Flickr30k Entities (Plummer et al. 2015, https://github.com/BryanPlummer/flickr30k_entities): sentences and boxes.

One line of `Sentences/1016887272.txt`::

    [/EN#547/people A group of people] climbing [/EN#548/other a rock] while [/EN#549/people one man] belays

and one object of `Annotations/1016887272.xml` (several names: the box belongs to several entities; several objects with the same
name: the entity has several boxes; `scene` or `nobndbox` instead of a box: there is nothing to ground)::

    <object><name>549</name><bndbox><xmin>164</xmin><ymin>105</ymin><xmax>310</xmax><ymax>407</ymax></bndbox></object>

become one row for each sentence with at least one phrase that has a box::

    {"image_id": 1016887272, "sentence_number": 3, "sentence": "A group of people climbing a rock while one man belays",
     "phrases": ["A group of people", "a rock", "one man"], "entity_ids": [547, 548, 549], "entity_types": [["people"], ...],
     "last_words": [3, 6, 9], "boxes": [[[x1, y1, x2, y2], ...], ...]}

`last_words` are indices of words. Boxes are in pixels as written in the file, counted from 1, as in the authors' code.
"""

from __future__ import annotations

import logging
import math
import re
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import pyarrow as pa
from datasets import Dataset, Features, List, Value
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse as parse_xml

from .cache import Notes, batches, cached_table, stamp_of
from .files import check_count, check_new, skipping

logger = logging.getLogger(__name__)

EXPECTED_IMAGES = {"train": 29_783, "val": 1000, "test": 1000}
FEATURES = Features(
    {
        "image_id": Value("int64"),
        "sentence_number": Value("int32"),
        "sentence": Value("string"),
        "phrases": List(Value("string")),
        "entity_ids": List(Value("int64")),
        "entity_types": List(List(Value("string"))),
        "last_words": List(Value("int32")),
        "boxes": List(List(List(Value("float32")))),
    }
)
_OPENING = re.compile(r"\[/EN#([0-9]{1,18})((?:/[^/\s]+)+)")


@dataclass(frozen=True)
class Phrase:
    """A marked phrase of a sentence; `first_word` is an index from 0."""

    entity_id: int
    types: tuple[str, ...]
    words: tuple[str, ...]
    first_word: int

    @property
    def last_word(self) -> int:
        """Index of the phrase's last word in the sentence."""
        return self.first_word + len(self.words) - 1


def parse_sentence(line: str, where: str = "sentence") -> tuple[list[str], list[Phrase]]:
    """Words of a marked sentence and its phrases.

    Words are separated by white space of any kind and length, as in the dataset's own parser (and in the processor, which
    splits the sentence again), so that indices of words mean the same everywhere.

    Raises:
        ValueError: A bracket is not closed, not opened, nested or malformed, or a phrase has no words; the message starts with
            `where`.
    """
    words: list[str] = []
    phrases: list[Phrase] = []
    entity: tuple[int, tuple[str, ...], int] | None = None
    for token in line.split():
        if token.startswith("["):
            opening = _OPENING.fullmatch(token)
            if entity is not None or opening is None:
                raise ValueError(f"{where}: {token!r:.60} where a phrase cannot start; expected [/EN#id/type words]")
            entity = int(opening[1]), tuple(opening[2][1:].split("/")), len(words)
            continue
        if word := token.replace("]", ""):  # the bracket may stand alone
            words.append(word)
        if "]" not in token:
            continue
        if entity is None:
            raise ValueError(f"{where}: {token!r:.60} closes a phrase that was not opened")
        entity_id, types, first_word = entity
        if first_word == len(words):
            raise ValueError(f"{where}: the phrase of entity {entity_id} has no words; expected at least one")
        phrases.append(Phrase(entity_id, types, tuple(words[first_word:]), first_word))
        entity = None
    if entity is not None:
        raise ValueError(f"{where}: the phrase of entity {entity[0]} is not closed")
    return words, phrases


def first_occurrence(words: Sequence[str], phrase: Sequence[str]) -> int:
    """Index of the last word of the phrase's first occurrence in the sentence; -1 if it does not occur.

    This is how the authors' loader (following BAN) locates phrases: one that occurs twice gets its first position both times.
    """
    size = len(phrase)
    for start in range(len(words) - size + 1):
        if list(words[start : start + size]) == list(phrase):
            return start + size - 1
    return -1


def read_boxes(path: str | Path) -> dict[int, list[list[float]]]:
    """Boxes x1, y1, x2, y2 of each entity that has any, as written in the file (pixels, counted from 1).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not XML, declares entities or a document type (refused without expanding them), or a box or the
            name of its entity is malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        root = parse_xml(path, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError(f"{path}: declares a document type or entities ({error}); expected plain XML") from error
    except (ParseError, LookupError, ValueError) as error:  # the last two: an unknown or unsupported encoding
        raise ValueError(f"{path}: malformed XML: {error}") from error
    boxes: dict[int, list[list[float]]] = defaultdict(list)
    for number, item in enumerate(root.iter("object")):
        box = item.find("bndbox")
        if box is not None:
            corners = _corners(box, f"{path}: object {number}")
            for name in item.findall("name"):
                boxes[_entity_id(name, f"{path}: object {number}")].append(corners)
    return dict(boxes)


def load_flickr30k(
    data_dir: str | Path,
    image_ids: Sequence[int],
    positions: str = "marked",
    skipped: list[str] | None = None,
    grounded: bool = True,
) -> Dataset:
    """Sentences with grounded phrases of the given images (those of `train.txt`, `val.txt` or `test.txt`).

    Phrases whose entity has no box are left out, as in the official evaluation, and so are sentences with no other phrase. The
    log says how many.

    Args:
        data_dir: Folder with `Sentences/` and `Annotations/`.
        image_ids: Images to read, in order.
        positions: `"marked"`: where the phrase is marked; `"original"`: its first occurrence, as in the authors' training.
        skipped: If given, lines with broken markup and images whose boxes or sentences cannot be read are left out, and their
            errors are added to this list instead of being raised.
        grounded: Whether to read the boxes. If not, all phrases of something visible are kept, and `boxes` is None.

    Raises:
        FileNotFoundError: The folder or a file of an image is missing.
        ValueError: A file is malformed, or `positions` is unknown; the message names the file and the line.
    """
    if positions not in ("marked", "original"):
        raise ValueError(f"positions {positions!r}; expected 'marked' or 'original'")
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir}: no such folder; expected one with Sentences/ and Annotations/")
    files = [(str(_sentences_file(data_dir, key)), str(_boxes_file(data_dir, key))) for key in image_ids]
    size, stamp = stamp_of(name for pair in files for name in (pair if grounded else pair[:1]))
    read = partial(_read, data_dir, image_ids, positions, grounded, skipped is not None)
    rows, notes = cached_table("flickr30k", FEATURES, read, size, stamp, positions, grounded, skipped is not None)
    logger.info(
        "%s: %d sentences; left out: %d without a phrase that has a box, %d phrases without a box",
        data_dir,
        len(rows),
        notes["sentences"] - len(rows),
        notes["phrases"],
    )
    if skipped is not None:
        skipped += notes["skipped"]
    return rows


def _sentences_file(data_dir: Path, image_id: int) -> Path:
    return data_dir / "Sentences" / f"{image_id}.txt"


def _boxes_file(data_dir: Path, image_id: int) -> Path:
    return data_dir / "Annotations" / f"{image_id}.xml"


def _read(
    data_dir: Path, image_ids: Sequence[int], positions: str, grounded: bool, skip: bool, notes: Notes
) -> Iterator[pa.Table]:
    skipped: list[str] | None = [] if skip else None
    notes |= {"sentences": 0, "phrases": 0}  # all sentences, and the phrases that are left out
    yield from batches(_rows(data_dir, image_ids, positions, grounded, skipped, notes), FEATURES)
    notes["skipped"] = skipped or []


def _rows(
    data_dir: Path,
    image_ids: Sequence[int],
    positions: str,
    grounded: bool,
    skipped: list[str] | None,
    notes: Notes,
) -> Iterator[dict[str, Any]]:
    for image_id in image_ids:
        with skipping(skipped):
            boxes = read_boxes(_boxes_file(data_dir, image_id)) if grounded else None
            for number, words, phrases in _sentences(_sentences_file(data_dir, image_id), skipped):
                kept = [phrase for phrase in phrases if _is_grounded(phrase, boxes)]
                notes["sentences"] += 1
                notes["phrases"] += len(phrases) - len(kept)
                if kept:
                    yield _row(image_id, number, words, kept, boxes, positions)


def _is_grounded(phrase: Phrase, boxes: dict | None) -> bool:
    """Whether there is a box, or, where that is not known, could be."""
    return "notvisual" not in phrase.types if boxes is None else phrase.entity_id in boxes


def read_split(path: str | Path) -> list[int]:
    """Image ids of a split file, one per line; a warning is logged if an official split is incomplete.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not a number, or an image id occurs twice; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such split file")
    ids: list[int] = []
    seen: set[int] = set()
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).splitlines(), start=1):
        if line.strip():
            if not re.fullmatch(rb"[0-9]{1,18}", line.strip()):
                raise ValueError(f"{path}: line {number} is {line!r:.40}; expected an image id")
            check_new(int(line), seen, "image id", f"{path}: line {number}")
            ids.append(int(line))
    check_count(path, len(ids), "images", path.stem, EXPECTED_IMAGES)
    return ids


def _sentences(path: Path, skipped: list[str] | None) -> list[tuple[int, list[str], list[Phrase]]]:
    """Number, words and phrases of each line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such sentence file")
    sentences = []
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).splitlines()):
        where = f"{path}: line {number + 1}"
        with skipping(skipped):
            sentences.append((number, *parse_sentence(_text(line, where), where)))
    return sentences


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text at byte {error.start}") from error


def _row(
    image_id: int, number: int, words: list[str], phrases: list[Phrase], boxes: dict | None, positions: str
) -> dict:
    return {
        "image_id": image_id,
        "sentence_number": number,
        "sentence": " ".join(words),
        "phrases": [" ".join(phrase.words) for phrase in phrases],
        "entity_ids": [phrase.entity_id for phrase in phrases],
        "entity_types": [list(phrase.types) for phrase in phrases],
        "last_words": [p.last_word if positions == "marked" else first_occurrence(words, p.words) for p in phrases],
        "boxes": None if boxes is None else [boxes[phrase.entity_id] for phrase in phrases],
    }


def _corners(box: Element, where: str) -> list[float]:
    corners = [_number(box, name, where) for name in ("xmin", "ymin", "xmax", "ymax")]
    if corners[2] < corners[0] or corners[3] < corners[1]:
        raise ValueError(f"{where}: box {corners} is inverted; expected xmin <= xmax, ymin <= ymax")
    return corners


def _number(box: Element, name: str, where: str) -> float:
    text = box.findtext(name)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not abs(number) < 1e6:  # so that "nan" is refused too
        raise ValueError(f"{where}: {name} is {text!r:.40}; expected a number of pixels")
    return number


def _entity_id(name: Element, where: str) -> int:
    text = (name.text or "").strip()
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError(f"{where}: name is {text!r:.40}; expected the number of an entity")
    return int(text)
