"""Reading files of others: every error names the file and the place in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 or not JSON; names file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of each line of a JSON-lines file; the place is for errors, `file: line 3`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not JSON or not UTF-8; names file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}: line {number}"
            try:
                yield where, json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 text at byte {error.start}") from error
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: malformed JSON at column {error.colno}: {error.msg}") from error


def require(record: Any, key: str, where: str, kind: type | None = None) -> Any:
    """`record[key]`, or an error that names what is missing where, or what is not of the expected `kind`."""
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{where}: key {key!r} is missing; expected a record with it")
    if kind is not None and not isinstance(record[key], kind):
        raise ValueError(f"{where}: {key!r} is {record[key]!r:.40}; expected {kind.__name__}")
    return record[key]


def find_one(folder: str | Path, patterns: tuple[str, ...], what: str) -> Path:
    """The only file in `folder` (or below) that matches one of the glob patterns, which are tried in order.

    Raises:
        FileNotFoundError: No file matches.
        ValueError: Several files match the same pattern.
    """
    folder = Path(folder)
    for pattern in patterns:
        matches = sorted(folder.glob(pattern))
        if len(matches) > 1:
            raise ValueError(
                f"{folder}: {len(matches)} files could be the {what}: {matches[0].name}, {matches[1].name}, ..."
            )
        if matches:
            return matches[0]
    raise FileNotFoundError(f"{folder}: no {what}; expected a file like {' or '.join(patterns)}")


def index_images(folder: str | Path) -> dict[int, Path]:
    """Image files below `folder` by the number at the end of their names (`COCO_val2014_000000000042.jpg` is 42).

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Two files have the same number.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder")
    found: dict[int, Path] = {}
    for path in sorted(folder.rglob("*")):
        number = re.search(r"(\d+)$", path.stem)
        if path.suffix.lower() not in IMAGE_SUFFIXES or not number:
            continue
        if int(number[1]) in found:
            raise ValueError(f"{folder}: image id {int(number[1])} twice, {found[int(number[1])].name} and {path.name}")
        found[int(number[1])] = path
    return found
