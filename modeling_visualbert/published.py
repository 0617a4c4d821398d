"""The published VisualBERT checkpoints and the region detectors that their features came from: `assets/published.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
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
        files: Files at public addresses; none for a detector on the Hub, or one that was never published alone.
        megabytes: Rounded size of the download.
    """

    name: str
    title: str
    region_dim: int
    num_regions: int | None = None
    hub: str | None = None
    files: tuple[PublishedFile, ...] = ()
    megabytes: int = 0

    @property
    def is_published(self) -> bool:
        """Whether it can be downloaded by itself."""
        return self.hub is not None or bool(self.files)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A VisualBERT checkpoint on the Hub: its task, the length of its region features and the detector they came from."""

    name: str
    task: str
    region_dim: int
    detector: PublishedDetector
    megabytes: int


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
        parts = tuple(PublishedFile(**part) for part in row.pop("files", ()))
        size = row.pop("megabytes", sum(part.megabytes for part in parts))
        detectors[name] = PublishedDetector(name=name, files=parts, megabytes=size, **row)
    return detectors


@cache
def published_checkpoints() -> dict[str, PublishedCheckpoint]:
    """The checkpoints by Hub name."""
    return {
        name: PublishedCheckpoint(name=name, **{**row, "detector": published_detectors()[row["detector"]]})
        for name, row in _table()["checkpoints"].items()
    }


__all__ = [
    "PublishedCheckpoint",
    "PublishedDetector",
    "PublishedFile",
    "authors_files",
    "published_checkpoints",
    "published_detectors",
    "published_tokenizer",
]
