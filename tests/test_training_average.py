"""`--ema_decay`: the average of the weights is evaluated and saved, and training itself does not change."""

import json
import subprocess
from types import SimpleNamespace

import processes
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from toy_training import interrupted_run, log_of, toy_args, toy_task

from modeling_visualbert.training.average import average_of
from modeling_visualbert.training.checkpoint import list_checkpoints
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.task import count_examples

DECAY = 0.7  # reached after 23 steps; before, the decay rises


def best_weights(folder):
    return load_file(folder / "best" / "model.safetensors")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("average")
    train(toy_task(), toy_args(folder, ema_decay=DECAY))
    return folder


def weights_after_each_step(folder, **changes):
    task, history = toy_task(), []

    def note_weights(batch):  # called before the step
        history.append({name: value.clone() for name, value in task.model.state_dict().items()})
        return count_examples(batch)

    task.count_items = note_weights
    train(task, toy_args(folder, **changes))
    note_weights({"labels": []})
    return history[1:]


def test_the_average_is_that_of_the_weights_after_each_step(tmp_path):
    settings = {"max_steps": 26, "evals_per_epoch": 0.1}  # evaluated at the end only
    history = weights_after_each_step(tmp_path / "plain", **settings)
    train(toy_task(), toy_args(tmp_path / "averaged", ema_decay=DECAY, **settings))
    losses = [[line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("plain", "averaged")]
    assert losses[0] == losses[1]
    found = best_weights(tmp_path / "averaged")
    for name, value in found.items():
        expected = history[0][name].double()
        for step, weights in enumerate(history[1:], start=2):
            decay = min(DECAY, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * weights[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert any((value - history[-1][name]).abs().max() > 1e-3 for name, value in found.items())


def test_the_scores_are_those_of_the_average(whole_run):
    """The metrics are those of the saved weights; the log must have the same."""
    record = json.loads((whole_run / "metrics.json").read_text())
    logged = {line["step"]: line["dev_accuracy"] for line in log_of(whole_run) if "dev_accuracy" in line}
    assert logged[record["run"]["best_step"]] == record["splits"]["dev"]["accuracy"]


@pytest.mark.parametrize("calls", [6, 9, 14])
def test_an_interrupted_run_ends_with_the_same_bits(whole_run, tmp_path, calls):
    interrupted_run(tmp_path, calls, ema_decay=DECAY)
    train(toy_task(), toy_args(tmp_path, ema_decay=DECAY, resume=True))
    best = (whole_run / "best" / "model.safetensors").read_bytes()
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == best
    assert log_of(tmp_path) == log_of(whole_run)


def test_checkpoints_keep_both(whole_run):
    newest = list_checkpoints(whole_run / "checkpoints")[-1]
    trained = load_file(newest / "model.safetensors")
    average = torch.load(newest / "custom_checkpoint_0.pkl", weights_only=True)
    assert average["n_averaged"] == 8
    assert not torch.equal(average["module.cls.weight"], trained["cls.weight"])


def assert_same_but_for_rounding(found, expected):
    """To a thousandth of what a step moves a weight. The bias of the keys adds the same to all scores of a query: its gradient is
    nothing but rounding, which AdamW makes whole steps of."""
    assert found.keys() == expected.keys()
    for name in expected:
        if not name.endswith(".key.bias"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-5, msg=name)


def test_accumulation_changes_nothing_but_rounding(tmp_path):
    for name, micro in (("whole", None), ("parts", 2)):
        task = toy_task(dropout=0.0)
        train(task, toy_args(tmp_path / name, ema_decay=DECAY, micro_batch_size=micro, evals_per_epoch=0.1))
    assert_same_but_for_rounding(best_weights(tmp_path / "parts"), best_weights(tmp_path / "whole"))


@pytest.mark.parametrize(("before", "after"), [(None, DECAY), (DECAY, 0.9), (DECAY, None)])
def test_another_decay_is_refused_when_resuming(tmp_path, before, after):
    interrupted_run(tmp_path, 9, ema_decay=before)
    with pytest.raises(ValueError, match=rf"was trained with ema_decay={before}, not {after}; expected the same"):
        train(toy_task(), toy_args(tmp_path, ema_decay=after, resume=True))


def test_parts_of_a_model_are_refused():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match="--ema_decay with FSDP; expected one process, or data-parallel training"):
        average_of(toy_task().model, accelerator)


TOY_RUN = """
import sys
from toy_training import toy_args, toy_task
from modeling_visualbert.training.loop import train
train(toy_task(dropout=0.0), toy_args(sys.argv[1], ema_decay=0.7, evals_per_epoch=0.1))
"""


@pytest.mark.slow
def test_two_processes_average_as_one(tmp_path):
    script, found = tmp_path / "run.py", []
    script.write_text(TOY_RUN)
    environment = processes.environment(ACCELERATE_USE_CPU="true")
    environment["PYTHONPATH"] += f":{processes.ROOT / 'tests'}"
    for count in (1, 2):
        folder = tmp_path / str(count)
        command = [*processes.launcher(count), str(script), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(best_weights(folder))
    assert_same_but_for_rounding(*found)
