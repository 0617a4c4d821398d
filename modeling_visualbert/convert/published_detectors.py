"""Region encoders by name: one of ours, somebody's file, or a published detector, which is downloaded, converted and kept once.

downloaded file ──► detectors/NAME in our cache ──► every checkpoint in the cache that needs it, as a hard link
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.torch import save_file

from ..cache_dir import default_cache_dir
from ..disk import whole_folder
from ..downloads import downloaded
from ..hub_code.configuration_region_detector import RegionDetectorConfig
from ..hub_code.files_visualbert import naming
from ..hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from ..hub_code.modeling_region_detector import RegionDetector
from ..published import PublishedDetector, authors_files, find_published_detector
from .checkpoint_files import KeyReport
from .region_detector import convert_region_detector, is_region_detector

PREFIX = "visual_bert.region_encoder."  # of a region encoder's tensors in the checkpoint of a head
_WEIGHTS, _REPORT = "model.safetensors", "key_report.json"


def open_region_encoder(name: str | Path, spatial: bool = False) -> tuple[Any, Any]:
    """
    A region encoder and its image processor from whatever names one: a folder or Hub name of ours, a published detector (file,
    folder or Hub name), or the name of one in `assets/published.yaml`, such as "pythia-x101".

    Args:
        name: What names it.
        spatial: Whether its features are to end with the six spatial numbers of Flickr30k.

    Raises:
        FileNotFoundError, ValueError: There is nothing of that name, it is no region encoder, or it makes no spatial numbers.
        ConnectionError: It cannot be downloaded.
    """
    if is_published_detector(name) and (Path(name).exists() or find_published_detector(name)):
        encoder, image_processor, _ = open_published_detector(name)
    else:
        from ..features.extract import load_region_encoder  # with `datasets`, which takes a second

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


def with_spatial_features(name: str | Path) -> tuple[Any, Any, list[KeyReport]]:
    """A detector of ours, with the spatial numbers on, its image processor, and the report of its tensors.

    Raises:
        FileNotFoundError, ValueError: There is none of that name; see [`open_region_encoder`].
    """
    try:
        encoder, image_processor = open_region_encoder(name, spatial=True)
    except ValueError as error:
        raise ValueError(f"{error}; for a checkpoint, name its detector with --region_encoder") from error
    report = [KeyReport(key, key, tuple(value.shape), "loaded") for key, value in encoder.state_dict().items()]
    return encoder, image_processor, report


def is_published_detector(name: str | Path) -> bool:
    """Whether it is, by its name, a detector that others published: a file, a folder, a Hub name or a name of ours for one."""
    return is_region_detector(name) or find_published_detector(name) is not None


def open_published_detector(name: str | Path) -> tuple[RegionDetector, RegionDetectorImageProcessor, list[KeyReport]]:
    """
    A detector that others published, downloaded if need be; see [`convert_region_detector`].

    Raises:
        FileNotFoundError, ValueError: There is nothing of that name, or it is damaged.
        ConnectionError: It cannot be downloaded.
    """
    detector = find_published_detector(name)
    return convert_region_detector(name) if detector is None else _open_kept(_kept_folder(detector))


def kept_weights(detector: PublishedDetector) -> Path:
    """The weights of a published detector in the cache; their names are those in the checkpoint of a head."""
    return _kept_folder(detector) / _WEIGHTS


def _kept_folder(detector: PublishedDetector) -> Path:
    """The converted detector in the cache. The download is removed once that has been read back."""
    if not detector.is_published:
        raise ValueError(
            f"{detector.title} was not published alone; the authors' .th files hold it: download one with a browser from "
            f"{authors_files()} and convert that"
        )
    folder = default_cache_dir() / "detectors" / detector.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of two processes, one converts and the other finds the result
        if not folder.is_dir():
            with downloaded(detector.files) as source:
                weights, *settings = (source / file.url.rsplit("/", 1)[-1] for file in detector.files)
                converted = convert_region_detector(weights, *settings[:1])
                with whole_folder(folder) as draft:
                    _keep(*converted, draft)
                    _open_kept(draft)
    return folder


def _keep(
    encoder: RegionDetector, image_processor: RegionDetectorImageProcessor, report: list[KeyReport], folder: Path
) -> None:
    encoder.config.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    tensors = {f"{PREFIX}{name}": value.contiguous() for name, value in encoder.state_dict().items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _REPORT).write_text(json.dumps([asdict(item) for item in report]), encoding="utf-8")


def _open_kept(folder: Path) -> tuple[RegionDetector, RegionDetectorImageProcessor, list[KeyReport]]:
    with naming(folder):
        encoder = RegionDetector.from_pretrained(folder, key_mapping={f"^{re.escape(PREFIX)}": ""})
        items = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
    report = [KeyReport(**{**item, "shape": tuple(item["shape"])}) for item in items]
    return encoder.eval(), RegionDetectorImageProcessor.from_pretrained(folder), report


__all__ = [
    "PREFIX",
    "add_spatial_features",
    "is_published_detector",
    "kept_weights",
    "open_published_detector",
    "open_region_encoder",
    "with_spatial_features",
]
