"""A folder of region features: one Arrow row for each image, features as raw bytes, read from the memory map.

::

    <store>/index.json   {"format": 2, "dim": 73, "dtype": "float32", "detector": "...", "num_images": 9500}
    <store>/data/        a `datasets` folder with the columns of `FEATURES`

The bytes are those of little-endian C-ordered arrays: `features` [num_regions, dim] of `dtype`, `boxes` float32
[num_regions, 4] (x1, y1, x2, y2 in pixels), `scores` float32 and `class_ids` int32 [num_regions].
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Value, load_from_disk
from datasets import Features as ArrowFeatures

from ..data.files import read_json, require

FORMAT = 2
FEATURES = ArrowFeatures(
    {
        "image_id": Value("string"),  # a number (COCO, Flickr30k) or a name (NLVR2, VCR)
        "height": Value("int32"),
        "width": Value("int32"),
        "num_regions": Value("int32"),
        "features": Value("large_binary"),
        "boxes": Value("large_binary"),
        "scores": Value("large_binary"),
        "class_ids": Value("large_binary"),
    }
)
_DTYPES = ("float32", "float16")


class FeatureStore:
    """Random access to the regions of images: `store[image_id]` is a mapping as in `regions_visualbert`.

    Raises:
        FileNotFoundError: The folder holds no complete store.
        ValueError: It is of another format, or damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "index.json").is_file():
            raise FileNotFoundError(f"{self.folder}: no feature store (index.json is missing)")
        where = str(self.folder / "index.json")
        self.info = read_json(where)
        if require(self.info, "format", where) != FORMAT:
            raise ValueError(f"{where}: format {self.info['format']!r}; this version reads {FORMAT}")
        self.dim, self.dtype = require(self.info, "dim", where), require(self.info, "dtype", where)
        if self.dtype not in _DTYPES:
            raise ValueError(f"{where}: dtype {self.dtype!r}; expected one of {', '.join(_DTYPES)}")
        if require(self.info, "num_images", where) == 0:  # `datasets` cannot open what holds no rows
            self.rows = Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
            self._row_of: dict[str, int] = {}
            return
        try:
            self.rows = load_from_disk(self.folder / "data")
        except (OSError, ValueError, KeyError) as error:  # pyarrow's and datasets' errors name no file
            raise ValueError(f"{self.folder}: the data is damaged or missing ({error})") from error
        if len(self.rows) != require(self.info, "num_images", where):
            raise ValueError(f"{where}: {self.info['num_images']} images, but the data holds {len(self.rows)}")
        image_ids = self.rows.data.column("image_id").to_pylist()
        self._row_of = {image_id: row for row, image_id in enumerate(image_ids)}

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, image_id: object) -> bool:
        return str(image_id) in self._row_of

    def __getitem__(self, image_id: object) -> dict[str, torch.Tensor]:
        if image_id not in self:
            raise KeyError(f"{self.folder}: no regions of image {image_id}")
        row = self.rows[self._row_of[str(image_id)]]
        count = row["num_regions"]
        return {
            "visual_embeds": _read(
                row["features"], self.dtype, (count, self.dim), f"{self.folder}: image {image_id}"
            ).float(),
            "boxes": _read(row["boxes"], "float32", (count, 4), f"{self.folder}: image {image_id}"),
            "scores": _read(row["scores"], "float32", (count,), f"{self.folder}: image {image_id}"),
            "class_ids": _read(row["class_ids"], "int32", (count,), f"{self.folder}: image {image_id}").long(),
            "image_size": torch.tensor([row["height"], row["width"]]),
        }


def write_store(
    folder: str | Path,
    regions: Iterable[tuple[object, Mapping[str, torch.Tensor]]],
    dim: int,
    detector: str,
    dtype: str = "float32",
) -> None:
    """Write a store; the folder appears only when it is complete.

    Args:
        folder: Where to; must not exist.
        regions: (image id, regions in pixels) pairs, ids being numbers or names, as [`split_regions`] makes them.
        dim: Length of a feature.
        detector: What made the regions, for the index.
        dtype: `"float32"` or `"float16"`.

    Raises:
        FileExistsError: `folder` exists.
        ValueError: An image id comes twice, or a feature has another length.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; remove it or choose another folder")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}; expected one of {', '.join(_DTYPES)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    draft.chmod(0o755)
    try:
        seen: set[str] = set()
        rows: dict[str, list] = {name: [] for name in FEATURES}
        for key, item in regions:
            image_id = str(key)
            if image_id in seen:
                raise ValueError(f"image {image_id} twice; expected each image once")
            seen.add(image_id)
            arrays = _arrays(item, dim, dtype, f"image {image_id}")
            values = (image_id, *item["image_size"].tolist(), len(item["visual_embeds"]))
            for name, value in zip(FEATURES, (*values, *arrays), strict=True):
                rows[name].append(value)
        Dataset.from_dict(rows, features=FEATURES).save_to_disk(draft / "data")
        info = {"format": FORMAT, "dim": dim, "dtype": dtype, "detector": detector, "num_images": len(seen)}
        (draft / "index.json").write_text(json.dumps(info, indent=2), encoding="utf-8")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _arrays(item: Mapping[str, torch.Tensor], dim: int, dtype: str, where: str) -> list[bytes]:
    count = len(item["visual_embeds"])
    columns = {
        "visual_embeds": (dtype, (count, dim)),
        "boxes": ("float32", (count, 4)),
        "scores": ("float32", (count,)),
        "class_ids": ("int32", (count,)),
    }
    arrays = []
    for name, (kind, shape) in columns.items():
        if tuple(item[name].shape) != shape:
            raise ValueError(f"{where}: '{name}' has shape {tuple(item[name].shape)}; expected {shape}")
        array = item[name].cpu().numpy()
        if kind == "float16" and np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
            raise ValueError(
                f"{where}: '{name}' does not fit into float16; expected values up to 65504, or dtype float32"
            )
        arrays.append(np.ascontiguousarray(array, dtype=np.dtype(kind).newbyteorder("<")).tobytes())
    return arrays


def _read(data: bytes, dtype: str, shape: tuple[int, ...], where: str) -> torch.Tensor:
    array = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<"))
    if array.size != int(np.prod(shape)):
        raise ValueError(f"{where}: {array.size} numbers stored, expected {shape}")
    return torch.from_numpy(array.reshape(shape).copy())
