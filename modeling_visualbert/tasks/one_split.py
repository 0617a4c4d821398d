"""A checkpoint and one split of the data that it is for -> a `Task`, without training data; what evaluation needs.

checkpoint ──► task, processor, what it was trained to read ─┐
official files of the split ──► rows ──► regions ────────────┴──► Task
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel

from ..checkpoints import check_checkpoint_name, load_model, open_config, read_task
from ..convert.assemble import complete_checkpoint
from ..data.columns import has_missing
from ..data.files import find_one
from ..data.label_table import find_label_file
from ..data.layouts import advice_about
from ..data.nlvr2 import find_nlvr2_file
from ..data.vqa2 import find_vqa_files
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..published import find_published_checkpoint
from ..training.args import agreed_precision
from ..training.preparing import preparing_processes
from ..training.task import Task
from . import classification, flickr30k, nlvr2, pretraining, vcr, vqa
from .common import TASK_OPTIONS, TaskArgs, corpus_folder, reads_corpus
from .regions import Boxes, Images, limit_regions, prepare_images
from .tables import COLUMN_FLAGS, TaskData, reads_table

Args = TypeVar("Args", bound=TaskArgs)


@dataclass
class EvaluateArgs:
    """What to evaluate, on which data. The flags of `visualbert evaluate` are these fields; its `--help` explains them.

    What is None comes from the checkpoint (`TASK_OPTIONS`), or else is the default of the training scripts.
    """

    model: str
    output_dir: str
    split: str | None = None
    data_dir: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    test_file: str | None = None
    image_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    choices_column: str | None = None
    rationales_column: str | None = None
    rationale_label_column: str | None = None
    objects_column: str | None = None
    sentence_column: str | None = None
    phrases_column: str | None = None
    boxes_column: str | None = None
    images_dir: str | None = None
    features_dir: str | None = None
    region_encoder: str | None = None
    tokenizer: str | None = None
    rationale_model: str | None = None
    subtask: str | None = None
    objects: str | None = None
    positions: str | None = None
    stage: str | None = None
    probe_words: str | None = None
    num_regions: int | None = None
    any_detector: bool = False
    text_only: bool = False
    from_pixels: bool = False
    skip_bad_records: bool = False
    max_eval_samples: int | None = None
    batch_size: int = 128
    num_workers: int | None = None
    cpu: bool = False
    mixed_precision: str | None = None
    overwrite: bool = False
    train_scenes: int = 8000
    val_scenes: int = 500
    test_scenes: int = 1000
    one_object: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_eval_samples", "num_regions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}; expected at least 1")
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"--num_workers {self.num_workers}; expected at least 0")
        self.mixed_precision = agreed_precision(self.mixed_precision)
        if self.split is None and self.data_dir is not None:
            raise ValueError("--data_dir without --split; expected the split to evaluate, as in the file names")
        if self.split is not None and (not self.split or Path(self.split).name != self.split):
            raise ValueError(f"--split {self.split!r}; expected the name of a split, such as val")
        if self.features_dir is not None and self.from_pixels:
            raise ValueError("--features_dir with --from_pixels; expected one of them")
        if self.rationale_model is not None and self.subtask is not None:
            raise ValueError("--subtask with --rationale_model; expected one of them: two models make both sub-tasks")


@dataclass
class Opened:
    """A checkpoint whose weights are not read yet.

    Args:
        name: Folder or Hub name.
        title: What the user called it, for messages; a published checkpoint is completed in another folder.
        task: Name of its task.
        config: Its configuration.
        processor: Its processor, which knows the answers, the longest text, the alignment and so on.
        region_encoder: Region encoder to find regions with, where the checkpoint has none inside.
    """

    name: str
    title: str
    task: str
    config: Any
    processor: VisualBertProcessor
    region_encoder: str | None

    @property
    def options(self) -> Mapping[str, Any]:
        """Which text and regions it was trained to read, as far as it says so."""
        return getattr(self.config, "task_options", None) or {}

    @property
    def classifies(self) -> bool:
        """Whether it gives labels of its own to texts, where NLVR2 has true and false."""
        return self.processor.labels is not None

    def load(self, device: torch.device) -> PreTrainedModel:
        """The model."""
        return load_model(self.name, self.task).to(device)


# ------------------------------------------------------------------------------------------------------- checkpoints


def open_checkpoint(name: str, args: EvaluateArgs) -> Opened:
    """Find out what a checkpoint is and complete a published or bare one, without a region encoder where features are given.

    Raises:
        FileNotFoundError, ValueError, OSError: There is none of this name, or it lacks something; the message says what.
    """
    check_checkpoint_name(name)
    needs_pixels = args.features_dir is None and not args.text_only
    published = find_published_checkpoint(name)
    if needs_pixels and args.region_encoder is None and published and not published.detector.is_published:
        raise ValueError(
            f"{name}: its region encoder ({published.detector.title}) was not published; expected --features_dir, a store of "
            "its features, or as --model what `visualbert convert` makes of the authors' .th file, which holds it"
        )
    complete, region_encoder = name, None
    if (Path(name) / "processor_config.json").is_file() and args.region_encoder is not None:
        if open_config(name).region_encoder_config is not None:
            raise ValueError(f"{name} has a region encoder inside; expected no --region_encoder for it")
        region_encoder = args.region_encoder  # regions are found with it, the model itself stays without
        complete_checkpoint(name, None, args.tokenizer)  # refuses a tokenizer that is not the checkpoint's
    else:
        parts = (args.region_encoder, args.tokenizer)
        found = complete_checkpoint(name, *parts, reads_features=not needs_pixels, any_detector=args.any_detector)
        complete = str(found)
    task, config = _read_task(complete)
    processor = VisualBertProcessor.from_pretrained(complete)
    if processor.task != task:
        raise ValueError(
            f"{name} is a {task} checkpoint with a processor for {processor.task}; expected one for {task}"
        )
    processor.check_model(config, name)
    return Opened(complete, name, task, config, processor, region_encoder)


def _read_task(name: str) -> tuple[str, Any]:
    try:
        task, config = read_task(name)
    except OSError as error:  # its message has many lines
        raise OSError(f"{name}: no checkpoint can be loaded ({' '.join(str(error).split()):.300})") from error
    return task.name, config


# --------------------------------------------------------------------------------------------------- tasks over a split


def _vqa_task(opened: Opened, args: EvaluateArgs, accelerator: Accelerator) -> Task:
    run = task_args(vqa.VqaArgs, opened, args)
    data = load_rows(vqa.load_vqa_data, run, "vqa", args)
    images, data = _find_regions(opened, run, data, accelerator)
    model = _load_model(opened, run, accelerator)
    task = vqa.make_task(model, opened.processor, data.splits, images.get)
    results = None if reads_table(run) else vqa.write_results  # there is no server for one's own data
    return replace(task, write_results=results, skipped=data.skipped)


def _nlvr2_task(opened: Opened, args: EvaluateArgs, accelerator: Accelerator) -> Task:
    if opened.classifies:
        return _classification_task(opened, args, accelerator)
    run = task_args(nlvr2.Nlvr2Args, opened, args)
    data = load_rows(nlvr2.load_nlvr2_data, run, "nlvr2", args)
    images, data = _find_regions(opened, run, data, accelerator)
    model = _load_model(opened, run, accelerator)
    task = nlvr2.make_task(model, opened.processor, data.splits, images.get)
    results = None if reads_table(run) else nlvr2.write_results  # the official script knows no other ids
    return replace(task, write_results=results, skipped=data.skipped)


def _classification_task(opened: Opened, args: EvaluateArgs, accelerator: Accelerator) -> Task:
    run = task_args(classification.ClassificationArgs, opened, args)
    known = {"labels": opened.processor.labels, "num_images": opened.processor.num_images}
    tables = classification.label_tables(run, **known)
    data = load_rows(partial(classification.load_label_data, tables=tables), run, "snli_ve", args)
    images, data = _find_regions(opened, run, data, accelerator)
    model = _load_model(opened, run, accelerator)
    task = classification.make_task(model, opened.processor, data.splits, images.get)
    return replace(task, skipped=data.skipped)


def _flickr30k_task(opened: Opened, args: EvaluateArgs, accelerator: Accelerator) -> Task:
    run = task_args(flickr30k.Flickr30kArgs, opened, args)
    if run.text_only or run.from_pixels:
        raise ValueError(
            f"--{'text_only' if run.text_only else 'from_pixels'}: phrases are grounded in stored regions; leave it out"
        )
    data = load_rows(flickr30k.load_flickr30k_data, run, "flickr30k", args)
    images, data = _find_regions(opened, run, data, accelerator)
    assert images.get is not None
    model = _load_model(opened, run, accelerator)
    task = flickr30k.make_task(model, opened.processor, data.splits, images.get)
    return replace(task, skipped=data.skipped)


def _pretraining_task(opened: Opened, args: EvaluateArgs, accelerator: Accelerator) -> Task:
    run = task_args(pretraining.PretrainingArgs, opened, args, max_length=opened.processor.max_length)
    if run.from_pixels:
        raise ValueError("--from_pixels: pre-training reads stored regions; leave it out")
    check_split(run, kind_of_files(opened, args), args)
    source = pretraining.load_source(run, opened.processor.tokenizer)
    source.data = only_split(source.data, run, args)
    images, source.data = _find_regions(opened, run, source.data, accelerator, source.boxes)
    source.data.splits = {"dev": rows_of(source.data)}  # whose rows are masked once, with fixed seeds
    task = pretraining.make_task(_load_model(opened, run, accelerator), opened.processor, source, images, run)
    return replace(task, splits={split_name(args): task.splits["dev"]}, skipped=source.data.skipped)


def _vcr_task(opened: Opened, args: EvaluateArgs, accelerator: Accelerator) -> Task:
    """One sub-task: the one that the checkpoint was trained for."""
    subtask = subtask_of(opened, args.subtask)
    run = task_args(vcr.VcrArgs, opened, args, subtask=subtask)
    data = load_rows(vcr.load_vcr_data, run, "vcr", args)
    if subtask == "rationale" and has_missing(rows_of(data), "answer_label"):
        raise ValueError(
            f"split {split_name(args)!r} has no labels, and a rationale is chosen for the correct answer; expected both models, "
            "--model ANSWER_MODEL --rationale_model RATIONALE_MODEL, which score the rationales of every answer"
        )
    return vcr_task_over(data, opened, run, subtask, accelerator)


def vcr_task_over(data: TaskData, opened: Opened, run: vcr.VcrArgs, subtask: str, accelerator: Accelerator) -> Task:
    """One sub-task of VCR over rows that are read already, for one or both models of an evaluation."""
    if vcr.finds_regions(data) and run.objects != "found":
        raise ValueError(
            f"{opened.title} reads the regions of given boxes, and the table has none; expected a column of boxes, or --objects "
            "found to give it all regions"
        )
    if vcr.finds_regions(data):
        opened.processor.whole_image = False  # of which there is no region then
    images, data = _find_regions(opened, run, data, accelerator, data.boxes)
    has_polygons = vcr.reads_objects(images.encoder) and not reads_table(run)
    polygons_of = partial(vcr.object_polygons, data.images_dir) if has_polygons else None
    model = _load_model(opened, run, accelerator)
    task = vcr.make_task(model, opened.processor, data.splits, images.get, subtask, polygons_of)
    return replace(task, skipped=data.skipped)


BUILDERS: dict[str, Callable[[Opened, EvaluateArgs, Accelerator], Task]] = {
    "vqa": _vqa_task,
    "nlvr2": _nlvr2_task,
    "vcr": _vcr_task,
    "flickr30k": _flickr30k_task,
    "pretraining": _pretraining_task,
}


# ------------------------------------------------------------------------------------------- arguments, data and regions


def split_name(args: EvaluateArgs) -> str:
    """The split to evaluate, which is known by now: it was given, or is the corpus' own."""
    assert args.split is not None
    return args.split


def kind_of_files(opened: Opened, args: EvaluateArgs) -> str:
    """Which files are read: those of the task, or of the stage of pre-training."""
    if opened.classifies:
        return "snli_ve"
    stage = args.stage or opened.options.get("stage") or "coco"
    return stage if opened.task == "pretraining" else opened.task


def given_options(args: EvaluateArgs) -> dict[str, Any]:
    """The task options that were given as flags."""
    return {name: value for name in TASK_OPTIONS if (value := getattr(args, name, None)) not in (None, False)}


def task_args(args_class: type[Args], opened: Opened, args: EvaluateArgs, **more: Any) -> Args:
    """The arguments of a training script that would read the same: flags, then what the checkpoint says, then defaults."""
    known = {field.name for field in fields(args_class)}
    given = given_options(args)
    others = [name for name in ("probe_words", *COLUMN_FLAGS) if getattr(args, name) is not None]
    if unknown := [name for name in (*given, *others) if name not in known]:
        raise ValueError(
            f"--{unknown[0]}: {opened.title} is a {opened.task} checkpoint; expected one that has this option"
        )
    saved = {name: opened.options[name] for name in TASK_OPTIONS if name in opened.options}
    same: tuple[str, ...] = (
        "data_dir",
        "dataset_name",
        "dataset_config_name",
        "test_file",
        *COLUMN_FLAGS,
        "images_dir",
        "features_dir",
        "any_detector",
        "skip_bad_records",
        "cpu",
        "mixed_precision",
        "probe_words",
    )
    same += ("train_scenes", "val_scenes", "test_scenes", "one_object")
    # VCR's own detector describes objects by class and outline, which no store has.
    reads_objects = getattr(opened.config.region_encoder_config, "reads_objects", False)
    values: dict[str, Any] = {
        "output_dir": args.output_dir,
        "init_from": opened.name,
        "region_encoder": opened.region_encoder,
        **{"train_split": "", "dev_split": "", "test_split": args.split},
        "from_pixels": args.from_pixels or (reads_objects and args.features_dir is None),
        **{name: value for name in same if name in known and (value := getattr(args, name)) is not None},
        **{name: value for name, value in {**saved, **given}.items() if name in known},
    }
    return args_class(**{**values, **more})


def load_rows(load: Callable[[Args], TaskData], run: Args, kind: str, args: EvaluateArgs) -> TaskData:
    """What a task's loader reads, with the split to evaluate under its name.

    Raises:
        FileNotFoundError: There is no such split; the message lists the files that there are.
        ValueError: The split is empty.
    """
    check_split(run, kind, args)
    return only_split(load(run), run, args)


def only_split(data: TaskData, run: TaskArgs, args: EvaluateArgs) -> TaskData:
    """The same data, its only split under its name and no longer than was asked for.

    Raises:
        ValueError: The split is empty.
    """
    (rows,) = data.splits.values()
    if not len(rows):
        raise ValueError(f"{run.data_dir}: split {args.split!r} has no examples; expected at least one")
    if args.max_eval_samples is not None:
        rows = rows.select(range(min(args.max_eval_samples, len(rows))))
    return replace(data, splits={split_name(args): rows}, names={split_name(args): split_name(args)})


def rows_of(data: TaskData) -> Dataset:
    """The rows of its only split."""
    (rows,) = data.splits.values()
    return rows


def check_split(run: TaskArgs, kind: str, args: EvaluateArgs) -> None:
    """
    Raises:
        FileNotFoundError: There is no such split of the official files; the message lists the files that there are.
    """
    if reads_table(run):  # lists its own splits
        return
    folder = Path(run.data_dir) if run.data_dir is not None else corpus_folder(run) / kind
    split, prefix = split_name(args), "shapes_" if run.data_dir is None else ""
    find, pattern = {
        "vqa": (lambda part: find_vqa_files(folder, part), "**/*questions.json"),
        "nlvr2": (lambda part: find_nlvr2_file(folder, part), "**/*.json*"),
        "snli_ve": (lambda part: find_label_file(folder, part), "**/*.jsonl"),
        "vcr": (lambda part: find_one(folder, (f"{part}.jsonl",), f"file of split {part!r}"), "*.jsonl"),
        "flickr30k": (
            lambda part: find_one(folder, (f"{prefix}{part}.txt",), f"image ids of split {part!r}"),
            f"{prefix}*.txt",
        ),
        "coco": (
            lambda part: find_one(folder, (f"**/captions_{part}.json",), f"captions of split {part!r}"),
            "**/captions_*.json",
        ),
    }[kind]
    try:
        for part in split.split("+") if kind in ("vqa", "coco") else [split]:
            find(part)
    except FileNotFoundError as error:
        names = sorted({path.name for path in folder.glob(pattern)})
        there = f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" or "nothing of that kind"
        own = advice_about(folder, "the columns of the task").replace("--train_file", "--test_file")
        raise FileNotFoundError(f"{error}; there is {there}; {own}") from None


def _find_regions(
    opened: Opened,
    run: TaskArgs,
    data: TaskData,
    accelerator: Accelerator,
    boxes: Mapping[Any, Boxes] | None = None,
) -> tuple[Images, TaskData]:
    """Where the regions of the images are, or are found, and the rows that have images. What does not fit is refused before
    anything is extracted."""
    dim, has_encoder = opened.config.visual_embedding_dim, opened.config.region_encoder_config is not None
    if run.from_pixels and not has_encoder:
        raise ValueError(f"--from_pixels: {opened.title} has no region encoder inside; leave it out")
    if run.text_only:
        return Images(None, None, None, dim, {}, {}), data
    if run.features_dir is None and not (has_encoder or run.region_encoder) and not reads_corpus(run):
        raise ValueError(
            f"{opened.title} has no region encoder inside; expected --features_dir with the regions of the images, or "
            "--region_encoder to find them with"
        )
    return prepare_images(run, data, preparing_processes(accelerator), boxes)


def _load_model(opened: Opened, run: TaskArgs, accelerator: Accelerator) -> PreTrainedModel:
    model = opened.load(accelerator.device)
    if run.from_pixels:
        limit_regions(model.visual_bert.region_encoder, run.num_regions)
    return model


def subtask_of(opened: Opened, given: str | None) -> str:
    """The sub-task of a VCR checkpoint: those that this version trained know it."""
    known = opened.options.get("subtask")
    known = known if known in vcr.SUBTASKS else None
    if known and given and known != given:
        raise ValueError(f"{opened.title} was trained to choose the {known}; expected one that chooses the {given}")
    if not known and not given:
        raise ValueError(
            f"{opened.title} does not say what it chooses; expected --subtask answer (Q->A), --subtask rationale (QA->R), or "
            "both models: --model ANSWER_MODEL --rationale_model RATIONALE_MODEL (Q->AR)"
        )
    return known or given or ""


__all__ = [
    "BUILDERS",
    "EvaluateArgs",
    "Opened",
    "given_options",
    "kind_of_files",
    "load_rows",
    "open_checkpoint",
    "rows_of",
    "split_name",
    "subtask_of",
    "task_args",
    "vcr_task_over",
]
