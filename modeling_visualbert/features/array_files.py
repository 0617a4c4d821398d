"""Arrays in NumPy and HDF5 files: no more memory than the file warrants, and no numbers that were never written.

A header of a few bytes may promise any shape, and HDF5 hands out fill values (zeros) for what nobody wrote. Both are
refused before the array is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..convert.array_pickles import parse_arrays
from .arrays import KNOWN, NUMBERS, name_of_features

_MOST_PER_BYTE = 100  # of content for a byte of a compressed file: features have about 2, with much padding 10
_PLACES = "pos_boxes"  # BAN's: from which region to which the image goes
_ALWAYS = 64 << 20  # bytes of content that are never too many


def load_numpy(path: Path) -> dict[str, Any]:
    """The arrays of an `.npz` file, or that of an `.npy` file as `features`, or those in the dict that it holds. Those that
    cannot be read and are not known are left out.

    Raises:
        ValueError: The file is damaged, holds other Python objects than a dict of arrays (it is not unpickled), or promises more
            than it can hold.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            if start == np.lib.format.MAGIC_PREFIX:
                if _check_header(file, path.stat().st_size).hasobject:
                    return _dict_in(file, path)
            elif not start.startswith(b"PK"):
                raise ValueError(f"it begins with {start!r}, as neither .npy nor .npz do")
        found = np.load(path, allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read: {_problem(error)}") from error
    if isinstance(found, np.ndarray):
        return {"features": found}
    with found as archive:
        arrays = {}
        for name in archive.files:
            try:
                _check_member(archive.zip, name, path.stat().st_size)
                arrays[name] = archive[name]
            except Exception as error:  # zipfile's and zlib's errors too, and MemoryError
                if name in KNOWN:
                    raise ValueError(f"{path}: '{name}' cannot be read: {_problem(error)}") from error
    return arrays


def _dict_in(file: IO[bytes], path: Path) -> dict[str, Any]:
    try:
        return dict_of_arrays(file.read(), str(path))
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"it holds Python objects (pickle) that are no dict of arrays: {reason}") from error


def dict_of_arrays(content: bytes, where: str) -> dict[str, Any]:
    """The arrays, numbers and texts in a pickle of a dict, or of an array around one, which is not unpickled.

    Raises:
        ValueError: It is damaged, or holds anything else; the message starts with `where`.
    """
    found = parse_arrays(content, where)
    if not isinstance(found, dict):
        raise ValueError(f"{where}: holds a {type(found).__name__}; expected a dict of arrays")
    return {str(name): value for name, value in found.items() if value is not None}


def _problem(error: Exception) -> str:
    return (
        "it holds Python objects (pickle), which could run code" if "allow_pickle" in str(error) else f"{error!s:.200}"
    )


def _check_member(archive: Any, name: str, size: int) -> None:
    member = next((member for member in archive.infolist() if member.filename in (f"{name}.npy", name)), None)
    if member is None:
        return
    _check_content(member.file_size, min(member.compress_size, size))
    with archive.open(member) as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            file.seek(0)
            _check_header(file, member.file_size)


def _check_header(file: IO[bytes], size: int) -> np.dtype:
    """Whether the array that the header of an `.npy` file promises fits into its bytes; returns its dtype."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format, for arrays with named fields; expected numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    promised, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if not dtype.hasobject and promised > left:
        raise ValueError(
            f"an array of shape {shape} takes {promised} bytes, of which {left} are there (is it cut off?)"
        )
    return dtype


def _check_content(promised: int, held: int) -> None:
    if promised > max(_ALWAYS, _MOST_PER_BYTE * held):
        raise ValueError(
            f"{promised} bytes of numbers in {held} bytes of a file; expected features, which hardly shrink"
        )


class Hdf5Arrays:
    """The datasets that are known, of one image (a group) or of all images (a row for each, or places in `pos_boxes`)."""

    def __init__(self, datasets: Mapping[str, Any]):
        self.datasets = {name: item for name, item in datasets.items() if name in KNOWN or name == _PLACES}
        self.written = {name: _written_chunks(item) for name, item in self.datasets.items()}

    def check_lengths(self, images: int, where: str) -> None:
        """
        Raises:
            ValueError: A dataset has not a row for each image (or with `pos_boxes`, for each region); or regions are those of two
                images, or of none.
        """
        features = name_of_features(self.datasets, where)
        for name, dataset in self.datasets.items():
            by_image = name == _PLACES or KNOWN[name] in NUMBERS or _PLACES not in self.datasets
            rows, of = (images, "images") if by_image else (len(self.datasets[features]), f"rows of '{features}'")
            if dataset.shape[:1] != (rows,):
                raise ValueError(f"{where}: '{name}' has shape {dataset.shape} beside {rows} {of}; expected as many")
        if _PLACES in self.datasets:
            self._check_places(len(self.datasets[features]), where)

    def _check_places(self, total: int, where: str) -> None:
        places = self._read(_PLACES, [])
        if places.dtype.kind not in "iu":
            raise ValueError(f"{where}: '{_PLACES}' holds {places.dtype}; expected whole numbers")
        if places.min(initial=0) < 0 or places.max(initial=0) > total or (places[:, 0] > places[:, 1]).any():
            return  # told with its row
        reached = 0
        for start, end in sorted(places.tolist()):
            if start != reached:
                said = (
                    f"regions {start} to {reached} to two images"
                    if start < reached
                    else f"no image to {reached} to {start}"
                )
                raise ValueError(f"{where}: '{_PLACES}' gives {said}; expected one for each region")
            reached = end
        if reached != total:
            raise ValueError(
                f"{where}: '{_PLACES}' gives no image to {reached} to {total}; expected one for each region"
            )

    def whole(self) -> dict[str, Any]:
        """All of each dataset."""
        return self._without_fill({name: self._read(name, []) for name in self.datasets})

    def row(self, row: int) -> dict[str, Any]:
        """The arrays of the image of this row."""
        places = None
        if _PLACES in self.datasets:
            total = len(self.datasets[name_of_features(self.datasets, _PLACES)])
            start, end = (int(side) for side in self._read(_PLACES, [(row, row + 1)])[0])
            places = (start, end)
            if not 0 <= start <= end <= total:
                raise ValueError(f"'{_PLACES}' says {start} to {end} of {total} regions")
        found: dict[str, Any] = {}
        at, count = (row, row + 1), None
        names = (name for name in self.datasets if name != _PLACES)
        for name in sorted(names, key=lambda name: KNOWN[name] != "count"):
            if KNOWN[name] in NUMBERS or places is None:
                # Padding need not be written.
                bounds = [at] if count is None or self.written[name] is None else [at, (0, count)]
                found[name] = self._read(name, bounds[: self.datasets[name].ndim])[0]
            else:
                found[name] = self._read(name, [places])
            if KNOWN[name] == "count" and np.size(found[name]) == 1:
                count = int(found[name])
        return self._without_fill(found)

    def _read(self, name: str, bounds: list[tuple[int, int]]) -> Any:
        """A part of a dataset: from the first to the last of each of the `bounds` of its leading sides."""
        dataset, written = self.datasets[name], self.written[name]
        inside = [(start, min(end, side)) for (start, end), side in zip(bounds, dataset.shape, strict=False)]
        bounds = [*inside, *((0, side) for side in dataset.shape[len(bounds) :])]
        size = dataset.dtype.itemsize * math.prod(end - start for start, end in bounds)
        try:
            _check_content(size, dataset.file.id.get_filesize())
        except ValueError as error:
            raise ValueError(f"'{name}' cannot be read: {error!s:.200}") from error
        if written is not None and size:
            sides = dataset.chunks or dataset.shape
            starts = (range(s - s % side, end, side) for (s, end), side in zip(bounds, sides, strict=True))
            missing = next((start for start in itertools.product(*starts) if start not in written), None)
            if missing is not None:
                raise ValueError(f"'{name}' was never written from {missing} on; expected a file that is complete")
        return dataset[tuple(slice(start, end) for start, end in bounds)]

    def _without_fill(self, found: dict[str, Any]) -> dict[str, Any]:
        name = name_of_features(found, "arrays")
        fill = self.datasets[name].fillvalue
        if np.size(found[name]) and np.all(found[name] == fill):
            raise ValueError(f"'{name}' holds {fill} everywhere, as if never written; expected a file that is complete")
        return found


def _written_chunks(dataset: Any) -> set[tuple[int, ...]] | None:
    """Where the chunks of an HDF5 dataset begin that were written; None if all were."""
    if not dataset.size or dataset.is_virtual or dataset.external:
        return None
    if dataset.chunks is None:
        return None if dataset.id.get_storage_size() else set()
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    if dataset.id.get_num_chunks() == math.prod(-(-side // chunk) for side, chunk in sides):
        return None
    starts: set[tuple[int, ...]] = set()
    dataset.id.chunk_iter(lambda chunk: starts.add(tuple(chunk.chunk_offset)))
    return starts
