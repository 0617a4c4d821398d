"""The Space's files: what the Hub reads from them is right, and they start."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from modeling_visualbert.demo import limits, questions

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "hub_cards" / "space"


def test_the_header_is_what_the_hub_expects():
    card = SpaceCard.load(SPACE / "README.md")
    assert card.data.sdk == "gradio"
    assert (SPACE / card.data.app_file).is_file()
    assert f"gradio=={card.data.sdk_version}\n" in (ROOT / "constraints.txt").read_text()
    assert len(card.data.to_dict()["short_description"]) <= 60  # the Hub refuses more


def test_the_limits_it_names_are_those_of_the_code():
    text = " ".join((SPACE / "README.md").read_text().split())
    for number in (
        f"{limits.MAX_UPLOAD_BYTES // 1_000_000} MB",
        f"{limits.MAX_PIXELS // 1_000_000} megapixels",
        f"{limits.MAX_CHARACTERS} characters",
        f"{limits.MAX_QUEUE} questions",
        f"{limits.KEEP_SECONDS // 60} minutes",
        f"up to {questions.OPEN_OF_ONE} of them from one address",
    ):
        assert number in text


def test_without_models_it_says_what_is_missing():
    pytest.importorskip("gradio")
    environment = {**os.environ, "MODELS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(SPACE / "app.py")], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search("MODELS is empty; expected the names of checkpoints", done.stderr)


@pytest.mark.slow
def test_it_starts_and_shows_the_page(tmp_path):
    pytest.importorskip("gradio")
    import httpx
    from bench_demo import running
    from tiny_checkpoints import save_tiny_checkpoint

    save_tiny_checkpoint("vqa", tmp_path / "vqa")
    command = [sys.executable, "-u", str(SPACE / "app.py")]
    with running(command, MODELS=str(tmp_path / "vqa"), PYTHONPATH=str(ROOT)) as (address, _):
        page = httpx.get(address, trust_env=False)
    assert page.status_code == 200
    assert "VisualBERT" in page.text
