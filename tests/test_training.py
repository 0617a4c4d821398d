"""Training in one process: which examples make a step, arguments and recipes, and the loop on a toy task.

The scripts themselves are run in `test_training_runs.py`.
"""

import json
import math
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from toy_training import interrupted_run, log_of, questions, toy_args, toy_task

from modeling_visualbert import VisualBertForQuestionAnswering
from modeling_visualbert.metrics.submissions import write_vqa_results
from modeling_visualbert.tasks.classification import ClassificationArgs
from modeling_visualbert.tasks.detection import DetectionArgs
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args
from modeling_visualbert.tasks.one_split import EvaluateArgs
from modeling_visualbert.tasks.pretraining import PretrainingArgs
from modeling_visualbert.tasks.vcr import VcrArgs
from modeling_visualbert.tasks.vqa import VqaArgs, majority_baselines, score_answers
from modeling_visualbert.training import loop
from modeling_visualbert.training.accelerator import make_accelerator
from modeling_visualbert.training.args import INTERVALS, TrainArgs, parse_args, read_recipe
from modeling_visualbert.training.batches import AugmentedRows, MicroBatches, StepPlan
from modeling_visualbert.training.checkpoint import list_checkpoints, load_checkpoint
from modeling_visualbert.training.evaluation import evaluate, read_predictions, write_predictions
from modeling_visualbert.training.loop import train
from modeling_visualbert.training.optimizer import make_optimizer, rate_factor
from modeling_visualbert.training.task import count_examples

RECIPES = Path(__file__).parents[1] / "examples" / "recipes"
ARGS = {  # by the first word of a recipe's name
    "vqa": VqaArgs,
    "nlvr2": Nlvr2Args,
    "classification": ClassificationArgs,
    "vcr": VcrArgs,
    "flickr30k": Flickr30kArgs,
    "pretrain": PretrainingArgs,
    "pretraining": PretrainingArgs,
}


def plan(num_examples=10, batch_size=4, num_processes=1, micro_batch_size=None, seed=0):
    return StepPlan(num_examples, batch_size, num_processes, micro_batch_size, seed)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 4), (7, 4), (12, 4), (3, 8), (1, 2)])
def test_every_epoch_has_every_example_once(num_examples, batch_size):
    steps = plan(num_examples, batch_size)
    num_steps = 4 * num_examples // math.gcd(num_examples, batch_size)
    order = [example for step in range(num_steps) for example in steps.step_indices(step)]
    epochs = [order[start : start + num_examples] for start in range(0, len(order), num_examples)]
    assert all(sorted(epoch) == list(range(num_examples)) for epoch in epochs)
    assert num_examples < 7 or len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_step_depends_on_the_seed_and_its_number_only():
    forwards = [plan(100, 8).step_indices(step) for step in range(40)]
    assert [plan(100, 8).step_indices(step) for step in reversed(range(40))] == forwards[::-1]
    assert [plan(100, 8, seed=1).step_indices(step) for step in range(40)] != forwards


@pytest.mark.parametrize(("processes", "micro"), [(1, 2), (2, None), (2, 2), (4, 1)])
def test_shares_of_the_processes_make_up_the_step(processes, micro):
    sharded = plan(50, 8, processes, micro)
    shares = [list(MicroBatches(sharded, process, 0, 9)) for process in range(processes)]
    assert {len(share) for share in shares} == {9 * sharded.accumulation}
    assert len(MicroBatches(sharded, 0, 0, 9)) == 9 * sharded.accumulation
    for step in range(9):
        mine = slice(step * sharded.accumulation, (step + 1) * sharded.accumulation)
        batches = [batch for share in shares for batch in share[mine]]
        assert {len(batch) for batch in batches} == {micro or 8 // processes}
        assert [place for batch in batches for place in batch] == [(step, i) for i in plan(50, 8).step_indices(step)]


def test_batches_after_a_step_are_those_of_the_whole_run():
    steps = plan(50, 8, micro_batch_size=4)
    assert list(MicroBatches(steps, 0, 5, 9)) == list(MicroBatches(steps, 0, 0, 9))[10:]


@pytest.mark.parametrize("epochs", [0.5, 1, 2, 3.5, 10])
@pytest.mark.parametrize("num_examples", [10, 64, 101])
def test_number_of_steps_is_the_nearest(num_examples, epochs):
    steps = plan(num_examples, batch_size=4).num_steps(epochs)
    assert abs(steps * 4 - epochs * num_examples) <= 2
    assert plan(num_examples, batch_size=4).num_steps(1e-9) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_examples": 0}, "no training examples"),
        ({"batch_size": 9, "num_processes": 2}, "batch_size 9 is not a multiple of the 2 processes"),
        ({"batch_size": 10, "micro_batch_size": 4}, "batch_size 10 is not a multiple of micro_batch_size 4 x 1 proc"),
        (
            {"batch_size": 8, "num_processes": 2, "micro_batch_size": 3},
            "batch_size 8 is not a multiple of micro_batch_size 3 x 2 processes",
        ),
        ({"batch_size": 4, "micro_batch_size": 8}, "batch_size 4 is not a multiple of micro_batch_size 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        plan(**sizes)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ({}, "8 examples in a step = 8 examples x 1 process"),
        ({"num_processes": 2}, "8 examples in a step = 4 examples x 2 processes"),
        (
            {"num_processes": 2, "micro_batch_size": 1},
            "8 examples in a step = 1 example x 2 processes x 4 forward passes",
        ),
    ],
)
def test_how_a_step_is_made_up_is_said(sizes, line):
    assert str(plan(50, 8, **sizes)) == line


def test_augmentation_depends_on_seed_step_and_example_only():
    def augment(row, generator):
        return row, torch.rand((), generator=generator).item()

    rows = AugmentedRows("abcdef", augment, seed=3)
    assert len(rows) == 6
    together = rows.__getitems__([(0, 1), (0, 2), (1, 1)])
    assert [row for row, _ in together] == ["b", "c", "b"]
    assert len({number for _, number in together}) == 3
    assert [rows[0, 1], rows[0, 2], rows[1, 1]] == together
    assert AugmentedRows("abcdef", augment, seed=4)[0, 1] != together[0]
    assert AugmentedRows("abcdef", None, seed=3)[0, 1] == "b"


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 0.0, [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
        ("constant", 0.25, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 0.75, [1 / 3, 2 / 3, 1.0, 1.0]),
    ],
)
def test_learning_rate(schedule, warmup, expected):
    assert [rate_factor(step, 4, warmup, schedule) for step in range(4)] == pytest.approx(expected)


def test_flags_override_the_recipe_which_overrides_the_script(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 2e-5\nbatch_size: 16\ndropout: 0\noutput_dir: from/recipe\nresume: true\n")
    argv = ["--recipe", str(recipe), "--batch_size", "32"]
    args = parse_args(VqaArgs, "", argv, epochs=7.0, batch_size=8, learning_rate=1.0)
    assert read_recipe(recipe, VqaArgs)["learning_rate"] == 2e-5  # YAML itself reads a string
    assert (args.learning_rate, args.batch_size, args.epochs) == (2e-5, 32, 7.0)
    assert (args.output_dir, args.resume, args.dropout) == ("from/recipe", True, 0.0)
    assert isinstance(args.dropout, float)
    assert args.warmup_ratio == TrainArgs("x").warmup_ratio


def test_the_corpus_recipe_is_read_only_without_data():
    recipe = RECIPES / "vqa_corpus.yaml"
    with_data = ["--output_dir", "x", "--data_dir", "somewhere"]
    assert parse_args(VqaArgs, "", with_data[:2], recipe_without_data=recipe).learning_rate == 1e-3
    assert parse_args(VqaArgs, "", with_data, recipe_without_data=recipe).learning_rate == 2e-5
    other = [*with_data[:2], "--recipe", str(RECIPES / "vqa_finetune.yaml")]
    assert parse_args(VqaArgs, "", other, recipe_without_data=recipe).patience == 3


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_parse(recipe):
    args_class = ARGS[re.match("[^_]+", recipe.stem)[0]]
    args = parse_args(args_class, "", ["--recipe", str(recipe), "--output_dir", "x"])
    values = read_recipe(recipe, args_class)
    assert values
    assert isinstance(values["learning_rate"], float)
    for name, value in values.items():
        assert getattr(args, name) == value
    for item in fields(args_class):
        if item.default not in (None, MISSING) and item.name != "output_dir":
            assert type(getattr(args, item.name)) is type(item.default), item.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batch_sise: 8\n", "recipe.yaml: unknown argument 'batch_sise'; expected one of .*batch_size"),
        ("- batch_size\n", "recipe.yaml: found .*; expected `name: value` lines"),
        ("", "recipe.yaml: found .*; expected `name: value` lines"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, content, message):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "recipe.yaml", VqaArgs)


@pytest.mark.parametrize(
    "line", ["schedule: liner", "learning_rate: fast", "batch_size: 8.5", "epochs: yes", "max_steps: [3]", "seed: x"]
)
def test_a_wrong_value_in_a_recipe_is_refused(tmp_path, line):
    (tmp_path / "recipe.yaml").write_text(line + "\n")
    with pytest.raises(ValueError, match=rf"recipe.yaml: .*{line.split(':')[0]}.*expected"):
        parse_args(VqaArgs, "", ["--output_dir", "x", "--recipe", str(tmp_path / "recipe.yaml")])


def test_a_size_in_a_recipe_may_be_a_number(tmp_path):
    (tmp_path / "recipe.yaml").write_text("grid_backbone: small\ngrid_size: 4\nimage_size: 64x96\n")
    args = parse_args(VqaArgs, "", ["--output_dir", "x", "--recipe", str(tmp_path / "recipe.yaml")])
    assert (args.grid_size, args.image_size) == ("4", "64x96")


def test_a_missing_recipe_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml: no such recipe"):
        parse_args(VqaArgs, "", ["--output_dir", "x", "--recipe", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: --output_dir"),
        (["--output_dir", "x", "--schedule", "liner"], "invalid choice: 'liner'"),
        (["--output_dir", "x", "--batch_sise", "8"], "--batch_sise 8; did you mean --batch_size?"),
        (["--output_dir", "x", "--lerning-rate=3"], "--lerning-rate=3; did you mean --learning-rate?"),
        (["--output_dir", "x", "--zzz"], "unrecognized arguments: --zzz\n"),
    ],
)
def test_wrong_flags_end_with_a_usage_line(argv, message, capsys):
    with pytest.raises(SystemExit, match="2|batch_sise"):
        parse_args(VqaArgs, "", argv)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["epochs", "max_steps", "batch_size", "evals_per_epoch", "save_steps", "log_steps"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_that_are_not_positive_are_refused(name, value):
    with pytest.raises(ValueError, match=f"--{name} {value}; expected"):
        TrainArgs("run", **{name: value})


def test_every_real_number_has_an_interval():
    hints = {name: hint for kind in (DetectionArgs, *ARGS.values()) for name, hint in get_type_hints(kind).items()}
    assert {name for name, hint in hints.items() if float in (hint, *get_args(hint))} == INTERVALS.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in sorted(INTERVALS) for value in ("nan", "inf", "-inf", "-0.01")),
        *((name, "0") for name in ("epochs", "evals_per_epoch", "max_grad_norm", "mlm_probability")),
        *((name, "1") for name in ("adam_beta2", "dropout")),
        *((name, "1.01") for name in ("warmup_ratio", "score_threshold", "nms_threshold", "mlm_probability")),
    ],
)
def test_numbers_outside_their_interval_are_refused(name, value, tmp_path):
    (args_class,) = [
        k for k in (DetectionArgs, PretrainingArgs, Nlvr2Args, VqaArgs) if name in {f.name for f in fields(k)}
    ][:1]
    expected = re.escape(f"expected a number in {INTERVALS[name]}")
    with pytest.raises(ValueError, match=rf"--{name} {float(value)}; {expected}"):
        parse_args(args_class, "", ["--output_dir", "x", f"--{name}={value}"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{name}: {value.replace('nan', '.nan').replace('inf', '.inf')}\n")
    with pytest.raises(ValueError, match=f"recipe.yaml: '{name}' is .*; {expected}"):
        read_recipe(recipe, args_class)


@pytest.mark.parametrize(
    ("flag", "launched", "expected"),
    [
        (None, None, "no"),
        (None, "no", "no"),
        (None, "bf16", "bf16"),
        (None, "FP16", "fp16"),
        ("bf16", "no", "bf16"),
        ("bf16", "bf16", "bf16"),
    ],
)
def test_precision_is_that_of_the_flag_or_the_launcher(flag, launched, expected, monkeypatch):
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    flags = [] if flag is None else ["--mixed_precision", flag]
    assert parse_args(VqaArgs, "", ["--output_dir", "x", *flags]).mixed_precision == expected
    assert EvaluateArgs("model", "x", mixed_precision=flag).mixed_precision == expected


@pytest.mark.parametrize(
    ("flag", "launched", "message"),
    [
        ("no", "bf16", "--mixed_precision no, but bf16 of `accelerate launch` .*; expected only one of them"),
        ("fp16", "bf16", "--mixed_precision fp16, but bf16 of `accelerate launch` .*; expected only one of them"),
        (None, "fp8", "mixed precision 'fp8' of `accelerate launch` .*; expected one of no, bf16, fp16"),
    ],
)
def test_precisions_that_contradict_one_another_are_refused(flag, launched, message, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    for make in (lambda: TrainArgs("x", mixed_precision=flag), lambda: EvaluateArgs("m", "x", mixed_precision=flag)):
        with pytest.raises(ValueError, match=message):
            make()


def test_accumulation_of_the_launcher_is_refused_with_our_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    args = toy_args(tmp_path)
    for start in (lambda: make_accelerator(args), lambda: train(toy_task(), args, Accelerator(cpu=True))):
        with pytest.raises(ValueError, match="4 gradient accumulation steps .*; expected 1 and --micro_batch_size"):
            start()
    assert not list(tmp_path.iterdir())


def test_compilation_by_the_launcher_is_refused_with_our_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    AcceleratorState._reset_state()  # of this process, which is read once
    args = toy_args(tmp_path)
    try:
        for start in (lambda: make_accelerator(args), lambda: train(toy_task(), args, Accelerator(cpu=True))):
            with pytest.raises(ValueError, match="to compile with aot_eager .*; expected no backend and --compile"):
                start()
    finally:
        AcceleratorState._reset_state()
    assert not list(tmp_path.iterdir())


def test_an_accelerator_of_another_precision_is_refused(tmp_path):
    args = toy_args(tmp_path, mixed_precision="bf16")
    with pytest.raises(ValueError, match="--mixed_precision bf16, but the accelerator has no; expected the same"):
        train(toy_task(), args, Accelerator(cpu=True))


@pytest.mark.parametrize("args_class", [TrainArgs, DetectionArgs, *dict.fromkeys(ARGS.values())])
def test_every_argument_says_what_it_is(args_class):
    for item in fields(args_class):
        assert item.metadata.get("help"), item.name


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Folder and record of an uninterrupted toy run."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(toy_task(), toy_args(folder))


def test_a_run_says_what_it_did(whole_run):
    folder, record = whole_run
    assert [line["step"] for line in log_of(folder) if "loss" in line] == [3, 6, 9, 12]
    assert record == json.loads((folder / "metrics.json").read_text())
    assert record["run"].items() >= {"steps": 12, "processes": 1, "train_examples": 26, "device": "cpu"}.items()
    assert record["run"]["args"]["learning_rate"] == 2e-2


def test_a_longer_run_learns_to_read_the_regions(tmp_path):
    record = train(toy_task(dropout=0.0), toy_args(tmp_path, max_steps=60, save_steps=100))
    losses = [line["loss"] for line in log_of(tmp_path) if "loss" in line]
    assert losses[-1] < 0.2 * losses[0]
    assert record["splits"]["dev"]["accuracy"] == 100.0


def test_the_best_weights_are_kept(whole_run):
    folder, record = whole_run
    by_step = {line["step"]: line["dev_accuracy"] for line in log_of(folder) if "dev_accuracy" in line}
    first_best = min(step for step, value in by_step.items() if value == max(by_step.values()))
    assert record["run"]["best_step"] == first_best
    best = VisualBertForQuestionAnswering.from_pretrained(folder / "best").eval()
    accelerator = Accelerator(cpu=True)
    metrics, predictions = evaluate(toy_task(), best, "dev", toy_args(folder), accelerator)
    assert metrics == record["splits"]["dev"]
    written = [json.loads(line) for line in (folder / "predictions_dev.jsonl").read_text().splitlines()]
    assert [{name: record[name] for name in ("id", "answer", "score")} for record in written] == predictions
    own = [record["metrics"]["accuracy"] for record in written]
    assert sum(own) / len(own) == pytest.approx(metrics["accuracy"])
    assert [record["group"] for record in written] == [record["id"] for record in predictions]  # one question an image


def test_the_same_arguments_give_the_same_bits(whole_run, tmp_path):
    train(toy_task(), toy_args(tmp_path / "again"))
    train(toy_task(), toy_args(tmp_path / "other", seed=1))
    weights = (whole_run[0] / "best" / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "best" / "model.safetensors").read_bytes() == weights
    assert log_of(tmp_path / "again") == log_of(whole_run[0])
    assert log_of(tmp_path / "other") != log_of(whole_run[0])


@pytest.mark.parametrize("calls", [9, 14], ids=["mid-window", "after-evaluation"])
def test_an_interrupted_run_ends_with_the_same_bits(whole_run, tmp_path, calls):
    interrupted_run(tmp_path, calls)
    assert not (tmp_path / "metrics.json").exists()
    assert len(list_checkpoints(tmp_path / "checkpoints")) > 0
    record = train(toy_task(), toy_args(tmp_path, resume=True))
    weights = (whole_run[0] / "best" / "model.safetensors").read_bytes()
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == weights
    assert log_of(tmp_path) == log_of(whole_run[0])
    assert record["splits"] == whole_run[1]["splits"]


@pytest.mark.parametrize(("calls", "newest"), [(9, 4), (14, 8)])
def test_only_the_steps_after_the_newest_checkpoint_are_taken(tmp_path, calls, newest):
    interrupted_run(tmp_path, calls)
    task, steps = toy_task(), []
    task.count_items = lambda batch: steps.append(batch) or count_examples(batch)
    train(task, toy_args(tmp_path, resume=True))
    assert len(steps) == 12 - newest


def test_resuming_without_a_checkpoint_starts_anew(whole_run, tmp_path):
    interrupted_run(tmp_path, 2)
    train(toy_task(), toy_args(tmp_path, resume=True))
    assert log_of(tmp_path) == log_of(whole_run[0])


def test_a_half_written_line_of_the_log_is_dropped(whole_run, tmp_path):
    interrupted_run(tmp_path, 14)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    train(toy_task(), toy_args(tmp_path, resume=True))
    assert log_of(tmp_path) == log_of(whole_run[0])


def test_a_run_killed_while_it_replaced_the_best_weights_can_go_on(tmp_path):
    interrupted_run(tmp_path, 14, learning_rate=0.0)  # no later weights are better
    (tmp_path / "best").rename(tmp_path / ".best.old")
    record = train(toy_task(), toy_args(tmp_path, resume=True, learning_rate=0.0))
    assert record["run"]["best_step"] == 2


def test_an_occupied_folder_is_refused(whole_run):
    folder = whole_run[0]
    before = (folder / "log.jsonl").read_text()
    with pytest.raises(FileExistsError, match=rf"{folder} already holds a run; pass --resume to continue it, or an"):
        train(toy_task(), toy_args(folder))
    assert (folder / "log.jsonl").read_text() == before


def test_a_start_that_fails_at_once_leaves_the_folder_free(tmp_path):
    with pytest.raises(ValueError, match="does not fit|divis|multiple"):
        train(toy_task(), toy_args(tmp_path, micro_batch_size=3))
    assert train(toy_task(), toy_args(tmp_path, max_steps=1))["run"]["steps"] == 1


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    train(toy_task(), toy_args(tmp_path, save_steps=2, keep_checkpoints=3))
    kept = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(kept) == ["step-00000006", "step-00000008", "step-00000010"]


def test_a_half_written_checkpoint_is_refused_and_overlooked(tmp_path):
    interrupted_run(tmp_path, 8)
    (complete,) = list_checkpoints(tmp_path / "checkpoints")
    half = tmp_path / "checkpoints" / "step-00000099"
    half.mkdir()
    (half / "model.safetensors").write_bytes((complete / "model.safetensors").read_bytes()[:100])
    assert list_checkpoints(tmp_path / "checkpoints") == [complete]
    message = r"step-00000099: not a complete checkpoint \(run_state.json is missing\)"
    with pytest.raises(FileNotFoundError, match=message):
        load_checkpoint(Accelerator(cpu=True), half)


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 2}, {"micro_batch_size": 1}, {"gradient_checkpointing": True}]
)
def test_how_a_step_is_computed_does_not_change_it(tmp_path, changes):
    train(toy_task(dropout=0.0), toy_args(tmp_path / "plain"))
    train(toy_task(dropout=0.0), toy_args(tmp_path / "other", **changes))
    plain, other = log_of(tmp_path / "plain"), log_of(tmp_path / "other")
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in plain if name in line]
        assert [line[name] for line in other if name in line] == pytest.approx(expected, abs=1e-5)


def test_a_mean_loss_is_accumulated_as_a_mean(tmp_path):
    logs = {}
    for micro in (8, 2):
        task = toy_task(dropout=0.0)
        task.count_items = None  # as for detectors, whose loss cannot be told the size of the whole batch
        train(task, toy_args(tmp_path / str(micro), micro_batch_size=micro))
        logs[micro] = [line["loss"] for line in log_of(tmp_path / str(micro)) if "loss" in line]
    assert logs[2] == pytest.approx(logs[8], abs=1e-5)


def test_random_numbers_drawn_elsewhere_do_not_change_a_run(whole_run, tmp_path):
    task = toy_task()
    collate = task.collate
    task.collate = lambda rows: (torch.rand(3), collate(rows))[1]
    train(task, toy_args(tmp_path))
    assert log_of(tmp_path) == log_of(whole_run[0])


def test_workers_do_not_change_a_run(whole_run, tmp_path):
    train(toy_task(), toy_args(tmp_path, num_workers=1))
    assert log_of(tmp_path) == log_of(whole_run[0])


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    task = toy_task()
    with torch.no_grad():
        task.model.cls.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1; lower the learning rate"):
        train(task, toy_args(tmp_path))


@pytest.mark.parametrize(("patience", "steps"), [(1, 4), (3, 8), (None, 12)])
def test_patience_counts_evaluations_without_improvement(tmp_path, patience, steps):
    args = toy_args(tmp_path, learning_rate=0.0, patience=patience)
    record = train(toy_task(), args)
    assert record["run"]["steps"] == steps
    assert record["run"]["best_step"] == 2


@pytest.mark.parametrize("eval_batch_size", [1, 4, 100])
def test_evaluation_predicts_each_example_once(tmp_path, eval_batch_size):
    task, args = toy_task(), toy_args(tmp_path, eval_batch_size=eval_batch_size)
    metrics, predictions = evaluate(task, task.model, "train", args, make_accelerator(args))
    assert [record["id"] for record in predictions] == list(range(26))
    assert metrics["num_examples"] == 26
    assert {record["answer"] for record in predictions} <= {"yes", "no"}


def test_weight_decay_spares_biases_and_normalisation():
    model = toy_task().model
    model.visual_bert.embeddings.word_embeddings.weight.requires_grad_(False)
    decayed, others = make_optimizer(model, toy_args("x", weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for parameter in others["params"]]
    assert "visual_bert.embeddings.LayerNorm.weight" in names
    assert all(name.endswith("bias") or "LayerNorm" in name for name in names)
    assert all(parameter.dim() == 2 for parameter in decayed["params"])
    assert len(names) + len(decayed["params"]) == len(name_of) - 1


def test_the_largest_gradients_are_clipped(tmp_path):
    task = toy_task()
    train(task, toy_args(tmp_path, max_steps=1, log_steps=1, max_grad_norm=1e-6, weight_decay=0.0, warmup_ratio=0.0))
    assert log_of(tmp_path)[0]["grad_norm"] > 0.1  # what it was before clipping
    norms = [p.grad for p in task.model.parameters() if p.grad is not None]
    assert norms == []  # and nothing is left for the next step


def test_training_needs_train_and_dev(tmp_path):
    task = toy_task()
    task.splits = {"train": task.splits["train"]}
    with pytest.raises(ValueError, match="task 'vqa' has no split 'dev'"):
        train(task, toy_args(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_evaluation_does_not_depend_on_workers():
    task = toy_task()
    found = [
        evaluate(task, task.model, "dev", toy_args("unused", eval_batch_size=2, num_workers=n), Accelerator(cpu=True))
        for n in (0, 2)
    ]
    assert found[0] == found[1]
    assert len(found[0][1]) == 9


def test_majority_baselines_count_training_answers():
    def rows(answers, kind):
        return [
            {**row, "answers": [a] * 10, "question_type": kind} for a, row in zip(answers, questions(9), strict=False)
        ]

    train_rows = rows(["yes"] * 4 + ["no"], "exist") + rows(["2", "2", "3"], "count")
    test_rows = [*rows(["yes", "no"], "exist"), *rows(["2", "2"], "count"), *rows(["red"], "color")]
    test_rows = [{**row, "question_id": i} for i, row in enumerate(test_rows)]
    baselines = majority_baselines(Dataset.from_list(train_rows), Dataset.from_list(test_rows))
    assert baselines["majority answer"]["accuracy"] == pytest.approx(20.0)
    assert baselines["majority answer per type"]["accuracy"] == pytest.approx(60.0)
    assert baselines["majority answer per type"]["per_question_type"] == {"color": 0.0, "count": 100.0, "exist": 50.0}


def test_a_split_without_answers_is_only_counted():
    rows = questions(3).remove_columns(["answers", "question_type", "answer_type"]).to_list()
    unlabelled = Dataset.from_list([{**row, "answers": None} for row in rows])
    assert score_answers({0: "yes"}, unlabelled) == {"num_examples": 3}


def test_results_for_the_evaluation_server(tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"id": 7, "answer": "nét", "score": 0.5}\n{"id": 8, "answer": "2", "score": 1}\n'
    )
    predictions = read_predictions(tmp_path / "in.jsonl")
    write_vqa_results({record["id"]: record["answer"] for record in predictions}, tmp_path / "out.json")
    expected = [{"question_id": 7, "answer": "nét"}, {"question_id": 8, "answer": "2"}]
    assert json.loads((tmp_path / "out.json").read_text()) == expected


def test_predictions_come_back_and_are_named_when_missing(tmp_path):
    predictions = [{"id": 7, "answer": "nét", "score": 0.1}, {"id": "dev-0-1-2", "scores": [0.25, 1e-30]}]
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(tmp_path / "p.jsonl") == predictions
    with pytest.raises(FileNotFoundError, match="q.jsonl: no such file"):
        read_predictions(tmp_path / "q.jsonl")


def test_skipped_records_are_counted_and_listed(tmp_path):
    task = toy_task()
    task.skipped = ["a.json: question 3: bad", "a.json: question 9: worse"]
    record = train(task, toy_args(tmp_path / "some", max_steps=1))
    assert record["run"]["skipped_records"] == 2
    assert (tmp_path / "some" / "skipped.txt").read_text() == "a.json: question 3: bad\na.json: question 9: worse\n"
    assert train(toy_task(), toy_args(tmp_path / "none", max_steps=1))["run"]["skipped_records"] == 0
    assert not (tmp_path / "none" / "skipped.txt").exists()


def count_evaluations(monkeypatch):
    """The names of the splits that are evaluated from now on."""
    seen, run = [], loop.evaluate
    monkeypatch.setattr(
        loop, "evaluate", lambda task, model, split, *args: seen.append(split) or run(task, model, split, *args)
    )
    return seen


def test_the_same_weights_are_not_evaluated_twice(tmp_path, monkeypatch):
    seen = count_evaluations(monkeypatch)
    train(toy_task(), toy_args(tmp_path / "run", eval_steps=2, max_steps=4))
    assert seen == ["dev", "dev"]
    task = toy_task()
    task.model = type(task.model).from_pretrained(tmp_path / "run" / "best")
    metrics, again = evaluate(task, task.model, "dev", toy_args("unused"), Accelerator(cpu=True))
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["splits"]["dev"] == metrics
    written = read_predictions(tmp_path / "run" / "predictions_dev.jsonl")
    assert [record["answer"] for record in written] == [record["answer"] for record in again]


def test_evaluations_during_training_can_look_at_a_sample(tmp_path, monkeypatch):
    seen, task = count_evaluations(monkeypatch), toy_task()
    train(task, toy_args(tmp_path / "run", eval_steps=2, eval_samples=4, max_steps=4))
    assert seen == ["dev_sample", "dev_sample", "dev"]
    assert list(task.splits) == list(toy_task().splits)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["splits"]["dev"]["num_examples"] == 9
    with pytest.raises(ValueError, match="--eval_samples 0; expected more than 0"):
        toy_args(tmp_path, eval_samples=0)
