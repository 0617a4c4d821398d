"""The images of a table: an `Image` column, the bytes of an image file, or a path.

An image is known by its path, or where the row holds the bytes by a hash of them, so that an image that many rows are about is
looked at once. Nothing is held in memory: bytes are read from the table when an image is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..hub_code.image_processing_visualbert import is_file
from .files import skipping
from .tables import Table

_BATCH = 256  # rows whose bytes are in memory at a time


class TableImages(Mapping[str, "Path | bytes"]):
    """Image files by key: their path, or their bytes. `sizes` has height and width of those that were looked at."""

    def __init__(self) -> None:
        self.sizes: dict[str, tuple[int, int]] = {}
        self._paths: dict[str, Path] = {}
        self._rows: dict[str, tuple[Table, int]] = {}  # the first row about each image
        self._cells: dict[str, tuple[Table, str, int, int | None]] = {}  # table, column, row, and place in a list

    def __getitem__(self, key: str) -> Path | bytes:
        if key in self._paths:
            return self._paths[key]
        table, column, row, place = self._cells[key]
        cell = table.rows[row][column]
        cell = cell if place is None else cell[place]
        return cell["bytes"] if isinstance(cell, dict) else cell

    def path(self, key: str) -> Path | None:
        """The file of an image; None where the table holds its bytes."""
        return self._paths.get(key)

    def place(self, key: str) -> str:
        """The first row that is about an image, for messages."""
        table, row = self._rows[key]
        return table.place(row)

    def __iter__(self) -> Iterator[str]:
        yield from (*self._paths, *self._cells)

    def __len__(self) -> int:
        return len(self._paths) + len(self._cells)

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all other images."""
        kept = set(keys)
        self._paths = {key: path for key, path in self._paths.items() if key in kept}
        self._cells = {key: cell for key, cell in self._cells.items() if key in kept}

    def add(self, table: Table, column: str, skipped: list[str] | None = None) -> list[list[str] | None]:
        """Enter the images of a column.

        Args:
            table: The table.
            column: Its column of images, or of lists of images.
            skipped: If given, the errors of rows whose images are missing are added to this list instead of being raised.

        Returns:
            Keys of the images of each row; None for a row that was left out.

        Raises:
            FileNotFoundError: An image file does not exist.
            ValueError: A row has no image, or what is in the column is none. The messages name the row.
        """
        keys: list[list[str] | None] = []
        cells = table.rows.select_columns(column).with_format("arrow")
        for batch in cells.iter(batch_size=_BATCH):
            for cell in batch[column]:
                keys.append(None)
                with skipping(skipped):
                    keys[-1] = self._add_cell(table, column, len(keys) - 1, cell)
        return keys

    def _add_cell(self, table: Table, column: str, row: int, cell: pa.Scalar) -> list[str]:
        if not isinstance(cell, pa.ListScalar):
            return [self._add_image(table, column, row, None, cell)]
        if not cell.is_valid or not len(cell):
            raise ValueError(f"{table.place(row)}: {column!r} is empty; expected images")
        return [self._add_image(table, column, row, place, image) for place, image in enumerate(cell)]

    def _add_image(self, table: Table, column: str, row: int, place: int | None, cell: pa.Scalar) -> str:
        where = f"{table.place(row)}: {column!r}"
        content, path = _content(cell, where)
        if content is not None:
            key = hashlib.sha256(content).hexdigest()[:32]
            self._cells.setdefault(key, (table, column, row, place))
            self._rows.setdefault(key, (table, row))
            return key
        if not path:
            raise ValueError(f"{where} is empty; expected an image")
        if path.startswith(("http://", "https://")):
            raise ValueError(
                f"{where}: images are not downloaded ({path}); expected a path of a file, or an image column"
            )
        file = table.folder / path
        key = str(file)
        if key not in self._paths:
            if not is_file(file):
                raise FileNotFoundError(f"{where}: no such image file {key:.200}; --images_dir says where paths start")
            self._paths[key] = file
            self._rows[key] = table, row
        return key


def _content(cell: pa.Scalar, where: str) -> tuple[memoryview | None, str | None]:
    """Bytes or path of an image."""
    if isinstance(cell, pa.StructScalar):
        fields: dict[str, Any] = dict(cell.items()) if cell.is_valid else {}
        if not {"bytes", "path"} <= fields.keys() and cell.is_valid:
            raise ValueError(f"{where} holds a record of {', '.join(fields)}; expected an image")
        content, path = fields.get("bytes"), fields.get("path")
        if content is not None and content.is_valid:
            return memoryview(content.as_buffer()), None
        return None, None if path is None else _text(path, where)
    if isinstance(cell, (pa.BinaryScalar, pa.LargeBinaryScalar)) and not isinstance(
        cell, (pa.StringScalar, pa.LargeStringScalar)
    ):
        return (memoryview(cell.as_buffer()), None) if cell.is_valid else (None, None)
    value = _text(cell, where)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where} is {value!r:.40}; expected an image, the bytes of one, or the path of a file")
    return None, value


def _text(cell: pa.Scalar, where: str) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:  # Parquet files hold any bytes as text
        raise ValueError(
            f"{where} is not UTF-8 ({error.reason} at byte {error.start}); expected the path of a file"
        ) from error


__all__ = ["TableImages"]
