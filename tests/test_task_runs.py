"""The scripts of the tasks other than VQA as users start them: what they write, and two processes.

`RECORD_LOSSES=1 pytest -m slow tests/test_task_runs.py -k stored` writes the stored losses again.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from clean_process import hub_environment
from helpers import FIXTURES
from hub_server import serve
from PIL import Image
from processes import environment, launcher
from transformers import AutoProcessor

import modeling_visualbert
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy
from modeling_visualbert.metrics.submissions import read_vcr_leaderboard
from modeling_visualbert.metrics.vcr import leaderboard_accuracy
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, flickr30k_task
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task
from modeling_visualbert.tasks.vcr import VcrArgs, vcr_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.args import parse_args
from modeling_visualbert.training.loop import save_model, train

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "examples" / "recipes"
CORPUS_SIZE = ("--train_scenes", "80", "--val_scenes", "16", "--test_scenes", "16")
SMALL_MODEL = ("--hidden_size", "64", "--num_hidden_layers", "2")
STEPS = 4
RUN = ("--max_steps", str(STEPS), "--log_steps", "1", "--batch_size", "16", "--save_steps", "1000")
TASKS = ["nlvr2", "vcr", "classification", "flickr30k", "pretraining"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where corpus and regions are kept between the runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def in_cache(cache):
    """This process reads and writes the same cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELING_VISUALBERT_CACHE", str(cache))
        yield


@pytest.fixture(scope="session")
def workplace(in_cache, tmp_path_factory):
    """A fresh working directory with an (untrained) model where `make vqa` leaves its own."""
    folder = tmp_path_factory.mktemp("workplace")
    argv = ["--output_dir", str(folder / "unused"), "--cpu", *CORPUS_SIZE, *SMALL_MODEL]
    argv += ["--min_answer_count", "3"]
    args = parse_args(VqaArgs, "", argv, recipe_without_data=RECIPES / "vqa_corpus.yaml")
    task = vqa_task(args, make_accelerator(args))
    (folder / "runs" / "vqa").mkdir(parents=True)
    save_model(task.model, task, folder / "runs" / "vqa" / "best")
    return folder


def start(cache, workplace, name, *flags, processes=1, **variables):
    """Run a script to the end, in the working directory; returns the completed process."""
    model = SMALL_MODEL if name == "flickr30k" else ()
    command = [*launcher(processes), str(ROOT / "examples" / f"run_{name}.py"), "--cpu", *CORPUS_SIZE, *model, *flags]
    env = environment(MODELING_VISUALBERT_CACHE=str(cache), **variables)
    return subprocess.run(command, cwd=workplace, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def finished(cache, workplace):
    """Output of the script of a task on the embedded corpus, baselines included; it is run once."""
    outputs = {}

    def finish(name):
        if name == "pretraining":
            finish("flickr30k")  # what it starts from
        if name not in outputs:
            done = start(cache, workplace, name, "--output_dir", f"runs/{name}", *RUN)
            assert done.returncode == 0, done.stderr
            outputs[name] = done.stdout
        return outputs[name]

    return finish


def folders_of(name):
    """Folders of the trainings of a script, relative to its output."""
    return ["answer", "rationale"] if name == "vcr" else ["."]


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def corpus_of(cache):
    (folder,) = (path.parent for path in cache.glob("shapes-*/corpus.json"))  # a lock lies beside it
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_a_script_leaves_everything_that_it_promises(finished, workplace, name):
    output = finished(name)
    for part in folders_of(name):
        folder = workplace / "runs" / name / part
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["run"]["steps"] == STEPS
        assert set(metrics["splits"]) == {"dev", "test"}
        for split, scores in metrics["splits"].items():
            predictions = records_of(folder / f"predictions_{split}.jsonl")
            assert 0 <= scores[metrics["best_metric"]] <= 100
            assert len({record["id"] for record in predictions}) == len(predictions) > 30
        expected = {"most confident region"} if name == "flickr30k" else {"text only"}
        expected |= {"majority label"} if name == "classification" else set()
        assert set(metrics["baselines"]) == expected
        for baseline in expected:
            assert baseline in output
        assert [line["step"] for line in log_of(folder) if "loss" in line] == [1, 2, 3, 4]
        for file in ("curves.png", "examples.png"):
            with Image.open(folder / file) as image:
                pixels = np.asarray(image.convert("L"))
            assert min(pixels.shape) > 300, file
            assert 0.005 < (pixels < 128).mean() < 0.9, file
        processor = AutoProcessor.from_pretrained(folder / "best")
        assert processor.task == ("nlvr2" if name == "classification" else name)
        architecture = json.loads((folder / "best" / "config.json").read_text())["architectures"][0]
        model = getattr(modeling_visualbert, architecture).from_pretrained(folder / "best")
        assert model.config.region_encoder_config is not None
        assert not (folder / "skipped.txt").exists()


def test_nlvr2_results_are_scored_again(finished, workplace, cache):
    finished("nlvr2")
    folder = workplace / "runs" / "nlvr2"
    metrics = json.loads((folder / "metrics.json").read_text())["splits"]
    for split, file in (("dev", "dev"), ("test", "test1")):
        truth = {r["identifier"]: r["label"] for r in records_of(corpus_of(cache) / "nlvr2" / "data" / f"{file}.json")}
        lines = dict(line.split(",") for line in (folder / f"results_{split}.csv").read_text().splitlines())
        scored = nlvr2_accuracy(lines, truth)
        for key in ("accuracy", "consistency"):
            assert metrics[split][key] == pytest.approx(100 * scored[key])
        assert metrics[split]["num_examples"] == len(lines) == len(truth)


def test_vcr_leaderboard_is_scored_again(finished, workplace, cache):
    output = finished("vcr")
    folder = workplace / "runs" / "vcr"
    joint = json.loads((folder / "joint.json").read_text())
    assert set(joint) == {"dev", "test"}
    for split, file in (("dev", "val"), ("test", "test")):
        records = records_of(corpus_of(cache) / "vcr" / f"{file}.jsonl")
        board = read_vcr_leaderboard(folder / f"leaderboard_{split}.csv")
        assert list(board) == [record["annot_id"] for record in records]
        labels = [[record[f"{kind}_label"] for record in records] for kind in ("answer", "rationale")]
        scored = leaderboard_accuracy(list(board.values()), *labels)
        for key in ("answer", "rationale", "joint"):
            assert joint[split][key] == pytest.approx(100 * scored[key])
        for kind in ("answer", "rationale"):
            own = json.loads((folder / kind / "metrics.json").read_text())["splits"][split]["accuracy"]
            assert own == pytest.approx(joint[split][kind], abs=0.01)
    assert f"{joint['test']['joint']:.1f}" in output


DATA = {
    "nlvr2": ("--data_dir", "nlvr2"),
    "vcr": ("--data_dir", "vcr", "--test_split", "test"),
    "classification": ("--data_dir", "snli_ve", "--test_split", "test"),
    "flickr30k": ("--data_dir", "flickr30k", "--images_dir", "images"),
    "pretraining": ("--data_dir", "coco", "--images_dir", "images", "--test_split", "test"),
}
SPLITS = ("--train_split", "shapes_train", "--dev_split", "shapes_val", "--test_split", "shapes_test")


@pytest.mark.parametrize("name", TASKS)
def test_two_processes_with_micro_batches_take_the_steps_of_one(finished, cache, workplace, name):
    """The corpus given as a data folder leaves the baselines out; the steps are the same."""
    finished(name)
    data = [str(corpus_of(cache) / word) if word in os.listdir(corpus_of(cache)) else word for word in DATA[name]]
    flags = ["--recipe", str(RECIPES / f"{name}_corpus.yaml"), *data, *(SPLITS if name == "flickr30k" else ())]
    output_dir = workplace / "runs" / f"{name}_two"
    flags += ["--output_dir", str(output_dir), *RUN, "--micro_batch_size", "4"]
    done = start(cache, workplace, name, *flags, processes=2)
    assert done.returncode == 0, done.stderr
    for part in folders_of(name):
        one, two = workplace / "runs" / name / part, output_dir / part
        metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
        assert [record["run"]["processes"] for record in metrics] == [1, 2]
        logs = [[line for line in log_of(folder) if "loss" in line] for folder in (one, two)]
        for line, other in zip(*logs, strict=True):
            assert other["loss"] == pytest.approx(line["loss"], abs=1e-5), (line, other)
            assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-4), (line, other)
        for split in ("dev", "test"):
            ids = [[r["id"] for r in records_of(folder / f"predictions_{split}.jsonl")] for folder in (one, two)]
            if name == "pretraining":  # without the corpus no words are probed
                ids[0] = [one for one in ids[0] if not one.startswith("probe")]
            assert ids[0] == ids[1]
            (best,) = {record["best_metric"] for record in metrics}
            scores = [record["splits"][split][best] for record in metrics]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    if name == "vcr":
        joint = [json.loads((folder.parent / "joint.json").read_text()) for folder in (one, two)]
        assert joint[0]["test"] == pytest.approx(joint[1]["test"])


def test_a_model_that_classifies_is_published_with_its_labels(cache, workplace):
    flags = ("--output_dir", "runs/classification_pushed", *RUN, "--push_to_hub", "--hub_model_id", "tester/entailment")
    with serve() as hub:
        done = start(cache, workplace, "classification", *flags, **hub_environment(hub))
        files = hub.files("tester/entailment")
    assert done.returncode == 0, done.stderr
    folder = workplace / "runs" / "classification_pushed"
    assert files["model.safetensors"] == (folder / "best" / "model.safetensors").read_bytes()
    config = json.loads(files["config.json"])
    assert sorted(config["label2id"]) == ["contradiction", "entailment", "neutral"]
    assert config["task_options"]["num_images"] == 1
    scores = json.loads((folder / "metrics.json").read_text())["splits"]["test"]
    assert f"{scores['macro_f1']:.2f}" in files["README.md"].decode()


def test_a_missing_vqa_model_says_what_to_do(cache, in_cache, tmp_path):
    done = start(cache, tmp_path, "nlvr2", "--output_dir", "runs/nlvr2", *RUN)
    assert done.returncode != 0
    assert "runs/vqa/best: no such checkpoint folder; train the earlier stage first" in done.stderr
    assert not (tmp_path / "runs" / "nlvr2" / "metrics.json").exists()


@pytest.mark.parametrize("name", ["nlvr2", "vcr"])
def test_scratch_starts_from_nothing(workplace, tmp_path, monkeypatch, name):
    monkeypatch.chdir(workplace)
    args_class, task_of, flags = LOSSES["nlvr2" if name == "nlvr2" else "vcr_answer"]
    args = run_args(args_class, tmp_path, "--init_from", "scratch", *flags)
    assert task_of(args, make_accelerator(args)).model.config.hidden_size == 128


FROM_VQA = ("--init_from", "runs/vqa/best")  # the model of `workplace`
LOSSES = {
    "nlvr2": (Nlvr2Args, nlvr2_task, ()),
    "vcr_answer": (VcrArgs, vcr_task, ("--subtask", "answer")),
    "vcr_rationale": (VcrArgs, vcr_task, ("--subtask", "rationale")),
    "flickr30k": (Flickr30kArgs, flickr30k_task, ()),
    "pretraining_coco": (PretrainingArgs, pretraining_task, FROM_VQA),
    "pretraining_nlvr2": (PretrainingArgs, pretraining_task, (*FROM_VQA, "--stage", "nlvr2")),
    "pretraining_vcr": (PretrainingArgs, pretraining_task, (*FROM_VQA, "--stage", "vcr")),
}


def run_args(args_class, output_dir, *flags):
    """Arguments of a script that is started without a data folder."""
    recipe = RECIPES / f"{args_class.__name__.removesuffix('Args').lower()}_corpus.yaml"
    argv = ["--output_dir", str(output_dir), "--cpu", *CORPUS_SIZE, *flags]
    return parse_args(args_class, "", argv, recipe_without_data=recipe)


def ten_losses(output_dir, args_class, task_of, *flags):
    """Losses of ten steps of the default recipe with a smaller batch, on the small corpus, in this process."""
    args = run_args(args_class, output_dir, *flags)
    accelerator = make_accelerator(args)
    task = task_of(args, accelerator)
    task.splits = {name: task.splits[name] for name in ("train", "dev")}
    train(task, args, accelerator)
    return [line["loss"] for line in log_of(output_dir) if "loss" in line]


@pytest.mark.parametrize("name", LOSSES)
def test_ten_losses_are_the_stored_ones(workplace, tmp_path, monkeypatch, name):
    monkeypatch.chdir(workplace)
    args_class, task_of, flags = LOSSES[name]
    flags = (*flags, "--max_steps", "10", "--log_steps", "1", "--batch_size", "32")
    losses = ten_losses(tmp_path / "run", args_class, task_of, *flags)
    file = FIXTURES / "losses" / f"{name}_corpus.json"
    if os.environ.get("RECORD_LOSSES"):
        file.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
    stored = json.loads(file.read_text())["losses"]
    assert len(losses) == 10
    assert losses == pytest.approx(stored, abs=1e-4), "explain a change in CHANGELOG.md, then record the losses again"
