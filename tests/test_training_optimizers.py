"""`--optimizer`: moments of 8 bits, their checkpoints, and what they cannot do."""

import sys

import pytest
import torch
from accelerate.utils import DistributedType
from toy_training import interrupted_run, log_of, toy_args, toy_task

from modeling_visualbert import VisualBertConfig, VisualBertForQuestionAnswering
from modeling_visualbert.training.accelerator import check_accelerator, make_accelerator
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.optimizer import make_optimizer, rates_of, set_rates

EIGHT_BITS = ["adamw_8bit", "adamw_fp8"]


@pytest.fixture
def wide(monkeypatch):
    """The toy task with a model whose matrices are large enough for 8 bits (4096 numbers and more)."""

    def wide_task():
        task = toy_task()
        torch.manual_seed(0)
        fields = {**task.model.config.to_dict(), "hidden_size": 64, "intermediate_size": 128}
        task.model = VisualBertForQuestionAnswering(VisualBertConfig(**fields))
        return task

    monkeypatch.setitem(interrupted_run.__globals__, "toy_task", wide_task)
    return wide_task


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_moments_of_8_bits_train_and_go_on(wide, tmp_path, name):
    settings = {"optimizer": name, "learning_rate": 5e-3, "max_steps": 30, "report_to": "none"}
    train(wide(), toy_args(tmp_path / "whole", **settings))
    losses = [row["loss"] for row in log_of(tmp_path / "whole") if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]
    interrupted_run(tmp_path / "run", 20, **settings)
    train(wide(), toy_args(tmp_path / "run", resume=True, **settings))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    weights = [(tmp_path / run / "best" / "model.safetensors").read_bytes() for run in ("run", "whole")]
    assert weights[0] == weights[1]
    with pytest.raises(ValueError, match="optimizer"):
        train(wide(), toy_args(tmp_path / "whole", **{**settings, "optimizer": "adamw", "resume": True}))


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_rates_are_set_where_they_are_tensors(wide, tmp_path, name):
    args = toy_args(tmp_path, optimizer=name, head_learning_rate=1.0)
    optimizer = make_optimizer(wide().model, args)
    set_rates(optimizer, args, 0.5)
    assert rates_of(optimizer) == {"learning_rate": pytest.approx(1e-2), "head_learning_rate": 0.5}


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_without_torchao_there_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ImportError, match=rf"--optimizer {name} needs torchao: pip install .*int8"):
        make_optimizer(toy_task().model, toy_args(tmp_path, optimizer=name))


def test_unknown_ones_are_refused(tmp_path):
    with pytest.raises(ValueError, match="optimizer 'sgd'; expected adamw or one of adamw_8bit, adamw_fp8"):
        make_optimizer(toy_task().model, toy_args(tmp_path, optimizer="sgd"))


def test_models_that_processes_share_have_whole_moments(tmp_path, monkeypatch):
    args = toy_args(tmp_path, optimizer="adamw_fp8", report_to="none")
    accelerator = make_accelerator(args)
    monkeypatch.setattr(accelerator.state, "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(type(accelerator), "is_fsdp2", True)
    with pytest.raises(
        ValueError, match="--optimizer adamw_fp8 where processes share the model .FSDP2.; expected adamw"
    ):
        check_accelerator(accelerator, args)
