"""The suites are collected by `pytest -m suites` (`make test-suites`) only; other runs neither download nor import them."""

from collections import Counter, defaultdict

import pytest
from cannot_apply import CANNOT_APPLY
from suites import make_importable

_MARKS_OF_TRANSFORMERS = (
    *("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "torch_compile_test"),
)


def pytest_configure(config):
    for mark in _MARKS_OF_TRANSFORMERS:
        config.addinivalue_line("markers", f"{mark}: used by the common tests of transformers")


def pytest_ignore_collect(config):
    return True if config.option.markexpr != "suites" else None


def pytest_pycollect_makemodule():
    try:
        make_importable()
    except OSError as error:
        pytest.skip(str(error), allow_module_level=True)


def pytest_collection_modifyitems(items):
    for item in items:
        expected = CANNOT_APPLY.get(item.cls.__name__, {}) if item.cls else {}
        if gone := [name for name in expected if not hasattr(item.cls, name)]:
            raise pytest.UsageError(f"cannot_apply.py: {item.cls.__name__} has no test {gone[0]}")
        if item.name in expected:
            item.add_marker(pytest.mark.xfail(reason=expected[item.name], strict=True))


def pytest_sessionfinish(session, exitstatus):
    """Without the distribution there is nothing to run, which the summary says; that is no failure."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.markexpr == "suites":
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter):
    """The table of `docs/transformers_suites.md`, or why there is none."""
    outcomes = ("passed", "failed", "xfailed", "skipped")
    counts: dict[str, Counter] = defaultdict(Counter)
    for outcome in outcomes:
        for report in terminalreporter.stats.get(outcome, []):
            place, *names = report.nodeid.split("::")
            if "transformers_suites" not in place:
                continue
            if len(names) == 2:  # class and test
                counts[names[0]][outcome] += 1
            elif not names:
                terminalreporter.write_line(f"{place}: {report.longrepr[2]}")
    if not counts:
        return
    terminalreporter.write_line("| test class | passed | failed | cannot apply | skipped by the suite |")
    terminalreporter.write_line("|---|---|---|---|---|")
    for name, of_class in sorted(counts.items()):
        cells = " | ".join(str(of_class[outcome]) for outcome in outcomes)
        terminalreporter.write_line(f"| `{name}` | {cells} |")
