"""A folder of region features: memory-mapped, found by image id, as many regions as each image has. Format: `format.py`."""

from __future__ import annotations

import bisect
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets

from ..data.files import read_json, require, require_path
from .draft import StoreDraft, check_plan, make_plan
from .format import (
    FEATURES,
    FORMAT,
    IDS_SCHEMA,
    SCHEMA,
    array_columns,
    encode_row,
    read_table,
    sha256_of,
    shape_arrays,
    to_tensors,
)

Regions = Mapping[str, Any]


class FeatureStore:
    """Random access to the regions of images: `store[image_id]` is a mapping as in `regions_visualbert`.

    Opening reads the index, and maps files of features only when an image in them is asked for. What can be seen without
    reading the features is checked: sizes of all files, and that the index fits them. [`FeatureStore.verify`] reads all.

    Args:
        folder: The store.
        expect_dim: Length of a feature that the model takes.
        expect_detector: Fingerprint of the model's region encoder. A store of unknown detector (features that others
            published) is taken without question.

    Raises:
        FileNotFoundError: The folder holds no complete store.
        ValueError: It is of another format, is damaged, or is of another dim or detector than expected.
    """

    def __init__(self, folder: str | Path, expect_dim: int | None = None, expect_detector: str | None = None):
        self.folder = Path(folder)
        self.info = _read_index(self.folder)
        where = str(self.folder / "index.json")
        self.dim, self.dtype = require(self.info, "dim", where, int), require(self.info, "dtype", where, str)
        self.detector = require(self.info, "detector", where, dict)
        try:
            self._columns = array_columns(self.dim, self.dtype)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        self.check(expect_dim, expect_detector)
        self._shards = [_ShardFile(self.folder, record, where) for record in require(self.info, "shards", where, list)]
        self._ids = _Ids(self.folder, require(self.info, "ids", where), where)
        self._ids.check_places(self._shards)
        if len(self._ids) != require(self.info, "num_images", where, int):
            raise ValueError(
                f"{where}: {self.info['num_images']} images, but {self._ids.path.name} has {len(self._ids)}"
            )
        for key in ("classes", "attributes"):
            if require(self.info, key, where) is not None:  # names by id, if the detector has any
                require(self.info, key, where, list)

    def check(self, dim: int | None = None, detector: str | None = None) -> None:
        """
        Raises:
            ValueError: The features have another dim, or are known to be of another detector; names both.
        """
        name, fingerprint = self.detector.get("name"), self.detector.get("fingerprint")
        if dim is not None and dim != self.dim:
            raise ValueError(f"{self.folder}: features of dim {self.dim}, this model expects {dim} (detector: {name})")
        if detector is not None and fingerprint not in (None, detector):
            raise ValueError(
                f"{self.folder}: regions of detector {name} {fingerprint}, this model has the region encoder {detector}; "
                "pass the --region_encoder that made them, or extract them again"
            )

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, image_id: object) -> bool:
        return self._ids.place(str(image_id)) is not None

    def __iter__(self) -> Iterator[str]:
        """The image ids, sorted as text."""
        return iter(self._ids)

    def __getitem__(self, image_id: object) -> dict[str, torch.Tensor]:
        """Regions as tensors of their own: features float32, boxes in pixels; keys that are not known are left out."""
        shard, row = self._place(image_id)
        return to_tensors(self._arrays(shard, row, image_id), shard.image_size(row))

    def arrays(self, image_id: object) -> dict[str, np.ndarray]:
        """Regions as read-only views of the file, features in the store's dtype; nothing is copied."""
        shard, row = self._place(image_id)
        arrays = self._arrays(shard, row, image_id)
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.folder,)  # a worker process maps the files itself

    def _place(self, image_id: object) -> tuple[_Shard, int]:
        place = self._ids.place(str(image_id))
        if place is None:
            raise KeyError(f"{self.folder}: no regions of image {image_id}")
        return self._shards[place[0]].open(), place[1]

    def _arrays(self, shard: _Shard, row: int, image_id: object) -> dict[str, np.ndarray]:
        return shape_arrays(*shard.row(row), self._columns, f"{self.folder}: image {image_id}")

    def to_dataset(self) -> Dataset:
        """All rows as a memory-mapped `datasets.Dataset`, in the order in which they were written.

        [`decode_row`] makes regions of a row. The same rows stream from the Hub:
        `load_dataset("user/store", split="train", streaming=True)`.
        """
        if not self._shards:
            return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
        return concatenate_datasets([Dataset.from_file(str(shard.path)) for shard in self._shards])

    def verify(self) -> None:
        """Read every byte: checksums, and that each image is where the index says and as long as it says.

        Raises:
            ValueError: Something is damaged; names the file, or the image.
        """
        for file in (self._ids, *self._shards):
            if (found := sha256_of(file.path)) != file.sha256:
                raise ValueError(f"{file.path}: checksum {found[:16]}..., but the index says {file.sha256[:16]}...")
        for image_id, number, row in self._ids.places():
            shard = self._shards[number].open()
            if shard.image_id(row) != image_id:
                raise ValueError(
                    f"{self._shards[number].path}: row {row} is image {shard.image_id(row)}, not {image_id}"
                )
            self._arrays(shard, row, image_id)


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / "index.json").is_file():
        draft = partial_folder(folder)
        hint = f"; {draft} holds an unfinished one: run the command that makes it again" if draft.is_dir() else ""
        raise FileNotFoundError(f"{folder}: no feature store (index.json is missing){hint}")
    where = str(folder / "index.json")
    info = read_json(where)
    if require(info, "format", where) != FORMAT:
        raise ValueError(f"{where}: format {info['format']!r}; this version reads {FORMAT}: extract the regions again")
    return info


def partial_folder(folder: str | Path) -> Path:
    """Where a store is while it is being written."""
    folder = Path(folder).absolute()  # "." has no name
    return folder.with_name(f"{folder.name}.partial")


class _File:
    """A file of the index, of the size that the index says."""

    def __init__(self, folder: Path, record: Any, where: str):
        self.path = folder / require_path(record, "file", where)
        self.sha256 = require(record, "sha256", where, str)
        size = require(record, "bytes", where, int)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: missing, but the index names it")
        if (found := self.path.stat().st_size) != size:
            raise ValueError(f"{self.path}: damaged, {found} bytes but the index says {size} (truncated?)")


class _ShardFile(_File):
    """A shard that is mapped when it is needed first."""

    def __init__(self, folder: Path, record: Any, where: str):
        super().__init__(folder, record, where)
        self.rows = require(record, "rows", where, int)
        self._opened: _Shard | None = None

    def open(self) -> _Shard:
        if self._opened is None:
            table = read_table(self.path, SCHEMA)
            if table.num_rows != self.rows:
                raise ValueError(f"{self.path}: {table.num_rows} rows, but the index says {self.rows}")
            self._opened = _Shard(table)
        return self._opened


class _Shard:
    """The rows of a mapped shard. Arrow's own way to a value makes some objects for each; offsets into the memory do not."""

    def __init__(self, table: pa.Table):
        batches = [batch for batch in table.to_batches() if batch.num_rows]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        self._batches = [_batch_arrays(batch) for batch in batches]

    def row(self, row: int) -> tuple[dict[str, np.ndarray], int]:
        """The bytes of each column that is not null, and the number of regions."""
        batch, row = self._locate(row)
        data = {
            name: blob[offsets[row] : offsets[row + 1]]
            for name, (offsets, blob, is_null) in batch["blobs"].items()
            if is_null is None or not is_null[row]
        }
        return data, int(batch["num_regions"][row])

    def image_id(self, row: int) -> str:
        batch, row = self._locate(row)
        return batch["image_id"][row].as_py()

    def image_size(self, row: int) -> tuple[int, int] | None:
        """Height and width, where they are known."""
        batch, row = self._locate(row)
        height, width = int(batch["height"][row]), int(batch["width"][row])
        return None if height < 0 else (height, width)

    def _locate(self, row: int) -> tuple[dict[str, Any], int]:
        number = bisect.bisect_right(self._starts, row) - 1
        return self._batches[number], row - self._starts[number]


def _batch_arrays(batch: pa.RecordBatch) -> dict[str, Any]:
    numbers = {
        name: batch.column(name).fill_null(-1).to_numpy(zero_copy_only=False)
        for name in ("height", "width", "num_regions")
    }
    return {**numbers, "image_id": batch.column("image_id"), "blobs": _blobs(batch)}


def _blobs(batch: pa.RecordBatch) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Offsets, bytes, and which rows are null, of each column of arrays that is not all null."""
    blobs = {}
    for name in SCHEMA.names:
        column = batch.column(name)
        if not pa.types.is_large_binary(column.type) or column.null_count == len(column):
            continue
        is_null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
        _, offsets, data = column.buffers()
        blob = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        blobs[name] = (np.frombuffer(offsets, np.int64, len(column) + 1), blob, is_null)
    return blobs


class _Ids(_File):
    """Sorted image ids with their places, searched as a NumPy array: no Python object for each image."""

    def __init__(self, folder: Path, record: Any, where: str):
        super().__init__(folder, record, where)
        table = read_table(self.path, IDS_SCHEMA).combine_chunks()
        columns = [column.combine_chunks() for column in table.columns]
        ids, shards, rows = columns
        in_order = len(ids) < 2 or pc.all(pc.less(ids[:-1], ids[1:])).as_py()
        if not in_order or any(column.null_count for column in columns):
            twice = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
            problem = f"image {ids[int(twice.argmax())]} twice" if twice.any() else "the image ids are not sorted"
            raise ValueError(f"{self.path}: {problem}; expected each image once, sorted")
        self._ids, self._shards, self._rows = ids, shards.to_numpy(), rows.to_numpy()
        self._sorted = _fixed_width(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return (image_id.as_py() for image_id in self._ids)

    def places(self) -> Iterator[tuple[str, int, int]]:
        """(image id, shard, row) of all images."""
        return zip(self, self._shards.tolist(), self._rows.tolist(), strict=True)

    def place(self, image_id: str) -> tuple[int, int] | None:
        """Shard and row of an image, or None."""
        wanted = image_id.encode("utf-8", "surrogatepass")
        if len(wanted) > self._sorted.itemsize or b"\0" in wanted:  # NumPy would convert the array, or drop the NUL
            return None
        at = self._sorted.searchsorted(wanted)
        if at == len(self._sorted) or self._sorted[at] != wanted:
            return None
        return int(self._shards[at]), int(self._rows[at])

    def check_places(self, shards: Sequence[_ShardFile]) -> None:
        """
        Raises:
            ValueError: An image is said to be behind the end of a shard, or in one that is not there.
        """
        rows = np.array([shard.rows for shard in shards], dtype=np.int64)
        exists = (self._shards >= 0) & (self._shards < len(shards))
        inside = exists & (self._rows >= 0)
        inside[inside] = self._rows[inside] < rows[self._shards[inside]]
        if not inside.all():
            at = int(inside.argmin())
            number, row = int(self._shards[at]), int(self._rows[at])
            place = (
                f"{shards[number].path.name}, which has {shards[number].rows} rows" if exists[at] else f"shard {number}"
            )
            raise ValueError(
                f"{self.path}: image {self._ids[at]} is said to be row {row} of {place}; the index is damaged"
            )


def _fixed_width(ids: pa.Array) -> np.ndarray:
    """Strings as NumPy bytes [N], padded with NUL, in the same order."""
    if not len(ids):
        return np.empty(0, "S1")
    _, offsets, data = ids.buffers()
    ends = np.frombuffer(offsets, np.int32, len(ids) + 1)
    lengths = np.diff(ends)
    width = max(1, int(lengths.max()))
    padded = np.zeros((len(ids), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    return padded.view(f"S{width}").ravel()


def write_store(
    folder: str | Path,
    regions: Iterable[tuple[object, Regions | Callable[[], Regions]]],
    dim: int,
    detector: str | Mapping[str, Any],
    dtype: str = "float32",
    images_per_shard: int = 1000,
    names: Mapping[str, Sequence[str] | None] | None = None,
    source: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> None:
    """Write a store from regions that come one after the other; the folder appears only when it is complete.

    Args:
        folder: Where to; must not exist.
        regions: (image id, regions in pixels) pairs, ids being numbers or names, as [`split_regions`] makes them; or, for
            regions, what gives them when called, which is not called for those that an interrupted run wrote.
        dim: Length of a feature.
        detector: What made the regions, for the index: a name, or a mapping with `name` and `fingerprint`.
        dtype: `"float32"` or `"float16"`.
        images_per_shard: Images in one file.
        names: Names of the `classes` and of the `attributes`, by their ids.
        source: What the regions come from, for the index; a run that goes on must have the same.
        resume: Keep what is complete when interrupted, in `<folder>.partial`, and go on with it.

    Raises:
        FileExistsError: `folder` exists.
        ValueError: An image id comes twice, a feature has another length, or an interrupted run had other images.
        OSError: The disk is full.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another folder")
    array_columns(dim, dtype)
    plan = make_plan(dim, dtype, detector, images_per_shard, names, source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if resume:
        _write_shards(partial_folder(folder), folder, plan, regions)
        return
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    draft.chmod(0o755)
    try:
        _write_shards(draft, folder, plan, regions)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_shards(
    partial: Path,
    folder: Path,
    plan: Mapping[str, Any],
    regions: Iterable[tuple[object, Regions | Callable[[], Regions]]],
) -> None:
    if (partial / "index.json").is_file():  # interrupted after the last shard
        check_plan(partial, read_json(partial / "index.json"), plan)
        StoreDraft(partial, folder).finish(0)
        return
    draft = StoreDraft.begin(partial, folder, plan)
    seen: set[str] = set()
    pairs = iter(regions)
    for number in count():
        first = next(pairs, None)
        if first is None:
            draft.finish(number)
            return
        part = _each_once(chain([first], islice(pairs, plan["images_per_shard"] - 1)), seen)
        if draft.part(number) is None:
            draft.write_shard(number, (encode_row(key, _made(item), plan["dim"], plan["dtype"]) for key, item in part))
        elif (ids := [str(key) for key, _ in part]) != draft.image_ids(number):
            raise ValueError(
                f"{partial}: shard {number} holds other images than {ids[0]}, ...; remove it to start again"
            )


def _each_once(
    pairs: Iterable[tuple[object, Regions | Callable[[], Regions]]], seen: set[str]
) -> Iterator[tuple[object, Regions | Callable[[], Regions]]]:
    for key, item in pairs:
        if str(key) in seen:
            raise ValueError(f"image {key} twice; expected each image once")
        seen.add(str(key))
        yield key, item


def _made(item: Regions | Callable[[], Regions]) -> Regions:
    return item() if callable(item) else item
