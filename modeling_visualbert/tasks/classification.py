"""Classification as a task of the training loop: an image or two with a text -> one of any number of labels.

own tables, Hateful Memes, SNLI-VE, embedded corpus ──► rows ──► label ──► accuracy, macro F1, AUROC, calibration
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedModel

from ..checkpoints import trained_labels
from ..data.label_table import LabelTables, find_label_file
from ..data.tables import FILE_FLAGS
from ..features.batches import processor_arguments
from ..hub_code.modeling_visualbert import VisualBertForVisualReasoning
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..metrics.classification import best_threshold, classification_scores
from ..training.preparing import preparing_processes
from ..training.task import Batch, Predictions, Rows, Task, count_examples
from ..visualization import captioned
from .common import ClassArgs, corpus_folder, load_tokenizer, make_model, reads_corpus
from .nlvr2 import side_by_side
from .regions import prepare_images
from .tables import TaskData, given_columns, read_tables, reads_table

logger = logging.getLogger(__name__)

BEST_METRICS = ("accuracy", "macro_f1", "auroc")
ON_DEV = "dev"


@dataclass
class ClassificationArgs(ClassArgs):
    """Arguments of classification."""

    train_split: str = field(default="train", metadata={"help": "split to train on, as in the file names"})
    dev_split: str = field(default="dev", metadata={"help": "split that decides which weights are kept"})
    test_split: str | None = field(default=None, metadata={"help": "split that is scored or predicted at the end"})
    text_column: str | None = field(
        default=None, metadata={"help": "own data: column of texts (default: text, sentence or statement)"}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "own data: column of labels, by name or number (default: label or answer)"}
    )
    class_weights: str | None = field(
        default=None,
        metadata={
            "help": "`balanced`: in the loss all labels weigh the same, however many examples have them",
            "choices": ["balanced"],
        },
    )
    best_metric: str = field(
        default="accuracy",
        metadata={"help": "score on the dev split that decides which weights are kept", "choices": [*BEST_METRICS]},
    )
    threshold: str = field(
        default=ON_DEV,
        metadata={
            "help": "two labels: the second one is the answer if its probability is at least this; `dev` chooses what is best "
            "for best_metric (or for macro_f1, if that is auroc) on the dev split"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given_threshold(self)


def given_threshold(args: ClassificationArgs) -> float | None:
    """The threshold that was given as a number; None if it is chosen on the dev split.

    Raises:
        ValueError: It is neither.
    """
    try:
        value = None if args.threshold == ON_DEV else float(args.threshold)
    except ValueError:
        value = -1.0
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"--threshold {args.threshold}; expected a number in [0, 1], or {ON_DEV}")
    return value


def classification_task(args: ClassificationArgs, accelerator: Accelerator) -> Task:
    """Load data and model; the first process does what has to be done once.

    Raises:
        ValueError, FileNotFoundError: Arguments or files do not fit together.
    """
    with accelerator.main_process_first():
        tokenizer = load_tokenizer(args)
        trained = trained_labels(args.init_from, VisualBertForVisualReasoning)
        tables = label_tables(args, order=trained or ())
        data = load_label_data(args, tables)
        labels = tables.labels or []
        check_two_labels(args, labels, data.splits["dev"])
    processes = preparing_processes(accelerator)
    images, data = prepare_images(args, data, processes)
    with processes.main_first():
        weights = balanced_weights(data.splits["train"], len(labels)) if args.class_weights else None
        model = make_model(
            VisualBertForVisualReasoning,
            args,
            tokenizer,
            images,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            class_weights=weights,
            label_smoothing=args.label_smoothing,
        )
        # For those who have the model without its processor.
        model.config.task_options["num_images"] = tables.num_images
    if trained is not None and trained != labels:  # as many others would get their weights
        logger.warning("the %d labels of %s are given up for %d others", len(trained), args.init_from, len(labels))
        torch.nn.init.normal_(model.cls.weight, std=model.config.initializer_range)
        torch.nn.init.zeros_(model.cls.bias)
    processor = VisualBertProcessor(
        images.image_processor,
        tokenizer,
        task="nlvr2",
        num_images=tables.num_images,
        labels=labels,
        threshold=given_threshold(args),
        region_dim=model.config.visual_embedding_dim,
    )
    task = make_task(model, processor, data.splits, images.get, args.best_metric)
    task.images, task.skipped = images.paths, data.skipped
    if len(labels) == 2 and args.threshold == ON_DEV:
        metric = "accuracy" if args.best_metric == "accuracy" else "macro_f1"
        task.fit_threshold = partial(fit_threshold, processor, data.splits["dev"], metric)
    if images.paths:
        task.draw = partial(_draw, task)
    return task


def label_tables(args: ClassificationArgs, **known: Any) -> LabelTables:
    """The reader of the run's tables; `known`: labels and number of images of a checkpoint, or the order of its labels."""
    return LabelTables(**given_columns(args, "image_column", "text_column", "label_column"), **known)


def load_label_data(args: ClassificationArgs, tables: LabelTables) -> TaskData:
    """The splits and where their images are: of one's own table, of the files of a folder, or of the embedded corpus.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: A file is missing or bad.
    """
    if not reads_table(args):
        corpus = reads_corpus(args)
        folder = corpus_folder(args) / "snli_ve" if corpus else Path(args.data_dir or "")
        splits = {
            "train": args.train_split,
            "dev": args.dev_split,
            "test": args.test_split or ("test" if corpus else None),
        }
        files: dict[str, Any] = {
            FILE_FLAGS[role]: str(find_label_file(folder, name)) for role, name in splits.items() if name
        }
        data = read_tables(replace(args, data_dir=None, **files), tables, "images")
        data.images_dir = Path(args.images_dir or folder)
    else:
        data = read_tables(args, tables, "images", known_columns=("label",), look_through=tables.find_labels)
    if tables.undecided:
        logger.warning("left out %d rows without a gold label, as their annotators disagreed", len(tables.undecided))
    return replace(data, skipped=[*data.skipped, *tables.undecided])


def check_two_labels(args: ClassificationArgs, labels: Sequence[str], dev: Dataset) -> None:
    """
    Raises:
        ValueError: An argument has a meaning for two labels only, and there are others.
    """
    if given_threshold(args) is not None and len(labels) != 2:
        raise ValueError(f"--threshold {args.threshold} with {len(labels)} labels; it is for two: leave it out")
    if args.best_metric != "auroc":
        return
    if len(labels) != 2:
        raise ValueError(f"--best_metric auroc with {len(labels)} labels; expected two, or accuracy or macro_f1")
    if len(found := set(dev["label"][:])) != 2:
        raise ValueError(
            f"--best_metric auroc, but all {len(dev)} examples of the dev split have the label {labels[found.pop()]!r}; "
            "expected both, or accuracy or macro_f1"
        )


def balanced_weights(train: Dataset, num_labels: int) -> list[float]:
    """A weight for each label so that all labels weigh the same in sum and an example weighs 1 in the mean."""
    counts = Counter(train["label"][:])
    return [len(train) / (len(counts) * counts[label]) if counts[label] else 1.0 for label in range(num_labels)]


def make_task(
    model: VisualBertForVisualReasoning,
    processor: VisualBertProcessor,
    data: dict[str, Dataset],
    image_of: Callable[[str], Any] | None,
    best_metric: str = "accuracy",
) -> Task:
    """The task over loaded data; `image_of` gives the regions or the image of an image's key, None for text only."""
    labels = _names(processor)

    def collate(rows: Rows) -> Batch:
        images = None if image_of is None else [[image_of(key) for key in row["images"]] for row in rows]
        if images is not None and processor.num_images == 1:
            images = [only for (only,) in images]
        batch = dict(processor(text=[row["text"] for row in rows], **processor_arguments(images)))
        if all(row["label"] is not None for row in rows):
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch

    def predict(outputs: Any, rows: Rows) -> Predictions:
        found, scores = processor.post_process_visual_reasoning(outputs), processor.label_scores(outputs).tolist()
        return [
            {"id": row["identifier"], **result, "scores": all_scores}
            for row, result, all_scores in zip(rows, found, scores, strict=True)
        ]

    def score(predictions: Predictions, split: str) -> dict[str, Any]:
        return score_labels(predictions, data[split], labels)

    def score_each(predictions: Predictions, split: str) -> Predictions:
        return own_accuracies(predictions, data[split], labels)

    return Task(
        *("classification", model, processor, data, collate, predict, score, best_metric),
        score_each=score_each,
        count_items=count_examples,
    )


def fit_threshold(processor: VisualBertProcessor, dev: Dataset, metric: str, predictions: Predictions) -> Predictions:
    """Let a processor decide by the threshold that is best on the dev split, and decide the predictions for it anew."""
    truth = dict(zip(dev["identifier"][:], dev["label"][:], strict=True))
    scores = torch.tensor([record["scores"] for record in predictions], dtype=torch.float64)
    right = [truth[record["id"]] for record in predictions]
    processor.threshold = best_threshold(scores[:, 1].tolist(), right, metric)
    return [
        {**record, "label": _names(processor)[label], "score": record["scores"][label]}
        for record, label in zip(predictions, processor.decide_labels(scores).tolist(), strict=True)
    ]


def score_labels(predictions: Predictions, split: Dataset, labels: Sequence[str]) -> dict[str, Any]:
    """Metrics in percent ([`classification_scores`]), F1 by label too; only the count for a split without labels."""
    truth = _truth(split)
    if not truth:
        return {"num_examples": len(split)}
    found = classification_scores(
        [record["scores"] for record in predictions],
        [labels.index(record["label"]) for record in predictions],
        [truth[record["id"]] for record in predictions],
    )
    percent: dict[str, Any] = {
        name: 100.0 * found[name] for name in ("accuracy", "macro_f1", "auroc", "ece") if name in found
    }
    by_label = {labels[index]: 100.0 * value for index, value in found["f1"].items()}
    return {**percent, "per_label_f1": by_label, "num_examples": found["num_examples"]}


def own_accuracies(predictions: Predictions, split: Dataset, labels: Sequence[str]) -> Predictions:
    """For each prediction 100 if it is right, else 0; the texts about an image are a group."""
    truth = _truth(split)
    groups = dict(zip(split["identifier"][:], map(" ".join, split["images"][:]), strict=True))
    return [
        {
            "metrics": {"accuracy": 100.0 * (record["label"] == labels[truth[record["id"]]])},
            "group": groups[record["id"]],
        }
        for record in predictions
        if truth
    ]


def majority_baseline(task: Task, split: str) -> dict[str, dict[str, Any]]:
    """Metrics of always giving the most common label of the training data, by the name of the baseline."""
    counts = Counter(task.splits["train"]["label"][:])
    shares = [counts[label] / counts.total() for label in range(len(task.processor.labels))]
    label = task.processor.labels[shares.index(max(shares))]
    always = [{"id": key, "label": label, "scores": shares} for key in task.splits[split]["identifier"][:]]
    return {"majority label": score_labels(always, task.splits[split], task.processor.labels)}


def _names(processor: VisualBertProcessor) -> list[str]:
    assert processor.labels is not None
    return processor.labels


def _truth(split: Dataset) -> dict[Any, int]:
    pairs = zip(split["identifier"][:], split["label"][:], strict=True)
    return {key: label for key, label in pairs if label is not None}


def _draw(task: Task, model: PreTrainedModel, row: dict[str, Any], prediction: dict[str, Any]) -> Image.Image:
    """The image or images with the text, the prediction and the label."""
    lines = [row["text"], f"model: {prediction['label']} ({prediction['score']:.0%})"]
    if row["label"] is not None:
        lines[1] += f"   truth: {task.processor.labels[row['label']]}"
    return captioned(side_by_side(task, row["images"]), lines)


__all__ = [
    "ClassificationArgs",
    "classification_task",
    "label_tables",
    "load_label_data",
    "majority_baseline",
    "make_task",
    "own_accuracies",
    "score_labels",
]
