"""Data-parallel training of the toy task in two processes, and launchers that start fewer processes than they were asked for."""

import json
import subprocess
import sys

import processes
import pytest
from accelerate.state import AcceleratorState
from toy_training import interrupted_run, log_of, toy_args, toy_task

from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.loop import train

SCRIPT = """
import sys
from toy_training import toy_args, toy_task
from modeling_visualbert.training.accelerator import end_run, make_accelerator
from modeling_visualbert.training.loop import train
args = toy_args(sys.argv[1], gradient_checkpointing=True, micro_batch_size=2, log_steps=1, report_to="none", profile=2)
accelerator = make_accelerator(args)
task = toy_task(dropout=0.0)
train(task, args, accelerator)
assert not accelerator.ddp_handler.find_unused_parameters
end_run(accelerator)
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
    assert done.returncode == 0, done.stderr
    train(toy_task(dropout=0.0), toy_args(tmp_path / "one", micro_batch_size=2, log_steps=1, report_to="none"))
    losses = [[line["loss"] for line in log_of(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert len(losses[0]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    # Both count: there is one region to each example. One of them writes a trace.
    told = json.loads((tmp_path / "two" / "metrics.json").read_text())["run"]["throughput"]
    assert told["regions_per_second"] == pytest.approx(told["examples_per_second"], rel=0.01)
    assert 0 < told["waiting_share"] < 1
    assert done.stderr.count("wrote a trace of 2 steps") == 1


NOTEBOOK = """
import sys
from accelerate import notebook_launcher

def run():
    from toy_training import toy_args, toy_task
    from modeling_visualbert.training.accelerator import make_accelerator
    from modeling_visualbert.training.loop import train
    args = toy_args(sys.argv[1], log_steps=1, report_to="none")
    train(toy_task(dropout=0.0), args, make_accelerator(args))

notebook_launcher(run, num_processes=2)
"""
NODE = """
import sys
from toy_training import toy_args, toy_task
from modeling_visualbert.training.loop import train
train(toy_task(dropout=0.0), toy_args(sys.argv[1], log_steps=1, report_to="none"))
"""


def start(script, *command, **variables):
    """A script of the toy task in a process of its own."""
    environment = processes.environment(**variables)
    environment["PYTHONPATH"] += f":{processes.ROOT / 'tests'}"
    return subprocess.Popen([*command, *script], env=environment, stderr=subprocess.PIPE, text=True)


def ended(*started):
    """Wait for processes; what they wrote to stderr."""
    errors = [one.communicate(timeout=300)[1] for one in started]
    assert [one.returncode for one in started] == [0] * len(started), errors
    return errors


@pytest.fixture(scope="module")
def losses_of_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train(toy_task(dropout=0.0), toy_args(folder, log_steps=1, report_to="none"))
    return losses_of(folder)


def losses_of(folder):
    return [line["loss"] for line in log_of(folder) if "loss" in line]


@pytest.mark.slow
def test_a_notebook_starts_processes(losses_of_one, tmp_path):
    (tmp_path / "cell.py").write_text(NOTEBOOK)
    (errors,) = ended(start([str(tmp_path / "cell.py"), str(tmp_path / "run")], sys.executable))
    assert "8 examples in a step = 4 examples x 2 processes" in errors
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of_one, abs=1e-5)


@pytest.mark.slow
def test_machines_that_start_their_own_processes_are_one_run(losses_of_one, tmp_path):
    """As `srun` does it: one task for each machine, which knows its number."""
    (tmp_path / "node.py").write_text(NODE)
    script, port = [str(tmp_path / "node.py"), str(tmp_path / "run")], processes.launcher(2)[-1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    torchrun += ["--master_addr", "127.0.0.1", "--master_port", port]
    ended(*(start(script, *torchrun, "--node_rank", str(rank), SLURM_STEP_NUM_TASKS="2") for rank in range(2)))
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of_one, abs=1e-5)


@pytest.mark.slow
def test_tasks_that_do_not_know_of_each_other_are_one_run_and_a_refusal(losses_of_one, tmp_path):
    (tmp_path / "node.py").write_text(NODE)
    script = [str(tmp_path / "node.py"), str(tmp_path / "run")]
    tasks = [start(script, sys.executable, SLURM_STEP_NUM_TASKS="2") for _ in range(2)]
    errors = [task.communicate(timeout=300)[1] for task in tasks]
    assert sorted(task.returncode for task in tasks) == [0, 1]
    refused = next(text for task, text in zip(tasks, errors, strict=True) if task.returncode)
    assert "(srun started 2 tasks that do not know of each other: see docs/scaling.md)" in refused
    assert losses_of(tmp_path / "run") == losses_of_one


@pytest.fixture
def other_precision():
    """Forgets the precision of this process, which Accelerate reads once, before and after the test and when called."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda: AcceleratorState._reset_state(reset_partial_state=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision_ends_with_the_same_bits_when_resumed(other_precision, tmp_path):
    train(toy_task(), toy_args(tmp_path / "whole", mixed_precision="bf16"))
    interrupted_run(tmp_path / "run", 9, mixed_precision="bf16")
    train(toy_task(), toy_args(tmp_path / "run", mixed_precision="bf16", resume=True))
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole")
    best = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert best[0] == best[1]
    other_precision()
    train(toy_task(), toy_args(tmp_path / "single"))
    assert log_of(tmp_path / "single") != log_of(tmp_path / "whole")


def test_a_launcher_that_started_one_process_of_several_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        ValueError, match=r"leaves that to mpirun and started one; expected `torchrun --nproc_per_node N"
    ):
        make_accelerator(toy_args(tmp_path))


SHORT_RUN = """
import torch
from accelerate import Accelerator
from modeling_visualbert.training.accelerator import end_run
accelerator = Accelerator(cpu=True)
model = accelerator.prepare(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)))
for _ in range(3):
    accelerator.backward(model(torch.ones(8, 64)).sum())
end_run(accelerator)
"""


@pytest.mark.slow
def test_processes_that_end_right_after_a_step_are_not_aborted(tmp_path):
    """Without `end_run`, about one run in five was."""
    script = tmp_path / "short.py"
    script.write_text(SHORT_RUN)
    for _ in range(8):
        done = subprocess.run(
            [*processes.launcher(2), str(script)],
            env=processes.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
