"""Weights of others in files of `torch.save`, old and new: damaged, bombs, and pickles that would run something."""

import io
import pickle
import shutil
import zipfile

import pytest
import torch
from campaign import attempt, examples, judge
from hypothesis import given, strategies
from image_mutations import damage
from published_layouts import write_checkpoint, write_tokenizer
from test_fuzz_checkpoints import by_command

NAME = "pytorch_model.bin"


class Harm:
    """What writes a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversions")
    write_checkpoint(folder / "good", "vqa", 9)
    write_tokenizer(folder / "tokenizer")
    return folder


def legacy(weights):
    """The same weights as older versions of torch wrote them."""
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def bomb(content, count):
    """The archive, with that many zeros in every file of numbers."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, bytes(count) if "/data/" in name and count else old.read(name))
    return buffer.getvalue()


def mutate_weights(content, random, harm):
    """Another content of a file of weights."""
    weights = torch.load(io.BytesIO(content), weights_only=True)
    name = random.choice(list(weights))
    return random.choice(
        [
            lambda: damage(content, random),
            lambda: damage(legacy(weights), random),
            lambda: bomb(content, random.choice([0, 1, 30_000_000])),
            lambda: pickle.dumps(Harm(harm)),
            lambda: pickle.dumps({name: Harm(harm)}),
            lambda: legacy({**weights, name: Harm(harm)}),
            lambda: legacy({**weights, name: torch.zeros(1).expand(1 << 40)}),
            lambda: legacy({key: value for key, value in weights.items() if key != name}),
            lambda: legacy(
                {**weights, name: random.choice([None, "x", [1.0], weights[name][:1], weights[name].double()])}
            ),
            lambda: legacy(
                random.choice([None, [], {}, list(weights.values()), {"state_dict": weights}, {1: weights[name]}])
            ),
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
    assert not (world / "harm").exists(), "a file was unpickled"
    judge(f"conversions: {source}", outcome, [str(world)], usual)
