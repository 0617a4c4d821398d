"""What a run tells of its speed, and the trace of a few of its steps."""

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode
from toy_training import log_of, toy_args, toy_task

from modeling_visualbert import VisualBertConfig, VisualBertModel
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.throughput import Throughput, forward_flops

RATES = {"examples_per_second", "tokens_per_second", "regions_per_second", "waiting_share"}


@pytest.mark.parametrize(("tokens", "regions"), [(7, 5), (12, 1)])
def test_flops_are_those_that_torch_counts(tokens, regions):
    config = VisualBertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        visual_embedding_dim=9,
        attn_implementation="eager",  # products that torch counts on any device
    )
    model = VisualBertModel(config)
    inputs = {"input_ids": torch.ones(4, tokens, dtype=torch.long), "visual_embeds": torch.ones(4, regions, 9)}
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    assert forward_flops(config, 4, tokens, regions) == counter.get_total_flops()


def test_metrics_and_trackers_get_the_rates_and_the_log_does_not(tmp_path):
    record = train(toy_task(), toy_args(tmp_path))
    told = json.loads((tmp_path / "metrics.json").read_text())["run"]["throughput"]
    assert told == record["run"]["throughput"]
    assert told.keys() == RATES
    assert 0 < told["waiting_share"] < 1
    # One region to each question.
    assert told["regions_per_second"] == pytest.approx(told["examples_per_second"], rel=0.01)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in (*RATES, "peak_memory_mib", "hours_left"):
        assert [event.step for event in events.Scalars(f"throughput/{name}")] == [3, 6, 9, 12]
    assert events.Scalars("throughput/hours_left")[-1].value == 0
    assert not [name for line in log_of(tmp_path) for name in line if "second" in name or "throughput" in name]


def test_rates_are_those_of_the_clock(tmp_path, monkeypatch):
    """Two steps of 4 s, 1 s of which is waiting for data, and an evaluation of 100 s between them."""
    now = [0.0]
    monkeypatch.setattr("modeling_visualbert.training.throughput.time.perf_counter", lambda: now[0])
    accelerator = make_accelerator(toy_args(tmp_path, report_to="none"))
    speed = Throughput(toy_task().model, accelerator, batch_size=8)

    def batches():
        while True:
            now[0] += 0.5
            yield {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]), "visual_attention_mask": torch.ones(2, 4)}

    source = batches()
    speed.fetch(source, 2)
    now[0] += 3
    speed.pause()
    now[0] += 100
    speed.fetch(source, 2)
    now[0] += 3
    assert speed.log(2, 4) == {"examples/s": "2", "waiting": "25%"}
    assert speed.summary() == {
        "examples_per_second": 2.0,
        "tokens_per_second": 2.5,
        "regions_per_second": 4.0,
        "waiting_share": 0.25,
    }


def test_a_resumed_run_that_has_no_step_left_tells_no_rates(tmp_path):
    accelerator = make_accelerator(toy_args(tmp_path, report_to="none"))
    assert Throughput(toy_task().model, accelerator, 8).summary() == {}


def test_a_trace_has_the_steps_that_were_asked_for(tmp_path):
    train(toy_task(), toy_args(tmp_path / "traced", profile=2))
    trace = json.loads((tmp_path / "traced" / "profile" / "trace.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if str(event.get("name")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#3", "ProfilerStep#4"}
    train(toy_task(), toy_args(tmp_path / "plain"))
    assert log_of(tmp_path / "traced") == log_of(tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()


@pytest.mark.parametrize(
    ("max_steps", "message"),
    [
        (3, "--profile 5: no trace, because the run had 3 steps left and the first 3 are not traced"),
        (5, "wrote a trace of 2 steps to {folder}/profile/trace.json"),
    ],
)
def test_a_run_that_is_shorter_says_what_was_traced(tmp_path, caplog, max_steps, message):
    train(toy_task(), toy_args(tmp_path, max_steps=max_steps, profile=5))
    assert message.format(folder=tmp_path) in caplog.messages


def test_no_steps_cannot_be_traced(tmp_path):
    with pytest.raises(ValueError, match="--profile 0; expected more than 0"):
        toy_args(tmp_path, profile=0)
