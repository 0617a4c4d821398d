"""Pickles of numpy arrays, read without unpickling.

Detectron's weights are pickles of arrays in dicts. `pickle` would import what the file names and let it change what numpy
made (a dtype with other flags is a crash of the process), so the few instructions that such files are made of are carried
out here, on holders of our own; arrays are made from bytes whose number has been checked. Nothing is imported, no memory
is taken that the size of the file does not warrant.
"""

from __future__ import annotations

import codecs
import io
import math
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_INSTRUCTIONS = 2_000_000  # of a file: a detector's have some ten thousand

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # codes of the dtypes that are plain numbers


class _RefusedError(Exception):
    """What is wrong with a pickle."""


@dataclass(frozen=True)
class _Name:
    """Something that a pickle asks for by its name; `_CALLS` says what a call of it makes."""

    name: str


@dataclass
class _Dtype:
    """Numbers of this code, such as `f4`; their byte order is told later."""

    code: str
    order: str = "="


@dataclass
class _Array:
    """An array before its content is told; `memo` is where the pickle keeps it."""

    memo: list[int]


def load_arrays(path: str | Path) -> Any:
    """Read a pickle of numpy arrays and plain containers, as Python 2 or 3 wrote it, without running code from it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or asks for anything but arrays of numbers, strings and containers of them.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    reader = _Reader(path.read_bytes())
    try:
        return reader.read()
    except Exception as error:  # a damaged pickle can fail anywhere
        reason = str(error) if isinstance(error, _RefusedError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[:300]  # names in it are the file's
        raise ValueError(f"{path}: not a pickle that can be read safely: {reason}{reader.place()}") from error


def _line_of_string(file: io.BytesIO) -> str:
    """A quoted string of protocol 0: Python 2 wrote bytes so, which `pickletools` takes for ASCII."""
    line = file.readline().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise _RefusedError("a string without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")  # as `pickle` does


def _bytes(value: Any) -> bytes:
    """The bytes of an array; Python 2's are strings here."""
    if not isinstance(value, (bytes, str)):
        raise _RefusedError(f"{type(value).__name__} as the content of an array; expected bytes")
    return value if isinstance(value, bytes) else value.encode("latin1")


class _Reader:
    """Carries out the instructions of one pickle. `stack` has a list for each open mark, the last is the current one."""

    def __init__(self, content: bytes):
        self.file, self.size = io.BytesIO(content), len(content)
        self.stack: list[list] = [[]]
        self.memo: dict[int, Any] = {}
        self.open_arrays = 0
        # What a file repeats by reference costs it nothing. Bytes become text and then an array, each counts once.
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
        """Where reading stopped: the last text that is not used up, in a dict of arrays the name of one."""
        texts = (item for items in reversed(self.stack) for item in reversed(items) if isinstance(item, str))
        last = next(texts, None)
        return f" (byte {self.file.tell()}{'' if last is None else f', behind {last[:80]!r}'})"

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
                argument = opcode.arg.reader(self.file)
            if opcode.name in ("INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
                raise _RefusedError(f"it asks for an object of a class ({opcode.name}); expected arrays only")
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

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _RefusedError(f"nothing at memo index {index}")
        if isinstance(self.memo[index], _Array):
            raise _RefusedError("an array is used before its content is told")
        self.push(self.memo[index])

    def ask(self, name: Any) -> None:
        """Something is asked for by its name, `module attribute`."""
        if name not in _CALLS and name not in _NAMES:
            raise _RefusedError(f"it asks for {str(name).replace(' ', '.')}; expected arrays and plain containers only")
        self.push(_Name(name))

    def ask_in_two(self) -> None:
        module, attribute = self.pop_many(2)
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise _RefusedError("it asks for something without a name")
        self.ask(f"{module} {attribute}")

    def call(self) -> None:
        function, arguments = self.pop_many(2)
        if not isinstance(function, _Name) or function.name not in _CALLS or not isinstance(arguments, tuple):
            raise _RefusedError("a call of something that makes neither arrays nor containers")
        self.push(_CALLS[function.name](self, *arguments))

    def build(self) -> None:
        """Tell the state of a dtype or of an array."""
        state = self.pop()
        target = self.top(object)
        if not isinstance(target, (_Dtype, _Array)) or not isinstance(state, tuple):
            raise _RefusedError("state for something that is neither a dtype nor an array")
        if isinstance(target, _Dtype):
            target.order = _byte_order(state)
            return
        array = self.array(*state)
        self.stack[-1][-1] = array
        self.memo.update(dict.fromkeys(target.memo, array))
        self.open_arrays -= 1

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _RefusedError(f"more content than a file of {self.size} bytes holds")

    # What can be called. A wrong number of arguments is a TypeError, and so a refusal.

    def new_array(self, kind: Any, shape: Any, code: Any) -> _Array:
        if kind != _Name("numpy ndarray"):
            raise _RefusedError("an array of another class than numpy.ndarray")
        self.open_arrays += 1
        return _Array([])

    def new_dtype(self, code: Any, align: Any = False, copy: Any = True) -> _Dtype:
        if not isinstance(code, str) or not NUMBERS.fullmatch(code):
            told = repr(code[:40]) if isinstance(code, str) else type(code).__name__
            raise _RefusedError(f"dtype {told}; expected numbers")
        return _Dtype(code.lstrip("<>|="), code[0] if code[0] in "<>|=" else "=")

    def new_dict(self, pairs: Any = ()) -> dict:
        if not isinstance(pairs, (list, tuple)) or not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
        ):
            raise _RefusedError("an OrderedDict of something else than pairs")
        self.spend(len(pairs))
        return _fill({}, [item for pair in pairs for item in pair])

    def new_bytes(self, text: Any = "", encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise _RefusedError("bytes in another encoding than latin1")
        self.spend(len(text))
        return text.encode("latin1")

    def scalar(self, dtype: Any, content: Any = b"") -> Any:
        return self.array(1, (), dtype, False, content)[()]

    def array(self, version: Any, shape: Any, dtype: Any, is_fortran: Any, content: Any) -> np.ndarray:
        if not isinstance(dtype, _Dtype):
            raise _RefusedError("an array without a dtype")
        if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
            raise _RefusedError("an array whose shape is not a tuple of sizes")
        stored = np.dtype(dtype.order + dtype.code)
        content = _bytes(content)
        if math.prod(shape) * stored.itemsize != len(content):
            raise _RefusedError(f"{len(content)} bytes for an array {shape[:8]} of {stored}")
        self.spend(len(content))
        array = np.frombuffer(content, stored).reshape(
            shape, order="F" if is_fortran is True or is_fortran == 1 else "C"
        )
        return array.astype(stored.newbyteorder("="), order="C")  # a copy, which torch may write to


def _plain(value: Any) -> Any:
    """The value, unless it is one of our holders."""
    if isinstance(value, (_Name, _Dtype, _Array)):
        raise _RefusedError("a dtype, a name or an array without content where a value should be")
    return value


def _byte_order(state: tuple) -> str:
    """Byte order that the state of a dtype tells; whatever else it could tell is not of plain numbers."""
    plain = len(state) >= 8 and all(item is None for item in state[2:5]) and type(state[7]) is int and state[7] == 0
    if not plain or state[1] not in ("<", ">", "|", "="):
        raise _RefusedError("a dtype with fields, parts or flags; expected plain numbers")
    return state[1]


def _fill(found: dict, values: list) -> dict:
    """Put in keys and values that come in turn. Keys are texts and numbers: the hash of nested tuples can take forever."""
    if len(values) % 2:
        raise _RefusedError("a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, (str, bytes, int)):
            raise _RefusedError(f"{type(key).__name__} as a key; expected text")
        found[key] = _plain(value)
    return found


_PACKAGES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NAMES = ("numpy ndarray",)  # asked for, but never called
_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _Reader.new_dict,
    "numpy dtype": _Reader.new_dtype,
    "_codecs encode": _Reader.new_bytes,  # how Python 3 writes bytes for Python 2
    "__builtin__ bytes": _Reader.new_bytes,  # and none of them
    **{f"{package} _reconstruct": _Reader.new_array for package in _PACKAGES},
    **{f"{package} scalar": _Reader.scalar for package in _PACKAGES},
}

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
    "GLOBAL": _Reader.ask,
    "STACK_GLOBAL": lambda reader, _: reader.ask_in_two(),
    "REDUCE": lambda reader, _: reader.call(),
    "BUILD": lambda reader, _: reader.build(),
}


__all__ = ["NUMBERS", "load_arrays"]
