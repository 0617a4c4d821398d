"""A feature store being written: shard by shard, by any number of processes, to be left and taken up again at any point.

It lies in `<store>.partial` until it is complete::

    plan.json                      what the store will hold; a run that goes on with it must want the same
    data/shard-00000.arrow ...     complete shards (each appears under its name when it is complete)
    parts/00000.json ...           rows, size and checksum of each, and the images of it that could not be read

What a shard holds depends on the images alone, so it does not matter when it is written, or by which process: a store
that was interrupted ends with the bytes of one that was not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.files import read_json, read_json_lines
from .format import FORMAT, IDS_SCHEMA, SCHEMA, Row, atomic_file, read_table, write_json, write_table

_INDEX, _IDS, _FAILED, _PLAN, _PARTS = "index.json", "ids.arrow", "failed.jsonl", "plan.json", "parts"
_CARD = "README.md"
Failure = dict[str, Any]


class StoreDraft:
    """The folder in which a store is written; see the module. `begin` makes it, `finish` makes a store of it."""

    def __init__(self, folder: Path, final: Path):
        self.folder, self.final = folder, final

    @classmethod
    def begin(cls, folder: Path, final: Path, plan: Mapping[str, Any]) -> StoreDraft:
        """Start a draft, or go on with the one that is there.

        Raises:
            ValueError: The one that is there was started to become another store; names what differs.
        """
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / _PARTS).mkdir(exist_ok=True)
        if (folder / _PLAN).is_file():
            check_plan(folder, read_json(folder / _PLAN), plan)
        else:
            write_json(folder / _PLAN, dict(plan))
        return cls(folder, final)

    @classmethod
    def reopen(cls, final: Path, folder: Path, shards_to_redo: Iterable[int]) -> StoreDraft:
        """Make a draft of a complete store again, in which some shards are missing.

        Until it is finished there is no store under the final name; what is interrupted goes on when it is called again.
        """
        info = read_json(final / _INDEX)
        per_shard = info["images_per_shard"]
        failures = read_failures(final)
        redo = set(shards_to_redo)
        final.rename(folder)
        (folder / _PARTS).mkdir(exist_ok=True)
        draft = cls(folder, final)
        by_number = {_shard_number(shard["file"]): shard for shard in info["shards"]}
        for number in range(-(-info["source"]["images"] // per_shard)):
            failed = [f for f in failures if f["position"] // per_shard == number]
            shard = by_number.get(number, {"file": None, "rows": 0, "regions": 0, "bytes": 0, "sha256": ""})
            if number not in redo:
                write_json(draft._part(number), {**shard, "failed": failed})
        write_json(folder / _PLAN, {key: info[key] for key in plan_keys()})
        (folder / _INDEX).unlink()
        return draft

    def part(self, number: int) -> dict[str, Any] | None:
        """What is known of a shard that is complete, else None."""
        return read_json(self._part(number)) if self._part(number).is_file() else None

    def image_ids(self, number: int) -> list[str]:
        """The images in a complete shard."""
        part = self.part(number)
        return [] if part is None or part["file"] is None else _ids_of(self.folder / part["file"]).to_pylist()

    def write_shard(self, number: int, rows: Iterable[Row], failed: Sequence[Failure] = ()) -> None:
        """Write a shard and note that it is complete.

        Args:
            number: Its number.
            rows: Its rows, in order.
            failed: Images that belong into it and could not be read.

        Raises:
            OSError: It could not be written; a full disk is called so.
        """
        name = f"data/shard-{number:05d}.arrow"
        regions = 0

        def counted() -> Iterator[Row]:
            nonlocal regions
            for row in rows:
                regions += row["num_regions"]
                yield row

        count, size, sha256 = write_table(self.folder / name, SCHEMA, counted())
        part = {"file": name, "rows": count, "regions": regions, "bytes": size, "sha256": sha256}
        if not count:  # `datasets` cannot open what holds no rows
            (self.folder / name).unlink()
            part = {"file": None, "rows": 0, "regions": 0, "bytes": 0, "sha256": ""}
        write_json(self._part(number), {**part, "failed": list(failed)})

    def discard(self, number: int) -> None:
        """Forget a complete shard, so that it is written again."""
        self._part(number).unlink()

    def finish(self, num_shards: int) -> None:
        """All shards are there: write the index and give the store its name.

        Raises:
            ValueError: A shard is missing, or an image id occurs twice.
        """
        if not (self.folder / _INDEX).is_file():  # else it was interrupted after this
            parts = [self.part(number) for number in range(num_shards)]
            missing = [number for number, part in enumerate(parts) if part is None]
            if missing:
                raise ValueError(
                    f"{self.folder}: {len(missing)} of {num_shards} shards are missing, the first is {missing[0]}; "
                    "run the command again"
                )
            self._write_index([part for part in parts if part is not None])
        shutil.rmtree(self.folder / _PARTS, ignore_errors=True)
        (self.folder / _PLAN).unlink(missing_ok=True)
        for path in (*self.folder.glob(".*.tmp"), *self.folder.glob("data/.*.tmp")):  # of killed processes
            path.unlink()
        self.folder.rename(self.final)

    def _write_index(self, parts: Sequence[dict[str, Any]]) -> None:
        shards = [
            {key: value for key, value in part.items() if key != "failed"} for part in parts if part["file"] is not None
        ]
        ids_bytes, ids_sha256 = self._write_ids([self.folder / shard["file"] for shard in shards])
        failed = [failure for part in parts for failure in part["failed"]]
        (self.folder / _FAILED).unlink(missing_ok=True)
        if failed:
            with atomic_file(self.folder / _FAILED) as file:
                file.write("".join(json.dumps(failure) + "\n" for failure in failed).encode())
        info = read_json(self.folder / _PLAN) | {
            "num_images": sum(shard["rows"] for shard in shards),
            "num_regions": sum(shard["regions"] for shard in shards),
            "ids": {"file": _IDS, "bytes": ids_bytes, "sha256": ids_sha256},
            "shards": shards,
        }
        with atomic_file(self.folder / _CARD) as file:
            file.write(_card(info).encode())
        write_json(self.folder / _INDEX, info)

    def _write_ids(self, paths: Sequence[Path]) -> tuple[int, str]:
        columns = [_ids_of(path) for path in paths]
        ids = pa.concat_arrays(columns) if columns else pa.array([], pa.string())
        order = pc.sort_indices(ids)
        ids = ids.take(order)
        twice = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        if twice.any():
            raise ValueError(f"{self.folder}: image {ids[int(twice.argmax())]} twice; expected each image once")
        lengths = [len(column) for column in columns]
        shard = np.repeat(np.arange(len(paths), dtype=np.int32), lengths)
        row = np.concatenate([np.arange(length, dtype=np.int32) for length in (0, *lengths)])
        batch = pa.record_batch([ids, pa.array(shard).take(order), pa.array(row).take(order)], schema=IDS_SCHEMA)
        with (
            atomic_file(self.folder / _IDS) as file,
            pa.ipc.new_stream(pa.PythonFile(file, mode="w"), IDS_SCHEMA) as writer,
        ):
            writer.write_batch(batch)
        return file.bytes, file.digest.hexdigest()

    def _part(self, number: int) -> Path:
        return self.folder / _PARTS / f"{number:05d}.json"


def make_plan(
    dim: int,
    dtype: str,
    detector: str | Mapping[str, Any],
    images_per_shard: int,
    names: Mapping[str, Sequence[str] | None] | None = None,
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a store will hold: the part of its index that is known before the first image is read."""
    if images_per_shard < 1:
        raise ValueError(f"{images_per_shard} images in a shard; expected at least 1")
    about = {"name": detector} if isinstance(detector, str) else dict(detector)
    return {
        "format": FORMAT,
        "dim": dim,
        "dtype": dtype,
        "detector": {"name": about.pop("name"), "fingerprint": about.pop("fingerprint", None), **about},
        "classes": _listed(names, "classes"),
        "attributes": _listed(names, "attributes"),
        "images_per_shard": images_per_shard,
        "source": dict(source or {}),
    }


def plan_keys() -> tuple[str, ...]:
    """The keys of a plan."""
    return tuple(make_plan(1, "float32", "", 1))


def check_plan(folder: Path, started: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: A store was started (or made) to become another one; names what differs.
    """
    for key in wanted:
        if started.get(key) != wanted[key]:
            raise ValueError(
                f"{folder} was started with {key} {_short(started.get(key))}, not {_short(wanted[key])}; go on with the "
                "same, remove it, or choose another folder"
            )


def read_failures(folder: Path) -> list[Any]:
    """The images of a store that could not be read."""
    return [record for _, record in read_json_lines(folder / _FAILED)] if (folder / _FAILED).is_file() else []


def _card(info: Mapping[str, Any]) -> str:
    """A dataset card, which also tells `load_dataset` which files hold the rows."""
    detector = info["detector"]
    return f"""---
configs:
- config_name: default
  data_files: data/*.arrow
---
# Region features

{info["num_regions"]} regions of {info["num_images"]} images: features of dim {info["dim"]} ({info["dtype"]}),
by {detector["name"]} (fingerprint {detector["fingerprint"]}). A feature store of `modeling_visualbert`:

```python
from datasets import load_dataset
from modeling_visualbert.features.format import decode_row
from modeling_visualbert.features.store import FeatureStore

regions = FeatureStore("this folder")["image id"]                                  # memory-mapped, by image id
rows = load_dataset("this folder, or its name on the Hub", split="train", streaming=True)
regions = decode_row(next(iter(rows)), dim={info["dim"]}, dtype="{info["dtype"]}")
```
"""


def _listed(names: Mapping[str, Sequence[str] | None] | None, key: str) -> list[str] | None:
    found = (names or {}).get(key)
    return None if found is None else list(found)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _ids_of(path: Path) -> pa.Array:
    return read_table(path, SCHEMA).column("image_id").combine_chunks()


def _shard_number(file: str) -> int:
    return int(Path(file).stem.removeprefix("shard-"))
