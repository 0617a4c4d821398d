"""Code blocks of Markdown files: the Python in them, and command lines that are parsed as their programs parse them.
Messages that pages quote, in which `...` stands for what differs."""

import argparse
import ast
import re
import shlex
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

from transformers.utils import PROCESSOR_NAME

from modeling_visualbert.cli import build_parser
from modeling_visualbert.cli.training import SCRIPTS
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


# Path in the repository -> text: README and the pages of the site.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
_BLOCK = re.compile(r"(?:<!-- not run: ([^\n]+) -->\n+)?^( *)```(\w*)\n(.*?)^\2```", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block; `not_run` is the reason that the line `<!-- not run: REASON -->` above it gives, if there is one."""

    not_run: str
    indent: str
    language: str
    content: str


def code_blocks(text):
    """Every code block of a page."""
    return [Block(*found) for found in _BLOCK.findall(text)]


def blocks(text):
    """(language, content) of every code block that has a language and is not marked as one that is not run."""
    return [(block.language, block.content) for block in code_blocks(text) if block.language and not block.not_run]


def python_of(block):
    """The code of a block; of a session, what was typed."""
    typed = re.findall(r"^>>> (.*)$", block, flags=re.MULTILINE)
    return "\n".join(typed) if typed else block


def command_lines(text):
    """Every command line of the bash blocks, with continued lines joined."""
    for language, block in blocks(text):
        if language == "bash":
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip())


def words_of(line):
    """The words of a command line without comment and variables; of `accelerate launch script.py ...` those from the script on.

    `accelerate launch -m modeling_visualbert.cli ...` is taken as `visualbert ...`, and `visualbert train TASK ...` as the script
    that it stands for."""
    words = shlex.split(line, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):  # variables of the environment
        words = words[1:]
    if "modeling_visualbert.cli" in words:
        words = ["visualbert", *words[words.index("modeling_visualbert.cli") + 1 :]]
    if words[:2] == ["accelerate", "launch"]:
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    if words[:2] == ["visualbert", "train"]:
        words = [f"examples/{SCRIPTS[words[2]]}", *words[3:]]
    return words


def parsed(line):
    """The parsed arguments of a command line of ours: `visualbert ...` or `accelerate launch examples/....py ...`.

    Raises:
        SystemExit, ValueError: It would be refused, or a flag is abbreviated, which argparse would accept.
    """
    program, *rest = words_of(line)
    if program in ARGS:
        args = parse_args(ARGS[program], "", rest)
        known = {f"--{name}" for name in vars(args)} | {"--recipe"}
    else:
        argv = rest if program == "visualbert" else [COMMANDS[program], *rest]
        args = build_parser().parse_args(argv)
        known = set(_commands()[argv[0]]._option_string_actions)
    for word in rest:
        if word.startswith("--") and word not in known:
            raise ValueError(f"{word} in {line!r}; expected a flag in full")
    return args


def _commands():
    """The parser of each command of `visualbert`, by name."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return commands.choices


def flags():
    """All flags of commands and training scripts."""
    of_scripts = {f"--{field.name}" for args in ARGS.values() for field in fields(args)} | {"--recipe"}
    return of_scripts.union(*(parser._option_string_actions for parser in _commands().values()))


def _filled_in(part):
    """A part of an f-string as a message has it."""
    if isinstance(part, ast.Constant):
        return part.value
    return PROCESSOR_NAME if isinstance(part.value, ast.Name) and part.value.id == "PROCESSOR_NAME" else "..."


@cache
def _texts_in_code():
    """Every constant text of the package and of the endpoint's file, with `...` for what an f-string fills in."""
    found = []
    for path in (*sorted((ROOT / "modeling_visualbert").rglob("*.py")), ROOT / "hub_cards" / "handler.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_filled_in(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def assert_said_in_code(message):
    """A message that a page quotes is in the code, word by word."""
    parts = [part.strip(" ;:,.") for part in message.split("...")]
    parts = [part for part in parts if len(part) > 3]
    candidates = [text for text in _texts_in_code() if max(parts, key=len) in text]
    assert any(all(part in text for part in parts) for text in candidates), (parts, candidates)
