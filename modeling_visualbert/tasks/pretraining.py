"""Pre-training as a task of the training loop: masked language modelling with the image, and image-text matching.

The stages of the paper (section 4): `coco` on captions, then one on the text of the task itself. What a stage reads:

    coco       two captions of one image, or one and a caption of another image (match 0); segments 0 and 1
    vqa        question and answer as one text
    nlvr2      the sentence with both images; its truth is the match label
    vcr        question and correct answer, and both with the correct rationale, with object tags as in VCR
    flickr30k  the sentence
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Subset
from transformers import PreTrainedModel

from ..corpus.scenes import COLORS, SHAPES
from ..data.caption_table import read_caption_table
from ..data.coco import load_coco_captions
from ..data.columns import has_missing
from ..data.files import find_one, index_images, read_lines
from ..features.batches import pad_stored
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_visualbert import VisualBertForPreTraining
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..hub_code.text_visualbert import EncodedText, encode_choice, encode_pair, mask_pieces, pad_alignment, pad_texts
from ..training.preparing import preparing_processes
from ..training.task import Batch, Predictions, Rows, Task
from ..visualization import captioned, grid
from .common import TaskArgs, corpus_folder, load_tokenizer, make_model, reads_corpus
from .flickr30k import Flickr30kArgs, load_flickr30k_data
from .nlvr2 import Nlvr2Args, check_nlvr2_labels, load_nlvr2_data
from .regions import Boxes, Images, prepare_images
from .tables import (
    COLUMN_FLAGS,
    TableArgs,
    TaskData,
    first_rows,
    given_columns,
    mentioning_own_data,
    read_tables,
    reads_table,
)
from .vcr import SUBTASKS, VcrArgs, check_vcr_labels, context_of, load_vcr_data
from .vqa import VqaArgs, check_vqa_labels, load_vqa_data

STAGES = ("coco", "vqa", "nlvr2", "vcr", "flickr30k")
MATCHING_STAGES = ("coco", "nlvr2")  # the others have only the masked-LM objective


@dataclass
class PretrainingArgs(TaskArgs):
    """Arguments of pre-training."""

    stage: str = field(default="coco", metadata={"help": "what is read", "choices": list(STAGES)})
    no_match: bool = field(
        default=False, metadata={"help": "without the sentence-image objective (ablation of the paper)"}
    )
    eval_samples: int | None = field(
        default=10_000,
        metadata={
            "help": "evaluate only so many examples of the dev split during training, spread evenly (COCO's val2014 has "
            "81,000); at the end all are evaluated"
        },
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "share of the word pieces to predict"})
    max_length: int = field(default=128, metadata={"help": "longest text in word pieces; longer ones lose their front"})
    train_split: str | None = field(default=None, metadata={"help": "split to train on (default: that of the task)"})
    dev_split: str | None = field(default=None, metadata={"help": "split that decides which weights are kept"})
    test_split: str | None = field(default=None, metadata={"help": "split that is scored at the end"})
    caption_column: str | None = field(
        default=None,
        metadata={"help": "own data, coco: column of captions (default: captions, caption, text or sentences)"},
    )
    question_column: str | None = field(default=None, metadata={"help": "own data, vqa: see run_vqa.py"})
    answer_column: str | None = field(default=None, metadata={"help": "own data, vqa: see run_vqa.py"})
    text_column: str | None = field(default=None, metadata={"help": "own data, nlvr2: see run_nlvr2.py"})
    label_column: str | None = field(default=None, metadata={"help": "own data, nlvr2: see run_nlvr2.py"})
    choices_column: str | None = field(default=None, metadata={"help": "own data, vcr: see run_vcr.py"})
    objects_column: str | None = field(default=None, metadata={"help": "own data, vcr: see run_vcr.py"})
    sentence_column: str | None = field(default=None, metadata={"help": "own data, flickr30k: see run_flickr30k.py"})
    phrases_column: str | None = field(default=None, metadata={"help": "not read: flickr30k reads sentences only"})
    boxes_column: str | None = field(default=None, metadata={"help": "own data, vcr: see run_vcr.py"})
    exclude_images: str | None = field(
        default=None, metadata={"help": "coco: file with image ids to leave out of training, such as VQA's minival"}
    )
    probe_words: str | None = field(
        default=None,
        metadata={
            "help": "file with words that are masked one by one in evaluation (default: the corpus' colours and shapes)"
        },
    )


@dataclass
class Source:
    """What a stage reads.

    Args:
        data: Its splits, and where their images are.
        draw_text: Row, its split and a generator -> text without masks, and the match label or None.
        probe_text: Row -> the text whose words are masked one by one in evaluation.
        boxes: Given boxes by key, for VCR.
    """

    data: TaskData
    draw_text: Callable[[dict, Dataset, torch.Generator], tuple[EncodedText, int | None]]
    probe_text: Callable[[dict], EncodedText]
    boxes: Mapping[Any, Boxes] | None = None


@dataclass
class MaskedRow:
    """One example: text with masks, what was there (-100 elsewhere), match label, images and, for VCR, their objects."""

    id: str
    text: EncodedText
    labels: list[int]
    match: int | None
    images: list
    object_ids: list[int] | None


def pretraining_task(args: PretrainingArgs, accelerator: Accelerator) -> Task:
    """Load data and model; the first process does what has to be done once.

    Raises:
        ValueError, FileNotFoundError: Arguments or files do not fit together.
    """
    if args.streaming:
        raise ValueError("--streaming: pre-training reads stored regions, and texts of other images; leave it out")
    if args.from_pixels:
        raise ValueError("--from_pixels: pre-training reads stored regions; leave it out")
    with accelerator.main_process_first():
        tokenizer = load_tokenizer(args)
    source = load_source(args, tokenizer)
    processes = preparing_processes(accelerator)
    images, source.data = prepare_images(args, source.data, processes, source.boxes)
    with processes.main_first():
        model = make_model(VisualBertForPreTraining, args, tokenizer, images)
    processor = VisualBertProcessor(
        images.image_processor,
        tokenizer,
        task="pretraining",
        max_length=args.max_length,
        region_dim=model.config.visual_embedding_dim,
    )
    task = make_task(model, processor, source, images, args)
    task.images, task.skipped = images.paths, source.data.skipped
    if images.paths:
        task.draw = partial(_draw, task)
    return task


def load_source(args: PretrainingArgs, tokenizer: Any) -> Source:
    """What the stage reads, with its splits."""
    return _SOURCES[args.stage](args, tokenizer)


def make_task(
    model: VisualBertForPreTraining,
    processor: VisualBertProcessor,
    source: Source,
    images: Images,
    args: PretrainingArgs,
) -> Task:
    """The task over loaded data. Training rows are masked anew in every epoch, those of the other splits once."""
    tokenizer = processor.tokenizer
    probe_ids = _probe_ids(args, tokenizer)

    def mask(row: dict, data: Dataset, generator: torch.Generator, name: str) -> MaskedRow:
        text, match = source.draw_text(row, data, generator)
        input_ids, labels = mask_pieces(text.input_ids, tokenizer, generator, args.mlm_probability)
        match = None if args.no_match else match
        return MaskedRow(
            name, replace(text, input_ids=input_ids), labels, match, source.data.keys_of(row), row.get("object_ids")
        )

    def examples_of(data: Dataset, number: int) -> Iterator[MaskedRow]:
        """What a row of another split than train becomes: the same whenever it is read."""
        row = data[number]
        masked = mask(row, data, torch.Generator().manual_seed(number), f"masked-{number}")
        yield replace(masked, match=None)
        if masked.match is not None:  # the same text without masks
            text, match = source.draw_text(row, data, torch.Generator().manual_seed(number))
            yield replace(masked, id=f"pair-{number}", text=text, labels=[-100] * len(text.input_ids), match=match)
        yield from probes(row, number)

    def probes(row: dict, number: int) -> Iterator[MaskedRow]:
        text = source.probe_text(row)
        for place, piece in enumerate(text.input_ids):
            if piece in probe_ids:
                ids, labels = list(text.input_ids), [-100] * len(text.input_ids)
                ids[place], labels[place] = tokenizer.mask_token_id, piece
                name = f"probe-{number}-{place}"
                masked = replace(text, input_ids=ids)
                yield MaskedRow(name, masked, labels, None, source.data.keys_of(row), row.get("object_ids"))

    splits = {
        name: data if name == "train" else EvaluationRows(data, examples_of, bool(probe_ids))
        for name, data in source.data.splits.items()
    }
    return Task(
        name=f"pretraining_{args.stage}",
        model=model,
        processor=processor,
        splits=splits,
        collate=partial(_collate, tokenizer, images),
        predict=_predict,
        score=lambda predictions, split: score_masks(predictions),
        best_metric="mlm_accuracy",
        score_each=lambda predictions, split: own_accuracies(predictions),
        count_items=_count_items,
        augment=lambda row, generator: mask(row, source.data.splits["train"], generator, ""),
    )


class EvaluationRows(Sequence[MaskedRow]):
    """The examples of a split. A text is tokenised and masked when an example of it is read, and not before training starts.

    Args:
        data: The rows of the split.
        examples_of: Split and number of a row -> the examples that it becomes.
        varies: Whether rows become different numbers of examples, which have to be counted then.
    """

    def __init__(self, data: Dataset, examples_of: Callable[[Dataset, int], Iterator[MaskedRow]], varies: bool):
        self._examples = lru_cache(maxsize=16)(lambda number: tuple(examples_of(data, number)))
        counts = map(len, map(self._examples, range(len(data) if varies else min(1, len(data)))))
        self._ends = np.cumsum(list(counts) if varies else list(counts) * len(data), dtype=np.int64)

    def select(self, places: Sequence[int]) -> Subset:
        """Some of the examples, which are not read yet either."""
        return Subset(self, places)  # type: ignore[arg-type]  # of a Dataset it needs no more than this has

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"example {place} of {len(self)}")
        place %= len(self)
        number = int(np.searchsorted(self._ends, place, side="right"))
        examples = self._examples(number)
        return examples[place - int(self._ends[number]) + len(examples)]


def score_masks(predictions: Predictions) -> dict[str, Any]:
    """Accuracies in percent: `mlm_accuracy` of pieces masked as in training, `probe_accuracy` of words masked one at a time, and
    `match_accuracy` of texts without masks; each only where there was something to predict."""
    named: dict[str, list[bool]] = {"mlm_accuracy": [], "probe_accuracy": [], "match_accuracy": []}
    for record in predictions:
        name, right = _outcomes(record)
        named[name] += right
    scores: dict[str, Any] = {name: 100.0 * sum(right) / len(right) for name, right in named.items() if right}
    return {"mlm_accuracy": 0.0, **scores, "num_examples": len(predictions)}


def own_accuracies(predictions: Predictions) -> Predictions:
    """For each piece (or the pair) of each prediction 100 if it is right, else 0; all that one row of the data became is a
    group."""
    outcomes = (_outcomes(record) for record in predictions)
    return [
        {"metrics": {name: [100.0 * one for one in right]}, "group": int(record["id"].split("-")[1])}
        for record, (name, right) in zip(predictions, outcomes, strict=True)
    ]


def _outcomes(record: dict[str, Any]) -> tuple[str, list[bool]]:
    """The metric that a prediction counts in, and whether each of its pieces, or the match, is right."""
    if "match_label" in record:
        return "match_accuracy", [(record["match"] > 0.5) == (record["match_label"] == 1)]
    name = "probe_accuracy" if record["id"].startswith("probe") else "mlm_accuracy"
    return name, [found == truth for found, truth in record["pieces"]]


def _collate(tokenizer: Any, images: Images, rows: Rows) -> Batch:
    batch: Batch = dict(pad_texts([row.text for row in rows], tokenizer))
    batch["labels"] = torch.full(batch["input_ids"].shape, -100)
    for labels, row in zip(batch["labels"], rows, strict=True):
        labels[: len(row.labels)] = torch.tensor(row.labels)
    # Counted on the host, so that nothing waits for the device.
    batch["masked_positions"] = pad_sequence(
        [labels.nonzero()[:, 0] for labels in batch["labels"] != -100], batch_first=True, padding_value=-1
    )
    # Rows without a match label (probes) do not count: -100.
    batch["sentence_image_labels"] = torch.tensor([-100 if row.match is None else row.match for row in rows])
    if images.get is None:
        return batch
    regions = pad_stored([_regions(images.get, row) for row in rows])
    if any(row.text.alignment for row in rows):
        num_regions = regions["visual_embeds"].shape[1]
        batch["image_text_alignment"] = pad_alignment([row.text for row in rows], num_regions, offset=1)
    return {**batch, **regions}


def _regions(get: Callable[[Any], Any], row: MaskedRow) -> list[dict[str, Any]]:
    """The regions of each image; in VCR the whole image and the objects that the texts mention."""
    found = [get(key) for key in row.images]
    if row.object_ids is None:
        return found
    return [{"visual_embeds": one["visual_embeds"][[0, *(i + 1 for i in row.object_ids)]]} for one in found]


def _count_items(batch: Batch) -> dict[str, int]:
    return {
        "num_items_in_batch": int((batch["labels"] != -100).sum()),
        "num_pairs_in_batch": int((batch["sentence_image_labels"] != -100).sum()),
    }


def _predict(outputs: Any, rows: Rows) -> Predictions:
    match = outputs["seq_relationship_logits"].float().softmax(dim=-1)[:, 1].tolist()
    best = outputs["prediction_logits"].argmax(dim=-1).tolist()
    predictions = []
    for row, found, score in zip(rows, best, match, strict=True):
        labels = [label for label in row.labels if label != -100]
        pieces = [[piece, label] for piece, label in zip(found, labels, strict=False)]  # padding follows
        record = {"id": row.id, "pieces": pieces}
        predictions.append(record if row.match is None else {**record, "match": score, "match_label": row.match})
    return predictions


def _probe_ids(args: PretrainingArgs, tokenizer: Any) -> set[int]:
    words: Sequence[str] = ()
    if args.probe_words is not None:
        words = list(read_lines(args.probe_words))
    elif reads_corpus(args):
        words = (*COLORS, *SHAPES)
    unknown = [word for word in words if tokenizer.convert_tokens_to_ids(word) == tokenizer.unk_token_id]
    if unknown:
        raise ValueError(f"probe word {unknown[0]!r} is not one word piece of this tokenizer; expected whole pieces")
    return {tokenizer.convert_tokens_to_ids(word) for word in words}


def _load_captions(args: PretrainingArgs) -> TaskData:
    """The splits and where their images are: of one's own table, of the official files, or of the embedded corpus."""
    if reads_table(args):
        if args.exclude_images is not None:
            raise ValueError("--exclude_images: these are ids of COCO; leave the rows out of your own table")
        columns = given_columns(args, *COLUMN_FLAGS)
        if unread := columns.keys() - {"image_column", "caption_column"}:
            raise ValueError(f"--{min(unread)}: stage {args.stage!r} reads no such column; leave it out")
        read = partial(read_caption_table, **columns)
        return read_tables(args, read, "image_id", fewest_images=2)  # other captions are those of other images
    corpus = corpus_folder(args) if reads_corpus(args) else None
    folder = corpus / "coco" if corpus is not None else Path(args.data_dir or "")
    images_dir = corpus / "images" if corpus is not None else Path(args.images_dir or folder)
    excluded = [] if args.exclude_images is None else [int(line) for line in read_lines(args.exclude_images)]
    skipped: list[str] | None = [] if args.skip_bad_records else None
    named = {
        "train": "train" if args.train_split is None else args.train_split,
        "dev": "val" if args.dev_split is None else args.dev_split,
        "test": args.test_split or ("test" if corpus is not None else None),
    }
    names, splits = {role: name for role, name in named.items() if name}, {}
    for role, name in names.items():
        left_out = excluded if role == "train" else ()
        with mentioning_own_data(folder, "image and captions"):
            files = [
                find_one(folder, (f"**/captions_{part}.json",), f"captions of {part!r}") for part in name.split("+")
            ]
        splits[role] = concatenate_datasets([load_coco_captions(file, left_out, skipped=skipped) for file in files])
    return first_rows(TaskData(splits, names, "image_id", index_images, images_dir, skipped or []), args)


def _coco(args: PretrainingArgs, tokenizer: Any) -> Source:

    def draw_text(row: dict, data: Dataset, generator: torch.Generator) -> tuple[EncodedText, int]:
        order = torch.randperm(len(row["captions"]), generator=generator).tolist()
        first = row["captions"][order[0]]
        match = int(torch.rand((), generator=generator) < 0.5)
        if match:
            second = row["captions"][order[1 % len(order)]]
        else:
            other = data[_other_row(row["image_id"], data, generator)]["captions"]
            second = other[int(torch.randint(len(other), (), generator=generator))]
        return encode_pair(tokenizer, first, second, args.max_length, truncation=True), match

    return Source(
        _load_captions(args),
        draw_text,
        probe_text=lambda row: encode_pair(tokenizer, row["captions"][0], None, args.max_length, truncation=True),
    )


def _other_row(image_id: int | str, data: Dataset, generator: torch.Generator) -> int:
    """A random row of another image."""
    for _ in range(100):
        number = int(torch.randint(len(data), (), generator=generator))
        if data[number]["image_id"] != image_id:
            return number
    raise ValueError("the split holds one image only; expected others to draw captions of")


def _vqa(args: PretrainingArgs, tokenizer: Any) -> Source:
    run = _task_args(VqaArgs, args)
    data = load_vqa_data(run)
    check_vqa_labels(data.splits, run)
    for name, split in data.splits.items():
        if split[0]["answers"] is None:
            raise ValueError(
                f"split {name!r} has no answers; expected annotations, since the answer is part of the text"
            )

    def text(row: dict) -> EncodedText:
        answer = Counter(row["answers"]).most_common(1)[0][0]
        return encode_pair(tokenizer, f"{row['question']} {answer}", None, args.max_length, truncation=True)

    return Source(data, lambda row, data, generator: (text(row), None), text)


def _nlvr2(args: PretrainingArgs, tokenizer: Any) -> Source:
    run = _task_args(Nlvr2Args, args)
    data = load_nlvr2_data(run)
    if not args.no_match:  # the truth of a sentence is what is matched
        check_nlvr2_labels(data.splits, run)

    def text(row: dict) -> EncodedText:
        return encode_pair(tokenizer, row["sentence"], None, args.max_length, truncation=True)

    return Source(data, lambda row, data, generator: (text(row), row["label"]), text)


def _vcr(args: PretrainingArgs, tokenizer: Any) -> Source:
    run = _task_args(VcrArgs, args)
    data = load_vcr_data(run)
    check_vcr_labels(data.splits, run, "both")
    subtasks = ["answer"] if reads_table(run) else SUBTASKS
    for name, split in data.splits.items():
        if any(has_missing(split, f"{subtask}_label") for subtask in subtasks):
            raise ValueError(
                f"split {name!r} has no answers; expected labels, since the right choice is part of the text"
            )
    # Both sub-tasks, shuffled together.
    splits = {
        name: concatenate_datasets([split.add_column("subtask", [subtask] * len(split)) for subtask in subtasks])
        for name, split in data.splits.items()
    }

    def text(row: dict) -> EncodedText:
        choice = row[f"{row['subtask']}_choices"][row[f"{row['subtask']}_label"]]
        return encode_choice(tokenizer, context_of(row, row["subtask"]), choice, row["objects"], args.max_length)

    return Source(
        replace(data, splits=splits),
        lambda row, data, generator: (text(row), None),
        text,
        boxes=data.boxes,
    )


def _flickr30k(args: PretrainingArgs, tokenizer: Any) -> Source:
    if unread := given_columns(args, "phrases_column", "boxes_column"):
        raise ValueError(f"--{min(unread)}: stage {args.stage!r} reads sentences only; leave it out")
    data = load_flickr30k_data(_task_args(Flickr30kArgs, args), needs_phrases=False)

    def text(row: dict) -> EncodedText:
        return encode_pair(tokenizer, row["sentence"], None, args.max_length, truncation=True)

    return Source(data, lambda row, data, generator: (text(row), None), text)


def _task_args(args_class: type, args: PretrainingArgs) -> Any:
    """The arguments of the fine-tuning task whose data a stage reads; splits that were not named are that task's."""
    known = {item.name for item in fields(args_class)}
    names = [item.name for item in fields(TableArgs)]
    names += ["data_dir", "images_dir", "skip_bad_records", "train_scenes", "val_scenes", "test_scenes"]
    if unread := [name for name in given_columns(args, *COLUMN_FLAGS) if name not in known]:
        raise ValueError(f"--{unread[0]}: stage {args.stage!r} reads no such column; leave it out")
    shared = {name: getattr(args, name) for name in names}
    shared |= given_columns(args, *COLUMN_FLAGS)
    named = {name: getattr(args, name) for name in ("train_split", "dev_split", "test_split")}
    return args_class(**shared, **{name: split for name, split in named.items() if split is not None})


_SOURCES: dict[str, Callable[[PretrainingArgs, Any], Source]] = {
    "coco": _coco,
    "vqa": _vqa,
    "nlvr2": _nlvr2,
    "vcr": _vcr,
    "flickr30k": _flickr30k,
}


def _draw(task: Task, model: PreTrainedModel, row: MaskedRow, prediction: dict[str, Any]) -> Image.Image:
    """The image, the text with its masks, and what was put in their place."""
    tokenizer = task.processor.tokenizer
    image = grid([load_image(task.images[key]).convert("RGB") for key in row.images], columns=2)
    pieces = [
        f"{tokenizer.convert_ids_to_tokens(found)} ({tokenizer.convert_ids_to_tokens(truth)})"
        for found, truth in prediction["pieces"]
    ]
    lines = [tokenizer.decode(row.text.input_ids), f"model (truth): {', '.join(pieces) or 'nothing masked'}"]
    if "match" in prediction:
        lines.append(f"belongs together: {prediction['match']:.0%}   truth: {bool(prediction['match_label'])}")
    return captioned(image, lines)
