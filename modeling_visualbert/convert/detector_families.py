"""The families of published detectors: what is particular to the files of each, as one record of functions and tables.

    frcnn       unc-nlp/frcnn-vg-finetuned: pytorch_model.bin + config.yaml, or the older {"model": {name: array}} pickle
    maskrcnn    Pythia, MMF, ViLBERT: detectron_model*.pth + .yaml, {"model": {name: tensor}}, full or converted names
    detectron   Detectron: model_final.pkl, {"blobs": {name: array}, "cfg": yaml}
    vcr         VisualBERT for VCR: the `detector.*` part of a .th file

`region_detector.py` converts a file of any of them by its [`Family`].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..hub_code.configuration_region_detector import COCO_CLASSES, RegionDetectorConfig

Preset = Callable[..., RegionDetectorConfig]
ShapeOf = Callable[[str], torch.Size]


def _exact(name: str, keys: Mapping[str, str]) -> str | None:
    return keys.get(name)


@dataclass(frozen=True)
class Family:
    """How the files of one code base differ from those of the others.

    Args:
        name: Its name in error messages.
        recognises: Whether a file with these tensor names is of this family.
        original_name: Name of one of our tensors, and blocks of each stage -> the original (full) name, or None for a
            tensor that such files do not store.
        block: A pattern whose groups are the stage and the block in a tensor's name; of VCR's last stage only the block.
        sizes: Fields of the configuration that follow from the shapes of tensors (given by our names), in addition to
            those of the backbone and the classes.
        preset: Those fields -> the published configuration that provides all other fields.
        settings: Fields that the published yaml sets; None for those it does not mention.
        background_classes: How many rows of the class weights stand for the background.
        find: A full name, and the names in a file without `module.` -> the file's own name of that tensor, or None.
        may_lack: Whether genuine files with these names may be without this tensor of ours.
    """

    name: str
    recognises: Callable[[Collection[str]], bool]
    original_name: Callable[[str, Sequence[int]], str | None]
    block: str
    sizes: Callable[[ShapeOf], dict[str, Any]]
    preset: Callable[[Mapping[str, Any]], Preset]
    settings: Callable[[Mapping], dict[str, Any]] = lambda settings: {}
    background_classes: int = 1
    find: Callable[[str, Mapping[str, str]], str | None] = _exact
    may_lack: Callable[[str, Collection[str]], bool] = lambda name, keys: False

    def original_names(self, names: Collection[str], depths: Sequence[int]) -> dict[str, str | None]:
        """The original (full) name of each of our tensors; None for those that the family does not store."""
        return {name: self.original_name(name, depths) for name in names}


def guess_family(names: Collection[str]) -> Family | None:
    """The family of a file with these tensor names, or None."""
    return next((family for family in FAMILIES if family.recognises(names)), None)


# ----------------------------------------------------------------------------------------------------------- names


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


def _frcnn_name(name: str, depths: Sequence[int]) -> str:
    return _replaced(_shifted(name, r"^backbone\.stages\.(\d)\.", "backbone.res{}.", 2), _FRCNN)


def _maskrcnn_name(name: str, depths: Sequence[int]) -> str:
    name = _shifted(name, r"^backbone\.stages\.(\d)\.", "backbone.body.layer{}.", 1)
    name = _shifted(name, r"^fpn\.inner\.(\d)\.", "backbone.fpn.fpn_inner{}.", 1)
    name = _shifted(name, r"^fpn\.layer\.(\d)\.", "backbone.fpn.fpn_layer{}.", 1)
    return _replaced(name, _MASKRCNN)


def _vcr_name(name: str, depths: Sequence[int]) -> str:
    return _replaced(_shifted(name, r"^backbone\.stages\.(\d)\.", "backbone.{}.", 4), _VCR)


def _detectron_name(name: str, depths: Sequence[int]) -> str | None:
    if "running_" in name:  # its files hold scale and shift only
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


# Parts of maskrcnn-benchmark's names that say where a module lies, not which of several it is. Converted files omit them.
_PLACES = frozenset({"backbone", "body", "stem", "fpn", "roi_heads", "box", "feature_extractor", "predictor"})


def _longest_suffix(name: str, keys: Mapping[str, str]) -> str | None:
    """Look for `name`, then for ever shorter ends of it that lack only `_PLACES`, as the original loader does.

    The original would go on to shorter ends: in a file without `layer1.0.bn1.bias` it takes the stem's `bn1.bias`.
    """
    parts = name.split(".")
    for start, part in enumerate(parts):
        if (end := ".".join(parts[start:])) in keys:
            return keys[end]
        if part not in _PLACES:
            return None
    return None


def _is_without_statistics(name: str, keys: Collection[str]) -> bool:
    """Files converted from Detectron's have scale and shift only; they also omit the names of places."""
    if not name.endswith(("norm.running_mean", "norm.running_var")):
        return False
    has_places = any(key.startswith("backbone.") for key in keys)
    return not has_places and not any(key.endswith(("running_mean", "running_var")) for key in keys)


# ----------------------------------------------------------------------------------------------- sizes and presets


def _frcnn_sizes(shape: ShapeOf) -> dict[str, Any]:
    return {
        "rpn_channels": shape("rpn.conv.weight")[0],
        "num_attributes": shape("head.attributes.weight")[0] - 1,
        "class_embedding_dim": shape("head.class_embedding.weight")[1],
        "attribute_hidden_dim": shape("head.attributes.weight")[1],
    }


def _pyramid_sizes(shape: ShapeOf) -> dict[str, Any]:
    """Those of the maskrcnn and detectron families."""
    inner, in_group = shape("backbone.stages.0.0.conv2.weight")[:2]
    rpn_channels, fpn_channels = shape("rpn.conv.weight")[0], shape("fpn.layer.0.weight")[0]
    hidden_dim, columns = shape("head.fc6.weight")
    return {
        "stride_in_1x1": inner == in_group,  # without groups: plain ResNets, which come from MSRA's weights
        "rpn_channels": rpn_channels,
        "fpn_channels": fpn_channels,
        "hidden_dim": hidden_dim,
        "roi_size": round((columns / fpn_channels) ** 0.5),
    }


def _vcr_sizes(shape: ShapeOf) -> dict[str, Any]:
    return {
        "class_embedding_dim": shape("head.class_embedding.weight")[1],
        "mask_channels": shape("head.masks.weight")[0],
        "hidden_dim": shape("head.projection.weight")[0],
    }


def _detectron_preset(sizes: Mapping[str, Any]) -> Preset:
    """That of Pythia's ResNeXts, which were trained on Visual Genome, or of NLVR2's ResNet on COCO."""
    published = RegionDetectorConfig.pythia_x101()
    same = any(sizes[name] == getattr(published, name) for name in ("num_classes", "hidden_dim"))
    if not same and sizes["groups"] == 1:
        return RegionDetectorConfig.detectron_r101_coco
    if sizes["num_classes"] != len(COCO_CLASSES):
        return RegionDetectorConfig.pythia_x101
    names = dict(enumerate(COCO_CLASSES))  # a ResNeXt on COCO
    label2id = {name: number for number, name in names.items()}
    return partial(RegionDetectorConfig.pythia_x101, id2label=names, label2id=label2id)


# -------------------------------------------------------------------------------------------------------- settings


def nested(settings: Mapping, *names: str) -> Any:
    """The value under these names, one inside the other, or None."""
    value: Any = settings
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _frcnn_settings(settings: Mapping) -> dict[str, Any]:
    sizes = nested(settings, "anchor_generator", "sizes")
    ratios = nested(settings, "anchor_generator", "aspect_ratios")
    return {
        "anchor_sizes": sizes,
        "anchor_ratios": ratios[0] if ratios else None,
        "rpn_pre_nms": nested(settings, "rpn", "pre_nms_topk_test"),
        "rpn_post_nms": nested(settings, "rpn", "post_nms_topk_test"),
        "rpn_total": nested(settings, "rpn", "post_nms_topk_test"),
        "rpn_nms_threshold": nested(settings, "rpn", "nms_thresh"),
        "nms_thresholds": nested(settings, "roi_heads", "nms_thresh_test"),
        "min_regions": nested(settings, "min_detections"),
        "max_regions": nested(settings, "max_detections"),
        "roi_size": nested(settings, "roi_box_head", "pooler_resolution"),
        "stride_in_1x1": nested(settings, "resnets", "stride_in_1x1"),
    }


def _maskrcnn_settings(settings: Mapping) -> dict[str, Any]:
    sizes = nested(settings, "MODEL", "RPN", "ANCHOR_SIZES")
    return {
        "anchor_sizes": [[size] for size in sizes] if sizes else None,
        "anchor_ratios": nested(settings, "MODEL", "RPN", "ASPECT_RATIOS"),
        "rpn_pre_nms": nested(settings, "MODEL", "RPN", "PRE_NMS_TOP_N_TEST"),
        "rpn_post_nms": nested(settings, "MODEL", "RPN", "POST_NMS_TOP_N_TEST"),
        "rpn_total": nested(settings, "MODEL", "RPN", "FPN_POST_NMS_TOP_N_TEST"),
        "rpn_nms_threshold": nested(settings, "MODEL", "RPN", "NMS_THRESH"),
        "sampling_ratio": nested(settings, "MODEL", "ROI_BOX_HEAD", "POOLER_SAMPLING_RATIO"),
        "stride_in_1x1": nested(settings, "MODEL", "RESNETS", "STRIDE_IN_1X1"),
    }


def _detectron_settings(settings: Mapping) -> dict[str, Any]:
    start = nested(settings, "FPN", "RPN_ANCHOR_START_SIZE")
    return {
        "anchor_sizes": [[start << level] for level in range(5)] if start else None,
        "anchor_ratios": nested(settings, "FPN", "RPN_ASPECT_RATIOS"),
        "rpn_pre_nms": nested(settings, "TEST", "RPN_PRE_NMS_TOP_N"),
        "rpn_post_nms": nested(settings, "TEST", "RPN_POST_NMS_TOP_N"),
        "rpn_total": nested(settings, "TEST", "RPN_POST_NMS_TOP_N"),
        "rpn_nms_threshold": nested(settings, "TEST", "RPN_NMS_THRESH"),
        "canonical_scale": nested(settings, "FPN", "ROI_CANONICAL_SCALE"),
        "canonical_level": nested(settings, "FPN", "ROI_CANONICAL_LEVEL"),
        "sampling_ratio": nested(settings, "FAST_RCNN", "ROI_XFORM_SAMPLING_RATIO"),
        "stride_in_1x1": nested(settings, "RESNETS", "STRIDE_1X1"),
    }


# -------------------------------------------------------------------------------------------------------- families

FAMILIES = (
    Family(
        name="frcnn",
        recognises=lambda names: "proposal_generator.rpn_head.conv.weight" in names,
        original_name=_frcnn_name,
        block=r"(?:backbone|roi_heads)\.res(\d)\.(\d+)\.",
        sizes=_frcnn_sizes,
        preset=lambda sizes: RegionDetectorConfig.bottom_up_attention_vg,
        settings=_frcnn_settings,
    ),
    Family(
        name="maskrcnn",
        recognises=lambda names: any(name.endswith(("fpn_inner1.weight", "fpn_layer1.weight")) for name in names),
        original_name=_maskrcnn_name,
        block=r"(?:^|\.)layer(\d)\.(\d+)\.",
        sizes=_pyramid_sizes,
        preset=lambda sizes: RegionDetectorConfig.pythia_x101,
        settings=_maskrcnn_settings,
        find=_longest_suffix,
        may_lack=_is_without_statistics,
    ),
    Family(
        name="detectron",
        recognises=lambda names: "conv_rpn_fpn2_w" in names,
        original_name=_detectron_name,
        block=r"^res(\d)_(\d+)_branch2a_w$",
        sizes=_pyramid_sizes,
        preset=_detectron_preset,
        settings=_detectron_settings,
    ),
    Family(
        name="vcr",
        recognises=lambda names: "detector.backbone.0.weight" in names,
        original_name=_vcr_name,
        block=r"^detector\.(?:backbone\.(\d)|after_roi_align\.0)\.(\d+)\.conv1\.weight$",
        sizes=_vcr_sizes,
        preset=lambda sizes: RegionDetectorConfig.vcr_resnet50,
        background_classes=0,
    ),
)


__all__ = ["FAMILIES", "Family", "guess_family", "nested"]
