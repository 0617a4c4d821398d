"""Writes the help of every command into docs/reference/commands.md when the site is built."""

import argparse
import os
from collections.abc import Iterator

from modeling_visualbert.cli import build_parser

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with the help of the commands in the place of the mark; other pages as they are."""
    return markdown.replace(MARK, "\n".join(_sections())) if MARK in markdown else markdown


def _sections() -> Iterator[str]:
    os.environ["COLUMNS"] = "82"  # as wide as a page
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        yield f"## visualbert {name}\n\n```text\n{command.format_help()}```\n"
