"""What a process that answers one question imports, and how it is prepared."""

import argparse
import json
import subprocess
import sys

import pytest
from processes import environment
from tiny_checkpoints import save_checkpoint_and_image

from modeling_visualbert.cli import build_parser
from modeling_visualbert.cli.start import NEEDED_FOR_INTEGERS, NEVER_NEEDED, QUESTION_COMMANDS, prepare_process

# Packages that this one or `transformers` uses elsewhere.
HEAVY = {
    *("accelerate", "datasets", "evaluate", "gradio", "h5py", "matplotlib", "onnx", "onnxruntime", "pandas", "peft"),
    *("onnxscript", "pyarrow", "pycocotools", "scipy", "sklearn", "tensorboard", "torchao"),
}  # fmt: skip
RUN = """
import json, sys
from modeling_visualbert.cli import main
status = main()
imported = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print(json.dumps([status, sorted(imported)]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint and an image."""
    return save_checkpoint_and_image(tmp_path_factory.mktemp("start"), "start")


def test_a_question_is_answered_without_what_it_does_not_need(folder):
    command = [sys.executable, "-c", RUN, "ask", "--model", "vqa", "image.png", "Is it red?", "--json"]
    done = subprocess.run(command, cwd=folder, env=environment(HF_HUB_OFFLINE="1"), capture_output=True, text=True)
    status, imported = json.loads(done.stderr.splitlines()[-1])
    assert status == 0 and len(json.loads(done.stdout)) == 1
    assert "torch" in imported and HEAVY.isdisjoint(imported)


def prepared(folder, monkeypatch, *argv):
    """Packages that count as absent after the process has been prepared for a command."""
    modules = {}
    monkeypatch.setattr("modeling_visualbert.cli.start.sys", argparse.Namespace(modules=modules))
    monkeypatch.setattr("modeling_visualbert.cli.start.gc.set_threshold", lambda *_: None)
    monkeypatch.setattr("modeling_visualbert.cli.start.atexit.register", lambda *_: None)
    monkeypatch.chdir(folder)
    prepare_process(build_parser().parse_args(argv))
    assert set(modules.values()) <= {None}
    return set(modules)


def test_integers_and_unknown_checkpoints_keep_what_they_may_need(folder, monkeypatch):
    rest = ("image.png", "Is it red?")
    every = {*NEVER_NEEDED, *NEEDED_FOR_INTEGERS}
    assert prepared(folder, monkeypatch, "ask", "--model", "vqa", *rest) == every
    assert prepared(folder, monkeypatch, "ask", "--model", "uclanlp/visualbert-vqa", *rest) == every
    assert prepared(folder, monkeypatch, "ask", "--int8", "--model", "vqa", *rest) == set(NEVER_NEEDED)
    assert prepared(folder, monkeypatch, "ask", "--model", "somebody/model", *rest) == set(NEVER_NEEDED)
    (folder / "int8").mkdir(exist_ok=True)
    for content in ('{"quantization_config": {"quant_method": "torchao"}}', "[]", "{"):
        (folder / "int8" / "config.json").write_text(content)
        assert prepared(folder, monkeypatch, "ask", "--model", "int8", *rest) == set(NEVER_NEEDED)
    assert prepared(folder, monkeypatch, "corpus") == set()


def test_a_call_from_python_leaves_the_process_as_it_is(monkeypatch):
    from modeling_visualbert import cli

    def fail(args):
        raise AssertionError("prepared")

    monkeypatch.setattr(cli, "prepare_process", fail)
    assert cli.main(["ask", "--model", "/nowhere/model", "image.png", "Is it red?"]) == 2
    monkeypatch.setattr(sys, "argv", ["visualbert", "ask", "--model", "/nowhere/model", "image.png", "Is it red?"])
    with pytest.raises(AssertionError, match="prepared"):
        cli.main()


def test_the_commands_are_those_that_open_a_pipeline():
    parser = build_parser()
    (commands,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    assert {name for name, command in commands.items() if command.get_default("int8") is False} == {
        *QUESTION_COMMANDS,
        "export",
    }
