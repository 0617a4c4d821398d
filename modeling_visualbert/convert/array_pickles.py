"""NumPy arrays in pickles, read without unpickling: Detectron's weights, MMF's features, and chunks of `torch.save`.

NumPy's own functions for it are not made for hostile files (a pickle can have them make objects from raw bytes, or change
NumPy's types for the whole process). Stand-ins take their place, which know numbers only and build an array from bytes
whose length has been checked. Pickles of arrays are read by a reader of our own, which carries out the few instructions
that such files consist of: it imports nothing, and its use of memory is bounded by the size of the file. Chunks of
`torch.save` hold tensors too, so torch's restricted reader reads them, with the same stand-ins.
"""

from __future__ import annotations

import codecs
import io
import math
import os
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch

from .checkpoint_files import load_torch, why_refused

MAX_INSTRUCTIONS = 2_000_000  # of a file: a detector's has about ten thousand
_LARGE = 1 << 16  # bytes of the content of an array that is not kept once the array is made

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # codes of the dtypes that are plain numbers


class _RefusedError(Exception):
    """What is wrong with a pickle."""


# ------------------------------------------------------------------------------------------------------- stand-ins


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            found = repr(code[:40]) if isinstance(code, str) else type(code).__name__
            raise _RefusedError(f"dtype {found}; expected numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """The state gives the byte order; anything else that it could give does not belong to plain numbers."""
        plain = len(state) >= 8 and all(item is None for item in state[2:5]) and type(state[7]) is int and state[7] == 0
        if not plain or state[1] not in ("<", ">", "|", "="):
            raise _RefusedError("a dtype with an unknown byte order, fields, parts or flags; expected plain numbers")
        self.dtype = self.dtype.newbyteorder(state[1])  # another dtype: NumPy's own would change itself


class _ObjectDtype(_Dtype):
    """Stands for the dtype of an array of Python objects, which is how NumPy saves a dict: an array around it."""

    def __init__(self, code: Any):
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """The state holds nothing that matters."""


def _any_dtype(code: Any, align: Any = False, copy: Any = True) -> _Dtype:
    return _ObjectDtype(code) if code in ("O8", "O4", "O") else _Dtype(code, align, copy)


@dataclass(eq=False)
class _Array:
    """Stands for `numpy.ndarray`. The array is None until its state is read, which may give the only object of one instead."""

    array: Any = field(default=None, init=False)
    memo: list[int] = field(default_factory=list, init=False)  # where the pickle keeps it

    def __setstate__(self, state: Any) -> None:
        self.array = _make_array(*state)


def _make_array(version: Any, shape: Any, dtype: Any, is_fortran: Any, content: Any) -> Any:
    """An array that shares its memory with the content, so that arrays of repeated content take none; or the object that an
    array holds."""
    if not isinstance(dtype, _Dtype):
        raise _RefusedError("an array without a dtype")
    if isinstance(dtype, _ObjectDtype):
        if shape not in ((), (1,)) or not isinstance(content, list) or len(content) != 1 or content[0] is None:
            raise _RefusedError("an array of objects; expected numbers, or one object")
        return _plain(content[0])
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise _RefusedError("an array whose shape is not a tuple of sizes")
    if isinstance(content, str):  # as Python 2 wrote bytes
        content = content.encode("latin1")
    if not isinstance(content, bytes):
        raise _RefusedError(f"{type(content).__name__} as the content of an array; expected bytes")
    stored = dtype.dtype
    if math.prod(shape) * stored.itemsize != len(content):
        raise _RefusedError(f"{len(content)} bytes for an array {shape[:8]} of {stored}")
    return np.frombuffer(content, stored).reshape(shape, order="F" if is_fortran is True or is_fortran == 1 else "C")


def _new_array(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _Array:
        raise _RefusedError("an array of another class than numpy.ndarray")
    return _Array()


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    """How protocol 5 writes an array."""
    if not isinstance(content, (bytes, bytearray)) or isinstance(dtype, _ObjectDtype) or axis_order is not None:
        raise _RefusedError("an array in an order that is not known here")
    array = _make_array(1, shape, dtype, order == "F", bytes(content))
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _scalar(dtype: Any, content: Any = b"") -> Any:
    return _make_array(1, (), dtype, False, content)[()]


def _ordered_dict(pairs: Any = ()) -> dict:
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise _RefusedError("an OrderedDict of something else than pairs")
    return _fill({}, [item for pair in pairs for item in pair])


def _encode(text: Any = "", encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("bytes in another encoding than latin1")
    return text.encode("latin1")


_ARRAY_STAND_INS: dict[str, Any] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _new_array,
    "numpy._core.multiarray._reconstruct": _new_array,
}
_STAND_INS: dict[str, Any] = {
    **_ARRAY_STAND_INS,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,  # how Python 3 writes bytes for Python 2
    "__builtin__.bytes": _encode,  # and how it writes empty bytes
}


def _plain(value: Any) -> Any:
    """The value, unless it is a stand-in."""
    if isinstance(value, (_Dtype, _Array)) or callable(value):
        raise _RefusedError("a dtype, a type, a function or an array without content where a value should be")
    return value


# ------------------------------------------------------------------------------------------------ chunks of torch


def load_chunk(path: Path) -> Any:
    """Read a file of `torch.save`: tensors and arrays of numbers in lists, tuples and dicts.

    Raises:
        ValueError: The file is damaged, or holds anything else, or tensors larger than what is stored of them.
    """
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in _ARRAY_STAND_INS.items()]):
            found = load_torch(path)
        return _with_arrays(found, {})
    except Exception as error:  # torch raises its own errors and those of pickle and zipfile
        reason = why_refused(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a chunk of tensors and arrays of numbers ({reason})") from error


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, unless it is far larger than what is stored of it (`expand`)."""
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held:
        shape = tuple(tensor.shape)
        raise _RefusedError(
            f"a tensor of shape {shape} in {held} bytes; expected all its numbers (`contiguous` before saving)"
        )
    return tensor


def _with_arrays(found: Any, done: dict[int, Any]) -> Any:
    """The same content with arrays instead of their stand-ins; `done` has, by id, the containers that occur repeatedly."""
    if isinstance(found, _Array) and found.array is not None:
        return found.array
    if isinstance(found, torch.Tensor):
        return _stored(found)
    if type(found) not in (list, tuple) and not isinstance(found, dict):
        return _plain(found)
    if id(found) not in done:
        if isinstance(found, dict):
            done[id(found)] = {_with_arrays(key, done): _with_arrays(value, done) for key, value in found.items()}
        else:
            done[id(found)] = type(found)(_with_arrays(item, done) for item in found)
    return done[id(found)]


# ----------------------------------------------------------------------------------------------- pickles of arrays


def load_arrays(path: str | Path) -> Any:
    """Read a pickle of NumPy arrays and plain containers, as Python 2 or 3 wrote it, without running code from it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds anything but arrays of numbers, strings and containers of them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    with path.open("rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size, str(path))


def parse_arrays(content: bytes, where: str) -> Any:
    """The same for a pickle in memory, which may be an array around one object, as NumPy saves a dict.

    Raises:
        ValueError: As for [`load_arrays`]; the message starts with `where`.
    """
    return _read(io.BytesIO(content), len(content), where, {**_STAND_INS, "numpy.dtype": _any_dtype})


def _read(file: BinaryIO, size: int, where: str, stand_ins: dict[str, Any] = _STAND_INS) -> Any:
    reader = _Reader(file, size, stand_ins)
    try:
        return reader.read()
    except Exception as error:  # a damaged pickle can fail anywhere
        reason = str(error) if isinstance(error, _RefusedError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:300]  # it may quote long names from the file
        raise ValueError(f"{where}: not a pickle that can be read safely: {reason}{reader.place()}") from error


class _File:
    """An open file for `pickletools`: whatever length an instruction gives, no more memory is taken than the file has bytes."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()) if count > 1 else count)


def _line_of_string(file: _File) -> str:
    """A quoted string of protocol 0: Python 2 wrote bytes so, which `pickletools` takes for ASCII."""
    line = file.readline().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise _RefusedError("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")  # as `pickle` does


class _Used:
    """Stands for what the memo had and has let go."""


class _Reader:
    """Carries out the instructions of one pickle. `stack` has a list for each open mark; the last is the current one."""

    def __init__(self, file: BinaryIO, size: int, stand_ins: dict[str, Any]):
        self.file, self.size, self.stand_ins = _File(file, size), size, stand_ins
        self.stack: list[list] = [[]]
        self.memo: dict[int, Any] = {}
        self.indices: dict[int, list[int]] = {}  # where the memo has it, by the id of a text, bytes or tuple
        self.open_arrays = 0
        # Content that a file repeats by reference takes no room in it, so what is made of it is counted. Genuine content
        # counts twice: as text that becomes bytes, and as bytes that become an array.
        self.left = 2 * self.size

    def read(self) -> Any:
        for name, argument in self._instructions():
            if name == "STOP":
                break
            _INSTRUCTIONS[name](self, argument)
        if self.open_arrays:
            raise _RefusedError("an array without content")
        return _plain(self.pop())

    def place(self) -> str:
        """Where reading stopped: the byte, and the last text not yet used, which in a dict of arrays is the name of one."""
        texts = (item for items in reversed(self.stack) for item in reversed(items) if isinstance(item, str))
        last = next(texts, None)
        return f" (byte {self.file.tell()}{'' if last is None else f', after {last[:80]!r}'})"

    def _instructions(self) -> Iterator[tuple[str, Any]]:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.file.read(1).decode("latin1")
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise _RefusedError(f"no instruction {code!r}" if code else "it ends too early")
            argument = None
            if opcode.name == "STRING":
                argument = _line_of_string(self.file)
            elif opcode.arg is not None:
                argument = opcode.arg.reader(cast("IO[bytes]", self.file))
            if opcode.name in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
                raise _RefusedError(f"it makes an object of a class ({opcode.name}); expected arrays only")
            if opcode.name != "STOP" and opcode.name not in _INSTRUCTIONS:
                raise _RefusedError(f"instruction {opcode.name}; expected those of arrays and plain containers only")
            yield opcode.name, argument
        raise _RefusedError(f"more than {MAX_INSTRUCTIONS} instructions; expected a file of large arrays")

    def push(self, value: Any) -> None:
        self.stack[-1].append(value)

    def pop(self) -> Any:
        if not self.stack[-1]:
            raise _RefusedError("a value is missing")
        return self.stack[-1].pop()

    def pop_many(self, count: int) -> tuple:
        return tuple([self.pop() for _ in range(count)][::-1])

    def pop_mark(self) -> list:
        if len(self.stack) < 2:
            raise _RefusedError("a mark is missing")
        return self.stack.pop()

    def mark(self) -> None:
        self.stack.append([])

    def top(self, expected: type) -> Any:
        if not self.stack[-1] or not isinstance(self.stack[-1][-1], expected):
            raise _RefusedError(f"an instruction for a {expected.__name__} that is not there")
        return self.stack[-1][-1]

    def extend(self, values: list) -> None:
        self.top(list).extend(map(_plain, values))

    def update(self, values: list) -> None:
        _fill(self.top(dict), values)

    def put(self, index: int) -> None:
        if not 0 <= index < self.size:
            raise _RefusedError(f"memo index {index} in a file of {self.size} bytes")
        value = self.top(object)
        self.memo[index] = value
        if isinstance(value, _Array):
            value.memo.append(index)
        elif isinstance(value, (str, bytes, tuple)):
            self.indices.setdefault(id(value), []).append(index)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _RefusedError(f"nothing at memo index {index}")
        if isinstance(self.memo[index], _Array):
            raise _RefusedError("an array is used before its content is read")
        if self.memo[index] is _Used:
            raise _RefusedError("the content of an array is used again")
        self.push(self.memo[index])

    def push_named(self, name: str) -> None:
        """Push the stand-in for `module attribute`."""
        name = name.replace(" ", ".")
        if name not in self.stand_ins:
            raise _RefusedError(f"it refers to {name}; expected arrays and plain containers only")
        self.push(self.stand_ins[name])

    def push_named_in_two(self) -> None:
        module, attribute = self.pop_many(2)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise _RefusedError("it refers to something without a name")
        self.push_named(f"{module} {attribute}")

    def call(self) -> None:
        function, arguments = self.pop_many(2)
        known = any(function is stand_in for stand_in in self.stand_ins.values())
        if not known or not isinstance(arguments, tuple):
            raise _RefusedError("a call of something that makes neither arrays nor containers")
        self.spend(sum(len(value) for value in arguments if isinstance(value, (str, bytes, list, tuple))))
        result = function(*arguments)  # a wrong number of arguments is a TypeError, and so a refusal
        self.open_arrays += isinstance(result, _Array)
        if isinstance(result, bytes) and len(result) > _LARGE:
            self.forget(arguments)
        self.push(result)

    def build(self) -> None:
        """Set the state of a dtype or of an array."""
        state = self.pop()
        target = self.top(object)
        if not isinstance(target, (_Dtype, _Array)) or not isinstance(state, tuple):
            raise _RefusedError("state for something that is neither a dtype nor an array")
        target.__setstate__(state)
        if isinstance(target, _Array) and target.array is not None and not isinstance(target.array, np.ndarray):
            self.stack[-1][-1] = target.array
            self.memo.update(dict.fromkeys(target.memo, target.array))
            self.open_arrays -= 1
        elif isinstance(target, _Array) and target.array is not None:
            self.spend(target.array.nbytes)
            # A copy, so that torch may write to it.
            array = target.array.astype(target.array.dtype.newbyteorder("="), order="C")
            self.stack[-1][-1] = array
            self.memo.update(dict.fromkeys(target.memo, array))
            self.open_arrays -= 1
            if array.nbytes > _LARGE:
                self.forget(state)

    def forget(self, used: tuple) -> None:
        """Let go of what an array was made of, its content above all: pickles keep everything in case that they need it again."""
        for value in (used, *used):
            if value is used or (isinstance(value, (str, bytes)) and len(value) > _LARGE):
                self.memo.update(dict.fromkeys(self.indices.pop(id(value), ()), _Used))

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _RefusedError(f"more content than a file of {self.size} bytes holds")


def _fill(found: dict, values: list) -> dict:
    """Add alternating keys and values. Keys are texts and numbers only: the hash of nested tuples can take forever."""
    if len(values) % 2:
        raise _RefusedError("a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, (str, bytes, int)):
            raise _RefusedError(f"{type(key).__name__} as a key; expected text")
        found[key] = _plain(value)
    return found


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = (
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
)


def _constant(value: Any) -> Callable[[_Reader, Any], None]:
    return lambda reader, _: reader.push(value)


_INSTRUCTIONS: dict[str, Callable[[_Reader, Any], Any]] = {
    **{name: _constant(value) for name, value in _CONSTANTS.items()},
    **dict.fromkeys(_VALUES, _Reader.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda reader, _: None),
    "MARK": lambda reader, _: reader.mark(),
    "POP": lambda reader, _: reader.pop(),
    "POP_MARK": lambda reader, _: reader.pop_mark(),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "TUPLE1": lambda reader, _: reader.push(reader.pop_many(1)),
    "TUPLE2": lambda reader, _: reader.push(reader.pop_many(2)),
    "TUPLE3": lambda reader, _: reader.push(reader.pop_many(3)),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.pop_mark())),
    "LIST": lambda reader, _: reader.push(reader.pop_mark()),
    "DICT": lambda reader, _: reader.push(_fill({}, reader.pop_mark())),
    "APPEND": lambda reader, _: reader.extend([reader.pop()]),
    "APPENDS": lambda reader, _: reader.extend(reader.pop_mark()),
    "SETITEM": lambda reader, _: reader.update(list(reader.pop_many(2))),
    "SETITEMS": lambda reader, _: reader.update(reader.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Reader.put),
    "MEMOIZE": lambda reader, _: reader.put(len(reader.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Reader.get),
    "GLOBAL": _Reader.push_named,
    "STACK_GLOBAL": lambda reader, _: reader.push_named_in_two(),
    "REDUCE": lambda reader, _: reader.call(),
    "BUILD": lambda reader, _: reader.build(),
}


__all__ = ["load_arrays", "load_chunk", "parse_arrays"]
