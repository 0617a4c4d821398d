"""The `visualbert` command: small commands over the package's functions, a file for each group.

A command imports what it needs when it runs: PyTorch alone takes longer to import than `visualbert --help` may take.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from ..flags import parse_flags
from ..version import __version__
from .analysis import add_analysis_commands
from .checkpoints import add_checkpoint_commands
from .demo import add_demo_command
from .errors import exit_status
from .evaluation import add_evaluation_commands
from .regions import add_region_commands
from .start import prepare_process
from .tasks import add_task_commands
from .training import add_training_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. A mistake of the user ends in one line on stderr, not in a traceback.

    Args:
        argv: Arguments; those of this process when not given, which then is taken to have nothing else to do.
    """
    args = parse_flags(build_parser(), argv)
    if argv is None:
        prepare_process(args)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return exit_status(f"visualbert {args.command}", partial(args.run, args))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the namespace that it returns holds the command's function as `run`."""
    parser = argparse.ArgumentParser(prog="visualbert", description="VisualBERT: questions and answers about images.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_task_commands(commands)
    add_training_command(commands)
    add_evaluation_commands(commands)
    add_demo_command(commands)
    add_region_commands(commands)
    add_analysis_commands(commands)
    add_checkpoint_commands(commands)
    return parser
