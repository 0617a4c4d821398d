"""Models that processes share (FSDP2), on two processes without a GPU, and the configurations in examples/accelerate."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from toy_training import log_of, toy_args, toy_task

from modeling_visualbert import VisualBertForQuestionAnswering
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.checkpoint import list_checkpoints
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.sharding import check_sharding, class_of, complete_state, fill_shell, shell_of

CONFIGS = processes.ROOT / "examples" / "accelerate"
SCRIPT = """
import json, sys
from toy_training import toy_args, toy_task
from modeling_visualbert.training.accelerator import end_run, make_accelerator
from modeling_visualbert.training.loop import train
args = toy_args(sys.argv[1], report_to="none", **json.loads(sys.argv[2]))
accelerator = make_accelerator(args)
train(toy_task(dropout=0.0), args, accelerator)
if accelerator.is_main_process:
    print(accelerator.distributed_type.value)
end_run(accelerator)
"""


def run(config, script, *arguments, timeout=400):
    """Start a script with a configuration of the examples, on two processes of this machine."""
    environment = processes.environment()
    environment["PYTHONPATH"] += f":{processes.ROOT / 'tests'}"
    port = processes.launcher(2)[-1]
    command = [*processes.launcher()[:3], "--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", "2"]
    command += ["--mixed_precision", "no", "--main_process_port", port, str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def toy(tmp_path):
    """Train the toy task with a configuration."""
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT)

    def trained(config, name, **options):
        done = run(config, script, tmp_path / name, json.dumps(options))
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[0]

    return trained


@pytest.mark.slow
def test_a_shared_model_takes_the_steps_of_a_whole_one(toy, tmp_path):
    assert toy("eight_gpus", "whole", log_steps=1) == "MULTI_CPU"
    assert toy("fsdp2", "shared", log_steps=1) == "FSDP"
    losses = [[line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("whole", "shared")]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    parts = [path.name for path in (tmp_path / "shared" / "checkpoints" / "step-00000008").rglob("*.distcp")]
    assert sorted(parts) == ["__0_0.distcp"] * 2 + ["__1_0.distcp"] * 2

    shutil.copytree(tmp_path / "shared", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000008")
    toy("fsdp2", "resumed", log_steps=1, resume=True)
    assert log_of(tmp_path / "resumed") == log_of(tmp_path / "shared")
    best = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("resumed", "shared")]
    assert best[0] == best[1]

    opened = VisualBertForQuestionAnswering.from_pretrained(tmp_path / "shared" / "best")
    whole = load_file(tmp_path / "whole" / "best" / "model.safetensors")
    assert opened.config.architectures == ["VisualBertForQuestionAnswering"]
    for name, value in whole.items():
        if not name.endswith(".key.bias"):  # its gradient is nothing but rounding
            torch.testing.assert_close(opened.state_dict()[name], value, rtol=0, atol=2e-5, msg=name)

    with pytest.raises(
        ValueError, match=r"step-00000008: checkpoint of a sharded model \(FSDP2\), but this run trains a w"
    ):
        train(toy_task(), toy_args(tmp_path / "shared", report_to="none", log_steps=1, resume=True))


@pytest.mark.slow
def test_a_shared_model_accumulates_in_half_precision(toy, tmp_path):
    for config in ("eight_gpus", "fsdp2"):
        toy(config, config, micro_batch_size=2, mixed_precision="bf16", log_steps=1)
    losses = [[line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("eight_gpus", "fsdp2")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.slow
def test_tied_weights_are_shared_once(tmp_path):
    """Pre-training: the decoder's weight is that of the word embeddings, and its bias has two names."""
    small = "--train_scenes 80 --val_scenes 16 --test_scenes 16 --hidden_size 64 --num_hidden_layers 2 --cpu"
    steps = "--init_from scratch --max_steps 4 --log_steps 1 --batch_size 16 --save_steps 2 --report_to none"
    script = processes.ROOT / "examples" / "run_pretraining.py"
    for config in ("eight_gpus", "fsdp2"):
        done = run(config, script, "--output_dir", tmp_path / config, *small.split(), *steps.split())
        assert done.returncode == 0, done.stderr
    losses = [[line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("eight_gpus", "fsdp2")]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    records = [json.loads((tmp_path / name / "metrics.json").read_text())["splits"] for name in ("eight_gpus", "fsdp2")]
    assert records[0] == records[1]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path):
    config = load_config_from_file(str(path))
    count = {"one_gpu": 1, "four_nodes": 32}.get(path.stem, 8)
    assert (config.num_processes, config.mixed_precision) == (count, "bf16")
    assert config.num_machines == (4 if path.stem == "four_nodes" else 1)
    if path.stem == "fsdp2":
        assert config.distributed_type == DistributedType.FSDP
        assert config.fsdp_config["fsdp_version"] == 2


def test_the_configurations_are_complete():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == ["eight_gpus", "four_nodes", "fsdp2", "one_gpu"]
    guide = (Path(processes.ROOT) / "docs" / "scaling.md").read_text(encoding="utf-8")
    for path in CONFIGS.glob("*.yaml"):
        assert f"examples/accelerate/{path.name}" in guide


def test_other_ways_to_share_a_model_are_refused(tmp_path, monkeypatch):
    expected = r"is set up for {}, which the training loop does not follow; expected FSDP2, .*accelerate/fsdp2.yaml"
    for variable, name in (("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=expected.format(name)):
            patch.setenv(f"ACCELERATE_USE_{variable}", "true")
            make_accelerator(toy_args(tmp_path))
    with pytest.raises(ValueError, match=expected.format("the first version of FSDP")):
        check_sharding(SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False))
    check_sharding(Accelerator(cpu=True))


def test_a_whole_checkpoint_is_not_that_of_a_shared_model(tmp_path, monkeypatch):
    train(toy_task(), toy_args(tmp_path, report_to="none"))
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    shutil.rmtree(newest / "model.safetensors", ignore_errors=True)
    state = json.loads((newest / "run_state.json").read_text())
    del state["files"]["model.safetensors"]
    (newest / "model.safetensors").unlink()
    (newest / "run_state.json").write_text(json.dumps(state))
    with pytest.raises(
        ValueError, match=rf"{newest}: checkpoint of a sharded model .* --init_from {tmp_path / 'best'}"
    ):
        train(toy_task(), toy_args(tmp_path, report_to="none", resume=True))


def test_a_shell_holds_what_it_is_filled_with():
    model = toy_task().model
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    shell = shell_of(model)
    assert all(value.is_meta for value in shell.parameters())
    filled = fill_shell(shell, weights)
    assert class_of(filled) is class_of(model) is VisualBertForQuestionAnswering
    assert all(torch.equal(value, weights[name]) for name, value in filled.state_dict().items())


def test_every_parameter_has_a_state():
    """That of a parameter without a gradient changes neither it nor its first step."""
    one, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer, plain = torch.optim.AdamW([one], lr=0.1), torch.optim.AdamW([other], lr=0.1)
    complete_state(optimizer)
    optimizer.step()
    assert one.tolist() == [1.0, 1.0, 1.0]
    for parameter, mine in ((one, optimizer), (other, plain)):
        parameter.grad = torch.tensor([1.0, -2.0, 0.5])
        mine.step()
    assert torch.equal(one, other)
