"""NLVR2 as a task of the training loop: official files -> sentences and pairs of images -> truth -> accuracy, consistency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedModel

from ..data.files import index_images_by_name
from ..data.nlvr2 import find_nlvr2_file, load_nlvr2
from ..data.reasoning_table import read_reasoning_table
from ..features.batches import processor_arguments
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_visualbert import VisualBertForVisualReasoning
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..metrics.nlvr2 import nlvr2_accuracy, sentence_of
from ..metrics.submissions import write_nlvr2_predictions
from ..training.preparing import preparing_processes
from ..training.task import Batch, Predictions, Rows, Task, count_examples
from ..visualization import captioned, grid
from .common import ClassArgs, check_labels, corpus_folder, load_tokenizer, make_model, reads_corpus
from .regions import prepare_images
from .tables import TaskData, first_rows, given_columns, mentioning_own_data, read_tables, reads_table


@dataclass
class Nlvr2Args(ClassArgs):
    """Arguments of NLVR2 fine-tuning."""

    train_split: str = field(default="train", metadata={"help": "split to train on, as in the file names"})
    dev_split: str = field(default="dev", metadata={"help": "split that decides which weights are kept"})
    test_split: str | None = field(default="test1", metadata={"help": "split that is scored at the end; '' for none"})
    text_column: str | None = field(
        default=None, metadata={"help": "own data: column of sentences (default: text, sentence or statement)"}
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "own data: column that says whether the sentence is true (default: label or answer)"},
    )
    second_segment_std: float | None = field(
        default=None,
        metadata={
            "help": "draw the segment of the second image's regions anew with this standard deviation: stages with one "
            "image never train it, and a small one is learned slowly (default: leave it)"
        },
    )


def nlvr2_task(args: Nlvr2Args, accelerator: Accelerator) -> Task:
    """Load data and model; the first process does what has to be done once.

    Raises:
        ValueError, FileNotFoundError: Arguments or files do not fit together.
    """
    data = load_nlvr2_data(args)
    check_nlvr2_labels(data.splits, args)
    with accelerator.main_process_first():
        tokenizer = load_tokenizer(args)
    processes = preparing_processes(accelerator)
    images, data = prepare_images(args, data, processes)
    with processes.main_first():
        labels = {0: "False", 1: "True"}
        model = make_model(
            VisualBertForVisualReasoning,
            args,
            tokenizer,
            images,
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
            class_weights=None,  # init_from may have some, for labels of its own
            label_smoothing=args.label_smoothing,
        )
    if args.second_segment_std is not None:
        segments = model.visual_bert.embeddings.visual_token_type_embeddings.weight
        generator = torch.Generator().manual_seed(args.seed)
        with torch.no_grad():
            segments[1].normal_(0.0, args.second_segment_std, generator=generator)
    processor = VisualBertProcessor(
        images.image_processor, tokenizer, task="nlvr2", region_dim=model.config.visual_embedding_dim
    )
    task = make_task(model, processor, data.splits, images.get)
    task.images, task.skipped = images.paths, data.skipped
    task.write_results = None if reads_table(args) else write_results  # the official script knows no other ids
    if images.paths:
        task.draw = partial(_draw, task)
    return task


def load_nlvr2_data(args: Nlvr2Args) -> TaskData:
    """The splits and where their images are: of one's own table, of the official files, or of the embedded corpus."""
    if reads_table(args):
        columns = given_columns(args, "image_column", "text_column", "label_column")
        return read_tables(args, partial(read_reasoning_table, **columns), "images", known_columns=("label",))
    folder = corpus_folder(args) / "nlvr2" if reads_corpus(args) else Path(args.data_dir or "")
    skipped: list[str] | None = [] if args.skip_bad_records else None
    splits = {"train": args.train_split, "dev": args.dev_split, "test": args.test_split}
    names = {role: split for role, split in splits.items() if split}
    with mentioning_own_data(folder, "images (two), text and label"):
        files = {role: find_nlvr2_file(folder, split) for role, split in names.items()}
    data = {role: load_nlvr2(file, skipped=skipped) for role, file in files.items()}
    return first_rows(
        TaskData(data, names, "images", index_images_by_name, Path(args.images_dir or folder), skipped or []), args
    )


def check_nlvr2_labels(data: dict[str, Dataset], args: Nlvr2Args) -> None:
    """
    Raises:
        ValueError: The train or dev split has no labels; the message names its file.
    """
    if reads_table(args):  # it was refused when it was read
        return
    folder = Path(args.data_dir or "")
    check_labels(data, args, ["label"], lambda split, column: f"no {column!r} in {find_nlvr2_file(folder, split)}")


def make_task(
    model: VisualBertForVisualReasoning,
    processor: VisualBertProcessor,
    data: dict[str, Dataset],
    image_of: Callable[[str], Any] | None,
) -> Task:
    """The task over loaded data; `image_of` gives the regions or the image of an image name, None for text only."""

    def collate(rows: Rows) -> Batch:
        images = None if image_of is None else [[image_of(name) for name in row["images"]] for row in rows]
        batch = dict(processor(text=[row["sentence"] for row in rows], **processor_arguments(images)))
        if all(row["label"] is not None for row in rows):
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch

    def predict(outputs: Any, rows: Rows) -> Predictions:
        found = processor.post_process_visual_reasoning(outputs)
        return [{"id": row["identifier"], **result} for row, result in zip(rows, found, strict=True)]

    def score(predictions: Predictions, split: str) -> dict[str, Any]:
        return score_sentences({record["id"]: record["label"] for record in predictions}, data[split])

    def score_each(predictions: Predictions, split: str) -> Predictions:
        return own_accuracies({record["id"]: record["label"] for record in predictions}, data[split])

    return Task(
        *("nlvr2", model, processor, data, collate, predict, score, "accuracy"),
        score_each=score_each,
        count_items=count_examples,
    )


def score_sentences(labels: dict[str, str], split: Dataset) -> dict[str, Any]:
    """Official accuracy and consistency in percent; only the count for a split without labels."""
    truth = _truth(split)
    if not truth:
        return {"num_examples": len(split)}
    scored = nlvr2_accuracy(labels, truth, _groups(split))
    percent = {name: 100.0 * scored[name] for name in ("accuracy", "consistency")}
    return {**percent, "num_examples": scored["num_examples"]}


def own_accuracies(labels: dict[str, str], split: Dataset) -> Predictions:
    """For each prediction 100 if it is right, else 0; the image pairs that a sentence is about are a group."""
    truth, groups = _truth(split), _groups(split)
    if truth.keys() != labels.keys():  # without labels, or with some only
        return []
    return [
        {"metrics": {"accuracy": 100.0 * (label == truth[key])}, "group": groups[key]} for key, label in labels.items()
    ]


def _groups(split: Dataset) -> dict[Any, str]:
    """What the examples with the same sentence have in common: in one's own tables the sentence."""
    if "group" in split.column_names:
        return dict(zip(split["identifier"][:], split["group"][:], strict=True))
    return {identifier: sentence_of(identifier) for identifier in split["identifier"][:]}


def _truth(split: Dataset) -> dict[str, str]:
    return {row["identifier"]: str(bool(row["label"])) for row in split if row["label"] is not None}


def write_results(predictions: Predictions, path: Path) -> None:
    """Write the file for the official script."""
    write_nlvr2_predictions({record["id"]: record["label"] for record in predictions}, path.with_suffix(".csv"))


def _draw(task: Task, model: PreTrainedModel, row: dict[str, Any], prediction: dict[str, Any]) -> Image.Image:
    """The two images side by side with the sentence, the prediction and the label."""
    lines = [row["sentence"], f"model: {prediction['label']} ({prediction['score']:.0%})"]
    if row["label"] is not None:
        lines[1] += f"   truth: {bool(row['label'])}"
    return captioned(side_by_side(task, row["images"]), lines)


def side_by_side(task: Task, keys: Sequence[str]) -> Image.Image:
    """Images of a task by their keys, in a row."""
    return grid([load_image(task.images[key]).convert("RGB") for key in keys], columns=len(keys))
