"""Chunks of `torch.save` with tensors and NumPy arrays, read without running code from them.

Torch's restricted reader builds tensors. Arrays are built here: NumPy's own functions for it are not made for hostile files
(a pickle can ask them for objects made of raw bytes, or to change NumPy's types for the whole process), so stand-ins take
their place, which know numbers and nothing else.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..convert.array_pickles import NUMBERS
from ..convert.checkpoint_files import why_refused


class _PickledDtype:
    """Stands for `numpy.dtype` while a pickle is read."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        if not isinstance(code, str) or not NUMBERS.fullmatch(code):
            raise ValueError(f"an array of {code!r}; expected numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)  # another dtype: NumPy's own would change itself


class _PickledArray:
    """Stands for `numpy.ndarray` while a pickle is read."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _PickledDtype) or not isinstance(data, bytes):
            raise ValueError("an array of Python objects; expected numbers")
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")


def _reconstruct(*_: Any) -> _PickledArray:
    return _PickledArray()


_STAND_INS: list[Any] = [
    (_PickledDtype, "numpy.dtype"),
    (_PickledArray, "numpy.ndarray"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
]


def load_chunk(path: Path) -> Any:
    """What is in a file of `torch.save`: tensors and arrays of numbers in lists, tuples and dicts.

    Raises:
        ValueError: It is damaged, or asks for anything else.
    """
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            # New files are archives, of which only the tensors looked at are read.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
        return _with_arrays(found)
    except Exception as error:  # torch raises pickle's, zipfile's and its own errors
        raise ValueError(f"{path}: not a chunk of tensors and arrays of numbers ({why_refused(error)})") from error


def _with_arrays(found: Any) -> Any:
    """The same with arrays in the place of what stood for them."""
    if isinstance(found, _PickledArray):
        if found.array is None:
            raise ValueError("an array without numbers")
        return found.array
    if isinstance(found, dict):
        return {_with_arrays(key): _with_arrays(value) for key, value in found.items()}
    if type(found) in (list, tuple):
        return type(found)(_with_arrays(item) for item in found)
    if isinstance(found, (_PickledDtype, type)) or callable(found):
        raise ValueError("a type or a function")
    return found
