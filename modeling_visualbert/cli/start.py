"""What makes a command answer sooner: half of a first answer's time is the import of PyTorch and `transformers`."""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import sys
from pathlib import Path

QUESTION_COMMANDS = ("ask", "reason", "classify", "choose", "ground", "fill")
# What `transformers` imports wherever it is installed, and no answer needs.
NEVER_NEEDED = ("peft", "scipy", "sklearn")
NEEDED_FOR_INTEGERS = ("accelerate", "torchao")
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


def prepare_process(args: argparse.Namespace) -> None:
    """
    Prepare a process that runs one command and ends. In a process that does more, it would change what others rely on.

    - Imports make millions of objects that stay. Python would look for garbage among them after every 700, and when it ends.
    - Packages that a question does not need count as not installed: None in `sys.modules` is Python's way to say so.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)
    if args.command in QUESTION_COMMANDS:
        absent = NEVER_NEEDED if args.int8 or _may_be_quantised(args.model) else (*NEVER_NEEDED, *NEEDED_FOR_INTEGERS)
        for name in absent:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _may_be_quantised(model: str) -> bool:
    """Whether the weights of a checkpoint may be integers, which its configuration says."""
    from ..published import find_published_checkpoint

    try:
        fields = json.loads((Path(model) / "config.json").read_text("utf-8"))
        return bool(fields.get("quantization_config"))
    except (OSError, ValueError, AttributeError, RecursionError):  # of the Hub, or broken, which opening it will tell
        return find_published_checkpoint(model) is None


__all__ = ["NEEDED_FOR_INTEGERS", "NEVER_NEEDED", "QUESTION_COMMANDS", "prepare_process"]
