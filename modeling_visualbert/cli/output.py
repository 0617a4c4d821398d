"""What the commands share: an argument, and how results are printed and drawn."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def add_any_detector(command: argparse._ActionsContainer) -> None:
    """Add --any_detector to a command in which a model and features meet."""
    command.add_argument(
        "--any_detector",
        action="store_true",
        help="accept features of another detector than the model was trained on, if they are as long",
    )


def print_records(args: argparse.Namespace, records: list[dict], lines: list[str]) -> None:
    """Print the lines, or with --json the records."""
    print(json.dumps(records, indent=2) if args.json else "\n".join(lines))


def save_image(image: Image.Image, args: argparse.Namespace) -> None:
    """Save a drawn image to the file of --picture_out, and say so on stderr."""
    image.save(args.picture_out)
    print(f"drawn: {args.picture_out}", file=sys.stderr)
