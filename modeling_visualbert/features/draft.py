"""A feature store that is being written: shard by shard, by any number of processes, and resumable at any point.

Until it is complete it is kept in `<store>.partial`::

    plan.json                      what the store will hold; a resumed run must have the same plan
    data/shard-00000.arrow ...     complete shards (each appears under its name only once it is complete)
    parts/00000.json ...           rows, size and checksum of each shard, which of its images could not be read, and what is
                                   known of the files of the others

The contents of a shard depend only on the images, not on when or by which process it is written, so a run that was
interrupted ends with exactly the bytes of one that was not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.files import read_json, read_json_lines
from ..disk import write_json, write_text
from .format import (
    FORMAT,
    IDS_SCHEMA,
    SCHEMA,
    Row,
    read_table,
    repeated_id,
    write_batches,
    write_rows,
)
from .image_files import ImageFile, from_records, read_image_files, to_records, write_image_files

_INDEX, _IDS, _FAILED, _PLAN, _PARTS = "index.json", "ids.arrow", "failed.jsonl", "plan.json", "parts"
_CARD, _IMAGES = "README.md", "images.arrow"
_EMPTY = {"file": None, "rows": 0, "regions": 0, "bytes": 0, "sha256": ""}  # `datasets` cannot open a file without rows
Failure = dict[str, Any]


@contextmanager
def saying_how_to_go_on(folder: Path) -> Iterator[None]:
    """Inside the block shards are written to the draft in `folder`.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"interrupted; the same command goes on with the complete shards in {folder}"
        ) from error


class StoreDraft:
    """The folder in which a store is written; see the module. `begin` creates it, `finish` turns it into a store."""

    def __init__(self, folder: Path, final: Path):
        self.folder, self.final = folder, final

    @classmethod
    def begin(cls, folder: Path, final: Path, plan: Mapping[str, Any]) -> StoreDraft:
        """Start a draft, or resume the existing one.

        Raises:
            ValueError: The existing one was started with another plan; names what differs.
        """
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / _PARTS).mkdir(exist_ok=True)
        if (folder / _PLAN).is_file():
            check_plan(folder, read_json(folder / _PLAN), plan)
        else:
            write_json(folder / _PLAN, dict(plan))
        return cls(folder, final)

    @classmethod
    def reopen(cls, final: Path, folder: Path, plan: Mapping[str, Any], shards_to_redo: Iterable[int]) -> StoreDraft:
        """Turn a complete store with this plan back into a draft, in which some shards are missing.

        Until it is finished, there is no store under the final name. If this is interrupted, the next call resumes it.
        """
        info, failures, per_shard = read_json(final / _INDEX), read_failures(final), plan["images_per_shard"]
        redo = set(shards_to_redo)
        final.rename(folder)
        (folder / _PARTS).mkdir(exist_ok=True)
        draft = cls(folder, final)
        files = read_image_files(folder / info["images"]["file"]) if "images" in info else {}
        shards = {shard["file"]: shard for shard in info["shards"]}
        for number in range(-(-info["source"]["images"] // per_shard)):
            failed = [f for f in failures if f["position"] // per_shard == number]
            if number not in redo:
                shard = shards.get(_shard_file(number), _EMPTY)
                kept = {key: files[key] for key in draft._ids_in(shard) if key in files}
                write_json(draft._part(number), {**shard, "failed": failed, "images": to_records(kept)})
        write_json(folder / _PLAN, dict(plan))
        (folder / _INDEX).unlink()
        return draft

    def part(self, number: int) -> dict[str, Any] | None:
        """The record of a shard, or None if it is not complete."""
        return read_json(self._part(number)) if self._part(number).is_file() else None

    def image_ids(self, number: int) -> list[str]:
        """The images in a complete shard."""
        return self._ids_in(self.part(number) or _EMPTY)

    def _ids_in(self, shard: Mapping[str, Any]) -> list[str]:
        return [] if shard["file"] is None else read_table(self.folder / shard["file"], SCHEMA)["image_id"].to_pylist()

    def image_files(self, number: int) -> dict[str, ImageFile]:
        """What is known of the image files of a complete shard."""
        return from_records((self.part(number) or {}).get("images", ()))

    def write_shard(
        self,
        number: int,
        rows: Iterable[Row],
        failed: Sequence[Failure] = (),
        files: Mapping[str, ImageFile] | None = None,
    ) -> None:
        """Write a shard and record that it is complete.

        Args:
            number: Its number.
            rows: Its rows, in order.
            failed: Images that belong in it but could not be read.
            files: What is known of the image files, by image id.

        Raises:
            OSError: It could not be written, for example because the disk is full.
        """
        path = self.folder / _shard_file(number)
        count, size, sha256 = write_rows(path, rows)
        if count:
            regions = pc.sum(read_table(path, SCHEMA)["num_regions"]).as_py()
            part = {"file": _shard_file(number), "rows": count, "regions": regions, "bytes": size, "sha256": sha256}
        else:
            path.unlink()
            part = _EMPTY
        write_json(self._part(number), {**part, "failed": list(failed), "images": to_records(files or {})})

    def discard(self, number: int) -> None:
        """Forget a complete shard, so that it is written again."""
        self._part(number).unlink()

    def finish(self, num_shards: int) -> None:
        """Write the index once all shards are there, and give the store its final name.

        Raises:
            ValueError: A shard is missing, or an image id occurs twice.
        """
        if not (self.folder / _INDEX).is_file():  # otherwise it was interrupted after writing the index
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
        for path in (*self.folder.glob(".*.tmp"), *self.folder.glob("data/.*.tmp")):  # left by killed processes
            path.unlink()
        self.folder.rename(self.final)

    def _write_index(self, parts: Sequence[dict[str, Any]]) -> None:
        own = ("failed", "images")
        shards = [{k: v for k, v in part.items() if k not in own} for part in parts if part["file"] is not None]
        ids_bytes, ids_sha256 = self._write_ids([shard["file"] for shard in shards])
        failed = [failure for part in parts for failure in part["failed"]]
        (self.folder / _FAILED).unlink(missing_ok=True)
        if failed:
            write_text(self.folder / _FAILED, "".join(json.dumps(failure) + "\n" for failure in failed))
        info = read_json(self.folder / _PLAN) | {
            "num_images": sum(shard["rows"] for shard in shards),
            "num_regions": sum(shard["regions"] for shard in shards),
            "ids": {"file": _IDS, "bytes": ids_bytes, "sha256": ids_sha256},
            "shards": shards,
            **self._write_image_files(parts),
        }
        write_text(self.folder / _CARD, _card(info))
        write_json(self.folder / _INDEX, info)

    def _write_ids(self, files: Sequence[str]) -> tuple[int, str]:
        tables = [IDS_SCHEMA.empty_table()]
        for number, file in enumerate(files):
            ids = read_table(self.folder / file, SCHEMA)["image_id"]
            places = [pa.array(np.full(len(ids), number, np.int32)), pa.array(np.arange(len(ids), dtype=np.int32))]
            tables.append(pa.table([ids, *places], schema=IDS_SCHEMA))
        table = pa.concat_tables(tables).sort_by("image_id")
        batch = pa.record_batch([column.combine_chunks() for column in table.columns], schema=IDS_SCHEMA)
        if (twice := repeated_id(batch["image_id"])) is not None:
            raise ValueError(f"{self.folder}: image {twice} twice; expected each image once")
        return write_batches(self.folder / _IDS, IDS_SCHEMA, [batch])[1:]

    def _write_image_files(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The entry of the index, if anything is known of the image files."""
        files = from_records(record for part in parts for record in part.get("images", ()))
        (self.folder / _IMAGES).unlink(missing_ok=True)
        if not files:
            return {}
        size, sha256 = write_image_files(self.folder / _IMAGES, files)
        return {"images": {"file": _IMAGES, "bytes": size, "sha256": sha256}}

    def _part(self, number: int) -> Path:
        return self.folder / _PARTS / f"{number:05d}.json"


def _shard_file(number: int) -> str:
    return f"data/shard-{number:05d}.arrow"


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
    listed = {key: (names or {}).get(key) for key in ("classes", "attributes")}
    return {
        "format": FORMAT,
        "dim": dim,
        "dtype": dtype,
        "detector": {"name": about.pop("name"), "fingerprint": about.pop("fingerprint", None), **about},
        **{key: None if found is None else list(found) for key, found in listed.items()},
        "images_per_shard": images_per_shard,
        "source": dict(source or {}),
    }


def check_plan(folder: Path, started: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: A store was started (or completed) with another plan; names what differs.
    """
    for key in wanted:
        if started.get(key) != wanted[key]:
            was, now = json.dumps(started.get(key)), json.dumps(wanted[key])
            raise ValueError(
                f"{folder} was started with {key} {_short(was)}, not {_short(now)}; use the same settings, remove it, or "
                "choose another folder"
            )


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def read_failures(folder: Path) -> list[Any]:
    """The images of a store that could not be read."""
    return [record for _, record in read_json_lines(folder / _FAILED)] if (folder / _FAILED).is_file() else []


def _card(info: Mapping[str, Any]) -> str:
    """The dataset card, which also tells `load_dataset` which files hold the rows."""
    detector = info["detector"]
    spatial = ", the last six of them spatial numbers of the box" if detector.get("spatial_features") else ""
    return f"""---
configs:
- config_name: default
  data_files: data/*.arrow
---
# Region features

{info["num_regions"]} regions of {info["num_images"]} images: features of dim {info["dim"]} ({info["dtype"]}){spatial},
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
