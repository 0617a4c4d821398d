"""`visualbert demo`."""

from __future__ import annotations

import argparse
from typing import Any

from .output import add_any_detector


def add_demo_command(commands: Any) -> None:
    """Add the command to the parser of `visualbert`."""
    command = commands.add_parser("demo", help="try models in the browser, a tab for each")
    command.add_argument(
        "--model",
        required=True,
        action="append",
        help="folder or Hub name of a checkpoint; may be given several times; published ones such as uclanlp/visualbert-vqa are "
        "completed",
    )
    command.add_argument("--region_encoder", help="for bare checkpoints: region encoder, see `visualbert convert`")
    command.add_argument("--tokenizer", help="for bare checkpoints: BERT tokenizer, folder or Hub name")
    add_any_detector(command)
    command.add_argument("--examples", help="JSON file with your own example images (default: rendered scenes)")
    command.add_argument("--host", help="address to listen on (default: 127.0.0.1; 0.0.0.0 for other machines too)")
    command.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    command.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    try:
        from ..demo.page import serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "starlette"):
            raise
        raise ValueError('gradio is not installed; expected `pip install "modeling-visualbert[demo]"`') from error
    parts = (args.region_encoder, args.tokenizer, args.any_detector)
    serve(args.model, args.examples, args.host, args.port, *parts)
