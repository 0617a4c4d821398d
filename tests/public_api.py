"""The public names of the package with their signatures, as `tests/fixtures/public_api.json` has them.

After a change that is meant: `python tests/public_api.py`, and look at the difference. What is removed or renamed there needs a
new major version (RELEASING.md), and a warning in the release before.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

FIXTURE = Path(__file__).parent / "fixtures" / "public_api.json"
PACKAGE = "modeling_visualbert"
# What README and the site use, besides the names of the package itself.
MODULES = (
    *("", ".convert", ".data.coco", ".data.flickr30k", ".data.nlvr2", ".data.vcr", ".data.vqa2", ".features.store"),
    *(
        ".metrics.classification",
        ".metrics.compare",
        ".metrics.grounding",
        ".metrics.nlvr2",
        ".metrics.vcr",
        ".metrics.vqa",
    ),
    *(".publish.card", ".publish.export", ".publish.push", ".training.loop", ".training.task", ".towers"),
)


def public_api() -> dict[str, dict[str, Any]]:
    """By module, what each of its public names is."""
    api = {}
    for name in MODULES:
        module = importlib.import_module(f"{PACKAGE}{name}")
        api[module.__name__] = {public: _described(getattr(module, public)) for public in names_of(module)}
    return api


def names_of(module: ModuleType) -> list[str]:
    """What a module exports; functions and classes that it defines, where it does not say."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return sorted(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def _described(value: Any) -> Any:
    if inspect.isclass(value):
        return _class(value)
    if inspect.isroutine(value):
        return _signature(value)
    return type(value).__name__


def _class(cls: type) -> dict[str, str]:
    """The public members that we define; what `transformers` adds differs from version to version."""
    ours = [base for base in reversed(cls.__mro__) if base.__module__.startswith(PACKAGE)]
    members: dict[str, Any] = {}
    for base in ours:
        members |= {name: "field" for name in inspect.get_annotations(base) if not name.startswith("_")}
        members |= {name: value for name, value in vars(base).items() if _is_public(name) and _is_ours(value)}
    if any(base.__name__ == "PretrainedConfig" for base in cls.__mro__):
        members.pop("__init__", None)  # made of the fields, those of `transformers` too
    return {name: _member(value) for name, value in sorted(members.items())}


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__")


def _is_ours(value: Any) -> bool:
    """False of what decorators of other libraries put beside the members of a class."""
    function = getattr(value, "__func__", value)
    return not callable(function) or inspect.isclass(function) or function.__module__.startswith(PACKAGE)


def _member(value: Any) -> str:
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    return _signature(value) if inspect.isfunction(value) else "property" if isinstance(value, property) else "field"


def _signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    return str(inspect.Signature([one.replace(annotation=one.empty) for one in parameters]))


def as_text(api: dict[str, dict[str, Any]]) -> str:
    """What the file holds."""
    return json.dumps(api, indent=1) + "\n"


if __name__ == "__main__":
    FIXTURE.write_text(as_text(public_api()), encoding="utf-8")
    print(f"wrote {FIXTURE}")
