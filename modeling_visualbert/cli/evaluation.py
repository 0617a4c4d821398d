"""`visualbert evaluate` and `visualbert compare`."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from typing import Any

from .output import add_any_detector

_COLUMNS = {
    "image": "images, or of their paths",
    "question": "questions",
    "answer": "answers (VQA)",
    "text": "texts (NLVR2, classification)",
    "label": "what is right (NLVR2, VCR, classification)",
    "caption": "captions (pre-training)",
    "choices": "choices (VCR)",
    "rationales": "rationales (VCR)",
    "rationale_label": "the right rationale (VCR)",
    "objects": "classes of the boxes (VCR)",
    "sentence": "sentences (Flickr30k)",
    "phrases": "phrases of the sentences (Flickr30k)",
    "boxes": "boxes of the phrases (Flickr30k), or of the objects (VCR)",
}


def add_evaluation_commands(commands: Any) -> None:
    """Add the commands to the parser of `visualbert`."""
    help_text = "score a checkpoint of any task on a split, or predict where there are no labels"
    command = commands.add_parser("evaluate", help=help_text, description=help_text)
    command.add_argument(
        "--model", required=True, help="folder or Hub name of a checkpoint; published and bare ones are completed"
    )
    command.add_argument("--output_dir", required=True, help="folder for metrics.json, predictions and results")
    command.add_argument("--overwrite", action="store_true", help="replace the evaluation that output_dir holds")
    _add_data_options(command)
    _add_reading_options(command)
    _add_running_options(command)
    command.set_defaults(run=_evaluate)

    help_text = "do two predictions files of `visualbert evaluate` differ by more than chance? (paired bootstrap)"
    command = commands.add_parser("compare", help=help_text, description=help_text)
    command.add_argument("first", help="predictions_<split>.jsonl of one model, with its scores")
    command.add_argument("second", help="that of another model on the same split")
    command.add_argument(
        "--data_dir", help="official files with the labels, to score the predictions anew (those of earlier versions)"
    )
    command.add_argument("--split", help="with --data_dir: the split that was predicted")
    command.add_argument(
        "--subtask", choices=["answer", "rationale"], help="with --data_dir: the sub-task of VCR that was predicted"
    )
    command.add_argument("--samples", type=int, default=10_000, help="bootstrap samples (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="seed of the samples (default: %(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_compare)


def _add_data_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("data")
    group.add_argument("--data_dir", help="folder with the official files (default: the embedded corpus)")
    group.add_argument("--split", help="split to evaluate, as in the file names (embedded corpus: its test split)")
    group.add_argument(
        "--dataset_name", help="own data: Hub name or folder of a data set; --split names one of its splits"
    )
    group.add_argument("--dataset_config_name", help="own data: configuration of the data set")
    group.add_argument(
        "--test_file", help="own data: csv, tsv, json, jsonl or parquet file with a row for each example"
    )
    for name, what in _COLUMNS.items():
        group.add_argument(f"--{name}_column", help=f"own data: column of {what}")
    group.add_argument("--images_dir", help="folder with the images (default: data_dir; VCR: data_dir/vcr1images)")
    group.add_argument("--features_dir", help="feature store with the regions of all images, instead of images")
    group.add_argument("--region_encoder", help="where the checkpoint has none: region encoder to find regions with")
    group.add_argument("--tokenizer", help="for a bare checkpoint: BERT tokenizer, folder or Hub name")
    add_any_detector(group)
    group.add_argument("--max_eval_samples", type=int, help="evaluate only the first rows of the split")
    group.add_argument("--skip_bad_records", action="store_true", help="skip bad records and list them in skipped.txt")
    for name, default, what in (
        ("train_scenes", 8000, "images to train on"),
        ("val_scenes", 500, "images of the dev split"),
        ("test_scenes", 1000, "images of the test split"),
    ):
        group.add_argument(f"--{name}", type=int, default=default, help=f"embedded corpus: {what}")
    group.add_argument("--one_object", action="store_true", help="embedded corpus: one object per image (VQA only)")


def _add_reading_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "what the model reads", "by default what it was trained on, which checkpoints of this version say"
    )
    group.add_argument("--subtask", choices=["answer", "rationale"], help="VCR: what the model chooses")
    group.add_argument(
        "--rationale_model",
        help="VCR: checkpoint that chooses rationales, beside --model, which chooses answers: joint scores (Q->AR) and "
        "the leaderboard's file",
    )
    group.add_argument("--objects", choices=["mentioned", "all", "found"], help="VCR: objects that the model sees")
    group.add_argument("--positions", choices=["marked", "original"], help="Flickr30k: where a phrase is read")
    group.add_argument(
        "--stage", choices=["coco", "vqa", "nlvr2", "vcr", "flickr30k"], help="pre-training: the text that is masked"
    )
    group.add_argument("--probe_words", help="pre-training: file with words that are masked one by one")
    group.add_argument("--num_regions", type=int, help="keep only this many regions of each image")
    group.add_argument("--text_only", action="store_true", help="give the model no regions")
    group.add_argument(
        "--from_pixels", action="store_true", help="run the region encoder in every step instead of storing its regions"
    )


def _add_running_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("running")
    group.add_argument(
        "--batch_size", type=int, default=128, help="examples in one forward pass of a process (default: %(default)s)"
    )
    group.add_argument(
        "--num_workers",
        type=int,
        help="processes that prepare batches (default: with a GPU half of the cores, at most 8; without one 0)",
    )
    group.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    group.add_argument(
        "--mixed_precision",
        choices=["no", "bf16", "fp16"],
        help="precision of the forward passes (default: that of accelerate launch, or no)",
    )


def _evaluate(args: argparse.Namespace) -> None:
    _check_accelerate()
    from ..tasks.evaluate import EvaluateArgs, run_evaluation

    values = {name: value for name, value in vars(args).items() if name not in ("command", "run")}
    run_evaluation(EvaluateArgs(**values))


def _check_accelerate() -> None:
    if find_spec("accelerate") is None:
        raise ImportError('evaluation needs one more package: pip install "modeling-visualbert[train]"')


def _compare(args: argparse.Namespace) -> None:
    _check_accelerate()
    from ..tasks.compare import compare_predictions, comparison_table

    names = ("first", "second", "data_dir", "split", "subtask", "samples", "seed")
    compared = compare_predictions(**{name: getattr(args, name) for name in names})
    print(json.dumps(compared, indent=2) if args.json else comparison_table(compared))


__all__ = ["add_evaluation_commands"]
