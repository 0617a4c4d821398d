"""Every recipe parses for its script and says what the authors' appendix and configurations say."""

from pathlib import Path

import pytest
import yaml

from modeling_visualbert.tasks.classification import ClassificationArgs
from modeling_visualbert.tasks.flickr30k import Flickr30kArgs
from modeling_visualbert.tasks.nlvr2 import Nlvr2Args
from modeling_visualbert.tasks.pretraining import PretrainingArgs
from modeling_visualbert.tasks.vcr import VcrArgs
from modeling_visualbert.tasks.vqa import VqaArgs
from modeling_visualbert.training.args import parse_args, read_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPES = EXAMPLES / "recipes"

# The authors' 10 epochs over captions are 50 over images, which have five captions each.
CAPTIONS = {"stage": "coco", "evals_per_epoch": 0.2}
# Recipe: what it is for, batch, peak learning rate, epochs, gradient clip.
PAPER = {
    "pretrain_coco_vqa": (CAPTIONS, 48, 5e-5, 50, 1.0),
    "pretrain_coco_nlvr2": (CAPTIONS, 64, 5e-5, 50, 1.0),
    "pretrain_coco_vcr": (CAPTIONS, 128, 1e-4, 50, 1.0),
    "pretrain_coco_flickr30k": (CAPTIONS, 32, 5e-5, 50, 1.0),
    "pretrain_vqa": ({"stage": "vqa"}, 64, 5e-5, 10, 1.0),
    "pretrain_nlvr2": ({"stage": "nlvr2"}, 64, 5e-5, 10, 1.0),
    "pretrain_vcr": ({"stage": "vcr", "warmup_ratio": 0.1879}, 32, 5e-5, 1, 1.0),
    "pretrain_flickr30k": ({"stage": "flickr30k"}, 32, 5e-5, 10, 1.0),
    "vqa_finetune": ({"answers": "pythia"}, 64, 2e-5, 10, 0.25),
    "nlvr2_finetune": ({}, 64, 2e-5, 10, 1.0),
    "vcr_finetune_answer": ({"subtask": "answer"}, 32, 2e-5, 8, 1.0),
    "vcr_finetune_rationale": ({"subtask": "rationale"}, 32, 2e-5, 12, 1.0),
    "flickr30k_finetune": ({"positions": "original"}, 32, 2e-5, 5, 1.0),
}
SHARED = {"warmup_ratio": 0.1, "weight_decay": 0.01, "schedule": "linear", "dropout": 0.1, "patience": 3}
CORPUS = ["classification_corpus", "flickr30k_corpus", "nlvr2_corpus", "pretraining_corpus", "vcr_corpus", "vqa_corpus"]
ON_REQUEST = ["vqa_grid_corpus", "vqa_clip_vil", "vqa_photos"]  # no script's default, and not of the paper
SCRIPTS = {
    "vqa": VqaArgs,
    "nlvr2": Nlvr2Args,
    "classification": ClassificationArgs,
    "vcr": VcrArgs,
    "flickr30k": Flickr30kArgs,
    "pretrain": PretrainingArgs,
    "pretraining": PretrainingArgs,
}


def args_of(name, *flags):
    """What a script gets of `--recipe`."""
    argv = ["--output_dir", "run", "--recipe", str(RECIPES / f"{name}.yaml"), "--data_dir", "data", *flags]
    return parse_args(SCRIPTS[name.split("_")[0]], "", argv)


def test_no_recipe_is_left_out():
    assert sorted(path.stem for path in RECIPES.iterdir()) == sorted([*PAPER, *CORPUS, *ON_REQUEST])


@pytest.mark.parametrize("name", [*PAPER, *CORPUS, *ON_REQUEST])
def test_every_value_reaches_the_arguments(name):
    args = args_of(name)
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert {key: getattr(args, key) for key in values} == values


@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper_say_what_the_paper_says(name):
    purpose, batch, rate, epochs, clip = PAPER[name]
    args = args_of(name)
    assert (args.batch_size, args.learning_rate, args.epochs, args.max_grad_norm) == (batch, rate, epochs, clip)
    expected = {**SHARED, **purpose}
    assert {key: getattr(args, key) for key in expected} == expected
    assert args.adam_beta2 == 0.999  # BERT-Adam
    assert args.init_from is None  # a path of the user's


def test_the_recipe_of_clip_vil_says_what_its_authors_command_says():
    args = args_of("vqa_clip_vil")
    assert (args.batch_size, args.learning_rate, args.epochs, args.warmup_ratio) == (4 * 8 * 8, 5e-5, 5, 0.05)
    assert args.from_pixels and args.train_region_encoder and args.backbone_learning_rate < args.learning_rate
    assert args.grid_backbone.startswith("openai/clip") and args.answers == "pythia"


@pytest.mark.parametrize("name", [name for name in PAPER if name.startswith(("pretrain", "vcr"))])
def test_stage_or_sub_task_is_written_down(name):
    written = read_recipe(RECIPES / f"{name}.yaml", SCRIPTS[name.split("_")[0]])
    assert written.get("stage") or written.get("subtask")


def test_flags_override_a_recipe():
    args = args_of("vcr_finetune_rationale", "--epochs", "2", "--subtask", "answer")
    assert (args.epochs, args.subtask, args.batch_size) == (2.0, "answer", 32)


@pytest.mark.parametrize("name", CORPUS)
def test_a_script_without_data_uses_the_recipe_of_the_corpus(name):
    task = name.removesuffix("_corpus")
    source = (EXAMPLES / f"run_{task}.py").read_text()
    assert f'"recipes" / "{name}.yaml"' in source
    assert f"{SCRIPTS[task].__name__}," in source


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("classification_corpus", "vqa"),
        ("nlvr2_corpus", "vqa"),
        ("vcr_corpus", "vqa"),
        ("pretraining_corpus", "flickr30k"),
    ],
)
def test_corpus_runs_that_need_it_start_from_the_model_that_make_has_made(name, start):
    makefile = (EXAMPLES.parent / "Makefile").read_text()
    assert args_of(name).init_from == f"runs/{start}/best"
    targets = [line.split(":") for line in makefile.splitlines() if f"runs/{start}/metrics.json ##" in line]
    assert any(name.removesuffix("_corpus") in made.split() for made, *_ in targets)
    assert f"\nruns/{start}/metrics.json:\n\t$(MAKE) {start}\n" in makefile
