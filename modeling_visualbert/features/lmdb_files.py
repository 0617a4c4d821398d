"""LMDB files of strangers: LMDB follows what a damaged page says out of the file, and that ends the process.

So its tree is looked at first, of which `mdb.c` of LMDB 0.9 says how it lies in the file; values are not read::

    page       number (8 bytes), padding (2), flags (2), end of the places (2), start of the nodes (2), places of nodes (2 each)
    overflow   number, padding, flags, count of pages (4), a value that is too large for a page
    node       size of the value (4), flags (2), length of the key (2), key, value or number of its overflow page (8)
    branch's   number of the page below (6), length of the key (2), key
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

_HEADER, _NODE = 16, 8  # bytes in front of what a page and a node hold
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4  # kinds of pages
_DIRTY = 16  # a flag that may be left over
_BIG = 1  # flag of a node whose value is in overflow pages
_MAGIC = 0xBEEFC0DE
_PAGE_SIZES = [1 << power for power in range(8, 17)]
_EMPTY = (1 << 64) - 1  # the root of no tree
_DEEPEST = 32  # pages from the root to a leaf, for LMDB too


class _Meta(NamedTuple):
    """What the first and the second page tell of the tree; that of the later transaction counts."""

    magic: int
    version: int
    page_size: int
    flags: int
    root: int
    last_page: int
    transaction: int


_META_FORM = struct.Struct("=II16xI44x4xH34xQQQ")


def check_lmdb(path: Path) -> None:
    """Look at every page of a file's tree.

    Raises:
        ValueError: It is no LMDB file, or cut off, or a page is damaged; or its keys are numbers, or occur repeatedly.
    """
    size = path.stat().st_size
    try:
        if size < _HEADER + _META_FORM.size:
            raise ValueError(f"{size} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            meta = _read_meta(content)
            if size >= (needed := (meta.last_page + 1) * meta.page_size):
                _check_tree(content, meta)
                return
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path}: not an LMDB file, or damaged ({error})") from error
    raise ValueError(f"{path}: {size} bytes; expected {needed} (is it cut off?)")


def _read_meta(content: mmap.mmap) -> _Meta:
    first = _Meta(*_META_FORM.unpack_from(content, _HEADER))
    if first.magic != _MAGIC or first.version != 1 or first.page_size not in _PAGE_SIZES:
        raise ValueError("it does not begin as one of version 1")
    second = _Meta(*_META_FORM.unpack_from(content, first.page_size + _HEADER))
    if second[:3] != first[:3]:
        raise ValueError("its first two pages contradict each other")
    meta = second if second.transaction > first.transaction else first
    if meta.flags:
        raise ValueError(f"flags {meta.flags:#x}; expected keys that are texts, each once")
    return meta


def _check_tree(content: mmap.mmap, meta: _Meta) -> None:
    seen: set[int] = set()
    pages = [] if meta.root == _EMPTY else [meta.root]
    for _ in range(_DEEPEST):
        below = []
        for number in pages:
            if number in seen or not 1 < number <= meta.last_page:
                raise ValueError(f"page {number} is outside of the file or comes again")
            seen.add(number)
            below.append(_check_page(content, meta, number))
        if any(below) and not all(below):
            raise ValueError("leaves on several levels")
        pages = [number for numbers in below for number in numbers]
    if pages:
        raise ValueError(f"a tree of more than {_DEEPEST} levels")


def _check_page(content: mmap.mmap, meta: _Meta, number: int) -> list[int]:
    """The numbers of the pages below this one."""
    start, size = number * meta.page_size, meta.page_size
    named, flags, lower, upper = struct.unpack_from("=Q2xHHH", content, start)
    kind, count = flags & ~_DIRTY, (lower - _HEADER) // 2
    is_whole = named == number and kind in (_BRANCH, _LEAF) and _HEADER < lower <= upper <= size
    if not is_whole or (kind == _BRANCH and count < 2):
        raise ValueError(f"page {number}: no page of a tree")
    below = []
    for place in struct.unpack_from(f"={count}H", content, start + _HEADER):
        if not upper <= place <= size - _NODE:
            raise ValueError(f"page {number}: a node at byte {place}")
        low, high, node_flags, key_length = struct.unpack_from("=HHHH", content, start + place)
        left = size - place - _NODE - key_length
        if kind == _BRANCH:
            below.append(low | high << 16 | node_flags << 32)
            is_inside = left >= 0
        elif node_flags == _BIG and left >= 8:
            (first,) = struct.unpack_from("=Q", content, start + place + _NODE + key_length)
            is_inside = _holds(content, meta, first, low | high << 16)
        else:
            is_inside = node_flags == 0 and (low | high << 16) <= left
        if not is_inside:
            raise ValueError(f"page {number}: the node at byte {place} is no key with something inside of the file")
    return below


def _holds(content: mmap.mmap, meta: _Meta, first: int, length: int) -> bool:
    """Whether these are overflow pages of a value of that length."""
    if not 1 < first <= meta.last_page:
        return False
    number, flags, count = struct.unpack_from("=Q2xHI", content, first * meta.page_size)
    is_inside = first + count <= meta.last_page + 1 and _HEADER + length <= count * meta.page_size
    return number == first and flags & ~_DIRTY == _OVERFLOW and is_inside


__all__ = ["check_lmdb"]
