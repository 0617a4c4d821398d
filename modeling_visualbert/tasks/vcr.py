"""VCR as two tasks of the training loop: official files -> question, four choices, tagged objects -> choice -> accuracy.

Q->A chooses an answer. QA->R chooses a rationale; its context is the question followed by the correct answer.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedModel

from ..data.choice_table import Readings, find_readings, read_choice_table
from ..data.columns import column_of
from ..data.table_images import TableImages
from ..data.table_stream import StreamedRows
from ..data.tables import Table
from ..data.vcr import NUM_CHOICES, TAG, AllMetadata, load_vcr, read_all_metadata, read_metadata
from ..features.batches import processor_arguments
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_region_encoder import RegionEncoder
from ..hub_code.modeling_visualbert import VisualBertForMultipleChoice
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..metrics.submissions import write_vcr_leaderboard
from ..metrics.vcr import choice_accuracy, leaderboard_accuracy
from ..training.args import TrainArgs
from ..training.evaluation import evaluate, read_predictions, write_predictions
from ..training.preparing import preparing_processes
from ..training.sharding import class_of
from ..training.task import Batch, Predictions, Rows, Task, count_examples
from ..visualization import captioned, draw_regions
from .common import ClassArgs, check_labels, corpus_folder, load_tokenizer, make_model, reads_corpus
from .regions import Boxes, prepare_images, reads_objects
from .tables import TaskData, first_rows, given_columns, mentioning_own_data, read_tables, reads_table

logger = logging.getLogger(__name__)

SUBTASKS = ("answer", "rationale")
RATIONALE_COLUMNS = ("rationales_column", "rationale_label_column")
_OF_LABELS = ("choices_column", "label_column", "rationales", *RATIONALE_COLUMNS)


@dataclass
class VcrArgs(ClassArgs):
    """Arguments of VCR fine-tuning."""

    subtask: str = field(
        default="both",
        metadata={
            "help": "what is chosen: answer (Q->A), rationale (QA->R), or both, by one model each; of own data answer unless "
            "rationale is given",
            "choices": [*SUBTASKS, "both"],
        },
    )
    score_with: str | None = field(
        default=None, metadata={"help": "output_dir of the other sub-task, to score both together"}
    )
    train_split: str = field(default="train", metadata={"help": "split to train on, as in the file names"})
    dev_split: str = field(default="val", metadata={"help": "split that decides which weights are kept"})
    test_split: str | None = field(default=None, metadata={"help": "split that is scored or predicted at the end"})
    objects: str = field(
        default="mentioned",
        metadata={
            "help": "objects the model sees: those that the texts mention, or all (own data with boxes: all of a row), or the "
            "regions that the region encoder finds (own data, in any case without boxes)",
            "choices": ["mentioned", "all", "found"],
        },
    )
    question_column: str | None = field(
        default=None, metadata={"help": "own data: column of questions (default: question)"}
    )
    choices_column: str | None = field(
        default=None, metadata={"help": "own data: column of choices (default: choices)"}
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "own data: column of the right choice, as number, text or letter (default: label or answer)"},
    )
    rationales_column: str | None = field(
        default=None,
        metadata={"help": "own data with --subtask rationale: column of rationales (default: rationales)"},
    )
    rationale_label_column: str | None = field(
        default=None,
        metadata={"help": "own data with --subtask rationale: column of the right one (default: rationale_label)"},
    )
    objects_column: str | None = field(
        default=None,
        metadata={"help": "own data: column of the classes of the boxes (default: objects, if there is one)"},
    )
    boxes_column: str | None = field(
        default=None, metadata={"help": "own data: column of boxes, in pixels (default: boxes, if there is one)"}
    )
    whole_image: bool = field(default=True, metadata={"help": "region 0 is the whole image, as the authors have it"})
    alignment: str = field(
        default="subword",
        metadata={
            "help": "positions that name a region: of its word pieces, or as the authors' code has them",
            "choices": ["subword", "original"],
        },
    )
    freeze_detector: str | None = field(
        default=None,
        metadata={
            "help": "with --train_region_encoder: train the head of VCR's detector and keep its backbone as it is, with the "
            "batch norm statistics it has (running) or those of each batch (batch: the authors' code in the torch of its "
            "time); by default all of it is trained",
            "choices": ["running", "batch"],
        },
    )
    max_length: int = field(default=128, metadata={"help": "longest text in word pieces; longer ones lose their front"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.freeze_detector is not None and not self.train_region_encoder:
            raise ValueError(
                "--freeze_detector needs --train_region_encoder: without it all of the detector stays as it is"
            )
        if self.num_regions is not None and not reads_table(self):
            raise ValueError("--num_regions: the regions of VCR are the objects of its metadata")
        if reads_table(self):
            if self.score_with is not None:
                raise ValueError("--score_with: own data has no leaderboard; leave it out")
            if self.subtask == "both":  # own data needs to have no rationales
                self.subtask = "answer"
            if self.subtask == "answer" and (given := given_columns(self, *RATIONALE_COLUMNS)):
                raise ValueError(f"--{next(iter(given))} chooses rationales; expected it with --subtask rationale")
        elif self.objects == "found":
            raise ValueError("--objects found: official files name objects; expected mentioned or all, or own data")


def vcr_task(args: VcrArgs, accelerator: Accelerator, labels_of: str | None = None) -> Task:
    """Load data and model; the first process does what has to be done once.

    Args:
        args: The run's arguments.
        accelerator: Where it runs.
        labels_of: Sub-tasks whose labels have to be there, `both` if another one is trained later (default: that of `args`).

    Raises:
        ValueError, FileNotFoundError: Arguments or files do not fit together.
    """
    data = load_vcr_data(args)
    check_vcr_labels(data.splits, args, labels_of or args.subtask)
    if finds_regions(data):
        args = replace(args, objects="found")  # evaluation does the same
    with accelerator.main_process_first():
        tokenizer = load_tokenizer(args)
    processes = preparing_processes(accelerator)
    images, data = prepare_images(args, data, processes, data.boxes)
    with processes.main_first():
        _freeze_backbone(images.encoder, args)
        model = make_model(
            *(VisualBertForMultipleChoice, args, tokenizer, images), num_labels=1, label_smoothing=args.label_smoothing
        )
    processor = VisualBertProcessor(
        images.image_processor,
        tokenizer,
        task="vcr",
        max_length=args.max_length,
        region_dim=model.config.visual_embedding_dim,
        alignment=args.alignment,
        whole_image=args.whole_image and not finds_regions(data),
    )
    has_polygons = reads_objects(images.encoder) and not reads_table(args)
    polygons_of = partial(object_polygons, data.images_dir) if has_polygons else None
    task = make_task(model, processor, data.splits, images.get, args.subtask, polygons_of)
    task.images, task.skipped = images.paths, data.skipped
    if images.paths:
        task.draw = partial(_draw, task)
    return task


def _tell_numbers_of_choices(counts: Mapping[int, int]) -> None:
    """Say it, as a row that lacks a choice by mistake looks like one that has fewer."""
    if len(counts) > 1:
        listed = ", ".join(f"{counts[number]} of {number}" for number in sorted(counts))
        logger.warning("questions have different numbers of choices: %s; what some lack is masked", listed)


def _freeze_backbone(encoder: RegionEncoder | None, args: VcrArgs) -> None:
    """Apply --freeze_detector to the configuration from which the model is made."""
    if args.freeze_detector is None:
        return
    if encoder is None or not reads_objects(encoder):
        kind = "no region encoder" if encoder is None else type(encoder).__name__
        raise ValueError(f"--freeze_detector {args.freeze_detector}: this run has {kind}; expected the detector of VCR")
    encoder.config.freeze_backbone = True
    encoder.config.norm_statistics = args.freeze_detector


def load_vcr_data(args: Any) -> TaskData:
    """The splits and where their images are: of one's own table, of the official files, or of the embedded corpus."""
    if reads_table(args):
        return _load_table(args)
    folder = corpus_folder(args) / "vcr" if reads_corpus(args) else Path(args.data_dir or "")
    images_dir = Path(args.images_dir or folder / "vcr1images")
    skipped: list[str] | None = [] if args.skip_bad_records else None
    splits = {
        "train": args.train_split,
        "dev": args.dev_split,
        "test": args.test_split or ("test" if reads_corpus(args) else None),
    }
    names = {role: split for role, split in splits.items() if split}
    with mentioning_own_data(folder, "image, question, choices and label"):
        files = {role: _annotations_file(folder, split) for role, split in names.items()}
    data = {role: load_vcr(file, images_dir, args.objects, skipped=skipped) for role, file in files.items()}
    boxes = ObjectBoxes(data, files, images_dir)
    return first_rows(TaskData(data, names, "image", image_paths, images_dir, skipped or [], boxes), args)


def _annotations_file(folder: Path, split: str) -> Path:
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _load_table(args: Any) -> TaskData:
    """One's own table. The regions are those of its boxes; or, if it has none or they are not wanted, those that are found."""
    columns = given_columns(args, "image_column", "question_column", "choices_column", "label_column")
    columns |= given_columns(args, "objects_column", "boxes_column", *RATIONALE_COLUMNS)
    boxes: dict[str, list[list[float]]] = {}
    columns["rationales"] = args.subtask == "rationale"
    if args.streaming:
        return _stream_table(args, columns)
    data = read_tables(args, partial(read_choice_table, image_boxes=boxes, **columns), "image")
    given = (split[f"{args.subtask}_choices"][:] for split in data.splits.values())
    _tell_numbers_of_choices(Counter(map(len, chain.from_iterable(given))))
    has_boxes = [split[0]["boxes"] is not None for split in data.splits.values()]
    if args.objects == "found" or not any(has_boxes):
        splits = {role: _without_objects(split) for role, split in data.splits.items()}
        return replace(data, splits=splits)
    if not all(has_boxes):
        raise ValueError(
            f"no boxes in split {list(data.splits)[has_boxes.index(False)]}, but others have some; expected all or none, or "
            "--objects found"
        )
    if args.features_dir is not None:
        raise ValueError(
            "--features_dir: stored regions are not those of the boxes; expected --objects found, or images"
        )
    if args.num_regions is not None:
        raise ValueError("--num_regions: the regions are those of the boxes; expected --objects found")
    return replace(data, boxes=boxes)


def _stream_table(args: Any, columns: Mapping[str, Any]) -> TaskData:
    """The same about regions that are found: boxes are checked against all images, which are not looked at before training.

    Raises:
        ValueError: There are boxes, and nothing says to leave them out.
    """
    streamed: dict[str, Readings] = {}
    of_labels = {name: value for name, value in columns.items() if name in _OF_LABELS}

    def read(table: Table, images: TableImages, **how: Any) -> Dataset:
        if args.objects != "found" and {"boxes", args.boxes_column} & {*table.rows.column_names}:
            raise ValueError(f"{table.name}: --streaming reads no boxes; expected --objects found, or the table whole")
        return read_choice_table(table, images, {}, **columns, with_boxes=False, streamed=streamed, **how)

    def look_through(tables: Iterable[Table]) -> None:
        name, readings = find_readings(tables, **of_labels)
        streamed[name] = readings
        _tell_numbers_of_choices(readings[args.subtask].numbers_of_choices)

    return read_tables(args, read, "image", known_columns=(f"{args.subtask}_label",), look_through=look_through)


def _without_objects(split: Dataset) -> Dataset:
    """The same rows about all regions of their images.

    Raises:
        ValueError: A text names an object.
    """
    for row in split:
        texts = (row["question"], *row["answer_choices"], *row.get("rationale_choices", ()))
        if any(TAG.fullmatch(word) for text in texts for word in text):
            raise ValueError(f"--objects found: {row['annot_id']!r} names objects; expected texts without tags")
    nothing = {"objects": [[]] * len(split), "object_ids": [None] * len(split), "boxes": [None] * len(split)}
    columns = {name: nothing.get(name, split[name][:]) for name in split.column_names}
    return Dataset.from_dict(columns, features=split.features)


def finds_regions(data: TaskData) -> bool:
    """Whether the regions are those that the region encoder finds, as nothing says where objects are."""
    whole = (split for split in data.splits.values() if not isinstance(split, StreamedRows))  # streams name no objects
    return all(split[0]["object_ids"] is None for split in whole)


def check_vcr_labels(data: dict[str, Dataset], args: VcrArgs, subtask: str) -> None:
    """
    Raises:
        ValueError: The train or dev split lacks labels of what is chosen; the message names its file.
    """
    if reads_table(args):  # it was refused when it was read
        return
    # The context of a rationale is the question with the right answer.
    columns = ["answer_label"] if subtask == "answer" else ["answer_label", "rationale_label"]
    folder = Path(args.data_dir or "")
    check_labels(data, args, columns, lambda split, column: f"no {column!r} in {folder / split}.jsonl")


class ObjectBoxes(Mapping[str, Boxes]):
    """Boxes in pixels by image: the whole image, then every object of its metadata. Nothing is read before one is asked for:
    stored regions are described already.

    Args:
        splits: The rows.
        files: Their annotation files.
        images_dir: Folder of the metadata.
    """

    def __init__(self, splits: Mapping[str, Dataset], files: Mapping[str, Path], images_dir: Path):
        self._splits, self._files, self._images_dir = splits, files, images_dir

    @cached_property
    def _places(self) -> dict[str, tuple[AllMetadata, str]]:
        """Where the boxes of an image are, and under which name."""
        places: dict[str, tuple[AllMetadata, str]] = {}
        for role, split in self._splits.items():
            metadata = read_all_metadata(self._files[role], self._images_dir)
            columns = (column_of(split, name).to_pylist() for name in ("image", "metadata"))
            places |= {image: (metadata, name) for image, name in zip(*columns, strict=True)}
        return places

    def __getitem__(self, image: str) -> Boxes:
        metadata, name = self._places[image]
        found = metadata.of(name, name)
        return [[0.0, 0.0, float(found["width"]), float(found["height"])], *found["boxes"]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def object_polygons(images_dir: Path, row: dict[str, Any]) -> list[list[list[list[float]]]]:
    """What outlines each object of a row: polygons of points x, y in pixels."""
    outlines = read_metadata(images_dir / row["metadata"]).segms
    return [outlines[index] for index in row["object_ids"]]


def image_paths(images_dir: Path, wanted: Mapping[str, Collection[str]]) -> dict[str, Path]:
    """The image files in a folder, by their names in the records, whichever splits need them."""
    names = set().union(*wanted.values())
    return {name: path for name in names if (path := images_dir / name).is_file()}


def make_task(
    model: VisualBertForMultipleChoice,
    processor: VisualBertProcessor,
    data: dict[str, Dataset],
    image_of: Callable[[str], Any] | None,
    subtask: str,
    polygons_of: Callable[[dict[str, Any]], list] | None = None,
) -> Task:
    """The task over loaded data; `image_of` gives the regions (whole image, then all objects) or the image of an image
    name, None for text only. `polygons_of` gives the outlines of a row's objects, for a detector that reads them."""

    def collate(rows: Rows) -> Batch:
        batch = encode_choices(
            processor,
            rows,
            contexts=[context_of(row, subtask) for row in rows],
            choices=[row[f"{subtask}_choices"] for row in rows],
            image_of=image_of,
            polygons_of=polygons_of,
        )
        if rows[0][f"{subtask}_label"] is not None:
            batch["labels"] = torch.tensor([row[f"{subtask}_label"] for row in rows])
        return batch

    def predict(outputs: Any, rows: Rows) -> Predictions:
        found = processor.post_process_multiple_choice(outputs)
        return [{"id": row["annot_id"], **result} for row, result in zip(rows, found, strict=True)]

    def score(predictions: Predictions, split: str) -> dict[str, Any]:
        labels = dict(zip(data[split]["annot_id"][:], data[split][f"{subtask}_label"][:], strict=True))
        if None in labels.values():
            return {"num_examples": len(labels)}
        scores, truth = zip(*((record["scores"], labels[record["id"]]) for record in predictions), strict=True)
        longest = max(map(len, scores))
        padded = [[*row, *[-math.inf] * (longest - len(row))] for row in scores]
        accuracy = choice_accuracy(padded, truth, num_choices=longest)
        return {"accuracy": 100.0 * accuracy, "num_examples": len(truth)}

    return Task(
        *(f"vcr_{subtask}", model, processor, data, collate, predict, score, "accuracy"),
        score_each=lambda predictions, split: own_accuracies(predictions, data[split], subtask),
        count_items=count_examples,
    )


def own_accuracies(predictions: Predictions, split: Dataset, subtask: str) -> Predictions:
    """For each prediction 100 if it is right, else 0; the questions about an image are a group."""
    columns = (split[name][:] for name in ("annot_id", f"{subtask}_label", "image"))
    rows = {key: (label, image) for key, label, image in zip(*columns, strict=True)}
    if any(label is None for label, _ in rows.values()):
        return []
    own = ((record["choice"], *rows[record["id"]]) for record in predictions)
    return [{"metrics": {"accuracy": 100.0 * (choice == label)}, "group": image} for choice, label, image in own]


def own_joint_accuracies(predictions: Predictions, split: Dataset) -> Predictions:
    """The same for predictions of both sub-tasks, in which `rationales` are scores given each answer."""
    columns = (split[name][:] for name in ("annot_id", "answer_label", "rationale_label", "image"))
    rows = {key: row for key, *row in zip(*columns, strict=True)}
    if any(None in row for row in rows.values()):
        return []
    own = []
    for record in predictions:
        answer, rationale, image = rows[record["id"]]
        given = record["rationales"][answer]
        right = {"answer": record["choice"] == answer, "rationale": given.index(max(given)) == rationale}
        right["joint"] = all(right.values())
        own.append({"metrics": {name: 100.0 * value for name, value in right.items()}, "group": image})
    return own


def rationales_of_every_answer(task: Task, args: VcrArgs, accelerator: Accelerator) -> None:
    """Write `rationales_<split>.jsonl` for every split but train; see [`rationale_scores`]."""
    output_dir = Path(args.output_dir)
    model = class_of(task.model).from_pretrained(output_dir / "best").to(accelerator.device)
    for split in task.splits:
        if split == "train":
            continue
        scores = rationale_scores(task, model, split, args, accelerator)
        if accelerator.is_main_process:
            records = [{"id": key, "scores": rows} for key, rows in scores.items()]
            write_predictions(output_dir / f"rationales_{split}.jsonl", records)


def rationale_scores(
    task: Task, model: PreTrainedModel, split: str, args: TrainArgs, accelerator: Accelerator
) -> dict[str, list[list[float]]]:
    """Scores of the rationales of each question given each of the four answers, as the leaderboard wants; by `annot_id`."""
    scores: dict[str, list[list[float]]] = defaultdict(list)
    data = task.splits[split]
    for answer in range(NUM_CHOICES):
        given = replace(task, splits={**task.splits, split: data.add_column("given_answer", [answer] * len(data))})
        for record in evaluate(given, model, split, args, accelerator)[1]:
            scores[record["id"]].append(record["scores"])
    return dict(scores)


def joint_scores(
    answer_dir: Path, rationale_dir: Path, data: Dataset, split: str, output_dir: Path
) -> dict[str, float]:
    """Write `leaderboard_<split>.csv` from the predictions of both sub-tasks and score it; see [`score_both`]."""
    answers = {record["id"]: record["scores"] for record in read_predictions(answer_dir / f"predictions_{split}.jsonl")}
    rationales = {
        record["id"]: record["scores"] for record in read_predictions(rationale_dir / f"rationales_{split}.jsonl")
    }
    ids = data["annot_id"][:]
    missing = [key for key in ids if key not in answers or key not in rationales]
    if missing:
        raise ValueError(
            f"{answer_dir} and {rationale_dir}: no predictions for {missing[0]} ({len(missing)} are missing)"
        )
    write_leaderboard(answers, rationales, data, output_dir / f"leaderboard_{split}.csv")
    return score_both(answers, rationales, data)


def write_leaderboard(
    answers: Mapping[str, list[float]], rationales: Mapping[str, list[list[float]]], data: Dataset, path: Path
) -> None:
    """Write the file for the leaderboard, in the order of the data; arguments as for [`score_both`]."""
    ids = data["annot_id"][:]
    write_vcr_leaderboard(ids, [answers[key] for key in ids], [rationales[key] for key in ids], path)


def score_both(
    answers: Mapping[str, list[float]], rationales: Mapping[str, list[list[float]]], data: Dataset
) -> dict[str, float]:
    """Score both sub-tasks together, in percent.

    Args:
        answers: Four scores by `annot_id`.
        rationales: Four scores given each of the four answers, by `annot_id`.
        data: The split.

    Returns:
        `answer` (Q->A), `rationale` (QA->R, given the correct answer), `joint` (Q->AR) and `joint_predicted`: the rationale asked
        for the predicted answer, which the official metric does not do. Nothing for a split without labels.
    """
    ids, truth = data["annot_id"][:], list(zip(data["answer_label"][:], data["rationale_label"][:], strict=True))
    if any(None in labels for labels in truth):
        return {}
    rows, given = [answers[key] for key in ids], [rationales[key] for key in ids]
    flat = [[*row, *(score for scores in every for score in scores)] for row, every in zip(rows, given, strict=True)]
    scored = leaderboard_accuracy(flat, *zip(*truth, strict=True))
    chosen = [row.index(max(row)) for row in rows]
    predicted = [every[answer].index(max(every[answer])) for every, answer in zip(given, chosen, strict=True)]
    right = [pair == labels for pair, labels in zip(zip(chosen, predicted, strict=True), truth, strict=True)]
    percent = {name: 100.0 * scored[name] for name in ("answer", "rationale", "joint")}
    return {**percent, "joint_predicted": 100.0 * sum(right) / len(right)}


def encode_choices(
    processor: VisualBertProcessor,
    rows: Rows,
    contexts: list[list[str]],
    choices: list[list[list[str]]],
    image_of: Callable[[str], Any] | None,
    polygons_of: Callable[[dict[str, Any]], list] | None = None,
) -> Batch:
    """Model inputs of questions with the given contexts and choices; the objects are those of the rows."""
    images, boxes, polygons = None, None, None
    if image_of is not None:
        images = [image_of(row["image"]) for row in rows]
        if rows[0]["object_ids"] is None:
            boxes = None  # all regions that were found, or are found in the step
        elif isinstance(images[0], dict):
            # What is stored is the whole image, then every object of the metadata.
            whole = [0] * processor.whole_image
            kept = [[*whole, *(i + 1 for i in row["object_ids"])] for row in rows]
            images = [
                type(found)(visual_embeds=found["visual_embeds"][ids]) for found, ids in zip(images, kept, strict=True)
            ]
        else:
            boxes = [row["boxes"] for row in rows]
            polygons = None if polygons_of is None else [polygons_of(row) for row in rows]
    batch = dict(
        processor(
            text=contexts,
            choices=choices,
            objects=[row["objects"] for row in rows],
            boxes=boxes,
            polygons=polygons,
            truncation=True,
            **processor_arguments(images),
        )
    )
    if images is None:
        batch.pop("image_text_alignment", None)
    return batch


def context_of(row: dict[str, Any], subtask: str) -> list[str]:
    """The words before the choices: the question, and for rationales the correct answer (or the row's `given_answer`)."""
    if subtask == "answer":
        return row["question"]
    answer = row.get("given_answer", row["answer_label"])
    if answer is None:  # a split without labels: what counts there are the scores given every answer
        return row["question"]
    return [*row["question"], *row["answer_choices"][answer]]


def _draw(task: Task, model: PreTrainedModel, row: dict[str, Any], prediction: dict[str, Any]) -> Image.Image:
    """The image with its tagged objects, the question, and the choices: model's choice and truth are marked."""
    subtask = task.name.removeprefix("vcr_")
    labels = [f"[{i}] {name}" for i, name in enumerate(row["objects"])]
    drawn = draw_regions(load_image(task.images[row["image"]]), row["boxes"] or [], None, labels)
    lines = [" ".join(context_of(row, subtask))]
    for number, (choice, score) in enumerate(zip(row[f"{subtask}_choices"], prediction["scores"], strict=True)):
        marks = ["model"] * (number == prediction["choice"]) + ["truth"] * (number == row[f"{subtask}_label"])
        lines.append(f"{score:4.0%} {' '.join(choice)}   {' '.join(f'<- {mark}' for mark in marks)}")
    return captioned(drawn, lines)
