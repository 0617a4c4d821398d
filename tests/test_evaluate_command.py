"""`visualbert evaluate` and `visualbert compare`: the results of training's final evaluation, all tasks, what users get wrong."""

import argparse
import dataclasses
import json
import re
import subprocess

import numpy as np
import pytest
from accelerate import Accelerator
from processes import ROOT, environment, launcher
from published_layouts import write_checkpoint, write_tokenizer
from tiny_checkpoints import save_tiny_checkpoint

from modeling_visualbert.cli import build_parser, main
from modeling_visualbert.corpus.build import CorpusConfig, build_corpus
from modeling_visualbert.features.store import write_store
from modeling_visualbert.metrics.compare import paired_bootstrap
from modeling_visualbert.metrics.submissions import read_vcr_leaderboard
from modeling_visualbert.metrics.vcr import leaderboard_accuracy
from modeling_visualbert.tasks.common import DETECTOR
from modeling_visualbert.tasks.evaluate import EvaluateArgs
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs, flickr30k_task
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args, nlvr2_task
from modeling_visualbert.tasks.pretraining import PretrainingArgs, pretraining_task
from modeling_visualbert.tasks.vcr import VcrArgs, joint_scores, rationales_of_every_answer, vcr_task
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task
from modeling_visualbert.training.evaluation import read_predictions
from modeling_visualbert.training.loop import train

# Task: arguments, task, flags of the data, names of the splits train and dev, further arguments of the training.
TASKS = {
    "vqa": (VqaArgs, vqa_task, ("vqa", "images"), ("train", "val"), {"answers": "pythia"}),
    "nlvr2": (Nlvr2Args, nlvr2_task, ("nlvr2", None), ("train", "dev"), {}),
    "answer": (VcrArgs, vcr_task, ("vcr", None), ("train", "val"), {"subtask": "answer"}),
    "rationale": (VcrArgs, vcr_task, ("vcr", None), ("train", "val"), {"subtask": "rationale"}),
    "flickr30k": (Flickr30kArgs, flickr30k_task, ("flickr30k", "images"), ("shapes_train", "shapes_val"), {}),
    "coco": (PretrainingArgs, pretraining_task, ("coco", "images"), ("train", "val"), {}),
    "nlvr2_pre": (PretrainingArgs, pretraining_task, ("nlvr2", None), ("train", "dev"), {"stage": "nlvr2"}),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40, "cpu": True}
CPU = Accelerator(cpu=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus of few scenes, and a cache of this module's own."""
    folder = tmp_path_factory.mktemp("evaluate")
    build_corpus(folder / "corpus", CorpusConfig(train_scenes=24, val_scenes=8, test_scenes=8), progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELING_VISUALBERT_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def features(world):
    """A store of random features for all images of the corpus, under the ids of every task: 12 numbers each."""
    generator = np.random.default_rng(0)
    numbers = [int(path.stem.split("_")[-1]) for path in (world / "corpus" / "images").rglob("*.jpg")]
    pairs = [path.stem for path in (world / "corpus" / "nlvr2").rglob("*-img*")]
    objects = {
        record["img_fn"]: len(record["objects"]) + 1
        for path in (world / "corpus" / "vcr").glob("*.jsonl")
        for record in records_of(path)
    }
    assert numbers and pairs and objects
    regions = {
        key: {
            "visual_embeds": generator.normal(size=(count, 12)).astype("float32"),
            "boxes": np.sort(generator.uniform(0, 100, (count, 2, 2)), axis=1).reshape(count, 4).astype("float32"),
        }
        for key, count in {**dict.fromkeys([*numbers, *pairs], 3), **objects}.items()
    }
    write_store(world / "features", regions.items(), 12, "published")
    return world / "features"


def data_flags(world, name):
    """Arguments that name the data of a task, with its images."""
    data, images = TASKS[name][2]
    flags = {"data_dir": str(world / "corpus" / data)}
    return flags if images is None else {**flags, "images_dir": str(world / "corpus" / images)}


def train_one(world, name, folder, **more):
    """A training run of two steps; its folder."""
    args_class, build, _, (train_split, dev_split), changes = TASKS[name]
    splits = {"train_split": train_split, "dev_split": dev_split, "test_split": "" if name == "flickr30k" else None}
    args = args_class(
        *(str(folder),),
        **{**data_flags(world, name), **splits, **SMALL, **changes, "max_steps": 2, "batch_size": 4, **more},
    )
    if hasattr(args, "stage") or args_class is Nlvr2Args:
        args.test_split = None
    task = build(args, CPU)
    train(task, args, CPU)
    if task.write_results is not None:
        task.write_results(read_predictions(folder / "predictions_dev.jsonl"), folder / "results_dev")
    if name == "rationale":
        rationales_of_every_answer(task, args, CPU)
    return task


@pytest.fixture(scope="module")
def trained(world, features):
    """Training runs on the store by name, each run once: their folders and tasks."""
    runs = {}

    def run(name):
        if name not in runs:
            folder = world / "runs" / name
            runs[name] = folder, train_one(world, name, folder, features_dir=str(features))
        return runs[name]

    return run


@pytest.fixture(scope="module")
def seeing(world):
    """A VQA model with the region encoder of the corpus inside: the folder of its training run."""
    train_one(world, "vqa", world / "seeing", evals_per_epoch=1)
    return world / "seeing"


def flags_of(values):
    return [part for name, value in values.items() for part in ([f"--{name}"] + [str(value)] * (value is not True))]


def evaluate(model, output_dir, **values):
    """Run the command in this process; its status."""
    return main(["evaluate", "--model", str(model), "--output_dir", str(output_dir), "--cpu", *flags_of(values)])


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", TASKS)
def test_the_result_is_that_of_the_final_evaluation(name, trained, features, world, tmp_path, capsys):
    folder, _ = trained(name)
    split = TASKS[name][3][1]
    flags = {**data_flags(world, name), "features_dir": features}
    assert evaluate(folder / "best", tmp_path / "out", split=split, **flags) == 0
    expected, found = metrics_of(folder), metrics_of(tmp_path / "out")
    assert found["splits"] == {split: expected["splits"]["dev"]}
    assert (found["task"], found["best_metric"]) == (expected["task"], expected["best_metric"])
    predictions = tmp_path / "out" / f"predictions_{split}.jsonl"
    assert predictions.read_bytes() == (folder / "predictions_dev.jsonl").read_bytes()
    results = sorted(folder.glob("results_dev.*"))
    assert len(results) == (name in ("vqa", "nlvr2"))
    for path in results:
        assert (tmp_path / "out" / path.name.replace("dev", split)).read_bytes() == path.read_bytes()
    printed = capsys.readouterr().out
    assert f"{expected['splits']['dev'][expected['best_metric']]:.1f}" in printed
    assert "has no labels" not in printed
    assert not (tmp_path / "out" / "best").exists()


@pytest.mark.parametrize("name", TASKS)
def test_the_scores_of_the_examples_are_shares_of_the_metrics(name, trained):
    folder, _ = trained(name)
    metrics = metrics_of(folder)["splits"]["dev"]
    values = {}
    for record in records_of(folder / "predictions_dev.jsonl"):
        assert list(record)[-2:] == ["metrics", "group"]
        for key, value in record["metrics"].items():
            values.setdefault(key, []).extend(value if isinstance(value, list) else [value])
    assert values
    for key, found in values.items():
        if found:  # nothing was masked, say
            assert np.mean(found) == pytest.approx(metrics[key])
    groups = {record["group"] for record in records_of(folder / "predictions_dev.jsonl")}
    assert 2 <= len(groups) < len(records_of(folder / "predictions_dev.jsonl")) or name == "nlvr2_pre"


def test_both_models_of_vcr_are_scored_together(trained, features, world, tmp_path, capsys):
    (answers, task), (rationales, _) = trained("answer"), trained("rationale")
    expected = joint_scores(answers, rationales, task.splits["dev"], "dev", tmp_path)
    flags = {**data_flags(world, "answer"), "features_dir": features, "rationale_model": rationales / "best"}
    assert evaluate(answers / "best", tmp_path / "out", split="val", **flags) == 0
    found = metrics_of(tmp_path / "out")
    assert found["splits"]["val"] == {**expected, "num_examples": len(task.splits["dev"])}
    assert (found["task"], found["best_metric"]) == ("vcr", "joint")
    board = tmp_path / "out" / "results_val.csv"
    assert board.read_bytes() == (tmp_path / "leaderboard_dev.csv").read_bytes()
    records = records_of(tmp_path / "out" / "predictions_val.jsonl")
    for key in ("answer", "rationale", "joint"):
        assert np.mean([record["metrics"][key] for record in records]) == pytest.approx(expected[key])
    alone = {record["id"]: record["scores"] for record in records_of(answers / "predictions_dev.jsonl")}
    assert {record["id"]: record["scores"] for record in records} == alone
    assert f"{expected['joint']:.1f}" in capsys.readouterr().out


def hide_labels(world, name, folder):
    """The data of a task with the labels of the evaluated split taken away, as they are released for test splits."""
    source, split = world / "corpus" / TASKS[name][2][0], TASKS[name][3][1]
    if name == "vqa":
        text = (source / "v2_OpenEnded_shapes_val_questions.json").read_text()
        (folder / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(text)
        (folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(text)
        return "test2015"
    if name == "flickr30k":
        (folder / "Sentences").symlink_to(source / "Sentences")
        (folder / "shapes_val.txt").write_text((source / "shapes_val.txt").read_text())
        return "shapes_val"
    path = next(source.rglob(f"{split}.json*"))
    hidden = ("label", "answer_label", "rationale_label")
    lines = [json.dumps({k: v for k, v in record.items() if k not in hidden}) for record in records_of(path)]
    (folder / f"test{path.suffix}").write_text("".join(f"{line}\n" for line in lines))
    return "test"


def assert_phrases_are_predicted(labelled, predicted):
    """The phrases of each sentence are among those predicted, in order and with the same scores."""
    assert [record["id"] for record in predicted] == [record["id"] for record in labelled]
    assert {len(two["phrases"]) - len(one["phrases"]) for one, two in zip(labelled, predicted, strict=True)} >= {0, 1}
    for one, two in zip(labelled, predicted, strict=True):
        assert "metrics" not in two
        left = iter(two["phrases"])
        for phrase in one["phrases"]:
            scores = pytest.approx([found["score"] for found in phrase])
            assert any([found["score"] for found in other] == scores for other in left), one["id"]


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "answer", "flickr30k"])
def test_without_labels_the_same_is_predicted_and_nothing_scored(name, trained, features, world, tmp_path, capsys):
    folder, _ = trained(name)
    (tmp_path / "data").mkdir()
    split = hide_labels(world, name, tmp_path / "data")
    flags = {"data_dir": tmp_path / "data", "features_dir": features, "split": split}
    if name == "answer":  # the metadata of the images is read in any case
        flags["images_dir"] = world / "corpus" / "vcr" / "vcr1images"
    assert evaluate(folder / "best", tmp_path / "out", **flags) == 0
    labelled = records_of(folder / "predictions_dev.jsonl")
    predicted = records_of(tmp_path / "out" / f"predictions_{split}.jsonl")
    count = metrics_of(folder)["splits"]["dev"]["num_examples"]
    if name == "flickr30k":  # phrases without a box are not known to have none
        assert_phrases_are_predicted(labelled, predicted)
        count = sum(len(record["phrases"]) for record in predicted)
    else:
        assert predicted == [{k: v for k, v in record.items() if k not in ("metrics", "group")} for record in labelled]
    assert metrics_of(tmp_path / "out")["splits"] == {split: {"num_examples": count}}
    printed = capsys.readouterr().out
    assert f"split {split!r} has no labels, so nothing is scored: {count} examples are predicted" in printed
    results = sorted((tmp_path / "out").glob("results_*"))
    assert len(results) == (name in ("vqa", "nlvr2"))
    for path in results:
        assert f"file for the evaluation server: {path}\n" in printed
        assert path.read_bytes() == (folder / f"results_dev{path.suffix}").read_bytes()
    assert ("--rationale_model" in printed) == (name == "answer")


def test_the_leaderboard_file_of_vcr_needs_no_labels(trained, features, world, tmp_path, capsys):
    (answers, _), (rationales, _) = trained("answer"), trained("rationale")
    (tmp_path / "data").mkdir()
    hide_labels(world, "answer", tmp_path / "data")
    flags = {"data_dir": tmp_path / "data", "images_dir": world / "corpus" / "vcr" / "vcr1images", "split": "test"}
    flags["features_dir"] = features
    assert evaluate(rationales / "best", tmp_path / "out", **flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "split 'test' has no labels, and a rationale is chosen for the correct answer; expected both models" in error
    assert evaluate(answers / "best", tmp_path / "out", rationale_model=rationales / "best", **flags) == 0
    records = records_of(world / "corpus" / "vcr" / "val.jsonl")
    board = read_vcr_leaderboard(tmp_path / "out" / "results_test.csv")
    assert list(board) == [record["annot_id"] for record in records]
    labels = [[record[f"{kind}_label"] for record in records] for kind in ("answer", "rationale")]
    scored = leaderboard_accuracy(list(board.values()), *labels)
    for key, folder in (("answer", answers), ("rationale", rationales)):
        assert 100 * scored[key] == pytest.approx(metrics_of(folder)["splits"]["dev"]["accuracy"], abs=1e-6)
    assert metrics_of(tmp_path / "out")["splits"] == {"test": {"num_examples": len(records)}}
    assert f"file for the evaluation server: {tmp_path / 'out' / 'results_test.csv'}" in capsys.readouterr().out


def test_vcr_models_are_not_taken_for_each_other(trained, features, world, tmp_path, capsys):
    (answers, _), (rationales, _) = trained("answer"), trained("rationale")
    data = {**data_flags(world, "answer"), "split": "val", "features_dir": features}
    swapped = {"rationale_model": answers / "best"}
    for values, message in (
        (swapped, f"{rationales / 'best'} was trained to choose the rationale; expected one that chooses the answer"),
        ({"subtask": "answer"}, "was trained to choose the rationale; expected one that chooses the answer"),
        ({"subtask": "rationale", **swapped}, "--subtask with --rationale_model; expected one of them"),
    ):
        assert evaluate(rationales / "best", tmp_path / "out", **values, **data) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    save_tiny_checkpoint("vcr", tmp_path / "silent")
    del data["features_dir"]  # it has a region encoder
    assert evaluate(tmp_path / "silent", tmp_path / "out", **data) == 2
    assert "does not say what it chooses; expected --subtask answer (Q->A)" in capsys.readouterr().err
    assert evaluate(tmp_path / "silent", tmp_path / "out", subtask="rationale", **data) == 0
    assert metrics_of(tmp_path / "out")["task"] == "vcr_rationale"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vqa", {"num_regions": 2}),
        ("vqa", {"text_only": True}),
        ("answer", {"objects": "all", "whole_image": False, "max_length": 24}),
        ("flickr30k", {"positions": "original"}),
        ("coco", {"no_match": True, "mlm_probability": 0.4}),
    ],
)
def test_checkpoints_are_read_as_they_were_trained(name, options, features, world, tmp_path):
    """The flags of the training are not repeated."""
    stored = {"features_dir": str(features)}
    train_one(world, name, tmp_path / "run", **stored, **options)
    split, flags = TASKS[name][3][1], {**data_flags(world, name), **stored}
    assert evaluate(tmp_path / "run" / "best", tmp_path / "out", split=split, **flags) == 0
    expected, found = metrics_of(tmp_path / "run"), metrics_of(tmp_path / "out")
    assert found["splits"] == {split: expected["splits"]["dev"]}
    predictions = tmp_path / "out" / f"predictions_{split}.jsonl"
    assert predictions.read_bytes() == (tmp_path / "run" / "predictions_dev.jsonl").read_bytes()


@pytest.mark.parametrize("from_pixels", [False, True])
def test_regions_are_found_in_images(from_pixels, seeing, world, tmp_path):
    """The regions of the training run are kept in half precision, and a batch of images holds others than there."""
    flags = {**data_flags(world, "vqa"), **({"from_pixels": True} if from_pixels else {})}
    assert evaluate(seeing / "best", tmp_path / "out", split="val", **flags) == 0
    assert metrics_of(tmp_path / "out")["splits"] == {"val": metrics_of(seeing)["splits"]["dev"]}
    found, expected = (
        records_of(path) for path in (tmp_path / "out" / "predictions_val.jsonl", seeing / "predictions_dev.jsonl")
    )
    scores = [record.pop("score") for record in expected]
    assert [record.pop("score") for record in found] == pytest.approx(scores, rel=1e-5 if from_pixels else 1e-6)
    assert found == expected


def test_flags_come_before_what_the_checkpoint_says(trained, features, world, tmp_path):
    folder, task = trained("vqa")
    data = {**data_flags(world, "vqa"), "split": "val", "features_dir": features}
    assert evaluate(folder / "best", tmp_path / "less", num_regions=1, max_eval_samples=5, **data) == 0
    records = records_of(tmp_path / "less" / "predictions_val.jsonl")
    assert [record["id"] for record in records] == task.splits["dev"]["question_id"][:5]
    whole = {record["id"]: record["score"] for record in records_of(folder / "predictions_dev.jsonl")}
    assert all(record["score"] != whole[record["id"]] for record in records)
    assert metrics_of(tmp_path / "less")["evaluation"]["task_options"] == {"num_regions": 1, "text_only": False}


def test_the_embedded_corpus_is_the_default(seeing, tmp_path):
    sizes = {"train_scenes": 3, "val_scenes": 2, "test_scenes": 3}
    assert evaluate(seeing / "best", tmp_path / "out", **sizes) == 0
    assert metrics_of(tmp_path / "out")["splits"]["test"]["num_examples"] == 3 * 8


def test_a_region_encoder_is_named_for_a_checkpoint_that_has_none(trained, world, tmp_path, capsys):
    folder, _ = trained("vqa")
    data = {**data_flags(world, "vqa"), "split": "val"}
    for values, message in (
        (
            {},
            "has no region encoder inside; expected --features_dir with the regions of the images, or --region_encoder",
        ),
        ({"region_encoder": DETECTOR}, rf"{DETECTOR}: features of dim 73, this model expects 12 \({folder / 'best'}\)"),
        ({"from_pixels": True}, "--from_pixels: .* has no region encoder inside; leave it out"),
    ):
        assert evaluate(folder / "best", tmp_path / "out", **values, **data) == 2
        assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    train_one(world, "vqa", tmp_path / "run", features_dir=str(extracted(world)), max_steps=1)
    assert evaluate(tmp_path / "run" / "best", tmp_path / "out", region_encoder=DETECTOR, **data) == 0
    assert metrics_of(tmp_path / "out")["splits"] == {"val": metrics_of(tmp_path / "run")["splits"]["dev"]}


def extracted(world):
    """A store of the corpus' regions as `visualbert extract` makes it."""
    argv = [str(world / "corpus" / "images"), str(world / "extracted"), "--region_encoder", str(DETECTOR)]
    assert main(["extract", *argv, "--ids", "number", "--dtype", "float32", "--cpu"]) == 0
    return world / "extracted"


PUBLISHED = {"vqa": "val", "nlvr2": "dev", "vcr": "val", "flickr30k": "shapes_val", "pretraining": "val"}


@pytest.mark.parametrize("task", PUBLISHED)
def test_bare_checkpoints_need_no_region_encoder_with_features(task, features, world, tmp_path, capsys):
    """Those of VCR have no published region encoder at all."""
    folder = write_checkpoint(tmp_path / "bare", task, 12)
    write_tokenizer(tmp_path / "tokenizer")
    name = {"vcr": "answer", "pretraining": "coco"}.get(task, task)
    flags = {**data_flags(world, name), "split": PUBLISHED[task], "features_dir": features}
    flags |= {"subtask": "answer"} if task == "vcr" else {}
    assert evaluate(folder, tmp_path / "out", **flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected --tokenizer (" in error and "google-bert/bert-base-uncased" in error
    assert evaluate(folder, tmp_path / "out", tokenizer=tmp_path / "tokenizer", **flags) == 0
    metrics = metrics_of(tmp_path / "out")
    assert 0 <= metrics["splits"][PUBLISHED[task]][metrics["best_metric"]] <= 100


def test_published_names_need_features_or_their_detector(tmp_path, capsys):
    assert evaluate("uclanlp/visualbert-vcr", tmp_path / "out", subtask="answer") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "uclanlp/visualbert-vcr: its region encoder (ResNet-50 on the given boxes" in error
    assert "was not published; expected --features_dir" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": "minival"},
            "no questions file of split 'minival'; .*; there is v2_OpenEnded_shapes_test_questions.json",
        ),
        ({"split": None}, "--data_dir without --split; expected the split to evaluate"),
        ({"split": "a/val"}, "--split 'a/val'; expected the name of a split"),
        ({"data_dir": "nowhere"}, "--data_dir nowhere: no such folder"),
        ({"images_dir": "nowhere"}, "--images_dir nowhere: no such folder"),
        ({"images_dir": "{world}/corpus/vqa"}, "corpus/vqa: no file of image"),
        ({"features_dir": "nowhere"}, r"nowhere: no feature store \(index.json is missing\)"),
        ({"features_dir": "{features}"}, "features of dim 12, this model expects 73"),
        (
            {"features_dir": "{features}", "from_pixels": True},
            "--features_dir with --from_pixels; expected one of them",
        ),
        ({"model": "nowhere/at/all"}, "nowhere/at/all: no such checkpoint folder"),
        ({"model": "{run}"}, "expected the folder of a checkpoint; the model of this training run is in .*seeing/best"),
        ({"model": "{world}"}, "no config.json; expected the folder of a checkpoint$"),
        ({"region_encoder": "{run}"}, "has a region encoder inside; expected no --region_encoder for it"),
        ({"rationale_model": "{run}/best"}, "--rationale_model is for VCR, but .* is a vqa checkpoint"),
        ({"subtask": "answer"}, "--subtask: .* is a vqa checkpoint; expected one that has this option"),
        ({"batch_size": 0}, "--batch_size 0; expected at least 1"),
        ({"num_workers": -1}, "--num_workers -1; expected at least 0"),
        ({"output_dir": "{run}"}, "seeing holds a training run; choose another --output_dir"),
        ({"output_dir": "{run}/log.jsonl"}, "log.jsonl is a file; choose another --output_dir"),
    ],
)
def test_what_users_get_wrong_is_said_in_one_line(changes, message, seeing, features, world, tmp_path, capsys):
    folder = seeing
    given = {"model": folder / "best", "output_dir": tmp_path / "out", "split": "val", **data_flags(world, "vqa")}
    given |= {
        name: value.format(world=world, features=features, run=folder) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    given = {name: value for name, value in given.items() if value is not None}
    capsys.readouterr()
    assert main(["evaluate", "--cpu", *flags_of(given)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("visualbert")]
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not list(tmp_path.glob("out/*"))


def test_an_evaluation_is_replaced_only_on_request(trained, features, world, tmp_path, capsys):
    folder, _ = trained("vqa")
    data = {**data_flags(world, "vqa"), "features_dir": features}
    assert evaluate(folder / "best", tmp_path / "out", split="val", **data) == 0
    assert evaluate(folder / "best", tmp_path / "out", split="test", **data) == 2
    assert "already holds an evaluation; choose another --output_dir or pass --overwrite" in capsys.readouterr().err
    assert evaluate(folder / "best", tmp_path / "out", split="test", overwrite=True, **data) == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"metrics.json", "predictions_test.jsonl", "results_test.json"}


# A process that prepares batches is waited for, for seconds, when the iterator of a failed evaluation is collected.
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_example_that_cannot_be_prepared_is_named(num_workers, trained, features, world, tmp_path, capsys):
    folder, task = trained("vqa")
    questions = json.loads((world / "corpus" / "vqa" / "v2_OpenEnded_shapes_val_questions.json").read_text())
    questions["questions"][9]["question"] = "star " * 200
    (tmp_path / "v2_OpenEnded_mine_questions.json").write_text(json.dumps(questions))
    flags = {"data_dir": tmp_path, "split": "mine", "features_dir": features, "batch_size": 8}
    assert evaluate(folder / "best", tmp_path / "out", num_workers=num_workers, **flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "visualbert" in line]
    wrong = questions["questions"][9]["question_id"]
    assert line.startswith(f"visualbert evaluate: example {wrong}: question 0 has 20")
    assert "expected at most 128" in line
    assert not list(tmp_path.glob("out/*"))


def test_bad_records_are_listed(trained, features, world, tmp_path):
    folder, _ = trained("nlvr2")
    data = world / "corpus" / "nlvr2"
    (tmp_path / "data").mkdir()
    lines = next(data.rglob("dev.json")).read_text().splitlines(keepends=True)
    (tmp_path / "data" / "dev.json").write_text("".join([lines[0], "{\n", *lines[1:]]))
    flags = {"data_dir": tmp_path / "data", "features_dir": features, "split": "dev"}
    assert evaluate(folder / "best", tmp_path / "out", **flags) == 2
    assert evaluate(folder / "best", tmp_path / "out", skip_bad_records=True, **flags) == 0
    assert "dev.json: line 2: malformed JSON" in (tmp_path / "out" / "skipped.txt").read_text()
    assert metrics_of(tmp_path / "out")["evaluation"]["skipped_records"] == 1
    assert metrics_of(tmp_path / "out")["splits"]["dev"] == metrics_of(folder)["splits"]["dev"]


def test_flags_are_the_fields_of_the_arguments():
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    flags = {a.dest: a.default for a in commands.choices["evaluate"]._actions if a.dest != "help"}
    fields = {field.name: field.default for field in dataclasses.fields(EvaluateArgs)}
    assert flags.keys() == fields.keys()
    required = ("model", "output_dir")
    assert {k: v for k, v in flags.items() if k not in required} == {
        k: v for k, v in fields.items() if k not in required
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vqa", "answer"])
def test_two_processes_write_the_files_of_one(name, trained, features, world, tmp_path):
    folder, _ = trained(name)
    flags = {**data_flags(world, name), "split": "val", "batch_size": 5, "features_dir": features}
    if name == "answer":
        flags["rationale_model"] = trained("rationale")[0] / "best"
    for processes in (1, 2):
        command = [*launcher(processes), str(ROOT / "examples" / "evaluate.py"), "--cpu"]
        command += flags_of({"model": folder / "best", "output_dir": tmp_path / str(processes), **flags})
        env = environment(MODELING_VISUALBERT_CACHE=str(world / "cache"))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written to") == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in "12")
    found = [json.loads(files.pop("metrics.json")) for files in (one, two)]
    assert one == two and len(one) == 2
    assert found[0]["splits"] == found[1]["splits"]
    assert [record["evaluation"]["processes"] for record in found] == [1, 2]


# ------------------------------------------------------------------------------------------------------------- compare


def test_the_interval_is_that_of_the_normal_distribution():
    generator = np.random.default_rng(1)
    first = generator.normal(60, 20, 400)
    second = first + generator.normal(2, 10, 400)
    found = paired_bootstrap(first, second, [1] * 400, samples=20_000)
    difference = second - first
    error = difference.std(ddof=1) / 20
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["low"] == pytest.approx(difference.mean() - 1.96 * error, abs=0.05)
    assert found["high"] == pytest.approx(difference.mean() + 1.96 * error, abs=0.05)
    assert found["p"] < 0.01
    swapped = paired_bootstrap(second, first, [1] * 400, samples=20_000)
    assert swapped["difference"] == -found["difference"] and swapped["p"] == pytest.approx(found["p"])


def test_means_are_over_examples_and_groups_are_drawn():
    first, second, counts = [100.0, 0.0, 0.0], [100.0, 300.0, 0.0], [1, 3, 1]
    found = paired_bootstrap(first, second, counts, samples=9_999)
    assert (found["first"], found["second"], found["difference"]) == (20.0, 80.0, 60.0)
    # (2/3)^3 of the draws are without the second group, which makes all the difference.
    assert found["p"] == pytest.approx(2 * 8 / 27, abs=0.02)
    assert (found["low"], found["high"]) == (0.0, 100.0)
    apart = paired_bootstrap([100, 0, 0, 0, 0], [100, 100, 100, 100, 0], [1] * 5, samples=9_999)
    assert apart["p"] < found["p"] / 10


def test_too_little_to_compare_is_refused():
    with pytest.raises(ValueError, match="1 groups of examples; expected several"):
        paired_bootstrap([1.0, 0.0], [2.0, 0.0], [1, 0])
    with pytest.raises(ValueError, match="2, 1 and 2 groups; expected the same number"):
        paired_bootstrap([1.0, 2.0], [2.0], [1, 1])
    with pytest.raises(ValueError, match="0 samples"):
        paired_bootstrap([1.0, 2.0], [2.0, 1.0], [1, 1], samples=0)


def compare(capsys, *argv):
    assert main(["compare", *map(str, argv)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def pair(trained, features, world, tmp_path):
    """Predictions of a model with all regions and with one region."""
    folder, _ = trained("vqa")
    flags = {**data_flags(world, "vqa"), "features_dir": features, "num_regions": 1}
    assert evaluate(folder / "best", tmp_path / "one", split="val", **flags) == 0
    return folder / "predictions_dev.jsonl", tmp_path / "one" / "predictions_val.jsonl"


def test_two_files_are_compared_with_and_without_the_labels(pair, world, tmp_path, capsys):
    capsys.readouterr()
    found = json.loads(compare(capsys, *pair, "--json"))
    means = [np.mean([record["metrics"]["accuracy"] for record in records_of(path)]) for path in pair]
    accuracy = found["metrics"]["accuracy"]
    assert [accuracy["first"], accuracy["second"]] == pytest.approx(means)
    assert accuracy["low"] <= accuracy["difference"] <= accuracy["high"]
    assert (found["num_examples"], found["num_groups"]) == (len(records_of(pair[0])), 8)
    text = compare(capsys, *pair)
    assert f"{means[0]:.2f}" in text and f"{accuracy['low']:+.2f} to {accuracy['high']:+.2f}" in text
    earlier = tmp_path / "earlier.jsonl"
    lines = [json.dumps({key: record[key] for key in ("id", "answer", "score")}) for record in records_of(pair[0])]
    earlier.write_text("".join(f"{line}\n" for line in lines))
    assert main(["compare", str(earlier), str(pair[1])]) == 2
    assert re.search(
        r"earlier.jsonl: no scores of example \d+ .*expected --data_dir and --split", capsys.readouterr().err
    )
    labels = ("--data_dir", world / "corpus" / "vqa", "--split", "val")
    assert json.loads(compare(capsys, earlier, pair[1], *labels, "--json"))["metrics"] == found["metrics"]
    same = json.loads(compare(capsys, pair[0], pair[0], "--json"))["metrics"]["accuracy"]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("name", ["nlvr2", "answer", "flickr30k", "coco"])
def test_labels_give_the_scores_that_the_files_hold(name, trained, world, capsys):
    folder, _ = trained(name)
    path = folder / "predictions_dev.jsonl"
    labels = ["--data_dir", data_flags(world, name)["data_dir"], "--split", TASKS[name][3][1]]
    labels += ["--subtask", "answer"] if name == "answer" else []
    capsys.readouterr()
    assert compare(capsys, path, path, "--json", *labels) == compare(capsys, path, path, "--json")


def test_other_examples_are_refused_with_their_ids(pair, world, tmp_path, capsys):
    lines = pair[1].read_text().splitlines(keepends=True)
    first = json.loads(lines[0])["id"]
    for text, message in (
        ("".join(lines[2:]), f"lacks example {first} of .* \\(2 in all\\); expected the same examples"),
        ("".join([*lines, lines[0]]), "records with .* ids; expected an id of its own in each"),
        (lines[0].replace('"group": ', '"group": 1') + "".join(lines[1:]), f"example {first} has other labels in each"),
        ("", "no predictions; expected a file of"),
    ):
        (tmp_path / "other.jsonl").write_text(text)
        assert main(["compare", str(pair[0]), str(tmp_path / "other.jsonl")]) == 2
        assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert main(["compare", str(pair[0]), "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err
    labels = ["--data_dir", str(world / "corpus" / "vqa"), "--split", "test"]
    assert main(["compare", *map(str, pair), *labels]) == 2
    assert re.search(rf"example {first} is not in split 'test' of .* \(\d+ are not\)", capsys.readouterr().err)
    assert main(["compare", *map(str, pair), *labels[:2]]) == 2
    assert "--data_dir and --split belong together" in capsys.readouterr().err
