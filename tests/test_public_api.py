"""Public names and signatures are frozen; they are annotated, and a user's program that is checked strictly sees the types."""

import importlib
import inspect
import json

import pytest
from public_api import FIXTURE, MODULES, PACKAGE, _signature, names_of, public_api

import modeling_visualbert

HOW = "if that is meant, run `python tests/public_api.py` and say so in CHANGELOG.md (what a version may change: RELEASING.md)"


@pytest.fixture(scope="module")
def stored():
    return json.loads(FIXTURE.read_text("utf-8"))


def test_the_stored_modules_are_the_public_ones(stored):
    assert list(stored) == [f"{PACKAGE}{name}" for name in MODULES], HOW


@pytest.mark.parametrize("module", MODULES, ids=lambda name: name or "package")
def test_names_and_signatures_are_those_that_are_stored(module, stored):
    was, now = stored[f"{PACKAGE}{module}"], public_api()[f"{PACKAGE}{module}"]
    gone, new = sorted(was.keys() - now.keys()), sorted(now.keys() - was.keys())
    changed = {name: (was[name], now[name]) for name in was.keys() & now.keys() if was[name] != now[name]}
    assert not gone, f"gone: {', '.join(gone)}; {HOW}"
    assert not new, f"new: {', '.join(new)}; {HOW}"
    assert not changed, f"changed: {changed}; {HOW}"


def test_a_signature_tells_of_changes():
    def before(image, question, top_k=5): ...

    def after(image, question, *, top_k=5): ...

    assert _signature(before) == "(image, question, top_k=5)" != _signature(after)


def test_all_is_complete_and_sorted():
    names = modeling_visualbert.__all__
    assert names == sorted(names)
    assert set(names) == set(modeling_visualbert._MODULE_OF) | set(modeling_visualbert._ELSEWHERE) | {
        *modeling_visualbert._OLD_NAMES,
        "__version__",
        "register_auto_classes",
    }
    assert set(names) <= set(dir(modeling_visualbert))


def _functions():
    """Public functions and our own methods of public classes, by their full name."""
    for name in MODULES:
        module = importlib.import_module(f"{PACKAGE}{name}")
        for public in names_of(module):
            value = getattr(module, public)
            if inspect.isclass(value):
                for member, function in vars(value).items():
                    function = getattr(function, "__func__", function)
                    if inspect.isfunction(function) and (
                        not member.startswith("_") or member in ("__init__", "__call__")
                    ):
                        yield f"{module.__name__}.{public}.{member}", function
            elif inspect.isfunction(value):
                yield f"{module.__name__}.{public}", value


def test_public_functions_are_annotated():
    bare = {}
    for name, function in _functions():
        if not function.__module__.startswith(PACKAGE):  # made by dataclasses and decorators of others
            continue
        signature = inspect.signature(function)
        missing = [one.name for one in signature.parameters.values() if one.annotation is one.empty]
        missing = [one for one in missing if one not in ("self", "cls")]
        if signature.return_annotation is signature.empty and not name.endswith("__init__"):
            missing.append("return")
        if missing:
            bare[name] = missing
    assert bare == {}
