"""Code blocks of Markdown files: the Python in them, and command lines that are parsed as their programs parse them."""

import argparse
import re
import shlex
from pathlib import Path

from modeling_visualbert.cli import build_parser
from modeling_visualbert.tasks.classification import ClassificationArgs
from modeling_visualbert.tasks.detection import DetectionArgs
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args
from modeling_visualbert.tasks.pretraining import PretrainingArgs
from modeling_visualbert.tasks.vcr import VcrArgs
from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import parse_args

ROOT = Path(__file__).parents[1]
ARGS = {
    "examples/run_vqa.py": VqaArgs,
    "examples/run_nlvr2.py": Nlvr2Args,
    "examples/run_classification.py": ClassificationArgs,
    "examples/run_vcr.py": VcrArgs,
    "examples/run_flickr30k.py": Flickr30kArgs,
    "examples/run_pretraining.py": PretrainingArgs,
    "examples/train_detector.py": DetectionArgs,
}
COMMANDS = {"examples/extract_features.py": "extract", "examples/evaluate.py": "evaluate"}  # scripts around a command


def blocks(text):
    """(language, content) of every code block."""
    return re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)


def command_lines(text):
    """Every command line of the bash blocks, with continued lines joined."""
    for language, block in blocks(text):
        if language == "bash":
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())


def words_of(line):
    """The words of a command line without its comment; of `accelerate launch script.py ...` those from the script on."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["accelerate", "launch"]:
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    return words


def parsed(line):
    """The parsed arguments of a command line of ours: `visualbert ...` or `accelerate launch examples/....py ...`.

    Raises:
        SystemExit, ValueError: It would be refused, or a flag is abbreviated, which argparse would accept.
    """
    program, *rest = words_of(line)
    if program in ARGS:
        parser, args = None, parse_args(ARGS[program], "", rest)
        known = {f"--{name}" for name in vars(args)} | {"--recipe"}
    else:
        argv = rest if program == "visualbert" else [COMMANDS[program], *rest]
        parser = build_parser()
        args = parser.parse_args(argv)
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        known = set(commands.choices[argv[0]]._option_string_actions)
    for word in rest:
        if word.startswith("--") and word not in known:
            raise ValueError(f"{word} in {line!r}; expected a flag in full")
    return args
