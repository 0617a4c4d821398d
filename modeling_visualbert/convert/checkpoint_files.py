"""Reads checkpoint files without running code from them, and reports what became of their tensors."""

from __future__ import annotations

import re
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..hub_code.loading_visualbert import check_archive, check_repeated, load_tensors


@dataclass(frozen=True)
class KeyReport:
    """What became of one tensor.

    `status` is loaded, tied (a copy of another), skipped (not part of our model) or new (not in the file).
    """

    original: str | None
    name: str | None
    shape: tuple[int, ...]
    status: str

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.status:8} {self.original or '-'} -> {self.name or '-'} [{shape}]"


def load_weights(path: str | Path, inside: str | None = None) -> dict[str, torch.Tensor]:
    """Read a flat dict of tensors from a `.safetensors` or `torch.save` file, without running code from it.

    Args:
        path: The file.
        inside: Key of the dict with the tensors, in files that hold more than tensors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds anything but named tensors, repeats its numbers, or could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else load_torch(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); expected safetensors, never a pickle") from error
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        reason = why_refused(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a checkpoint that can be read safely: {reason}") from error
    if inside is not None and isinstance(weights, Mapping) and isinstance(weights.get(inside), Mapping):
        weights = weights[inside]
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path}: expected a dict of tensors by name, found {type(weights).__name__}")
    for name in weights:
        if not isinstance(name, str):
            raise ValueError(f"{path}: expected a dict of tensors by name, found the name {name!r:.80}")
    check_repeated(path, weights.values())
    return dict(weights)


def load_torch(path: Path) -> Any:
    """The content of a file of `torch.save`, without running code from it. Of an archive, only what is used is read.

    Raises:
        ValueError: It is an archive, but not as `torch.save` wrote it.
        Exception: It is damaged, or could run code; see [`why_refused`].
    """
    mapped = check_archive(path) and not _has_other_byte_order(path)  # torch turns bytes only in files that it reads
    return load_tensors(path, "cpu", mapped)


def _has_other_byte_order(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        order = next((name for name in archive.namelist() if name.endswith("/byteorder")), None)
        return order is not None and archive.read(order).decode() != sys.byteorder


def why_refused(error: Exception) -> str:
    """What is wrong with a file of `torch.save`, without torch's advice to load it in a way that runs its code."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    named = re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", text)
    if named:
        return f"it refers to {named[1]}, which could run code"
    unpickling = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    if unpickling:
        return unpickling[1].strip()
    if "Weights only load failed" in text:
        return "it is damaged, or refers to something that could run code"
    return next(filter(str.strip, text.splitlines()), type(error).__name__)


def summarise(report: list[KeyReport]) -> str:
    """One line such as `61 loaded, 1 tied, 2 new`."""
    return ", ".join(f"{count} {status}" for status, count in Counter(item.status for item in report).items())


__all__ = ["KeyReport", "load_torch", "load_weights", "summarise", "why_refused"]
