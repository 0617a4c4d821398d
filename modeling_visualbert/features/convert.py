"""Region features that others published -> a feature store. Nothing is unpickled; errors name file and row.

===========  ==========================================================================================================
``tsv``      bottom-up attention and LXMERT: a line per image, arrays as base64 of float32 (ids: int64)
``npy``      Pythia / MMF: a folder with [R, V] for each image, and perhaps `*_info.npy` with its boxes, classes and size
``npz``      a folder with the arrays of one image in each file (VisualBERT's NLVR2 script; `x` of MCAN is [V, R], that of
             MILVLG's extraction [R, V])
``th``       VisualBERT's chunks: `torch.save({image name: (features [R, V], boxes [R, 4], confidence [R])})`,
             tensors or NumPy arrays
``lmdb``     MMF: a dict of arrays for each image, as a pickle (`lmdb_conversion.py`); needs `lmdb`
``hdf5``     a group for each image, or datasets over all images: [N, R, V] (LXMERT), or [sum of R, V] with `pos_boxes`
             [N, 2] (BAN); needs `h5py`
===========  ==========================================================================================================

What the arrays of an image are called, and how they become regions, is in `arrays.py`. Pickles are read by a reader that makes
arrays and nothing else. A source in parts (`....tsv.0`, `....tsv.1`) is the folder that they lie in, or their name without the
number. Letters: N images, R regions of an image, V feature.
"""

from __future__ import annotations

import base64
import binascii
import glob
import itertools
import logging
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm.auto import tqdm

from ..convert.array_pickles import load_chunk, parse_arrays
from ..data.files import described, files_below, read_json, read_lines, read_text, skipping
from ..hub_code.configuration_region_detector import NUM_SPATIAL_FEATURES
from ..hub_code.regions_visualbert import UNKNOWN_DETECTOR, normalise_boxes, spatial_features
from ..published import published_detector_name
from .array_files import Hdf5Arrays, dict_of_arrays, load_numpy
from .arrays import LAYOUTS, ArrayOptions, name_of_features, to_regions
from .images import IMAGE_IDS
from .lmdb_files import check_lmdb
from .store import FeatureStore, Regions, partial_folder, write_store

logger = logging.getLogger(__name__)

Arrays = Mapping[str, Any]  # of one image, by the names that the file has for them
Records = Iterator[tuple[str, Callable[[], Arrays], str]]  # name of the image, what reads its arrays, where they are
RegionRecord = tuple[str, Callable[[], Regions], str]  # the same, with what reads its regions

# Columns of the TSV files, told apart by how many there are: bottom-up-attention, VisualBERT's NLVR2 script, LXMERT.
_TSV_ORDERS = (
    "name width height count boxes features",
    "name width height count boxes features class_ids",
    "name height width class_ids scores attribute_ids attribute_scores count boxes features",
)
_TSV_COLUMNS = {len(order.split()): order.split() for order in _TSV_ORDERS}
_TSV_ARRAYS = ("class_ids", "scores", "attribute_ids", "attribute_scores", "boxes", "features")


def convert_features(
    source: str | Path,
    target: str | Path,
    kind: str | None = None,
    ids: str = "stem",
    dtype: str = "float16",
    detector: str = UNKNOWN_DETECTOR,
    images_per_shard: int = 1000,
    classes: str | Path | None = None,
    attributes: str | Path | None = None,
    progress: bool = True,
    spatial: bool = False,
    layout: str | None = None,
    normalised_boxes: bool = False,
    skip_bad_records: bool = False,
) -> FeatureStore:
    """Convert features that others published. A run that was interrupted resumes when called again.

    Args:
        source: File or folder.
        target: The store to write; must not exist.
        kind: One of `READERS`; by default guessed from the file names.
        ids: How to name images: by the `number` or the `stem` of their file's name, or by the `name` as it is in the source.
        dtype: Dtype in which the features are stored.
        detector: Name of the detector, for the index: a published one by its name in this package or on the Hub, or any other.
            Models that were trained on the features of a known detector read no others.
        images_per_shard: Images in one file of the store.
        classes, attributes: Files with the names of classes and attributes, one per line, in the order of their ids.
        progress: Whether to show progress.
        spatial: Append the six spatial numbers of a region's box to its feature, see [`spatial_features`].
        layout: `regions_first` or `features_first`, for arrays of features that nothing beside them tells the layout of.
        normalised_boxes: Whether the boxes are in units of the image (0..1); the store holds them in pixels.
        skip_bad_records: Leave out images that are damaged, contradict themselves or occur twice; the store's `failed.jsonl`
            lists them.

    Raises:
        FileNotFoundError: The source does not exist.
        FileExistsError: The target exists.
        ValueError: The source is damaged or contradicts itself (names file and row), its kind or layout cannot be guessed, its
            boxes are not in pixels, or it lacks the boxes or image sizes that spatial numbers need.
    """
    source = Path(source)
    _check_source(source)
    kind = _kind(source, kind)
    if Path(target).exists():
        raise FileExistsError(f"{target} exists; remove it or choose another folder")
    options = _array_options(kind, layout, normalised_boxes)
    names = {"classes": _names(classes), "attributes": _names(attributes)}
    about = _about(source, kind, ids, layout, normalised_boxes)
    made_by = {"name": published_detector_name(detector), **({"spatial_features": True} if spatial else {})}
    records = _checked(READERS[kind](source), source, options)
    if spatial:
        records = ((name, partial(_with_spatial_features, read, place), place) for name, read, place in records)
    dim, records = _first_with_regions(records, source, kind, skip_bad_records)
    where = str(source)

    def pairs(bar: Any) -> Iterator[tuple[str, Callable[[], Regions]]]:
        nonlocal where
        for where, key, read in _identified(records, IMAGE_IDS[ids], skip_bad_records):  # noqa: B007
            yield key, partial(_sized, read, dim)
            bar.update()

    with tqdm(desc=f"converting {source.name}", unit="image", disable=not progress) as bar:
        try:
            write_store(
                *(target, pairs(bar), dim, made_by, dtype, images_per_shard, names, about),
                resume=True,
                skip_bad_records=skip_bad_records,
            )
        except ValueError as error:
            if str(error).startswith((str(source), str(partial_folder(target)))):
                raise
            raise ValueError(f"{where}: {error}") from error  # about the regions that were read last
    return FeatureStore(target, expect_dim=dim)


def _about(source: Path, kind: str, ids: str, layout: str | None, normalised_boxes: bool) -> dict[str, Any]:
    """What the index tells of the source, by which a conversion that goes on notices another one."""
    size = source.stat().st_size if source.is_file() else None
    given = {"layout": layout, "normalised_boxes": normalised_boxes}
    about = {"file": source.name, "bytes": size, "kind": kind, "ids": ids}
    return about | {name: value for name, value in given.items() if value}


def _kind(source: Path, kind: str | None) -> str:
    kind = kind or guess_kind(source)
    if kind not in READERS:
        raise ValueError(f"kind {kind!r}; expected one of {', '.join(READERS)}")
    return kind


def _first_with_regions(
    records: Iterator[RegionRecord], source: Path, kind: str, skip_bad_records: bool
) -> tuple[int, Iterator[RegionRecord]]:
    """How long the features are, which only an image with regions says, and all records again."""
    first, bad = [], list[str]()
    for record in records:
        first.append(record)
        with skipping(bad if skip_bad_records else None):
            features = record[1]()["visual_embeds"]
            if len(features):
                return int(features.shape[1]), itertools.chain(first, records)
    raise ValueError(bad[0] if bad else f"{source}: no image with regions in it (kind {kind})")


def _identified(
    records: Iterator[RegionRecord], image_id: Callable[[str], str], skip_bad_records: bool
) -> Iterator[tuple[str, str, Callable[[], Regions]]]:
    """Place, id and regions of each image. If bad records are to be skipped, those whose name gives no id have their place
    instead of it, and an error instead of regions."""
    for name, read, place in records:
        try:
            key = image_id(name)
        except ValueError as error:
            if not skip_bad_records:
                raise
            yield place, place, partial(_raise, error)
        else:
            yield place, key, read


def _raise(error: Exception) -> Any:
    raise error


def _check_source(source: Path) -> None:
    """Refuse a source that is not there, and parts of one of which some are missing; say so if others lie beside a part."""
    parts = _parts_of(source)
    if not source.exists() and not parts:
        raise FileNotFoundError(f"{source}: no such file or folder")
    siblings = _parts_of(source.with_suffix("")) if source.is_file() and source.suffix[1:].isdigit() else {}
    if len(siblings) > 1:
        logger.warning(
            f"{source}: one of {len(siblings)} parts; give the folder, or {source.with_suffix('').name}, to convert all of them"
        )
    inside = files_below(source) if source.is_dir() else ()
    wholes = {path.with_suffix("") for path in inside if _suffix(path) == ".tsv" and path.suffix != ".tsv"}
    for whole in sorted(wholes) if source.exists() else [source]:
        numbers = sorted(_parts_of(whole))
        first = min(numbers[0], 1) if numbers else 0
        missing = sorted(set(range(first, numbers[-1] if numbers else 0)) - set(numbers))
        if missing:
            expected = f"expected all from {first} to {numbers[-1]}"
            raise ValueError(f"{whole}: part {whole.name}.{missing[0]} is missing; {expected}")


def _parts_of(source: Path) -> dict[int, Path]:
    """`a.tsv.0`, `a.tsv.1`, ... of a source `a.tsv`, by their numbers."""
    beside = source.parent.glob(f"{glob.escape(source.name)}.*") if source.parent.is_dir() else ()
    return {int(path.suffix[1:]): path for path in sorted(beside) if re.fullmatch(r"\.[0-9]{1,6}", path.suffix)}


def _array_options(kind: str, layout: str | None, normalised_boxes: bool) -> ArrayOptions:
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"layout {layout!r}; expected {' or '.join(LAYOUTS)}")
    if kind == "tsv" and layout == "features_first":
        raise ValueError(
            "--features_first with kind tsv, whose rows always hold the features region by region; leave it out"
        )
    return ArrayOptions("regions_first" if kind == "tsv" else layout, normalised_boxes)


def guess_kind(source: Path) -> str:
    """The kind of features in a file or folder, from the suffixes.

    Raises:
        ValueError: There is none, or more than one.
    """
    by_suffix = {f".{kind}": kind for kind in READERS} | {".pth": "th", ".h5": "hdf5", ".mdb": "lmdb"}
    found = {by_suffix[_suffix(path)] for path in _files(source, *by_suffix) if _suffix(path) in by_suffix}
    if len(found) != 1:
        raise ValueError(
            f"{source}: holds {' and '.join(sorted(found)) or 'no features that are known'}; say which kind to convert"
        )
    return found.pop()


def read_tsv(path: Path) -> Records:
    """A line is `name height width <arrays> count boxes features`, or one of the other orders in `_TSV_ORDERS`.

    `COCO_train2014_000000132417<TAB>333<TAB>500<TAB>SAAAAAAA...` is the start of LXMERT's train2014_obj36.tsv.
    """
    for part in _files(path, ".tsv"):
        with part.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{part}: row {number}"
                if not line.strip() and _only_empty_lines_follow(file):
                    break
                line = line.removeprefix(BOM_UTF8) if number == 1 else line
                fields = line.rstrip(b"\r\n").split(b"\t")
                yield fields[0].decode("utf-8", "replace"), partial(_tsv_arrays, fields, where), where


def _only_empty_lines_follow(file: BinaryIO) -> bool:
    """Whether the file ends with them; otherwise it goes on where it was."""
    here = file.tell()
    ended = all(not line.strip() for line in iter(file.readline, b""))
    file.seek(here)
    return ended


def _tsv_arrays(fields: list[bytes], where: str) -> Arrays:
    if len(fields) not in _TSV_COLUMNS:
        known = ", ".join(map(str, _TSV_COLUMNS))
        raise ValueError(f"{where}: {len(fields)} columns; expected {known} (is the file cut off?)")
    row = dict(zip(_TSV_COLUMNS[len(fields)], fields, strict=True))
    numbers = {name: row[name] for name in ("height", "width", "count")}
    for name, text in numbers.items():
        if not re.fullmatch(rb"\d{1,9}(\.0*)?", text):
            raise ValueError(f"{where}: '{name}' is {text[:40]!r}; expected a whole number")
    height, width, count = (int(float(text)) for text in numbers.values())
    found: dict[str, Any] = {"height": height, "width": width}
    for name in _TSV_ARRAYS:
        if name in row:
            array = _from_base64(row[name], np.dtype("<i8" if name.endswith("ids") else "<f4"), f"{where}: '{name}'")
            shape = {"boxes": (count, 4), "features": (count, array.size // max(1, count))}.get(name, (count,))
            if array.size != np.prod(shape):
                raise ValueError(f"{where}: '{name}' has {array.size} numbers; expected {shape} for {count} boxes")
            found[name] = array.reshape(shape)
    return found


def _from_base64(text: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{where}: broken base64 ({error})") from error
    if len(data) % dtype.itemsize:
        raise ValueError(f"{where}: {len(data)} bytes; expected a multiple of {dtype.itemsize} ({dtype.name})")
    return np.frombuffer(data, dtype)


def read_npy(folder: Path) -> Records:
    """`COCO_train2014_000000000009.npy` [R, V] for each image (Pythia's detectron_fix_100), and perhaps `..._info.npy`: a dict
    with `bbox`, `num_boxes`, `objects`, `image_width` and `image_height`."""
    for path, name in _files(folder, ".npy").items():
        if not path.stem.endswith("_info"):
            yield name, partial(_with_info, path), str(path)


def _with_info(path: Path) -> Arrays:
    info = path.with_name(f"{path.stem}_info.npy")
    return {**(load_numpy(info) if info.is_file() else {}), **load_numpy(path)}


def read_npz(folder: Path) -> Records:
    """`dev-1-0-img0.png.npz` with `box_features` [R, V], `cls_boxes` [R, 4], `max_conf` [R] for each image."""
    return _numpy_records(_files(folder, ".npz"))


def _numpy_records(files: Mapping[Path, str]) -> Records:
    return ((name, partial(load_numpy, path), str(path)) for path, name in files.items())


def read_th(path: Path) -> Records:
    """`{"dev-1-0-img0.png": (features [R, V], boxes [R, 4], confidence [R]), ...}`, tensors or arrays."""
    for file in _files(path, ".th", ".pth"):
        try:
            chunk = load_chunk(file)
            if not isinstance(chunk, dict):
                raise ValueError(f"{file}: holds a {type(chunk).__name__}; expected features by image name")
        except ValueError as error:  # raised when the record is read
            yield file.name, partial(_raise, error), str(file)
            continue
        for name, record in chunk.items():
            where = f"{file}: image {name!r:.80}"
            if not isinstance(name, (str, int)):
                raise ValueError(f"{where}; expected names of images as keys")
            yield str(name), partial(_th_arrays, record, where), where


def _th_arrays(record: Any, where: str) -> Arrays:
    if isinstance(record, (tuple, list)) and 1 <= len(record) <= 3:
        record = dict(zip(("features", "boxes", "scores"), record, strict=False))
    if not isinstance(record, dict):
        raise ValueError(f"{where}: holds a {type(record).__name__}; expected (features, boxes, confidence)")
    return record


def read_lmdb(path: Path) -> Records:
    """A key for each image, and one, `keys`, with all of them; see [`lmdb_arrays`] for a value."""
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(f"{path}: LMDB needs lmdb: pip install 'modeling-visualbert[lmdb]'") from error
    for file in _files(path, ".mdb", ".lmdb"):
        if file.name == "lock.mdb":
            continue
        check_lmdb(file)
        try:
            environment = lmdb.open(str(file), subdir=False, readonly=True, lock=False, readahead=False, max_readers=1)
        except lmdb.Error as error:
            raise ValueError(f"{file}: not an LMDB file, or damaged ({error})") from error
        with environment, environment.begin() as transaction:
            listed = transaction.get(b"keys")
            names = None if listed is None else parse_arrays(bytes(listed), f"{file}: 'keys'")
            if names is not None:
                _check_all_listed(transaction, set(_keys(names, file)), file)
            for key in transaction.cursor().iternext(keys=True, values=False) if names is None else _keys(names, file):
                name = key.decode("utf-8", "replace")
                where = f"{file}: key {name!r:.80}"
                yield name, partial(_lmdb_arrays, transaction, key, where), where


def _keys(names: Any, file: Path) -> list[bytes]:
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, (bytes, str)) for name in names):
        raise ValueError(f"{file}: 'keys' holds {type(names).__name__}; expected a list of keys")
    return [name.encode() if isinstance(name, str) else name for name in names]


def _check_all_listed(transaction: Any, listed: set[bytes], file: Path) -> None:
    for key in transaction.cursor().iternext(keys=True, values=False):
        if key != b"keys" and key not in listed:
            raise ValueError(
                f"{file}: key {key.decode('utf-8', 'replace')!r} is not listed in 'keys'; expected all keys"
            )


def _lmdb_arrays(transaction: Any, key: bytes, where: str) -> Arrays:
    """A pickle of a dict of arrays, as MMF writes it, or ViLBERT, whose arrays are base64 of float32."""
    value = transaction.get(key)
    if value is None:
        raise ValueError(f"{where}: listed in 'keys', but not there; expected a value for each")
    found = dict_of_arrays(value, where)
    for name in ("features", "boxes"):
        if isinstance(found.get(name), (bytes, str)):
            text = found[name].encode() if isinstance(found[name], str) else found[name]
            array = _from_base64(text, np.dtype("<f4"), f"{where}: '{name}'")
            count = found.get("num_boxes")
            if not isinstance(count, (int, np.integer)) or count < 1 or array.size % count:
                raise ValueError(
                    f"{where}: '{name}' has {array.size} numbers for {count!r:.20} boxes; expected a multiple"
                )
            found[name] = array.reshape(int(count), -1)
    return found


def read_hdf5(path: Path) -> Records:
    """Features of all images in one file; the module's docstring shows the three forms.

    Where the images are numbered, their names are `image_ids` in the file, or in a JSON file (LXMERT: a list of records
    with `img_id`) or text file of the same name beside it.
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
                where = f"{path}: group {name!r:.80}"
                yield name, partial(_whole_group, group, where), where
            return
        if "pos_boxes" in arrays and arrays["pos_boxes"].shape[1:] != (2,):
            raise ValueError(f"{path}: 'pos_boxes' has shape {arrays['pos_boxes'].shape}; expected (images, 2)")
        by_image = "pos_boxes" if "pos_boxes" in arrays else name_of_features(arrays, str(path))
        names, sizes = _hdf5_names(path, arrays, len(arrays[by_image]))
        images = Hdf5Arrays(arrays)
        images.check_lengths(len(names), str(path))
        for row, name in enumerate(names):
            where = f"{path}: row {row}"
            yield name, partial(_row_of_images, images, row, sizes.get(row, {}), where), where


def _whole_group(group: Any, where: str) -> Arrays:
    with _placed(where):
        return Hdf5Arrays(group).whole()


def _row_of_images(images: Hdf5Arrays, row: int, size: Arrays, where: str) -> Arrays:
    with _placed(where):
        return {**images.row(row), **size}


@contextmanager
def _placed(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _hdf5_names(path: Path, arrays: Mapping[str, Any], count: int) -> tuple[list[str], dict[int, dict[str, Any]]]:
    sizes: dict[int, dict[str, Any]] = {}
    ids = arrays.get("image_ids", arrays.get("image_id"))
    if ids is not None:
        if ids.dtype.kind == "f":
            raise ValueError(f"{path}: '{ids.name[1:]}' holds {ids.dtype}; expected whole numbers or texts")
        names = [value.decode() if isinstance(value, bytes) else str(value) for value in ids[:].tolist()]
    elif path.with_suffix(".json").is_file():
        records = read_json(path.with_suffix(".json"))
        if not isinstance(records, list):
            raise ValueError(
                f"{path.with_suffix('.json')}: found {described(records)}; expected a list of names or records"
            )
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
    "lmdb": read_lmdb,
    "hdf5": read_hdf5,
}


def _checked(records: Records, source: Path, options: ArrayOptions) -> Iterator[RegionRecord]:
    """The regions of the records. Errors name the source: readers fail in ways of their own when a file is damaged."""

    @contextmanager
    def naming(where: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if str(error).startswith(str(source)):
                raise
            raise ValueError(f"{where}: cannot be read ({type(error).__name__}: {error!s:.200})") from error

    while True:
        with naming(str(source)):
            record = next(records, None)
        if record is None:
            return
        name, read, where = record
        yield name, naming(where)(lambda read=read, where=where: to_regions(read(), where, options)), where


def _with_spatial_features(read: Callable[[], Regions], where: str) -> Regions:
    """What is read, with features that end with the six spatial numbers of the boxes."""
    regions = read()
    features, boxes, size, given = (
        regions.get(key) for key in ("visual_embeds", "boxes", "image_size", "spatial_features")
    )
    features = np.asarray(features, dtype=np.float32)
    if boxes is not None and size is not None:
        boxes = np.asarray(boxes, dtype=np.float64)
        if boxes.shape != (len(features), 4):
            raise ValueError(f"{where}: boxes of shape {boxes.shape}; expected {(len(features), 4)}")
        numbers = spatial_features(normalise_boxes(torch.from_numpy(boxes), size)).numpy()
    elif given is not None:
        numbers = np.asarray(given)
        if numbers.shape != (len(features), NUM_SPATIAL_FEATURES):
            expected = (len(features), NUM_SPATIAL_FEATURES)
            raise ValueError(f"{where}: 'spatial_features' of shape {numbers.shape}; expected {expected}")
    else:
        unknown = " and ".join(n for n, v in (("the boxes", boxes), ("the size of the image", size)) if v is None)
        raise ValueError(
            f"{where}: spatial numbers need boxes and image sizes, but {unknown} cannot be read here; expected a source that "
            "holds both (such as tsv), or no --spatial"
        )
    return {**regions, "visual_embeds": np.concatenate((features, numbers.astype(np.float32)), axis=1)}


def _sized(read: Callable[[], Regions], dim: int) -> Regions:
    """What is read, with features [0, dim] where there are no regions: their dim in the source may be anything."""
    regions = read()
    return regions if len(regions["visual_embeds"]) else {**regions, "visual_embeds": np.zeros((0, dim), np.float32)}


def _names(path: str | Path | None) -> list[str] | None:
    return None if path is None else [line.strip() for line in read_text(path).splitlines()]


def _files(source: Path, *suffixes: str) -> dict[Path, str]:
    """The source itself if it is a file, or its parts, or else the files below it with one of the suffixes; with their names."""
    if source.is_file():
        return {source: source.name}
    if not source.is_dir():
        return {path: path.name for _, path in sorted(_parts_of(source).items())}
    paths = [path for path in files_below(source) if _suffix(path) in suffixes]
    return {path: path.relative_to(source).as_posix() for path in paths}


def _suffix(path: Path) -> str:
    """`.tsv` of `a.tsv` and of its part `a.tsv.1`."""
    return Path(path.stem).suffix if path.suffix[1:].isdigit() else path.suffix
