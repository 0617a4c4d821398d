"""docs/safety.md: each message is one of the code, word by word, and each test is there."""

import ast
import re

import pytest
from documents import PAGES, ROOT, assert_said_in_code

PAGE = PAGES["docs/safety.md"]
GROUPS = ("Images", "The demo", "The endpoint", "Checkpoints", "Files of text", "Disk and power", "The campaign")
_CODE = re.compile(r"`([^`]+)`")


def rows_of(text):
    """The cells of every row: what happens, what is said or tried, what holds it."""
    lines = re.findall(r"^\| (?!What happens|Surface)(.*) \|$", text, flags=re.MULTILINE)
    return [tuple(line.split(" | ")) for line in lines]


ACCIDENTS, CAMPAIGN = map(rows_of, PAGE.split("## The campaign"))
MESSAGES = sorted({message for row in ACCIDENTS for message in _CODE.findall(row[1])})
TESTS = sorted({name for row in (*ACCIDENTS, *CAMPAIGN) for name in _CODE.findall(row[-1])})


def test_every_row_says_what_happens_what_is_said_and_what_holds_it():
    assert re.findall(r"^## (.*)$", PAGE, flags=re.MULTILINE) == list(GROUPS)
    assert len(ACCIDENTS) >= 65 and len(MESSAGES) >= 60 and len(TESTS) >= 100
    for row in (*ACCIDENTS, *CAMPAIGN):
        assert len(row) == 3 and all(row), row
        assert _CODE.findall(row[2]) == re.findall(r"tests/[\w/]+\.py::test_\w+", row[2]) != [], row
    for row in ACCIDENTS:
        assert row[1].startswith(("Nothing: ", "The same")) or _CODE.findall(row[1]), row


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_code(message):
    assert_said_in_code(message)


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_are_there(name):
    path, _, function = name.partition("::")
    content = ast.parse((ROOT / path).read_text("utf-8"))
    assert function in {node.name for node in content.body if isinstance(node, ast.FunctionDef)}
