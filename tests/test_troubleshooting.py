"""docs/troubleshooting.md: each message is one of the package's, word by word; `...` stands for what differs."""

import pytest
from documents import PAGES, assert_said_in_code, code_blocks

PAGE = PAGES["docs/troubleshooting.md"]
MESSAGES = [block.content.strip() for block in code_blocks(PAGE) if block.language == "text"]


def test_there_are_thirty_of_them():
    assert len(MESSAGES) >= 30 and len(set(MESSAGES)) == len(MESSAGES)
    assert all("\n" not in message for message in MESSAGES)
    assert PAGE.count("**Do this:**") == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_code(message):
    assert_said_in_code(message)
