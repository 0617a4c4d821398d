"""Command lines whose misspelt flags are answered with the flag that was meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """`parser.parse_args(argv)`, but a flag that is unknown ends with the usage of its command and the nearest flag of it.

    Raises:
        SystemExit: The command line is wrong; status 2.
    """
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        command = _command_of(parser, namespace)
        command.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(command, unknown)}")
    return namespace


def _command_of(parser: argparse.ArgumentParser, namespace: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was given."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices[getattr(namespace, action.dest)]
    return parser


def _meant(command: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """`; did you mean --explain?` for `--explian`."""
    flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    near = [match for flag in flags for match in get_close_matches(flag, command._option_string_actions, n=1)]
    return f"; did you mean {', '.join(near)}?" if near else ""


__all__ = ["parse_flags"]
