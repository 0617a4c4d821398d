"""Cells of an image as regions, through any vision tower of `transformers`: pixels -> features and boxes.

Letters: B batch, C channels of the backbone, H and W rows and columns of its map, R regions, V region feature.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_grid_encoder import GridRegionEncoderConfig, tower_config
from .configuration_region_encoder import NUM_GEOMETRY_FEATURES
from .modeling_region_encoder import RegionEncoderOutput, StandardisedRegionEncoder
from .regions_visualbert import box_geometry
from .towers_visualbert import build_tower, load_tower, tower_inputs, tower_map, whole_patches


class GridRegionEncoder(StandardisedRegionEncoder):
    """
    The image cut into `config.grid_rows` x `config.grid_columns` cells, row by row; a cell's feature is the mean of the
    backbone's map over it, optionally with the cell's geometry. Given boxes are described in the same way.

    It needs no detector and no boxes, so it can be trained end to end with the text model, from questions and answers alone.
    """

    config_class = GridRegionEncoderConfig
    config: GridRegionEncoderConfig

    def __init__(self, config: GridRegionEncoderConfig):
        if config.backbone_config is None:
            raise ValueError("`backbone_config` is missing; expected the config of a backbone or of a vision model")
        super().__init__(config)
        self.backbone = build_tower(config.backbone_config).to(torch.get_default_dtype())
        self.tower_inputs = tower_inputs(self.backbone)
        read, stages = (getattr(self.backbone, name, None) for name in ("out_features", "stage_names"))
        if read and stages and read[-1] != stages[-1]:
            raise ValueError(f"`backbone_config` puts out {read}; expected the last stage")
        self.post_init()

    def initial_standardisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The geometry of cells is known beforehand; what is the same for all cells (their size) is only centred."""
        mean, std = super().initial_standardisation()
        if self.config.geometry_features:
            geometry_R9 = box_geometry(self._cells(mean))
            spread_9 = geometry_R9.std(dim=0, correction=0)
            spread_9 = torch.where(spread_9 > 1e-4, spread_9 / self.config.geometry_weight, torch.ones_like(spread_9))
            mean[-NUM_GEOMETRY_FEATURES:], std[-NUM_GEOMETRY_FEATURES:] = geometry_R9.mean(dim=0), spread_9
        return mean, std

    @classmethod
    def from_backbone(cls, backbone: PreTrainedModel, **config_kwargs: Any) -> "GridRegionEncoder":
        """Wrap a loaded vision model, or the tower of one for images and text; `config_kwargs` are fields of
        [`GridRegionEncoderConfig`].

        Raises:
            ValueError: It is no vision model that is supported, or not of the class that makes maps.
        """
        is_whole = tower_config(backbone.config) is not backbone.config
        tower = getattr(backbone, "vision_model", backbone) if is_whole else backbone
        fields = tower.config.to_dict()
        fields.pop("_name_or_path", None)  # where it lay on this machine says nothing to others
        encoder = cls(GridRegionEncoderConfig(backbone_config=fields, **config_kwargs))
        given, read = tower.state_dict(), encoder.backbone.state_dict()
        if missing := sorted(read.keys() - given.keys()):
            raise ValueError(
                f"{type(tower).__name__} has no {missing[0]!r}; expected a {type(encoder.backbone).__name__}, or its folder with "
                "GridRegionEncoder.from_tower"
            )
        encoder.backbone.load_state_dict({key: given[key] for key in read})
        return encoder.eval()

    @classmethod
    def from_tower(cls, name: str | Path, **config_kwargs: Any) -> "GridRegionEncoder":
        """Wrap the vision tower of a checkpoint (folder or Hub name), see [`load_tower`]; `config_kwargs` are fields of
        [`GridRegionEncoderConfig`].

        Raises:
            ValueError: It is no vision model; or its weights are damaged, or some are missing.
        """
        return cls.from_backbone(load_tower(name), **config_kwargs)

    def train(self, mode: bool = True) -> "GridRegionEncoder":
        """As in PyTorch, but what has no trainable parameters stays in evaluation mode: batch norm, dropout and stochastic
        depth of frozen blocks."""
        super().train(mode)
        for module in self.backbone.modules():
            parameters = [*module.parameters()]
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> RegionEncoderOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`):
                Images, as the checkpoint's image processor makes them.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for a pixel of the image, 0 for padding, which lies to the right and below.
            boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`, *optional*):
                Boxes to describe instead of the cells; corners in units of the image (0..1).
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding.
            output_hidden_states, output_attentions (`bool`, *optional*):
                Whether to return those of the backbone; the configuration's when not given.

        Raises:
            ValueError: The backbone does not read images of this shape or size.
        """
        padded = whole_patches(pixel_values, self.config.backbone_config)
        asked = self.layers_asked_for(output_hidden_states, output_attentions)
        map_BCHW, outputs = tower_map(
            *(self.backbone, self.config.backbone_config),
            padded.flip(1) if self.config.bgr else padded,
            {**self.tower_inputs, **asked},
        )
        if boxes_unit is None:
            boxes_BR4 = self._cells(pixel_values).expand(len(pixel_values), -1, -1)
        else:
            boxes_BR4 = boxes_unit.to(map_BCHW.dtype)
        mask_BR = torch.ones_like(boxes_BR4[..., 0], dtype=torch.long) if boxes_mask is None else boxes_mask.long()
        features_BRV = mean_in_boxes(map_BCHW, boxes_BR4 * _filled_part(pixel_values, pixel_mask, padded))
        if self.config.geometry_features:
            features_BRV = torch.cat((features_BRV, box_geometry(boxes_BR4)), dim=-1)
        return RegionEncoderOutput(
            visual_embeds=self.standardise(features_BRV) * mask_BR[..., None],
            visual_attention_mask=mask_BR,
            boxes_unit=boxes_BR4,
            scores=mask_BR.to(features_BRV.dtype),  # a cell is there for sure
            class_ids=torch.zeros_like(mask_BR),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _cells(self, like: torch.Tensor) -> torch.Tensor:
        """[R, 4] corners of the cells in units of the image."""
        rows, columns = self.config.grid_rows, self.config.grid_columns
        top_R, left_R = torch.meshgrid(
            torch.arange(rows, device=like.device, dtype=like.dtype) / rows,
            torch.arange(columns, device=like.device, dtype=like.dtype) / columns,
            indexing="ij",
        )
        cells = torch.stack((left_R, top_R, left_R + 1 / columns, top_R + 1 / rows), dim=-1)
        return cells.flatten(0, 1)


def mean_in_boxes(map_BCHW: torch.Tensor, boxes_BR4: torch.Tensor) -> torch.Tensor:
    """Mean of a map over boxes (corners in units of the map's extent), [B, R, C]; map cells count by the area they share with
    the box, so the mean is exact and has a gradient for boxes that cut through them. A box without area gets zeros."""
    height, width = map_BCHW.shape[-2:]
    across_BRW = _overlap(boxes_BR4[..., 0], boxes_BR4[..., 2], width)
    down_BRH = _overlap(boxes_BR4[..., 1], boxes_BR4[..., 3], height)
    sums_BRC = torch.einsum("brh,brw,bchw->brc", down_BRH, across_BRW, map_BCHW)
    area_BR1 = (down_BRH.sum(dim=-1) * across_BRW.sum(dim=-1))[..., None]
    return sums_BRC / area_BR1.clamp(min=torch.finfo(area_BR1.dtype).tiny)


def _overlap(low_BR: torch.Tensor, high_BR: torch.Tensor, count: int) -> torch.Tensor:
    """[B, R, count]: how much of each of `count` equal cells lies between low and high, in cells."""
    edges = torch.arange(count, device=low_BR.device, dtype=low_BR.dtype)
    low, high = low_BR[..., None] * count, high_BR[..., None] * count
    return (torch.minimum(high, edges + 1) - torch.maximum(low, edges)).clamp(min=0)


def _filled_part(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, padded: torch.Tensor) -> torch.Tensor:
    """[B or 1, 1, 4]: which part of the width and height that the tower reads an image takes, to be multiplied with boxes.

    `pixel_mask` tells the image in `pixel_values`, which take a part of `padded`.
    """
    if pixel_mask is None:
        width_B = height_B = pixel_values.new_ones(1)
    else:
        width_B = pixel_mask[:, 0].to(pixel_values.dtype).mean(dim=-1)
        height_B = pixel_mask[:, :, 0].to(pixel_values.dtype).mean(dim=-1)
    width_B = width_B * (pixel_values.shape[-1] / padded.shape[-1])
    height_B = height_B * (pixel_values.shape[-2] / padded.shape[-2])
    return torch.stack((width_B, height_B, width_B, height_B), dim=-1)[:, None]


__all__ = ["GridRegionEncoder", "mean_in_boxes"]
