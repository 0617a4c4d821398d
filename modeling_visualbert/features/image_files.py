"""What a store knows of the image files that its regions were found in, so that images which were replaced are noticed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ..disk import sha256_of
from .format import read_table, write_batches

SCHEMA = pa.schema(
    [("image_id", pa.string()), ("bytes", pa.int64()), ("modified", pa.int64()), ("sha256", pa.string())]
)
_SECOND = 10**9  # in nanoseconds


@dataclass(frozen=True)
class ImageFile:
    """Size and time of modification (nanoseconds since 1970) of a file, and its checksum if that was asked for."""

    bytes: int
    modified: int
    sha256: str | None = None

    @classmethod
    def of(cls, path: Path, hashed: bool = False) -> ImageFile:
        """The facts about a file as it is now.

        Raises:
            OSError: It cannot be read.
        """
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, sha256_of(path) if hashed else None)


class Changes(NamedTuple):
    """Images whose files differ from what was recorded, with how: surely (`changed`), or in their date only (`touched`)."""

    changed: dict[Any, str]
    touched: dict[Any, str]


def find_changes(recorded: Mapping[str, ImageFile], paths: Mapping[Any, Path]) -> Changes:
    """Compare the files of images with what is recorded of them, by image id. What has no record or no file is not compared."""
    found = Changes({}, {})
    for key, path in paths.items():
        before = recorded.get(str(key))
        if before is None or not path.is_file():
            continue
        now = ImageFile.of(path)
        if now.bytes != before.bytes:
            found.changed[key] = f"{path} has {now.bytes} bytes, had {before.bytes}"
        elif not _same_time(now.modified, before.modified):
            if before.sha256 is None:
                found.touched[key] = f"{path}"
            elif sha256_of(path) != before.sha256:
                found.changed[key] = f"{path} has another content"
    return found


def _same_time(one: int, other: int) -> bool:
    """Some archives and file systems keep whole seconds."""
    rounded = not one % _SECOND or not other % _SECOND
    return one == other or (rounded and one // _SECOND == other // _SECOND)


def write_image_files(path: Path, recorded: Mapping[str, ImageFile]) -> tuple[int, str]:
    """Write the facts as an Arrow stream, sorted by image id; returns size and checksum of the file."""
    rows = [(key, *astuple(recorded[key])) for key in sorted(recorded)]
    columns = [
        pa.array(list(column), field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
    ]
    return write_batches(path, SCHEMA, [pa.record_batch(columns, schema=SCHEMA)])[1:]


def read_image_files(path: Path) -> dict[str, ImageFile]:
    """The facts by image id.

    Raises:
        ValueError: The file is missing or damaged.
    """
    columns = (column.to_pylist() for column in read_table(path, SCHEMA).columns)
    return {key: ImageFile(*facts) for key, *facts in zip(*columns, strict=True)}


def to_records(recorded: Mapping[str, ImageFile]) -> list[list[Any]]:
    """The facts as a JSON list, for [`from_records`]."""
    return [[key, *astuple(facts)] for key, facts in recorded.items()]


def from_records(records: Iterable[list[Any]]) -> dict[str, ImageFile]:
    """The inverse of [`to_records`]."""
    return {key: ImageFile(*facts) for key, *facts in records}
