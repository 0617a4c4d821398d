"""Runs that are killed, stopped by signals or out of time, damaged checkpoints, and several runs in one folder."""

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import time

import pytest
import torch
from accelerate import Accelerator
from killed_runs import STEPS, TEST_ID, finish, fork, join, run_vqa, start, wait_for
from toy_training import interrupted_run, toy_args, toy_task

from modeling_visualbert.cli.errors import exit_status
from modeling_visualbert.training.checkpoint import CheckpointWriter, list_checkpoints, load_checkpoint, to_host
from modeling_visualbert.training.loop import save_model, train
from modeling_visualbert.training.preemption import STOPPED_STATUS, RunStoppedError

RESULTS = ("best/model.safetensors", "log.jsonl", "predictions_dev.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(folder)
    return {name: (folder / name).read_bytes() for name in RESULTS}


def results(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def stderr_of(folder):
    return folder.with_name(f"{folder.name}.stderr").read_text()


def moments(folder, chance):
    """Places in a run to kill it at, by name: what tells that it is there."""
    steps = chance.randrange(1, STEPS)
    return {
        "step": lambda: (folder / "log.jsonl").exists() and len(log_of_half(folder)) >= steps // 3,
        "evaluation": lambda: folder.with_name(f"{folder.name}.evaluating").exists(),
        "best": lambda: (folder / ".best.tmp").exists(),
        "renaming": lambda: (folder / ".best.old").exists(),
        "checkpoint": lambda: any((folder / "checkpoints").glob(".step-*.tmp")),
    }


def log_of_half(folder):
    return [line for line in (folder / "log.jsonl").read_text().splitlines() if '"loss"' in line]


def kill_at(folder, moment, chance):
    """Start or resume a run and kill it there, or a little later; whether it was still alive."""
    process = start(folder, pause=0.004, resume=True)
    alive = wait_for(process, moments(folder, chance)[moment])
    time.sleep(chance.random() * 0.02)
    process.kill()
    process.join()
    return alive


@pytest.mark.parametrize("moment", ["step", "evaluation", "best", "renaming", "checkpoint"])
def test_a_run_that_was_killed_ends_with_the_same_bits(whole, tmp_path, moment):
    folder, chance = tmp_path / "run", random.Random(moment)
    if moment == "renaming":  # too short to be met: what a kill there leaves behind is made by hand
        assert kill_at(folder, "checkpoint", chance)
        wait = folder / "best"
        if wait.exists():
            shutil.copytree(wait, folder / ".best.old")
    else:
        assert kill_at(folder, moment, chance)
    finish(folder)
    assert results(folder) == whole


@pytest.mark.slow
def test_twenty_kills_and_the_same_bits(whole, tmp_path):
    folder, chance = tmp_path / "run", random.Random(0)
    for _ in range(20):
        kill_at(folder, chance.choice(["step", "evaluation", "best", "checkpoint"]), chance)
    finish(folder)
    assert results(folder) == whole


def phases(folder, tables):
    """Phases of a run from an empty cache, by name: what tells that a process that starts now is there."""
    started = time.time()

    def count(place, pattern):
        return sum(1 for _ in place.glob(pattern))

    def begun(place, pattern):
        with contextlib.suppress(FileNotFoundError):  # between the listing and the look
            return any(path.stat().st_mtime > started for path in place.glob(pattern))
        return False

    shards = count(tables, "regions/*.partial/parts/*")
    return {
        "corpus": lambda: begun(tables, ".shapes-*.tmp"),
        "tables": lambda: begun(tables, "tables/.*.tmp"),
        "regions": lambda: count(tables, "regions/*.partial/parts/*") > shards,
        "step": lambda: begun(folder, "log.jsonl"),
        "best": lambda: begun(folder, ".best.tmp"),
        "checkpoint": lambda: begun(folder / "checkpoints", ".step-*.tmp"),
    }


@pytest.mark.slow
def test_twenty_kills_from_the_first_picture_to_the_last_step(tmp_path):
    """While the corpus is drawn, tables are made, regions are found and steps are taken; what is left is gone on with."""
    whole, folder, tables, chance = tmp_path / "whole", tmp_path / "run", tmp_path / "cache", random.Random(0)
    join(fork(run_vqa, str(whole), str(tmp_path / "other_cache")), whole, 300)
    preparing = ["corpus"] * 3 + ["tables"] * 4 + ["regions"] * 5
    later = [chance.choice(["step", "best", "checkpoint"]) for _ in range(8)]
    met = []
    for phase in [*preparing, *later]:
        process = fork(run_vqa, str(folder), str(tables))
        if wait_for(process, phases(folder, tables)[phase], 120):
            met.append(phase)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
    assert met[: len(preparing)] == preparing
    assert len(met) > len(preparing)  # the run may end before the last kill
    join(fork(run_vqa, str(folder), str(tables)), folder, 300)
    assert results(folder) == results(whole)
    assert (folder / "predictions_test.jsonl").read_bytes() == (whole / "predictions_test.jsonl").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_has_its_exit_status(whole, tmp_path, number):
    folder = tmp_path / "run"
    process = start(folder, pause=0.02)
    assert wait_for(process, lambda: (folder / "log.jsonl").exists() and log_of_half(folder))
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == STOPPED_STATUS == 75
    newest = list_checkpoints(folder / "checkpoints")[-1]
    step = json.loads((newest / "run_state.json").read_text())["progress"]["step"]
    assert f"toy: stopped by {number.name} after step {step} and saved in {folder}; the same command with --resume" in (
        stderr_of(folder)
    )
    assert not (folder / "metrics.json").exists()
    finish(folder)
    assert results(folder) == whole


def test_a_signal_does_not_wait_for_an_evaluation(whole, tmp_path):
    """Resumed, the run begins with it."""
    folder = tmp_path / "run"
    process = start(folder, pause=0.1)
    assert wait_for(process, folder.with_name("run.evaluating").exists)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == STOPPED_STATUS
    progress = json.loads((list_checkpoints(folder / "checkpoints")[-1] / "run_state.json").read_text())["progress"]
    assert progress["evaluation_due"]
    finish(folder)
    assert results(folder) == whole


def test_a_stop_in_the_final_evaluation_repeats_no_step(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    finish(whole, tests=True)
    process = start(folder, pause=0.1, tests=True)
    assert wait_for(process, folder.with_name("run.testing").exists)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == STOPPED_STATUS
    assert f"toy: stopped by SIGTERM after step {STEPS} and saved in {folder}" in stderr_of(folder)
    assert not (folder / "metrics.json").exists()
    progress = json.loads((list_checkpoints(folder / "checkpoints")[-1] / "run_state.json").read_text())["progress"]
    assert progress["is_ending"] and progress["step"] == STEPS
    batches = folder.with_name("run.batches")
    batches.unlink()
    finish(folder, tests=True)
    splits = {100 * (int(first) // 100) for first in batches.read_text().split()}
    assert splits == {100, TEST_ID}  # no batch of the training split
    assert (
        json.loads((folder / "metrics.json").read_text())["splits"]
        == (json.loads((whole / "metrics.json").read_text())["splits"])
    )
    assert (folder / "predictions_test.jsonl").read_bytes() == (whole / "predictions_test.jsonl").read_bytes()
    assert results(folder) == results(whole)


def test_a_second_ctrl_c_interrupts_at_once_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, pause=3.0)
    assert wait_for(process, (folder / "log.jsonl").exists)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.2)  # what comes earlier is a launcher that passes on the first
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 130
    assert "toy: interrupted; the same command with --resume goes on from the newest checkpoint in" in stderr_of(folder)


def test_a_run_that_is_out_of_time_saves_and_stops(tmp_path, capsys):
    args = toy_args(tmp_path, max_hours=1e-9)
    assert exit_status("toy", lambda: train(toy_task(), args)) == STOPPED_STATUS
    assert "toy: stopped by --max_hours after step 1 and saved in" in capsys.readouterr().err
    train(toy_task(), toy_args(tmp_path, resume=True))
    train(toy_task(), toy_args(tmp_path.with_name("whole")))
    assert results(tmp_path) == results(tmp_path.with_name("whole"))


def test_checkpoints_of_minutes_come_beside_those_of_steps(tmp_path):
    train(toy_task(), toy_args(tmp_path, save_steps=1000, save_minutes=1e-9, keep_checkpoints=100))
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [f"step-{i:08d}" for i in range(1, 12)]


def test_handlers_are_put_back(tmp_path):
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.raises(RunStoppedError):
        train(toy_task(), toy_args(tmp_path, max_hours=1e-9))
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


DAMAGE = {
    "a byte": (lambda path: flip_a_byte(path / "optimizer.bin"), "optimizer.bin: its checksum is another than when"),
    "cut off": (lambda path: os.truncate(path / "model.safetensors", 100), "model.safetensors: 100 bytes, not "),
    "missing": (lambda path: (path / "optimizer.bin").unlink(), "optimizer.bin: no such file"),
    "state": (lambda path: os.truncate(path / "run_state.json", 40), "run_state.json: malformed JSON at line"),
    "empty": (lambda path: os.truncate(path / "run_state.json", 0), "run_state.json: "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, kind):
    caplog.set_level(logging.INFO, logger="modeling_visualbert.training.loop")
    interrupted_run(tmp_path / "run", 13)  # after checkpoints of the steps 4 and 8
    damage, message = DAMAGE[kind]
    damage(tmp_path / "run" / "checkpoints" / "step-00000008")
    train(toy_task(), toy_args(tmp_path / "run", resume=True))
    assert message in caplog.text
    assert "the checkpoint before it is used" in caplog.text
    assert f"resuming from {tmp_path}/run/checkpoints/step-00000004" in caplog.text
    train(toy_task(), toy_args(tmp_path / "whole"))
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_a_run_all_of_whose_checkpoints_are_damaged_does_not_start_again(tmp_path):
    interrupted_run(tmp_path, 9)
    (tmp_path / "checkpoints" / "step-00000004" / "optimizer.bin").unlink()
    with pytest.raises(
        ValueError, match=r"step-00000004/optimizer.bin: no such file, and no earlier checkpoint is whole"
    ):
        train(toy_task(), toy_args(tmp_path, resume=True))


def test_what_a_kill_leaves_of_best_never_blocks(tmp_path):
    task = toy_task()
    for left in (".best.old", ".best.tmp"):
        save_model(task.model, task, tmp_path / "best")
        shutil.copytree(tmp_path / "best", tmp_path / left)
        save_model(task.model, task, tmp_path / "best")
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_kills_leave_of_checkpoints_is_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".step-00000003.tmp"
    left.mkdir(parents=True)
    train(toy_task(), toy_args(tmp_path, resume=True))
    assert sorted(path.name for path in left.parent.iterdir()) == ["step-00000004", "step-00000008"]


def test_two_runs_do_not_share_a_folder(whole, tmp_path):
    folder = tmp_path / "run"
    first = start(folder, pause=0.1)
    assert wait_for(first, (folder / "log.jsonl").exists)
    second = start(folder, resume=True)
    second.join(30)
    assert second.exitcode == 2
    assert f"toy: another run is at work in {folder}; wait for its end, or pass another --output_dir" in stderr_of(
        folder
    )
    first.kill()
    first.join()
    finish(folder)  # a dead process holds no lock
    assert results(folder) == whole


def test_of_several_runs_at_once_one_gets_the_folder(tmp_path):
    """As `srun -n 3` starts them when they do not know of each other."""
    runs = [start(tmp_path / "run") for _ in range(3)]
    for one in runs:
        one.join(60)
    assert sorted(one.exitcode for one in runs) == [0, 2, 2]


def test_checkpoints_of_models_with_tied_weights_are_written_and_loaded(tmp_path):
    accelerator = Accelerator(cpu=True)
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    second.weight = first.weight
    model = accelerator.prepare(torch.nn.ModuleList([first, second]))
    writer = CheckpointWriter(accelerator, tmp_path, keep=1)
    writer.save(1, {"progress": {}})
    writer.wait()

    kept = first.weight.detach().clone()
    torch.nn.init.zeros_(first.weight)
    load_checkpoint(accelerator, list_checkpoints(tmp_path)[0])
    assert torch.equal(model[1].weight, kept)


def test_copies_of_tied_weights_are_one():
    weight = torch.ones(2, 3)
    state = {"a": weight, "b": [weight, weight[:1]], "empty": torch.zeros(0), "n": 1}
    copy = to_host(state, {})
    assert copy["a"] is copy["b"][0]
    assert copy["a"] is not weight
    weight += 1
    assert copy["a"].tolist() == [[1.0] * 3] * 2
    assert copy["b"][1].tolist() == [[1.0] * 3]
    assert copy["n"] == 1


@pytest.mark.parametrize("name", ["save_minutes", "max_hours"])
def test_times_are_positive(tmp_path, name):
    with pytest.raises(ValueError, match=rf"--{name} 0.0; expected a number in \(0, inf\)"):
        toy_args(tmp_path, **{name: 0.0})
