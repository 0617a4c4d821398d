"""Anyone's own table: a Hub data set, a folder, or CSV, JSON and parquet files with a row for each example.

Reading is the work of `datasets`; here are the rules around it: which file is which split, what a column is called, where the
images of a row are, and errors that name the file, the row and the column.

Where the images of a row are is in `table_images.py`, what the columns of a task mean in `vqa_table.py` and its like.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets import Image as ImageColumn
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..disk import full_disk
from .layouts import recognise

KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# What a split may be called where no name is given, the first one that there is.
SPLIT_NAMES = {"train": ("train", "training"), "dev": ("validation", "val", "dev", "valid"), "test": ("test",)}
FILE_FLAGS = {"train": "train_file", "dev": "validation_file", "test": "test_file"}
_SEPARATORS = (",", ";", "\t")
_NULL_ROW = re.compile(
    rb"(?m)^[ \t]*null[ \t\r]*$|[\[,]\s*null\s*[,\]]"
)  # there may be one: it may also be inside of a list


@dataclass(frozen=True)
class Table:
    """The rows of one split.

    Args:
        name: What it is called in messages: the file, or the data set and its split.
        rows: The rows; images are not decoded.
        folder: Where relative paths of images start.
        hint: What may be wrong if a column is missing.
        first_row: Number of the first row, if this is a part of a table.
        unread: Columns that are there, but were not read.
    """

    name: str
    rows: Dataset
    folder: Path
    hint: str = ""
    first_row: int = 0
    unread: frozenset[str] = frozenset()

    def column(self, flag: str, *names: str) -> str:
        """The first of these names that is a column.

        Args:
            flag: The argument that names the column, for the message.
            names: Names to look for.

        Raises:
            ValueError: There is none; the message lists the columns that there are.
        """
        there = [*self.rows.column_names, *self.unread]
        for name in names:
            if name in there:
                return name
        near = _nearest(names[0], there)
        known = ", ".join(f"{name!r:.60}" for name in there)
        raise ValueError(
            f"{self.name}: no column {' or '.join(map(repr, names))}; there are {known:.600}{self.hint}: "
            f"pass --{flag}{f' {near:.60}' if near else ''}"
        )

    def first(self, count: int) -> Table:
        """The first rows."""
        return replace(self, rows=self.rows.select(range(count)))

    def place(self, row: int) -> str:
        """What a row is called in messages; rows are counted from 0, as `datasets` does."""
        return f"{self.name}: row {self.first_row + row}"


def _nearest(name: str, there: Sequence[str]) -> str | None:
    """The column that is called most like it, or has a part that is: `picture_img` for `image`."""
    parts = {part: column for column in reversed(there) for part in column.lower().split("_")}
    named = {**parts, **{column.lower(): column for column in reversed(there)}}
    near = difflib.get_close_matches(name.lower(), named, n=1, cutoff=0.5)
    return named[near[0]] if near else None


# --------------------------------------------------------------------------------------------------------------- reading


def open_files(files: Mapping[str, str], images_dir: str | None = None) -> dict[str, Table]:
    """Tables from files, by the same names.

    Args:
        files: Paths of `.csv`, `.tsv`, `.json`, `.jsonl` or `.parquet` files.
        images_dir: Where relative paths of images start; the folder of each file by default.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is of another kind, damaged, or has no rows.
    """
    return {name: _open_file(Path(path), images_dir) for name, path in files.items()}


def open_dataset(
    name: str, config: str | None, splits: Mapping[str, str | None], images_dir: str | None = None
) -> dict[str, Table]:
    """Splits of a data set, by their role; a role for which no split is named and found is left out.

    Args:
        name: Hub name, a folder that `load_dataset` reads, or a folder that `save_to_disk` wrote.
        config: Which of the configurations of a Hub data set.
        splits: Name of the split for each role (`train`, `dev`, `test`); None takes the first of `SPLIT_NAMES` that there is.
        images_dir: Where relative paths of images start; the folder of the data set by default.

    Raises:
        FileNotFoundError, ConnectionError: There is no such data set, or it cannot be reached.
        ValueError: There is no such split or configuration; the message lists those that there are.
    """
    data = _load_dataset(name, config)
    folder = Path(images_dir or (name if Path(name).is_dir() else "."))
    tables: dict[str, Table] = {}
    for role, split in splits.items():
        if (split := choose_split(name, data, role, split)) is not None:
            tables[role] = _with_rows(Table(f"{name}: {split}", undecoded(data[split]), folder))
    return tables


def choose_split(name: str, data: Iterable[str], role: str, split: str | None) -> str | None:
    """The split of a data set for a role: the one that is named, or the first of `SPLIT_NAMES`; None if there is none of these.

    Raises:
        ValueError: The one that is named is not there; the message lists those that are.
    """
    there = list(data)
    if split is not None and split not in there:
        raise ValueError(f"{name}: no split {split!r}; there are {', '.join(map(repr, there))}")
    return split or next((known for known in SPLIT_NAMES[role] if known in there), None)


def _open_file(path: Path, images_dir: str | None) -> Table:
    kind, options = check_file(path)
    with naming_file(path, kind):
        rows = load_dataset(kind, data_files=str(path), split="train", **options)
        rows.data.validate(full=True)  # readers of JSON and Parquet take any bytes for text
    hint = ""
    if len(rows.column_names) == 1 and kind == "json":
        hint = " (expected a list of records, or a record on each line)"
    return _with_rows(Table(str(path), undecoded(rows), Path(images_dir or path.parent), hint))


def check_file(path: Path) -> tuple[str, dict[str, Any]]:
    """The builder of `datasets` that reads a file, and its options.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is a folder, of another kind, of a data set that is no table, or a damaged CSV file.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected a file, {', '.join(KINDS)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"{path}: a {path.suffix or 'nameless'} file; expected {', '.join(KINDS)}")
    kind = KINDS[path.suffix.lower()]
    if (layout := recognise(path)) is not None:
        raise ValueError(f"{path}: {layout.advice(path)}")
    if kind == "json":
        _check_json(path)
    return kind, _check_csv(path) if kind == "csv" else {}


@contextmanager
def naming_file(path: Path, kind: str) -> Iterator[None]:
    """A file is read inside the block: what is wrong with it is one line that names it."""
    try:
        yield
    except (DatasetGenerationError, pa.ArrowInvalid, UnicodeError) as error:
        raise ValueError(f"{path}: cannot be read as {kind} ({_cause(error)})") from error
    except ValueError as error:
        raise ValueError(f"{path}: no rows in it; expected at least one ({error})") from error
    # Readers fail in ways of their own when a file is damaged: StopIteration, BadZipFile, OSError.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None or full_disk(error):
            raise
        raise ValueError(f"{path}: cannot be read as {kind} ({_cause(error)})") from error


def _check_json(path: Path) -> None:
    """Refuse rows that are null: Arrow's reader ends the process on some of them."""
    with path.open("rb") as file:
        if not path.stat().st_size or _NULL_ROW.search(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) is None:
            return
        is_list = file.read(100).lstrip(codecs.BOM_UTF8 + b" \t\r\n").startswith(b"[")
        file.seek(0)
        try:
            rows = json.load(file) if is_list else (None if line.strip() == b"null" else line for line in file)
            for number, row in enumerate(rows):
                if row is None:
                    raise ValueError(f"{path}: row {number} is null; expected a record")
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return  # which its reader tells


def _check_csv(path: Path) -> dict[str, Any]:
    """How to read a CSV file: its separator, and every column as the text that it is.

    `datasets` would make numbers of `007`, nothing of `None` and `NA`, and an index of a field that is too many.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            marks = ("\t",) if path.suffix.lower() == ".tsv" else _SEPARATORS
            separator = next((mark for mark in marks if mark in first), marks[0])
            file.seek(0)
            reader = csv.reader(file, delimiter=separator)
            header = next(reader, [])
            for number, fields in enumerate(line for line in reader if line):
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}: row {number} (line {reader.line_num}) has {len(fields)} fields; expected {len(header)}, as "
                        "the first line has: quote text that holds the separator"
                    )
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text ({error.reason} near byte {error.start}); expected UTF-8: save it so, or convert it with "
            "iconv -f latin1 -t utf-8"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{path}: cannot be read as csv ({error})") from error
    if not header:
        raise ValueError(f"{path}: no rows in it; expected at least one, below a line with the names of the columns")
    if twice := [name for number, name in enumerate(header) if name in header[:number]]:
        raise ValueError(f"{path}: column {twice[0]!r} occurs twice; expected different names in the first line")
    features = Features({name: Value("string") for name in header})
    return {"sep": separator, "features": features, "keep_default_na": False, "encoding": "utf-8-sig"}


def is_saved(name: str) -> bool:
    """Whether it is a folder that `save_to_disk` wrote."""
    return any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _load_dataset(name: str, config: str | None) -> Mapping[str, Dataset]:
    if is_saved(name):
        saved = load_from_disk(name)
        return saved if isinstance(saved, DatasetDict) else {"train": saved}
    with naming_dataset(name):
        return load_dataset(name, config)


@contextmanager
def naming_dataset(name: str) -> Iterator[None]:
    """A data set is read inside the block: what is wrong with it is one line that names it."""
    if not Path(name).exists() and name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"--dataset_name {name}: no such folder")
    try:
        yield
    except DatasetGenerationError as error:
        raise ValueError(f"--dataset_name {name}: cannot be read ({_cause(error)})") from error
    except DatasetNotFoundError as error:
        raise FileNotFoundError(f"--dataset_name {name}: no such data set, neither a folder nor on the Hub") from error
    except (ValueError, OSError, RuntimeError) as error:
        # Some of their classes cannot be made from a message.
        kind = next(
            (kind for kind in (FileNotFoundError, ConnectionError, OSError) if isinstance(error, kind)), ValueError
        )
        raise kind(f"--dataset_name {name}: {' '.join(str(error).split())}") from error


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def undecoded(rows: Dataset) -> Dataset:
    """Images stay files: a bad one stops only itself."""
    for name, feature in rows.features.items():
        if isinstance(feature, ImageColumn):
            rows = rows.cast_column(name, ImageColumn(decode=False))
        elif isinstance(getattr(feature, "feature", None), ImageColumn):
            rows = rows.cast_column(name, type(feature)(ImageColumn(decode=False)))
    return rows


def _with_rows(table: Table) -> Table:
    if not len(table.rows):
        raise ValueError(f"{table.name}: no rows; expected at least one")
    return table


__all__ = ["FILE_FLAGS", "KINDS", "SPLIT_NAMES", "Table", "open_dataset", "open_files"]
