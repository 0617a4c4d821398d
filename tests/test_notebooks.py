"""The notebooks run from top to bottom on the embedded corpus, and what is stored of them is small and without errors."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from documents import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 200_000


def cells_of(path, kind="code"):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == kind]


def test_there_are_four():
    assert len(NOTEBOOKS) == 4
    assert all(f"notebooks/{path.name}" in (ROOT / "README.md").read_text("utf-8") for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_was_run_from_top_to_bottom(path):
    assert path.stat().st_size < MAX_BYTES
    cells = cells_of(path)
    assert "".join(cells[0]["source"]).startswith("%pip install")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert len(outputs) >= 4 and all(output["output_type"] != "error" for output in outputs)
    assert not re.search(r"/root|/home/|/tmp/", path.read_text("utf-8"))  # places of the machine that ran it


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_exist(path):
    text = "".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links and all((path.parent / link).is_file() for link in links)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """In a folder of its own. The first cell finds everything installed; the model learns as much as the stored one did."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    printed = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    assert "Traceback" not in printed and not re.search(r"^visualbert [\w-]+: ", printed, flags=re.MULTILINE)
    for name, least in (("runs/shapes", 60.0), ("runs/mine", 20.0)):
        if (tmp_path / name).is_dir():
            scores = json.loads((tmp_path / name / "metrics.json").read_text("utf-8"))
            assert scores["splits"]["test"]["accuracy"] > least
            break
    else:
        pytest.fail("no model was trained")
