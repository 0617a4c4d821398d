"""Region features that others published -> a feature store. Nothing is unpickled; errors name file and row.

===========  ==========================================================================================================
``tsv``      bottom-up attention and LXMERT: a line for each image, arrays in base64 of float32 (ids: int64)
``npy``      Pythia / MMF: a folder, [R, V] for each image; their `*_info.npy` are pickles and are not read
``npz``      a folder, the arrays of one image in each file (VisualBERT's NLVR2 script; `x` of MCAN is [V, R])
``th``       VisualBERT's chunks: `torch.save({image name: (features [R, V], boxes [R, 4], confidence [R])})`,
             tensors or NumPy arrays
``hdf5``     a group for each image, or datasets over all images: [N, R, V] (LXMERT), or [sum of R, V] with `pos_boxes`
             [N, 2] (BAN); needs `h5py`
===========  ==========================================================================================================

Boxes are taken as x1, y1, x2, y2 in pixels of the original image, as all of these have them. Letters: N images, R regions
of an image, V feature.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.files import check_new, read_json, read_lines
from .chunks import load_chunk
from .images import IMAGE_IDS
from .store import FeatureStore, partial_folder, write_store

logger = logging.getLogger(__name__)

Regions = Mapping[str, Any]
Records = Iterator[tuple[str, Callable[[], Regions], str]]  # name of the image, what reads its regions, where they are

_INT64, _FLOAT32 = np.dtype("<i8"), np.dtype("<f4")
# Columns of the TSV files, told apart by how many there are: bottom-up-attention, VisualBERT's NLVR2 script, LXMERT.
_TSV_ORDERS = (
    "name width height count boxes features",
    "name width height count boxes features class_ids",
    "name height width class_ids scores attribute_ids attribute_scores count boxes features",
)
_TSV_COLUMNS = {len(order.split()): order.split() for order in _TSV_ORDERS}
_TSV_ARRAYS: dict[str, np.dtype] = {
    "class_ids": _INT64,
    "scores": _FLOAT32,
    "attribute_ids": _INT64,
    "attribute_scores": _FLOAT32,
    "boxes": _FLOAT32,
    "features": _FLOAT32,
}
# What others call the arrays of an image.
_SYNONYMS = {
    "visual_embeds": ("features", "box_features", "image_features", "image_feat", "x"),
    "boxes": ("boxes", "cls_boxes", "bbox", "bboxes", "image_bb", "image_bboxes"),
    "scores": ("scores", "max_conf", "objects_conf", "obj_conf"),
    "class_ids": ("class_ids", "objects_id", "object_ids", "objects"),
    "attribute_ids": ("attribute_ids", "attrs_id", "attr_ids"),
    "attribute_scores": ("attribute_scores", "attrs_conf", "attr_conf"),
    "height": ("height", "img_h", "image_h", "image_height"),
    "width": ("width", "img_w", "image_w", "image_width"),
    "count": ("num_boxes", "num_bbox", "num_regions"),
}
_PER_REGION = ("visual_embeds", "boxes", "scores", "class_ids", "attribute_ids", "attribute_scores")


def convert_features(
    source: str | Path,
    target: str | Path,
    kind: str | None = None,
    ids: str = "stem",
    dtype: str = "float16",
    detector: str = "unknown",
    images_per_shard: int = 1000,
    classes: str | Path | None = None,
    attributes: str | Path | None = None,
    progress: bool = True,
) -> FeatureStore:
    """Convert features that others published. Interrupted, it goes on where it was.

    Args:
        source: File or folder.
        target: The store; must not exist.
        kind: One of `READERS`; by default guessed from the name.
        ids: How to name images: their `number`, the `stem` of their file's name, or the `name` as it is in the source.
        dtype: How the features are stored.
        detector: Name of what made them, for the index.
        images_per_shard: Images in one file of the store.
        classes, attributes: Files with the names of classes and attributes, one a line, in the order of their ids.
        progress: Whether to show progress.

    Raises:
        FileNotFoundError: The source is not there.
        FileExistsError: The target is.
        ValueError: The source is damaged; names file and row. Or its kind cannot be guessed.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    kind = kind or guess_kind(source)
    if kind not in READERS:
        raise ValueError(f"kind {kind!r}; expected one of {', '.join(READERS)}")
    if Path(target).exists():
        raise FileExistsError(f"{target} exists; remove it or choose another folder")
    names = {"classes": _names(classes), "attributes": _names(attributes)}
    about = {
        "file": source.name,
        "bytes": source.stat().st_size if source.is_file() else None,
        "kind": kind,
        "ids": ids,
    }
    reading = _Reading(READERS[kind](source), source)
    with tqdm(desc=f"converting {source.name}", unit="image", disable=not progress) as bar:
        pairs = reading.pairs(IMAGE_IDS[ids], bar)
        try:
            write_store(target, pairs, reading.dim, detector, dtype, images_per_shard, names, about, resume=True)
        except ValueError as error:
            if str(error).startswith((str(source), str(partial_folder(target)))):
                raise
            raise ValueError(f"{reading.where}: {error}") from error  # of the regions that were read last
    return FeatureStore(target, expect_dim=reading.dim)


def guess_kind(source: Path) -> str:
    """
    Raises:
        ValueError: The name does not tell.
    """
    by_suffix = {".tsv": "tsv", ".npy": "npy", ".npz": "npz", ".th": "th", ".pth": "th", ".h5": "hdf5", ".hdf5": "hdf5"}
    paths = (path for path in source.rglob("*") if path.is_file()) if source.is_dir() else iter([source])
    found = {by_suffix[path.suffix] for path in paths if path.suffix in by_suffix}
    if len(found) != 1:
        raise ValueError(
            f"{source}: holds {' and '.join(sorted(found)) or 'no features that are known'}; say which kind to convert"
        )
    return found.pop()


def read_tsv(path: Path) -> Records:
    """A line is `name height width <arrays> count boxes features`, or one of the other orders in `_TSV_ORDERS`.

    `COCO_train2014_000000132417<TAB>333<TAB>500<TAB>SAAAAAAA...` is the start of LXMERT's train2014_obj36.tsv.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}: row {number}"
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) not in _TSV_COLUMNS:
                known = ", ".join(map(str, _TSV_COLUMNS))
                raise ValueError(f"{where}: {len(fields)} columns; expected {known} (is the file cut off?)")
            row = dict(zip(_TSV_COLUMNS[len(fields)], fields, strict=True))
            yield row["name"].decode("utf-8", "replace"), partial(_tsv_regions, row, where), where


def _tsv_regions(row: Mapping[str, bytes], where: str) -> Regions:
    count, height, width = (_tsv_number(row[name], f"{where}: '{name}'") for name in ("count", "height", "width"))
    found: dict[str, Any] = {"image_size": (height, width)}
    for name, dtype in _TSV_ARRAYS.items():
        if name in row:
            array = _from_base64(row[name], dtype, f"{where}: '{name}'")
            shape = {"boxes": (count, 4), "features": (count, array.size // max(1, count))}.get(name, (count,))
            if array.size != np.prod(shape):
                raise ValueError(f"{where}: '{name}' has {array.size} numbers; expected {shape} for {count} boxes")
            found["visual_embeds" if name == "features" else name] = array.reshape(shape)
    return found


def _tsv_number(text: bytes, where: str) -> int:
    if not re.fullmatch(rb"\d{1,9}(\.0*)?", text):
        raise ValueError(f"{where} is {text[:40]!r}; expected a whole number")
    return int(float(text))


def _from_base64(text: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{where}: broken base64 ({error})") from error
    if len(data) % dtype.itemsize:
        raise ValueError(f"{where}: {len(data)} bytes; expected a multiple of {dtype.itemsize} ({dtype.name})")
    return np.frombuffer(data, dtype)


def read_npy(folder: Path) -> Records:
    """`COCO_train2014_000000000009.npy` [R, V] for each image (Pythia's detectron_fix_100)."""
    info = [path for path in _files(folder, ".npy") if path.stem.endswith("_info")]
    if info:
        logger.warning(
            "%s: %d files like %s hold Python objects (pickle) and are not read: boxes, classes and image sizes are "
            "not known",
            folder,
            len(info),
            info[0].name,
        )
    for path in _files(folder, ".npy"):
        if not path.stem.endswith("_info"):
            yield _relative(path, folder), partial(_npy_regions, path), str(path)


def _npy_regions(path: Path) -> Regions:
    return _regions({"features": _numpy_load(path)}, str(path))


def read_npz(folder: Path) -> Records:
    """`dev-1-0-img0.png.npz` with `box_features` [R, V], `cls_boxes` [R, 4], `max_conf` [R] for each image."""
    for path in _files(folder, ".npz"):
        yield _relative(path, folder), partial(_npz_regions, path), str(path)


def _npz_regions(path: Path) -> Regions:
    archive = _numpy_load(path)
    with archive:
        arrays = {}
        for name in archive.files:
            try:
                arrays[name] = archive[name]
            except Exception as error:  # also those of zipfile and zlib, and MemoryError
                if name in itertools.chain(*_SYNONYMS.values()):
                    raise ValueError(f"{path}: '{name}' cannot be read: {_numpy_problem(error)}") from error
    if "x" in arrays and arrays["x"].ndim == 2:
        arrays["x"] = arrays["x"].T
    return _regions(arrays, str(path))


def _numpy_load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # also MemoryError, of a header that promises more than there can be
        raise ValueError(f"{path}: cannot be read: {_numpy_problem(error)}") from error


def _numpy_problem(error: Exception) -> str:
    return "it holds Python objects (pickle), which could run code" if "allow_pickle" in str(error) else str(error)


def read_th(path: Path) -> Records:
    """`{"dev-1-0-img0.png": (features [R, V], boxes [R, 4], confidence [R]), ...}`, tensors or arrays."""
    for file in _files(path, ".th", ".pth") if path.is_dir() else [path]:
        chunk = load_chunk(file)
        if not isinstance(chunk, dict):
            raise ValueError(f"{file}: holds a {type(chunk).__name__}; expected features by image name")
        for name, record in chunk.items():
            where = f"{file}: image {name!r}"
            if not isinstance(name, (str, int)):
                raise ValueError(f"{where}; expected names of images as keys")
            yield str(name), partial(_th_regions, record, where), where


def _th_regions(record: Any, where: str) -> Regions:
    if isinstance(record, (tuple, list)) and 1 <= len(record) <= 3:
        record = dict(zip(("features", "boxes", "scores"), record, strict=False))
    if not isinstance(record, dict):
        raise ValueError(f"{where}: holds a {type(record).__name__}; expected (features, boxes, confidence)")
    return _regions(record, where)


def read_hdf5(path: Path) -> Records:
    """Features of all images in one file: see the module for the three forms.

    Where the images are numbered, their names are `image_ids` in the file, or in a JSON (LXMERT: a list of records with
    `img_id`) or text file of the same name beside it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path}: HDF5 needs h5py: pip install 'modeling-visualbert[hdf5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file, or damaged ({error})") from error
    with file:
        arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        if not arrays:
            for name, group in file.items():
                yield name, partial(_regions, group, f"{path}: group {name!r}"), f"{path}: group {name!r}"
            return
        if "pos_boxes" in arrays and arrays["pos_boxes"].shape[1:] != (2,):
            raise ValueError(f"{path}: 'pos_boxes' has shape {arrays['pos_boxes'].shape}; expected (images, 2)")
        by_image = "pos_boxes" if "pos_boxes" in arrays else _called(arrays, "visual_embeds", str(path))
        count = len(arrays[by_image])
        names, sizes = _hdf5_names(path, arrays, count)
        for row, name in enumerate(names):
            where = f"{path}: row {row}"
            yield name, partial(_hdf5_regions, arrays, row, sizes.get(row, {}), where), where


def _hdf5_regions(arrays: Mapping[str, Any], row: int, size: Mapping[str, Any], where: str) -> Regions:
    per_region = {name for key in _PER_REGION for name in _SYNONYMS[key]}
    known = {name for names in _SYNONYMS.values() for name in names}
    at: Any = row
    if "pos_boxes" in arrays:
        start, end = (int(side) for side in arrays["pos_boxes"][row])
        total = len(arrays[_called(arrays, "visual_embeds", where)])
        if not 0 <= start <= end <= total:
            raise ValueError(f"{where}: 'pos_boxes' says {start} to {end} of {total} regions")
        at = slice(start, end)
    found = {name: array[at if name in per_region else row] for name, array in arrays.items() if name in known}
    return _regions({**found, **size}, where)


def _hdf5_names(path: Path, arrays: Mapping[str, Any], count: int) -> tuple[list[str], dict[int, dict[str, Any]]]:
    sizes: dict[int, dict[str, Any]] = {}
    if "image_ids" in arrays or "image_id" in arrays:
        values = arrays["image_ids" if "image_ids" in arrays else "image_id"][:].tolist()
        names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    elif path.with_suffix(".json").is_file():
        records = read_json(path.with_suffix(".json"))
        names = [str(record["img_id"] if isinstance(record, dict) else record) for record in records]
        sizes = {row: record for row, record in enumerate(records) if isinstance(record, dict)}
    elif path.with_suffix(".txt").is_file():
        names = read_lines(path.with_suffix(".txt"))
    else:
        raise ValueError(f"{path}: no names of images; expected 'image_ids' in it, or a .json or .txt file beside it")
    if len(names) != count:
        raise ValueError(f"{path}: {len(names)} names for {count} images")
    return names, sizes


READERS: dict[str, Callable[[Path], Records]] = {
    "tsv": read_tsv,
    "npy": read_npy,
    "npz": read_npz,
    "th": read_th,
    "hdf5": read_hdf5,
}


def _regions(found: Mapping[str, Any], where: str) -> Regions:
    """Arrays under any of the names that are in use -> regions; padding behind `num_boxes` is cut off."""
    values = {}
    for key in _SYNONYMS:
        name = _called(found, key, where)
        if name is not None:
            value = found[name]
            values[key] = value.float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    features = values["visual_embeds"]
    if features.ndim != 2 or features.dtype.kind not in "fiu":
        raise ValueError(f"{where}: features are {features.dtype} {features.shape}; expected numbers (regions, dim)")
    for key, value in values.items():
        if value.dtype.kind not in "fiub":
            raise ValueError(f"{where}: '{_called(found, key, where)}' holds {value.dtype}; expected numbers")
        if key in ("count", "height", "width") and value.size != 1:
            raise ValueError(f"{where}: '{_called(found, key, where)}' has shape {value.shape}; expected one number")
    count = int(values.pop("count", np.asarray(len(features))).item())
    if not 0 <= count <= len(features):
        raise ValueError(f"{where}: {count} boxes, but features of {len(features)}")
    height, width = values.pop("height", None), values.pop("width", None)
    regions: dict[str, Any] = {
        key: value[:count] if len(value) == len(features) else value for key, value in values.items() if value.ndim
    }
    if height is not None and width is not None:
        regions["image_size"] = (int(height.item()), int(width.item()))
    return regions


def _called(found: Mapping[str, Any], key: str, where: str) -> Any:
    name = next((name for name in _SYNONYMS[key] if name in found), None)
    if name is None and key == "visual_embeds":
        raise ValueError(f"{where}: no features among {', '.join(map(str, found))}; expected one of {_SYNONYMS[key]}")
    return name


class _Reading:
    """Records on their way into a store: their dim, and where the last one was, for errors.

    Raises:
        ValueError: No image has regions.
    """

    def __init__(self, records: Records, source: Path):
        looked_at, self.source = [], source
        records = self._each(records)
        for record in records:
            looked_at.append(record)
            with self._naming(record[2]):
                features = record[1]()["visual_embeds"]
            if len(features):
                self.dim = int(features.shape[1])
                break
        else:
            raise ValueError(f"{source}: no image with regions in it")
        self.records, self.where = itertools.chain(looked_at, records), str(source)

    def pairs(self, image_id: Callable[[str], str], bar: Any) -> Iterator[tuple[str, Callable[[], Regions]]]:
        """(image id, what reads its regions), as [`write_store`] takes them."""
        seen: set[str] = set()
        for name, read, where in self.records:
            self.where = where
            key = image_id(name)
            check_new(key, seen, "image id", where)
            yield key, partial(self._read, read, where)
            bar.update()

    def _each(self, records: Records) -> Records:
        while True:
            with self._naming(str(self.source)):
                record = next(records, None)
            if record is None:
                return
            yield record

    @contextmanager
    def _naming(self, where: str) -> Iterator[None]:
        """What goes wrong while the source is read names it: readers fail in their own ways when a file is damaged."""
        try:
            yield
        except Exception as error:
            if str(error).startswith(str(self.source)):
                raise
            raise ValueError(f"{where}: cannot be read ({type(error).__name__}: {error})") from error

    def _read(self, read: Callable[[], Regions], where: str) -> Regions:
        with self._naming(where):
            regions = dict(read())
        if not len(regions["visual_embeds"]):
            regions["visual_embeds"] = np.zeros((0, self.dim), np.float32)  # a file need not know how long none are
        return regions


def _names(path: str | Path | None) -> list[str] | None:
    return None if path is None else [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]


def _files(folder: Path, *suffixes: str) -> list[Path]:
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*") if path.suffix in suffixes)


def _relative(path: Path, folder: Path) -> str:
    return path.name if folder.is_file() else path.relative_to(folder).as_posix()
