"""The README says what works: its Python runs, its commands parse, its links and images exist."""

import re
import shlex
from pathlib import Path

import pytest
from tiny_checkpoints import save_tiny_checkpoint

from modeling_visualbert.cli import build_parser
from modeling_visualbert.tasks.detection import DetectionArgs
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args
from modeling_visualbert.tasks.pretraining import PretrainingArgs
from modeling_visualbert.tasks.vcr import VcrArgs
from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import parse_args

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
MODEL = "runs/vqa/best"
ARGS = {
    "examples/run_vqa.py": VqaArgs,
    "examples/run_nlvr2.py": Nlvr2Args,
    "examples/run_vcr.py": VcrArgs,
    "examples/run_flickr30k.py": Flickr30kArgs,
    "examples/run_pretraining.py": PretrainingArgs,
    "examples/train_detector.py": DetectionArgs,
}


def python_of(block):
    """The code of a block; of a session, what was typed."""
    typed = re.findall(r"^>>> (.*)$", block, flags=re.MULTILINE)
    return "\n".join(typed) if typed else block


def commands():
    """Every command line of the bash blocks, continued lines joined, comments dropped."""
    for language, block in BLOCKS:
        if language == "bash":
            yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def test_python_runs_in_order(tmp_path, monkeypatch):
    save_tiny_checkpoint("vqa", tmp_path / "model")
    monkeypatch.chdir(ROOT)
    blocks = [python_of(block) for language, block in BLOCKS if language == "python" and "facebook/" not in block]
    assert sum(MODEL in block for block in blocks) == 3
    scope = {}
    for block in blocks:
        exec(compile(block.replace(MODEL, str(tmp_path / "model")), "README.md", "exec"), scope)
    assert len(scope["answers"]) == 2
    assert scope["inputs"]["input_ids"].shape[0] == 1


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("visualbert ")])
def test_commands_parse(line):
    assert callable(build_parser().parse_args(shlex.split(line, comments=True)[1:]).run)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("accelerate launch")])
def test_scripts_and_their_flags_exist(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, *flags = shlex.split(line, comments=True)[2:]
    assert (ROOT / script).is_file()
    if script == "examples/extract_features.py":
        assert callable(build_parser().parse_args(["extract", *flags]).run)
        return
    args_class = ARGS[script]
    assert parse_args(args_class, "", flags).output_dir.startswith("runs/")


def test_make_targets_exist():
    rules = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"(?:^|`)make((?: [\w-]+)+)", README, flags=re.MULTILINE)
    wanted = {target for words in named for target in words.split()}
    assert {"vqa", "nlvr2", "test"} <= wanted <= {target for rule in rules for target in rule.split()}


def test_links_and_images_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_files_named_in_contributing_exist():
    folders = (ROOT, ROOT / "modeling_visualbert", ROOT / "modeling_visualbert" / "hub_code")
    named = set(re.findall(r"`([\w/]+\.(?:py|md|yaml))`", (ROOT / "CONTRIBUTING.md").read_text()))
    new = {name for name in named if re.search(r"gqa|\b(?:\w+_)?x\.py", name)}
    assert len(new) >= 6 and len(named - new) >= 20
    missing = [name for name in named - new if not any((folder / name).is_file() for folder in folders)]
    assert not missing


def test_figures_come_from_the_shipped_detector():
    import json

    regions = json.loads((ROOT / "modeling_visualbert/assets/shapes_detector/metrics.json").read_text())
    test = regions["splits"]["test"]
    assert f"mAP50 {test['map50']:.3f}, mAP {test['map']:.3f}" in README
    assert f"recall {regions['regions']['recall50']:.3f}" in README
