"""Format 3 of a feature store: what its files hold, how an image's regions become a row and a row regions again.

::

    <store>/index.json                  what made the regions, their dim and dtype, the shards with size and checksum
    <store>/ids.arrow                   sorted image ids: which row of which shard
    <store>/data/shard-00000.arrow ...  one row for each image, the columns of `SCHEMA`
    <store>/README.md                   dataset card
    <store>/failed.jsonl                images that could not be read, if there were any

The Arrow files are IPC streams, which `datasets` opens as they are, from a folder or from the Hub. Arrays are the bytes of
little-endian C-ordered arrays: `features` [R, V] of the store's dtype, `boxes` float32 [R, 4] (x1, y1, x2, y2 in pixels),
`scores` and `attribute_scores` float32 [R], `class_ids` and `attribute_ids` int32 [R]. Nothing in a store is pickled.
Letters: R regions of an image, V feature.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Features, Value

from ..data.files import is_unicode

FORMAT = 3
DTYPES = ("float32", "float16")
FEATURES = Features(
    {
        "image_id": Value("string"),  # a number (COCO, Flickr30k) or a name (NLVR2, VCR)
        "height": Value("int32"),
        "width": Value("int32"),
        "num_regions": Value("int32"),
        "features": Value("large_binary"),
        "boxes": Value("large_binary"),
        "scores": Value("large_binary"),
        "class_ids": Value("large_binary"),
        "attribute_ids": Value("large_binary"),
        "attribute_scores": Value("large_binary"),
    }
)
SCHEMA: pa.Schema = FEATURES.arrow_schema
IDS_SCHEMA = pa.schema([("image_id", pa.string()), ("shard", pa.int32()), ("row", pa.int32())])
_MAX_ID = 255  # they are searched as an array of fixed width
_BATCH_BYTES = 16 * 2**20  # rows are written in record batches of about this size

Row = dict[str, Any]


@dataclass(frozen=True)
class ArrayColumn:
    """A column of arrays: its key in a mapping of regions, and shape [R, *tail] and type of an array."""

    key: str
    dtype: str
    tail: tuple[int, ...] = ()

    @cached_property
    def numpy_dtype(self) -> np.dtype:
        """Little-endian, on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def bytes_per_region(self) -> int:
        """Bytes that one region takes."""
        return math.prod(self.tail) * self.numpy_dtype.itemsize


@lru_cache
def array_columns(dim: int, dtype: str) -> Mapping[str, ArrayColumn]:
    """The columns of arrays of a store; all but the first may be null.

    Raises:
        ValueError: No store has such features.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    if dim < 1:
        raise ValueError(f"features of dim {dim}; expected at least 1")
    return {
        "features": ArrayColumn("visual_embeds", dtype, (dim,)),
        "boxes": ArrayColumn("boxes", "float32", (4,)),
        "scores": ArrayColumn("scores", "float32"),
        "class_ids": ArrayColumn("class_ids", "int32"),
        "attribute_ids": ArrayColumn("attribute_ids", "int32"),
        "attribute_scores": ArrayColumn("attribute_scores", "float32"),
    }


def encode_row(image_id: object, regions: Mapping[str, Any], dim: int, dtype: str) -> Row:
    """A row of a store.

    Args:
        image_id: A number or a name.
        regions: As [`split_regions`] makes them: `visual_embeds` [R, V], and `boxes` in pixels, `scores`, `class_ids`,
            `attribute_ids`, `attribute_scores` and `image_size` as far as they are known; tensors or arrays.
        dim, dtype: V, and how the features are stored.

    Raises:
        ValueError: A shape is wrong, a number is not finite or does not fit the dtype, or the id is no text.
    """
    name, where = str(image_id), f"image {image_id}"
    if not name or "\0" in name or not is_unicode(name) or len(name) > _MAX_ID:
        raise ValueError(f"image id {name[:80]!r}; expected a number or a name of at most {_MAX_ID} characters")
    size = regions.get("image_size")
    height, width = (None, None) if size is None else (int(side) for side in size)
    count = len(regions["visual_embeds"])
    row: Row = {"image_id": name, "height": height, "width": width, "num_regions": count}
    for column, kind in array_columns(dim, dtype).items():
        value = regions.get(kind.key)
        row[column] = None if value is None else _to_bytes(value, kind, count, f"{where}: '{kind.key}'")
    return row


def _to_bytes(value: Any, kind: ArrayColumn, count: int, where: str) -> bytes:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.shape != (count, *kind.tail):
        raise ValueError(f"{where} has shape {array.shape}; expected {(count, *kind.tail)}")
    if kind.dtype == "int32":
        if not np.array_equal(array, array.astype(np.int32)):
            raise ValueError(f"{where} holds {array.max()}; expected whole numbers of 32 bits")
    elif not np.isfinite(array).all():
        raise ValueError(f"{where} holds NaN or infinity; expected finite numbers")
    elif kind.dtype == "float16" and np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
        raise ValueError(f"{where} does not fit into float16; expected values up to 65504, or dtype float32")
    return np.ascontiguousarray(array, dtype=kind.numpy_dtype).tobytes()


def decode_row(row: Mapping[str, Any], dim: int, dtype: str) -> dict[str, torch.Tensor]:
    """A row, as `datasets` gives it, -> regions: the inverse of [`encode_row`], features in float32.

    Raises:
        ValueError: An array has another length than the number of regions says.
    """
    columns = array_columns(dim, dtype)
    data = {name: np.frombuffer(row[name], np.uint8) for name in columns if row[name] is not None}
    size = None if row["height"] is None else (row["height"], row["width"])
    return to_tensors(shape_arrays(data, row["num_regions"], columns, f"image {row['image_id']}"), size)


def shape_arrays(
    data: Mapping[str, np.ndarray], count: int, columns: Mapping[str, ArrayColumn], where: str
) -> dict[str, np.ndarray]:
    """The bytes of a row's columns -> arrays by their keys in a mapping of regions, without copying.

    Raises:
        ValueError: A column has another length than `count` regions have, or there are no features.
    """
    if "features" not in data:
        raise ValueError(f"{where}: no features stored")
    arrays = {}
    for name, raw in data.items():
        kind = columns[name]
        if raw.size != count * kind.bytes_per_region:
            raise ValueError(
                f"{where}: {raw.size} bytes of '{name}' stored, expected {count * kind.bytes_per_region} "
                f"for {kind.dtype} of shape {(count, *kind.tail)}"
            )
        arrays[kind.key] = raw.view(kind.numpy_dtype).reshape(count, *kind.tail)
    return arrays


def to_tensors(arrays: Mapping[str, np.ndarray], image_size: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    """Arrays of an image's regions -> tensors of their own memory: features float32, ids int64."""
    regions = {}
    for key, array in arrays.items():
        if not (array.flags.writeable and array.dtype.isnative):  # torch wants both, and only reads
            array = array.astype(array.dtype.newbyteorder("="))
        kind = torch.int64 if array.dtype.kind == "i" else torch.float32
        # Torch converts float16 20 times as fast as NumPy.
        regions[key] = torch.from_numpy(array).to(kind, copy=True)
    if image_size is not None:
        regions["image_size"] = torch.tensor(image_size)
    return regions


def write_table(path: Path, schema: pa.Schema, rows: Iterator[Row]) -> tuple[int, int, str]:
    """Write rows as an Arrow stream that is there completely or not at all. The same rows give the same bytes.

    Returns:
        Number of rows, of bytes, and the SHA-256 of the file.
    """
    count, pending, size = 0, [], 0
    with atomic_file(path) as file, pa.ipc.new_stream(pa.PythonFile(file, mode="w"), schema) as writer:
        for row in rows:
            pending.append(row)
            size += sum(len(value) for value in row.values() if isinstance(value, bytes))
            count += 1
            if size >= _BATCH_BYTES:
                writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
                pending, size = [], 0
        if pending:
            writer.write_batch(pa.RecordBatch.from_pylist(pending, schema=schema))
    return count, file.bytes, file.digest.hexdigest()


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Map an Arrow stream into memory; data are read where they are looked at.

    Raises:
        ValueError: It is none, is damaged, or has other columns.
    """
    try:
        # The memory stays mapped as long as something looks at it; the file need not stay open.
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        table.validate(full=True)  # offsets inside their buffers; does not look at the arrays
    except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow's errors name no file
        raise ValueError(f"{path}: damaged or missing ({error})") from error
    if not table.schema.equals(schema):
        raise ValueError(f"{path}: columns {table.schema.names}; expected {schema.names} of a feature store")
    return table


class HashedFile:
    """A binary file opened for writing that counts and hashes what goes through it."""

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
    """A file that appears under its name when it is complete and on the disk.

    Raises:
        OSError: It could not be written; a full disk is called so. Nothing is left of it.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("xb") as raw:
            yield HashedFile(raw)
            raw.flush()
            os.fsync(raw.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            problem = f"{os.strerror(error.errno)}; nothing half-written is kept: make room and run the command again"
            raise OSError(error.errno, problem, str(path)) from error
        raise
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # A rename is on the disk when the folder is. (Windows cannot open folders and needs none of this.)
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file that is there completely or not at all."""
    with atomic_file(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def sha256_of(path: Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
