"""Format 3 of a feature store: the files it consists of, and how the regions of an image are encoded as a row of a table.

::

    <store>/index.json                  detector (and whether its features end with `spatial_features`), dim and dtype, and the
                                        shards with their sizes and checksums
    <store>/ids.arrow                   the image ids, sorted, with shard and row of each
    <store>/images.arrow                size, time of modification and checksum of the image files, where they are known; see
                                        `image_files.py`
    <store>/data/shard-00000.arrow ...  one row per image, with the columns of `SCHEMA`
    <store>/README.md                   dataset card
    <store>/failed.jsonl                images that could not be read, if there were any

The Arrow files are IPC streams, which `datasets` opens directly, from a folder or from the Hub. Arrays are stored as
little-endian bytes in C order: `features` [R, V] in the store's dtype, `boxes` float32 [R, 4] (x1, y1, x2, y2 in pixels),
`scores` and `attribute_scores` float32 [R], `class_ids` and `attribute_ids` int32 [R]. Nothing in a store is pickled.
Letters: R regions of an image, V feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Features, Value

from ..data.files import is_unicode
from ..disk import atomic_file

FORMAT = 3
DTYPES = ("float32", "float16")
ARRAYS = ("features", "boxes", "scores", "class_ids", "attribute_ids", "attribute_scores")
FEATURES = Features(
    {
        "image_id": Value("string"),  # a number (COCO, Flickr30k) or a name (NLVR2, VCR)
        **{name: Value("int32") for name in ("height", "width", "num_regions")},
        **{name: Value("large_binary") for name in ARRAYS},
    }
)
SCHEMA: pa.Schema = FEATURES.arrow_schema
IDS_SCHEMA = pa.schema([("image_id", pa.string()), ("shard", pa.int32()), ("row", pa.int32())])
_MAX_ID = 255  # ids are searched as an array of fixed-width strings
_BATCH_BYTES = 16 * 2**20  # approximate size of the record batches in which rows are written

Row = dict[str, Any]


@lru_cache
def array_columns(dim: int, dtype: str) -> Mapping[str, np.dtype]:
    """Name and type (of one region, little-endian on every machine) of each array column; all but the features may be null.

    Raises:
        ValueError: A store cannot hold such features.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    if dim < 1:
        raise ValueError(f"features of dim {dim}; expected at least 1")
    special = {"features": (np.dtype(dtype).newbyteorder("<"), (dim,)), "boxes": ("<f4", (4,))}
    return {name: np.dtype(special.get(name, "<i4" if name.endswith("_ids") else "<f4")) for name in ARRAYS}


def _key(column: str) -> str:
    """The key of a column in a mapping of regions."""
    return "visual_embeds" if column == "features" else column


def encode_row(image_id: object, regions: Mapping[str, Any], dim: int, dtype: str) -> Row:
    """Regions -> a row of a store.

    Args:
        image_id: A number or a name.
        regions: As [`split_regions`] returns them: `visual_embeds` [R, V] and, where known, `boxes` in pixels, `scores`,
            `class_ids`, `attribute_ids`, `attribute_scores` and `image_size`; tensors or arrays.
        dim, dtype: V, and the dtype in which the features are stored.

    Raises:
        ValueError: A shape is wrong, a number is not finite or does not fit the dtype, or the id is not valid text.
    """
    name, where = str(image_id), f"image {image_id}"
    if not name or "\0" in name or not is_unicode(name) or len(name) > _MAX_ID:
        raise ValueError(f"image id {name[:80]!r}; expected a number or a name of at most {_MAX_ID} characters")
    size = regions.get("image_size")
    height, width = (None, None) if size is None else (int(side) for side in size)
    count = len(regions["visual_embeds"])
    row: Row = {"image_id": name, "height": height, "width": width, "num_regions": count}
    for column, kind in array_columns(dim, dtype).items():
        value = regions.get(_key(column))
        row[column] = None if value is None else _to_bytes(value, kind, count, f"{where}: '{_key(column)}'")
    return row


def _to_bytes(value: Any, kind: np.dtype, count: int, where: str) -> bytes:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.shape != (count, *kind.shape):
        raise ValueError(f"{where} has shape {array.shape}; expected {(count, *kind.shape)}")
    if kind.base.kind == "i":
        if not np.array_equal(array, array.astype(np.int32)):
            raise ValueError(f"{where} holds {array.max()}; expected whole numbers of 32 bits")
    elif not np.isfinite(array).all():
        raise ValueError(f"{where} holds NaN or infinity; expected finite numbers")
    elif kind.base.itemsize == 2 and np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
        raise ValueError(f"{where} does not fit into float16; expected values up to 65504, or dtype float32")
    return np.ascontiguousarray(array, dtype=kind.base).tobytes()


def decode_row(row: Mapping[str, Any], dim: int, dtype: str) -> dict[str, torch.Tensor]:
    """A row, as `datasets` returns it, -> regions: the inverse of [`encode_row`], with features in float32.

    Raises:
        ValueError: The length of an array does not match the number of regions.
    """
    columns = array_columns(dim, dtype)
    data = {name: np.frombuffer(row[name], np.uint8) for name in columns if row[name] is not None}
    size = None if row["height"] is None else (row["height"], row["width"])
    return to_tensors(shape_arrays(data, row["num_regions"], columns, f"image {row['image_id']}"), size)


def shape_arrays(
    data: Mapping[str, np.ndarray], count: int, columns: Mapping[str, np.dtype], where: str
) -> dict[str, np.ndarray]:
    """The bytes of a row's columns -> arrays by their keys in a mapping of regions, without copying.

    Raises:
        ValueError: The length of a column does not match `count` regions, or there are no features.
    """
    if "features" not in data:
        raise ValueError(f"{where}: no features stored")
    arrays = {}
    for name, raw in data.items():
        kind = columns[name]
        if raw.size != count * kind.itemsize:
            raise ValueError(
                f"{where}: {raw.size} bytes of '{name}' stored, expected {count * kind.itemsize} "
                f"for {kind.base.name} of shape {(count, *kind.shape)}"
            )
        arrays[_key(name)] = raw.view(kind.base).reshape(count, *kind.shape)
    return arrays


def to_tensors(arrays: Mapping[str, np.ndarray], image_size: tuple[int, int] | None) -> dict[str, torch.Tensor]:
    """Arrays of an image's regions -> tensors with memory of their own: features float32, ids int64."""
    regions = {}
    for key, array in arrays.items():
        if not (array.flags.writeable and array.dtype.isnative):  # torch requires both, although it only reads
            array = array.astype(array.dtype.newbyteorder("="))
        kind = torch.int64 if array.dtype.kind == "i" else torch.float32
        # Torch converts float16 20 times as fast as NumPy.
        regions[key] = torch.from_numpy(array).to(kind, copy=True)
    if image_size is not None:
        regions["image_size"] = torch.tensor(image_size)
    return regions


def write_rows(path: Path, rows: Iterable[Row]) -> tuple[int, int, str]:
    """Write a shard in record batches of moderate size; see [`write_batches`]."""

    def batches() -> Iterator[pa.RecordBatch]:
        pending, size = [], 0
        for row in rows:
            pending.append(row)
            size += sum(len(value) for value in row.values() if isinstance(value, bytes))
            if size >= _BATCH_BYTES:
                yield pa.RecordBatch.from_pylist(pending, schema=SCHEMA)
                pending, size = [], 0
        if pending:
            yield pa.RecordBatch.from_pylist(pending, schema=SCHEMA)

    return write_batches(path, SCHEMA, batches())


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> tuple[int, int, str]:
    """Write an Arrow stream, either completely or not at all. The same batches always give the same bytes.

    Returns:
        Number of rows, number of bytes, and the SHA-256 of the file.
    """
    count = 0
    with atomic_file(path) as file, pa.ipc.new_stream(pa.PythonFile(file, mode="w"), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    return count, file.bytes, file.digest.hexdigest()


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Map an Arrow stream into memory; pages are read from disk when they are first used.

    Raises:
        ValueError: The file is missing, damaged or not an Arrow stream, or has other columns.
    """
    try:
        # The mapping lasts as long as anything refers to it; the file need not stay open.
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        table.validate(full=True)  # checks that offsets lie inside their buffers; does not read the arrays
    except (pa.ArrowException, OSError, ValueError) as error:  # pyarrow's errors do not name the file
        raise ValueError(f"{path}: damaged or missing ({error})") from error
    if not table.schema.equals(schema):
        raise ValueError(f"{path}: columns {table.schema.names}; expected {schema.names} of a feature store")
    return table


def repeated_id(ids: pa.Array) -> str | None:
    """The first id that occurs twice in a row, if any."""
    is_repeated = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return ids[int(is_repeated.argmax())].as_py() if is_repeated.any() else None
