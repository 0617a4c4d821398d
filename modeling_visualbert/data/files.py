"""Helpers that read annotation files: every error names the file and the place in it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@contextmanager
def skipping(skipped: list[str] | None) -> Iterator[None]:
    """Read one record inside the block: an error is raised, or, if a list is given, added to it so that reading continues.

    Append the record's row in the last statement of the block, so that a row is added completely or not at all.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if skipped is None:
            raise
        skipped.append(str(error))


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 or not JSON; the message names the file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return _parse(path.read_bytes(), str(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error


def read_json_lines(path: str | Path, skipped: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (place, record) for each line of a JSON Lines file; the place, such as `file: line 3`, is for error messages.

    Args:
        path: The file.
        skipped: If given, malformed lines are left out and their errors are added to this list instead of being raised.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not JSON or not UTF-8; the message names the file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            # The block may contain the yield: errors in the code that uses the record are not raised here.
            with skipping(skipped):
                yield f"{path}: line {number}", _parse_line(line.rstrip(b"\r\n"), f"{path}: line {number}")


def _parse_line(line: bytes, where: str) -> Any:
    try:
        return _parse(line, where)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: malformed JSON at column {error.colno}: {error.msg}") from error


def _parse(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except json.JSONDecodeError:
        raise  # the callers add line and column
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text at byte {error.start}") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or thousands of nested brackets
        raise ValueError(f"{where}: malformed JSON: {error}") from error


def read_lines(path: str | Path) -> list[str]:
    """The non-empty lines of a text file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from error


def require(record: Any, key: str, where: str, kind: type | None = None) -> Any:
    """Return `record[key]`, checked; errors name the place, and the key or the value.

    Integers must fit into 64 bits (booleans are refused) and text must be valid Unicode (without lone surrogates), because a
    table can hold nothing else.

    Raises:
        ValueError: The key is missing, or the value is not of the given `kind`.
    """
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{where}: key {key!r} is missing; expected a record with it")
    if kind is not None and not _is_a(record[key], kind):
        expected = "a 64-bit int" if kind is int else kind.__name__
        raise ValueError(f"{where}: {key!r} is {record[key]!r:.40}; expected {expected}")
    return record[key]


def optional(record: Any, key: str, where: str, kind: type | None = None) -> Any:
    """Like `require`, but returns None if the key is missing or its value is None."""
    if isinstance(record, dict) and record.get(key) is None:
        return None
    return require(record, key, where, kind)


def _is_a(value: Any, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
    if kind is str:
        return isinstance(value, str) and is_unicode(value)
    return isinstance(value, kind)


def is_unicode(text: str) -> bool:
    """Whether the text can be stored: JSON can spell a lone surrogate, which is not a character."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def require_path(record: Any, key: str, where: str) -> str:
    """Return `record[key]`, a path relative to a folder that the caller knows and that it must not leave.

    Raises:
        ValueError: It is missing, empty, absolute (here or on Windows) or contains "..".
    """
    path = require(record, key, where, str)
    windows = PureWindowsPath(path)  # splits at both kinds of slash
    if not path or "\0" in path or windows.anchor or ".." in windows.parts:
        raise ValueError(f"{where}: {key!r} is {path!r}; expected a relative path without '..'")
    return path


def check_new(value: Any, seen: set[Any], what: str, where: str) -> None:
    """Add `value` to `seen`.

    Raises:
        ValueError: It was there already; the message names it.
    """
    if value in seen:
        raise ValueError(f"{where}: {what} {value!r} occurs twice; expected it only once")
    seen.add(value)


def labelled_alike(
    rows: list[tuple[str, dict[str, Any]]], key: str, label: str, skipped: list[str] | None
) -> list[tuple[str, dict[str, Any]]]:
    """Rows of which all or none have a label: where some have it, one without it is a bad record.

    Args:
        rows: Place, for error messages, and row.
        key: Column that identifies a row.
        label: Column of the label, None where there is none.
        skipped: If given, rows without label are left out and their errors are added to this list instead of being raised.

    Raises:
        ValueError: A row has no label, although others have one; the message names its place and identifier.
    """
    if all(row[label] is None for _, row in rows):
        return rows
    kept = []
    for where, row in rows:
        with skipping(skipped):
            if row[label] is None:
                raise ValueError(f"{where}: {key} {row[key]!r} has no {label!r}, but others have; expected all or none")
            kept.append((where, row))
    return kept


def check_count(path: str | Path, count: int, what: str, split: str, expected: Mapping[str, int]) -> None:
    """Log a warning if an official split is incomplete: it may be a sample, or a truncated download."""
    full = expected.get(split, count)
    if count != full:
        logger.warning("%s: %d %s; the full %s has %d", path, count, what, split, full)


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
    """Image files below `folder`, by the number at the end of their names (`COCO_val2014_000000000042.jpg` has 42).

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
            first = found[int(number[1])].name
            raise ValueError(f"{folder}: image id {int(number[1])} occurs twice: {first} and {path.name}")
        found[int(number[1])] = path
    return found


def index_images_by_name(folder: str | Path) -> dict[str, Path]:
    """Image files below `folder`, by their names without suffix, as NLVR2 identifies them (`dev-850-0-img0.png`).

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Two files have the same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in found:
            raise ValueError(f"{folder}: image {path.stem!r} occurs twice: {found[path.stem]} and {path}")
        found[path.stem] = path
    return found
