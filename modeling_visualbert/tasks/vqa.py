"""VQA v2 as a task of the training loop: official files -> questions and regions -> answers -> official accuracy."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from ..answers import build_answer_vocabulary, pythia_answers
from ..configuration_visualbert import VisualBertConfig
from ..corpus.build import CorpusConfig, default_cache_dir, ensure_corpus
from ..corpus.vocabulary import ASSETS
from ..data.files import index_images
from ..data.vqa2 import find_vqa_files, load_vqa
from ..features.extract import extract_regions
from ..features.store import FeatureStore, write_store
from ..image_processing_visualbert import VisualBertImageProcessor, load_picture
from ..metrics.vqa import soft_targets, vqa_accuracy
from ..modeling_region_encoder import QueryRegionEncoder
from ..modeling_visualbert import VisualBertForQuestionAnswering
from ..processing_visualbert import VisualBertProcessor
from ..training.args import TrainArgs
from ..training.task import Batch, Predictions, Rows, Task, batch_size_of, to_device
from ..visualization import answer_attention, captioned, draw_regions, grid

DETECTOR = ASSETS / "shapes_detector"  # trained on the embedded corpus by examples/train_detector.py


@dataclass
class VqaArgs(TrainArgs):
    """Arguments of VQA fine-tuning. Without `data_dir` everything runs on the embedded corpus."""

    data_dir: str | None = field(
        default=None, metadata={"help": "folder with the official VQA v2 files; default: the embedded corpus"}
    )
    train_split: str = field(default="train", metadata={"help": "split to train on, as in the file names"})
    dev_split: str = field(default="val", metadata={"help": "split that decides which weights are kept"})
    test_split: str | None = field(default=None, metadata={"help": "split that is scored or predicted at the end"})
    images_dir: str | None = field(default=None, metadata={"help": "folder with the pictures (default: data_dir)"})
    features_dir: str | None = field(default=None, metadata={"help": "feature store with the regions of all pictures"})
    region_encoder: str | None = field(
        default=None, metadata={"help": "region encoder to find regions with (default: the one of the embedded corpus)"}
    )
    from_pixels: bool = field(default=False, metadata={"help": "run the region encoder in every step, store nothing"})
    train_region_encoder: bool = field(
        default=False, metadata={"help": "train the region encoder too; needs --from_pixels"}
    )
    text_only: bool = field(default=False, metadata={"help": "question-only baseline: the model sees no regions"})
    init_from: str | None = field(
        default=None, metadata={"help": "VisualBERT checkpoint of any stage, or BERT, to start from (default: scratch)"}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "BERT tokenizer (default: that of init_from or the corpus)"}
    )
    answers: str | None = field(
        default=None,
        metadata={
            "help": "answer vocabulary: 'pythia', or a text file with one answer a line (default: from the answers)"
        },
    )
    min_answer_count: int = field(
        default=9, metadata={"help": "questions that an answer needs to enter the vocabulary"}
    )
    target_rule: str = field(
        default="visualbert",
        metadata={
            "help": "how ten answers become a target, see metrics/vqa.py",
            "choices": ["visualbert", "uniform", "mmf"],
        },
    )
    hidden_size: int = field(default=128, metadata={"help": "size of a model from scratch"})
    num_hidden_layers: int = field(default=3, metadata={"help": "layers of a model from scratch"})
    num_attention_heads: int = field(default=4, metadata={"help": "attention heads of a model from scratch"})
    intermediate_size: int = field(default=256, metadata={"help": "feed-forward size of a model from scratch"})
    initializer_range: float = field(default=0.05, metadata={"help": "initial weights of a model from scratch"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of states and attention"})
    train_scenes: int = field(default=8000, metadata={"help": "embedded corpus: pictures to train on"})
    val_scenes: int = field(default=500, metadata={"help": "embedded corpus: pictures of the dev split"})
    test_scenes: int = field(default=1000, metadata={"help": "embedded corpus: pictures of the test split"})


def vqa_task(args: VqaArgs, accelerator: Accelerator) -> Task:
    """Load data and model; the first process does what has to be done once (drawing, finding regions).

    Raises:
        ValueError, FileNotFoundError: Arguments or files do not fit together.
    """
    if args.train_region_encoder and not args.from_pixels:
        raise ValueError("--train_region_encoder needs --from_pixels: stored features do not change")
    corpus = args.data_dir is None
    with accelerator.main_process_first():
        data_dir, images_dir = _locate(args)
        splits = {
            "train": args.train_split,
            "dev": args.dev_split,
            "test": args.test_split or ("test" if corpus else None),
        }
        data = {name: _load_split(data_dir, split) for name, split in splits.items() if split is not None}
        torch.manual_seed(args.seed)  # the same new weights in every process
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer or args.init_from or ASSETS / "corpus_tokenizer")
        answers = _answers(args, data["train"])
        encoder, image_processor = (None, None) if args.text_only else _region_encoder(args)
        image_of, store = _image_source(args, data, images_dir, encoder, image_processor, accelerator.device)
        model = _model(args, answers, tokenizer, encoder, store)
    processor = VisualBertProcessor(
        image_processor, tokenizer, answers=answers, region_dim=model.config.visual_embedding_dim
    )
    return make_task(model, processor, data, image_of, args.target_rule)


def make_task(
    model: VisualBertForQuestionAnswering,
    processor: VisualBertProcessor,
    data: dict[str, Dataset],
    image_of: Callable[[int], Any] | None,
    target_rule: str,
) -> Task:
    """The task over loaded data; `image_of` gives the regions or the picture of an image id, None for text only."""
    answer_to_index = {answer: index for index, answer in enumerate(processor.answers or ())}

    def collate(rows: Rows) -> Batch:
        images = None if image_of is None else [image_of(row["image_id"]) for row in rows]
        batch = dict(processor(images=images, text=[row["question"] for row in rows]))
        batch.pop("image_sizes", None)
        if rows[0]["answers"] is not None:
            labels = torch.zeros(len(rows), len(answer_to_index))
            for label, row in zip(labels, rows, strict=True):
                for index, score in soft_targets(row["answers"], answer_to_index, rule=target_rule).items():
                    label[index] = score
            batch["labels"] = labels
        return batch

    def predict(outputs: Any, rows: Rows) -> Predictions:
        best = processor.post_process_question_answering(outputs, top_k=1)
        return [{"id": row["question_id"], **answers[0]} for row, answers in zip(rows, best, strict=True)]

    def score(predictions: Predictions, split: str) -> dict[str, Any]:
        return score_answers({record["id"]: record["answer"] for record in predictions}, data[split])

    return Task("vqa", model, processor, data, collate, predict, score, "accuracy", count_items=batch_size_of)


def score_answers(answers: dict[int, str], split: Dataset) -> dict[str, Any]:
    """Official accuracy in percent by question id, over all and by type; only the count for a split without answers."""
    if split[0]["answers"] is None:
        return {"num_examples": len(split)}
    annotations = [
        {
            **{k: v for k, v in row.items() if v is not None},
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(row["answers"])],
        }
        for row in split
    ]
    scored = vqa_accuracy(answers, annotations)
    return {
        "accuracy": scored["overall"],
        "per_question_type": dict(sorted(scored["per_question_type"].items())),
        "per_answer_type": dict(sorted(scored["per_answer_type"].items())),
        "num_examples": scored["num_examples"],
    }


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


def write_official_results(predictions_file: Path, results_file: Path) -> None:
    """`predictions_*.jsonl` -> the JSON that the VQA evaluation server takes."""
    records = [json.loads(line) for line in predictions_file.read_text(encoding="utf-8").splitlines()]
    results = [{"question_id": record["id"], "answer": record["answer"]} for record in records]
    results_file.write_text(json.dumps(results), encoding="utf-8")


def draw_examples(
    model: VisualBertForQuestionAnswering, task: Task, split: str, args: VqaArgs, path: Path, count: int = 9
) -> None:
    """A sheet of test questions: regions weighted by attention, the answer and what the annotators said."""
    _, images_dir = _locate(args)
    images = index_images(images_dir)
    data = task.splits[split]
    rows = [data[i] for i in range(0, len(data), max(1, len(data) // count))][:count]
    cells = []
    for row in rows:
        picture = load_picture(images[row["image_id"]])
        batch = to_device(dict(task.processor(images=[picture], text=[row["question"]])), model.device)
        with torch.inference_mode():
            found = model.get_image_features(batch.pop("pixel_values"), batch.pop("pixel_mask", None))
            (regions,) = task.processor.post_process_regions(found, batch.pop("image_sizes"))
            batch |= {"visual_embeds": found.visual_embeds, "visual_attention_mask": found.visual_attention_mask}
            (answer,) = task.processor.post_process_question_answering(model(**batch), top_k=1)[0]
        weights = answer_attention(model, **batch)[0, : len(regions["boxes"])].tolist()
        lines = [row["question"], f"answer: {answer['answer']} ({answer['score']:.0%})"]
        if row["answers"] is not None:
            lines[1] += f"   annotators: {Counter(row['answers']).most_common(1)[0][0]}"
        labels = [f"{weight:.0%}" for weight in weights]
        cells.append(captioned(draw_regions(picture, regions["boxes"].tolist(), weights, labels), lines))
    grid(cells).save(path)


def _locate(args: VqaArgs) -> tuple[Path, Path]:
    if args.data_dir is not None:
        return Path(args.data_dir), Path(args.images_dir or args.data_dir)
    folder = ensure_corpus(CorpusConfig(args.train_scenes, args.val_scenes, args.test_scenes))
    return folder / "vqa", folder / "images"


def _load_split(data_dir: Path, split: str) -> Dataset:
    files = find_vqa_files(data_dir, split)
    return load_vqa(files.questions, files.annotations)


def _answers(args: VqaArgs, train: Dataset) -> list[str]:
    if args.answers == "pythia":
        return list(pythia_answers())
    if args.answers is not None:
        return Path(args.answers).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if args.init_from is not None:
        names = AutoConfig.from_pretrained(args.init_from).id2label
        if len(names) > 2 and names[0] != "LABEL_0":
            return [names[index] for index in sorted(names)]
    return build_answer_vocabulary(train["answers"], args.min_answer_count)


def _region_encoder(args: VqaArgs) -> tuple[QueryRegionEncoder, VisualBertImageProcessor] | tuple[None, None]:
    """The region encoder of the run with its image processor: the one asked for, that of the starting point, or, unless
    features of some other detector are given, the one of the embedded corpus."""
    if args.region_encoder is None and args.init_from is not None:
        config = AutoConfig.from_pretrained(args.init_from)
        if getattr(config, "region_encoder_config", None) is not None:
            encoder = VisualBertForQuestionAnswering.from_pretrained(args.init_from).visual_bert.region_encoder
            return encoder.eval(), VisualBertProcessor.from_pretrained(args.init_from).image_processor
    if args.region_encoder is None and args.features_dir is not None:
        return None, None
    folder = args.region_encoder or DETECTOR
    return QueryRegionEncoder.from_pretrained(folder).eval(), VisualBertImageProcessor.from_pretrained(folder)


def _picture_paths(images_dir: Path, image_ids: list[int]) -> dict[int, Path]:
    paths = index_images(images_dir)
    missing = [image_id for image_id in image_ids if image_id not in paths]
    if missing:
        raise FileNotFoundError(f"{images_dir}: no picture of image {missing[0]} ({len(missing)} are missing)")
    return paths


def _stored_regions(
    images_dir: Path,
    image_ids: list[int],
    encoder: QueryRegionEncoder,
    image_processor: VisualBertImageProcessor,
    device: torch.device,
) -> FeatureStore:
    """The regions of all pictures of the data: found on first use, kept in the cache."""
    identity = [str(images_dir.resolve()), image_ids, encoder.fingerprint(), image_processor.to_json_string()]
    folder = default_cache_dir() / "regions" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    if not (folder / "index.json").is_file():
        paths = _picture_paths(images_dir, image_ids)
        encoder.to(device)
        regions = extract_regions(encoder, image_processor, ((i, paths[i]) for i in image_ids), total=len(image_ids))
        write_store(folder, regions, encoder.config.region_dim, detector=encoder.fingerprint())
        encoder.cpu()
    return FeatureStore(folder)


def _image_source(
    args: VqaArgs,
    data: dict[str, Dataset],
    images_dir: Path,
    encoder: QueryRegionEncoder | None,
    image_processor: VisualBertImageProcessor | None,
    device: torch.device,
) -> tuple[Callable[[int], Any] | None, FeatureStore | None]:
    """What gives the regions or the picture of an image id, and the feature store behind it; nothing for text only."""
    if args.text_only:
        return None, None
    image_ids = sorted({image_id for split in data.values() for image_id in split["image_id"]})
    if args.from_pixels:
        paths = _picture_paths(images_dir, image_ids)
        return paths.__getitem__, None
    if args.features_dir is not None or encoder is None or image_processor is None:
        store = FeatureStore(args.features_dir or "")
    else:
        store = _stored_regions(images_dir, image_ids, encoder, image_processor, device)
    missing = [image_id for image_id in image_ids if image_id not in store]
    if missing:
        raise ValueError(f"{store.folder}: no regions of image {missing[0]} ({len(missing)} are missing)")
    return (lambda image_id: {"visual_embeds": store[image_id]["visual_embeds"]}), store


def _model(
    args: VqaArgs, answers: list[str], tokenizer: Any, encoder: QueryRegionEncoder | None, store: FeatureStore | None
) -> VisualBertForQuestionAnswering:
    fields: dict[str, Any] = {
        "id2label": dict(enumerate(answers)),
        "label2id": {answer: index for index, answer in enumerate(answers)},
        "hidden_dropout_prob": args.dropout,
        "attention_probs_dropout_prob": args.dropout,
        "freeze_region_encoder": not args.train_region_encoder,
    }
    if encoder is not None:
        fields["region_encoder_config"] = {k: v for k, v in encoder.config.to_dict().items() if k != "_name_or_path"}
    elif store is not None:
        fields["visual_embedding_dim"] = store.dim
    if args.init_from is None:
        sizes = {name: getattr(args, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        model = VisualBertForQuestionAnswering(
            VisualBertConfig(
                vocab_size=len(tokenizer),
                intermediate_size=args.intermediate_size,
                initializer_range=args.initializer_range,
                **sizes,
                **fields,
            )
        )
    elif AutoConfig.from_pretrained(args.init_from).model_type == "bert":
        model = VisualBertForQuestionAnswering.from_bert(args.init_from, **fields)
    else:
        config = VisualBertConfig(**{**VisualBertConfig.from_pretrained(args.init_from).to_dict(), **fields})
        model, info = VisualBertForQuestionAnswering.from_pretrained(
            args.init_from, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
        for name, theirs, ours in info["mismatched_keys"]:
            if not name.startswith(
                "cls."
            ):  # another answer vocabulary gets a new classifier; anything else is a mistake
                raise ValueError(f"{args.init_from}: {name!r} has shape {tuple(theirs)}, expected {tuple(ours)}")
    if store is not None and store.dim != model.config.visual_embedding_dim:
        raise ValueError(
            f"{store.folder}: features of dim {store.dim} by {store.info['detector']}, "
            f"this model expects {model.config.visual_embedding_dim}"
        )
    if encoder is not None:
        model.visual_bert.region_encoder.load_state_dict(encoder.state_dict())
    return model
