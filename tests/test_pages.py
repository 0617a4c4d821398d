"""The README and the pages of the site say what works: their Python runs, their commands parse, those of the first pages run."""

import re
import shlex
import subprocess
import sys

import pytest
from documents import COMMANDS, PAGES, ROOT, blocks, code_blocks, command_lines, parsed, python_of, words_of
from user_folder import make_user_folder

from modeling_visualbert.cli import main

# Pages with tests of their own, which run their Python and parse their commands.
ELSEWHERE = {"docs/trainer.md": "test_trainer_doc.py", "docs/paper.md": "test_paper_doc.py"}
PROGRAMS = {"make", "pip", "python", "python3"}  # of others
LANGUAGES = {"bash", "python", "text", "yaml", "json", "bibtex", "mermaid", ""}
LINES = [
    pytest.param(name, line, id=f"{name}: {line[:60]}")
    for name, text in PAGES.items()
    if name not in ELSEWHERE
    for line in command_lines(text)
]
WITH_PYTHON = [
    name
    for name, text in PAGES.items()
    if name not in ELSEWHERE and any(language == "python" for language, _ in blocks(text))
]


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory):
    return make_user_folder(tmp_path_factory.mktemp("user"))


@pytest.mark.parametrize("name", PAGES)
def test_every_code_block_is_tested_or_says_why_not(name):
    for block in code_blocks(PAGES[name]):
        assert block.language in LANGUAGES, block
        if block.language == "text":
            assert not re.search(r"^(import|from|visualbert|\$) ", block.content, flags=re.MULTILINE), block
    fences = re.findall(r"^ *```", PAGES[name], flags=re.MULTILINE)
    assert len(fences) == 2 * len(code_blocks(PAGES[name])), f"{name}: a code block that is not closed"


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_runs_in_order(name, user_folder, monkeypatch, capsys):
    monkeypatch.chdir(user_folder)
    if name == "docs/stores.md":
        assert main(["extract", "docs", "data/regions", "--grid_backbone", "microsoft/resnet-50"]) == 0
    scope = {}
    for language, block in blocks(PAGES[name]):
        if language == "python":
            exec(compile(python_of(block), name, "exec"), scope)


@pytest.mark.parametrize(("name", "line"), LINES)
def test_commands_parse(name, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *_ = words_of(line)
    if program == "visualbert":
        assert callable(parsed(line).run)
    elif program.startswith("examples/"):
        assert (ROOT / program).is_file()
        args = parsed(line)
        assert program in COMMANDS or args.output_dir.startswith("runs/")
    elif program == "python" and words_of(line)[1].endswith(".py"):
        assert (ROOT / words_of(line)[1]).is_file()
    else:
        assert program in PROGRAMS, line


def test_there_are_commands_and_python_of_many_kinds():
    assert len(WITH_PYTHON) >= 9
    used = {words_of(param.values[1])[1] for param in LINES if param.values[1].startswith("visualbert ")}
    assert len(used) >= 15


RUN = ("docs/photo.md", "docs/table.md", "docs/tasks.md")  # every `visualbert` command but the server


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_commands_run_one_after_the_other(name, user_folder, monkeypatch):
    """As a user would: in processes, in the order of the page."""
    monkeypatch.chdir(user_folder)
    ours = [line for line in command_lines(PAGES[name]) if line.startswith("visualbert ") and " demo " not in line]
    assert ours
    for line in ours:
        _, *arguments = shlex.split(line, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", "modeling_visualbert.cli", *arguments], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
