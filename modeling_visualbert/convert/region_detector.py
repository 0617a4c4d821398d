"""Published weights of region detectors -> ours: four families of files, each with its own spelling of the same network.

    unc-nlp/frcnn-vg-finetuned   pytorch_model.bin + config.yaml, or the older {"model": {name: array}} pickle
    Pythia, MMF, ViLBERT         detectron_model*.pth + .yaml: {"model": {name: tensor}}, full names or converted ones
    Detectron                    model_final.pkl: {"blobs": {name: array}, "cfg": yaml}
    VisualBERT for VCR           the `detector.*` part of a .th file

One function tells the original name of each of our tensors (`original_names`); sizes of the network come from the shapes,
the rest from the yaml beside the weights, or else from the published values. Torch files are read with
`weights_only=True`; pickles of arrays by a reader of our own (`array_pickles.py`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..hub_code.configuration_region_detector import COCO_CLASSES, RegionDetectorConfig
from ..hub_code.detection_ops import cell_anchors, legacy_cell_anchors
from ..hub_code.image_processing_region_detector import RegionDetectorImageProcessor
from ..hub_code.modeling_region_detector import RegionDetector
from .array_pickles import load_arrays
from .checkpoint_files import KeyReport, load_weights, naming
from .plain_yaml import parse_yaml

logger = logging.getLogger(__name__)

FAMILIES = ("frcnn", "maskrcnn", "detectron", "vcr")
_DETECTRON_SECTIONS = ("FPN", "TEST", "FAST_RCNN", "RESNETS")  # of a `cfg`, as far as it is read

# --------------------------------------------------------------------------------------------------------- reading


def _read(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors by their names in the file, and the `cfg` that Detectron's files hold."""
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
        return {str(name): torch.from_numpy(array) for name, array in arrays.items()}, settings
    return load_weights(path, inside="model"), None


def _settings_inside(path: Path, cfg: Any) -> Mapping | None:
    """What the `cfg` in a Detectron file says; None if nothing that is known here.

    Raises:
        ValueError: It is a text, but not yaml.
    """
    found = parse_yaml(cfg, f"{path}: 'cfg'") if isinstance(cfg, (str, bytes)) else cfg
    known = isinstance(found, Mapping) and any(isinstance(found.get(name), Mapping) for name in _DETECTRON_SECTIONS)
    return found if known else None


# ----------------------------------------------------------------------------------------------------------- names


def original_names(config: RegionDetectorConfig, family: str, names: list[str]) -> dict[str, str | None]:
    """The original (full) name of each of our tensors; None for what a family does not store."""
    rename = {"frcnn": _frcnn_name, "maskrcnn": _maskrcnn_name, "vcr": _vcr_name}
    if family == "detectron":
        return {name: _detectron_name(name, list(config.depths)) for name in names}
    return {name: rename[family](name) for name in names}


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


_FRCNN = (
    (r"^backbone\.stem\.conv\.", "backbone.stem.conv1."),
    (r"^rpn\.conv\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^head\.res5\.", "roi_heads.res5."),
    (r"^head\.classes\.", "roi_heads.box_predictor.cls_score."),
    (r"^head\.deltas\.", "roi_heads.box_predictor.bbox_pred."),
    (r"^head\.class_embedding\.", "roi_heads.box_predictor.cls_embedding."),
    (r"^head\.attribute_hidden\.", "roi_heads.box_predictor.fc_attr."),
    (r"^head\.attributes\.", "roi_heads.box_predictor.attr_score."),
)
_TORCH_BLOCKS = (
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.weight$", ".downsample.0.weight"),
    (r"\.shortcut\.norm\.", ".downsample.1."),
)
_MASKRCNN = (
    (r"^backbone\.stem\.conv\.norm\.", "backbone.body.stem.bn1."),
    (r"^backbone\.stem\.conv\.", "backbone.body.stem.conv1."),
    *_TORCH_BLOCKS,
    (r"^rpn\.conv\.", "rpn.head.conv."),
    (r"^rpn\.logits\.", "rpn.head.cls_logits."),
    (r"^rpn\.deltas\.", "rpn.head.bbox_pred."),
    (r"^head\.(fc\d)\.", r"roi_heads.box.feature_extractor.\1."),
    (r"^head\.classes\.", "roi_heads.box.predictor.cls_score."),
    (r"^head\.deltas\.", "roi_heads.box.predictor.bbox_pred."),
)
_VCR = (
    (r"^backbone\.stem\.conv\.norm\.", "backbone.1."),
    (r"^backbone\.stem\.conv\.", "backbone.0."),
    *_TORCH_BLOCKS,
    (r"^head\.res5\.", "after_roi_align.0."),
    (r"^head\.masks\.", "mask_upsample."),
    (r"^head\.class_embedding\.", "object_embed."),
    (r"^head\.projection\.", "obj_downsample.1."),
    (r"^head\.classes\.", "regularizing_predictor."),
    (r"^", "detector."),
)


def _shifted(name: str, pattern: str, template: str, offset: int) -> str:
    """Numbered parts: stages and pyramid levels are counted from different numbers."""
    return re.sub(pattern, lambda match: template.format(int(match[1]) + offset), name)


def _frcnn_name(name: str) -> str:
    return _replaced(_shifted(name, r"^backbone\.stages\.(\d)\.", "backbone.res{}.", 2), _FRCNN)


def _maskrcnn_name(name: str) -> str:
    name = _shifted(name, r"^backbone\.stages\.(\d)\.", "backbone.body.layer{}.", 1)
    name = _shifted(name, r"^fpn\.inner\.(\d)\.", "backbone.fpn.fpn_inner{}.", 1)
    name = _shifted(name, r"^fpn\.layer\.(\d)\.", "backbone.fpn.fpn_layer{}.", 1)
    return _replaced(name, _MASKRCNN)


def _vcr_name(name: str) -> str:
    return _replaced(_shifted(name, r"^backbone\.stages\.(\d)\.", "backbone.{}.", 4), _VCR)


def _detectron_name(name: str, depths: list[int]) -> str | None:
    if "running_" in name:  # scale and shift only
        return None
    name = _replaced(name, ((r"\.norm\.weight$", "_bn_s"), (r"\.norm\.bias$", "_bn_b")))
    name = _replaced(name, ((r"\.weight$", "_w"), (r"\.bias$", "_b")))
    name = _shifted(name, r"^backbone\.stages\.(\d)\.", "res{}.", 2)
    name = re.sub(r"^(res\d)\.(\d+)\.conv(\d)", lambda m: f"{m[1]}_{m[2]}_branch2{'abc'[int(m[3]) - 1]}", name)
    lateral = {stage: f"res{stage + 2}_{depths[stage] - 1}_sum" for stage in range(4)}
    name = re.sub(r"^fpn\.layer\.(\d)", lambda m: f"fpn_{lateral[int(m[1])]}", name)
    name = re.sub(
        r"^fpn\.inner\.(\d)", lambda m: f"fpn_inner_{lateral[int(m[1])]}{'' if m[1] == '3' else '_lateral'}", name
    )
    pairs = (
        (r"^backbone\.stem\.conv_bn", "res_conv1_bn"),
        (r"^backbone\.stem\.conv", "conv1"),
        (r"^(res\d)\.(\d+)\.shortcut", r"\1_\2_branch1"),
        (r"^rpn\.conv", "conv_rpn_fpn2"),
        (r"^rpn\.logits", "rpn_cls_logits_fpn2"),
        (r"^rpn\.deltas", "rpn_bbox_pred_fpn2"),
        (r"^head\.classes", "cls_score"),
        (r"^head\.deltas", "bbox_pred"),
        (r"^head\.", ""),
    )
    return _replaced(name, pairs)


# Parts of maskrcnn-benchmark's names that say where a module lies, not which of several it is. Converted files leave them out.
_PLACES = frozenset({"backbone", "body", "stem", "fpn", "roi_heads", "box", "feature_extractor", "predictor"})


def _longest_suffix(name: str, keys: dict[str, str]) -> str | None:
    """The key that is `name` or the longest end of it, as the original loader looks for it, without some of `_PLACES`.

    The original would go on to shorter ends: in a file without `layer1.0.bn1.bias` it takes the stem's `bn1.bias`.
    """
    parts = name.split(".")
    for start, part in enumerate(parts):
        if (end := ".".join(parts[start:])) in keys:
            return keys[end]
        if part not in _PLACES:
            return None
    return None


# ------------------------------------------------------------------------------------------------------ converting


def guess_family(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Which of `FAMILIES` a file with these names is of, or None."""
    if "detector.backbone.0.weight" in weights:
        return "vcr"
    if "proposal_generator.rpn_head.conv.weight" in weights:
        return "frcnn"
    if "conv_rpn_fpn2_w" in weights:
        return "detectron"
    if any(name.endswith(("fpn_inner1.weight", "fpn_layer1.weight")) for name in weights):
        return "maskrcnn"
    return None


def is_region_detector(path: str | Path) -> bool:
    """Whether a file or folder looks, by its name, like a published detector rather than a VisualBERT checkpoint."""
    path = Path(path)
    if path.is_dir():
        is_theirs = (path / "config.yaml").is_file() or not (path / "config.json").is_file()
        return (path / "pytorch_model.bin").is_file() and is_theirs
    return path.suffix in (".pkl", ".pth", ".bin")


def convert_region_detector(
    path: str | Path, settings: str | Path | Mapping | None = None, **config_kwargs
) -> tuple[RegionDetector, RegionDetectorImageProcessor, list[KeyReport]]:
    """
    Load a published detector.

    Args:
        path: The file, or a folder with `pytorch_model.bin` and perhaps `config.yaml`.
        settings: The yaml that was published with the weights, or its content. When not given, it is what a Detectron file
            holds as `cfg`, or else looked for beside the weights.
        config_kwargs: Fields of [`RegionDetectorConfig`] that should differ.

    Returns:
        The detector in evaluation mode, its image processor, and a report of every tensor of the file and of the detector.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file or its yaml is unsafe or damaged, it is of no known detector, tensors are missing, or shapes
            differ.
    """
    path = Path(path)
    path = path / "pytorch_model.bin" if path.is_dir() else path
    weights, cfg = _read(path)
    skipped, where = list[KeyReport](), path
    if not isinstance(settings, Mapping):
        inside = _settings_inside(path, cfg) if settings is None else None  # a file that is given comes first
        if settings is None and inside is None and cfg is not None:
            logger.warning("%s: its 'cfg' is not understood; the yaml beside it or the published values apply", path)
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
    **config_kwargs,
) -> tuple[RegionDetector, list[KeyReport]]:
    """The detector that tensors with original names make, and the report; see [`convert_region_detector`].

    Errors name `path`, or `settings_path` where the settings do not make a detector.
    """
    family = guess_family(weights)
    if family is None:
        raise ValueError(f"{path}: no known detector among its {len(weights)} tensors; expected {', '.join(FAMILIES)}")
    keys = _without_module(weights, path)
    with naming(path):
        depths = _depths(family, keys, path)
        sizes = _sizes_from_shapes(_PRESETS[family](depths=depths), family, weights, keys, path)
    with naming(settings_path or path, path):
        config = _config(family, {"depths": depths, **sizes}, settings, config_kwargs)
        detector = RegionDetector(config)
        report = _fill(detector, family, weights, keys, path)
    return detector.eval(), report


def name_outputs(config: RegionDetectorConfig, classes: str | Path | None, attributes: str | Path | None) -> None:
    """Give a detector the names of its classes and attributes, from files with one a line in the order of their ids.

    Raises:
        OSError: A file cannot be read.
        ValueError: There are more or fewer names than classes or attributes, or the detector has no attributes.
    """
    if classes is not None:
        names = _read_names(classes, config.num_classes, "classes")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    if attributes is not None:
        if config.head != "c4":
            raise ValueError(f"{attributes}: a detector with head {config.head!r} has no attributes; expected 'c4'")
        config.attribute_names = _read_names(attributes, config.num_attributes, "attributes")


def _read_names(path: str | Path, count: int, kind: str) -> list[str]:
    with naming(path):
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    while names and not names[-1]:
        names.pop()
    if len(names) != count or not all(names):
        empty = "" if all(names) else f", {names.count('')} of them empty"
        raise ValueError(f"{path}: {len(names)} names{empty}; expected {count}, one a line for each of the {kind}")
    return names


def _without_module(weights: Mapping[str, torch.Tensor], path: str | Path) -> dict[str, str]:
    """The names in a file by what they are without the prefix of a parallel wrapper."""
    keys: dict[str, str] = {}
    for name in weights:
        short = name.removeprefix("module.")
        if short in keys:
            raise ValueError(f"{path}: {keys[short]!r} and {name!r} are two tensors of one name; expected one")
        keys[short] = name
    return keys


def _fill(
    detector: RegionDetector, family: str, weights: Mapping[str, torch.Tensor], keys: dict[str, str], path: str | Path
) -> list[KeyReport]:
    ours, report = detector.state_dict(), list[KeyReport]()
    found: dict[str, torch.Tensor] = {}
    used: dict[str, str] = {}
    for name, original in original_names(detector.config, family, list(ours)).items():
        key = None if original is None else _find(original, keys, family)
        shape = tuple(ours[name].shape)
        if key is None:
            if original is not None and not _may_lack(name, family, keys):
                raise ValueError(f"{path}: {original!r} is missing; expected a tensor of shape {shape}")
            report.append(KeyReport(None, name, shape, "new"))  # a frozen scale and shift: mean 0, variance 1
            continue
        value = weights[key].reshape(shape) if weights[key].numel() == 1 and not shape else weights[key]
        if tuple(value.shape) != shape:
            raise ValueError(f"{path}: {key!r} has shape {tuple(value.shape)}, expected {shape}")
        if key in used:
            raise ValueError(f"{path}: {key!r} would be both {used[key]!r} and {name!r}; expected a tensor for each")
        found[name], used[key] = value, name
    detector.load_state_dict(found, strict=False)
    _check_anchors(detector.config, weights, keys, path)
    read = [
        KeyReport(key, used.get(key), tuple(value.shape), "loaded" if key in used else "skipped")
        for key, value in weights.items()
    ]
    return read + report


def _may_lack(name: str, family: str, keys: Mapping[str, str]) -> bool:
    """Whether genuine files of the family are without this tensor of ours."""
    if name.endswith("num_batches_tracked"):  # older torch did not count, and nothing reads it
        return True
    if family != "maskrcnn" or not name.endswith(("norm.running_mean", "norm.running_var")):
        return False
    # Files converted from Detectron's, which have scale and shift only; they are without the names of places, too.
    has_places = any(key.startswith("backbone.") for key in keys)
    return not has_places and not any(key.endswith(("running_mean", "running_var")) for key in keys)


def _find(original: str, keys: dict[str, str], family: str) -> str | None:
    return _longest_suffix(original, keys) if family == "maskrcnn" else keys.get(original)


def _check_anchors(
    config: RegionDetectorConfig, weights: Mapping[str, torch.Tensor], keys: dict[str, str], path: str | Path
) -> None:
    """Stored anchors must be those that the configuration makes."""
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
    """The yaml that is given, or else the one beside the weights if there is one: all names it was published under."""
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


def _get(settings: Mapping, *names: str) -> Any:
    """A nested value, or None."""
    value: Any = settings
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _first(settings: Mapping, *paths: str) -> Any:
    """The first of some nested values that is set, or None."""
    return next((value for path in paths if (value := _get(settings, *path.split(".")))), None)


def _config(family: str, sizes: dict[str, Any], settings: Mapping, overrides: dict) -> RegionDetectorConfig:
    """From sizes of the network, what the settings say, and what the caller wants otherwise."""
    preset = _PRESETS[family]
    if family == "detectron" and _is_pythias(sizes):
        preset = RegionDetectorConfig.pythia_x101
    said = {name: value for name, value in _said(family, settings).items() if value is not None}
    if family in ("maskrcnn", "detectron"):  # plain ResNets come from MSRA's weights
        said.setdefault("stride_in_1x1", sizes["groups"] == 1)
    if sizes["num_classes"] == preset().num_classes:
        sizes = {
            name: value for name, value in sizes.items() if name != "num_classes"
        }  # with the names of the published classes
    elif family == "detectron" and sizes["num_classes"] == len(COCO_CLASSES):  # a ResNeXt on COCO
        names = {"id2label": dict(enumerate(COCO_CLASSES)), "label2id": {n: i for i, n in enumerate(COCO_CLASSES)}}
        sizes = {**sizes, **names}
    return preset(**{**sizes, **said, **overrides})


_PRESETS = {
    "frcnn": RegionDetectorConfig.bottom_up_attention_vg,
    "maskrcnn": RegionDetectorConfig.pythia_x101,
    "detectron": RegionDetectorConfig.detectron_r101_coco,
    "vcr": RegionDetectorConfig.vcr_resnet50,
}


def _is_pythias(sizes: Mapping[str, Any]) -> bool:
    """Whether a Detectron file is of the ResNeXts that Pythia trained on Visual Genome (NLVR2's are a ResNet on COCO)."""
    published = RegionDetectorConfig.pythia_x101()
    same = any(sizes[name] == getattr(published, name) for name in ("num_classes", "hidden_dim"))
    return same or sizes["groups"] > 1


def _depths(family: str, keys: dict[str, str], path: str | Path) -> list[int]:
    """Blocks of each stage, counted in the names."""
    patterns = {
        "frcnn": r"(?:backbone|roi_heads)\.res(\d)\.(\d+)\.",
        "maskrcnn": r"(?:^|\.)layer(\d)\.(\d+)\.",
        "detectron": r"^res(\d)_(\d+)_branch2a_w$",
        "vcr": r"^detector\.(?:backbone\.(\d)|after_roi_align\.0)\.(\d+)\.conv1\.weight$",
    }
    blocks: dict[int, set[int]] = {}
    for name in keys:
        if match := re.search(patterns[family], name):
            stage = int(match[1] or 7)
            blocks.setdefault(stage, set()).add(int(match[2]))
    for stage, found in blocks.items():
        if max(found) >= len(found):  # a number alone must not make a network of that depth
            raise ValueError(f"{path}: of stage {stage} there is block {max(found)}, but not every one before it")
    return [len(blocks[stage]) for stage in sorted(blocks)]


def _sizes_from_shapes(
    config: RegionDetectorConfig,
    family: str,
    weights: Mapping[str, torch.Tensor],
    keys: dict[str, str],
    path: str | Path,
) -> dict[str, Any]:
    """Widths of the network, from the shapes of a few of its tensors."""

    def shape(name: str) -> torch.Size:
        original = original_names(config, family, [name])[name]
        key = _find(original, keys, family) if original is not None else None
        if key is None:
            raise ValueError(f"{path}: {original!r} is missing; this is not a detector of family {family!r}")
        return weights[key].shape

    inner, in_group = shape("backbone.stages.0.0.conv2.weight")[:2]
    groups = inner // in_group
    fields: dict[str, Any] = {
        "stem_channels": shape("backbone.stem.conv.weight")[0],
        "res2_channels": shape("backbone.stages.0.0.conv3.weight")[0],
        "groups": groups,
        "group_width": in_group,
    }
    background = 0 if family == "vcr" else 1
    fields["num_classes"] = shape("head.classes.weight")[0] - background
    if family != "vcr":
        fields["rpn_channels"] = shape("rpn.conv.weight")[0]
    if family == "frcnn":
        fields["num_attributes"] = shape("head.attributes.weight")[0] - 1
        fields["class_embedding_dim"] = shape("head.class_embedding.weight")[1]
        fields["attribute_hidden_dim"] = shape("head.attributes.weight")[1]
    elif family == "vcr":
        fields["class_embedding_dim"] = shape("head.class_embedding.weight")[1]
        fields["mask_channels"] = shape("head.masks.weight")[0]
        fields["hidden_dim"] = shape("head.projection.weight")[0]
    else:
        fields["fpn_channels"] = shape("fpn.layer.0.weight")[0]
        fields["hidden_dim"], columns = shape("head.fc6.weight")
        fields["roi_size"] = round((columns / fields["fpn_channels"]) ** 0.5)
    return fields


def _said(family: str, settings: Mapping) -> dict[str, Any]:
    """Fields that a published yaml sets."""
    if family == "frcnn":
        sizes = _get(settings, "anchor_generator", "sizes")
        ratios = _get(settings, "anchor_generator", "aspect_ratios")
        return {
            "anchor_sizes": sizes,
            "anchor_ratios": ratios[0] if ratios else None,
            "rpn_pre_nms": _get(settings, "rpn", "pre_nms_topk_test"),
            "rpn_post_nms": _get(settings, "rpn", "post_nms_topk_test"),
            "rpn_total": _get(settings, "rpn", "post_nms_topk_test"),
            "rpn_nms_threshold": _get(settings, "rpn", "nms_thresh"),
            "nms_thresholds": _get(settings, "roi_heads", "nms_thresh_test"),
            "min_regions": _get(settings, "min_detections"),
            "max_regions": _get(settings, "max_detections"),
            "roi_size": _get(settings, "roi_box_head", "pooler_resolution"),
            "stride_in_1x1": _get(settings, "resnets", "stride_in_1x1"),
        }
    if family == "maskrcnn":
        sizes = _get(settings, "MODEL", "RPN", "ANCHOR_SIZES")
        return {
            "anchor_sizes": [[size] for size in sizes] if sizes else None,
            "anchor_ratios": _get(settings, "MODEL", "RPN", "ASPECT_RATIOS"),
            "rpn_pre_nms": _get(settings, "MODEL", "RPN", "PRE_NMS_TOP_N_TEST"),
            "rpn_post_nms": _get(settings, "MODEL", "RPN", "POST_NMS_TOP_N_TEST"),
            "rpn_total": _get(settings, "MODEL", "RPN", "FPN_POST_NMS_TOP_N_TEST"),
            "rpn_nms_threshold": _get(settings, "MODEL", "RPN", "NMS_THRESH"),
            "sampling_ratio": _get(settings, "MODEL", "ROI_BOX_HEAD", "POOLER_SAMPLING_RATIO"),
            "stride_in_1x1": _get(settings, "MODEL", "RESNETS", "STRIDE_IN_1X1"),
        }
    if family == "detectron":
        start = _get(settings, "FPN", "RPN_ANCHOR_START_SIZE")
        return {
            "anchor_sizes": [[start << level] for level in range(5)] if start else None,
            "anchor_ratios": _get(settings, "FPN", "RPN_ASPECT_RATIOS"),
            "rpn_pre_nms": _get(settings, "TEST", "RPN_PRE_NMS_TOP_N"),
            "rpn_post_nms": _get(settings, "TEST", "RPN_POST_NMS_TOP_N"),
            "rpn_total": _get(settings, "TEST", "RPN_POST_NMS_TOP_N"),
            "rpn_nms_threshold": _get(settings, "TEST", "RPN_NMS_THRESH"),
            "canonical_scale": _get(settings, "FPN", "ROI_CANONICAL_SCALE"),
            "canonical_level": _get(settings, "FPN", "ROI_CANONICAL_LEVEL"),
            "sampling_ratio": _get(settings, "FAST_RCNN", "ROI_XFORM_SAMPLING_RATIO"),
            "stride_in_1x1": _get(settings, "RESNETS", "STRIDE_1X1"),
        }
    return {}


def _image_processor(config: RegionDetectorConfig, settings: Mapping) -> RegionDetectorImageProcessor:
    scales = _get(settings, "TEST", "SCALES") or [None]  # Detectron's first name for it
    short = _first(settings, "input.min_size_test", "INPUT.MIN_SIZE_TEST", "TEST.SCALE") or scales[0]
    long = _first(settings, "input.max_size_test", "INPUT.MAX_SIZE_TEST", "TEST.MAX_SIZE")
    mean = _first(settings, "model.pixel_mean", "INPUT.PIXEL_MEAN", "PIXEL_MEANS")
    if isinstance(mean, Mapping):  # a numpy array, whose bytes are not read; they are Detectron's own means
        mean = None
    while isinstance(mean, list) and len(mean) == 1:  # Detectron's is an image of one pixel
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
    "guess_family",
    "is_region_detector",
    "load_arrays",
    "name_outputs",
    "original_names",
]
