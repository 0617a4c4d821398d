"""Complete checkpoints from published parts: model and answers, the processor of the right task, tokenizer, region encoder.

source (.th file, folder or Hub name) ──► model ─┐
tokenizer, folder or Hub name ───────────────────┼──► a folder that `ask`, pipelines, training and `push` open
region encoder: file, folder or Hub name ────────┘
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock
from transformers import AutoImageProcessor, PreTrainedModel

from ..checkpoints import check_name, read_task
from ..corpus.build import default_cache_dir
from ..downloads import fetch, hub_folder
from ..features.extract import load_region_encoder
from ..hub_code.configuration_region_detector import RegionDetectorConfig
from ..hub_code.configuration_visualbert import VisualBertConfig
from ..hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from ..hub_code.modeling_region_detector import RegionDetector
from ..hub_code.processing_visualbert import VisualBertProcessor
from ..hub_code.tasks_visualbert import HEADS, TASKS
from ..published import (
    PublishedCheckpoint,
    PublishedDetector,
    authors_files,
    published_checkpoints,
    published_detectors,
    published_tokenizer,
)
from ..tokenizer import open_tokenizer
from .checkpoint_files import KeyReport
from .region_detector import convert_region_detector, is_region_detector
from .visualbert import convert_original_checkpoint, convert_published_checkpoint

_CHECKPOINT_FILES = ("config.json", "*.safetensors", "pytorch_model.bin")
_DETECTOR_FILES = ("config.*", "preprocessor_config.json", "pytorch_model.bin", "*.safetensors")


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

    def save(self, folder: str | Path) -> None:
        """Write model, processor and key report."""
        self.model.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        (Path(folder) / "key_report.txt").write_text("".join(f"{line}\n" for line in self.report), encoding="utf-8")


def assemble(
    source: str | Path,
    task: str | None = None,
    tokenizer: str | None = None,
    region_encoder: str | Path | None = None,
    spatial: bool = False,
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
    found = HEADS[type(model).__name__]
    missing = []
    image_processor = None
    if isinstance(
        model.config.region_encoder_config, RegionDetectorConfig
    ):  # the file of a VCR model holds its detector
        image_processor = RegionDetectorImageProcessor.for_config(model.config.region_encoder_config)
    elif model.config.region_encoder_config is not None:  # a checkpoint of ours without its processor
        image_processor = AutoImageProcessor.from_pretrained(source)
    if region_encoder is not None:
        encoder, image_processor = open_region_encoder(region_encoder, spatial)
        model.attach_region_encoder(encoder)
    elif image_processor is None:
        missing.append(
            "region encoder (add it with --region_encoder; without it the model reads precomputed features only)"
        )
    processor = None
    if tokenizer is None:
        missing.append(f"tokenizer and processor (add them with --tokenizer, such as {published_tokenizer()})")
    else:
        processor = VisualBertProcessor(
            image_processor,
            open_tokenizer(tokenizer, model.config.vocab_size, found.name),
            task=found.name,
            answers=_answers(model.config) if found.name == "vqa" else None,
            region_dim=model.config.visual_embedding_dim,
            alignment="original" if found.name == "vcr" else "subword",
        )
    return Assembled(model, processor, report, missing)


def _answers(config: VisualBertConfig) -> list[str]:
    return [config.id2label[index] for index in sorted(config.id2label)]


def open_region_encoder(name: str | Path, spatial: bool = False) -> tuple[Any, Any]:
    """
    A region encoder and its image processor from whatever names one; see [`assemble`].

    Raises:
        FileNotFoundError, ValueError: There is nothing of that name, it is no region encoder, or it makes no spatial numbers.
    """
    if is_published_detector(name) and (Path(name).exists() or _in_table(name)):
        encoder, image_processor, _ = open_published_detector(name)
    else:
        encoder, image_processor = load_region_encoder(name)
    if spatial:
        add_spatial_features(encoder, name)
    return encoder, image_processor


def add_spatial_features(encoder: Any, name: str | Path) -> None:
    """Let the features of a detector end with the six spatial numbers of Flickr30k.

    Raises:
        ValueError: It is another kind of region encoder; names it.
    """
    if not isinstance(encoder.config, RegionDetectorConfig):
        raise ValueError(
            f"{name} is a {type(encoder).__name__}, which has geometry numbers of its own (geometry_features); expected a "
            "RegionDetector with --spatial"
        )
    encoder.config.spatial_features = True


def is_published_detector(name: str | Path) -> bool:
    """Whether it is, by its name, a detector that others published: a file, a folder, a Hub name or a name of ours for one."""
    return is_region_detector(name) or _in_table(name)


def open_published_detector(name: str | Path) -> tuple[RegionDetector, RegionDetectorImageProcessor, list[KeyReport]]:
    """
    A detector that others published, downloaded if need be; see [`convert_region_detector`].

    Raises:
        FileNotFoundError, ValueError: There is nothing of that name, or it is damaged.
    """
    return _download_detector(_detectors()[str(name)]) if _in_table(name) else convert_region_detector(name)


def _in_table(name: str | Path) -> bool:
    return str(name) in _detectors() and not Path(name).exists()


def _detectors() -> dict[str, PublishedDetector]:
    """The detectors by name and by Hub name."""
    by_name = published_detectors()
    return by_name | {detector.hub: detector for detector in by_name.values() if detector.hub is not None}


def _download_detector(
    detector: PublishedDetector,
) -> tuple[RegionDetector, RegionDetectorImageProcessor, list[KeyReport]]:
    if not detector.is_published:
        raise ValueError(
            f"{detector.title} was not published alone; the authors' .th files hold it: download one with a browser from "
            f"{authors_files()} and convert that"
        )
    if detector.hub is not None:
        return convert_region_detector(hub_folder(detector.hub, _DETECTOR_FILES))
    weights, *others = (fetch(file) for file in detector.files)
    return convert_region_detector(weights, *others[:1])


def complete_checkpoint(
    name: str | Path,
    region_encoder: str | Path | None = None,
    tokenizer: str | Path | None = None,
    task: str | None = None,
) -> Path | str:
    """
    A checkpoint that answers from images: `name` itself if it is complete, else one that is assembled once in the cache.

    Args:
        name: A complete checkpoint of ours, a published one (Hub name), or a folder in the layout of a published one.
        region_encoder, tokenizer: What it lacks; see [`assemble`]. Known for published names.
        task: The task that it has to be for, checked before anything is downloaded; any when not given.

    Raises:
        FileNotFoundError: It looks like a folder and is not there.
        ValueError: It is for another task, or what it lacks is not known; the message names the arguments.
    """
    if Path(name).is_file():
        raise ValueError(
            f"{name} is a file; expected a folder or Hub name (`visualbert convert` reads the authors' files)"
        )
    published = published_checkpoints().get(str(name)) if not Path(name).exists() else None
    if published is not None and task not in (None, published.task):
        raise ValueError(f"{name} is a {TASKS[published.task].head} checkpoint; expected {TASKS[str(task)].head}")
    if Path(name).is_dir():
        read_task(name, task)
    if published is None and not Path(name).is_dir():
        check_name(name)
        if region_encoder is None and tokenizer is None:
            return name  # of the Hub; opening it says what is wrong
    elif published is None and (Path(name) / "processor_config.json").is_file():
        if region_encoder is not None or tokenizer is not None:
            raise ValueError(f"{name} is complete; expected no --region_encoder and no --tokenizer for it")
        return name
    region_encoder, tokenizer = _parts(name, published, region_encoder, tokenizer)
    target = _cache_folder(name, region_encoder, tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # of two processes, one assembles and the other finds the result
        if not target.is_dir():
            source = hub_folder(str(name), _CHECKPOINT_FILES) if not Path(name).exists() else name
            assembled = assemble(source, tokenizer=tokenizer, region_encoder=region_encoder)
            draft = target.with_name(f"{target.name}.partial")
            shutil.rmtree(draft, ignore_errors=True)
            assembled.save(draft)
            draft.rename(target)
    return target


def _parts(
    name: str | Path,
    published: PublishedCheckpoint | None,
    region_encoder: str | Path | None,
    tokenizer: str | Path | None,
) -> tuple[str, str]:
    """The region encoder and tokenizer to use: those given, or else those of the published checkpoint."""
    if published is not None and region_encoder is None and published.detector.is_published:
        region_encoder = published.detector.name
    if published is not None and tokenizer is None:
        tokenizer = published_tokenizer()
    if region_encoder is None and published is not None:
        raise ValueError(
            f"{name} has no region encoder: its {published.detector.title} was not published alone. Download the authors' .th "
            f"file, which holds it, with a browser from {authors_files()}, convert it with `visualbert convert` and pass the "
            "result as --model"
        )
    absent = {"--region_encoder": region_encoder, "--tokenizer": tokenizer}
    if lacking := [flag for flag, value in absent.items() if value is None]:
        known = ", ".join(detector.name for detector in published_detectors().values() if detector.is_published)
        raise ValueError(
            f"{name} is a bare checkpoint without processor, tokenizer and region encoder; expected {' and '.join(lacking)} "
            f"(region encoders: a folder, a file or one of {known}; tokenizer of the published ones: {published_tokenizer()})"
        )
    return str(region_encoder), str(tokenizer)


def _cache_folder(name: str | Path, region_encoder: str, tokenizer: str) -> Path:
    """Where the checkpoint of these parts is kept; parts that are files count with their size and time of change."""
    parts = [_identity(part) for part in (name, region_encoder, tokenizer)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    return default_cache_dir() / "checkpoints" / f"{Path(name).name}-{digest}"


def _identity(part: str | Path) -> list[Any]:
    path = Path(part)
    if not path.exists():
        return [str(part)]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [str(path.resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]


__all__ = [
    "Assembled",
    "add_spatial_features",
    "assemble",
    "complete_checkpoint",
    "is_published_detector",
    "open_published_detector",
    "open_region_encoder",
]
