"""What the documentation says about the common tests of `transformers`; the tests themselves are in `transformers_suites/`."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def folder_of_the_suites(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "transformers_suites"))


def test_the_documentation_lists_the_tests_that_cannot_apply():
    from cannot_apply import CANNOT_APPLY

    page = (HERE.parent / "docs" / "transformers_suites.md").read_text(encoding="utf-8")
    section = page.partition("cannot_apply.py")[2].partition("## Habits")[0]
    listed = [line for line in section.splitlines() if line.startswith("| `")]
    assert listed == [
        f"| `{name}` | `{test}` | {reason} |" for name, tests in CANNOT_APPLY.items() for test, reason in tests.items()
    ]


def test_the_tests_of_habits_are_there():
    page = (HERE.parent / "docs" / "transformers_suites.md").read_text(encoding="utf-8")
    named = re.findall(r"`tests/(test_\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}" in (HERE / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_without_an_index_the_reason_is_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    import suites

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(suites, "CACHE", tmp_path / "tests")
    with pytest.raises(OSError, match=r"^pip cannot download the source distribution of transformers==[^\n]*$"):
        suites.make_importable()
    assert not list(tmp_path.iterdir())
