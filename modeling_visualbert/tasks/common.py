"""What the tasks share: their arguments, and the labels, the tokenizer and the model to start with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
)

from ..checkpoints import check_name, open_config
from ..corpus.build import CorpusConfig, ensure_corpus
from ..corpus.vocabulary import ASSETS
from ..hub_code.configuration_visualbert import VisualBertConfig
from ..hub_code.text_visualbert import check_tokenizer
from ..published import find_published_checkpoint, published_tokenizer
from ..tokenizer import open_tokenizer
from ..towers import read_size
from ..training.towers import add_adapters, train_last_layers
from .tables import TableArgs, reads_table

if TYPE_CHECKING:
    from .regions import Images

SMALL_BACKBONE = "small"
CORPUS = "corpus"  # names its tokenizer and its region encoder
DETECTOR = ASSETS / "shapes_detector"  # trained on the embedded corpus by examples/train_detector.py


@dataclass
class TaskArgs(TableArgs):
    """Arguments of every task that reads text and images. Without data it runs on the embedded corpus."""

    data_dir: str | None = field(
        default=None, metadata={"help": "folder with the official files; default: the embedded corpus"}
    )
    images_dir: str | None = field(default=None, metadata={"help": "folder with the images (default: data_dir)"})
    features_dir: str | None = field(default=None, metadata={"help": "feature store with the regions of all images"})
    region_encoder: str | None = field(
        default=None,
        metadata={
            "help": "region encoder to find regions with; `corpus` (default without own data): the one of the embedded corpus"
        },
    )
    grid_backbone: str | None = field(
        default=None,
        metadata={
            "help": "cut images into cells instead of finding objects: a vision model of transformers, or one for images and "
            "text, such as CLIP, by name or folder, or `small`, a small convolutional one that is trained along from scratch"
        },
    )
    grid_size: str | None = field(
        default=None,
        metadata={
            "help": "with --grid_backbone: rows and columns of cells, such as 6 or 6x8 (default: those of its map, at most 144 "
            "cells)"
        },
    )
    image_size: str | None = field(
        default=None,
        metadata={
            "help": "with --grid_backbone: size of the images, such as 224 or 384x512 for height x width (default: what it was "
            "trained with; small images are not enlarged where that is possible)"
        },
    )
    any_detector: bool = field(
        default=False,
        metadata={
            "help": "accept features of another detector than those that init_from was trained on, if they are as long"
        },
    )
    hash_images: bool = field(
        default=False,
        metadata={
            "help": "find the regions anew if the content of an image changed, and not only if its size or time did; reads all "
            "images"
        },
    )
    from_pixels: bool = field(
        default=False, metadata={"help": "run the region encoder in every step instead of storing its regions"}
    )
    train_region_encoder: bool = field(
        default=False, metadata={"help": "train the region encoder with the model; needs --from_pixels"}
    )
    train_backbone_layers: int | None = field(
        default=None,
        metadata={"help": "train only the last so many blocks or stages of the vision tower; needs --from_pixels"},
    )
    backbone_lora_rank: int | None = field(
        default=None,
        metadata={
            "help": "train matrices of this rank beside the weights of the vision tower (LoRA); needs --from_pixels"
        },
    )
    num_regions: int | None = field(
        default=None, metadata={"help": "keep only this many regions of each image, the most confident"}
    )
    text_only: bool = field(default=False, metadata={"help": "give the model no regions: text baseline"})
    late_fusion: bool = field(
        default=False,
        metadata={"help": "late fusion: text and regions meet in one additional layer only (ablation of the paper)"},
    )
    skip_bad_records: bool = field(
        default=False, metadata={"help": "skip bad records and list them in skipped.txt instead of stopping"}
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "VisualBERT checkpoint of any stage, or BERT, to start from; `scratch` overrides that of a recipe"
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "BERT tokenizer (default: that of init_from, or `corpus`, that of the embedded corpus)"},
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "publish the trained model with its card on the Hub at the end"}
    )
    hub_model_id: str | None = field(
        default=None,
        metadata={"help": "with --push_to_hub: name of the repository, user/name; created if there is none"},
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "with --push_to_hub: create a private repository"})
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "with --push_to_hub: token (default: that of `hf auth login`, or of the variable HF_TOKEN)"},
    )
    hidden_size: int = field(default=128, metadata={"help": "size of a model from scratch"})
    num_hidden_layers: int = field(default=3, metadata={"help": "layers of a model from scratch"})
    num_attention_heads: int = field(default=4, metadata={"help": "attention heads of a model from scratch"})
    intermediate_size: int = field(default=256, metadata={"help": "feed-forward size of a model from scratch"})
    initializer_range: float = field(default=0.05, metadata={"help": "initial weights of a model from scratch"})
    dropout: float = field(default=0.1, metadata={"help": "dropout of states and attention"})
    train_scenes: int = field(default=8000, metadata={"help": "embedded corpus: images to train on"})
    val_scenes: int = field(default=500, metadata={"help": "embedded corpus: images of the dev split"})
    test_scenes: int = field(default=1000, metadata={"help": "embedded corpus: images of the test split"})
    one_object: bool = field(default=False, metadata={"help": "embedded corpus: one object per image (VQA only)"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grid_backbone is not None and self.region_encoder is not None:
            raise ValueError("--grid_backbone with --region_encoder; expected one of them")
        for name in ("grid_size", "image_size"):
            value = getattr(self, name)
            if value is not None and self.grid_backbone is None:
                raise ValueError(f"--{name} without --grid_backbone; expected both")
            setattr(self, name, None if value is None else str(value))
            read_size(name, getattr(self, name))
        if self.grid_backbone == SMALL_BACKBONE:
            self._check_small_backbone()
            self.from_pixels = self.train_region_encoder = True  # its weights are random
        if self.streaming:
            if self.features_dir is not None:
                raise ValueError("--streaming with --features_dir; expected none: images are looked at as they come")
            self.from_pixels = True
        self._check_trained_parts()
        self._check_hub()
        if self.num_regions is not None and self.num_regions < 1:
            raise ValueError(f"--num_regions {self.num_regions}; expected at least 1")
        if self.init_from == "scratch":
            self.init_from = None

    def _check_small_backbone(self) -> None:
        for name in ("features_dir", "train_backbone_layers", "backbone_lora_rank"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"--grid_backbone {SMALL_BACKBONE} with --{name}; expected none: all of it is trained with the model"
                )

    def _check_hub(self) -> None:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("--push_to_hub without --hub_model_id; expected the name of the repository, user/name")
        for name in ("hub_model_id", "hub_private_repo", "hub_token"):
            if getattr(self, name) and not self.push_to_hub:
                raise ValueError(f"--{name} without --push_to_hub; expected both")

    def _check_trained_parts(self) -> None:
        """A part of the region encoder is trained: that sets `train_region_encoder`, as the whole does."""
        parts = [name for name in ("train_backbone_layers", "backbone_lora_rank") if getattr(self, name) is not None]
        if len(parts) > 1:
            raise ValueError(f"--{parts[0]} with --{parts[1]}; expected one of them")
        for name in parts:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}; expected at least 1")
        if (parts or self.train_region_encoder) and not self.from_pixels:
            flag = parts[0] if parts else "train_region_encoder"
            raise ValueError(f"--{flag} needs --from_pixels: stored features do not change")
        self.train_region_encoder = self.train_region_encoder or bool(parts)
        if self.backbone_learning_rate is not None and not self.train_region_encoder:
            raise ValueError("--backbone_learning_rate without --train_region_encoder; expected both: it is frozen")


@dataclass
class ClassArgs(TaskArgs):
    """Arguments of tasks whose labels are one class out of several."""

    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "share of each label that the loss spreads over all of them evenly, such as 0.1"},
    )


def reads_corpus(args: TaskArgs) -> bool:
    """Whether the data is the embedded corpus: no other is named."""
    return args.data_dir is None and not reads_table(args)


def corpus_folder(args: TaskArgs) -> Path:
    """The embedded corpus of the run, built on first use."""
    sizes = args.train_scenes, args.val_scenes, args.test_scenes
    return ensure_corpus(CorpusConfig(*sizes, one_object=args.one_object))


def check_labels(
    data: Mapping[str, Dataset], args: TaskArgs, columns: Sequence[str], missing: Callable[[str, str], str]
) -> None:
    """Training and the choice of the best weights need labels. (Loaders see to it that all rows of a split have them, or none.)

    Args:
        data: Splits by role.
        args: The run's arguments.
        columns: What the labels are.
        missing: Name of a split and column -> what is missing, and where.

    Raises:
        ValueError: The train or dev split has no labels, or no examples.
    """
    for role in ("train", "dev"):
        if role not in data:
            continue
        split = getattr(args, f"{role}_split")
        if not len(data[role]):
            raise ValueError(f"--{role}_split {split}: no examples; expected at least one")
        for column in columns:
            if data[role][0][column] is None:
                raise ValueError(
                    f"--{role}_split {split}: {missing(split, column)}; expected labels (only --test_split can do without)"
                )


def load_tokenizer(args: TaskArgs) -> Any:
    """The tokenizer asked for, that of the starting point, or that of the embedded corpus.

    Raises:
        FileNotFoundError: There is no such folder, or no tokenizer in it.
        ValueError: It lacks a special token, or none is named for one's own data.
    """
    if args.init_from is not None:
        try:
            check_name(args.init_from)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; {_HOW_TO_INIT}") from None
    if reads_table(args) and args.tokenizer is None and args.init_from is None:
        raise ValueError(
            "own data without --init_from and --tokenizer; expected a VisualBERT or BERT to start from, such as "
            "google-bert/bert-base-uncased, or its tokenizer: that of the embedded corpus knows no other words"
        )
    name = args.tokenizer or args.init_from or CORPUS
    if name == CORPUS:
        name = str(ASSETS / "corpus_tokenizer")
    return open_tokenizer(published_tokenizer() if find_published_checkpoint(name) is not None else name)


_HOW_TO_INIT = "train the earlier stage first, or pass another --init_from (`--init_from scratch` starts from nothing)"


# What decides, beside the processor, which text and regions a model reads; checkpoints keep it, so that evaluation follows it.
TASK_OPTIONS = (
    "text_only",
    "num_regions",
    "subtask",
    "objects",
    "positions",
    "stage",
    "mlm_probability",
    "no_match",
)


def task_options(args: TaskArgs) -> dict[str, Any]:
    """Those arguments of `TASK_OPTIONS` that the task has, for `config.task_options`."""
    return {name: getattr(args, name) for name in TASK_OPTIONS if hasattr(args, name)}


def make_model(
    head: type[PreTrainedModel], args: TaskArgs, tokenizer: Any, images: Images, **fields: Any
) -> PreTrainedModel:
    """A model with this head: from scratch, from BERT, or from a VisualBERT checkpoint of any stage.

    Args:
        head: Class of the model.
        args: The run's arguments.
        tokenizer: Its size is the vocabulary of a model from scratch.
        images: Their region encoder becomes part of the model.
        fields: Fields of the configuration that the task decides, such as `id2label`.

    Raises:
        ValueError: The checkpoint's weights do not fit this configuration, anywhere but in the head.
    """
    torch.manual_seed(args.seed)  # the same new weights in every process
    fields |= {
        "hidden_dropout_prob": args.dropout,
        "attention_probs_dropout_prob": args.dropout,
        "freeze_region_encoder": not args.train_region_encoder,
        "bypass_transformer": args.late_fusion,
        "task_options": task_options(args),
    }
    if images.encoder is not None:
        encoder_fields = images.encoder.config.to_dict()
        fields["region_encoder_config"] = {k: v for k, v in encoder_fields.items() if k != "_name_or_path"}
    else:
        fields["visual_embedding_dim"] = images.region_dim
    fields["feature_detector"] = dict(images.detector)
    if args.train_region_encoder:  # from now on it is a detector of its own
        fields["feature_detector"]["fingerprint"] = None
    if args.init_from is None:
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "initializer_range")
        fields |= {name: getattr(args, name) for name in sizes}
        model = head(VisualBertConfig(vocab_size=len(tokenizer), **fields))
    elif open_config(args.init_from).model_type == "bert":
        model = head.from_bert(args.init_from, **fields)
    else:
        model = _from_visualbert(head, args.init_from, fields)
    check_tokenizer(tokenizer, model.config.vocab_size, None, str(args.tokenizer or args.init_from or "tokenizer"))
    if images.encoder is not None:
        encoder = model.visual_bert.region_encoder
        encoder.load_state_dict(images.encoder.state_dict())
        if args.train_backbone_layers is not None:
            train_last_layers(encoder, args.train_backbone_layers)
        if args.backbone_lora_rank is not None:
            add_adapters(encoder, args.backbone_lora_rank)
    return model


def _from_visualbert(head: type[PreTrainedModel], name: str, fields: dict[str, Any]) -> PreTrainedModel:
    old = VisualBertConfig.from_pretrained(name).to_dict()
    if "id2label" not in fields:
        old = {key: value for key, value in old.items() if key not in ("id2label", "label2id")}
    config = VisualBertConfig(**{**old, **fields})
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = head.from_pretrained(
        name, config=config, new_parts=("region_encoder.", "additional_layer.", "fusion."), **options
    )
    for key, theirs, ours in info["mismatched_keys"]:
        # Another task or answer vocabulary gets a new classifier; anything else is a mistake.
        if not key.startswith(("cls.", "fusion.")):
            raise ValueError(f"{name}: {key!r} has shape {tuple(theirs)}, expected {tuple(ours)}")
    return model
