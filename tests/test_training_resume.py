"""Resuming with other arguments, and from checkpoints of other versions: what may change, and what is refused."""

import importlib
import json
import pkgutil
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from toy_training import interrupted_run, log_of, toy_args, toy_task

import modeling_visualbert.tasks
from modeling_visualbert.tasks.detection import DetectionArgs
from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import TrainArgs
from modeling_visualbert.training.checkpoint import list_checkpoints
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.optimizer import rate_factor
from modeling_visualbert.training.resume import MAY_CHANGE, MAY_MOVE, MUST_STAY, changed_args, saved_args

CHECKPOINT = Path("step-00000004")


def args_classes():
    """The arguments of every script."""
    for module in pkgutil.iter_modules(modeling_visualbert.tasks.__path__):
        importlib.import_module(f"modeling_visualbert.tasks.{module.name}")
    classes = [TrainArgs]
    for found in classes:
        classes += found.__subclasses__()
    return [one for one in classes if one.__module__.startswith("modeling_visualbert")]


def test_every_flag_of_every_script_may_change_or_must_stay():
    classes = args_classes()
    assert len(classes) >= 8
    flags = {item.name for one in classes for item in fields(one)}
    assert flags == MAY_CHANGE | MAY_MOVE | MUST_STAY
    assert len(flags) == len(MAY_CHANGE) + len(MAY_MOVE) + len(MUST_STAY)  # each in one of them only


def edit_state(folder, edit):
    """Change the state of the newest checkpoint as if another version had written it."""
    path = list_checkpoints(folder / "checkpoints")[-1] / "run_state.json"
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Folder of an uninterrupted toy run."""
    folder = tmp_path_factory.mktemp("whole")
    train(toy_task(), toy_args(folder))
    return folder


def weights_of(folder):
    return (folder / "best" / "model.safetensors").read_bytes()


# The arguments that the first version wrote, by hand: flags of today are missing.
FIRST_VERSION = {
    "epochs": 10.0,
    "max_steps": 12,
    "batch_size": 8,
    "micro_batch_size": None,
    "learning_rate": 0.02,
    "warmup_ratio": 0.1,
    "schedule": "linear",
    "weight_decay": 0.01,
    "mixed_precision": "no",
    "seed": 0,
    "evals_per_epoch": 2,
    "save_steps": 4,
    "log_steps": 3,
    "cpu": True,
}


def test_a_run_of_the_first_version_is_resumed_to_the_same_bits(whole_run, tmp_path, caplog):
    interrupted_run(tmp_path, 9)

    def edit(state):
        state["args"] = {**FIRST_VERSION, "output_dir": str(tmp_path)}
        del state["may_change"], state["train_examples"]

    edit_state(tmp_path, edit)
    train(toy_task(), toy_args(tmp_path, resume=True))
    assert log_of(tmp_path) == log_of(whole_run)
    assert weights_of(tmp_path) == weights_of(whole_run)
    assert "resuming from" not in caplog.text  # nothing changed: no warning


@pytest.mark.parametrize("name", sorted(MUST_STAY & {item.name for item in fields(VqaArgs)}))
def test_a_flag_that_is_newer_than_the_run_had_its_default(name):
    saved = asdict(VqaArgs("run"))
    default = saved.pop(name)
    assert changed_args(CHECKPOINT, {"args": saved}, VqaArgs("run")) == {}
    args = VqaArgs("run")
    setattr(args, name, "another")
    with pytest.raises(ValueError, match=f"step-00000004 was trained with {name}={default!r}, not 'another'; expected"):
        changed_args(CHECKPOINT, {"args": saved}, args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-3}, "step-00000004 was trained with learning_rate=0.02, not 0.001; expected the same"),
        ({"batch_size": 4}, "was trained with batch_size=8, not 4; expected the same"),
        ({"seed": 1, "epochs": 3.0}, "was trained with seed=0, not 1; expected the same"),
        ({"adam_beta2": 0.9}, "was trained with adam_beta2=0.999, not 0.9"),
        (
            {"schedule": "cosine", "warmup_ratio": 0.5},
            "was trained with warmup_ratio=0.1, not 0.5 and schedule='linear', not 'cosine'; expected the same",
        ),
        (
            {"max_steps": 4},
            "step-00000004 has taken 4 steps, and the run would end after 4; expected a larger --epochs",
        ),
    ],
)
def test_what_would_change_the_steps_is_refused(tmp_path, changes, message):
    interrupted_run(tmp_path, 8)
    before = (tmp_path / "log.jsonl").read_text()
    with pytest.raises(ValueError, match=message):
        train(toy_task(), toy_args(tmp_path, resume=True, **changes))
    assert (tmp_path / "log.jsonl").read_text() == before


def test_other_data_is_refused(tmp_path):
    interrupted_run(tmp_path, 8)
    task = toy_task()
    task.splits = {**task.splits, "train": task.splits["train"].select(range(20))}
    with pytest.raises(ValueError, match="step-00000004 was trained on 26 examples, not 20; expected the same data"):
        train(task, toy_args(tmp_path, resume=True))


def test_the_flag_is_named_before_weights_of_another_size_are_read(tmp_path):
    interrupted_run(tmp_path, 8)
    task = toy_task()
    task.model.cls = torch.nn.Linear(16, 7)
    with pytest.raises(ValueError, match="was trained with weight_decay=0.01, not 0.5"):
        train(task, toy_args(tmp_path, resume=True, weight_decay=0.5))


def test_what_changes_no_step_may_change_and_is_said_in_one_line(whole_run, tmp_path, caplog):
    interrupted_run(tmp_path / "old", 9)
    (tmp_path / "old").rename(tmp_path / "new")
    changes = {"save_steps": 5, "log_steps": 2, "eval_batch_size": 3, "patience": 100, "gradient_checkpointing": True}
    record = train(toy_task(), toy_args(tmp_path / "new", resume=True, **changes))
    (line,) = [one.getMessage() for one in caplog.records if "resuming" in one.getMessage()]
    assert line == (
        f"resuming from {tmp_path}/new/checkpoints/step-00000004 with "
        f"output_dir '{tmp_path}/old' -> '{tmp_path}/new', eval_batch_size 128 -> 3, gradient_checkpointing False -> True, "
        "patience None -> 100, save_steps 4 -> 5, log_steps 3 -> 2"
    )
    assert record["run"]["steps"] == 12
    assert weights_of(tmp_path / "new") == weights_of(whole_run)
    # The window that was open at the checkpoint is closed by the new interval.
    assert [one["step"] for one in log_of(tmp_path / "new") if "loss" in one] == [3, 6, 8, 10, 12]


def test_a_longer_run_goes_on_with_the_schedule_of_its_new_length(tmp_path, caplog):
    interrupted_run(tmp_path, 9, max_steps=None, epochs=4.0, log_steps=1)
    record = train(toy_task(), toy_args(tmp_path, resume=True, max_steps=None, epochs=6.0, log_steps=1))
    assert record["run"]["steps"] == 20
    assert "with epochs 4.0 -> 6.0; from here on the learning rate follows the schedule of 20 steps instead of 13" in (
        caplog.text
    )
    rates = [line["learning_rate"] for line in log_of(tmp_path) if "loss" in line]
    first = [2e-2 * rate_factor(step, 13, 0.1, "linear") for step in range(4)]
    later = [2e-2 * rate_factor(step, 20, 0.1, "linear") for step in range(4, 20)]
    assert rates == pytest.approx([*first, *later])


def test_a_finished_run_can_be_made_longer(tmp_path):
    train(toy_task(), toy_args(tmp_path))
    record = train(toy_task(), toy_args(tmp_path, resume=True, max_steps=16))
    assert record["run"]["steps"] == 16
    assert [line["step"] for line in log_of(tmp_path) if "loss" in line] == [3, 6, 9, 12, 15, 16]


def test_a_run_that_lost_patience_can_go_on(tmp_path):
    stopped = train(toy_task(), toy_args(tmp_path, learning_rate=0.0, patience=3))
    assert stopped["run"]["steps"] == 8
    record = train(toy_task(), toy_args(tmp_path, learning_rate=0.0, patience=None, resume=True))
    assert record["run"]["steps"] == 12


@pytest.mark.parametrize("name", sorted(MAY_MOVE))
def test_data_may_move_but_not_appear_or_vanish(name):
    args_class = next(one for one in (VqaArgs, DetectionArgs, *args_classes()) if name in asdict(one("run")))
    saved = asdict(args_class("run", **{name: "old/place"}))
    moved = changed_args(CHECKPOINT, {"args": saved}, args_class("run", **{name: "/new/place"}))
    assert moved == {name: ("old/place", "/new/place")}
    with pytest.raises(ValueError, match=f"was trained with {name}='old/place', not None"):
        changed_args(CHECKPOINT, {"args": saved}, args_class("run"))
    with pytest.raises(ValueError, match=f"was trained with {name}=None, not 'x'"):
        changed_args(CHECKPOINT, {"args": asdict(args_class("run"))}, args_class("run", **{name: "x"}))


def test_flags_of_a_later_version_are_refused_unless_they_were_off_or_may_change():
    args = TrainArgs("run")
    saved = saved_args(args)
    off = {"label_smoothing": 0.0, "ema": False, "teacher": None}
    newer = {"args": {**saved["args"], **off, "eval_hours": 7}, "may_change": [*saved["may_change"], "eval_hours"]}
    assert changed_args(CHECKPOINT, newer, args) == {}
    newer["args"]["label_smoothing"] = 0.1
    message = (
        r"step-00000004 was trained with label_smoothing=0.1, which this version does not have; expected the version"
    )
    with pytest.raises(ValueError, match=message):
        changed_args(CHECKPOINT, newer, args)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"grid_size": 6}, {}),
        ({"grid_size": 4, "grid_backbone": "small"}, {"grid_size": "4", "grid_backbone": "small"}),
    ],
)
def test_grid_sizes_of_earlier_versions_were_numbers(before, now):
    """And every run had one, with a grid or without."""
    new = VqaArgs("run", **now)
    assert changed_args(CHECKPOINT, {"args": {**asdict(new), **before}}, new) == {}


def test_another_grid_size_is_another_model():
    new = VqaArgs("run", grid_backbone="small", grid_size="6x8")
    with pytest.raises(ValueError, match=r"was trained with grid_size='6', not '6x8'; expected the same"):
        changed_args(CHECKPOINT, {"args": {**asdict(new), "grid_size": 6}}, new)
