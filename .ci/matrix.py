"""
Quick tests with the lowest, the pinned and the newest versions of the libraries, on every Python of this machine:

    python .ci/matrix.py                                      # all; `make test-matrix`
    python .ci/matrix.py --python 3.11 --libraries lowest     # a part; the other rows of the table stay as they were

Each combination has an environment of its own in `build/matrix`; the table is `docs/versions.md`. `uv` resolves and installs.
PyTorch comes from its index of CPU builds; where that cannot be reached, `MATRIX_TORCH=torch==2.13.0+cpu` and `UV_FIND_LINKS`
name another build. On a Python that it does not exist for, the tests that do without PyTorch are run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "matrix"
RESULTS = ROOT / "benchmarks" / "results" / "versions.json"
TABLE = ROOT / "docs" / "versions.md"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LIBRARIES = {
    "lowest": ["--resolution", "lowest-direct"],
    "pinned": ["--constraint", "constraints.txt"],
    "newest": [],
}
EXTRAS = ("train", "detect", "demo", "hdf5", "lmdb", "int8", "lora", "onnx", "test")
SHOWN = ("torch", "transformers", "huggingface-hub", "datasets", "numpy", "pillow", "pyarrow", "gradio")

# What leans on the libraries most, a few minutes together.
TESTS = (
    *("analysis_trees", "checkpoint_files", "cli_tasks", "cli_wrong_turns", "convert"),
    *("convert_features", "corpus", "data_cache", "demo", "evaluate_modules", "explain", "export"),
    *("foreign", "grid_encoder", "hub_card", "hub_code", "hub_push", "image_processor", "int8"),
    *("load_corpus", "losses", "pipeline_habits", "pipelines", "processor", "processor_arguments"),
    *("public_api", "region_encoder", "run_log", "sharding", "store", "table_streams", "tables"),
    *("throughput", "visualization"),
)
WITHOUT_TORCH = ("analysis_trees", "data_files", "data_skipping", "release", "workflows")


def main() -> int:
    parser = argparse.ArgumentParser(description="Quick tests over versions of Python and of the libraries.")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="default: all that are here")
    parser.add_argument("--libraries", action="append", choices=LIBRARIES, help="default: all")
    args = parser.parse_args()
    results = _read_results()
    failed = []
    for version in args.python or PYTHONS:
        python = _find_python(version)
        if python is None:
            print(f"Python {version} is not here")
            continue
        for libraries in args.libraries or LIBRARIES:
            row = _try(version, python, libraries)
            results[f"{version} {libraries}"] = row
            failed += [f"Python {version}, {libraries}"] if row["failed"] or not row["passed"] else []
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            TABLE.write_text(table(results), encoding="utf-8")
    print("failed: " + "; ".join(failed) if failed else f"all passed; the table is {TABLE.relative_to(ROOT)}")
    return bool(failed)


def _read_results() -> dict[str, dict]:
    BUILD.mkdir(parents=True, exist_ok=True)
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}


def _find_python(version: str) -> str | None:
    """The Python that runs this, one of pyenv, or one on the path; shims that lead nowhere do not count."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [*map(str, pyenv.glob(f"versions/{version}.*/bin")), *os.environ["PATH"].split(os.pathsep)]
    found = filter(None, (shutil.which(f"python{version}", path=folder) for folder in folders))
    works = (path for path in found if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0)
    return next(works, None)


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **more}


def _try(version: str, python: str, libraries: str) -> dict:
    """Make the environment and run the tests in it."""
    folder = BUILD / f"{version}-{libraries}"
    folder.mkdir(exist_ok=True)
    has_torch = _resolve(python, libraries, folder, with_torch=True)
    if not has_torch and not _resolve(python, libraries, folder, with_torch=False):
        raise SystemExit(f"Python {version}, {libraries}: no versions fit\n{(folder / 'uv.log').read_text('utf-8')}")
    executable = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    _uv("venv", "--clear", "--quiet", "--python", python, str(folder / "venv"))
    _uv("pip", "sync", "--quiet", "--python", executable, *_torch_options(has_torch)[0], str(folder / "versions.txt"))
    print(f"Python {version}, {libraries}{'' if has_torch else ', without PyTorch'}:", flush=True)
    started = time.monotonic()
    names = TESTS if has_torch else WITHOUT_TORCH
    compiled = subprocess.run([executable, "-m", "compileall", "-q", "modeling_visualbert", "examples"], cwd=ROOT)
    if compiled.returncode:
        raise SystemExit(f"Python {version}: the package has syntax that it does not know")
    command = [executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={folder / 'tests.xml'}"]
    files = [path for path in (f"tests/test_{name}.py" for name in names) if (ROOT / path).is_file()]
    (folder / "tests.xml").unlink(missing_ok=True)
    subprocess.run([*command, *files], cwd=ROOT, env=_environment(PYTHONPATH=str(ROOT)))
    return {**_counts(folder / "tests.xml"), "seconds": round(time.monotonic() - started), **_versions(folder)}


def _resolve(python: str, libraries: str, folder: Path, with_torch: bool) -> bool:
    """Write the versions that fit to `versions.txt`; whether there are any."""
    options, lines = _torch_options(with_torch)
    (folder / "torch.txt").write_text(lines, encoding="utf-8")
    kind = "--constraint" if with_torch else "--override"
    extras = [f"--extra={extra}" for extra in EXTRAS]
    command = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-annotate",
        "--no-build",
        "--python",
        python,
        *extras,
        *LIBRARIES[libraries],
    ]
    command += [
        *options,
        kind,
        str(folder / "torch.txt"),
        "-o",
        str(folder / "versions.txt"),
        "--upgrade",
        "pyproject.toml",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", env=_environment())
    (folder / "uv.log").write_text(done.stderr, encoding="utf-8")
    return done.returncode == 0


def _torch_options(with_torch: bool) -> tuple[list[str], str]:
    """Options of uv, and what a file of constraints or overrides says."""
    if not with_torch:
        return [], "torch; sys_platform == 'none'\n"
    if given := os.environ.get("MATRIX_TORCH"):
        return [], f"{given}\n"
    return ["--torch-backend", "cpu"], ""


def _uv(*arguments: str) -> None:
    subprocess.run(["uv", *arguments], check=True, env=_environment())


def _counts(report: Path) -> dict[str, int]:
    if not report.is_file():
        return {"passed": 0, "failed": 1, "skipped": 0}
    suites = ElementTree.parse(report).iter("testsuite")
    counts = [
        {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} for suite in suites
    ]
    total = {name: sum(count[name] for count in counts) for name in ("tests", "failures", "errors", "skipped")}
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "failed": failed, "skipped": total["skipped"]}


def _versions(folder: Path) -> dict[str, dict[str, str]]:
    lines = (folder / "versions.txt").read_text("utf-8").splitlines()
    pairs = (line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#"))
    found = {name.lower().replace("_", "-"): version for name, version in pairs}
    return {"versions": {name: found[name] for name in SHOWN if name in found}}


def table(results: dict[str, dict]) -> str:
    """`docs/versions.md`."""
    order = {f"{version} {libraries}": None for version in PYTHONS for libraries in LIBRARIES}
    rows = [
        "| Python | libraries | passed | failed | skipped | " + " | ".join(SHOWN) + " |",
        "|---" * (5 + len(SHOWN)) + "|",
    ]
    for key in order:
        if key in results:
            row = results[key]
            cells = [*key.split(), *(row[name] for name in ("passed", "failed", "skipped"))]
            cells += [row["versions"].get(name, "none") for name in SHOWN]
            rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return _PAGE.format(rows="\n".join(rows), tests=len(TESTS), without=len(WITHOUT_TORCH))


_PAGE = """# Versions

`make test-matrix` installs the lowest versions that `pyproject.toml` allows, those of `constraints.txt`, and the newest, each in
an environment of its own, for every Python that it finds, and runs {tests} files of quick tests. It wrote this table:

{rows}

Where PyTorch is "none", there was no build of it for that Python and processor at hand; the package was
compiled, and {without} files of tests that do without it were run. `MATRIX_TORCH` and `UV_FIND_LINKS` name other builds.
"""

if __name__ == "__main__":
    sys.exit(main())
