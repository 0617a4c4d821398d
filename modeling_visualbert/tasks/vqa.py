"""VQA v2 as a task of the training loop: official files -> questions and regions -> answers -> official accuracy."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from PIL import Image

from ..answers import pythia_answers
from ..checkpoints import trained_labels
from ..data.columns import column_of
from ..data.files import check_new, index_images, read_text
from ..data.given_answers import GivenAnswers
from ..data.image_words import answers_in_questions
from ..data.table_stream import StreamedRows
from ..data.vqa2 import find_vqa_files, load_vqa
from ..data.vqa_table import read_vqa_table
from ..features.batches import processor_arguments
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.modeling_visualbert import VisualBertForQuestionAnswering
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..hub_code.regions_visualbert import find_regions, pad_regions
from ..metrics.submissions import write_vqa_results
from ..metrics.vqa import answer_accuracy, answer_targets
from ..published import find_published_checkpoint
from ..training.preparing import preparing_processes
from ..training.task import Batch, Predictions, Rows, Task, count_examples, to_device
from ..visualization import answer_attention, captioned, draw_regions
from .common import TaskArgs, check_labels, corpus_folder, load_tokenizer, make_model, reads_corpus
from .regions import prepare_images
from .tables import TaskData, first_rows, given_columns, mentioning_own_data, read_tables, reads_table

logger = logging.getLogger(__name__)


@dataclass
class VqaArgs(TaskArgs):
    """Arguments of VQA fine-tuning."""

    train_split: str = field(
        default="train", metadata={"help": "split to train on, as in the file names; `train2014+val2014` joins two"}
    )
    dev_split: str = field(default="val", metadata={"help": "split that decides which weights are kept"})
    test_split: str | None = field(default=None, metadata={"help": "split that is scored or predicted at the end"})
    question_column: str | None = field(
        default=None, metadata={"help": "own data: column of questions (default: question)"}
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "own data: column of answers, in any of the usual forms (default: answers, answer or label)"},
    )
    answers: str | None = field(
        default=None,
        metadata={
            "help": "answer vocabulary: 'pythia', 'checkpoint' (that of init_from), 'train' (the answers of the training data), "
            "or a text file with one answer a line (default: 'checkpoint' if init_from answers questions, else 'train')"
        },
    )
    min_answer_count: int | None = field(
        default=None,
        metadata={
            "help": "questions that an answer needs to enter the vocabulary (default: 9, or fewer if that would give up the "
            "answers of more than a tenth of the questions)"
        },
    )
    target_rule: str = field(
        default="visualbert",
        metadata={
            "help": "how ten answers become a target, see metrics/vqa.py",
            "choices": ["visualbert", "uniform", "mmf"],
        },
    )
    image_fusion_size: int = field(
        default=0,
        metadata={
            "help": "also multiply question and image, at this size, such as 1024, and score answers from the product: learns "
            "fast from few questions"
        },
    )
    image_fusion_dropout: float = field(
        default=0.5, metadata={"help": "with --image_fusion_size: dropout of what is multiplied and of the product"}
    )
    mentioned_answers_weight: float = field(
        default=0.0,
        metadata={
            "help": "with --image_fusion_size: weight of a loss for finding the answers that training questions about the same "
            "image mention, such as 0.1"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_fusion_size < 0:
            raise ValueError(f"--image_fusion_size {self.image_fusion_size}; expected at least 0")
        if self.mentioned_answers_weight and not self.image_fusion_size:
            raise ValueError("--mentioned_answers_weight without --image_fusion_size; expected both")
        if self.mentioned_answers_weight and self.streaming:
            raise ValueError(
                "--mentioned_answers_weight with --streaming; expected one of them: all questions are read first"
            )


def vqa_task(args: VqaArgs, accelerator: Accelerator) -> Task:
    """Load data and model; the first process does what has to be done once (drawing, finding regions).

    Raises:
        ValueError, FileNotFoundError: Arguments or files do not fit together.
    """
    data = load_vqa_data(args)
    check_vqa_labels(data.splits, args)
    train = data.splits["train"]
    train = train.known if isinstance(train, StreamedRows) else train
    given = GivenAnswers(column_of(train, "answers"))
    answers, given_up = _choose_answers(args, train, given)
    if accelerator.is_main_process:
        _say_what_is_covered(answers, given, len(train))
    with accelerator.main_process_first():
        tokenizer = load_tokenizer(args)
    processes = preparing_processes(accelerator)
    images, data = prepare_images(args, data, processes)
    with processes.main_first():
        model = make_model(
            VisualBertForQuestionAnswering,
            args,
            tokenizer,
            images,
            id2label=dict(enumerate(answers)),
            label2id={answer: index for index, answer in enumerate(answers)},
            image_fusion_size=args.image_fusion_size,
            image_fusion_dropout=args.image_fusion_dropout,
            mentioned_answers_weight=args.mentioned_answers_weight,
        )
        if given_up:  # as many answers in another order would get one another's weights
            torch.nn.init.normal_(model.cls.weight, std=model.config.initializer_range)
            torch.nn.init.zeros_(model.cls.bias)
            if model.fusion is not None:
                torch.nn.init.normal_(model.fusion.answers.weight, std=model.config.initializer_range)
    processor = VisualBertProcessor(
        images.image_processor, tokenizer, answers=answers, region_dim=model.config.visual_embedding_dim
    )
    mentioned = None
    if args.mentioned_answers_weight and images.get is not None:
        questions, image_ids = (column_of(train, name).to_pylist() for name in ("question", "image_id"))
        mentioned = answers_in_questions(questions, image_ids, answers)
    task = make_task(model, processor, data.splits, images.get, args.target_rule, mentioned)
    task.images, task.skipped = images.paths, data.skipped
    task.write_results = None if reads_table(args) else write_results  # there is no server for one's own data
    if images.encoder is not None and images.paths:
        task.draw = partial(_draw, task)
    return task


def load_vqa_data(args: VqaArgs) -> TaskData:
    """The splits and where their images are: of one's own table, of the official files, or of the embedded corpus."""
    if reads_table(args):
        columns = given_columns(args, "image_column", "question_column", "answer_column")
        known = ("answers", "answer_scores", "question_type")
        return read_tables(args, partial(read_vqa_table, **columns), "image_id", known_columns=known)
    corpus = reads_corpus(args)
    folder = corpus_folder(args) if corpus else Path(args.data_dir or "")
    data_dir = folder / "vqa" if corpus else folder
    images_dir = folder / "images" if corpus else Path(args.images_dir or folder)
    skipped: list[str] | None = [] if args.skip_bad_records else None
    splits = {"train": args.train_split, "dev": args.dev_split, "test": args.test_split or ("test" if corpus else None)}
    names = {role: split for role, split in splits.items() if split}
    data = {role: _load_split(data_dir, split, skipped) for role, split in names.items()}
    return first_rows(TaskData(data, names, "image_id", index_images, images_dir, skipped or []), args)


def check_vqa_labels(data: dict[str, Dataset], args: VqaArgs) -> None:
    """
    Raises:
        ValueError: The train or dev split has no answers; the message names the file that is missing.
    """
    if reads_table(args):  # it was refused when it was read
        return

    def missing(split: str, column: str) -> str:
        return f"no {column}, because {args.data_dir} has no file like *_{split.partition('+')[0]}_annotations.json"

    check_labels(data, args, ["answers"], missing)


def make_task(
    model: VisualBertForQuestionAnswering,
    processor: VisualBertProcessor,
    data: dict[str, Dataset],
    image_of: Callable[[int], Any] | None,
    target_rule: str = "visualbert",
    mentioned: Mapping[Any, Sequence[int]] | None = None,
) -> Task:
    """The task over loaded data.

    Args:
        model, processor: As they are.
        data: The splits.
        image_of: The regions or the image of an image id; None for text only.
        target_rule: How answers become a target.
        mentioned: For the loss of `mentioned_answers`, the answers in each image, see [`answers_in_questions`].
    """
    answer_to_index = {answer: index for index, answer in enumerate(processor.answers or ())}

    def collate(rows: Rows) -> Batch:
        images = None if image_of is None else [image_of(row["image_id"]) for row in rows]
        batch = dict(processor(text=[row["question"] for row in rows], **processor_arguments(images)))
        if all(row["answers"] is not None for row in rows):
            labels = torch.zeros(len(rows), len(answer_to_index))
            for label, row in zip(labels, rows, strict=True):
                given = (row["answers"], row.get("answer_scores"))
                for index, score in answer_targets(*given, answer_to_index, target_rule).items():
                    label[index] = score
            batch["labels"] = labels
        if mentioned is not None:
            batch["mentioned_answers"] = torch.zeros(len(rows), len(answer_to_index))
            for label, row in zip(batch["mentioned_answers"], rows, strict=True):
                label[mentioned.get(row["image_id"], [])] = 1.0
        return batch

    def predict(outputs: Any, rows: Rows) -> Predictions:
        best = processor.post_process_question_answering(outputs, top_k=1)
        return [{"id": row["question_id"], **answers[0]} for row, answers in zip(rows, best, strict=True)]

    last: dict[str, tuple[Predictions, dict[Any, float]]] = {}

    def answers_of(predictions: Predictions, split: str) -> tuple[dict[Any, str], Dataset, dict[Any, float]]:
        """The answers and their accuracies, which are asked for twice: for the score, and when the predictions are written."""
        answers = {record["id"]: record["answer"] for record in predictions}
        if split not in last or last[split][0] is not predictions:
            last[split] = predictions, accuracies_of(answers, data[split])
        return answers, data[split], last[split][1]

    def score(predictions: Predictions, split: str) -> dict[str, Any]:
        return score_answers(*answers_of(predictions, split))

    def score_each(predictions: Predictions, split: str) -> Predictions:
        return own_accuracies(*answers_of(predictions, split))

    return Task(
        *("vqa", model, processor, data, collate, predict, score, "accuracy"),
        score_each=score_each,
        count_items=count_examples,
        # Without regions their projection has no gradient; a region encoder has parts that the answer does not depend on.
        # Without a loss of what is in the image, the bias of its scores has none.
        trains_all=image_of is not None
        and model.config.region_encoder_config is None
        and bool(model.config.mentioned_answers_weight) == bool(model.config.image_fusion_size),
    )


def score_answers(
    answers: dict[Any, str], split: Dataset, accuracies: dict[Any, float] | None = None
) -> dict[str, Any]:
    """Accuracy in percent ([`answer_accuracy`]), over all and by type; only the count for a split without answers.

    Args:
        answers: Answers by the id of their question.
        split: The questions.
        accuracies: What [`accuracies_of`] makes of these, if that is known.

    Raises:
        ValueError: A question was not answered, or an answer has no question.
    """
    if split[0]["answers"] is None:
        return {"num_examples": len(split)}
    if alone := answers.keys() ^ set(split["question_id"][:]):
        raise ValueError(
            f"{len(alone)} questions without an answer, or answers without a question: {next(iter(alone))!r}"
        )
    accuracies = accuracies_of(answers, split) if accuracies is None else accuracies
    by_type: dict[str, dict[str, list[float]]] = {"question_type": defaultdict(list), "answer_type": defaultdict(list)}
    for name, groups in by_type.items():
        for kind, accuracy in zip(split[name][:], accuracies.values(), strict=True):
            if kind is not None:
                groups[kind].append(accuracy)
    return {
        "accuracy": _mean(list(accuracies.values())),
        **{f"per_{name}": {kind: _mean(groups[kind]) for kind in sorted(groups)} for name, groups in by_type.items()},
        "num_examples": len(split),
    }


def own_accuracies(answers: dict[Any, str], split: Dataset, accuracies: dict[Any, float] | None = None) -> Predictions:
    """Accuracy in percent of each answer; the questions about an image are a group. Arguments as of [`score_answers`]."""
    if split[0]["answers"] is None:
        return []
    accuracies = accuracies_of(answers, split) if accuracies is None else accuracies
    images = dict(zip(split["question_id"][:], split["image_id"][:], strict=True))
    return [{"metrics": {"accuracy": accuracies[key]}, "group": images[key]} for key in answers]


def accuracies_of(answers: dict[Any, str], split: Dataset) -> dict[Any, float]:
    """Accuracy in percent by the id of each question that was answered, in the order of the split; nothing without answers."""
    if split[0]["answers"] is None:
        return {}
    ids, given = split["question_id"][:], split["answers"][:]
    scores = split["answer_scores"][:] if "answer_scores" in split.column_names else [None] * len(split)
    return {
        key: 100.0 * answer_accuracy(answers[key], *annotated)
        for key, *annotated in zip(ids, given, scores, strict=True)
        if key in answers
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def majority_baselines(train: Dataset, test: Dataset) -> dict[str, dict]:
    """Official accuracy of always giving the most common answer, over all and of each question type."""
    overall: Counter[str] = Counter()
    by_type: dict[str | None, Counter[str]] = defaultdict(Counter)
    for row in train:
        answer = Counter(row["answers"]).most_common(1)[0][0]
        overall[answer] += 1
        by_type[row["question_type"]][answer] += 1
    always = overall.most_common(1)[0][0]
    best = {kind: counts.most_common(1)[0][0] for kind, counts in by_type.items()}
    return {
        "majority answer": score_answers({row["question_id"]: always for row in test}, test),
        "majority answer per type": score_answers(
            {row["question_id"]: best.get(row["question_type"], always) for row in test}, test
        ),
    }


def write_results(predictions: Predictions, path: Path) -> None:
    """Write the file for the evaluation server."""
    write_vqa_results({record["id"]: record["answer"] for record in predictions}, path.with_suffix(".json"))


def _draw(
    task: Task, model: VisualBertForQuestionAnswering, row: dict[str, Any], prediction: dict[str, Any]
) -> Image.Image:
    """A question: regions weighted by attention, the answer and what most annotators said."""
    image = load_image(task.images[row["image_id"]])
    (regions,) = find_regions(model, task.processor.image_processor(images=[image], return_tensors="pt"))
    inputs = {**task.processor(text=[row["question"]]), **pad_regions([regions])}
    weights = answer_attention(model, **to_device(inputs, model.device))[0].tolist()
    lines = [row["question"], f"answer: {prediction['answer']} ({prediction['score']:.0%})"]
    if row["answers"] is not None:
        lines[1] += f"   annotators: {Counter(row['answers']).most_common(1)[0][0]}"
    labels = [f"{weight:.0%}" for weight in weights]
    return captioned(draw_regions(image, regions["boxes"].tolist(), weights, labels), lines)


def _load_split(data_dir: Path, split: str, skipped: list[str] | None) -> Dataset:
    names = split.split("+")
    with mentioning_own_data(data_dir, "image, question and answer"):
        found = [find_vqa_files(data_dir, name) for name in names]
    without = [name for name, files in zip(names, found, strict=True) if files.annotations is None]
    if 0 < len(without) < len(found):
        raise ValueError(
            f"split {split}: no answers for {without[0]}, because {data_dir} has no file like "
            f"*_{without[0]}_annotations.json; expected annotations of all parts or of none"
        )
    parts = [load_vqa(files.questions, files.annotations, skipped=skipped) for files in found]
    if len(parts) > 1:
        seen: set[int] = set()
        for name, part in zip(names, parts, strict=True):
            for question_id in column_of(part, "question_id").to_pylist():
                check_new(question_id, seen, "question id", f"split {split}: {name}")
    return concatenate_datasets(parts)


def _say_what_is_covered(answers: Sequence[str], given: GivenAnswers, count: int) -> None:
    """Questions without a known answer have no target; a vocabulary of other data leaves many."""
    share = 100.0 * given.count_covered(answers) / max(1, count)
    level = logging.INFO if share > 90 else logging.WARNING
    logger.log(level, "%d answers, which %.1f%% of the training questions have (see --answers)", len(answers), share)


def _choose_answers(args: VqaArgs, train: Dataset, given: GivenAnswers) -> tuple[list[str], bool]:
    """The answer vocabulary, and whether answers that the model to start from was trained on are given up for it.

    Raises:
        ValueError: The model does not say what its answers are, or has none, and the arguments do not say which to use.
    """
    trained = _trained_answers(args.init_from)
    has_names = trained is None or trained != [f"LABEL_{index}" for index in range(len(trained))]
    if args.answers in (None, "checkpoint") and trained is not None and not has_names:
        raise ValueError(
            f"{args.init_from}: {len(trained)} trained answers without names; expected --answers pythia if they are those of the "
            "published checkpoints, --answers FILE for others, or --answers train to give them up for those of the training data"
        )
    if args.answers == "checkpoint" and trained is None:
        raise ValueError(f"--answers checkpoint: expected an --init_from that answers questions, not {args.init_from}")
    if args.answers == "pythia":
        answers = list(pythia_answers())
    elif args.answers == "train" or (args.answers is None and trained is None):
        answers = (_best_answers(train) or given).vocabulary(args.min_answer_count)
    elif args.answers in (None, "checkpoint"):
        answers = list(trained or ())
    else:
        answers = read_text(args.answers).removesuffix("\n").split("\n")
    # Without names, they are what the arguments say.
    given_up = trained is not None and (answers != trained if has_names else args.answers == "train")
    if given_up:
        logger.warning(
            "--answers %s: the %d answers of %s are given up for %d others (--answers checkpoint keeps them)",
            *(args.answers, len(trained or ()), args.init_from, len(answers)),
        )
    return answers, given_up


def _best_answers(train: Dataset) -> GivenAnswers | None:
    """The best answer to each question, where answers have scores; None where they have none."""
    if "answer_scores" not in train.column_names:
        return None
    best = [
        answers if scores is None else [answers[max(range(len(scores)), key=scores.__getitem__)]]
        for answers, scores in zip(train["answers"], train["answer_scores"], strict=True)
    ]
    return GivenAnswers(pa.chunked_array([pa.array(best, pa.list_(pa.string()))]))


def _trained_answers(name: str | None) -> list[str] | None:
    """The answers of a checkpoint, in the order of its logits; None if it answers no questions."""
    answers = trained_labels(name, VisualBertForQuestionAnswering)
    is_published = name is not None and find_published_checkpoint(name) is not None  # its configuration has no names
    return list(pythia_answers()) if answers is not None and is_published else answers
