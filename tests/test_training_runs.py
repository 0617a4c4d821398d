"""The example scripts as users start them: killed and resumed, in two processes, and what they write.

`RECORD_LOSSES=1 pytest -m slow tests/test_training_runs.py -k stored` writes the stored losses again.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
from helpers import FIXTURES
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

from modeling_visualbert import VisualBertForQuestionAnswering
from modeling_visualbert.metrics.vqa import vqa_accuracy
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.args import parse_args
from modeling_visualbert.training.loop import train

ROOT = Path(__file__).parents[1]
CORPUS_RECIPE = ROOT / "examples" / "recipes" / "vqa_corpus.yaml"
LOSSES = FIXTURES / "losses" / "vqa_corpus.json"
CORPUS_SIZE = ("--train_scenes", "300", "--val_scenes", "50", "--test_scenes", "50")
SMALL_MODEL = ("--hidden_size", "64", "--num_hidden_layers", "2")
STEPS = 30

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where corpus and regions are kept between the runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache):
    """Environment of the processes."""
    return processes.environment(MODELING_VISUALBERT_CACHE=str(cache))


def command(output_dir, *flags, num_processes=1):
    """The command line of a run on the small corpus."""
    script = [str(ROOT / "examples" / "run_vqa.py"), "--output_dir", str(output_dir), "--cpu"]
    return [*processes.launcher(num_processes), *script, *CORPUS_SIZE, *SMALL_MODEL, *flags]


def run(environment, *args, **kwargs):
    """Run to the end; returns the completed process."""
    return subprocess.run(command(*args, **kwargs), env=environment, capture_output=True, text=True, timeout=300)


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


RUN = ("--max_steps", str(STEPS), "--dropout", "0.1", "--micro_batch_size", "32", "--evals_per_epoch", "3")
RUN += ("--save_steps", "10", "--log_steps", "3")


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory):
    """Folder and output of an uninterrupted run, baselines included."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    done = run(environment, folder, *RUN)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_killed_run_ends_with_the_same_bits(environment, finished, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        command(folder, *RUN),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not (folder / "checkpoints" / "step-00000010").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    assert 9 <= log_of(folder)[-1]["step"] < STEPS
    (folder / "checkpoints" / "step-00000025").mkdir()  # as if it had been killed while copying this one

    resumed = run(environment, folder, *RUN, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert re.search(r"training vqa: .*?\| (\d+)/30", resumed.stderr)[1] in ("10", "20")
    for file in (
        "best/model.safetensors",
        "text_only/best/model.safetensors",
        "log.jsonl",
        "predictions_test.jsonl",
    ):
        assert (folder / file).read_bytes() == (finished[0] / file).read_bytes(), file


@pytest.fixture(scope="module")
def one_and_two(environment, finished, cache, tmp_path_factory):
    """The same run in one process and in two: folder and process of each."""
    # given as a data folder, so that the baselines are left out
    corpus = next(cache.glob("shapes-*/corpus.json")).parent
    data = ("--data_dir", str(corpus / "vqa"), "--images_dir", str(corpus / "images"), "--test_split", "test")
    flags = ("--recipe", str(CORPUS_RECIPE), *data, "--max_steps", "20", "--dropout", "0.0", "--log_steps", "1")
    folder = tmp_path_factory.mktemp("processes")
    return {n: (folder / str(n), run(environment, folder / str(n), *flags, num_processes=n)) for n in (1, 2)}


def test_two_processes_take_the_steps_of_one(one_and_two):
    one, two = (log_of(folder) for folder, _ in one_and_two.values())
    assert [line["step"] for line in one if "loss" in line] == list(range(1, 21))
    assert len(one) == len(two)
    for line, other in zip(one, two, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert other[name] == pytest.approx(value, abs=1e-5, rel=1e-5 if name == "grad_norm" else 0), (line, other)


def test_two_processes_end_with_the_answers_of_one(one_and_two):
    for _, done in one_and_two.values():
        assert done.returncode == 0, done.stderr
    (one, _), (two, _) = one_and_two.values()
    assert json.loads((two / "metrics.json").read_text())["run"]["processes"] == 2
    for split in ("dev", "test"):
        records = [(f / f"predictions_{split}.jsonl").read_text().splitlines() for f in (one, two)]
        answers = [[(r["id"], r["answer"]) for r in map(json.loads, lines)] for lines in records]
        assert len(answers[0]) == 400
        assert answers[0] == answers[1]


def test_metrics_are_the_official_scores_of_the_predictions(finished, cache):
    folder, output = finished
    record = json.loads((folder / "metrics.json").read_text())
    for split, file in (("dev", "v2_shapes_val_annotations.json"), ("test", "v2_shapes_test_annotations.json")):
        annotations = json.loads(next(cache.glob(f"shapes-*/vqa/{file}")).read_text())["annotations"]
        lines = (folder / f"predictions_{split}.jsonl").read_text().splitlines()
        answers = {line["id"]: line["answer"] for line in map(json.loads, lines)}
        scored = vqa_accuracy(answers, annotations)
        assert record["splits"][split]["accuracy"] == pytest.approx(scored["overall"])
        assert record["splits"][split]["per_question_type"] == pytest.approx(scored["per_question_type"])
        assert record["splits"][split]["num_examples"] == len(answers) == 400
        results = json.loads((folder / f"results_{split}.json").read_text())
        assert results == [{"question_id": i, "answer": answer} for i, answer in answers.items()]
    assert f"{record['splits']['test']['accuracy']:.1f}" in output


def test_baselines_are_in_the_metrics_and_in_the_table(finished):
    folder, output = finished
    baselines = json.loads((folder / "metrics.json").read_text())["baselines"]
    assert set(baselines) == {"majority answer", "majority answer per type", "text only"}
    for name, scores in baselines.items():
        assert 0 < scores["accuracy"] < 60
        assert scores["num_examples"] == 400
        assert len(scores["per_question_type"]) == 7
        assert name in output
    assert baselines["majority answer"]["accuracy"] < baselines["majority answer per type"]["accuracy"]


def test_the_best_model_is_complete(finished):
    best = finished[0] / "best"
    model, processor = AutoModelForVisualQuestionAnswering.from_pretrained(best), AutoProcessor.from_pretrained(best)
    assert type(model) is VisualBertForQuestionAnswering
    assert model.config.region_encoder_config is not None
    assert list(model.config.id2label.values()) == processor.answers
    assert processor.answers[0] == "<unk>"
    assert {"yes", "no", "red", "circle", "big", "2"} <= set(processor.answers)


@pytest.mark.parametrize("file", ["curves.png", "examples.png"])
def test_images_are_drawn(finished, file):
    with Image.open(finished[0] / file) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 400
    assert 0.005 < (pixels < 128).mean() < 0.9


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_numbers_of_the_log(one_and_two):
    folder = one_and_two[1][0]
    for name in ("loss", "learning_rate", "grad_norm", "dev_accuracy"):
        logged = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in log_of(folder) if name in line]
        assert scalars(folder)[name] == logged


def test_tensorboard_of_the_run_has_no_other_run(finished):
    steps = [step for step, _ in scalars(finished[0])["loss"]]
    assert steps == [line["step"] for line in log_of(finished[0]) if "loss" in line]


def test_checkpoints_of_the_baseline_hold_the_baseline_only(finished):
    names = {path.name for path in (finished[0] / "text_only" / "checkpoints").glob("step-*/*")}
    assert names == {path.name for path in (finished[0] / "checkpoints").glob("step-*/*")}


def test_other_arguments_and_occupied_folders_are_refused(environment, finished):
    folder = finished[0]
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    other_rate = run(environment, folder, *RUN, "--resume", "--learning_rate", "5e-4")
    assert other_rate.returncode != 0
    assert "was trained with learning_rate=0.001, not 0.0005; expected the same" in other_rate.stderr
    again = run(environment, folder, *RUN)
    assert again.returncode != 0
    assert f"{folder} already holds a run; pass --resume to continue it, or another --output_dir" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == files


def test_a_finished_run_goes_on_elsewhere_with_more_steps(environment, finished, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(finished[0], folder)
    longer = run(environment, folder, *RUN, "--max_steps", "33", "--patience", "9", "--resume")
    assert longer.returncode == 0, longer.stderr[-3000:]
    line, baseline = [line for line in longer.stderr.splitlines() if "resuming from" in line]
    changes = "max_steps 30 -> 33, patience None -> 9; from here on the learning rate follows the schedule of 33 steps"
    changes += " instead of 30"
    assert line.endswith(f"step-00000020 with output_dir '{finished[0]}' -> '{folder}', {changes}")
    assert baseline.endswith(f"output_dir '{finished[0]}/text_only' -> '{folder}/text_only', {changes}")
    assert [one["step"] for one in log_of(folder) if "loss" in one] == list(range(3, 34, 3))


TRAINING = sorted([*(ROOT / "examples").glob("run_*.py"), ROOT / "examples" / "train_detector.py"])


@pytest.mark.parametrize("script", TRAINING, ids=lambda path: path.name)
def test_help_explains_the_recipe(environment, script):
    done = subprocess.run(
        [sys.executable, script, "--help"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "--recipe FILE" in done.stdout
    assert "--output_dir" in done.stdout


def ten_losses(output_dir):
    """Losses of ten steps of the default recipe, on the small corpus, in this process."""
    argv = ["--output_dir", str(output_dir), "--cpu", *CORPUS_SIZE, "--max_steps", "10", "--log_steps", "1"]
    args = parse_args(VqaArgs, "", argv, recipe_without_data=CORPUS_RECIPE)
    accelerator = make_accelerator(args)
    train(vqa_task(args, accelerator), args, accelerator)
    return [line["loss"] for line in log_of(output_dir) if "loss" in line]


def test_ten_losses_are_the_stored_ones(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_VISUALBERT_CACHE", str(cache))
    losses = ten_losses(tmp_path / "run")
    if os.environ.get("RECORD_LOSSES"):
        LOSSES.parent.mkdir(exist_ok=True)
        LOSSES.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
    stored = json.loads(LOSSES.read_text())["losses"]
    assert len(losses) == 10
    assert losses == pytest.approx(stored, abs=1e-4), "explain a change in CHANGELOG.md, then record the losses again"
