"""One's own tables as data of a task: which flags name them, and how they become splits.

--dataset_name my/photos                              splits of a Hub data set, or of a folder
--train_file photos.csv --validation_file dev.csv     or files; without the second, a share of the first is kept for it
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset

from ..data.columns import different_values
from ..data.layouts import advice_about
from ..data.table_images import TableImages
from ..data.table_stream import StreamedRows, TableStream, stream_dataset, stream_file
from ..data.tables import FILE_FLAGS, Table, open_dataset, open_files
from ..training.args import TrainArgs

ImageFile = Path | bytes
# Arguments that name a column; each task has some of them.
COLUMN_FLAGS = (
    *("image_column", "question_column", "answer_column"),
    *("text_column", "label_column", "caption_column"),
    *("choices_column", "objects_column", "boxes_column"),
    *("rationales_column", "rationale_label_column"),
    *("sentence_column", "phrases_column"),
)


@dataclass
class TableArgs(TrainArgs):
    """Arguments that name a table; see `data/tables.py`. Without any of them the official files of `data_dir` are read."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "own data: Hub name or folder of a data set; train_split, dev_split and test_split name its splits"
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "own data: configuration of the data set"})
    train_file: str | None = field(
        default=None, metadata={"help": "own data: csv, tsv, json, jsonl or parquet file with a row for each example"}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "own data: file that decides which weights are kept"}
    )
    test_file: str | None = field(default=None, metadata={"help": "own data: file that is scored at the end"})
    image_column: str | None = field(
        default=None,
        metadata={"help": "own data: column of images, or of their paths, see images_dir (default: image)"},
    )
    train_val_split: float = field(
        default=0.1, metadata={"help": "own data without a validation split: share of the images that is kept for it"}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first rows only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "evaluate the first rows of each split only"})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "own data larger than the disk (not phrase grounding, not pre-training): read the rows while training on "
            "them, mixed only with those that come soon after them; implies --from_pixels"
        },
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "with --streaming: rows, with their images, that are in memory to be shuffled"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_train_samples", "max_eval_samples", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}; expected at least 1")
        files = [name for name in FILE_FLAGS.values() if getattr(self, name) is not None]
        given = [f"--{name}" for name in ("dataset_name", "data_dir") if getattr(self, name, None) is not None]
        given += [f"--{files[0]}"] if files else []
        if len(given) > 1:
            raise ValueError(f"{' with '.join(given)}; expected one of them")
        if not reads_table(self) and (columns := given_columns(self, *COLUMN_FLAGS)):
            raise ValueError(f"--{next(iter(columns))} without a table; expected --train_file or --dataset_name")
        if self.streaming and not reads_table(self):
            raise ValueError("--streaming without a table; expected --train_file or --dataset_name")
        if self.dataset_config_name is not None and self.dataset_name is None:
            raise ValueError("--dataset_config_name without --dataset_name; expected both")


def given_columns(args: TableArgs, *names: str) -> dict[str, Any]:
    """Those of the columns that were named, by the names of their arguments."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


@contextmanager
def mentioning_own_data(folder: str | Path, columns: str) -> Iterator[None]:
    """Looks for official files inside the block; if there are none, the error says how to bring one's own data.

    Args:
        folder: Where they are looked for.
        columns: What a table needs.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {advice_about(folder, columns)}") from error


def reads_table(args: TableArgs) -> bool:
    """Whether the data is a table, and not official files or the embedded corpus."""
    return any(getattr(args, name) is not None for name in ("dataset_name", *FILE_FLAGS.values()))


@dataclass
class TaskData:
    """What a task reads.

    Args:
        splits: Rows by role (train, dev, test); those of a stream are read while they are trained on.
        names: Names of the splits by role, as in the names of files and folders.
        image_key: Column with the key of a row's image, or with the keys of its images.
        find_paths: The folder of the images, and which keys each split needs (`wanted`, by its name) -> image files by key.
        images_dir: Folder of the images.
        skipped: Bad records that were left out.
        boxes: Boxes to look at by image, in pixels, the whole image first; None where regions are found, or official files say
            which.
        is_table: Whether it is one's own table, and not official files.
    """

    splits: dict[str, Any]
    names: Mapping[str, str]
    image_key: str
    find_paths: Callable[..., Mapping[Any, ImageFile]]
    images_dir: Path
    skipped: list[str]
    boxes: Mapping[Any, Sequence[Sequence[float]]] | None = None
    is_table: bool = False

    def keys_of(self, row: Mapping[str, Any]) -> list[Any]:
        """Keys of the images of a row."""
        value = row[self.image_key]
        return value if isinstance(value, list) else [value]

    def keys(self, split: Dataset | StreamedRows) -> list[list[Any]]:
        """Keys of the images of each row; none for streamed rows, which hold their images."""
        if isinstance(split, StreamedRows):
            return []
        values = split[self.image_key][:]
        return values if values and isinstance(values[0], list) else [[value] for value in values]

    def wanted(self) -> dict[str, set[Any]]:
        """Keys of the images of each split, by the name of the split."""
        wanted: dict[str, set[Any]] = {name: set() for name in self.names.values()}
        for role, split in self.splits.items():
            if not isinstance(split, StreamedRows):  # which hold their images
                wanted[self.names[role]].update(different_values(split, self.image_key))
        return wanted

    def all_keys(self) -> list[Any]:
        """Keys of all images, numbers first."""
        return sorted(set().union(*self.wanted().values()), key=lambda key: (isinstance(key, str), key))


class ReadTable(Protocol):
    """Reads one split: its rows as the task wants them; see `data/vqa_table.py`."""

    def __call__(
        self, table: Table, images: TableImages, *, needs_labels: bool, skipped: list[str] | None
    ) -> Dataset: ...


def read_tables(
    args: Any,
    read: ReadTable,
    image_key: str,
    fewest_images: int = 1,
    known_columns: Sequence[str] = (),
    look_through: Callable[[Iterable[Table]], None] | None = None,
) -> TaskData:
    """Read the tables that the arguments name.

    Args:
        args: The run's arguments.
        read: What makes rows of a table.
        image_key: Column of its rows with the key of an image, or with keys of several. Rows about the same image stay together
            when a dev split is cut.
        fewest_images: How many images a dev split that is cut has at least.
        known_columns: What has to be known of all training rows, where they are streamed.
        look_through: Sees all parts of a stream before their rows are read.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: A table is missing or bad, or there is no train split.
    """
    images, folder = TableImages(), Path(args.images_dir or ".")
    skipped: list[str] | None = [] if args.skip_bad_records else None
    trains = args.train_split != ""
    tables = open_tables(args)
    if trains and "train" not in tables:
        raise ValueError(f"{_described(args)}: no split to train on; expected --train_file, or --train_split NAME")
    cuts_dev = trains and args.dev_split != "" and "dev" not in tables
    if cuts_dev and args.streaming:
        raise ValueError(
            f"{_described(args)}: --streaming without a validation split, and none is cut from rows that are not all there; "
            "expected --validation_file, or --dev_split NAME"
        )
    data = TaskData(
        {}, {role: role for role in FILE_FLAGS}, image_key, lambda _, wanted: images, folder, [], is_table=True
    )
    for role, table in tables.items():
        limit = args.max_train_samples if role == "train" else args.max_eval_samples
        if isinstance(table, TableStream):
            stream = replace(table, limit=limit)
            if look_through is not None:
                look_through(stream.tables(with_images=False))
            how = (image_key, known_columns, args.shuffle_buffer, args.seed)
            data.splits[role] = StreamedRows(stream, read, *how, skipped=skipped)
            continue
        if limit is not None and limit < len(table.rows):
            table = table.first(limit)
        data.splits[role] = read(table, images, needs_labels=role != "test", skipped=skipped)
    if cuts_dev:
        train = data.splits["train"]
        cut = (args.train_val_split, args.seed, _described(args), fewest_images)
        train, dev = cut_split(train, data.keys(train), *cut)
        data.splits = {
            "train": train,
            "dev": dev,
            **{role: data.splits[role] for role in data.splits if role == "test"},
        }
    images.keep(data.all_keys())
    data.skipped = skipped or []
    return data


def first_rows(data: TaskData, args: Any) -> TaskData:
    """The data without what follows the first rows, where the arguments ask for these only."""
    splits = {}
    for role, split in data.splits.items():
        limit = args.max_train_samples if role == "train" else args.max_eval_samples
        splits[role] = split if limit is None else split.select(range(min(limit, len(split))))
    return replace(data, splits=splits)


def open_tables(args: Any) -> Mapping[str, Table | TableStream]:
    """The tables of the splits that the arguments name, by role; with `streaming`, that to train on is a stream."""
    named = {role: getattr(args, f"{role}_split") for role in FILE_FLAGS}
    wanted = [role for role, name in named.items() if name != ""]
    if args.dataset_name is None:
        files = {role: path for role in wanted if (path := getattr(args, FILE_FLAGS[role])) is not None}
        if not args.streaming:
            return open_files(files, args.images_dir)
        streamed = {role: stream_file(path, args.images_dir) for role, path in files.items() if role == "train"}
        others = {role: path for role, path in files.items() if role != "train"}
        return {**streamed, **open_files(others, args.images_dir)}
    # The defaults are names of official files.
    defaults = {item.name: item.default for item in fields(args)}
    splits = {role: None if named[role] == defaults[f"{role}_split"] else named[role] for role in wanted}
    if not args.streaming:
        return open_dataset(args.dataset_name, args.dataset_config_name, splits, args.images_dir)
    tables: dict[str, Table | TableStream] = {}
    for role, split in splits.items():
        stream = stream_dataset(args.dataset_name, args.dataset_config_name, role, split, args.images_dir)
        if stream is not None:
            tables[role] = stream if role == "train" else replace(stream, limit=args.max_eval_samples).whole()
    return tables


def cut_split(
    data: Dataset, images: Sequence[Sequence[Hashable]], share: float, seed: int, name: str, fewest_images: int = 1
) -> tuple[Dataset, Dataset]:
    """Cut a share of the images, with all rows about them, from a split.

    Args:
        data: Its rows.
        images: Keys of the images of each row; rows that share one are on the same side.
        share: Share of the images.
        seed: Decides which.
        name: What the data is called in errors.
        fewest_images: How many images are cut and how many stay at least, where rows share images groups of them.

    Returns:
        The rows that stay and those that are cut, each in the order of the data.

    Raises:
        ValueError: There are too few images for two parts.
    """
    groups = _groups(images)
    numbers = sorted(set(groups))
    if len(numbers) < 2 * fewest_images:
        count = (
            f"only {len(numbers)} images"
            if len(numbers) > 1
            else "all rows are about the same image, or share images with others"
        )
        raise ValueError(
            f"{name}: {count}, so none can be kept for validation; expected --validation_file or a validation split"
        )
    random.Random(seed).shuffle(numbers)
    cut = set(numbers[: min(max(fewest_images, round(share * len(numbers))), len(numbers) - fewest_images)])
    stays = [row for row, group in enumerate(groups) if group not in cut]
    return data.select(stays), data.select([row for row, group in enumerate(groups) if group in cut])


def _groups(images: Sequence[Sequence[Hashable]]) -> list[int]:
    """A number for each row, the same for rows that share an image, directly or through others."""
    parent: list[int] = []

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    first_row: dict[Hashable, int] = {}
    for row, keys in enumerate(images):
        parent.append(row)
        for key in keys:
            other = root(first_row.setdefault(key, row))
            parent[root(row)] = other
    return [root(row) for row in range(len(parent))]


def _described(args: Any) -> str:
    files = (getattr(args, name) for name in FILE_FLAGS.values())
    return str(args.dataset_name or next(filter(None, files)))


__all__ = [
    "COLUMN_FLAGS",
    "ImageFile",
    "ReadTable",
    "TableArgs",
    "TaskData",
    "cut_split",
    "first_rows",
    "given_columns",
    "mentioning_own_data",
    "open_tables",
    "read_tables",
    "reads_table",
]
