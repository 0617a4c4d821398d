"""Mutation testing: which small errors in a file would its tests notice?

    python benchmarks/mutate.py modeling_visualbert/metrics/vqa.py --sample 40

Each error is one change of the file, in memory: `<` to `<=`, `a, b` to `b, a`, an argument or a `raise` left out, another number.
The covering tests are imported once. They run first as they are, which shows the lines that each reaches; then, for every change,
a fork of that process runs those that reach its line until one fails. (What a test starts as its own process runs the file on
disk.) What survives is printed: it is equivalent (the program does the same; `equivalent_mutants.json` says why) or a test is
missing. `NOTES.md` has the shares.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
TESTS = {  # by start of the path, the first that fits
    "metrics/vqa": "metrics_vqa",
    "metrics/submissions": "submissions",
    "metrics/": "metrics_tasks wide_and_tall submissions",
    "data/vqa2": "data_vqa data_skipping",
    "data/vcr": "data_vcr data_skipping",
    "data/flickr30k": "data_flickr30k data_skipping",
    "data/files": "data_files data_vqa data_vcr data_flickr30k data_nlvr2_coco data_skipping",
    "data/": "data_nlvr2_coco data_skipping wide_and_tall",
    "hub_code/text": "text processor_tasks",
    "hub_code/regions": "region_encoder wide_and_tall processor processor_tasks",
    "hub_code/processing": "processor processor_tasks wide_and_tall",
    "hub_code/image_processing_region": "region_detector region_detector_golden",
    "hub_code/image_processing": "image_processor wide_and_tall",
    "hub_code/modeling_grid": "grid_encoder wide_and_tall towers tower_training",
    "hub_code/towers": "towers tower_sizes grid_encoder",
    "towers": "tower_sizes",
    "training/towers": "tower_training",
    "hub_code/modeling_region_encoder": "region_encoder",
    "hub_code/modeling_region_detector": "region_detector region_detector_golden wide_and_tall",
    "hub_code/detection_ops": "detection_ops wide_and_tall",
    "hub_code/packing": "packing",
    "hub_code/explain": "explain",
    "hub_code/pipeline": "pipelines",
    "hub_code/pixels": "region_detector processor_tasks",
    "hub_code/losses": "losses",
    "hub_code/": "model golden packing",
}
BROKEN = 3  # exit status of a process in which not a test but this script failed
SECONDS = 60  # for the tests of one change; more is an endless loop

OF_STYLE = ("strict", "encoding", "newline")  # arguments that rules of style or other systems ask for

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def changed(node: ast.AST, **fields) -> ast.AST:
    """A copy of the node with other fields."""
    new = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in place of a node by mistake."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield changed(node, ops=[COMPARISONS[type(op)]()])
        case ast.BinOp() | ast.AugAssign() if type(node.op) in OPERATORS:
            yield changed(node, op=OPERATORS[type(node.op)]())
        case ast.BoolOp(values=[*values, _]):
            yield changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            yield values[0] if len(values) == 1 else changed(node, values=values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float() as value):
            yield ast.Constant(value * 1.5 or 1.0)
        case ast.Constant(value=str() as value):
            yield ast.Constant(f"XX{value}XX")
        case ast.If() | ast.IfExp():
            yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.comprehension(ifs=[_, *_]):
            yield changed(node, ifs=[])
        case ast.Return(value=ast.AST()):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Tuple(elts=[first, second, *rest]):
            yield changed(node, elts=[second, first, *rest])
        case ast.Call():
            for place, keyword in enumerate(node.keywords):
                if keyword.arg not in (None, *OF_STYLE):
                    yield changed(node, keywords=node.keywords[:place] + node.keywords[place + 1 :])
            if len(node.args) > 1 and not isinstance(node.args[0], ast.Starred):
                yield changed(node, args=[node.args[1], node.args[0], *node.args[2:]])


@dataclass
class Mutant:
    """One change: where it is, what it says, and the node that is put there."""

    lines: range  # of the simple statement around it: constants on several lines run as one
    function: str  # outermost one with the change in its body; empty: module or class level, or a default
    text: str
    path: list[tuple[str, int | None]]
    node: ast.AST

    def applied_to(self, tree: ast.Module) -> ast.Module:
        """The file with the change, which is made in place."""
        holder = tree
        for name, place in self.path[:-1]:
            holder = getattr(holder, name) if place is None else getattr(holder, name)[place]
        name, place = self.path[-1]
        if place is None:
            setattr(holder, name, self.node)
        else:
            getattr(holder, name)[place] = self.node
        return tree


class Mutator:
    """Collects all changes of a file; messages and annotations are left alone."""

    def __init__(self, tree: ast.Module):
        self.found: list[Mutant] = []
        self.path: list[tuple[str, int | None]] = []
        self.scope: list[str] = []
        self.in_function = False
        self.statement: ast.stmt | None = None
        self._walk(tree)

    def _walk(self, node: ast.AST) -> None:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases", "keywords") and not isinstance(
                node, ast.Call
            ):
                continue
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST) and not _is_left_alone(child):
                    self.path.append((field, place))
                    self._enter(node, field, child)
                    self.path.pop()

    def _enter(self, parent: ast.AST, field: str, child: ast.AST) -> None:
        before = self.in_function, self.statement
        self.in_function = self.in_function or (isinstance(parent, ast.FunctionDef) and field == "body")
        if isinstance(child, ast.stmt):
            self.statement = None if hasattr(child, "body") else child
        for new in alternatives(child):
            if ast.dump(new) == ast.dump(child):  # `a, a` swapped
                continue
            text = f"{'.'.join(self.scope)}: {_short(child)} => {_short(new)}"
            function = ".".join(self.scope) if self.in_function else ""
            around: Any = self.statement or getattr(child, "target", child)  # a comprehension has no lines itself
            last = (child.test if isinstance(child, ast.If) else around).end_lineno
            lines = range(around.lineno, last + 1)
            self.found.append(Mutant(lines, function, text, list(self.path), new))
        is_scope = isinstance(child, (ast.FunctionDef, ast.ClassDef)) and not self.in_function
        self.scope += [child.name] if is_scope else []
        if not isinstance(child, ast.Raise):
            self._walk(child)
        self.scope = self.scope[: len(self.scope) - is_scope]
        self.in_function, self.statement = before


def _is_left_alone(node: ast.AST) -> bool:
    """Docstrings, messages, imports, lists of names and arguments of style."""
    if isinstance(node, ast.keyword):
        return node.arg in OF_STYLE
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in ("__all__", "logger")
    return isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert))


def _short(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    if isinstance(node, ast.comprehension):
        return ast.unparse(node).strip()
    return " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())[:120]


def functions(namespace: dict, prefix: str, module: str) -> Iterator[tuple[str, types.FunctionType]]:
    """(qualified name, function) of all functions and methods that a module or class defines, without their wrappers."""
    for name, value in namespace.items():
        if isinstance(value, type) and value.__module__ == module and not prefix.count("."):
            yield from functions(vars(value), f"{prefix}{name}.", module)
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        while hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        if isinstance(value, types.FunctionType) and value.__module__ == module:
            yield prefix + name, value


def install(module: types.ModuleType, tree: ast.Module, only: str = "") -> None:
    """Let the loaded module behave as if its file had this content; everything that refers to its functions still does."""
    fresh = types.ModuleType(module.__name__)
    fresh.__dict__.update({name: module.__dict__.get(name) for name in ("__file__", "__package__", "__spec__")})
    exec(compile(ast.fix_missing_locations(tree), module.__file__, "exec"), fresh.__dict__)
    old = dict(functions(vars(module), "", module.__name__))
    for name, new in functions(vars(fresh), "", module.__name__):
        if name in old and only in ("", name):
            old[name].__code__ = new.__code__
            old[name].__defaults__, old[name].__kwdefaults__ = new.__defaults__, new.__kwdefaults__
    if only:
        return
    for name, value in list(vars(fresh).items()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            for field, content in vars(value).items():
                if not field.startswith("__") and not callable(content) and not hasattr(content, "__get__"):
                    setattr(vars(module)[name], field, content)
        elif not name.startswith("__") and not isinstance(value, (types.FunctionType, types.ModuleType)):
            before = vars(module)[name]
            for other in list(sys.modules.values()):
                ours = str(getattr(other, "__file__", None) or "").startswith(str(ROOT))
                if ours and name in vars(other) and vars(other)[name] is before and not isinstance(before, type):
                    setattr(other, name, value)


class Plugin:
    """Runs the collected tests once with the lines that each reaches, then those concerned for each change."""

    def __init__(self, path: Path, mutants: list[Mutant], report: Callable[[Mutant, bool | None], None]):
        self.path, self.mutants, self.report = str(path), mutants, report
        self.failed, self.lines, self.of_fixtures = False, set(), {}

    def pytest_runtest_logreport(self, report):
        self.failed |= report.failed

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        before, self.lines = self.lines, set()
        result = yield
        self.of_fixtures[fixturedef.argname] = self.of_fixtures.get(fixturedef.argname, set()) | self.lines
        self.lines |= before
        return result

    def pytest_runtestloop(self, session):
        name = ".".join(Path(self.path).relative_to(ROOT).with_suffix("").parts)
        module = importlib.import_module(name)
        reached = self._forked(lambda: self._trace(session.items, module))[1]
        if not any(lines for _, lines in reached.values()):
            raise SystemExit(f"{self.path}: no test reaches it, or tracing failed")
        if self._noticed(session.items, reached, module, None) is not False:
            raise SystemExit(f"{self.path}: its tests fail without a change, too, in this order")
        for mutant in list(self.mutants):
            self.report(mutant, self._noticed(session.items, reached, module, mutant))
        return True

    def _noticed(self, items: list, reached: dict, module: types.ModuleType, mutant: Mutant | None) -> bool | None:
        """Whether a test fails with a change, or without one; the quick test files first. None: it cannot be made in memory."""
        tests, cost = {}, Counter()
        for nodeid, (seconds, lines) in reached.items():
            if set(lines).intersection(mutant.lines) if mutant is not None and mutant.function else lines:
                tests[nodeid] = seconds
                cost[nodeid.split("::")[0]] += seconds
        chosen = [item for item in items if item.nodeid in tests]
        files = {item: item.nodeid.split("::")[0] for item in chosen}
        chosen.sort(key=lambda item: (cost[files[item]], files[item], tests[item.nodeid]))
        if not chosen:
            return False
        code = os.waitstatus_to_exitcode(self._forked(lambda: self._run(chosen, module, mutant))[0])
        if code in (-signal.SIGTERM, -signal.SIGKILL):
            raise SystemExit(f"{self.path}: ended from outside")
        if code == BROKEN:  # no test noticed anything
            return None
        return code != 0

    def _forked(self, work: Callable[[], dict | None]) -> tuple[int, dict]:
        with tempfile.NamedTemporaryFile("r") as answer:
            if (child := os.fork()) == 0:
                silence = os.open(os.devnull, os.O_WRONLY)
                os.dup2(silence, 1), os.dup2(silence, 2)
                code = BROKEN
                try:
                    Path(answer.name).write_text(json.dumps(work()))
                    code = int(self.failed)
                finally:
                    os._exit(code)
            status = os.waitpid(child, 0)[1]
            return status, json.loads(answer.read() or "{}") or {}

    def _run(self, items: list, module: types.ModuleType, mutant: Mutant | None) -> None:
        signal.alarm(SECONDS if mutant is not None else 0)
        tree = ast.parse(Path(self.path).read_text())
        try:
            install(module, *((tree,) if mutant is None else (mutant.applied_to(tree), mutant.function)))
        except Exception as error:  # a module that cannot be imported would be noticed, unless the fault is ours
            self.failed = any(frame.filename == self.path for frame in traceback.extract_tb(error.__traceback__))
            if self.failed:
                return
            raise
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                return

    def _trace(self, items: list, module: types.ModuleType) -> dict[str, tuple[float, list[int]]]:
        install(module, ast.parse(Path(self.path).read_text()))

        def in_frame(frame, event, _):
            self.lines.add(frame.f_lineno)
            return in_frame

        reached = {}
        for item, following in zip(items, [*items[1:], None], strict=True):
            self.lines, started = set(), time.monotonic()
            sys.settrace(lambda frame, *_: in_frame if frame.f_code.co_filename == self.path else None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            sys.settrace(None)
            of_fixtures = [self.of_fixtures.get(name, set()) for name in getattr(item, "fixturenames", ())]
            lines = [] if self.failed else sorted(self.lines.union(*of_fixtures))  # it fails when it is traced
            reached[item.nodeid], self.failed = (time.monotonic() - started, lines), False
        return reached


def tests_of(path: str) -> list[str]:
    """Test files that cover a file of the package."""
    names = next(tests for start, tests in TESTS.items() if path.startswith(f"modeling_visualbert/{start}"))
    return [str(ROOT / "tests" / f"test_{name}.py") for name in names.split()]


def mutate(path: Path, sample: int, seed: int) -> None:
    """Print how many of the sampled changes of a file the tests notice, and the others."""
    relative = str(path.relative_to(ROOT))
    mutants = Mutator(ast.parse(path.read_text())).found
    equivalent = json.loads(EQUIVALENT.read_text()).get(relative, {})
    count = len(mutants)
    mutants = random.Random(seed).sample(mutants, min(sample, count))
    kept = sorted((m for m in mutants if m.text not in equivalent), key=lambda m: m.lines.start)
    survivors, started = [], time.monotonic()

    def report(mutant: Mutant, noticed: bool | None) -> None:
        if noticed is None:
            kept.remove(mutant)
        elif not noticed:
            survivors.append(mutant)
            os.write(out, f"  {relative}:{mutant.lines.start} {mutant.text}\n".encode())

    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory() as base:
        options = ["-q", "-s", "-p", "no:cacheprovider", "-o", "timeout=0"]
        options += ["--basetemp", f"{base}/tests", *tests_of(relative)]
        if pytest.main(options, plugins=[Plugin(path, kept, report)]) != pytest.ExitCode.OK:
            raise SystemExit(f"{relative}: its tests cannot be run")
    killed = len(kept) - len(survivors)
    row = (relative, count, len(mutants), len(mutants) - len(kept), killed, len(kept))
    share = 100 * killed / max(1, len(kept))
    line = "| {} | {} | {} | {} | {} of {} |".format(*row) + f" {share:.0f}% | {time.monotonic() - started:.0f} s\n"
    os.write(out, line.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, default=40, help="changes per file, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.chdir(ROOT)
    for path in args.files:
        if (child := os.fork()) == 0:  # each file with modules that no other test has touched
            mutate(path.resolve(), args.sample, args.seed)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
