"""docs/troubleshooting.md: each message is one of the package's, word by word; `...` stands for what differs."""

import ast

import pytest
from documents import PAGES, ROOT, code_blocks
from transformers.utils import PROCESSOR_NAME

PAGE = PAGES["docs/troubleshooting.md"]
MESSAGES = [block.content.strip() for block in code_blocks(PAGE) if block.language == "text"]


def filled_in(part):
    """A part of an f-string as a message has it."""
    if isinstance(part, ast.Constant):
        return part.value
    return PROCESSOR_NAME if isinstance(part.value, ast.Name) and part.value.id == "PROCESSOR_NAME" else "..."


@pytest.fixture(scope="module")
def texts_in_code():
    """Every constant text of the package, with `...` for what an f-string fills in."""
    found = []
    for path in sorted((ROOT / "modeling_visualbert").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(filled_in(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_there_are_thirty_of_them():
    assert len(MESSAGES) >= 30 and len(set(MESSAGES)) == len(MESSAGES)
    assert all("\n" not in message for message in MESSAGES)
    assert PAGE.count("**Do this:**") == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_code(message, texts_in_code):
    parts = [part.strip(" ;:,.") for part in message.split("...")]
    parts = [part for part in parts if len(part) > 3]
    candidates = [text for text in texts_in_code if max(parts, key=len) in text]
    assert any(all(part in text for part in parts) for text in candidates), (parts, candidates)
