"""Pixels instead of region features: what a model with a region encoder does before its embeddings.

Letters: B batch, R regions, V region feature, I images per example.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from .configuration_visualbert import VisualBertConfig
from .modeling_grid_encoder import GridRegionEncoder
from .modeling_region_detector import RegionDetector
from .modeling_region_encoder import ImageFeaturesOutput, QueryRegionEncoder, RegionEncoder, RegionEncoderOutput

REGION_ENCODERS: dict[str, type[RegionEncoder]] = {
    encoder.config_class.model_type: encoder for encoder in (QueryRegionEncoder, RegionDetector, GridRegionEncoder)
}


class PixelReader(PreTrainedModel):
    """The part of [`VisualBertModel`] that owns the region encoder, if there is one."""

    config: VisualBertConfig
    embeddings: Any
    region_encoder: RegionEncoder

    def build_region_encoder(self) -> None:
        """Create the region encoder that the configuration describes, if any."""
        if self.config.region_encoder_config is None:
            return
        encoder_class = REGION_ENCODERS[self.config.region_encoder_config.model_type]
        self.region_encoder = encoder_class(self.config.region_encoder_config)
        self.region_encoder.requires_grad_(not self.config.freeze_region_encoder)
        self.region_encoder.train(not self.config.freeze_region_encoder)

    def train(self, mode: bool = True) -> "PixelReader":
        super().train(mode)
        if self.config.region_encoder_config is not None and self.config.freeze_region_encoder:
            self.region_encoder.eval().requires_grad_(False)  # frozen also means that batch statistics stay as they are
        return self

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> ImageFeaturesOutput:
        """
        Find the regions of images: encode once, ask many times.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`):
                Images, as the checkpoint's image processor makes them.
            pixel_mask (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
                1 for a pixel of the image, 0 for padding.
            boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`, *optional*):
                Normalised boxes (corners, 0..1) to describe instead of finding some.
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding.
            output_hidden_states, output_attentions (`bool`, *optional*):
                Whether to return those of the region encoder too; the configuration's when not given.
            kwargs:
                What else the region encoder reads (its `region_inputs`), such as the `image_sizes` and `picture_windows` that
                the image processor of a [`RegionDetector`] returns, and `return_dict`. Other inputs are ignored.

        Returns:
            A mapping with `visual_embeds`, `visual_attention_mask`, `boxes_unit`, `scores` and `class_ids`, and whatever else
            the region encoder finds, and with `last_hidden_state` and `pooler_output` as other models of `transformers` have
            them (see [`ImageFeaturesOutput`]). A tuple in the order of its fields with `return_dict=False`.

        Raises:
            ValueError: The model has no region encoder.
        """
        found = self._find_regions(
            *(pixel_values, pixel_mask, boxes_unit, boxes_mask),
            output_hidden_states=self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states,
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
            **kwargs,
        )
        projected = self.embeddings.project_regions(found["visual_embeds"])
        return ImageFeaturesOutput(**found, last_hidden_state=found["visual_embeds"], pooler_output=projected)

    def _find_regions(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **kwargs,
    ) -> RegionEncoderOutput:
        """What the region encoder itself returns; see [`~PixelReader.get_image_features`]."""
        if self.config.region_encoder_config is None:
            raise ValueError(
                "this model has no region encoder (`config.region_encoder_config` is not set), so it cannot read "
                "`pixel_values`; pass precomputed `visual_embeds` instead"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_region_encoder):
            return self.region_encoder(
                pixel_values.to(self.region_encoder.dtype),  # image processors make single precision
                *(pixel_mask, boxes_unit, boxes_mask),
                **{name: kwargs[name] for name in self.region_encoder.region_inputs if kwargs.get(name) is not None},
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                return_dict=True,
            )

    def regions_given_or_found(
        self,
        visual_embeds: torch.Tensor | None,
        visual_attention_mask: torch.Tensor | None,
        visual_token_type_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        pixel_mask: torch.Tensor | None,
        boxes_unit: torch.Tensor | None = None,
        boxes_mask: torch.Tensor | None = None,
        **region_inputs,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        The regions that the model reads: those given, or those found in the pixels; see [`VisualBertModel.forward`] for the
        arguments.

        Returns:
            Region features, their mask and their segments, None where missing; and the class loss of a detector that was given
            boxes and their classes.

        Raises:
            ValueError: Both `pixel_values` and `visual_embeds`.
        """
        if pixel_values is None:
            return visual_embeds, visual_attention_mask, visual_token_type_ids, None
        if visual_embeds is not None:
            raise ValueError("pass either `pixel_values` or `visual_embeds`, not both")
        segments = None
        if pixel_values.dim() == 4:
            boxes_mask = visual_attention_mask if boxes_mask is None else boxes_mask
            found = self._find_regions(pixel_values, pixel_mask, boxes_unit, boxes_mask, **region_inputs)
        else:
            found, segments = self._regions_of_several_images(pixel_values, pixel_mask, **region_inputs)
        segments = segments if visual_token_type_ids is None else visual_token_type_ids
        class_loss = found.get("cnn_regularization_loss")
        return found["visual_embeds"], found["visual_attention_mask"], segments, class_loss

    def _regions_of_several_images(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, **region_inputs
    ) -> tuple[RegionEncoderOutput, torch.Tensor]:
        """Regions of [B, I, 3, H, W] pixels, one image after the other, and their segments [B, I * R]."""
        batch_size, num_images = pixel_values.shape[:2]
        flat_mask = None if pixel_mask is None else pixel_mask.flatten(0, 1)
        flat = {name: value.flatten(0, 1) for name, value in region_inputs.items() if value is not None}
        found = self._find_regions(pixel_values.flatten(0, 1), flat_mask, **flat)
        regions_BIRV = found["visual_embeds"].unflatten(0, (batch_size, num_images))
        mask_BIR = found["visual_attention_mask"].unflatten(0, (batch_size, num_images))
        segments_BIR = torch.arange(num_images, device=mask_BIR.device)[:, None].expand_as(mask_BIR)
        merged = RegionEncoderOutput(
            visual_embeds=regions_BIRV.flatten(1, 2), visual_attention_mask=mask_BIR.flatten(1, 2)
        )
        return merged, segments_BIR.flatten(1, 2)


def pop_region_inputs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Remove and return the inputs that only region encoders read."""
    names = {name for encoder in REGION_ENCODERS.values() for name in encoder.region_inputs}
    return {name: kwargs.pop(name) for name in names & kwargs.keys()}


__all__ = ["REGION_ENCODERS", "PixelReader", "pop_region_inputs"]
