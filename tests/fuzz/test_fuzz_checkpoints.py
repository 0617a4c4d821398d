"""Checkpoints through every door: configurations, processors, tokenizers and weights that are damaged, lie or mean harm."""

import contextlib
import io
import os
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from accelerate import Accelerator
from campaign import attempt, examples, judge
from hypothesis import given, strategies
from mutations import mutate_json, mutate_safetensors, refer_elsewhere, repeat_key
from table_files import write_table
from tiny_checkpoints import save_checkpoint_and_image

from modeling_visualbert import VisualBertForQuestionAnswering, VisualBertProcessor
from modeling_visualbert.checkpoints import load_inner_region_encoder
from modeling_visualbert.cli import main
from modeling_visualbert.demo.checkpoint import Checkpoint
from modeling_visualbert.publish import push
from modeling_visualbert.tasks.vqa import VqaArgs, vqa_task

MUTATIONS = {
    "config.json": (mutate_json, mutate_json, mutate_json, repeat_key, refer_elsewhere),
    "processor_config.json": (mutate_json, mutate_json, repeat_key, refer_elsewhere),
    "tokenizer_config.json": (mutate_json, mutate_json, refer_elsewhere),
    "tokenizer.json": (mutate_json,),
    "model.safetensors": (mutate_safetensors,),
}


def by_command(*argv):
    """What a command prints, or its message as an error: one line, or a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(argv))
    if status:
        raise ValueError(err.getvalue().strip())
    return re.sub(r"(\.\d\d\d)\d+", r"\1", out.getvalue())  # numbers at other places in memory are rounded otherwise


def pushed(folder):
    """How many files a push would send; the code of the card, which takes a process of seconds, is not run."""
    target = Path(folder).with_name("repository")
    shutil.rmtree(target, ignore_errors=True)
    push.try_repository = lambda *_, **__: "printed"  # in this process alone, the attempt's
    push.build_repository(folder, target, "me/model")
    return len(list(target.rglob("*")))


def started(folder):
    """The sum of the weights that a training script makes of a checkpoint before its first step."""
    table = Path(folder).with_name("table.jsonl")
    write_table(table, [{"image": "image.png", "question": "Is there a red star?", "answer": "yes"}])
    files = {"train_file": str(table), "validation_file": str(table), "images_dir": str(table.parent)}
    args = VqaArgs(str(table.with_name("run")), init_from=folder, from_pixels=True, cpu=True, **files)
    model = vqa_task(args, Accelerator(cpu=True)).model
    return f"{sum(float(weights.double().sum()) for weights in model.parameters()):.3f}"


DOORS = {
    "ask": lambda folder: by_command(
        "ask", "--model", folder, f"{folder}/../image.png", "Is there a red star?", "--json"
    ),
    "demo": lambda folder: Checkpoint(folder).task,
    "convert": lambda folder: by_command("convert", folder, f"{folder}/../new", "--tokenizer", folder),
    "push": pushed,
    "init_from": started,
    "model": lambda folder: len(VisualBertForQuestionAnswering.from_pretrained(folder).state_dict()),
    "processor": lambda folder: len(VisualBertProcessor.from_pretrained(folder).answers or ()),
    "region encoder": lambda folder: len(load_inner_region_encoder(folder).state_dict()),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return save_checkpoint_and_image(tmp_path_factory.mktemp("world"), "fuzz")


@cache
def usual_of(door, folder):
    return attempt(lambda: DOORS[door](str(folder)))


@pytest.mark.parametrize("door", DOORS)
@examples(16)
@given(random=strategies.randoms(use_true_random=False))
def test_checkpoints(door, random, world):
    name = random.choice(list(MUTATIONS))
    folder, usual = world / "changed", usual_of(door, world / "vqa")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world / "vqa", folder, copy_function=os.link)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(random.choice(MUTATIONS[name])(content, random))
    # Weights are those that were saved, or none. Other files may say something else that is right.
    answers = (lambda answer: answer == usual.answer) if name == "model.safetensors" else None
    # A text that is too long for the `max_length` of a processor is named by itself.
    judge(
        f"checkpoints: {door}", attempt(lambda: DOORS[door](str(folder))), [str(folder), "question 0"], usual, answers
    )
