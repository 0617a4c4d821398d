"""The Faster R-CNN family in plain PyTorch: ResNet -> proposals -> regions with features, classes and attributes.

The published detectors are configurations of it (`RegionDetectorConfig`). The file follows the order of computation:
backbone, pyramid, proposals, the three heads, the detector. Every stage agrees numerically with the original code bases,
see `tests/test_region_detector_golden.py`. Boxes are corners in pixels of the network's input unless a name says
otherwise; a RoI is the index of an image followed by a box.

Letters: B images, C channels, H, W cells, N proposals or RoIs, K classes, R regions kept, V region feature, A anchors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .configuration_region_detector import RegionDetectorConfig
from .convolution_visualbert import apply_convolution, convolve
from .detection_ops import (
    best_surviving_scores,
    cell_anchors,
    clip_boxes,
    decode_boxes,
    fpn_levels,
    grid_anchors,
    legacy_cell_anchors,
    nms,
    roi_align,
    roi_pool,
)
from .image_processing_region_detector import RegionDetectorImageProcessor
from .linear_visualbert import apply_linear
from .modeling_region_encoder import RegionEncoder, RegionEncoderOutput
from .regions_visualbert import spatial_features

PROPOSAL_DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_ROIS_AT_ONCE = (
    16  # through the last stage of a ResNet; bounds memory, and a chunk of this size fits the processor's cache
)


class NormedConv(nn.Conv2d):
    """Convolution and batch normalisation; with fixed statistics both are computed as one convolution.

    `statistics` is one of the values of `config.norm_statistics`; `"batch"` means those of the batch even in evaluation.
    `added` says that the output is added to a shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        config: RegionDetectorConfig,
        added: bool = False,
        **kwargs,
    ):
        kwargs.setdefault("padding", kwargs.get("dilation", 1) * (size // 2))
        super().__init__(in_channels, out_channels, size, bias=False, **kwargs)
        self.norm = nn.BatchNorm2d(out_channels, eps=config.norm_eps)
        self.statistics, self.added = config.norm_statistics, added
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None  # see `_folded_once`
        if self.statistics == "frozen":
            self.norm.num_batches_tracked = None  # nothing is tracked

    def forward(self, maps_BCHW: torch.Tensor, relu: bool = False) -> torch.Tensor:
        norm = self.norm
        if self.statistics == "frozen" or (self.statistics == "running" and not norm.training):
            weight, bias = self.folded() if self.kept is None else self.kept
            return convolve(self, maps_BCHW, weight, bias, relu)
        convolved = self._conv_forward(maps_BCHW, self.weight, None)
        if self.statistics == "batch":
            found = F.batch_norm(convolved, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
        else:
            found = norm(convolved)
        return F.relu(found, inplace=True) if relu else found

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the one convolution that includes the normalisation."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return self.weight * scale[:, None, None, None], self.norm.bias - mean * scale


@contextmanager
def _folded_once(module: nn.Module) -> Iterator[None]:
    """Fold the convolutions of a module once for all calls in this block, instead of once per call."""
    convs = [conv for conv in module.modules() if isinstance(conv, NormedConv) and conv.statistics == "frozen"]
    for conv in convs:
        conv.kept = conv.folded()
    try:
        yield
    finally:
        for conv in convs:
            conv.kept = None


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut."""

    def __init__(self, in_channels: int, stage: int, stride: int, dilation: int, config: RegionDetectorConfig):
        super().__init__()
        out_channels = config.res2_channels << stage
        inner = config.groups * config.group_width << stage
        first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
        self.conv1 = NormedConv(in_channels, inner, 1, config, stride=first)
        self.conv2 = NormedConv(
            inner, inner, 3, config, stride=second, dilation=dilation, padding=dilation, groups=config.groups
        )
        self.conv3 = NormedConv(inner, out_channels, 1, config, added=True)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = NormedConv(in_channels, out_channels, 1, config, stride=stride)

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        residual = maps_BCHW if self.shortcut is None else self.shortcut(maps_BCHW)
        inner = self.conv2(self.conv1(maps_BCHW, relu=True), relu=True)
        return F.relu(self.conv3(inner).add_(residual), inplace=True)


def _stage(stage: int, stride: int, config: RegionDetectorConfig, dilation: int = 1) -> nn.Sequential:
    """One of the four stages (0 .. 3), which the literature calls res2 .. res5."""
    before = config.stem_channels if stage == 0 else config.res2_channels << (stage - 1)
    after = config.res2_channels << stage
    return nn.Sequential(
        *(
            Bottleneck(after if block else before, stage, 1 if block else stride, dilation, config)
            for block in range(config.depths[stage])
        )
    )


class Stem(nn.Module):
    """7x7 convolution and pooling, to a quarter of the size."""

    def __init__(self, config: RegionDetectorConfig):
        super().__init__()
        self.conv = NormedConv(3, config.stem_channels, 7, config, stride=2)
        self.ceil_pooling = config.ceil_pooling

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        maps_BCHW = self.conv(pixel_values, relu=True)
        if self.ceil_pooling:
            return F.max_pool2d(maps_BCHW, 3, stride=2, ceil_mode=True)
        return F.max_pool2d(maps_BCHW, 3, stride=2, padding=1)


class ResNetBackbone(nn.Module):
    """ResNet or ResNeXt: the maps of all its stages. The last stage belongs to the head unless there is a pyramid."""

    def __init__(self, config: RegionDetectorConfig):
        super().__init__()
        self.stem = Stem(config)
        stages = 4 if config.design.has_pyramid else 3
        self.stages = nn.ModuleList(_stage(stage, 2 if stage else 1, config) for stage in range(stages))

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.stem(pixel_values)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class FeaturePyramid(nn.Module):
    """P2 .. P6 from C2 .. C5: each level adds the next coarser one, enlarged."""

    def __init__(self, config: RegionDetectorConfig):
        super().__init__()
        width = config.fpn_channels
        self.inner = nn.ModuleList(nn.Conv2d(config.res2_channels << stage, width, 1) for stage in range(4))
        self.layer = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        merged = apply_convolution(self.inner[3], maps[3])
        pyramid = [apply_convolution(self.layer[3], merged)]
        for level in (2, 1, 0):
            coarser = F.interpolate(merged, scale_factor=2.0, mode="nearest")
            merged = apply_convolution(self.inner[level], maps[level]) + coarser
            pyramid.insert(0, apply_convolution(self.layer[level], merged))
        return [*pyramid, F.max_pool2d(pyramid[-1], 1, stride=2)]


class ProposalNetwork(nn.Module):
    """Objectness and box deltas of every anchor, and the proposals made from them."""

    def __init__(self, config: RegionDetectorConfig):
        super().__init__()
        self.config = config
        in_channels = config.fpn_channels if config.design.has_pyramid else config.res2_channels << 2
        self.conv = nn.Conv2d(in_channels, config.rpn_channels, 3, padding=1)
        self.logits = nn.Conv2d(config.rpn_channels, config.num_anchors, 1)
        self.deltas = nn.Conv2d(config.rpn_channels, config.num_anchors * 4, 1)

    def forward(self, map_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Objectness logits [B, A, H, W] and box deltas [B, 4 A, H, W] of one map."""
        hidden = apply_convolution(self.conv, map_BCHW, relu=True)
        return apply_convolution(self.logits, hidden), apply_convolution(self.deltas, hidden)

    def anchors(self, level: int, map_BCHW: torch.Tensor) -> torch.Tensor:
        """Anchors [H * W * A, 4] of a map (or of this network's output for it), on its device."""
        config, stride = self.config, self.config.design.strides[level]
        if config.legacy_boxes:
            cells_A4 = legacy_cell_anchors(stride, config.anchor_sizes[level], config.anchor_ratios).float()
        else:
            cells_A4 = cell_anchors(config.anchor_sizes[level], config.anchor_ratios)
        return grid_anchors(cells_A4.to(map_BCHW.device), map_BCHW.shape[2:], stride)

    @torch.no_grad()
    def propose(
        self, maps: Sequence[torch.Tensor], limits_hw: Sequence[Sequence[float]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Proposals [N, 4] of each image and their objectness [N], best first; boxes are clipped to `limits_hw`."""
        levels = []
        for level, map_BCHW in enumerate(maps):
            logits_BAHW, deltas_BXHW = self(map_BCHW)
            levels.append(self.level_proposals(level, logits_BAHW, deltas_BXHW, limits_hw))
        return self.best_of_levels(levels)

    def best_of_levels(
        self, levels: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The best proposals of all maps for each image, by falling objectness."""
        found = []
        for image in zip(*levels, strict=True):
            boxes_N4, scores_N = (torch.cat(parts) for parts in zip(*image, strict=True))
            best_N = scores_N.argsort(descending=True, stable=True)[: self.config.rpn_total]
            found.append((boxes_N4[best_N], scores_N[best_N]))
        return found

    @torch.no_grad()
    def level_proposals(
        self, level: int, logits_BAHW: torch.Tensor, deltas_BXHW: torch.Tensor, limits_hw: Sequence[Sequence[float]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Proposals of one map for each image."""
        config, legacy = self.config, self.config.legacy_boxes
        anchors_N4 = self.anchors(level, logits_BAHW)
        scores_BN = logits_BAHW.permute(0, 2, 3, 1).flatten(1).float()
        scores_BN = scores_BN.sigmoid() if legacy else scores_BN  # the original sorts by these
        deltas_BN4 = deltas_BXHW.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).float()
        found = []
        for scores_N, deltas_N4, limit_hw in zip(scores_BN, deltas_BN4, limits_hw, strict=True):
            scores_N, order_N = scores_N.sort(descending=True, stable=True)
            scores_N, order_N = scores_N[: config.rpn_pre_nms], order_N[: config.rpn_pre_nms]
            boxes_N4 = decode_boxes(deltas_N4[order_N], anchors_N4[order_N], PROPOSAL_DELTA_WEIGHTS, legacy)
            boxes_N4 = clip_boxes(boxes_N4, limit_hw, legacy)
            if not legacy:
                solid_N = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(dim=1)
                boxes_N4, scores_N = boxes_N4[solid_N], scores_N[solid_N]
            keep_N = nms(boxes_N4, scores_N, config.rpn_nms_threshold, legacy)[: config.rpn_post_nms]
            found.append((boxes_N4[keep_N], scores_N[keep_N]))
        return found


@dataclass
class Described:
    """What a head computes for N RoIs: features [N, V], class logits [N, K + 1] (or [N, K]), box deltas, attribute logits."""

    features: torch.Tensor
    class_logits: torch.Tensor
    box_deltas: torch.Tensor | None = None
    attribute_logits: torch.Tensor | None = None


class C4Head(nn.Module):
    """The last stage of the ResNet on RoIPool'd regions, their mean as feature; the background is the last class."""

    def __init__(self, config: RegionDetectorConfig):
        super().__init__()
        self.config = config
        self.res5 = _stage(3, 1, config, config.last_stage_dilation)
        size, hidden = config.appearance_dim, config.attribute_hidden_dim
        self.classes = nn.Linear(size, config.num_classes + 1)
        self.deltas = nn.Linear(size, config.num_classes * 4)
        self.class_embedding = nn.Embedding(config.num_classes + 1, config.class_embedding_dim)
        self.attribute_hidden = nn.Linear(size + config.class_embedding_dim, hidden)
        self.attributes = nn.Linear(hidden, config.num_attributes + 1)

    def pool(self, maps: Sequence[torch.Tensor], rois_N5: torch.Tensor) -> torch.Tensor:
        return roi_pool(maps[-1], rois_N5, (self.config.roi_size, self.config.roi_size), 1 / 16)

    def forward(self, maps: Sequence[torch.Tensor], rois_N5: torch.Tensor) -> Described:
        with _folded_once(self.res5):
            chunks = [self.res5(self.pool(maps, some)).mean(dim=(2, 3)) for some in rois_N5.split(_ROIS_AT_ONCE)]
        features_NV = torch.cat(chunks)
        logits_NK = apply_linear(self.classes, features_NV)
        # The attributes are computed for the likeliest class even if that is the background, which is never reported.
        embedded = self.class_embedding(logits_NK.argmax(dim=1))
        hidden = F.relu(apply_linear(self.attribute_hidden, torch.cat((features_NV, embedded), dim=1)))
        deltas_NX, attributes_NK = apply_linear(self.deltas, features_NV), apply_linear(self.attributes, hidden)
        return Described(features_NV, logits_NK, deltas_NX, attributes_NK)


class PyramidHead(nn.Module):
    """Two linear layers on RoIAlign'd regions; the feature is the output of the first, the background is class 0."""

    def __init__(self, config: RegionDetectorConfig):
        super().__init__()
        self.config = config
        self.fc6 = nn.Linear(config.fpn_channels * config.roi_size**2, config.hidden_dim)
        self.fc7 = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.classes = nn.Linear(config.hidden_dim, config.num_classes + 1)
        self.deltas = nn.Linear(config.hidden_dim, (config.num_classes + 1) * 4)

    def levels(self, boxes_N4: torch.Tensor) -> torch.Tensor:
        """Which of the maps P2 .. P5 each box is read from, as [N] numbers 0 .. 3."""
        return fpn_levels(boxes_N4, self.config.canonical_scale, self.config.canonical_level, 2, 5)

    def pool(self, maps: Sequence[torch.Tensor], rois_N5: torch.Tensor) -> torch.Tensor:
        """Pooled RoIs [N, C, roi_size, roi_size]."""
        config, levels_N = self.config, self.levels(rois_N5[:, 1:])
        order, pooled = [], []
        for level in range(4):
            mine_N = (levels_N == level).nonzero()[:, 0]
            order.append(mine_N)
            pooled.append(
                roi_align(maps[level], rois_N5[mine_N], config.roi_size, 1 / (4 << level), config.sampling_ratio)
            )
        return torch.cat(pooled)[torch.cat(order).argsort()]

    def forward(self, maps: Sequence[torch.Tensor], rois_N5: torch.Tensor) -> Described:
        features_NV = F.relu(apply_linear(self.fc6, self.pool(maps, rois_N5).flatten(1)))
        hidden = F.relu(apply_linear(self.fc7, features_NV))
        return Described(features_NV, apply_linear(self.classes, hidden), apply_linear(self.deltas, hidden))


class GivenBoxesHead(nn.Module):
    """VCR: boxes, masks and classes are given; the class logits only serve the additional loss."""

    def __init__(self, config: RegionDetectorConfig):
        super().__init__()
        self.config = config
        self.masks = nn.Conv2d(1, config.mask_channels, 3, stride=2, padding=1)
        self.res5 = _stage(3, 1, config)
        size = config.res2_channels * 8
        self.class_embedding = nn.Embedding(config.num_classes, config.class_embedding_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(size + config.class_embedding_dim, config.hidden_dim)
        self.classes = nn.Linear(size, config.num_classes)

    def pool(self, maps: Sequence[torch.Tensor], rois_N5: torch.Tensor, masks_NHW: torch.Tensor) -> torch.Tensor:
        """Pooled RoIs [N, C, roi_size, roi_size]; the mask is added to the first channels."""
        pooled = roi_align(maps[-1], rois_N5, self.config.roi_size, 1 / 16, self.config.sampling_ratio)
        added = self.masks(masks_NHW[:, None] - 0.5)
        return pooled + F.pad(added, (0, 0, 0, 0, 0, pooled.shape[1] - added.shape[1]))

    def forward(
        self, maps: Sequence[torch.Tensor], rois_N5: torch.Tensor, masks_NHW: torch.Tensor, classes_N: torch.Tensor
    ) -> Described:
        pooled_NX = self.res5(self.pool(maps, rois_N5, masks_NHW)).mean(dim=(2, 3))
        joint = torch.cat((pooled_NX, self.class_embedding(classes_N)), dim=1)
        return Described(F.relu(self.projection(self.dropout(joint))), self.classes(pooled_NX))


_HEADS: dict[str, type[nn.Module]] = {"c4": C4Head, "fpn": PyramidHead, "given": GivenBoxesHead}


class RegionDetector(RegionEncoder):
    """
    A detector of the Faster R-CNN family as a region encoder: pixels -> features, boxes, classes, scores, attributes.

    Example:
        detector = RegionDetector.from_pretrained(folder).eval()
        detector.detect("image.jpg")["classes"]
    """

    config_class = RegionDetectorConfig
    config: RegionDetectorConfig
    region_inputs = ("image_sizes", "picture_windows", "object_masks", "object_classes")
    _no_split_modules = ["Bottleneck"]

    def __init__(self, config: RegionDetectorConfig):
        super().__init__(config)
        self.backbone = ResNetBackbone(config)
        self.fpn = FeaturePyramid(config) if config.design.has_pyramid else None
        self.rpn = None if config.reads_objects else ProposalNetwork(config)
        self.head = _HEADS[config.head](config)
        if config.norm_statistics == "batch":  # in the authors' code this is so of the backbone only
            for conv in self._normed_convs(self.head):
                conv.statistics = "running"
        self.post_init()
        self.requires_grad_(True)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.bias, module.running_mean):
                init.zeros_(tensor)
            for tensor in (module.weight, module.running_var):
                init.ones_(tensor)
            return  # the method of the parent class needs `num_batches_tracked`
        super()._init_weights(module)
        if isinstance(module, NormedConv):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.added:  # small, as a fixed normalisation would let a hundred layers diverge
                init.constant_(module.norm.weight, 0.2)
        elif isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=0.01)

    @staticmethod
    def _normed_convs(module: nn.Module) -> Iterator[NormedConv]:
        return (conv for conv in module.modules() if isinstance(conv, NormedConv))

    def requires_grad_(self, requires_grad: bool = True) -> "RegionDetector":
        """As in torch, except that what the configuration freezes stays frozen."""
        super().requires_grad_(requires_grad)
        if self.config.freeze_backbone:
            self.backbone.requires_grad_(False)
        if self.config.norm_statistics == "frozen":
            for conv in self._normed_convs(self):
                conv.norm.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> "RegionDetector":
        super().train(mode)
        if self.config.freeze_backbone:
            self.backbone.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        picture_windows: torch.Tensor | None = None,
        object_masks: torch.Tensor | None = None,
        object_classes: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> RegionEncoderOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Images, as the checkpoint's [`RegionDetectorImageProcessor`] makes them.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for a pixel of the image, 0 for padding.
            boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`, *optional*):
                Normalised boxes to describe instead of finding some. VCR's detector needs them.
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding.
            image_sizes (`torch.LongTensor` of shape `(batch_size, 2)`, *optional*):
                Original height and width, because the pyramid detectors compare regions in pixels of the original.
            picture_windows (`torch.FloatTensor` of shape `(batch_size, 4)`, *optional*):
                Where the image lies in `pixel_values`: x1, y1, x2, y2, to a fraction of a pixel. If not given, it is
                derived from `pixel_mask`, which may move boxes by half a pixel.
            object_masks (`torch.FloatTensor` of shape `(batch_size, regions, mask_size, mask_size)`, *optional*):
                VCR: which part of its box each object fills; all of it if not given.
            object_classes (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                VCR: class of each object.
            output_hidden_states (`bool`, *optional*):
                Whether to return the maps that regions are read from; the configuration's when not given.
            output_attentions (`bool`, *optional*):
                Accepted for all region encoders; a convolutional network has none.

        Raises:
            ValueError: An input is missing or has the wrong shape.
        """
        maps = self.feature_maps(pixel_values)
        windows_B4 = _windows(pixel_values, pixel_mask) if picture_windows is None else picture_windows.float()
        if boxes_unit is not None:
            mask_BR = torch.ones_like(boxes_unit[..., 0]) if boxes_mask is None else boxes_mask
            boxes_BR4 = _from_unit(boxes_unit, windows_B4, mask_BR)
            rois_N5 = _rois([boxes[kept] for boxes, kept in zip(boxes_BR4, mask_BR.bool(), strict=True)])
            if self.config.reads_objects:
                described, loss = self._describe_objects(maps, rois_N5, mask_BR, object_masks, object_classes)
                found = self._given(described, boxes_unit, mask_BR, object_classes, loss)
            else:
                found = self._given(self.head(maps, rois_N5), boxes_unit, mask_BR)
        else:
            found = self._find(maps, pixel_values, pixel_mask, windows_B4, _scales(windows_B4, image_sizes))
        if self.config.spatial_features:
            found["visual_embeds"] = _with_spatial_features(found)
        if "output_hidden_states" in self.layers_asked_for(output_hidden_states):
            found = RegionEncoderOutput(**found, hidden_states=tuple(maps))
        return found

    def _find(
        self,
        maps: Sequence[torch.Tensor],
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None,
        windows_B4: torch.Tensor,
        scales_B2: torch.Tensor,
    ) -> RegionEncoderOutput:
        """The regions that the network finds by itself; see [`RegionDetector.forward`] and [`RegionDetector.select`]."""
        proposals = [boxes for boxes, _ in self.propose(maps, pixel_values, pixel_mask)]
        described = self.head(maps, _rois(proposals))
        limits_hw = _true_sizes(pixel_values, pixel_mask)
        images, start = [], 0
        for row, boxes_N4 in enumerate(proposals):
            mine = slice(start, start := start + len(boxes_N4))
            part = Described(*(None if value is None else value[mine] for value in vars(described).values()))  # type: ignore[arg-type]
            image = self.select(part, boxes_N4, limits_hw[row], scales_B2[row])
            image["boxes_unit"] = _to_unit(image["boxes_unit"], windows_B4[row])
            images.append(image)
        return _batch(images)

    # ---------------------------------------------------------------------------------------------------- stages

    def feature_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """The maps that regions are read from: P2 .. P6, or the map of the last stage before the head."""
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values of shape {tuple(pixel_values.shape)}; expected (batch, 3, height, width)")
        # Convolutions are at least as fast in this layout, and the channels of a cell, which pooling reads, are adjacent.
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        if self.fpn is None:
            return self.backbone(pixel_values)[-1:]
        height, width = pixel_values.shape[2:]
        if height % 32 or width % 32:
            raise ValueError(f"pixel_values of {height} x {width} pixels; expected multiples of 32 (padded with 0)")
        return self.fpn(self.backbone(pixel_values))

    def propose(
        self, maps: Sequence[torch.Tensor], pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Boxes [N, 4] and objectness [N] of each image.

        As in the original, the pyramid detectors clip proposals to the padded batch, not to the image, so their regions
        depend slightly on the other images.
        """
        if self.rpn is None:
            raise ValueError(
                "this detector finds no boxes; expected `boxes_unit`, the whole image and its objects, "
                "and `object_classes`"
            )
        if self.config.legacy_boxes:
            limits_hw = [tuple(pixel_values.shape[2:])] * len(pixel_values)
        else:
            limits_hw = _true_sizes(pixel_values, pixel_mask)
        return self.rpn.propose(maps, limits_hw)

    def select(
        self, described: Described, proposals_N4: torch.Tensor, limit_hw: Sequence[float], scale_2: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Choose the regions to return from the N proposals of one image.

        Args:
            described: What the head computed for them.
            proposals_N4: Their boxes.
            limit_hw: Size of the image in `pixel_values`.
            scale_2: Pixels of the input per pixel of the original, across and down.
        """
        if self.config.design.has_pyramid:
            return self._select_pyramid(described, proposals_N4, scale_2)
        return self._select_c4(described, proposals_N4, limit_hw)

    def _select_c4(
        self, described: Described, proposals_N4: torch.Tensor, limit_hw: Sequence[float]
    ) -> dict[str, torch.Tensor]:
        """One nms over the best foreground class of each proposal. The box is that of the class, but the feature that of
        the proposal."""
        assert described.box_deltas is not None and described.attribute_logits is not None
        scores_N, classes_N = described.class_logits.softmax(dim=1)[:, :-1].max(dim=1)
        deltas_N4 = described.box_deltas.unflatten(1, (-1, 4))[
            torch.arange(len(classes_N), device=classes_N.device), classes_N
        ]
        boxes_N4 = clip_boxes(decode_boxes(deltas_N4.detach(), proposals_N4, BOX_DELTA_WEIGHTS), limit_hw)
        keep_R = torch.zeros(0, dtype=torch.long, device=boxes_N4.device)
        for threshold in self.config.nms_thresholds:
            keep_R = nms(boxes_N4, scores_N.detach(), threshold)[: self.config.max_regions]
            if len(keep_R) >= self.config.min_regions:
                break
        attribute_scores, attribute_ids = described.attribute_logits[keep_R, :-1].softmax(dim=1).max(dim=1)
        return {
            "visual_embeds": described.features[keep_R],
            "boxes_unit": boxes_N4[keep_R],
            "scores": scores_N[keep_R],
            "class_ids": classes_N[keep_R],
            "attribute_ids": attribute_ids,
            "attribute_scores": attribute_scores,
        }

    def _select_pyramid(
        self, described: Described, proposals_N4: torch.Tensor, scale_2: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """A proposal's confidence is its best class score that survives that class's nms. Boxes are the proposals'."""
        config = self.config
        scores_NK = described.class_logits.softmax(dim=1)[:, 1:]
        original_N4 = proposals_N4 / scale_2.repeat(2)
        confidence_N = best_surviving_scores(original_N4, scores_NK.detach(), config.nms_thresholds[0], legacy=True)
        by_confidence_N = confidence_N.argsort(descending=True, stable=True)
        if config.score_threshold is None:
            keep_R = by_confidence_N[: config.max_regions]
        else:
            keep_R = (confidence_N >= config.score_threshold).nonzero()[:, 0]
            if len(keep_R) < config.min_regions:
                keep_R = by_confidence_N[: config.min_regions]
            elif len(keep_R) > config.max_regions:
                keep_R = by_confidence_N[: config.max_regions]
        return {
            "visual_embeds": described.features[keep_R],
            "boxes_unit": proposals_N4[keep_R],
            "scores": confidence_N[keep_R],
            "class_ids": scores_NK[keep_R].argmax(dim=1),
        }

    def ordinary_detections(
        self,
        described: Described,
        proposals_N4: torch.Tensor,
        limit_hw: Sequence[float],
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ) -> dict[str, torch.Tensor]:
        """
        What the pyramid networks find as ordinary object detectors: regressed boxes after an nms for each class. These are
        not the boxes that features are taken from, but they fit the objects better.

        Returns:
            `boxes` [R, 4] in pixels of `pixel_values`, `scores` [R] and `class_ids` [R], ordered by class.
        """
        assert described.box_deltas is not None
        scores_NK = described.class_logits.softmax(dim=1)[:, 1:]
        boxes_NX = decode_boxes(described.box_deltas, proposals_N4, BOX_DELTA_WEIGHTS, legacy=True)
        boxes_NK4 = clip_boxes(boxes_NX, limit_hw, legacy=True).unflatten(1, (-1, 4))[:, 1:]
        classes, rows = (score_threshold < scores_NK.T).nonzero().T
        scores, boxes = scores_NK[rows, classes], boxes_NK4[rows, classes]
        keep = nms(boxes, scores, self.config.nms_thresholds[0], legacy=True, labels_N=classes)
        keep = keep[:max_detections].sort().values
        return {"boxes": boxes[keep], "scores": scores[keep], "class_ids": classes[keep]}

    def _describe_objects(
        self,
        maps: Sequence[torch.Tensor],
        rois_N5: torch.Tensor,
        mask_BR: torch.Tensor,
        object_masks: torch.Tensor | None,
        object_classes: torch.Tensor | None,
    ) -> tuple[Described, torch.Tensor]:
        """What the head of VCR's detector computes for the given objects, and its class loss."""
        shape, size = tuple(mask_BR.shape), self.config.mask_size
        if object_classes is None:
            raise ValueError(f"object_classes are missing; expected the class of each given box, {shape}")
        if tuple(object_classes.shape) != shape:
            raise ValueError(f"object_classes of shape {tuple(object_classes.shape)}; expected {shape}")
        if object_masks is None:
            object_masks = torch.ones(*shape, size, size, dtype=maps[-1].dtype, device=maps[-1].device)
        if tuple(object_masks.shape) != (*shape, size, size):
            raise ValueError(f"object_masks of shape {tuple(object_masks.shape)}; expected {(*shape, size, size)}")
        given_BR = mask_BR.bool()
        classes_N = object_classes[given_BR]
        unknown_N = classes_N[(classes_N < 0) | (classes_N >= self.config.num_classes)]
        if len(unknown_N):
            raise ValueError(f"object_classes hold {int(unknown_N[0])}; expected 0 to {self.config.num_classes - 1}")
        described = self.head(maps, rois_N5, object_masks[given_BR].to(maps[-1].dtype), classes_N)
        loss = F.cross_entropy(described.class_logits.float(), classes_N, reduction="sum") / max(len(classes_N), 1)
        return described, loss

    def _given(
        self,
        described: Described,
        boxes_unit: torch.Tensor,
        mask_BR: torch.Tensor,
        object_classes: torch.Tensor | None = None,
        loss: torch.Tensor | None = None,
    ) -> RegionEncoderOutput:
        """The regions of given boxes, in their order, with zeros in the padding."""
        probabilities_NK = described.class_logits.softmax(dim=1)
        first = self.config.design.first_class
        probabilities_NK = probabilities_NK[:, first : first + self.config.num_classes]
        if object_classes is None:
            scores_N, classes_N = probabilities_NK.max(dim=1)
        else:
            classes_N = object_classes[mask_BR.bool()]
            scores_N = probabilities_NK.gather(1, classes_N[:, None])[:, 0]
        rows = {"visual_embeds": described.features, "scores": scores_N, "class_ids": classes_N}
        if described.attribute_logits is not None:
            best = described.attribute_logits[:, :-1].softmax(dim=1).max(dim=1)
            rows["attribute_scores"], rows["attribute_ids"] = best.values, best.indices
        spread: dict[str, Any] = {}
        for name, value in rows.items():
            out = value.new_zeros(*mask_BR.shape, *value.shape[1:])
            spread[name] = out.masked_scatter(mask_BR.bool().view(*mask_BR.shape, *[1] * (value.dim() - 1)), value)
        return RegionEncoderOutput(
            **spread, visual_attention_mask=mask_BR.long(), boxes_unit=boxes_unit, cnn_regularization_loss=loss
        )

    # ----------------------------------------------------------------------------------------------- convenience

    @torch.no_grad()
    def detect(self, image: Any, image_processor: Any = None, **objects: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """
        Find the regions of an image, with names.

        Args:
            image: An image in any form that the image processor takes; for a list of images the result is a list.
            image_processor: The detector's [`RegionDetectorImageProcessor`]. The default is the one saved with the loaded
                checkpoint, or, for a detector made from a configuration, that of the published detector of its kind.
            objects: The objects for VCR's detector: `boxes`, `classes`, `polygons`.

        Returns:
            `boxes` [R, 4] in pixels of the original image (those of pyramid detectors may reach slightly beyond it),
            `scores` [R], `class_ids` [R], `classes` (names), `visual_embeds` [R, V], `image_size`; for detectors with
            attributes `attribute_ids`, `attribute_scores` and `attributes` (names).

        Raises:
            ValueError: There is no image processor beside the checkpoint, or the image cannot be used.
        """
        image_processor = self._own_image_processor() if image_processor is None else image_processor
        training = self.training
        inputs = image_processor(image, return_tensors="pt", **objects).to(self.device)
        found = self.eval()(**inputs)
        self.train(training)
        found_in_images = []
        for row, size in enumerate(inputs["image_sizes"].tolist()):
            keep = found["visual_attention_mask"][row].bool()
            regions: dict[str, Any] = {name: value[row][keep] for name, value in found.items() if value.dim() > 1}
            del regions["visual_attention_mask"]
            regions["boxes"] = regions.pop("boxes_unit") * torch.tensor([size[1], size[0]] * 2, device=self.device)
            regions["image_size"] = torch.tensor(size)
            names = self.config.id2label
            regions["classes"] = [names[i] for i in regions["class_ids"].tolist()]
            if "attribute_ids" in regions:
                attributes = self.config.attribute_names
                regions["attributes"] = [
                    f"ATTRIBUTE_{i}" if attributes is None else attributes[i] for i in regions["attribute_ids"].tolist()
                ]
            found_in_images.append(regions)
        return found_in_images if isinstance(image, (list, tuple)) else found_in_images[0]

    def _own_image_processor(self) -> RegionDetectorImageProcessor:
        checkpoint = self.name_or_path
        if not checkpoint:
            return RegionDetectorImageProcessor.for_config(self.config)
        try:
            return RegionDetectorImageProcessor.from_pretrained(checkpoint)
        except OSError as error:
            raise ValueError(
                f"{checkpoint}: no preprocessor_config.json beside this detector, so it is unknown how to prepare images; "
                "expected one, or `image_processor`, such as RegionDetectorImageProcessor.for_config(detector.config)"
            ) from error


def _rois(boxes: Sequence[torch.Tensor]) -> torch.Tensor:
    """RoIs [N, 5] of all images, in order."""
    rows = [torch.cat((torch.full_like(some[:, :1], i), some), dim=1) for i, some in enumerate(boxes)]
    return torch.cat(rows)


def _batch(images: Sequence[dict[str, torch.Tensor]]) -> RegionEncoderOutput:
    """Regions of B images, padded with zeros to the largest number of regions."""
    padded: dict[str, Any] = {
        key: pad_sequence([image[key] for image in images], batch_first=True) for key in images[0]
    }
    counts_B1 = torch.tensor([[len(image["scores"])] for image in images], device=padded["scores"].device)
    places_R = torch.arange(padded["scores"].shape[1], device=counts_B1.device)
    return RegionEncoderOutput(**padded, visual_attention_mask=(places_R < counts_B1).long())


def _with_spatial_features(found: RegionEncoderOutput) -> torch.Tensor:
    """[B, R, V + 6] features that end with the spatial numbers of their boxes, which are cut at the border of the image."""
    numbers_BR6 = spatial_features(found["boxes_unit"].clamp(0.0, 1.0)) * found["visual_attention_mask"][..., None]
    return torch.cat((found["visual_embeds"], numbers_BR6.to(found["visual_embeds"])), dim=-1)


def _true_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, ...]]:
    """Height and width of each image without its padding."""
    if pixel_mask is None:
        return [tuple(pixel_values.shape[2:])] * len(pixel_values)
    heights, widths = pixel_mask.amax(dim=2).sum(dim=1).tolist(), pixel_mask.amax(dim=1).sum(dim=1).tolist()
    return [(int(height), int(width)) for height, width in zip(heights, widths, strict=True)]


def _windows(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> torch.Tensor:
    """Windows [B, 4] in which the images lie, in whole pixels."""
    if pixel_mask is None:
        height, width = pixel_values.shape[2:]
        return torch.tensor([[0.0, 0.0, width, height]], device=pixel_values.device).repeat(len(pixel_values), 1)
    columns_BW, rows_BH = (pixel_mask.amax(dim=axis).float() for axis in (1, 2))
    start = torch.stack((columns_BW.argmax(dim=1), rows_BH.argmax(dim=1)), dim=1).float()
    return torch.cat((start, start + torch.stack((columns_BW.sum(dim=1), rows_BH.sum(dim=1)), dim=1)), dim=1)


def _scales(windows_B4: torch.Tensor, image_sizes: torch.Tensor | None) -> torch.Tensor:
    """Pixels of the input per pixel of the original, across and down, [B, 2]; 1 if the original sizes are unknown."""
    sides_B2 = windows_B4[:, 2:] - windows_B4[:, :2]
    return torch.ones_like(sides_B2) if image_sizes is None else sides_B2 / image_sizes.flip(1).to(sides_B2)


def _to_unit(boxes_R4: torch.Tensor, window_4: torch.Tensor) -> torch.Tensor:
    """Boxes as they are handed out: normalised, and never inverted. Legacy boxes end at x1 + width - 1, so those thinner than a
    pixel would end before they start; they are handed out without extent."""
    boxes_R4 = torch.cat((boxes_R4[:, :2], torch.maximum(boxes_R4[:, :2], boxes_R4[:, 2:])), dim=1)
    start, end = window_4[:2].repeat(2), window_4[2:].repeat(2)
    return (boxes_R4 - start) / (end - start)


def _from_unit(boxes_BR4: torch.Tensor, windows_B4: torch.Tensor, mask_BR: torch.Tensor) -> torch.Tensor:
    """Boxes [B, R, 4] in pixels of the input. The whole image is its window in whole pixels, as in the original code."""
    if boxes_BR4.shape[:2] != mask_BR.shape or boxes_BR4.shape[-1] != 4:
        raise ValueError(
            f"boxes_unit of shape {tuple(boxes_BR4.shape)} and boxes_mask of shape {tuple(mask_BR.shape)}; "
            "expected (batch, regions, 4) and (batch, regions)"
        )
    windows_B14 = windows_B4[:, None].double()
    start, end = windows_B14[..., :2].repeat(1, 1, 2), windows_B14[..., 2:].repeat(1, 1, 2)
    pixels_BR4 = start + boxes_BR4.double() * (end - start)
    whole = boxes_BR4.new_tensor([0.0, 0.0, 1.0, 1.0])
    is_whole_BR1 = (boxes_BR4 == whole).all(dim=-1, keepdim=True)
    return torch.where(is_whole_BR1, windows_B14.round(), pixels_BR4).float()


__all__ = ["RegionDetector"]
