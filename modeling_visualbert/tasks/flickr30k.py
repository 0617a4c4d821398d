"""Flickr30k Entities as a task of the training loop: official files -> phrases and regions -> boxes -> recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedModel

from ..data.files import index_images
from ..data.flickr30k import load_flickr30k, read_split
from ..data.grounding_table import read_grounding_table
from ..features.batches import processor_arguments
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_visualbert import VisualBertForRegionToPhraseAlignment
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..metrics.grounding import grounding_recall, matching_proposals
from ..training.preparing import preparing_processes
from ..training.task import Batch, Predictions, Rows, Task, count_examples
from ..visualization import captioned, draw_regions
from .common import TaskArgs, check_labels, corpus_folder, load_tokenizer, make_model, reads_corpus
from .regions import prepare_images
from .tables import TaskData, first_rows, given_columns, mentioning_own_data, read_tables, reads_table


@dataclass
class Flickr30kArgs(TaskArgs):
    """Arguments of fine-tuning on Flickr30k Entities."""

    train_split: str = field(default="train", metadata={"help": "split to train on: a file of image ids"})
    dev_split: str = field(default="val", metadata={"help": "split that decides which weights are kept"})
    test_split: str | None = field(default="test", metadata={"help": "split that is scored at the end; '' for none"})
    sentence_column: str | None = field(
        default=None, metadata={"help": "own data: column of sentences (default: sentence, caption or text)"}
    )
    phrases_column: str | None = field(
        default=None,
        metadata={"help": "own data: column of phrases of the sentence, texts or character spans (default: phrases)"},
    )
    boxes_column: str | None = field(
        default=None, metadata={"help": "own data: column of the boxes of the phrases, in pixels (default: boxes)"}
    )
    positions: str = field(
        default="marked",
        metadata={
            "help": "where a phrase is read: where it is marked, or at its first occurrence as the authors do",
            "choices": ["marked", "original"],
        },
    )


def flickr30k_task(args: Flickr30kArgs, accelerator: Accelerator) -> Task:
    """Load data and model; the first process does what has to be done once.

    Raises:
        ValueError, FileNotFoundError: Arguments or files do not fit together.
    """
    if args.text_only:
        raise ValueError("--text_only: phrases cannot be grounded without regions")
    if args.streaming:
        raise ValueError("--streaming: phrase grounding looks at the regions of all images first; leave it out")
    if args.from_pixels:
        raise ValueError("--from_pixels: targets are matched against stored boxes; train on stored regions")
    data = load_flickr30k_data(args)
    if not reads_table(args):  # it was refused when it was read
        there = f"in {args.data_dir}/Annotations"
        check_labels(data.splits, args, ["boxes"], lambda split, column: f"no {column} {there}")
    with accelerator.main_process_first():
        tokenizer = load_tokenizer(args)
    processes = preparing_processes(accelerator)
    images, data = prepare_images(args, data, processes)
    with processes.main_first():
        model = make_model(VisualBertForRegionToPhraseAlignment, args, tokenizer, images)
    processor = VisualBertProcessor(
        images.image_processor, tokenizer, task="flickr30k", region_dim=model.config.visual_embedding_dim
    )
    assert images.get is not None
    task = make_task(model, processor, data.splits, images.get)
    task.images, task.skipped = images.paths, data.skipped
    if images.paths:
        task.draw = partial(_draw, task)
    return task


def load_flickr30k_data(args: Flickr30kArgs, needs_phrases: bool = True) -> TaskData:
    """The splits and where their images are: of one's own table (pre-training reads no phrases), of the official files, or of the
    embedded corpus."""
    if reads_table(args):
        columns = given_columns(args, "image_column", "sentence_column", "phrases_column", "boxes_column")
        read = partial(read_grounding_table, **columns, positions=args.positions, needs_phrases=needs_phrases)
        return read_tables(args, read, "image_id")
    corpus = corpus_folder(args) if reads_corpus(args) else None
    folder = corpus / "flickr30k" if corpus is not None else Path(args.data_dir or "")
    images_dir = corpus / "images" if corpus is not None else Path(args.images_dir or folder)
    skipped: list[str] | None = [] if args.skip_bad_records else None
    splits = {"train": args.train_split, "dev": args.dev_split, "test": args.test_split}
    names = {role: split for role, split in splits.items() if split}
    prefix = "shapes_" if corpus is not None else ""
    grounded = bool(args.train_split or args.dev_split) or (folder / "Annotations").is_dir()
    with mentioning_own_data(folder, "image, sentence, phrases and boxes"):
        image_ids = {role: read_split(folder / f"{prefix}{split}.txt") for role, split in names.items()}
    data = {
        role: load_flickr30k(folder, ids, args.positions, skipped=skipped, grounded=grounded)
        for role, ids in image_ids.items()
    }
    return first_rows(TaskData(data, names, "image_id", index_images, images_dir, skipped or []), args)


def make_task(
    model: VisualBertForRegionToPhraseAlignment,
    processor: VisualBertProcessor,
    data: dict[str, Dataset],
    regions_of: Callable[[int], dict[str, torch.Tensor]],
) -> Task:
    """The task over loaded data; `regions_of` gives the regions of an image id, with boxes in pixels."""

    def collate(rows: Rows) -> Batch:
        regions = [regions_of(row["image_id"]) for row in rows]
        batch = dict(
            processor(
                text=[row["sentence"] for row in rows],
                phrases=[row["last_words"] for row in rows],
                **processor_arguments([type(found)(visual_embeds=found["visual_embeds"]) for found in regions]),
            )
        )
        shape = (*batch["region_to_phrase_position"].shape, batch["visual_embeds"].shape[1])
        if any(row["boxes"] is None for row in rows):
            return batch
        batch["labels"] = torch.zeros(shape)
        for labels, row, found in zip(batch["labels"], rows, regions, strict=True):
            for label, gold in zip(labels, row["boxes"], strict=False):
                label.copy_(region_targets(gold, found["boxes"].tolist(), shape[-1]))
        return batch

    def predict(outputs: Any, rows: Rows) -> Predictions:
        regions = [regions_of(row["image_id"]) for row in rows]
        found = processor.post_process_phrase_grounding(
            outputs, regions, [len(row["phrases"]) for row in rows], top_k=None
        )
        return [
            {"id": sentence_id(row), "phrases": [[dict(region) for region in ranked] for ranked in phrases]}
            for row, phrases in zip(rows, found, strict=True)
        ]

    def score(predictions: Predictions, split: str) -> dict[str, Any]:
        return score_phrases(predictions, data[split])

    def score_each(predictions: Predictions, split: str) -> Predictions:
        return own_recalls(predictions, data[split])

    return Task(
        *("flickr30k", model, processor, data, collate, predict, score, "recall_at_1"),
        score_each=score_each,
        count_items=count_examples,
    )


def sentence_id(row: dict[str, Any]) -> int | str:
    """ "1016887272-3": image and number of the sentence; in one's own tables the id of the row."""
    if "sentence_id" in row:
        return row["sentence_id"]
    return f"{row['image_id']}-{row['sentence_number']}"


def region_targets(gold: list[list[float]], boxes: list[list[float]], num_regions: int) -> torch.Tensor:
    """Uniform over the regions with IoU >= 0.5 to any of the gold boxes; all zero when there is none."""
    target = torch.zeros(num_regions)
    matched = matching_proposals(gold, boxes)
    if matched:
        target[matched] = 1.0 / len(matched)
    return target


def score_phrases(predictions: Predictions, split: Dataset) -> dict[str, Any]:
    """Official recalls and their upper bound in percent; only the number of phrases for a split without boxes."""
    if split[0]["boxes"] is None:
        return {"num_examples": sum(map(len, split["phrases"]))}
    by_id = {record["id"]: record["phrases"] for record in predictions}
    scored = grounding_recall([_ranked_regions(by_id[sentence_id(row)], row) for row in split])
    return {name: value if name == "num_examples" else 100.0 * value for name, value in scored.items()}


def own_recalls(predictions: Predictions, split: Dataset) -> Predictions:
    """For each phrase of each sentence 100 if it is found, else 0; the sentences about an image are a group."""
    if split[0]["boxes"] is None:
        return []
    rows = {sentence_id(row): row for row in split}
    own = []
    for record in predictions:
        row = rows[record["id"]]
        sentence = _ranked_regions(record["phrases"], row)
        found = [grounding_recall([{**sentence, "entities": [entity]}]) for entity in sentence["entities"]]
        recalls = {name: [100.0 * one[name] for one in found] for name in found[0] if name.startswith("recall")}
        own.append({"metrics": recalls, "group": row["image_id"]})
    return own


def _ranked_regions(ranked: list[list[dict[str, Any]]], row: dict[str, Any]) -> dict[str, Any]:
    """The predictions of a sentence as [`grounding_recall`] reads them."""
    by_region = [sorted(regions, key=lambda found: found["region"]) for regions in ranked]
    return {
        "proposals": [found["box"] for found in by_region[0]],
        "entities": [
            {"gold": gold, "scores": [found["score"] for found in regions]}
            for gold, regions in zip(row["boxes"], by_region, strict=True)
        ],
    }


def confidence_baseline(predictions: Predictions, split: Dataset) -> dict[str, Any]:
    """Recalls of always taking the regions that the detector is most sure of (paper, section 5.1): they are stored first."""
    ranked = [
        {
            **record,
            "phrases": [[{**found, "score": -found["region"]} for found in regions] for regions in record["phrases"]],
        }
        for record in predictions
    ]
    return score_phrases(ranked, split)


def _draw(task: Task, model: PreTrainedModel, row: dict[str, Any], prediction: dict[str, Any]) -> Image.Image:
    """The image with the best region of each phrase, numbered as in the sentence below it."""
    image = load_image(task.images[row["image_id"]])
    best = [ranked[0] for ranked in prediction["phrases"] if ranked]  # none in an image without regions
    labels = [str(number) for number in range(1, len(best) + 1)]
    drawn = draw_regions(image, [found["box"] for found in best], [found["score"] for found in best], labels)
    lines = [row["sentence"]]
    golds = row["boxes"] or [None] * len(best)
    for number, phrase, found, gold in zip(labels, row["phrases"], best, golds, strict=False):
        verdict = "" if gold is None else ", right" if matching_proposals(gold, [found["box"]]) else ", wrong"
        lines.append(f"{number} {phrase}: {found['score']:.0%}{verdict}")
    return captioned(drawn, lines)
