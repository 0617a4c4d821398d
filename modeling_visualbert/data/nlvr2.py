"""NLVR2 (Suhr et al. 2019, https://github.com/lil-lab/nlvr): JSON lines, two images and a sentence each.

One line, shortened::

    {"identifier": "dev-850-0-0", "sentence": "The right image shows a curving walkway ...", "label": "False", ...}

becomes::

    {"identifier": "dev-850-0-0", "sentence": "The right image shows ...", "label": 0,
     "images": ["dev-850-0-img0", "dev-850-0-img1"]}

The last part of an identifier numbers the sentence, so several sentences share a pair of images. The image files of the release
are named `.png` but contain JPEG data.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from .cache import Notes, cached_table, content_of, size_of, table_of
from .columns import labelled_alike
from .files import check_count, check_new, find_one, optional, read_json_lines, require, skipping

EXPECTED_EXAMPLES = {"train": 86_373, "dev": 6982, "test1": 6967, "test2": 6970}
FEATURES = Features(
    {
        "identifier": Value("string"),
        "sentence": Value("string"),
        "label": Value("int64"),
        "images": List(Value("string")),
    }
)
_PLACED = Features({**FEATURES, "where": Value("string")})  # with the place of each row, for error messages
_LABELS = {"True": 1, "False": 0}


def find_nlvr2_file(data_dir: str | Path, split: str) -> Path:
    """The official file of a split (`dev.json`, JSON lines) below `data_dir`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Several files could be meant.
    """
    return find_one(data_dir, (f"**/{split}.json", f"**/{split}.jsonl"), f"file of split {split!r}")


def load_nlvr2(path: str | Path, skipped: list[str] | None = None) -> Dataset:
    """Read one split, in the order of the file. `label` is 1 for "True", 0 for "False" and None if there is none.

    Args:
        path: The file.
        skipped: If given, bad records are left out and their errors are added to this list instead of being raised.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line, label or identifier is malformed, a key is missing, an identifier occurs twice, or only some lines
            have a label; the message names the file and the line.
    """
    read = partial(_read, path, skipped is not None)
    rows, notes = cached_table("nlvr2", FEATURES, read, size_of(path), content_of(path), skipped is not None)
    check_count(path, len(rows), "examples", notes["split"], EXPECTED_EXAMPLES)
    if skipped is not None:
        skipped += notes["skipped"]
    return rows


def _read(path: str | Path, skip: bool, notes: Notes) -> Iterator[pa.Table]:
    skipped: list[str] | None = [] if skip else None
    rows = table_of(_rows(path, skipped), _PLACED)
    rows = labelled_alike(rows, "identifier", "label", skipped)
    notes["split"] = rows["identifier"][0].as_py().split("-")[0] if len(rows) else ""
    notes["skipped"] = skipped or []
    yield rows.select(list(FEATURES))


def _rows(path: str | Path, skipped: list[str] | None) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for where, record in read_json_lines(path, skipped):
        with skipping(skipped):
            row = _row(record, where)
            check_new(row["identifier"], seen, "identifier", where)
            yield {**row, "where": where}


def image_names(identifier: str, where: str = "identifier") -> list[str]:
    """Names, without suffix, of the left and the right image of an example.

    Raises:
        ValueError: The identifier is not `split-set-pair-sentence`.
    """
    parts = identifier.split("-")
    if len(parts) != 4:
        raise ValueError(f"{where}: identifier {identifier!r:.80}; expected split-set-pair-sentence")
    return [f"{'-'.join(parts[:3])}-img{side}" for side in (0, 1)]


def _row(record: Any, where: str) -> dict[str, Any]:
    identifier, sentence = require(record, "identifier", where, str), require(record, "sentence", where, str)
    if not sentence.strip():
        raise ValueError(f"{where}: the sentence of {identifier!r:.80} is empty; expected at least one word")
    label = optional(record, "label", where, str)
    if label is not None and label not in _LABELS:
        raise ValueError(f"{where}: 'label' is {label!r:.80}; expected 'True' or 'False'")
    return {
        "identifier": identifier,
        "sentence": sentence,
        "label": None if label is None else _LABELS[label],
        "images": image_names(identifier, where),
    }
