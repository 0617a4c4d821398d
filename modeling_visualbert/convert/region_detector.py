"""Published weights of region detectors -> ours.

The files of four code bases spell the same network in different ways; `detector_families.py` says how. The sizes of the
network come from the shapes of the tensors, the rest from the yaml beside the weights, or else from the published values.
Torch files are read with `weights_only=True`, pickles of arrays by a reader of our own (`array_pickles.py`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.files import read_text
from ..data.plain_yaml import parse_yaml
from ..hub_code.configuration_region_detector import RegionDetectorConfig
from ..hub_code.detection_ops import cell_anchors, legacy_cell_anchors
from ..hub_code.files_visualbert import naming
from ..hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from ..hub_code.modeling_region_detector import RegionDetector
from .array_pickles import load_arrays
from .checkpoint_files import KeyReport, load_weights
from .detector_families import FAMILIES, Family, guess_family, nested

logger = logging.getLogger(__name__)

_DETECTRON_SECTIONS = ("FPN", "TEST", "FAST_RCNN", "RESNETS")  # the sections of a `cfg` that are read

# --------------------------------------------------------------------------------------------------------- reading


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors by their names in the file, and the `cfg` of a Detectron file."""
    if path.suffix == ".pkl":
        content = load_arrays(path)
        settings: Any = None
        if isinstance(content, Mapping) and "blobs" in content:
            content, settings = content["blobs"], content.get("cfg")
        elif isinstance(content, Mapping) and "model" in content:
            content = content["model"]
        if not isinstance(content, Mapping):
            raise ValueError(f"{path}: expected a dict of arrays by name, found {type(content).__name__}")
        arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
        bad = [name for name, value in arrays.items() if value.dtype.kind not in "fiu"]
        if bad or not arrays:
            raise ValueError(f"{path}: {bad[0] if bad else 'no name'!r} holds no numbers; expected arrays by name")
        return {str(name): _tensor(str(name), array) for name, array in arrays.items()}, settings
    return load_weights(path, inside="model"), None


def _tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """The array as a tensor; half of what Detectron saved is the optimiser's, of which the shape is all that is reported."""
    return torch.empty(array.shape, device="meta") if name.endswith("_momentum") else torch.from_numpy(array)


def _settings_inside(path: Path, cfg: Any) -> Mapping | None:
    """The settings in the `cfg` of a Detectron file; None if it has no section that is known here.

    Raises:
        ValueError: It is text, but not yaml.
    """
    found = parse_yaml(cfg, f"{path}: 'cfg'") if isinstance(cfg, (str, bytes)) else cfg
    known = isinstance(found, Mapping) and any(isinstance(found.get(name), Mapping) for name in _DETECTRON_SECTIONS)
    return found if known else None


# ------------------------------------------------------------------------------------------------------ converting


def is_region_detector(path: str | Path) -> bool:
    """Whether a file or folder is, by its name, a published detector rather than a VisualBERT checkpoint."""
    path = Path(path)
    if path.is_dir():
        is_theirs = (path / "config.yaml").is_file() or not (path / "config.json").is_file()
        return (path / "pytorch_model.bin").is_file() and is_theirs
    return path.suffix in (".pkl", ".pth", ".bin")


def convert_region_detector(
    path: str | Path, settings: str | Path | Mapping | None = None, **config_kwargs: Any
) -> tuple[RegionDetector, RegionDetectorImageProcessor, list[KeyReport]]:
    """
    Load a published detector.

    Args:
        path: The file, or a folder with `pytorch_model.bin` and perhaps `config.yaml`.
        settings: The yaml that was published with the weights, or its content. By default it is the `cfg` in a Detectron
            file, or else a yaml file beside the weights.
        config_kwargs: Fields of [`RegionDetectorConfig`] to override.

    Returns:
        The detector in evaluation mode, its image processor, and a report of every tensor of the file and of the detector.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file or its yaml is unsafe or damaged, the detector is of no known family, tensors are missing, or
            shapes differ.
    """
    path = Path(path)
    path = path / "pytorch_model.bin" if path.is_dir() else path
    weights, cfg = _read(path)
    skipped, where = list[KeyReport](), path
    if not isinstance(settings, Mapping):
        inside = _settings_inside(path, cfg) if settings is None else None  # an explicit file comes first
        if settings is None and inside is None and cfg is not None:
            logger.warning("%s: its 'cfg' is not understood; using the yaml beside it or the published values", path)
            skipped.append(KeyReport("cfg", None, (), "skipped"))
        if inside is None:
            where = _settings_file(path, settings) or path
            inside = {} if where is path else _read_settings(where)
        settings = inside
    detector, report = detector_from_weights(weights, settings, path, where, **config_kwargs)
    with naming(where):
        processor = _image_processor(detector.config, settings)
    return detector, processor, report + skipped


def detector_from_weights(
    weights: Mapping[str, torch.Tensor],
    settings: Mapping,
    path: str | Path,
    settings_path: str | Path | None = None,
    **config_kwargs: Any,
) -> tuple[RegionDetector, list[KeyReport]]:
    """The detector made from tensors with their original names, and the report; see [`convert_region_detector`].

    Errors name `path`, or `settings_path` if the settings are at fault.
    """
    family = guess_family(weights)
    if family is None:
        known = ", ".join(family.name for family in FAMILIES)
        raise ValueError(f"{path}: no known detector among its {len(weights)} tensors; expected {known}")
    keys = _without_module(weights, path)
    with naming(path):
        depths = _depths(family, keys, path)
        sizes = {"depths": depths, **_sizes_from_shapes(family, depths, weights, keys, path)}
    with naming(settings_path or path, path):
        config = _config(family, sizes, settings, config_kwargs)
        with torch.device("meta"):  # it takes over the tensors of the file
            detector = RegionDetector(config)
        report = _fill(detector, family, weights, keys, path)
    return detector.eval(), report


def name_outputs(config: RegionDetectorConfig, classes: str | Path | None, attributes: str | Path | None) -> None:
    """Name the classes and attributes of a detector, from files with one name per line in the order of the ids.

    Raises:
        OSError: A file cannot be read.
        ValueError: The number of names differs from that of classes or attributes, or the detector has no attributes.
    """
    if classes is not None:
        names = _read_names(classes, config.num_classes, "classes")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    if attributes is not None:
        if not config.design.has_attributes:
            raise ValueError(f"{attributes}: a detector with head {config.head!r} has no attributes; expected 'c4'")
        config.attribute_names = _read_names(attributes, config.num_attributes, "attributes")


def _read_names(path: str | Path, count: int, kind: str) -> list[str]:
    with naming(path):
        names = [line.strip() for line in read_text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    if len(names) != count or not all(names):
        empty = "" if all(names) else f", {names.count('')} of them empty"
        raise ValueError(f"{path}: {len(names)} names{empty}; expected {count}, one per line for each of the {kind}")
    return names


def _without_module(weights: Mapping[str, torch.Tensor], path: str | Path) -> dict[str, str]:
    """Names without the prefix of a parallel wrapper -> names in the file."""
    keys: dict[str, str] = {}
    for name in weights:
        short = name.removeprefix("module.")
        if short in keys:
            raise ValueError(f"{path}: {keys[short]!r} and {name!r} are two tensors with one name; expected one")
        keys[short] = name
    return keys


def _fill(
    detector: RegionDetector,
    family: Family,
    weights: Mapping[str, torch.Tensor],
    keys: Mapping[str, str],
    path: str | Path,
) -> list[KeyReport]:
    ours, report = detector.state_dict(), list[KeyReport]()
    found: dict[str, torch.Tensor] = {}
    used: dict[str, str] = {}
    for name, original in family.original_names(ours, detector.config.depths).items():
        key = None if original is None else family.find(original, keys)
        shape = tuple(ours[name].shape)
        if key is None:
            # Older versions of torch did not store `num_batches_tracked`, and nothing reads it.
            may_lack = name.endswith("num_batches_tracked") or family.may_lack(name, keys)
            if original is not None and not may_lack:
                raise ValueError(f"{path}: {original!r} is missing; expected a tensor of shape {shape}")
            report.append(KeyReport(None, name, shape, "new"))  # statistics of a fixed scale and shift: 0 and 1
            make = torch.ones if name.endswith("running_var") else torch.zeros
            found[name] = make(shape, dtype=ours[name].dtype)
            continue
        value = weights[key].reshape(shape) if weights[key].numel() == 1 and not shape else weights[key]
        if tuple(value.shape) != shape:
            raise ValueError(f"{path}: {key!r} has shape {tuple(value.shape)}, expected {shape}")
        if key in used:
            raise ValueError(
                f"{path}: {key!r} would be read as both {used[key]!r} and {name!r}; expected a tensor for each"
            )
        found[name], used[key] = value.to(ours[name].dtype).contiguous(), name
    detector.load_state_dict(found, strict=False, assign=True)  # strict: batch norms without a count get one from torch
    _check_anchors(detector.config, weights, keys, path)
    read = [
        KeyReport(key, used.get(key), tuple(value.shape), "loaded" if key in used else "skipped")
        for key, value in weights.items()
    ]
    return read + report


def _check_anchors(
    config: RegionDetectorConfig, weights: Mapping[str, torch.Tensor], keys: Mapping[str, str], path: str | Path
) -> None:
    """Stored anchors must be those of the configuration."""
    for name, key in keys.items():
        match = re.search(r"anchor_generator\.cell_anchors\.(\d)$", name)
        if match is None:
            continue
        level = int(match[1])
        sizes = config.anchor_sizes[level] if level < len(config.anchor_sizes) else ()
        if config.legacy_boxes:
            expected = legacy_cell_anchors(4 << level, sizes, config.anchor_ratios).float()
        else:
            expected = cell_anchors(sizes, config.anchor_ratios)
        stored = weights[key].float()
        if stored.shape != expected.shape or not torch.allclose(stored, expected, atol=1e-2):
            raise ValueError(
                f"{path}: {key!r} are not the anchors of sizes {list(sizes)} and ratios {list(config.anchor_ratios)}; "
                "pass `anchor_sizes`, or the yaml that was published with the weights"
            )


# --------------------------------------------------------------------------------------------------- configuration


def _settings_file(path: Path, given: str | Path | None) -> Path | None:
    """The yaml file that is given, or else the one beside the weights, under any of the names it was published with."""
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given}: no such settings file")
        return Path(given)
    names = [path.with_suffix(".yaml").name, "config.yaml"]
    if path.suffix == ".pth":
        names.insert(1, "detectron_config.yaml")  # ViLBERT's
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _read_settings(path: Path) -> dict:
    found = parse_yaml(path.read_bytes(), str(path))
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(found).__name__}")
    return found or {}


def _first(settings: Mapping, *paths: str) -> Any:
    """The first of these dotted paths that has a value, or None."""
    return next((value for path in paths if (value := nested(settings, *path.split(".")))), None)


def _config(family: Family, sizes: dict[str, Any], settings: Mapping, overrides: dict) -> RegionDetectorConfig:
    """From the sizes of the network, what the settings say, and what the caller overrides."""
    preset = family.preset(sizes)
    if sizes["num_classes"] == preset().num_classes:  # so the preset names the classes, which a number would drop
        sizes = {name: value for name, value in sizes.items() if name != "num_classes"}
    said = {name: value for name, value in family.settings(settings).items() if value is not None}
    return preset(**{**sizes, **said, **overrides})


def _depths(family: Family, keys: Mapping[str, str], path: str | Path) -> list[int]:
    """Number of blocks of each stage, counted in the names."""
    blocks: dict[int, set[int]] = {}
    for name in keys:
        if match := re.search(family.block, name):
            stage = int(match[1] or 7)  # VCR's stages are 4, 5, 6 and one without a number
            blocks.setdefault(stage, set()).add(int(match[2]))
    for stage, found in blocks.items():
        if max(found) >= len(found):  # a single high number must not make a network that deep
            raise ValueError(f"{path}: stage {stage} has block {max(found)}, but not every block before it")
    if len(blocks) != 4:
        raise ValueError(f"{path}: tensors of {len(blocks)} stages of the backbone; expected four stages")
    return [len(blocks[stage]) for stage in sorted(blocks)]


def _sizes_from_shapes(
    family: Family,
    depths: list[int],
    weights: Mapping[str, torch.Tensor],
    keys: Mapping[str, str],
    path: str | Path,
) -> dict[str, Any]:
    """Widths of the network, from the shapes of a few of its tensors."""

    def shape(name: str) -> torch.Size:
        original = family.original_name(name, depths)
        key = family.find(original, keys) if original is not None else None
        if key is None:
            raise ValueError(f"{path}: {original!r} is missing; this is not a detector of family {family.name!r}")
        return weights[key].shape

    inner, in_group = shape("backbone.stages.0.0.conv2.weight")[:2]
    return {
        "stem_channels": shape("backbone.stem.conv.weight")[0],
        "res2_channels": shape("backbone.stages.0.0.conv3.weight")[0],
        "groups": inner // in_group,
        "group_width": in_group,
        "num_classes": shape("head.classes.weight")[0] - family.background_classes,
        **family.sizes(shape),
    }


def _image_processor(config: RegionDetectorConfig, settings: Mapping) -> RegionDetectorImageProcessor:
    scales = nested(settings, "TEST", "SCALES") or [None]  # the older of Detectron's two names
    short = _first(settings, "input.min_size_test", "INPUT.MIN_SIZE_TEST", "TEST.SCALE") or scales[0]
    long = _first(settings, "input.max_size_test", "INPUT.MAX_SIZE_TEST", "TEST.MAX_SIZE")
    mean = _first(settings, "model.pixel_mean", "INPUT.PIXEL_MEAN", "PIXEL_MEANS")
    if isinstance(mean, Mapping):  # a numpy array that is not decoded; it holds Detectron's own means
        mean = None
    while isinstance(mean, list) and len(mean) == 1:  # Detectron's has the shape of an image with one pixel
        mean = mean[0]
    fields: dict[str, Any] = {}
    if short and long and not config.reads_objects:
        fields["size"] = {"shortest_edge": int(short), "longest_edge": int(long)}
    if mean:
        fields["image_mean"] = [float(number) for number in mean]
    return RegionDetectorImageProcessor.for_config(config, **fields)


__all__ = [
    "convert_region_detector",
    "detector_from_weights",
    "is_region_detector",
    "load_arrays",
    "name_outputs",
]
