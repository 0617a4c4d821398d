"""Experiment trackers: which ones a run reports to, and what they are told. `log.jsonl` is there in any case."""

import json
import sys

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_training import log_of, toy_args, toy_task

from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import TrainArgs, parse_args, read_recipe
from modeling_visualbert.training.loop import train

# A package in place of the real one, which writes down what it is told.
TRACKIO = """
import json
import sys
def tell(what, value):
    with open({path!r}, "a") as file:
        print(json.dumps([what, value]), file=file)
class config:
    update = staticmethod(lambda values, **_: tell("config", values))
class run:
    log = staticmethod(lambda values, step, **_: tell("log", {{"step": step, **values}}))
    finish = staticmethod(lambda: tell("finish", None))
def init(**options):
    if {is_broken}:
        raise RuntimeError("no account")
    tell("init", options)
    return run
"""


@pytest.fixture
def make_trackio(tmp_path, monkeypatch):
    """Installs it; returns a function that reads what it was told."""

    def make(is_broken=False):
        path = tmp_path / "told.jsonl"
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "trackio.py").write_text(TRACKIO.format(path=str(path), is_broken=is_broken))
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.delitem(sys.modules, "trackio", raising=False)
        installed(monkeypatch, "tensorboard", "trackio")
        return lambda: [json.loads(line) for line in path.read_text().splitlines()]

    return make


def installed(monkeypatch, *names):
    """Accelerate looks for the packages when it is imported."""
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType(name) for name in names])


def test_tensorboard_gets_the_numbers_and_the_arguments(tmp_path):
    train(toy_task(), toy_args(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log_of(tmp_path) if "loss" in line]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == losses
    (written,) = (tmp_path / "tensorboard").glob("*/hparams.yml")
    assert "learning_rate: 0.02\n" in written.read_text()


def test_a_tracker_gets_the_numbers_of_the_log_and_the_arguments(make_trackio, tmp_path):
    told = make_trackio()
    train(toy_task(), toy_args(tmp_path / "run", report_to="trackio"))
    assert told()[0] == ["init", {"project": "visualbert-vqa", "name": "run"}]
    assert told()[1][1].items() >= {"learning_rate": 0.02, "report_to": "trackio", "max_steps": 12}.items()
    logged = [value for what, value in told() if what == "log"]
    speeds = [value for value in logged if "throughput/examples_per_second" in value]
    assert [value for value in logged if value not in speeds] == log_of(tmp_path / "run")
    assert [value["step"] for value in speeds] == [3, 6, 9, 12]
    assert all(name == "step" or name.startswith("throughput/") for value in speeds for name in value)
    assert told()[-1] == ["finish", None]
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.parametrize("names", [["tensorboard", "trackio", "trackio"], ["all"]])
def test_several_trackers(make_trackio, tmp_path, names):
    told = make_trackio()
    train(toy_task(), toy_args(tmp_path / "run", report_to=names))
    assert [what for what, _ in told()].count("init") == 1
    assert (tmp_path / "run" / "tensorboard").is_dir()


def test_without_trackers_the_log_is_the_same(tmp_path):
    train(toy_task(), toy_args(tmp_path / "none", report_to=["none"]))
    train(toy_task(), toy_args(tmp_path / "default"))
    assert log_of(tmp_path / "none") == log_of(tmp_path / "default")
    assert not (tmp_path / "none" / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", '"modeling-visualbert[train]"'), ("wandb", "wandb"), ("comet_ml", "comet-ml")],
)
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, name, package):
    installed(monkeypatch)
    with pytest.raises(ImportError) as raised:
        train(toy_task(), toy_args(tmp_path / "run", report_to=[name]))
    assert str(raised.value) == f"--report_to {name} needs a package: pip install {package}"
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_does_not_start_is_named(make_trackio, tmp_path):
    make_trackio(is_broken=True)
    with pytest.raises(ConnectionError, match=r"--report_to trackio: a tracker does not start \(no account\)"):
        train(toy_task(), toy_args(tmp_path / "run", report_to=["trackio"]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wandbb"], "--report_to wandbb; expected one of tensorboard, wandb, .*, all or none"),
        (["none", "wandb"], "--report_to none wandb; expected none alone, or trackers"),
    ],
)
def test_wrong_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        TrainArgs("x", report_to=names)


def test_names_on_the_command_line_and_in_recipes(tmp_path, capsys):
    assert parse_args(VqaArgs, "", ["--output_dir", "x", "--report_to", "wandb", "mlflow"]).report_to == [
        "wandb",
        "mlflow",
    ]
    with pytest.raises(SystemExit):
        parse_args(VqaArgs, "", ["--output_dir", "x", "--report_to", "wandbb"])
    assert "invalid choice: 'wandbb'" in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    for written, read in (("wandb", ["wandb"]), ("[wandb, mlflow]", ["wandb", "mlflow"])):
        recipe.write_text(f"report_to: {written}\n")
        assert read_recipe(recipe, VqaArgs)["report_to"] == read
    for wrong in ("[wandb, x]", "3"):
        recipe.write_text(f"report_to: {wrong}\n")
        with pytest.raises(ValueError, match=r"recipe.yaml: 'report_to' is .*; expected one of tensorboard, "):
            read_recipe(recipe, VqaArgs)


def test_patience_has_the_name_of_transformers_too():
    assert parse_args(VqaArgs, "", ["--output_dir", "x", "--early_stopping_patience", "3"]).patience == 3


def test_a_damaged_line_of_the_log_is_named(tmp_path):
    train(toy_task(), toy_args(tmp_path / "run"))
    log = tmp_path / "run" / "log.jsonl"
    first, *others = log.read_bytes().splitlines(keepends=True)
    for damaged, said in ((bytes(8) + b"\n", "malformed JSON at column 1"), (b"{}\n", "key 'step' is missing")):
        log.write_bytes(first + damaged + b"".join(others))  # as after a loss of power
        with pytest.raises(ValueError, match=f"log.jsonl: line 2: {said}"):
            train(toy_task(), toy_args(tmp_path / "run", resume=True))
