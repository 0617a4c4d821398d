"""What is released: one version everywhere, a source distribution that tests itself, and a wheel that trains."""

import email
import json
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from documents import flags
from processes import ROOT, environment
from table_files import write_photos, write_table

from modeling_visualbert import __version__

setup = runpy.run_path(str(ROOT / "setup.py"))
REPOSITORY = "https://github.com/modeling-visualbert/modeling_visualbert"
NEEDED_TO_TRAIN = (
    *("examples/run_vqa.py", "examples/train_detector.py", "examples/recipes/vqa_finetune.yaml", "py.typed"),
    *("examples/accelerate/one_gpu.yaml", "assets/shapes_detector/model.safetensors", "assets/published.yaml"),
    *("hub_cards/template.md", "hub_cards/handler.py", "hub_cards/space/app.py", "demo/page.css"),
    "hub_cards/metrics/vqa_accuracy/vqa_accuracy.py",
)
# Of each kind one: metrics, annotations, files of others, cards, the corpus, a golden case. Seconds.
OF_THE_SOURCE = ("test_metrics_vqa", "test_data_nlvr2_coco", "test_checkpoint_files", "test_hub_card", "test_recipes")
HEADINGS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}  # those of Keep a Changelog
OWN_HEADINGS = {"Numbers", "Upgrading from development versions"}
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"


def headings():
    """The versions of the changelog, newest first."""
    return re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)


def test_the_version_is_the_same_everywhere():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert told["version"] == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", __version__)
    first, *released = headings()
    assert first == "Unreleased"
    assert not released or released[0] == __version__
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    for version in released:
        assert re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", text, flags=re.MULTILINE), version


def test_the_changelog_has_known_headings_and_links_that_exist():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= HEADINGS | OWN_HEADINGS
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (ROOT / target).is_file(), target


def test_what_the_changelog_adds_are_flags_that_there_are():
    """In `[Unreleased]` only: a version names the flags of its time."""
    unreleased = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## [")[1]
    added = unreleased.partition("### Added")[2].partition("\n### ")[0]
    assert set(re.findall(r"--[a-z]\w+", added)) <= flags()


def test_a_tag_of_this_commit_is_the_version():
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v*"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if tags.returncode:
        pytest.skip("no repository: this is a source distribution")
    assert tags.stdout.split() in ([], [f"v{__version__}"])


def test_the_address_of_the_repository_is_the_same_everywhere():
    declared = re.findall(rf"{re.escape('https://github.com/')}[\w-]+/modeling_visualbert", _pages())
    assert set(declared) == {REPOSITORY}
    assert f'Source = "{REPOSITORY}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def _pages():
    names = ("pyproject.toml", "CITATION.cff", "SECURITY.md", "RELEASING.md", "README.md", "CONTRIBUTING.md")
    return "\n".join((ROOT / name).read_text("utf-8") for name in names)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("![A picture](docs/ask.png)", f"![A picture]({REPOSITORY}/raw/v1.2.3/docs/ask.png)"),
        ("see [notes](benchmarks/NOTES.md).", f"see [notes]({REPOSITORY}/blob/v1.2.3/benchmarks/NOTES.md)."),
        ("[a](docs/paper.md#clip), [b](LICENSE)", None),
        ("[Li et al.](https://arxiv.org/abs/1908.03557)", "[Li et al.](https://arxiv.org/abs/1908.03557)"),
        ("[below](#speed), [mail](mailto:a@b.c)", "[below](#speed), [mail](mailto:a@b.c)"),
        ("answers[0][0](x)", None),
    ],
)
def test_links_of_readme_on_the_index(link, expected):
    found = setup["with_absolute_links"](link, REPOSITORY, "v1.2.3")
    if expected is not None:
        assert found == expected
    else:
        assert found.count(f"]({REPOSITORY}/blob/v1.2.3/") == link.count("](")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The distributions as they are released: the source from the checkout, the wheel from the unpacked source."""
    folder = tmp_path_factory.mktemp("dist")
    source = _build("sdist", ROOT, folder)
    with tarfile.open(folder / source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.removesuffix(".tar.gz")
    return unpacked, folder / _build("wheel", unpacked, folder)


def _build(kind, where, folder):
    command = [sys.executable, "-c", BUILD.format(kind), str(folder)]
    done = subprocess.run(command, cwd=where, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if re.search("warning|deprecat", line, re.I)]
    assert [line for line in said if "byte-compiling is disabled" not in line] == []
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_source_distribution_holds_what_git_does(built):
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    ).stdout.splitlines()
    if not tracked:
        pytest.skip("no repository: this is a source distribution")
    missing = [name for name in tracked if (ROOT / name).exists() and not (built[0] / name).exists()]
    assert missing == [], "MANIFEST.in leaves these out"


@pytest.mark.slow
def test_the_source_distribution_tests_itself(built, tmp_path):
    names = [f"tests/{name}.py" for name in OF_THE_SOURCE]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *names]
    variables = {**environment(), "PYTHONPATH": str(built[0])}
    done = subprocess.run(
        command, cwd=built[0], env=variables, capture_output=True, encoding="utf-8", check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_the_wheel_holds_what_training_needs(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = set(wheel.namelist())
        (told,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(wheel.read(told).decode())
    assert {f"modeling_visualbert/{name}" for name in NEEDED_TO_TRAIN} <= names
    assert {name.partition("/")[0] for name in names} == {
        "modeling_visualbert",
        f"modeling_visualbert-{__version__}.dist-info",
    }
    recipes = {path.name for path in (ROOT / "examples" / "recipes").glob("*.yaml")}
    assert {name.rpartition("/")[2] for name in names if "/recipes/" in name} == recipes
    assert metadata["Version"] == __version__ and metadata["Author"] == "The modeling_visualbert authors"
    relative = re.findall(r"\]\((?![a-z]+:|#)[^)]+\)", metadata.get_payload())
    assert relative == [], "links that lead nowhere on the index"


@pytest.mark.slow
def test_the_wheel_trains_outside_of_the_repository(built, tmp_path):
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path / "site")
    variables = {**environment(HF_HUB_OFFLINE="1"), "PYTHONPATH": str(tmp_path / "site")}
    rows = [{"image": f"{number % 4}.png", "question": "what is it", "answer": "a wall"} for number in range(8)]
    command = [sys.executable, "-m", "modeling_visualbert.cli", "train", "vqa", "--output_dir", "run", "--cpu"]
    command += ["--train_file", write_table(write_photos(tmp_path / "photos") / "rows.csv", rows), "--epochs", "1"]
    command += ["--recipe", "vqa_grid_corpus", "--batch_size", "4", "--tokenizer", "corpus"]
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, encoding="utf-8", check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))["splits"]
    assert str(Path(tmp_path / "site" / "modeling_visualbert")) in _file_of_the_package(variables, tmp_path)


def _file_of_the_package(variables, where):
    command = [sys.executable, "-c", "import modeling_visualbert; print(modeling_visualbert.__file__)"]
    return subprocess.run(command, cwd=where, env=variables, capture_output=True, encoding="utf-8", check=True).stdout


def test_checkpoints_ask_for_the_versions_that_the_package_does():
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    for line in (ROOT / "hub_cards" / "requirements.txt").read_text("utf-8").split():
        assert f'"{line}"' in declared, f"hub_cards/requirements.txt: {line} is not what pyproject.toml says"


def test_the_table_of_versions_is_what_was_measured():
    matrix = runpy.run_path(str(ROOT / ".ci" / "matrix.py"))
    results = json.loads((ROOT / "benchmarks" / "results" / "versions.json").read_text("utf-8"))
    assert (ROOT / "docs" / "versions.md").read_text("utf-8") == matrix["table"](results)
    assert all(row["passed"] and not row["failed"] for row in results.values())
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    first = min(name for name in results if name.endswith("lowest"))
    for name, version in results[first]["versions"].items():
        bound = re.search(rf'"{name.replace("-", "[-_]")}>=([\d.]+)"', declared)
        found = version.partition("+")[0]
        assert bound is not None and f"{found}.".startswith(f"{bound[1]}."), f"{name}: {found} was the lowest tried"
