"""Files that are whole or not there: written beside, brought to the disk, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_TORCH_SAVE = re.compile(
    r"PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos"
)  # it says no more
_NUMBER_IN_RUST = re.compile(r"\(os error (\d+)\)")


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
        with telling_full_disks(path):
            with draft.open("xb") as raw:
                yield HashedFile(raw)
                raw.flush()
                os.fsync(raw.fileno())
            draft.replace(path)
            sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def folder_for_drafts(path: Path) -> Iterator[Path]:
    """A folder beside a file or folder, for what it is made of; removed at the end of the block. What a killed process left there
    is in nobody's way.

    Raises:
        OSError: The disk is full.
    """
    folder = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    try:
        with telling_full_disks(path):
            folder.mkdir(parents=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write to, which gets its name once the block has ended and all is on disk. If the block fails, nothing is left.

    Args:
        folder: What it will be called.
        replace: Whether it takes the place of a folder of that name, which is `.NAME.old` for a moment.

    Raises:
        FileExistsError: There is a file or folder of that name, and it is not to be replaced.
        OSError: The disk is full.
    """
    if folder.exists() and not replace:
        raise FileExistsError(f"{folder} exists; choose another folder or remove it")
    old = folder.with_name(f".{folder.name}.old")
    with folder_for_drafts(folder) as draft:
        yield draft
        sync_folder(draft)
        if replace and folder.exists():
            shutil.rmtree(old, ignore_errors=True)  # the process was killed before the line below that removes it
            folder.rename(old)
        draft.rename(folder)
        sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def telling_full_disks(
    path: Path, remedy: str = "nothing half-written is kept: make room and run the command again"
) -> Iterator[None]:
    """Errors of a full disk, by which library ever, name what was written and say what to do.

    Raises:
        OSError: The disk is full, a quota is used up or a file is too large for its limit. It has the system's `errno`.
    """
    try:
        yield
    except Exception as error:
        number = full_disk(error)
        if number is None:
            raise
        raise OSError(number, f"{os.strerror(number)}; {remedy}", str(path)) from error


def full_disk(error: Exception) -> int | None:
    """The system's number of an error that is that of a full disk, by which library ever; None of any other."""
    if isinstance(error, OSError):
        return error.errno if error.errno in _FULL else None
    text = str(error)
    if match := _NUMBER_IN_RUST.search(text):  # safetensors, tokenizers
        return int(match[1]) if int(match[1]) in _FULL else None
    return errno.ENOSPC if _OF_TORCH_SAVE.search(text) else None


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


__all__ = [
    "HashedFile",
    "atomic_file",
    "folder_for_drafts",
    "full_disk",
    "sha256_of",
    "sync",
    "sync_folder",
    "telling_full_disks",
    "whole_folder",
    "write_json",
    "write_text",
]
