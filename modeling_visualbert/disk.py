"""Files that are whole or not there: written beside, brought to the disk, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class HashedFile:
    """A binary file opened for writing that counts and hashes what is written."""

    def __init__(self, raw: IO[bytes]):
        self.raw, self.bytes, self.digest, self.closed = raw, 0, hashlib.sha256(), False

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.raw.write(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self.raw.flush()


@contextmanager
def atomic_file(path: Path) -> Iterator[HashedFile]:
    """A file that appears under its name only once it is complete and flushed to disk.

    Raises:
        OSError: It could not be written, for example because the disk is full. Nothing of it is left behind.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("xb") as raw:
            yield HashedFile(raw)
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = f"{os.strerror(error.errno)}; nothing half-written is kept: make room and run the command again"
            raise OSError(error.errno, problem, str(path)) from error
        raise
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file, either completely or not at all."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, either completely or not at all."""
    with atomic_file(path) as file:
        file.write(text.encode())


def sync(path: Path) -> None:
    """Bring a file to the disk, or the names of a folder's files: a rename is durable after that."""
    if path.is_dir() and os.name != "posix":  # Windows cannot open folders
        return
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(folder: Path) -> None:
    """Bring all files of a folder to the disk."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def sha256_of(path: Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["HashedFile", "atomic_file", "sha256_of", "sync", "sync_folder", "write_json", "write_text"]
