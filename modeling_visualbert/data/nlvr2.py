"""NLVR2 (Suhr et al. 2019, https://github.com/lil-lab/nlvr): JSON lines, two images and a sentence each.

One line, shortened::

    {"identifier": "dev-850-0-0", "sentence": "The right image shows a curving walkway ...", "label": "False", ...}

becomes (files of real releases are named `.png` and hold JPEG data; the last part of the identifier is the sentence, so
several sentences share a pair of images)::

    {"identifier": "dev-850-0-0", "sentence": "The right image shows ...", "label": 0,
     "images": ["dev-850-0-img0", "dev-850-0-img1"]}
"""

from __future__ import annotations

import logging
from pathlib import Path

from datasets import Dataset, Features, List, Value

from .files import read_json_lines, require

logger = logging.getLogger(__name__)

EXPECTED_EXAMPLES = {"train": 86_373, "dev": 6982, "test1": 6967, "test2": 6970}
FEATURES = Features(
    {
        "identifier": Value("string"),
        "sentence": Value("string"),
        "label": Value("int64"),
        "images": List(Value("string")),
    }
)
_LABELS = {"True": 1, "False": 0}


def load_nlvr2(path: str | Path) -> Dataset:
    """Read one split, in the order of the file. `label` is 1 for "True", 0 for "False", None where there is none.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is malformed, a key is missing, a label or identifier has another form, or an identifier occurs
            twice; names file and line.
    """
    rows: dict[str, list] = {name: [] for name in FEATURES}
    seen: set[str] = set()
    for where, record in read_json_lines(path):
        identifier = require(record, "identifier", where, str)
        if identifier in seen:
            raise ValueError(f"{where}: identifier {identifier!r} occurs twice; expected each once")
        seen.add(identifier)
        label = record.get("label")
        if label is not None and label not in _LABELS:
            raise ValueError(f"{where}: 'label' is {label!r}; expected 'True' or 'False'")
        rows["identifier"].append(identifier)
        rows["sentence"].append(require(record, "sentence", where, str))
        rows["label"].append(None if label is None else _LABELS[label])
        rows["images"].append(image_names(identifier, where))
    _check_count(path, rows["identifier"])
    return Dataset.from_dict(rows, features=FEATURES)


def image_names(identifier: str, where: str = "identifier") -> list[str]:
    """Names, without suffix, of the left and the right image of an example.

    Raises:
        ValueError: The identifier is not `split-set-pair-sentence`.
    """
    parts = identifier.split("-")
    if len(parts) != 4:
        raise ValueError(f"{where}: identifier {identifier!r}; expected split-set-pair-sentence")
    return [f"{'-'.join(parts[:3])}-img{side}" for side in (0, 1)]


def _check_count(path: str | Path, identifiers: list[str]) -> None:
    split = identifiers[0].split("-")[0] if identifiers else ""
    if len(identifiers) != EXPECTED_EXAMPLES.get(split, len(identifiers)):
        logger.warning("%s: %d examples; the full %s has %d", path, len(identifiers), split, EXPECTED_EXAMPLES[split])
