"""Complete checkpoints from published parts: model and answers, the processor of the right task, tokenizer, region encoder.

source (.th file, folder or Hub name) ──► model ─┐
tokenizer, folder or Hub name ───────────────────┼──► a folder that `ask`, pipelines, training and `push` open
region encoder: file, folder or Hub name ────────┘
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import safe_open
from transformers import PreTrainedModel

from ..cache_dir import default_cache_dir
from ..checkpoints import check_name, check_task, open_image_processor
from ..disk import whole_folder
from ..downloads import downloaded, hub_folder
from ..hub_code.configuration_region_detector import RegionDetectorConfig
from ..hub_code.configuration_visualbert import VisualBertConfig
from ..hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..hub_code.regions_visualbert import check_detector
from ..hub_code.tasks_visualbert import HEADS, TASKS, own_labels, own_num_images
from ..published import (
    PublishedCheckpoint,
    authors_files,
    find_published_checkpoint,
    find_published_detector,
    published_detectors,
    published_tokenizer,
)
from ..tokenizer import open_tokenizer
from .checkpoint_files import KeyReport
from .published_detectors import PREFIX, kept_weights, open_region_encoder
from .visualbert import convert_original_checkpoint, convert_published_checkpoint

_CHECKPOINT_FILES = ("config.json", "*.safetensors", "pytorch_model.bin")
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@dataclass
class Assembled:
    """
    What [`assemble`] made.

    Args:
        model: The model, with its region encoder where there is one.
        processor: Its processor; None without a tokenizer.
        report: What became of every tensor.
        missing: What a complete checkpoint would have beside it, each with the argument that adds it.
    """

    model: PreTrainedModel
    processor: VisualBertProcessor | None
    report: list[KeyReport]
    missing: list[str] = field(default_factory=list)

    def save(self, folder: str | Path, region_encoder_weights: Path | None = None) -> None:
        """
        Write model, processor and key report.

        Args:
            folder: Where to; it is there once it is complete.
            region_encoder_weights: A file that has the weights of the region encoder already, under their names in this model:
                the checkpoint then shares it as a hard link, where the file system has those.
        """
        with whole_folder(Path(folder)) as draft:
            if region_encoder_weights is None:
                self.model.save_pretrained(draft)
            else:
                _save_around(self.model, draft, region_encoder_weights)
            if self.processor is not None:
                self.processor.save_pretrained(draft)
            (draft / "key_report.txt").write_text("".join(f"{line}\n" for line in self.report), encoding="utf-8")


def assemble(
    source: str | Path,
    task: str | None = None,
    tokenizer: str | None = None,
    region_encoder: str | Path | None = None,
    spatial: bool = False,
    any_detector: bool = False,
    published: PublishedCheckpoint | None = None,
    **config_kwargs: Any,
) -> Assembled:
    """
    Put a published checkpoint, its tokenizer and its region encoder together.

    Args:
        source: A `.th` file of the authors, or a folder or Hub name in the layout of `uclanlp/visualbert-*`.
        task: Head of a `.th` file; guessed from its tensors when not given.
        tokenizer: Folder or Hub name of a BERT tokenizer.
        region_encoder: Region encoder of ours (folder or Hub name), a published detector (file, folder or Hub name), or the name
            of one in `assets/published.yaml`, such as "pythia-x101", which is downloaded.
        spatial: Whether its features are to end with the six spatial numbers of Flickr30k.
        any_detector: Whether a region encoder is accepted that is known to be another than the model's features came from.
        published: The published checkpoint whose files are in the folder `source`; known for Hub names.
        config_kwargs: Fields of [`VisualBertConfig`] that a `.th` file does not tell.

    Raises:
        FileNotFoundError: There is no such file, folder or tokenizer.
        ValueError: Parts are damaged or do not fit together: features of another length, a tokenizer of another size.
    """
    if (Path(source) / "processor_config.json").is_file():
        raise ValueError(f"{source} is a complete checkpoint of this package; expected one that others published")
    if Path(source).is_file():
        model, report = convert_original_checkpoint(source, task, **config_kwargs)
    else:
        check_name(source)
        model, report = convert_published_checkpoint(source)
    published = published or find_published_checkpoint(source)
    if published is not None:
        model.config.feature_detector = {"name": published.detector.name, "fingerprint": None}
    found = HEADS[type(model).__name__]
    missing = []
    opened = None if tokenizer is None else open_tokenizer(tokenizer, model.config.vocab_size, found.name)
    image_processor = _own_image_processor(model, source)
    if region_encoder is not None:
        encoder, image_processor = open_region_encoder(region_encoder, spatial)
        known = find_published_detector(region_encoder)
        is_right = any_detector or (published is not None and known == published.detector)
        if not is_right:
            expected = model.config.feature_detector
            check_detector(
                str(region_encoder), encoder.identity(), published.name if published else str(source), expected
            )
        model.attach_region_encoder(encoder, any_detector=True)
    elif image_processor is None:
        missing.append(
            "region encoder (add it with --region_encoder; without it the model reads precomputed features only)"
        )
    processor = None
    if opened is None:
        missing.append(f"tokenizer and processor (add them with --tokenizer, such as {published_tokenizer()})")
    else:
        processor = VisualBertProcessor(
            image_processor,
            opened,
            task=found.name,
            answers=_answers(model.config) if found.name == "vqa" else None,
            region_dim=model.config.visual_embedding_dim,
            alignment="original" if found.name == "vcr" else "subword",
            num_images=own_num_images(model.config, str(source)) if found.name == "nlvr2" else None,
            labels=own_labels(model.config.id2label) if found.name == "nlvr2" else None,
        )
    return Assembled(model, processor, report, missing)


def _own_image_processor(model: PreTrainedModel, source: str | Path) -> Any:
    """The image processor of the region encoder that a checkpoint brings along; None if it brings none."""
    config = model.config.region_encoder_config
    if isinstance(config, RegionDetectorConfig):  # the file of a VCR model holds its detector
        return RegionDetectorImageProcessor.for_config(config)
    return None if config is None else open_image_processor(source)  # of ours, without its processor


def check_parts(region_encoder: str | Path | None, tokenizer: str | Path | None) -> None:
    """Refuse folders that are not there, or hold no tokenizer, before anything large is downloaded.

    Raises:
        FileNotFoundError, OSError, ValueError: There is no such region encoder or tokenizer.
    """
    if region_encoder is not None:
        check_name(region_encoder, "region encoder")
    if tokenizer is not None:
        check_name(tokenizer, "tokenizer")
        if Path(tokenizer).exists():
            open_tokenizer(tokenizer)


def _answers(config: VisualBertConfig) -> list[str]:
    return [config.id2label[index] for index in sorted(config.id2label)]


def _save_around(model: PreTrainedModel, folder: Path, region_encoder_weights: Path) -> None:
    """Save a model in two files, as large models are; the second is there already."""
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith(PREFIX)}
    model.save_pretrained(folder, state_dict=rest)
    (folder / "model.safetensors").rename(folder / _SHARDS[0])
    try:
        os.link(region_encoder_weights, folder / _SHARDS[1])
    except OSError:  # no hard links here
        shutil.copyfile(region_encoder_weights, folder / _SHARDS[1])
    places, size = {}, 0
    for shard in _SHARDS:
        with safe_open(folder / shard, "pt") as file:
            places.update(dict.fromkeys(file.keys(), shard))
        size += (folder / shard).stat().st_size
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def checkpoint_files(name: str | Path) -> Iterator[str | Path]:
    """What [`assemble`] reads of a checkpoint: `name` itself, or for a published one the folder with its files; see
    [`downloaded`]."""
    published = find_published_checkpoint(name)
    if published is None:
        yield name
        return
    with downloaded(published.files) as folder:
        yield folder


def complete_checkpoint(
    name: str | Path,
    region_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    task: str | None = None,
    needs_images: bool = True,
    reads_features: bool = False,
    any_detector: bool = False,
) -> Path | str:
    """
    A checkpoint that answers from images: `name` itself if it is complete, else one that is assembled once in the cache.

    Args:
        name: A complete checkpoint of ours, a published one (Hub name), or a folder in the layout of a published one.
        region_encoder, tokenizer: What it lacks; see [`assemble`]. Known for published names.
        task: The task that it has to be for, checked before anything is downloaded; any when not given.
        needs_images: Whether it has to read images. If not, a published checkpoint whose detector was not published alone gets
            everything but that.
        reads_features: Whether it reads stored features only: it gets no region encoder but the one that is given.
        any_detector: See [`assemble`].

    Raises:
        FileNotFoundError: It looks like a folder and is not there.
        ValueError: It is for another task, or what it lacks is not known; the message names the arguments.
    """
    if Path(name).is_file():
        raise ValueError(
            f"{name} is a file; expected a folder or Hub name (`visualbert convert` reads the authors' files)"
        )
    published = find_published_checkpoint(name)
    if published is not None and task not in (None, published.task):
        raise ValueError(f"{name} is a {TASKS[published.task].head} checkpoint; expected {TASKS[str(task)].head}")
    if Path(name).is_dir():
        check_task(name, task)
    if published is None and not Path(name).is_dir():
        check_name(name)
        if region_encoder is None and tokenizer is None:
            return name  # of the Hub; opening it says what is wrong
    elif published is None and (Path(name) / "processor_config.json").is_file():
        if region_encoder is not None or tokenizer is not None:
            raise ValueError(f"{name} is complete; expected no --region_encoder and no --tokenizer for it")
        return name
    if published is None:
        _check_parts(name, region_encoder, tokenizer, reads_features)
    elif reads_features:
        tokenizer = tokenizer or published_tokenizer()
    else:
        region_encoder, tokenizer = _known_parts(published, region_encoder, tokenizer, needs_images)
    if published is not None and region_encoder is not None and not any_detector:
        _check_published_detector(published, region_encoder)
    target = _cache_folder(name, region_encoder, tokenizer, *["any_detector"] * any_detector)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # of two processes, one assembles and the other finds the result
        if not target.is_dir():
            _assemble_in_cache(name, region_encoder, str(tokenizer), any_detector, target)
    return target


def _assemble_in_cache(
    name: str | Path, region_encoder: str | Path | None, tokenizer: str, any_detector: bool, target: Path
) -> None:
    check_parts(region_encoder, tokenizer)
    with checkpoint_files(name) as source:
        if source == name and not Path(name).exists():
            source = hub_folder(str(name), _CHECKPOINT_FILES)
        detector = None if region_encoder is None else find_published_detector(region_encoder)
        published = find_published_checkpoint(name)
        assembled = assemble(source, None, tokenizer, region_encoder, False, any_detector, published)
        assembled.save(target, None if detector is None else kept_weights(detector))


def _known_parts(
    published: PublishedCheckpoint, region_encoder: str | Path | None, tokenizer: str | Path | None, needs_images: bool
) -> tuple[str | Path | None, str | Path]:
    """The region encoder and tokenizer of a published checkpoint, unless others are given."""
    if region_encoder is None and published.detector.is_published:
        region_encoder = published.detector.name
    if region_encoder is None and needs_images:
        raise ValueError(
            f"{published.name} has no region encoder: its {published.detector.title} was not published alone. Download the "
            f"authors' .th file, which holds it, with a browser from {authors_files()}, convert it with `visualbert convert` and "
            "pass the result as --model"
        )
    return region_encoder, tokenizer or published_tokenizer()


def _check_parts(
    name: str | Path, region_encoder: str | Path | None, tokenizer: str | Path | None, reads_features: bool
) -> None:
    absent = {"--region_encoder": region_encoder or reads_features or None, "--tokenizer": tokenizer}
    if lacking := [flag for flag, value in absent.items() if value is None]:
        known = ", ".join(detector.name for detector in published_detectors().values() if detector.is_published)
        raise ValueError(
            f"{name} is a bare checkpoint without processor, tokenizer and region encoder; expected {' and '.join(lacking)} "
            f"(region encoders: a folder, a file or one of {known}; tokenizer of the published ones: {published_tokenizer()})"
        )


def _check_published_detector(checkpoint: PublishedCheckpoint, region_encoder: str | Path) -> None:
    """Refuse another published detector before anything is downloaded; other region encoders are compared once they are read."""
    detector = find_published_detector(region_encoder)
    if detector is not None:
        check_detector(
            str(region_encoder), {"name": detector.name}, checkpoint.name, {"name": checkpoint.detector.name}
        )


def _cache_folder(*parts: str | Path | None) -> Path:
    """Where the checkpoint of these parts is kept; parts that are files count with their size and time of change."""
    digest = hashlib.sha256(json.dumps([_identity(part) for part in parts]).encode()).hexdigest()[:12]
    return default_cache_dir() / "checkpoints" / f"{Path(str(parts[0])).name}-{digest}"


def _identity(part: str | Path | None) -> list[Any]:
    path = Path(str(part))
    if not path.exists():
        return [str(part)]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [str(path.resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]


__all__ = ["Assembled", "assemble", "check_parts", "checkpoint_files", "complete_checkpoint"]
