"""The published VisualBERT checkpoints and the region detectors that their features came from: `assets/published.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class PublishedFile:
    """A file at a public address and its rounded size."""

    url: str
    megabytes: int


@dataclass(frozen=True)
class PublishedDetector:
    """
    A region detector.

    Args:
        name: Its name in this package.
        title: What it is, in one line.
        region_dim: Length of a region feature.
        num_regions: Regions per image in the features of the paper; None for given boxes.
        hub: Hub name, or None.
        files: Weights and settings at public addresses; none for a detector that was never published alone.
    """

    name: str
    title: str
    region_dim: int
    num_regions: int | None = None
    hub: str | None = None
    files: tuple[PublishedFile, ...] = ()

    @property
    def is_published(self) -> bool:
        """Whether it can be downloaded by itself."""
        return bool(self.files)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A VisualBERT checkpoint on the Hub: its task, the length of its region features, the detector they came from, and the
    rounded size of its weights."""

    name: str
    task: str
    region_dim: int
    detector: PublishedDetector
    megabytes: int

    @property
    def files(self) -> tuple[PublishedFile, ...]:
        """All that was published: weights and configuration."""
        address = f"https://huggingface.co/{self.name}/resolve/main"
        return PublishedFile(f"{address}/pytorch_model.bin", self.megabytes), PublishedFile(f"{address}/config.json", 1)


@cache
def _table() -> dict[str, Any]:
    text = (files("modeling_visualbert") / "assets" / "published.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def published_tokenizer() -> str:
    """Hub name of the tokenizer of all published checkpoints."""
    return _table()["tokenizer"]


def authors_files() -> str:
    """The page with the links to the authors' own `.th` files, for a browser."""
    return _table()["authors_files"]


@cache
def published_detectors() -> dict[str, PublishedDetector]:
    """The detectors by name."""
    detectors = {}
    for name, row in _table()["detectors"].items():
        parts = tuple(PublishedFile(**part) for part in row.get("files", ()))
        detectors[name] = PublishedDetector(name=name, **{**row, "files": parts})
    return detectors


def find_published_detector(name: str | Path) -> PublishedDetector | None:
    """The detector of this name in this package or on the Hub, unless it is a file or folder here."""
    known = published_detectors().values()
    return None if Path(name).exists() else next((one for one in known if str(name) in (one.name, one.hub)), None)


def published_detector_name(name: str) -> str:
    """The name in this package of a published detector that is given by its name on the Hub; any other name as it is."""
    found = find_published_detector(name)
    return name if found is None else found.name


@cache
def published_checkpoints() -> dict[str, PublishedCheckpoint]:
    """The checkpoints by Hub name."""
    return {
        name: PublishedCheckpoint(name=name, **{**row, "detector": published_detectors()[row["detector"]]})
        for name, row in _table()["checkpoints"].items()
    }


def find_published_checkpoint(name: str | Path) -> PublishedCheckpoint | None:
    """The published checkpoint of this Hub name, unless it is a folder here."""
    return None if Path(name).exists() else published_checkpoints().get(str(name))


__all__ = [
    "PublishedCheckpoint",
    "PublishedDetector",
    "PublishedFile",
    "authors_files",
    "find_published_checkpoint",
    "find_published_detector",
    "published_checkpoints",
    "published_detector_name",
    "published_detectors",
    "published_tokenizer",
]
