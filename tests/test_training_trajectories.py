"""Twelve steps of a toy model for each setting of the optimiser, compared with stored losses, rates, gradients and weights.

`RECORD_LOSSES=1 pytest tests/test_training_trajectories.py` writes them again; explain a change in CHANGELOG.md.
"""

import json
import os

import pytest
import torch
from helpers import FIXTURES
from toy_training import log_of, toy_args, toy_task

from modeling_visualbert.training.loop import train
from modeling_visualbert.training.task import count_examples

STORED = FIXTURES / "trajectories.json"
# Settings under which each part of the optimiser matters within twelve steps. Gradient norms are between 0.6 and 3, so clipping
# to 0.5 scales every step by another factor.
BASE = {"learning_rate": 1e-2, "max_grad_norm": 0.5, "adam_beta2": 0.8, "weight_decay": 0.5, "warmup_ratio": 0.25}
SETTINGS = {
    "linear": {},
    "cosine": {"schedule": "cosine"},
    "constant": {"schedule": "constant"},
    "accumulated": {"micro_batch_size": 2},
    "not clipped": {"max_grad_norm": 1e9},
    "beta 0.999": {"adam_beta2": 0.999},
    "no decay": {"weight_decay": 0.0},
    "no warm-up": {"warmup_ratio": 0.0},
}


def norm(tensors):
    return torch.stack([tensor.detach().double().norm() for tensor in tensors]).norm().item()


def trajectory(folder, settings):
    """By step: loss, learning rate and gradient norm, and the norms of matrices and of vectors (biases, LayerNorm) after it."""
    task, norms = toy_task(dropout=0.0), {"matrices": [], "vectors": []}

    def note_norms(batch):
        parameters = list(task.model.parameters())
        norms["matrices"].append(norm(p for p in parameters if p.dim() > 1))
        norms["vectors"].append(norm(p for p in parameters if p.dim() == 1))
        return count_examples(batch)

    task.count_items = note_norms  # called for each micro-batch, before the step
    args = toy_args(folder, log_steps=1, evals_per_epoch=0.1, **{**BASE, **settings})
    train(task, args)
    note_norms({"labels": []})
    lines = [line for line in log_of(folder) if "loss" in line]
    each = args.batch_size // (args.micro_batch_size or args.batch_size)
    return {
        **{name: [line[name] for line in lines] for name in ("loss", "learning_rate", "grad_norm")},
        **{name: values[each::each] for name, values in norms.items()},
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_the_stored_ones(tmp_path, name):
    found = trajectory(tmp_path, SETTINGS[name])
    if os.environ.get("RECORD_LOSSES"):
        stored = json.loads(STORED.read_text()) if STORED.exists() else {}
        rounded = {key: [float(f"{value:.7g}") for value in values] for key, values in found.items()}
        STORED.write_text(json.dumps({**stored, name: rounded}, indent=1) + "\n")
    stored = json.loads(STORED.read_text())[name]
    assert {len(values) for values in found.values()} == {12}
    for key, values in found.items():
        assert values == pytest.approx(stored[key], rel=1e-4), key


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ("linear", "accumulated")])
def test_every_setting_changes_the_steps_by_more_than_the_tolerance(name):
    stored = json.loads(STORED.read_text())
    assert stored[name]["loss"] != pytest.approx(stored["linear"]["loss"], rel=2e-3)
    assert stored["accumulated"]["loss"] == pytest.approx(stored["linear"]["loss"], rel=1e-4)
