"""What the commands share: an argument, and how results are printed and drawn."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..system import multiplies_bf16

if TYPE_CHECKING:
    from PIL import Image


def add_bf16(command: argparse._ActionsContainer) -> None:
    """The option by which regions are found in bfloat16."""
    command.add_argument(
        "--bf16",
        action="store_true",
        help="find regions in bfloat16: at least twice as fast where the processor multiplies in it, and a little less exact",
    )


def tell_slow_bf16() -> None:
    """A line on stderr where bfloat16 is slower than single precision."""
    if not multiplies_bf16():
        print(
            "this processor has no units for bfloat16, so --bf16 may be slower than single precision", file=sys.stderr
        )


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


def check_picture_out(args: argparse.Namespace) -> None:
    """Refuse a file of --picture_out that cannot be written, before anything is computed.

    Raises:
        FileNotFoundError: Its folder does not exist.
        ValueError: Its suffix is not that of an image.
    """
    if args.picture_out is None:
        return
    from PIL import Image

    path = Path(args.picture_out)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--picture_out {path}: there is no folder {path.parent}")
    if path.suffix.lower() not in Image.registered_extensions() or path.is_dir():
        raise ValueError(f"--picture_out {path}; expected the name of an image file, such as picture.png")


def save_image(image: Image.Image, args: argparse.Namespace) -> None:
    """Save a drawn image to the file of --picture_out, and say so on stderr."""
    image.save(args.picture_out)
    print(f"drawn: {args.picture_out}", file=sys.stderr)
