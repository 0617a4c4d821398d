"""Helpers that read annotation files: every error names the file and the place in it."""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from .json_stream import JsonStream, NotStreamableError

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
_SHORT = 40  # characters of a value in an error message
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class skipping:  # noqa: N801 (used like a function)
    """Read one record inside the block: an error is raised, or, if a list is given, added to it so that reading continues.

    Append the record's row in the last statement of the block, so that a row is added completely or not at all.
    """

    def __init__(self, skipped: list[str] | None):
        self.skipped = skipped

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if self.skipped is None or not isinstance(error, (ValueError, FileNotFoundError)):
            return False
        self.skipped.append(str(error))
        return True


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, with or without byte order mark; all line ends become `\\n`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8.
    """
    return decode_text(_read_bytes(Path(path)), str(path)).replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path.read_bytes()


def decode_text(content: bytes, where: str) -> str:
    """UTF-8, with or without the byte order mark that editors and spreadsheets on Windows write.

    Raises:
        ValueError: It is not UTF-8; the message starts with `where`.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text at byte {error.start}") from error


def read_json(path: str | Path) -> Any:
    """Parse a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is empty, not UTF-8 or not JSON; the message names the file, line and column.
    """
    path = Path(path)
    try:
        return _parse(_read_bytes(path), str(path))
    except json.JSONDecodeError as error:
        is_jsonl = error.msg == "Extra data" and error.lineno > 1
        hint = " (a record on each line is JSON Lines; expected one JSON document)" if is_jsonl else ""
        raise ValueError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}{hint}"
        ) from error


def read_json_records(
    path: str | Path, key: str, others: dict[str, Any] | None = None, bare: str | None = None
) -> Iterator[Any]:
    """Yield the records of the list under a key of a JSON document, of which only a part is held in memory.

    Args:
        path: The file.
        key: Key of the list.
        others: If given, the values of the other keys are added to it, except lists, as reading passes them.
        bare: A document that is nothing but the list is read too if its first record has this key.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a document with such a list, see [`read_json`]; raised when reading comes to that place.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    count = 0
    try:
        for record in JsonStream(path).records(key, {} if others is None else others, bare):
            count += 1
            yield record
        return
    except NotStreamableError:
        pass
    content = read_json(path)  # says what is wrong
    is_bare = bare is not None and isinstance(content, list) and bool(content) and isinstance(content[0], dict)
    yield from (content if is_bare and bare in content[0] else require(content, key, str(path), list))[count:]


def read_json_lines(path: str | Path, skipped: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (place, record) for each line of a JSON Lines file; the place, such as `file: line 3`, is for error messages.

    Empty lines at the end of the file are no records.

    Args:
        path: The file.
        skipped: If given, malformed lines are left out and their errors are added to this list instead of being raised.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is empty, not JSON or not UTF-8; the message names the file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    empty: list[int] = []  # lines that are at the end of the file, unless another follows
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                empty.append(number)
                continue
            for before in empty:
                with skipping(skipped):
                    raise ValueError(f"{path}: line {before}: malformed JSON: the line is empty; expected a record")
            empty.clear()
            # The block may contain the yield: errors in the code that uses the record are not raised here.
            with skipping(skipped):
                yield f"{path}: line {number}", parse_json_line(line.rstrip(b"\r\n"), f"{path}: line {number}")


def parse_json_line(line: bytes, where: str) -> Any:
    """Parse a line of a JSON Lines file.

    Raises:
        ValueError: It is not UTF-8 or not JSON; the message starts with `where`, and says the column.
    """
    try:
        return _parse(line, where)
    except json.JSONDecodeError as error:
        is_document = line.strip() in (b"[", b"{")
        hint = " (a document over several lines; expected JSON Lines, a record on each line)" if is_document else ""
        raise ValueError(f"{where}: malformed JSON at column {error.colno}: {error.msg}{hint}") from error


def _parse(content: bytes, where: str) -> Any:
    text = decode_text(content, where)
    if not text.strip():
        raise ValueError(f"{where}: malformed JSON at line 1, column 1: the file is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise  # the callers add line and column
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or thousands of nested brackets
        raise ValueError(f"{where}: malformed JSON: {error}") from error


def read_lines(path: str | Path) -> list[str]:
    """The non-empty lines of a text file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def require(record: Any, key: str, where: str, kind: type | None = None) -> Any:
    """Return `record[key]`, checked; errors name the place, and the key or the value.

    Integers must fit into 64 bits (booleans are refused) and text must be valid Unicode (without lone surrogates), because a
    table can hold nothing else.

    Raises:
        ValueError: The key is missing, or the value is not of the given `kind`.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: key {key!r} is missing: found {described(record)}; expected a record with it")
    if key not in record:
        raise ValueError(f"{where}: key {key!r} is missing; expected a record with it")
    if kind is not None and not _is_a(record[key], kind):
        expected = "a 64-bit int" if kind is int else kind.__name__
        raise ValueError(f"{where}: {key!r} is {described(record[key])}; expected {expected}")
    return record[key]


def described(value: Any) -> str:
    """What a value of a JSON file is, for error messages: "a list of 8 records" instead of where it begins."""
    if isinstance(value, dict) and value:
        return f"a record with keys {', '.join(map(repr, value)):.60}"
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return f"a list of {len(value)} record{'s' if len(value) > 1 else ''}"
    shown = repr(value)
    return f"a list of {len(value)} items" if isinstance(value, list) and len(shown) > _SHORT else shown[:_SHORT]


def require_texts(records: list[Any], key: str, where: str) -> list[str]:
    """`require(record, key, where, str)` of every record; quick where all are as usual."""
    with suppress(TypeError, KeyError):
        texts = [record[key] for record in records]
        if is_unicode("".join(texts)):
            return texts
    return [require(record, key, where, str) for record in records]


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
        raise ValueError(f"{where}: {key!r} is {path!r:.80}; expected a relative path without '..'")
    return path


def check_new(value: Any, seen: set[Any], what: str, where: str) -> None:
    """Add `value` to `seen`.

    Raises:
        ValueError: It was there already; the message names it.
    """
    if value in seen:
        raise ValueError(f"{where}: {what} {value!r:.80} occurs twice; expected it only once")
    seen.add(value)


def check_count(path: str | Path, count: int, what: str, split: str, expected: Mapping[str, int]) -> None:
    """Log a warning if an official split is incomplete: it may be a sample, or a truncated download."""
    full = expected.get(split, count)
    if count != full:
        logger.warning("%s: %d %s; the full %s has %d", path, count, what, split, full)


def files_below(folder: str | Path) -> list[Path]:
    """All files in `folder` and below, sorted by path, without hidden ones (such as the `._*` that macOS adds).

    Links to folders are followed, but not to those that `folder` lies in. Every folder is read once, under its own path if that
    is below `folder` too, so that links may lead in circles.
    """
    found: list[Path] = []
    seen = {_identity(parent) for parent in Path(folder).resolve().parents}
    own, links = [Path(folder)], list[Path]()
    while own or links:
        here = own.pop() if own else links.pop()
        if _identity(here) in seen:
            continue
        seen.add(_identity(here))
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                with suppress(OSError):  # a link to itself
                    if entry.is_dir():
                        (links if entry.is_symlink() else own).append(here / entry.name)
                    elif entry.is_file():
                        found.append(here / entry.name)
        links.sort(reverse=True)
    return sorted(found)


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names of a file or folder."""
    status = path.stat()
    return status.st_dev, status.st_ino


def find_one(folder: str | Path, patterns: tuple[str, ...], what: str) -> Path:
    """The only file in `folder` (or below) that matches one of the patterns, which are tried in order.

    Args:
        folder: The folder; links in it are followed, and hidden files are left out, see [`files_below`].
        patterns: Names with `*` and `[...]`. `**/` at the beginning: in any folder below.
        what: Name of the file, for error messages.

    Raises:
        FileNotFoundError: No file matches.
        ValueError: Several files match the same pattern.
    """
    folder = Path(folder)
    files = files_below(folder) if folder.is_dir() else []
    for pattern in patterns:
        matches = matching(folder, files, pattern)
        if len(matches) > 1:
            shown = ", ".join(path.relative_to(folder).as_posix() for path in matches[:2])
            raise ValueError(f"{folder}: {len(matches)} files could be the {what}: {shown}, ...; expected one")
        if matches:
            return matches[0]
    raise FileNotFoundError(f"{folder}: no {what}; expected a file like {' or '.join(patterns)}")


def matching(folder: Path, files: Iterable[Path], pattern: str) -> list[Path]:
    """Those of the files below `folder` that match a pattern as of [`find_one`]; several names of one file count once."""
    name = pattern.removeprefix("**/")
    anywhere = name != pattern
    matches = [path for path in files if fnmatchcase(path.name, name) and (anywhere or path.parent == folder)]
    return list({_identity(path): path for path in reversed(matches)}.values())[::-1]


def index_images(folder: str | Path, wanted: Mapping[str, Collection[int]] | None = None) -> dict[int, Path]:
    """Image files below `folder`, by the number at the end of their names (`COCO_val2014_000000000042.jpg` has 42).

    Args:
        folder: The folder; links in it are followed, and hidden files are left out.
        wanted: Numbers by the name of the split that needs them. Where several files have a number, the one in a folder of
            that split is meant, or else the one with the split in its name. Numbers that no split needs may occur repeatedly.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Two files have the same number, and nothing tells which one is meant; names both.
    """

    def number_of(path: Path) -> int | None:
        number = re.search(r"(\d+)$", path.stem)
        return int(number[1]) if number else None

    return _index(Path(folder), number_of, wanted, "image id")


def index_images_by_name(folder: str | Path, wanted: Mapping[str, Collection[str]] | None = None) -> dict[str, Path]:
    """Like [`index_images`], by the names of the files without suffix, as NLVR2 identifies images (`dev-850-0-img0.png`)."""
    return _index(Path(folder), lambda path: path.stem, wanted, "image")


def _index(
    folder: Path,
    key_of: Callable[[Path], Key | None],
    wanted: Mapping[str, Collection[Key]] | None,
    what: str,
) -> dict[Key, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such image folder")
    by_key: dict[Key, list[Path]] = defaultdict(list)
    for path in files_below(folder):
        key = key_of(path) if path.suffix.lower() in IMAGE_SUFFIXES else None
        if key is not None:
            by_key[key].append(path)
    if wanted is None:
        return {key: _only(paths, folder, f"{what} {key!r}") for key, paths in by_key.items()}
    found: dict[Key, Path] = {}
    for split, keys in wanted.items():
        for key in keys:
            paths = by_key.get(key, ())
            if len(paths) > 1:
                inside = [path for path in paths if _names_split(path.parent.relative_to(folder), split)]
                paths = inside or [path for path in paths if _names_split(Path(path.name), split)] or paths
            if paths:
                path = _only(paths, folder, f"{what} {key!r}" + (f" of split {split!r}" if split else ""))
                # Regions are kept by the key alone.
                found[key] = _only([found.get(key, path), path], folder, f"{what} {key!r}")
    return found


def _names_split(path: Path, split: str) -> bool:
    """Whether a part of the path is the name of the split: `train2014` in `images/train2014/1.jpg`, and `train` too."""
    return any(
        re.search(rf"(?<![^\W_]){re.escape(part)}\d*(?![^\W_])", path.as_posix()) is not None
        for part in split.split("+")
    )


def _only(paths: Sequence[Path], folder: Path, what: str) -> Path:
    """The path of all of these, if they are of one file."""
    first, *others = paths
    for other in others:
        if not other.samefile(first):
            names = " and ".join(path.relative_to(folder).as_posix() for path in (first, other))
            raise ValueError(f"{folder}: {what} occurs twice: {names}; expected one file")
    return first
