"""Reads yaml as plain data, even if it holds Python objects (Detectron's `AttrDict`, tuples, NumPy arrays)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .files import described, read_text

_MAX_SIZE = 1_000_000  # characters and values
_MAX_DEPTH = 100  # mappings and lists inside each other
_PYTHON = "tag:yaml.org,2002:python/"


class _PlainLoader(yaml.SafeLoader):
    """Reads `!!python/...` as the mapping, sequence or text after it, and never makes an object of it."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Bound the depth: the time that brackets inside brackets take grows with its square."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"more than {_MAX_DEPTH} mappings and lists inside each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave merge keys (`<<`) as they are, so that they are refused: a few lines of them can take all memory."""

    def plain(self, suffix: str, node: yaml.Node) -> Any:
        kind = suffix.partition(":")[0]
        if isinstance(node, yaml.SequenceNode):  # python/tuple and the arguments of a call
            return self.construct_sequence(node, deep=True)
        if isinstance(node, yaml.MappingNode):
            found = self.construct_mapping(node, deep=True)
            return _content(found) if kind == "object/new" else found
        readers: dict[str, Callable[[Any], Any]] = {
            "bool": self.construct_yaml_bool,
            "int": self.construct_yaml_int,
            "long": self.construct_yaml_int,
            "float": self.construct_yaml_float,
            "none": self.construct_yaml_null,
        }
        return readers.get(kind, self.construct_scalar)(node)


_PlainLoader.add_multi_constructor(_PYTHON, _PlainLoader.plain)


def _content(found: dict) -> Any:
    """The content of an object written in parts: the items of a list, or the attributes and then the items of a mapping."""
    if "listitems" in found:
        return found["listitems"]
    parts = [part for part in (found.get("state"), found.get("dictitems")) if isinstance(part, dict)]
    return {key: value for part in parts for key, value in part.items()} if parts else found


def parse_yaml(text: str | bytes, where: str) -> Any:
    """Read a yaml text as mappings, lists, texts and numbers.

    Raises:
        ValueError: It is not yaml, holds more than plain data and `!!python` tags, or its aliases make more of it than anyone
            writes.
    """
    try:
        content = _PlainLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).partition(";")[0].split())  # behind it: how Python would read longer numbers
        raise ValueError(f"{where}: not yaml that can be read: {reason}") from error
    waiting, size = [content], 0
    while waiting:
        value: Any = waiting.pop()
        size += 1 + (len(value) if isinstance(value, str) else 0)
        if size > _MAX_SIZE:  # also of what is inside itself
            raise ValueError(f"{where}: its aliases (`*name`) make more than {_MAX_SIZE:,} characters of it")
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += value
    return content


def read_yaml(path: str | Path, expected: str = "a mapping") -> dict[Any, Any]:
    """The mapping in a yaml file that people wrote: a recipe, the facts of a model card.

    Args:
        path: The file.
        expected: What an error calls it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not UTF-8 or no mapping, or cannot be read, see [`parse_yaml`].
    """
    content = parse_yaml(read_text(path), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {described(content)}; expected {expected}")
    return content


__all__ = ["parse_yaml", "read_yaml"]
