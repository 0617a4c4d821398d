"""What the documentation says about the common tests of `transformers`; the tests themselves are in `transformers_suites/`."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def folder_of_the_suites(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE / "transformers_suites"))


def test_the_documentation_lists_the_tests_that_cannot_apply():
    from cannot_apply import CANNOT_APPLY

    page = (HERE.parent / "docs" / "transformers_suites.md").read_text(encoding="utf-8")
    section = page.partition("cannot_apply.py")[2]
    listed = [line for line in section.splitlines() if line.startswith("| `")]
    assert listed == [
        f"| `{name}` | `{test}` | {reason} |" for name, tests in CANNOT_APPLY.items() for test, reason in tests.items()
    ]


def test_without_an_index_the_reason_is_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    import suites

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(suites, "CACHE", tmp_path / "tests")
    with pytest.raises(OSError, match=r"^pip cannot download the source distribution of transformers==[^\n]*$"):
        suites.make_importable()
    assert not list(tmp_path.iterdir())
