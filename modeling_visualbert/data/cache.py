"""Official files as Arrow tables: read once, then memory-mapped by every process and every later run.

    <cache>/tables/<kind>-<key>/rows.arrow     the rows
    <cache>/tables/<kind>-<key>/notes.json     what else the reader found, such as the records that it left out

The key holds whatever the rows depend on: the content of the files (of thousands of small ones: their sizes and times), the
options of the reader, and its code. So changed files are another table, and what is there stays valid. Of the processes that need
a table, the first to take its lock makes it, and the others wait on the file system. It is written beside its place and renamed,
so that what a killed process leaves behind is never read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features
from filelock import FileLock, Timeout

from ..cache_dir import default_cache_dir
from ..disk import sha256_of, whole_folder

logger = logging.getLogger(__name__)

Notes = dict[str, Any]  # of what JSON can hold
KEPT = 1 << 20  # bytes from which on a table is kept
BATCH = 1000  # rows; a batch is what is in memory while a table is made


def cached_table(
    kind: str, features: Features, read: Callable[[Notes], Iterable[pa.Table]], size: int, *depends_on: Any
) -> tuple[Dataset, Notes]:
    """The rows that `read` yields, from the cache if they are there.

    Args:
        kind: What the rows are, for the name of the folder.
        features: Their columns.
        read: Yields the rows in batches, see [`batches`], and may add notes. What it raises is raised, and nothing is kept.
        size: Bytes that it reads. Less than a megabyte is read each time, and not kept.
        depends_on: All that the rows depend on; see [`content_of`] and [`stamp_of`] for files.

    Returns:
        The rows, memory-mapped, and the notes.

    Raises:
        OSError: The cache cannot be written.
    """
    if size < KEPT:
        notes: Notes = {}
        return Dataset(pa.concat_tables([features.arrow_schema.empty_table(), *read(notes)])), notes
    key = hashlib.sha256(json.dumps([kind, str(features), _code(), *depends_on]).encode()).hexdigest()[:16]
    folder = default_cache_dir() / "tables" / f"{kind}-{key}"
    if not folder.is_dir():
        with _writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if not folder.is_dir():
                _make(folder, features, read)
    return _open(folder)


def batches(rows: Iterable[dict[str, Any]], features: Features, size: int = BATCH) -> Iterator[pa.Table]:
    """Rows in tables of `size` rows, the last one shorter."""
    remaining, schema = iter(rows), features.arrow_schema
    while batch := list(islice(remaining, size)):
        yield pa.Table.from_pylist(batch, schema=schema)


def table_of(rows: Iterable[dict[str, Any]], features: Features) -> pa.Table:
    """Rows as one table in memory, made in batches: never are all of them Python objects."""
    return pa.concat_tables([features.arrow_schema.empty_table(), *batches(rows, features)])


def size_of(*paths: str | Path) -> int:
    """Bytes of all files together; those that do not exist have none."""
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def content_of(path: str | Path) -> list[str]:
    """Name of a file, as errors call it, and checksum of its content.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return [str(path), sha256_of(Path(path))]


def stamp_of(paths: Iterable[str]) -> tuple[int, str]:
    """Size of many files together, and checksum of their names, sizes and times."""
    digest, size = hashlib.sha256(), 0
    for path in paths:
        try:
            status = os.stat(path)
            size += status.st_size
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except (OSError, ValueError):  # reading it says why
            digest.update(f"{path}\0\n".encode())
    return size, digest.hexdigest()


@cache
def _code() -> str:
    """Checksum of the readers: rows that an earlier version made are made anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Inside the block no other process makes this table; says so if that has to be waited for."""
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: another process is making this table; waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, features: Features, read: Callable[[Notes], Iterable[pa.Table]]) -> None:
    notes: Notes = {}
    with whole_folder(folder) as draft:
        with _writing(folder):
            file = (draft / "rows.arrow").open("wb")
        with file, pa.ipc.new_stream(file, features.arrow_schema) as writer:
            for table in read(notes):
                with _writing(folder):
                    writer.write_table(table)
        with _writing(folder):
            (draft / "notes.json").write_text(json.dumps(notes), encoding="utf-8")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Errors of the cache inside the block say what to do; errors of reading are raised elsewhere."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{folder}: official files are kept as a table there, which cannot be written ({error.strerror or error}); expected "
            "a folder with room for it, which the variable MODELING_VISUALBERT_CACHE can name"
        ) from error


def _open(folder: Path) -> tuple[Dataset, Notes]:
    try:
        return Dataset.from_file(str(folder / "rows.arrow")), json.loads((folder / "notes.json").read_text("utf-8"))
    except (OSError, ValueError) as error:  # what pyarrow raises is one of them
        raise ValueError(
            f"{folder}: this cached table is damaged ({error}); remove the folder: it is made again"
        ) from error


__all__ = [
    "BATCH",
    "Notes",
    "batches",
    "cached_table",
    "content_of",
    "size_of",
    "stamp_of",
    "table_of",
]
