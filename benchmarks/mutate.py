"""Mutation testing: changes one thing in a file, runs the tests that cover the file, and counts the changes that no test notices.

    python benchmarks/mutate.py modeling_visualbert/metrics/vqa.py --sample 30

A general tool would run the whole suite for every change, with all imports; here each change runs the covering tests only, in a
process that is forked after PyTorch and `transformers` were imported. What survives is printed: it is either equivalent (the
program does the same) or a test that is missing. `NOTES.md` has the shares.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = {  # by start of the path, the first that fits
    "metrics/vqa": "metrics_vqa evaluate_modules",
    "metrics/submissions": "submissions",
    "metrics/": "metrics_tasks wide_and_tall",
    "data/vqa2": "data_vqa data_skipping",
    "data/vcr": "data_vcr data_skipping",
    "data/flickr30k": "data_flickr30k data_skipping",
    "data/files": "data_vqa data_vcr data_flickr30k data_nlvr2_coco data_skipping",
    "data/": "data_nlvr2_coco data_skipping wide_and_tall",
    "hub_code/text": "text processor processor_tasks",
    "hub_code/regions": "processor processor_tasks region_encoder features wide_and_tall",
    "hub_code/processing": "processor processor_tasks wide_and_tall pipelines",
    "hub_code/image_processing_region": "region_detector",
    "hub_code/image_processing": "image_processor wide_and_tall",
    "hub_code/modeling_grid": "grid_encoder wide_and_tall",
    "hub_code/modeling_region_encoder": "region_encoder",
    "hub_code/modeling_region_detector": "region_detector region_detector_golden wide_and_tall",
    "hub_code/detection_ops": "detection_ops region_detector_golden",
    "hub_code/packing": "packing",
    "hub_code/explain": "explain",
    "hub_code/": "model golden packing",
}
_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
_COMPARISONS |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}


def main() -> int:
    """Print the surviving changes of each file and the share that was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files of the package")
    parser.add_argument("--sample", type=int, default=30, help="changes per file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    args = parser.parse_args()
    import pytest  # noqa: F401
    import torch
    import transformers.pipelines  # noqa: F401

    torch.set_num_threads(1)
    for name in args.files:
        path = Path(name).resolve().relative_to(ROOT)
        mutants = list(changes((ROOT / path).read_text(encoding="utf-8")))
        chosen = random.Random(args.seed).sample(mutants, min(args.sample, len(mutants)))
        survivors = [line for line, source in chosen if is_green(path, source)]
        for line in survivors:
            print(f"  survived  {path}:{line}", flush=True)
        noticed = len(chosen) - len(survivors)
        print(f"{path}: {noticed} of {len(chosen)} noticed ({100 * noticed / max(1, len(chosen)):.0f}%)", flush=True)
    return 0


def changes(source: str) -> Iterator[tuple[str, str]]:
    """Each changed source of a file, with the line and what was changed."""
    count = len(list(_places(ast.parse(source))))
    for number in range(count):
        tree = ast.parse(source)
        node = list(_places(tree))[number]
        before = ast.unparse(node)
        _change(node)
        yield f"{node.lineno}  {before:.60}  ->  {ast.unparse(node):.60}", ast.unparse(tree)


def _places(tree: ast.AST) -> Iterator[Any]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    raised = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Raise) for part in ast.walk(node)}
    skipped = docstrings | raised  # texts and messages
    yield from (node for node in ast.walk(tree) if id(node) not in skipped and _can_change(node))


def _can_change(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS
    if isinstance(node, ast.BinOp):
        return type(node.op) in _OPERATORS and not isinstance(node.left, ast.JoinedStr)
    if isinstance(node, ast.Constant):
        return type(node.value) in (bool, int, float)
    return isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _change(node: Any) -> None:
    if isinstance(node, ast.Compare):
        node.ops = [_COMPARISONS[type(node.ops[0])]()]
    elif isinstance(node, ast.BinOp):
        node.op = _OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    elif isinstance(node, ast.UnaryOp):
        node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1


def is_green(path: Path, source: str) -> bool:
    """Whether the tests that cover the file pass with this source in its place."""
    names = next(tests for start, tests in TESTS.items() if str(path).startswith(f"modeling_visualbert/{start}"))
    child = os.fork()
    if child == 0:
        os._exit(_run(path, source, names.split()))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _run(path: Path, source: str, names: list[str]) -> int:
    import pytest

    with tempfile.TemporaryDirectory(prefix="mutant_") as folder:
        copy = Path(folder) / "repository"
        for part in ("modeling_visualbert", "tests", "benchmarks", "hub_cards", "examples"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors.old"))
        shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
        (copy / path).write_text(source, encoding="utf-8")
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "tests")]
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        files = [f"tests/test_{name}.py" for name in names]
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--timeout=120", *files]))


if __name__ == "__main__":
    sys.exit(main())
