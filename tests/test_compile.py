"""Compilation in place, and what happens where nothing can be compiled."""

import logging

import pytest
import torch
from helpers import inputs_for, meaningful, tiny_model
from tiny_checkpoints import tiny_checkpoint
from torch._dynamo.exc import BackendCompilerFailed
from toy_training import toy_args, toy_task
from transformers import pipeline

from modeling_visualbert.data.files import read_json_lines
from modeling_visualbert.hub_code import compile_visualbert
from modeling_visualbert.hub_code.compile_visualbert import compile_model
from modeling_visualbert.training.loop import train


def test_without_a_compiler_the_model_runs_as_it_did(monkeypatch, caplog):
    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    monkeypatch.setattr(compile_visualbert.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert not compile_model(model)
    assert len(caplog.records) == 1 and "no C++ compiler" in caplog.text
    assert model._compiled_call_impl is None and model(**inputs).logits.isfinite().all()


def test_training_with_dropout_in_the_attention_runs_on_a_cpu_as_it_did(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(toy_task(dropout=0.1), toy_args(tmp_path, max_steps=1, compile=True))
    assert "dropout in the attention: the model runs without compilation" in caplog.text
    assert "the first call took" not in caplog.text


def test_a_compiler_named_by_the_environment_counts(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert "/nowhere/g++" in compile_visualbert._obstacle(tiny_model("vqa"), training=False)


def test_a_compiler_that_fails_is_done_without(monkeypatch, caplog):
    def fails(*args, **kwargs):
        raise BackendCompilerFailed(fails, RuntimeError("no headers"), None)

    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    expected = model(**inputs).logits
    monkeypatch.setattr(compile_visualbert, "_obstacle", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: fails)
    assert compile_model(model)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(model(**inputs).logits, expected)
    assert "no headers: the model runs without compilation" in caplog.text
    assert torch.equal(model(**inputs).logits, expected) and len(caplog.records) == 1


@pytest.mark.parametrize("compiles", [False, True])
def test_a_pipeline_compiles_when_asked(monkeypatch, compiles):
    model, processor = tiny_checkpoint("vqa")
    compiled = []
    monkeypatch.setattr("modeling_visualbert.hub_code.pipeline_visualbert.compile_model", compiled.append)
    pipe = pipeline("visual-question-answering", model=model, processor=processor, compile=compiles)
    assert compiled == [pipe.model] * compiles


def test_the_first_call_is_timed(monkeypatch, caplog):
    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    monkeypatch.setattr(compile_visualbert, "_obstacle", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # what is called afterwards
    assert compile_model(model)
    with caplog.at_level(logging.WARNING):
        logits = [model(**inputs).logits for _ in range(2)]
    assert caplog.text.count("the first call took") == 1 and torch.equal(*logits)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.13 inductor
def test_one_compilation_serves_all_lengths(monkeypatch):
    model = tiny_model("vqa", num_hidden_layers=1)
    torch.compiler.reset()
    inputs = [inputs_for("vqa", *sizes) for sizes in ((3, 9, 6), (5, 12, 7), (4, 10, 8))]
    expected = [model(**given).logits for given in inputs]
    assert compile_model(model)
    for given, logits in zip(inputs, expected, strict=True):
        with torch.compiler.set_stance("default" if given is inputs[0] else "fail_on_recompile"):
            torch.testing.assert_close(model(**given).logits, logits, atol=2e-5, rtol=1e-5)
    states = model(**inputs[0], output_hidden_states=True)  # recording works on a compiled model
    assert len(states.hidden_states) == 2 and torch.equal(meaningful("vqa", states, inputs[0]), states.logits.flatten())
    assert model.state_dict().keys() == tiny_model("vqa", num_hidden_layers=1).state_dict().keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.13 inductor
def test_training_compiled_equals_training(tmp_path, caplog):
    losses = []
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        train(toy_task(dropout=0.0), toy_args(folder, max_steps=4, log_steps=1, compile=compiled))
        losses.append([line["loss"] for _, line in read_json_lines(folder / "log.jsonl") if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert "the first call took" in caplog.text
