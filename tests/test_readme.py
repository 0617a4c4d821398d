"""The README and the pages of the site: their figures are those of the results files, and the README's links exist."""

import importlib
import json
import re

import pytest
from documents import PAGES, ROOT

README = PAGES["README.md"]
# Pages whose figures are those of other files, which other tests compare, or that repeat a file of benchmarks.
_OTHERS = ("paper", "scaling", "attention", "transformers_suites", "notes", "ablations", "versions")
FIGURES = {name: text for name, text in PAGES.items() if name not in [f"docs/{other}.md" for other in _OTHERS]}


def test_make_targets_exist():
    rules = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?:^|`)make((?: [\w-]+)+)", "\n".join(PAGES.values()), flags=re.MULTILINE)
    wanted = {target for words in named for target in words.split()}
    assert {"vqa", "nlvr2", "test", "docs"} <= wanted <= {target for rule in rules for target in rule.split()}
    assert {"vqa", "test"} <= {word for words in re.findall(r"make((?: [\w-]+)+)", README) for word in words.split()}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_images_exist(name):
    """Of the site, `mkdocs build` checks anchors too; this holds on the pages as they are read in the repository."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)):
        assert ((ROOT / name).parent / target).is_file(), target


def test_files_named_in_contributing_exist():
    folders = (ROOT, ROOT / "modeling_visualbert", ROOT / "modeling_visualbert" / "hub_code")
    named = set(re.findall(r"`([\w/]+\.(?:py|md|yaml))`", (ROOT / "CONTRIBUTING.md").read_text()))
    new = {name for name in named if re.search(r"gqa|\b(?:\w+_)?x\.py", name)}
    assert len(new) >= 6 and len(named - new) >= 20
    missing = [name for name in named - new if not any((folder / name).is_file() for folder in folders)]
    assert not missing


RESULTS = json.loads((ROOT / "benchmarks" / "results" / "tasks.json").read_text())
GOLDEN = json.loads((ROOT / "benchmarks" / "results" / "golden.json").read_text())["logits, states, loss, gradients"]
SPEED = [json.loads(line) for line in (ROOT / "benchmarks" / "results.jsonl").read_text().splitlines()]


def table_rows():
    """Cells of every table row, headers left out."""
    lines = "\n".join(FIGURES.values()).splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not line.startswith("|-") and not following.startswith("|-"):
            yield [cell.strip().replace("*", "") for cell in line.strip("|").split("|")]


ROWS = {row[0].split(" (")[0]: row for row in table_rows() if row[1] not in ("eager", "sdpa")}
GOLDEN_ROWS = {f"{row[0]}, {row[1]}": row[2:] for row in table_rows() if row[1] in ("eager", "sdpa")}
TASK_ROWS = {**RESULTS["tasks"], **RESULTS["vqa_by_kind_of_question"]}


REPORTED, OF_OTHERS = (
    "Why 46% instead of 71% on VQA v2?",
    "right answers of the published checkpoint in public reports, and in the paper",
)


def decimals(text):
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


@pytest.mark.parametrize("name", TASK_ROWS)
def test_scores_are_those_of_the_results_file(name):
    assert decimals(" ".join(ROWS[name])) == list(TASK_ROWS[name].values())


def test_differences_to_the_authors_code_are_those_of_the_results_file():
    assert {name: [number or "-" for number in numbers] for name, numbers in GOLDEN.items()} == GOLDEN_ROWS


@pytest.fixture(scope="module")
def bench_stock():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("bench_stock")


def speed_cells(bench_stock, found):
    """A row of the README from a measurement: the two shares, and the two peaks, stand in one cell each."""
    title, *numbers, share, our_share, peak, our_peak = re.split(r" ?\| ?", bench_stock.row(found["workload"], found))[
        1:-1
    ]
    shares = f"{share}, {our_share}" if share else ""
    return [title, *(number.replace("*", "") for number in numbers), shares, f"{peak}, {our_peak}"]


def test_times_and_memory_are_those_of_the_results_file(bench_stock):
    for name, workload in bench_stock.WORKLOADS.items():
        measured = [found for found in SPEED if found["workload"] == name and "ours_mib" in found]
        row = next(row for row in table_rows() if row[0] == workload.title)
        assert row in [speed_cells(bench_stock, found) for found in measured], row


def test_every_row_with_figures_is_compared(bench_stock):
    known = {*TASK_ROWS, *(workload.title.split(" (")[0] for workload in bench_stock.WORKLOADS.values())}
    with_figures = {name for name, row in ROWS.items() if any(re.search(r"\d\.\d|\d%|^\d+$", cell) for cell in row[1:])}
    settings = {"`pad_token_id`", "segment of the regions when none is given"}
    assert with_figures - known - settings == {REPORTED}
    assert set(re.findall(r"\d+%", " ".join(ROWS[REPORTED]))) <= {*RESULTS["elsewhere"][OF_OTHERS]}
    assert {row[0] for row in table_rows() if decimals(row[0])} <= {"Flickr30k: recall@1 (upper bound 100.0)"}


def test_decimals_and_percentages_of_the_text_are_those_of_the_results_file():
    tables_out = "\n".join(line for text in FIGURES.values() for line in text.splitlines() if not line.startswith("|"))
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", tables_out, flags=re.DOTALL)
    versions = set(
        re.findall(r"\d+\.\d+", (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text())
    )
    known = {number for numbers in RESULTS["elsewhere"].values() for number in numbers} | versions
    known |= {f"{number}%" for number in TASK_ROWS["VQA: accuracy"].values()}
    found = re.findall(r"(?<![-\w.])(?:\d+(?:\.\d+)?%|\d+\.\d+)(?![\w.])", text)
    assert len(found) > 20
    assert not set(found) - known


def test_figures_come_from_the_shipped_detector():
    regions = json.loads((ROOT / "modeling_visualbert/assets/shapes_detector/metrics.json").read_text())
    test = regions["splits"]["test"]
    assert f"mAP50 {test['map50']:.3f}, mAP {test['map']:.3f}" in PAGES["docs/benchmarks.md"]
    assert f"recall {regions['regions']['recall50']:.3f}" in PAGES["docs/benchmarks.md"]


def test_the_figures_on_real_photos_are_the_last_ones_measured():
    found = json.loads((ROOT / "benchmarks" / "results" / "photos.jsonl").read_text().splitlines()[-1])
    millions, minutes = found["millions_of_parameters"], found["minutes"]
    size = f"({millions} M parameters, {minutes:.0f} minutes with one thread from pixels to score)"
    accuracy, questions = found["accuracy"]["dev"], found["questions"]["dev"]
    told = f"{size}: {accuracy}% of {questions} questions that were held out, {found['text_only']['dev']}% without the photos"
    assert told in PAGES["docs/benchmarks.md"].replace("\n", " ")


def test_the_start_at_full_size_is_what_was_measured():
    path = ROOT / "benchmarks" / "results" / "full_size.jsonl"
    found = {}
    for one in map(json.loads, path.read_text().splitlines()):
        if one["workload"].startswith("start_") and one["processes"] == 1:
            cell = f"{one['cpu_s'][0]:.0f} s, {one['peak_mib'][0] / 1024:.1f} GiB"
            found[one["workload"], one["note"], one["start"]] = cell, f"{one.get('cache_mib')} MiB"
    document = (ROOT / "docs" / "scaling.md").read_text("utf-8")
    for workload in {key[0] for key in found}:
        first, cache = found[workload, "after", "first"]
        row = (
            f"| {found[workload, 'before', 'first'][0]} | {first} | {found[workload, 'after', 'later'][0]} | {cache} |"
        )
        assert row in document, row
