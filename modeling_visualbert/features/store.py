"""A folder of region features: memory-mapped, looked up by image id, any number of regions per image. Format: `format.py`."""

from __future__ import annotations

import bisect
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset, concatenate_datasets

from ..data.files import check_new, read_json, require, require_path
from ..disk import sha256_of, write_json
from ..hub_code.regions_visualbert import UNKNOWN_DETECTOR, spatial_hint
from ..published import published_detector_name
from .batches import StoredRegions
from .draft import Failure, StoreDraft, check_plan, make_plan, saying_how_to_go_on
from .format import (
    ARRAYS,
    FEATURES,
    FORMAT,
    IDS_SCHEMA,
    SCHEMA,
    Row,
    array_columns,
    encode_row,
    read_table,
    repeated_id,
    shape_arrays,
    to_tensors,
)
from .image_files import ImageFile, find_changes, read_image_files

logger = logging.getLogger(__name__)

Regions = Mapping[str, Any]
Pair = tuple[object, Regions | Callable[[], Regions]]  # image id, and its regions or what returns them
Pairs = Iterable[Pair]


class FeatureStore:
    """Random access to the regions of images: `store[image_id]` is a mapping as in `regions_visualbert`.

    Opening reads only the index; a shard is mapped when one of its images is first requested. Whatever can be checked
    without reading the features is checked: the sizes of all files, and that the index is consistent with them.
    [`FeatureStore.verify`] reads everything.

    Args:
        folder: The store.
        expect_dim: Feature length that the model takes.
        expect_detector: Fingerprint of the model's region encoder. A store whose detector is unknown (features published
            by others) is always accepted.

    Raises:
        FileNotFoundError: The folder holds no complete store.
        ValueError: It has another format, is damaged, or has another dim or detector than expected.
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
        self._shards = [_Shard(self.folder, record, where) for record in require(self.info, "shards", where, list)]
        self._ids = _Ids(self.folder, require(self.info, "ids", where), where)
        self._ids.check_places(self._shards)
        if len(self) != require(self.info, "num_images", where, int):
            raise ValueError(f"{where}: {self.info['num_images']} images, but {self._ids.path.name} has {len(self)}")
        self._image_files = _File(self.folder, self.info["images"], where) if "images" in self.info else None
        for key in ("classes", "attributes"):
            if require(self.info, key, where) is not None:  # names by id, if the detector has any
                require(self.info, key, where, list)

    def check(self, dim: int | None = None, detector: str | None = None) -> None:
        """
        Raises:
            ValueError: The features have another dim, or are known to come from another detector; names both.
        """
        name, fingerprint = self.detector.get("name"), self.detector.get("fingerprint")
        if dim is not None and dim != self.dim:
            hint = spatial_hint(self.dim, dim)
            raise ValueError(
                f"{self.folder}: features of dim {self.dim}, this model expects {dim} (detector: {name}){hint}"
            )
        if detector is not None and fingerprint not in (None, detector):
            raise ValueError(
                f"{self.folder}: regions of detector {name} {fingerprint}, this model has the region encoder {detector}; "
                "pass the --region_encoder that made them, or extract them again"
            )

    def __len__(self) -> int:
        return len(self._ids.ids)

    def __contains__(self, image_id: object) -> bool:
        return self._ids.place(str(image_id)) is not None

    def __iter__(self) -> Iterator[str]:
        """The image ids, sorted as text."""
        return (image_id.as_py() for image_id in self._ids.ids)

    def __getitem__(self, image_id: object) -> dict[str, torch.Tensor]:
        """Regions as new tensors: features float32, boxes in pixels; keys whose values are unknown are left out."""
        shard, row = self._place(image_id)
        return to_tensors(self._arrays(shard, row, image_id), shard.image_size(row))

    def arrays(self, image_id: object) -> StoredRegions:
        """Regions as read-only views of the file, features in the store's dtype; nothing is copied."""
        arrays = StoredRegions(self._arrays(*self._place(image_id), image_id))
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        return FeatureStore, (self.folder,)  # a worker process maps the files itself

    def _place(self, image_id: object) -> tuple[_Shard, int]:
        place = self._ids.place(str(image_id))
        if place is None:
            raise KeyError(f"{self.folder}: no regions of image {image_id}")
        return self._shards[place[0]], place[1]

    def _arrays(self, shard: _Shard, row: int, image_id: object) -> dict[str, np.ndarray]:
        num_regions = int(shard.numbers["num_regions"][row])
        return shape_arrays(shard.row(row), num_regions, self._columns, f"{self.folder}: image {image_id}")

    @cached_property
    def image_files(self) -> dict[str, ImageFile] | None:
        """What is known of the image files that the regions were found in, by image id; None if nothing is."""
        return None if self._image_files is None else read_image_files(self._image_files.path)

    def check_images(self, paths: Mapping[Any, Path]) -> None:
        """Notice images that were replaced after their regions were found; a warning is logged if that is only likely.

        Args:
            paths: Image files by image id. Nothing is said of those that the store does not know.

        Raises:
            ValueError: An image has another size or checksum than recorded; the message names it.
        """
        changed, touched = find_changes(self.image_files or {}, paths)
        if changed:
            key, how = next(iter(changed.items()))
            raise ValueError(
                f"{self.folder}: {len(changed)} of {len(paths)} images changed after their regions were found (image {key}: "
                f"{how}); run `visualbert extract` again, which finds theirs anew, or give the images that the store was made of"
            )
        if touched:
            key, path = next(iter(touched.items()))
            logger.warning(
                f"{self.folder}: {len(touched)} of {len(paths)} images have another date than when their regions were found "
                f"(image {key}: {path}); if they are no copies, run `visualbert extract` again (its --hash_images tells copies "
                "from changes)"
            )

    def to_dataset(self) -> Dataset:
        """All rows as a memory-mapped `datasets.Dataset`, in the order in which they were written.

        [`decode_row`] turns a row into regions. The same rows can be streamed from the Hub:
        `load_dataset("user/store", split="train", streaming=True)`.
        """
        if not self._shards:
            return Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
        return concatenate_datasets([Dataset.from_file(str(shard.path)) for shard in self._shards])

    def verify(self) -> None:
        """Read every byte and check the checksums, and that each image is where the index says, with arrays of the right length.

        Raises:
            ValueError: Something is damaged; names the file or the image.
        """
        for file in (self._ids, *self._shards, *([self._image_files] if self._image_files else [])):
            if (found := sha256_of(file.path)) != file.sha256:
                raise ValueError(f"{file.path}: checksum {found[:16]}..., but the index says {file.sha256[:16]}...")
        for image_id, number, row in zip(self, self._ids.shards.tolist(), self._ids.rows.tolist(), strict=True):
            shard = self._shards[number]
            if (found := shard.table["image_id"][row].as_py()) != image_id:
                raise ValueError(f"{shard.path}: row {row} is image {found}, not {image_id}")
            self._arrays(shard, row, image_id)


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / "index.json").is_file():
        draft = partial_folder(folder)
        hint = f"; {draft} holds an unfinished one: run the command that makes it again" if draft.is_dir() else ""
        raise FileNotFoundError(f"{folder}: no feature store (index.json is missing){hint}")
    where = str(folder / "index.json")
    info = read_json(where)
    if require(info, "format", where) != FORMAT:
        raise ValueError(
            f"{where}: format {info['format']!r:.80}; this version reads {FORMAT}: extract the regions again"
        )
    return info


def partial_folder(folder: str | Path) -> Path:
    """Where a store is kept while it is being written."""
    folder = Path(folder).absolute()  # "." has no name
    return folder.with_name(f"{folder.name}.partial")


class _File:
    """A file listed in the index; its size has been checked."""

    def __init__(self, folder: Path, record: Any, where: str):
        self.path = folder / require_path(record, "file", where)
        self.sha256 = require(record, "sha256", where, str)
        size = require(record, "bytes", where, int)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: missing, but the index names it")
        if (found := self.path.stat().st_size) != size:
            raise ValueError(f"{self.path}: damaged, {found} bytes but the index says {size} (truncated?)")


class _Shard(_File):
    """The rows of a shard, which is mapped on first use.

    Arrow creates several objects for every value it returns, so arrays are found by their offsets in the mapped memory.
    """

    def __init__(self, folder: Path, record: Any, where: str):
        super().__init__(folder, record, where)
        self.num_rows = require(record, "rows", where, int)

    @cached_property
    def table(self) -> pa.Table:
        table = read_table(self.path, SCHEMA)
        if table.num_rows != self.num_rows:
            raise ValueError(f"{self.path}: {table.num_rows} rows, but the index says {self.num_rows}")
        return table

    @cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """`height`, `width` and `num_regions` of each row; -1 where unknown."""
        return {name: self.table[name].fill_null(-1).to_numpy() for name in ("height", "width", "num_regions")}

    @cached_property
    def _batches(self) -> tuple[list[int], list[dict[str, Any]]]:
        batches = [batch for batch in self.table.to_batches() if batch.num_rows]
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        return starts, [_array_buffers(batch) for batch in batches]

    def row(self, row: int) -> dict[str, np.ndarray]:
        """The bytes of each array column that is not null."""
        starts, batches = self._batches
        number = bisect.bisect_right(starts, row) - 1
        row -= starts[number]
        return {
            name: data[offsets[row] : offsets[row + 1]]
            for name, (offsets, data, is_null) in batches[number].items()
            if is_null is None or not is_null[row]
        }

    def image_size(self, row: int) -> tuple[int, int] | None:
        """Height and width, where they are known."""
        height, width = int(self.numbers["height"][row]), int(self.numbers["width"][row])
        return None if height < 0 else (height, width)


def _array_buffers(batch: pa.RecordBatch) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Offsets, bytes, and which rows are null (None: none), of each array column that is not entirely null."""
    buffers = {}
    for name in ARRAYS:
        column = batch.column(name)
        if column.null_count < len(column):
            _, offsets, data = column.buffers()
            is_null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
            data = np.frombuffer(data or b"", np.uint8)
            buffers[name] = (np.frombuffer(offsets, np.int64, len(column) + 1), data, is_null)
    return buffers


class _Ids(_File):
    """The sorted image ids with their places. They are searched as one NumPy array, without a Python object per image."""

    def __init__(self, folder: Path, record: Any, where: str):
        super().__init__(folder, record, where)
        columns = [column.combine_chunks() for column in read_table(self.path, IDS_SCHEMA).columns]
        ids, shards, rows = columns
        in_order = len(ids) < 2 or pc.all(pc.less(ids[:-1], ids[1:])).as_py()
        if not in_order or any(column.null_count for column in columns):
            twice = repeated_id(ids)
            problem = "the image ids are not sorted" if twice is None else f"image {twice} twice"
            raise ValueError(f"{self.path}: {problem}; expected each image once, sorted")
        self.ids, self.shards, self.rows = ids, shards.to_numpy(), rows.to_numpy()
        width = max(1, pc.max(pc.binary_length(ids)).as_py() or 0)
        # Pads to a number of bytes, whatever the script. Arrow's own pool would keep the memory that is only needed meanwhile.
        padded = pc.ascii_rpad(ids, width=width, padding="\0", memory_pool=pa.system_memory_pool())
        self._sorted = np.frombuffer(padded.buffers()[2] or b"", f"S{width}", len(ids))

    def place(self, image_id: str) -> tuple[int, int] | None:
        """Shard and row of an image, or None."""
        wanted = image_id.encode("utf-8", "surrogatepass")
        if len(wanted) > self._sorted.itemsize or b"\0" in wanted:  # NumPy would convert the array, or drop the NUL
            return None
        at = self._sorted.searchsorted(wanted)
        if at == len(self._sorted) or self._sorted[at] != wanted:
            return None
        return int(self.shards[at]), int(self.rows[at])

    def check_places(self, shards: Sequence[_Shard]) -> None:
        """
        Raises:
            ValueError: According to the index, an image is in a shard or row that does not exist.
        """
        exists = (self.shards >= 0) & (self.shards < len(shards))
        num_rows = np.array([*(shard.num_rows for shard in shards), 0])[np.where(exists, self.shards, -1)]
        inside = (self.rows >= 0) & (self.rows < num_rows)
        if not inside.all():
            at = int(inside.argmin())
            number = int(self.shards[at])
            place = f"{shards[number].path.name}, which has {num_rows[at]} rows" if exists[at] else f"shard {number}"
            raise ValueError(
                f"{self.path}: image {self.ids[at]} is said to be row {self.rows[at]} of {place}; the index is damaged"
            )


def name_detector(folder: str | Path, name: str) -> None:
    """Say which detector the features of a store are of, where that is not known.

    Args:
        folder: The store.
        name: As for [`convert_features`].

    Raises:
        ValueError: The store has the name or fingerprint of a detector.
    """
    index = Path(folder) / "index.json"
    info = _read_index(Path(folder))
    detector = require(info, "detector", str(index), dict)
    if detector.get("fingerprint") or detector.get("name") != UNKNOWN_DETECTOR:
        raise ValueError(f"{index}: the detector is {detector.get('name')!r} already; expected one that is unknown")
    info["detector"] = {**detector, "name": published_detector_name(name)}
    write_json(index, info)


def write_store(
    folder: str | Path,
    regions: Pairs,
    dim: int,
    detector: str | Mapping[str, Any],
    dtype: str = "float32",
    images_per_shard: int = 1000,
    names: Mapping[str, Sequence[str] | None] | None = None,
    source: Mapping[str, Any] | None = None,
    resume: bool = False,
    skip_bad_records: bool = False,
) -> None:
    """Write a store from a stream of regions; the folder appears only once it is complete.

    Args:
        folder: The store to write; must not exist.
        regions: (image id, regions in pixels) pairs, with ids being numbers or names and regions as [`split_regions`]
            returns them; or, instead of regions, a function that returns them, which is not called for images that an
            interrupted run has already written.
        dim: Feature length.
        detector: What found the regions, for the index: a name, or a mapping with `name` and `fingerprint`, and with
            `spatial_features` (true) if the features end with the spatial numbers.
        dtype: `"float32"` or `"float16"`.
        images_per_shard: Images per file.
        names: Names of the `classes` and of the `attributes`, in the order of their ids.
        source: What the regions were made from, for the index; a resumed run must have the same.
        resume: When interrupted, keep the complete shards in `<folder>.partial`; the next call resumes from them.
        skip_bad_records: Leave out images whose regions cannot be had or stored, and list them in the store's `failed.jsonl`.

    Raises:
        FileExistsError: `folder` exists.
        ValueError: An image id occurs twice, a feature has another length, or the interrupted run had other images.
        OSError: The disk is full.
        KeyboardInterrupt: Ctrl-C; with `resume`, the message says how to go on.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another folder")
    array_columns(dim, dtype)
    plan = make_plan(dim, dtype, detector, images_per_shard, names, source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if resume:
        with saying_how_to_go_on(partial_folder(folder)):
            _write_shards(partial_folder(folder), folder, plan, regions, skip_bad_records)
        return
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as draft:
        _write_shards(Path(draft) / "store", folder, plan, regions, skip_bad_records)


def _write_shards(partial: Path, folder: Path, plan: Mapping[str, Any], regions: Pairs, skip: bool) -> None:
    if (partial / "index.json").is_file():  # interrupted after the last shard
        check_plan(partial, read_json(partial / "index.json"), plan)
        StoreDraft(partial, folder).finish(0)
        return
    draft = StoreDraft.begin(partial, folder, plan)
    seen: set[str] = set()
    pairs = iter(regions) if skip else _each_once(regions, seen)
    for number in count():
        first = next(pairs, None)
        if first is None:
            draft.finish(number)
            return
        part = enumerate(chain([first], islice(pairs, plan["images_per_shard"] - 1)), number * plan["images_per_shard"])
        written = draft.part(number)
        if written is None:
            failed: list[Failure] = []  # filled while the rows are made
            rows = _encoded_or_failed(part, plan, seen, failed) if skip else _encoded(part, plan)
            draft.write_shard(number, rows, failed)
            continue
        left_out = {failure["position"] for failure in written["failed"]}
        if left_out and not skip:
            raise ValueError(
                f"{partial}: bad records were left out of shard {number}; leave them out again, or remove it"
            )
        ids = [str(key) for position, (key, _) in part if position not in left_out]
        if ids != draft.image_ids(number):
            raise ValueError(
                f"{partial}: shard {number} holds other images than {', '.join(ids[:1])}, ...; remove it to start again"
            )
        seen.update(ids)


def _encoded(part: Iterable[tuple[int, Pair]], plan: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a shard."""
    for _, (key, item) in part:
        yield encode_row(key, item() if callable(item) else item, plan["dim"], plan["dtype"])


def _encoded_or_failed(
    part: Iterable[tuple[int, Pair]], plan: Mapping[str, Any], seen: set[str], failed: list[Failure]
) -> Iterator[Row]:
    """The rows of a shard. Images that cannot be had or stored, or that were stored before, are added to `failed`."""
    for position, pair in part:
        try:
            (row,) = _encoded([(position, pair)], plan)
            check_new(row["image_id"], seen, "image", "the source")
        except ValueError as error:
            name = str(pair[0])
            failed.append({"position": position, "image_id": name, "name": name, "reason": str(error)})
        else:
            yield row


def _each_once(pairs: Pairs, seen: set[str]) -> Iterator[Pair]:
    for key, item in pairs:
        if str(key) in seen:
            raise ValueError(f"image {key} twice; expected each image once")
        seen.add(str(key))
        yield key, item
