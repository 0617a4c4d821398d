"""What the tasks share: their arguments, where images and regions come from, and the model to start with."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    PreTrainedModel,
    ResNetConfig,
)

from ..checkpoints import check_name, load_inner_region_encoder
from ..convert.checkpoint_files import naming
from ..convert.published_detectors import open_region_encoder
from ..corpus.build import CorpusConfig, default_cache_dir, ensure_corpus, in_corpus
from ..corpus.vocabulary import ASSETS
from ..data.table_images import TableImages
from ..features.extract import (
    describe_detector,
    extract_regions,
    image_processor_fields,
    image_processor_hash,
    load_region_encoder,
    sample_sizes,
    unreadable,
)
from ..features.format import FORMAT
from ..features.images import image_id_from_number, image_id_from_stem
from ..features.store import FeatureStore, write_store
from ..hub_code.configuration_grid_encoder import GridRegionEncoderConfig
from ..hub_code.configuration_visualbert import VisualBertConfig
from ..hub_code.image_processing_visualbert import VisualBertImageProcessor
from ..hub_code.modeling_grid_encoder import GridRegionEncoder
from ..hub_code.modeling_region_encoder import RegionEncoder
from ..hub_code.regions_visualbert import check_detector, spatial_hint
from ..hub_code.text_visualbert import check_tokenizer
from ..published import find_published_checkpoint, published_tokenizer
from ..tokenizer import open_tokenizer
from ..towers import SAMPLE, grid_of, image_size_of, open_tower, read_size
from ..training.towers import add_adapters, train_last_layers
from .tables import ImageFile, TableArgs, TaskData, reads_table

SMALL_BACKBONE = "small"
CORPUS = "corpus"  # names its tokenizer and its region encoder
DETECTOR = ASSETS / "shapes_detector"  # trained on the embedded corpus by examples/train_detector.py
Boxes = Sequence[Sequence[float]]


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


@dataclass
class Images:
    """Where the regions of the data's images come from.

    Args:
        get: Image key -> regions (a mapping) or the path of the image; None for text only.
        encoder, image_processor: What finds the regions; None when stored features are all there is.
        region_dim: Length of a feature.
        paths: Image files by key, where they are known.
        detector: Name and fingerprint of what found the regions.
    """

    get: Callable[[Hashable], Any] | None
    encoder: RegionEncoder | None
    image_processor: VisualBertImageProcessor | None
    region_dim: int
    paths: Mapping[Any, ImageFile]
    detector: Mapping[str, Any]


def prepare_images(
    args: TaskArgs, data: TaskData, device: torch.device, boxes: Mapping[Any, Boxes] | None = None
) -> tuple[Images, TaskData]:
    """Find the regions of all images of the data, or where they are stored.

    Args:
        args: The run's arguments.
        data: What the task reads.
        device: Where to run the region encoder.
        boxes: Given boxes of each image in pixels, the whole image first, to describe instead of finding some.

    Returns:
        Where the regions are, and the data: with `skip_bad_records` without the rows whose images are missing or cannot be read.

    Raises:
        FileNotFoundError, ValueError: Images or regions are missing.
    """
    encoder, image_processor = _region_encoder(args, data)
    made_by = None if encoder is None else encoder.identity()  # computed once: it reads all weights
    store = None if args.features_dir is None else _given_store(args, encoder, made_by)
    dim, detector = _check_features(args, encoder, made_by, store)
    if args.text_only:  # the model is the same, so that a later stage can start from it
        return Images(None, encoder, image_processor, dim, {}, detector), data
    if args.from_pixels:
        if encoder is None:
            raise ValueError("--from_pixels needs a region encoder: pass --region_encoder")
        paths, left_out = _existing(data, args.skip_bad_records)
        _check_images(args, encoder, data.images_dir)
        limit_regions(encoder, args.num_regions)
        if args.skip_bad_records:
            left_out |= unreadable({key: partial(paths.__getitem__, key) for key in paths})
        images = Images(paths.__getitem__, encoder, image_processor, dim, paths, detector)
        return images, _rows_with_images(data, left_out)
    if reads_objects(encoder):
        raise ValueError(
            f"{args.region_encoder or args.init_from}: this detector describes objects by their class and outline, which no "
            "feature store has; expected --from_pixels, and the data of VCR"
        )
    paths, left_out = {}, {}
    if store is None:
        assert encoder is not None and image_processor is not None and made_by is not None
        paths, left_out = _existing(data, args.skip_bad_records)
        _check_images(args, encoder, data.images_dir)
        fingerprint = made_by["fingerprint"]
        store = _stored_regions(paths, boxes, encoder, fingerprint, image_processor, device, args.skip_bad_records)
        left_out |= unreadable({key: partial(paths.__getitem__, key) for key in paths if key not in store})
    keys = [key for key in data.all_keys() if key not in left_out]
    id_of = ids_in_store(store, keys)
    if args.features_dir is not None and store.image_files:
        _check_unchanged(store, data, keys, id_of)
    missing = [key for key in keys if id_of(key) not in store]
    if missing and not (args.skip_bad_records and len(missing) < len(keys)):
        raise ValueError(f"{store.folder}: no regions of image {missing[0]} ({len(missing)} are missing)")
    left_out |= {key: f"{store.folder}: no regions of image {key}" for key in missing}

    def regions(key: Hashable) -> dict[str, torch.Tensor]:
        found = store[id_of(key)]
        # They are stored by falling confidence.
        return {name: found[name][: args.num_regions] for name in ("visual_embeds", "boxes") if name in found}

    limit_regions(encoder, args.num_regions)  # the trained model, reading pixels, finds as many as were stored
    images = Images(regions, encoder, image_processor, dim, paths, detector)
    return images, _rows_with_images(data, left_out)


def _rows_with_images(data: TaskData, left_out: Mapping[Hashable, str]) -> TaskData:
    """The data without the rows whose images are left out; each adds an error to `skipped`.

    Raises:
        ValueError: No row of a split is left.
    """
    if not left_out:
        return data
    splits, skipped = {}, [*data.skipped]
    for role, split in data.splits.items():
        kept = []
        for number, keys in enumerate(data.keys(split)):
            reasons = [left_out[key] for key in keys if key in left_out]
            skipped += [f"{role}: row {number}: {reason}" for reason in reasons[:1]]
            kept += [] if reasons else [number]
        if len(split) and not kept:
            raise ValueError(f"{role}: all {len(split)} rows are left out, the last because of {skipped[-1]}")
        splits[role] = split.select(kept)
    return replace(data, splits=splits, skipped=skipped)


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


def reads_objects(encoder: RegionEncoder | None) -> bool:
    """Whether it is VCR's detector, see `RegionDetectorConfig.reads_objects`; other region encoders have no such property."""
    return encoder is not None and getattr(encoder.config, "reads_objects", False)


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
    elif AutoConfig.from_pretrained(args.init_from).model_type == "bert":
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
        name, config=config, new_parts=("region_encoder.", "additional_layer."), **options
    )
    for key, theirs, ours in info["mismatched_keys"]:
        # Another task or answer vocabulary gets a new classifier; anything else is a mistake.
        if not key.startswith("cls."):
            raise ValueError(f"{name}: {key!r} has shape {tuple(theirs)}, expected {tuple(ours)}")
    return model


def _region_encoder(
    args: TaskArgs, data: TaskData
) -> tuple[RegionEncoder, VisualBertImageProcessor] | tuple[None, None]:
    """The region encoder of the run with its image processor: the one asked for, that of the starting point, or, unless
    features of some other detector are given, the one of the embedded corpus."""
    if args.grid_backbone is not None:
        return _grid_encoder(args, data)
    if args.region_encoder == CORPUS:
        return load_region_encoder(DETECTOR)
    if args.region_encoder is not None:
        return open_region_encoder(args.region_encoder)
    if args.init_from is not None:
        with naming(args.init_from):  # safetensors' errors name no file
            encoder = load_inner_region_encoder(args.init_from)
        if encoder is not None:
            return encoder, AutoImageProcessor.from_pretrained(args.init_from)
    if args.features_dir is not None:
        return None, None
    return load_region_encoder(DETECTOR)


def _grid_encoder(args: TaskArgs, data: TaskData) -> tuple[RegionEncoder, VisualBertImageProcessor]:
    store = None if args.features_dir is None else FeatureStore(args.features_dir)
    sizes = _some_sizes(data, store)
    if args.grid_backbone != SMALL_BACKBONE:
        encoder, image_processor = open_tower(str(args.grid_backbone), args.grid_size, args.image_size, sizes)
        prepared = None if store is None else store.detector.get("image_processor_hash")
        if prepared not in (None, image_processor_hash(image_processor)) and not args.any_detector:
            raise ValueError(
                f"{args.features_dir}: the images of these features were prepared in another way than here for "
                f"{args.grid_backbone}; expected the --image_size of `visualbert extract`"
            )
        return encoder, image_processor
    torch.manual_seed(args.seed)  # the same new weights in every process
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic", out_features=["stage3"]
    )
    size = image_size_of(config, {}, args.image_size, sizes)
    rows, columns = grid_of(config, size, args.grid_size, sizes)
    encoder = GridRegionEncoder(GridRegionEncoderConfig(backbone_config=config, grid_rows=rows, grid_columns=columns))
    return encoder, VisualBertImageProcessor(size=size)


def _some_sizes(data: TaskData, store: FeatureStore | None) -> list[tuple[int, int]]:
    """Height and width of some images of the data, or of a store's, in the same order as `visualbert extract`."""
    if store is not None:
        found = (store[image_id].get("image_size") for image_id in sorted(store)[:SAMPLE])
        return [(int(size[0]), int(size[1])) for size in found if size is not None]
    keys = data.all_keys()[:SAMPLE]
    wanted = {name: {*keys} & some for name, some in data.wanted().items()}
    paths: Mapping[Any, ImageFile] = {}
    with suppress(FileNotFoundError, ValueError):  # refused where they are read; a run without images needs none
        paths = data.find_paths(data.images_dir, wanted=wanted)
    return sample_sizes(partial(paths.__getitem__, key) for key in keys if key in paths)


def _given_store(args: TaskArgs, encoder: RegionEncoder | None, made_by: Mapping[str, str] | None) -> FeatureStore:
    """The store of `features_dir`; refused if it is known to be of another detector than the model's."""
    if encoder is None or made_by is None:
        return FeatureStore(args.features_dir or "")
    fingerprint = None if args.any_detector else made_by["fingerprint"]
    return FeatureStore(args.features_dir or "", encoder.config.region_dim, fingerprint)


def _check_features(
    args: TaskArgs, encoder: RegionEncoder | None, made_by: Mapping[str, str] | None, store: FeatureStore | None
) -> tuple[int, dict[str, Any]]:
    """Length and detector of the features that the model will read.

    The model to start from, the region encoder and the stored features, as far as there are any, have to agree on both; if not,
    they are refused before any features are made.
    """
    links: list[tuple[str, int, Mapping[str, Any] | None]] = []
    given = args.region_encoder or args.grid_backbone
    if args.init_from is not None:
        start = AutoConfig.from_pretrained(args.init_from)
        if isinstance(start, VisualBertConfig) and (given or not start.region_encoder_config):
            published = find_published_checkpoint(args.init_from)
            trained_on = start.feature_detector if published is None else {"name": published.detector.name}
            links.append((args.init_from, start.visual_embedding_dim, trained_on))
    if encoder is not None:
        name = given or args.init_from or "the region encoder of the embedded corpus"
        links.append((name, encoder.config.region_dim, made_by))
    if store is not None:
        links.append((str(store.folder), store.dim, store.detector))
    for (model, wanted, expected), (features, dim, found) in pairwise(links):
        if dim != wanted:
            raise ValueError(
                f"{features}: features of dim {dim}, this model expects {wanted} ({model}){spatial_hint(dim, wanted)}"
            )
        if not args.any_detector:
            check_detector(features, found or {}, model, expected)
    _, dim, found = links[-1]
    return dim, {key: (found or {}).get(key) for key in ("name", "fingerprint")}


def _check_images(args: TaskArgs, encoder: RegionEncoder, images_dir: Path) -> None:
    """Refuse to look for the shapes of the embedded corpus in other images, unless that was asked for."""
    is_default = args.region_encoder is None and encoder.name_or_path == str(DETECTOR)
    if is_default and not in_corpus(images_dir):
        raise ValueError(
            f"{images_dir}: these images are not the embedded corpus; pass --region_encoder or --features_dir"
        )


def ids_in_store(store: FeatureStore, keys: Sequence[Any]) -> Callable[[Any], Any]:
    """How a store calls the images: by their keys, or where these are paths by the names or the numbers of the files.

    Raises:
        ValueError: Two images have the same name in the store.
    """
    if not keys or not isinstance(keys[0], str) or keys[0] in store:
        return lambda key: key
    for id_of in (image_id_from_stem, image_id_from_number):
        try:
            ids = [id_of(key) for key in keys]
        except ValueError:  # a name without a number
            continue
        if ids[0] in store:
            name, count = Counter(ids).most_common(1)[0]
            if count > 1:
                raise ValueError(f"{store.folder}: {count} images are called {name!r}; expected different names")
            return id_of
    return lambda key: key


def limit_regions(encoder: RegionEncoder | None, count: int | None) -> None:
    """Let a region encoder find at most `count` regions, the most confident ones."""
    if isinstance(encoder, GridRegionEncoder) and count is not None:
        raise ValueError(f"--num_regions {count}: a grid has all of its cells; choose their number with --grid_size")
    if encoder is not None and count is not None:
        encoder.config.max_regions = min(count, encoder.config.max_regions)


def _existing(data: TaskData, skip: bool) -> tuple[Mapping[Any, ImageFile], dict[Hashable, str]]:
    """The files of the images, and why there are none of others, which is an error unless those are to be skipped."""
    paths, keys = data.find_paths(data.images_dir, wanted=data.wanted()), data.all_keys()
    missing = [key for key in keys if key not in paths]
    if missing and not (skip and len(missing) < len(keys)):
        raise FileNotFoundError(f"{data.images_dir}: no file of image {missing[0]} ({len(missing)} are missing)")
    left_out = {key: f"{data.images_dir}: no file of image {key}" for key in missing}
    if isinstance(paths, TableImages):  # has no others, and reads an image when it is opened
        return paths, left_out
    return {key: paths[key] for key in keys if key in paths}, left_out


def _check_unchanged(store: FeatureStore, data: TaskData, keys: Sequence[Any], id_of: Callable[[Any], Any]) -> None:
    """Refuse stored regions of images that have changed. They need no images, but those that are there are compared."""
    paths: Mapping[Any, ImageFile] = {}
    with suppress(FileNotFoundError, ValueError):
        paths = data.find_paths(data.images_dir, wanted=data.wanted())
    files = {id_of(key): _file(paths, key) for key in keys if key in paths}
    store.check_images({key: path for key, path in files.items() if path is not None})


def _file(paths: Mapping[Any, ImageFile], key: Any) -> Path | None:
    """The file of an image; None if only its bytes are known."""
    path = paths.path(key) if isinstance(paths, TableImages) else paths[key]
    return path if isinstance(path, Path) else None


def _identity(paths: Mapping[Any, ImageFile], key: Any) -> Any:
    """What tells whether an image changed: path, size and time of its file, or the hash of its bytes."""
    path = _file(paths, key)
    if path is None:
        return key
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def _stored_regions(
    paths: Mapping[Any, ImageFile],
    boxes: Mapping[Any, Boxes] | None,
    encoder: RegionEncoder,
    fingerprint: str,
    image_processor: VisualBertImageProcessor,
    device: torch.device,
    skip: bool,
) -> FeatureStore:
    """The regions of all images of the data: found on first use, kept in the cache as long as no image changes.

    With `skip`, images that cannot be read are not in it.
    """
    files = [_identity(paths, key) for key in paths]
    given = None if boxes is None else [boxes[key] for key in paths]
    treatment = json.dumps(image_processor_fields(image_processor), indent=2, sort_keys=True) + "\n"
    identity = [FORMAT, list(paths), files, given, fingerprint, treatment, *(["skip"] if skip else [])]
    folder = default_cache_dir() / "regions" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    if not (folder / "index.json").is_file():
        encoder.to(device)
        on_error = (lambda key, error: None) if skip else None  # read again by the caller, who says why
        images = ((key, partial(paths.__getitem__, key)) for key in paths)
        regions = extract_regions(encoder, image_processor, images, boxes=boxes, total=len(paths), on_error=on_error)
        write_store(folder, regions, encoder.config.region_dim, describe_detector(encoder, image_processor))
        encoder.cpu()
    return FeatureStore(folder)
