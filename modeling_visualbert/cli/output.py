"""What the commands share: how results are printed and drawn."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def print_records(args: argparse.Namespace, records: list[dict], lines: list[str]) -> None:
    print(json.dumps(records, indent=2) if args.json else "\n".join(lines))


def save_image(image: Image.Image, args: argparse.Namespace) -> None:
    image.save(args.picture_out)
    print(f"drawn: {args.picture_out}", file=sys.stderr)
