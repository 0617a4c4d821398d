"""A table that is larger than the disk: read from beginning to end, some rows at a time, and never held whole.

Each part is a small [`Table`], which the reader of the task checks and turns into rows as it does with whole tables. What is kept
of all rows is what a run has to know before it starts: how many there are, and their answers or labels. Images are read with the
rows that are trained on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from datasets import (
    Dataset,
    DatasetInfo,
    Features,
    IterableDataset,
    concatenate_datasets,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets import Image as ImageColumn
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from tqdm.auto import tqdm

from .table_images import TableImages
from .table_rows import NoRowsLeftError
from .tables import Table, check_file, choose_split, is_saved, naming_dataset, naming_file, undecoded

_ROWS = 64  # of a part, which is in memory with its images
_BUFFER = 1 << 20  # bytes of each column that are read at a time

OpenParts = Callable[[Sequence[str] | None], Iterable[pa.Table]]
ReadTable = Callable[..., Dataset]


@dataclass(frozen=True)
class TableStream:
    """The rows of one split.

    Args:
        name: What it is called in messages.
        folder: Where relative paths of images start.
        features: Columns; empty if they are known only when rows are read.
        open_parts: Columns (None: all) -> the rows, some at a time.
        limit: Only so many rows, if given.
    """

    name: str
    folder: Path
    features: Features
    open_parts: OpenParts
    limit: int | None = None

    def tables(self, with_images: bool = True) -> Iterator[Table]:
        """The parts, one after another.

        Args:
            with_images: False leaves out the columns of images inside the table, which most of the time of reading is spent on.
        """
        unread = frozenset() if with_images else frozenset(filter(self._is_image, self.features))
        columns = [name for name in self.features if name not in unread] if unread else None
        first_row = 0
        for part in self.open_parts(columns):
            if self.limit is not None:
                part = part.slice(0, self.limit - first_row)
            if len(part):
                rows = undecoded(_as_dataset(part, self.features))
                yield Table(self.name, rows, self.folder, first_row=first_row, unread=unread)
            first_row += len(part)
            if first_row == self.limit:
                break
        if not first_row:
            raise ValueError(f"{self.name}: no rows; expected at least one")

    def whole(self) -> Table:
        """All rows as an ordinary table in a file that is removed when it is not used any more."""
        return Table(self.name, _in_file(table.rows for table in self.tables()), self.folder)

    def _is_image(self, name: str) -> bool:
        feature = self.features[name]
        if isinstance(feature, ImageColumn):
            return True
        return getattr(feature, "dtype", None) in ("binary", "large_binary") or (
            isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
        )


def stream_file(path: str, images_dir: str | None = None) -> TableStream:
    """The rows of a file; arguments and errors as of [`open_files`]."""
    file = Path(path)
    kind, options = check_file(file)
    folder = Path(images_dir or file.parent)
    if kind != "parquet":
        with naming_file(file, kind):
            stream = load_dataset(kind, data_files=path, split="train", streaming=True, **options)
        return TableStream(path, folder, Features(), lambda columns: _named(stream, file, kind))
    with naming_file(file, kind), _open_parquet(file) as parquet:
        features = Features.from_arrow_schema(parquet.schema_arrow)

    def open_parts(columns: Sequence[str] | None) -> Iterator[pa.Table]:
        with naming_file(file, kind), _open_parquet(file) as parquet:
            for batch in parquet.iter_batches(_ROWS, columns=columns):
                yield pa.Table.from_batches([batch])

    return TableStream(path, folder, features, open_parts)


def stream_dataset(
    name: str, config: str | None, role: str, split: str | None, images_dir: str | None = None
) -> TableStream | None:
    """The rows of a split of a data set, None if no split is named and found; arguments and errors as of [`open_dataset`]."""
    folder = Path(images_dir or (name if Path(name).is_dir() else "."))
    if is_saved(name):
        saved = load_from_disk(name)
        data = saved if isinstance(saved, dict) else {"train": saved}
        if (split := choose_split(name, data, role, split)) is None:
            return None
        rows = data[split].with_format("arrow")
        return TableStream(f"{name}: {split}", folder, rows.features, lambda columns: rows.iter(_ROWS))
    with naming_dataset(name):
        builder = load_dataset_builder(name, config)
        streams = builder.as_streaming_dataset()
        if (split := choose_split(name, streams, role, split)) is None:
            return None
        features = streams[split].features or Features()

    def open_parts(columns: Sequence[str] | None) -> Iterator[pa.Table]:
        with naming_dataset(name):
            builder = load_dataset_builder(name, config)
            if isinstance(builder.config, ParquetConfig):
                builder.config.columns = None if columns is None else list(columns)
                builder.config.batch_size = _ROWS
                builder.config.fragment_scan_options = pyarrow.dataset.ParquetFragmentScanOptions(
                    use_buffered_stream=True, buffer_size=_BUFFER, pre_buffer=False
                )
            yield from _parts(builder.as_streaming_dataset(split))

    return TableStream(f"{name}: {split}", folder, features, open_parts)


def _open_parquet(path: Path) -> pa.parquet.ParquetFile:
    # Otherwise a group of rows is read whole, and some writers make one group of a file.
    return pa.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER)


def _named(stream: IterableDataset, file: Path, kind: str) -> Iterator[pa.Table]:
    with naming_file(file, kind):
        yield from _parts(stream)


def _parts(stream: IterableDataset) -> Iterator[pa.Table]:
    yield from stream.with_format("arrow").iter(_ROWS)


def _as_dataset(part: pa.Table, features: Features) -> Dataset:
    known = {name: features[name] for name in part.column_names if name in features}
    if len(known) < part.num_columns:
        return Dataset(part)
    return Dataset(part.replace_schema_metadata(None), info=DatasetInfo(features=Features(known)))


def _in_file(parts: Iterable[Dataset]) -> Dataset:
    """The rows in one file, which has no name any more: it is gone when nobody reads it."""
    tables = (part.data.table for part in parts)
    first = next(tables)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps files that are read
        path = os.path.join(folder, "rows.arrow")
        with pa.ipc.new_stream(path, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table.cast(first.schema))
        return Dataset.from_file(path)


# ------------------------------------------------------------------------------------------------------------------ rows


class UnreadImages(TableImages):
    """Takes the place of the images while only texts are looked at."""

    def add(self, table: Table, column: str, skipped: list[str] | None = None) -> list[list[str] | None]:
        """As of [`TableImages`]; images that were not read are taken to be there, one in each row."""
        return [[column]] * len(table.rows) if column in table.unread else super().add(table, column, skipped)


class StreamedRows:
    """The training rows of a stream, in an order that depends on the seed only.

    The values of some columns are known for all rows, as of a `Dataset`: `rows["label"]`.

    Args:
        stream: The table.
        read: What makes rows of its parts.
        image_key: Column of the rows with the key of an image, or of several; in a streamed row the files or bytes are there.
        known_columns: Columns that are read beforehand.
        buffer_size: Rows that are shuffled at a time.
        seed: Decides the order.
        skipped: If given, bad rows are left out and their errors are added to this list instead of being raised.
    """

    def __init__(
        self,
        stream: TableStream,
        read: ReadTable,
        image_key: str,
        known_columns: Sequence[str],
        buffer_size: int,
        seed: int,
        skipped: list[str] | None = None,
    ):
        self.stream, self.read, self.image_key = stream, read, image_key
        self.buffer_size, self.seed, self.skipped = buffer_size, seed, skipped
        parts = []
        with tqdm(desc=f"reading {stream.name}", unit="row", unit_scale=True) as bar:
            for table in stream.tables(with_images=False):
                with suppress(NoRowsLeftError):
                    rows = read(table, UnreadImages(), needs_labels=True, skipped=skipped)
                    parts.append(rows.select_columns([name for name in known_columns if name in rows.column_names]))
                bar.update(len(table.rows))
        if not parts:
            raise NoRowsLeftError(
                f"{stream.name}: no row is left; the first was left out because of: {(skipped or [''])[0]}"
            )
        self.known = concatenate_datasets(parts)
        # Of rows that were left out while they were streamed; those of their texts are in `skipped`.
        self.errors: list[str] = []

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, column: str) -> Any:
        return self.known[column]

    @property
    def column_names(self) -> list[str]:
        """Columns that are known for all rows."""
        return self.known.column_names

    def read_from(self, place: int) -> Iterator[dict[str, Any]]:
        """Rows of one epoch after another, without end, from a place on (counted through all epochs).

        To get there, the rows before it in its epoch are read again; with rows that are left out all of them, as their number is
        known only then.
        """
        epoch, before = (0, place) if self.skipped is not None else divmod(place, len(self))
        yield from islice(chain.from_iterable(map(self._epoch, count(epoch))), before, None)

    def _epoch(self, number: int) -> Iterator[dict[str, Any]]:
        """All rows, mixed with those that come soon after them."""
        random, waiting = Random(self.seed * 1_000_003 + number), list[dict[str, Any]]()
        for row in self._rows():
            waiting.append(row)
            if len(waiting) > self.buffer_size:
                place = random.randrange(len(waiting))
                waiting[place], waiting[-1] = waiting[-1], waiting[place]
                yield waiting.pop()
        random.shuffle(waiting)
        yield from waiting

    def _rows(self) -> Iterator[dict[str, Any]]:
        known = set(self.skipped or ())
        for table in self.stream.tables():
            images, skipped = TableImages(), None if self.skipped is None else list[str]()
            with suppress(NoRowsLeftError):
                rows = self.read(table, images, needs_labels=True, skipped=skipped)
                self.errors += [error for error in skipped or () if error not in known]
                for row in rows:
                    keys = row[self.image_key]
                    row[self.image_key] = [images[key] for key in keys] if isinstance(keys, list) else images[keys]
                    yield row


__all__ = ["StreamedRows", "TableStream", "stream_dataset", "stream_file"]
