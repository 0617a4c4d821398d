"""Weights of others in files of `torch.save`, old and new, and in pickles: damaged, bombs, and what would run something."""

import io
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from campaign import attempt, examples, judge
from hypothesis import given, strategies
from pickle_mutations import Harm, legacy, mutate_archive, mutate_pickle
from published_layouts import write_checkpoint, write_tokenizer
from test_convert_region_detector import write_detectron
from test_fuzz_checkpoints import by_command

from modeling_visualbert.convert.array_pickles import load_arrays

NAME = "pytorch_model.bin"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversions")
    write_checkpoint(folder / "good", "vqa", 9)
    write_tokenizer(folder / "tokenizer")
    return folder


def mutate_weights(content, random, harm):
    """Another content of a file of weights."""
    weights = torch.load(io.BytesIO(content), weights_only=True)
    name = random.choice(list(weights))
    return random.choice(
        [
            lambda: mutate_archive(content, random, harm),
            lambda: pickle.dumps({name: Harm(harm)}),
            lambda: legacy({**weights, name: Harm(harm)}),
            lambda: legacy({**weights, name: torch.zeros(1).expand(1 << 40)}),
            lambda: legacy({key: value for key, value in weights.items() if key != name}),
            lambda: legacy(
                {**weights, name: random.choice([None, "x", [1.0], weights[name][:1], weights[name].double()])}
            ),
            lambda: legacy(random.choice([list(weights.values()), {1: weights[name]}])),
        ]
    )()


@pytest.mark.parametrize("source", ["folder", "file.th"])
@examples(8)
@given(random=strategies.randoms(use_true_random=False))
def test_conversions(source, random, world):
    shutil.rmtree(world / "changed", ignore_errors=True)
    shutil.copytree(world / "good", world / "changed")
    path = world / "changed" / NAME
    content = path.read_bytes()
    if source == "file.th":
        path = path.rename(path.with_suffix(".th"))

    def convert():
        shutil.rmtree(world / "new", ignore_errors=True)
        what = world / "changed" if source == "folder" else path
        return by_command("convert", str(what), str(world / "new"), "--tokenizer", str(world / "tokenizer"))

    usual = attempt(convert)
    assert usual.answer is not None, usual
    path.write_bytes(mutate_weights(content, random, world / "harm"))
    outcome = attempt(convert)
    assert not (world / "harm").exists() and not Path("written").exists(), "a file was unpickled"
    judge(f"conversions: {source}", outcome, [str(world)], usual)


@examples(8)
@given(random=strategies.randoms(use_true_random=False))
def test_detectors(random, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "conversions detector"
    folder.mkdir(exist_ok=True)
    path, harm = write_detectron(folder), folder / "harm"

    def convert():
        shutil.rmtree(folder / "new", ignore_errors=True)
        return by_command("convert", str(path), str(folder / "new"))

    usual = attempt(convert)
    assert usual.answer is not None, usual
    path.write_bytes(mutate_pickle(load_arrays(path), random, harm))
    outcome = attempt(convert)
    assert not harm.exists() and not Path("written").exists(), "a file was unpickled"
    judge("conversions: detector.pkl", outcome, [str(folder)], usual)
