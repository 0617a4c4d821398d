"""Reading checkpoint files of others without running code from them, and the report of what became of their tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


@dataclass(frozen=True)
class KeyReport:
    """What became of one tensor. `status` is loaded, tied (a copy of another), skipped (not part of our model) or new."""

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
        inside: Key of the dict with the tensors, in files that hold more than them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, holds anything but named tensors, or asks to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        weights = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); expected safetensors, never a pickle") from error
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        raise ValueError(f"{path}: not a checkpoint that can be read safely: {why_refused(error)}") from error
    if inside is not None and isinstance(weights, Mapping) and isinstance(weights.get(inside), Mapping):
        weights = weights[inside]
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path}: expected a dict of tensors by name, found {type(weights).__name__}")
    return dict(weights)


def why_refused(error: Exception) -> str:
    """What is wrong with a file of `torch.save`, without torch's advice to read the file in a way that runs its code."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    asked = re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", text)
    if asked:
        return f"it asks for {asked[1]}, which could run code"
    unpickling = re.search(r"WeightsUnpickler error: *(.+)", text)
    if unpickling:
        return unpickling[1].strip()
    if "Weights only load failed" in text:
        return "it is damaged, or asks for what could run code"
    return (text.splitlines() or [type(error).__name__])[0]


@contextmanager
def naming(file: str | Path, *told: str | Path) -> Iterator[None]:
    """Make whatever fails inside one line that names `file`, unless it names that or one of the files `told` already.

    For what is below code of others, where damaged files and wrong fields fail with any error, and on many lines.

    Raises:
        ValueError: Something failed.
        OSError: The file is not there, or cannot be had; it says so itself.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(tuple(f"{name}" for name in (file, *told))):
            raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise ValueError(f"{file}: cannot be used: {reason}") from error


def summarise(report: list[KeyReport]) -> str:
    """One line such as `61 loaded, 1 tied, 2 new`."""
    return ", ".join(f"{count} {status}" for status, count in Counter(item.status for item in report).items())


__all__ = ["KeyReport", "load_weights", "naming", "summarise", "why_refused"]
