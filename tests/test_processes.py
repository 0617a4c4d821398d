"""Data-parallel training of the toy task in two processes, and launchers that start fewer processes than they were asked for."""

import subprocess

import processes
import pytest
from toy_training import log_of, toy_args, toy_task

from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.loop import train

SCRIPT = """
import sys
from toy_training import toy_args, toy_task
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.loop import train
args = toy_args(sys.argv[1], gradient_checkpointing=True, micro_batch_size=2, log_steps=1, report_to="none")
accelerator = make_accelerator(args)
task = toy_task(dropout=0.0)
train(task, args, accelerator)
assert not accelerator.ddp_handler.find_unused_parameters
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_with_gradient_checkpointing_take_the_steps_of_one(tmp_path):
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT)
    environment = processes.environment()
    environment["PYTHONPATH"] += f":{processes.ROOT / 'tests'}"
    done = subprocess.run(
        [*processes.launcher(2), str(script), str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    train(toy_task(dropout=0.0), toy_args(tmp_path / "one", micro_batch_size=2, log_steps=1, report_to="none"))
    losses = [[line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_launcher_that_started_one_process_of_several_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        ValueError, match=r"leaves that to mpirun and started one; expected `torchrun --nproc_per_node N"
    ):
        make_accelerator(toy_args(tmp_path))
