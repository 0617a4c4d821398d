"""Reads the records of a JSON document one after the other: the official files are single documents of hundreds of megabytes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 20  # bytes
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")


class NotStreamableError(Exception):
    """The document is malformed, or not of the expected form; whoever reads it as a whole finds out which."""


class JsonStream:
    """A JSON file, of which a few megabytes are held in memory, or as many as its longest record has.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path):
        self.path = path
        self._text, self._place, self._at_end = "", 0, False
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._parse = json.JSONDecoder().raw_decode

    def records(self, key: str, others: dict[str, Any], bare: str | None) -> Iterator[Any]:
        """The items of the list under a key; see `files.read_json_records`.

        Raises:
            NotStreamableError: Only the whole file tells what is wrong, or there is another form of list.
        """
        with Path(self.path).open("rb") as self._file:
            if self._peek() == "[" and bare is not None:
                yield from self._items(first_has=bare)
            else:
                yield from self._list_in_object(key, others)
            if self._peek():
                raise NotStreamableError

    def _list_in_object(self, key: str, others: dict[str, Any]) -> Iterator[Any]:
        found, is_first = False, True
        self._take("{")
        while self._peek() != "}":
            if not is_first:
                self._take(",")
            is_first, name = False, self._value()
            self._take(":")
            is_wanted, is_list = name == key, self._peek() == "["
            if not isinstance(name, str) or (is_wanted and (found or not is_list)):
                raise NotStreamableError
            if is_wanted:
                found = True
                yield from self._items()
            elif is_list:
                for _ in self._items():
                    pass
            else:
                others[name] = self._value()
        self._take("}")
        if not found:
            raise NotStreamableError

    def _items(self, first_has: str | None = None) -> Iterator[Any]:
        """The items of a list; with `first_has`, of one whose first item is a record with this key."""
        is_first = True
        self._take("[")
        while self._peek() != "]" or first_has is not None:
            if not is_first:
                self._take(",")
            item = self._value()
            if first_has is not None and not (isinstance(item, dict) and first_has in item):
                raise NotStreamableError
            is_first, first_has = False, None
            yield item
        self._take("]")

    def _peek(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            place = _WHITE_SPACE.match(self._text, self._place)
            assert place is not None
            self._place = place.end()
            if self._place < len(self._text) or self._at_end:
                return self._text[self._place : self._place + 1]
            self._read_more()

    def _take(self, character: str) -> None:
        if self._peek() != character:
            raise NotStreamableError
        self._place += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._parse(self._text, self._place)
            except (ValueError, RecursionError) as error:
                if self._at_end:
                    raise NotStreamableError from error
            else:
                if end < len(self._text) or self._at_end:  # otherwise a number could go on
                    self._place = end
                    return value
            self._read_more()

    def _read_more(self) -> None:
        """Twice as much as there is at least: a long record is not parsed again and again."""
        rest = self._text[self._place :]
        block = self._file.read(max(_BLOCK, len(rest)))
        try:
            self._text, self._place = rest + self._decode(block, not block), 0
        except UnicodeDecodeError as error:
            raise NotStreamableError from error
        self._at_end = not block

    _file: BinaryIO


__all__ = ["JsonStream", "NotStreamableError"]
