"""Regions from any object detector of `transformers`: pixels -> features, boxes, scores, class ids.

Letters: B batch, Q queries of the detector, R regions kept, D hidden size, V region feature, C classes.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForObjectDetection, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_region_encoder import NUM_GEOMETRY_FEATURES, QueryRegionEncoderConfig
from .loading_visualbert import CheckedModel, load_checked
from .regions_visualbert import box_geometry, box_iou, center_to_corners, corners_to_center, suppress_overlaps

_WHOLE_IMAGE = 0.99  # a given box of at least this area is the whole image


@dataclass
class RegionEncoderOutput(ModelOutput):
    """
    Regions of a batch of images, most confident first, in the form every region encoder returns.

    Args:
        visual_embeds (`torch.FloatTensor` of shape `(batch_size, regions, region_dim)`):
            Region features.
        visual_attention_mask (`torch.LongTensor` of shape `(batch_size, regions)`):
            1 for a region, 0 for padding.
        boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`):
            Normalised boxes: x1, y1, x2, y2, divided by the width and height of the image.
        scores (`torch.FloatTensor` of shape `(batch_size, regions)`):
            Confidence of the best class.
        class_ids (`torch.LongTensor` of shape `(batch_size, regions)`):
            Best class, an index of the detector's `id2label`.
        attribute_ids (`torch.LongTensor` of shape `(batch_size, regions)`):
            Best attribute, from detectors that have attributes.
        attribute_scores (`torch.FloatTensor` of shape `(batch_size, regions)`):
            Confidence of the best attribute.
        cnn_regularization_loss (`torch.FloatTensor` of shape `()`):
            Class loss of a detector that is given boxes and their classes; added to the loss when the detector is trained
            with the model.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            When asked for: states of the detector's queries, of the backbone's layers, or the maps that regions are read from.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            When asked for, and with eager attention: those of the layers that the hidden states are of. Convolutional networks
            have none.
    """

    visual_embeds: torch.Tensor | None = None
    visual_attention_mask: torch.Tensor | None = None
    boxes_unit: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    class_ids: torch.Tensor | None = None
    attribute_ids: torch.Tensor | None = None
    attribute_scores: torch.Tensor | None = None
    cnn_regularization_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ImageFeaturesOutput(RegionEncoderOutput, BaseModelOutputWithPooling):
    """
    What [`VisualBertModel.get_image_features`] returns: the regions, and before them the fields that `transformers` expects.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, regions, region_dim)`):
            The same as `visual_embeds`.
        pooler_output (`torch.FloatTensor` of shape `(batch_size, regions, hidden_size)`):
            The regions as the text model reads them: projected to its size, without segments and positions.
    """


# Fields that earlier versions did not have. With these values they do not count, so that the stores of those versions stay valid.
_NEW_FIELDS = {"bgr": False}


class RegionEncoder(CheckedModel):
    """What all region encoders share. `region_inputs` names the inputs that one reads beside `pixel_values`, `pixel_mask`,
    `boxes_unit` and `boxes_mask`."""

    _auto_class = "AutoModel"  # its file goes into checkpoints, for `trust_remote_code`
    main_input_name = "pixel_values"
    base_model_prefix = "region_encoder"
    input_modalities = ("image",)
    region_inputs: tuple[str, ...] = ()
    # The rest of a VisualBERT: a region encoder can be loaded from the checkpoint that it is a part of.
    _keys_to_ignore_on_load_unexpected = (
        r"^(visual_bert\.)?(embeddings|encoder|pooler|additional_layer)\.",
        r"^(cls|attention)\.",
    )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, but weights that are not those of the region encoder are refused, see [`load_checked`].

        Raises:
            ValueError: The weights are damaged; or tensors are missing, left over, of another shape or not finite.
        """
        # One that was never standardised has no mean and deviation.
        new_parts = [("feature_mean", "feature_std")]
        return load_checked(super().from_pretrained, pretrained_model_name_or_path, args, kwargs, new_parts)

    def set_attn_implementation(self, attn_implementation: str, **kwargs: Any) -> None:
        """
        Choose the attention of all parts: `"eager"`, or `"sdpa"` where a part has it.

        Raises:
            ValueError: The implementation is unknown, or no part has it.
        """
        checked = self.get_correct_attn_implementation(attn_implementation)
        for part in self.modules():
            if isinstance(part, PreTrainedModel):
                own = part.get_correct_attn_implementation(None if checked == "sdpa" else checked)
                part.config._attn_implementation_internal = own

    def layers_asked_for(
        self, output_hidden_states: bool | None, output_attentions: bool | None = None
    ) -> dict[str, bool]:
        """The two arguments, by name, that are true: those given, or those of the configuration."""
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        return {name: True for name, value in asked.items() if (getattr(self.config, name) if value is None else value)}

    def fingerprint(self) -> str:
        """Hash of configuration and weights: two encoders with the same one find the same regions."""
        origin = {
            "_name_or_path",
            "architectures",
            "auto_map",
            "dtype",
            "transformers_version",
        }  # where it came from, not what it does
        config = {key: value for key, value in self.config.to_dict().items() if key not in origin}
        config = {key: value for key, value in config.items() if _NEW_FIELDS.get(key, ...) != value}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            # As bytes: NumPy has no bfloat16.
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def identity(self) -> dict[str, str]:
        """Which detector this is, for [`check_detector`]: name of the published design, else of its class, and fingerprint."""
        name = getattr(self.config, "published_name", None) or type(self).__name__
        return {"name": name, "fingerprint": self.fingerprint()}


class StandardisedRegionEncoder(RegionEncoder):
    """
    A region encoder whose features have mean 0 and standard deviation 1, box geometry `config.geometry_weight`.

    `feature_mean` and `feature_std` are buffers of length `config.region_dim`, measured over a training set by
    [`StandardisedRegionEncoder.fit_standardisation`]; until then they are zeros and ones.
    """

    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = [
        "QueryRegionEncoder",
        "GridRegionEncoder",
    ]  # detectors have parts that are tied, and are not large

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        mean, std = self.initial_standardisation()
        self.feature_mean = nn.Buffer(mean)
        self.feature_std = nn.Buffer(std)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, StandardisedRegionEncoder):
            buffers = (module.feature_mean, module.feature_std)
            for buffer, value in zip(buffers, module.initial_standardisation(), strict=True):
                if not getattr(buffer, "_is_hf_initialized", False):
                    buffer.copy_(value)

    def initial_standardisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation until they are measured: those that change nothing."""
        dim = self.config.region_dim
        return torch.zeros(dim), torch.ones(dim)

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """[..., V] features with mean 0 and standard deviation 1 over the data that was measured."""
        return (features - self.feature_mean) / self.feature_std

    @torch.no_grad()
    def fit_standardisation(self, batches) -> None:
        """Set `feature_mean` and `feature_std` to those of the regions kept in `batches` (an iterable of model inputs).

        Features then have mean 0 and standard deviation 1, box geometry `config.geometry_weight`.

        Raises:
            ValueError: No region was kept in any batch.
        """
        count = 0
        total, squares = torch.zeros(2, self.config.region_dim, dtype=torch.float64)
        self.eval()
        self.feature_mean.zero_()
        self.feature_std.fill_(1.0)
        for batch in batches:
            found = self(**batch, return_dict=True)
            rows = found.visual_embeds[found.visual_attention_mask.bool()].double().cpu()
            count += len(rows)
            total += rows.sum(dim=0)
            squares += rows.square().sum(dim=0)
        if not count:
            raise ValueError("no region scored above `score_threshold` in the images given; train the detector longer")
        mean = total / count
        self.feature_mean.copy_(mean)
        std = (squares / count - mean.square()).clamp(min=1e-8).sqrt()
        if self.config.geometry_features:
            std[-NUM_GEOMETRY_FEATURES:] /= self.config.geometry_weight
        self.feature_std.copy_(std)


class QueryRegionEncoder(StandardisedRegionEncoder):
    """The query states of a detector as region features (optionally with the box's geometry), standardised."""

    config_class = QueryRegionEncoderConfig
    config: QueryRegionEncoderConfig

    def __init__(self, config: QueryRegionEncoderConfig):
        if config.detector_config is None:
            raise ValueError("`detector_config` is missing; expected the config of an object detection model")
        super().__init__(config)
        self.detector = AutoModelForObjectDetection.from_config(config.detector_config)
        self.detector.to(torch.get_default_dtype())  # whatever precision its configuration was saved with
        self.post_init()

    @classmethod
    def from_detector(cls, detector: PreTrainedModel, **config_kwargs: Any) -> "QueryRegionEncoder":
        """Wrap a loaded detector; `config_kwargs` are fields of [`QueryRegionEncoderConfig`].

        Raises:
            ValueError: It is no object detection model of `transformers`.
        """
        fields = detector.config.to_dict()
        fields.pop("_name_or_path", None)  # a path on this machine means nothing elsewhere
        encoder = cls(QueryRegionEncoderConfig(detector_config=fields, **config_kwargs))
        encoder.detector.load_state_dict(detector.state_dict())
        return encoder.eval()

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
                1 for a pixel of the image, 0 for padding.
            boxes_unit (`torch.FloatTensor` of shape `(batch_size, regions, 4)`, *optional*):
                Normalised corner boxes (0..1) to describe instead of finding some. A box gets
                the query that overlaps it most (IoU times score); the box of the whole image, and one that overlaps no
                query, get the mean of all found regions.
            boxes_mask (`torch.LongTensor` of shape `(batch_size, regions)`, *optional*):
                1 for a given box, 0 for padding.
            output_hidden_states, output_attentions (`bool`, *optional*):
                Whether to return those of the layers whose last states are the features; the configuration's when not given.

        Raises:
            ValueError: The detector does not read images of this shape.
        """
        found = self.detect(pixel_values, pixel_mask, **self.layers_asked_for(output_hidden_states, output_attentions))
        regions = self._select(found)
        if boxes_unit is not None:
            regions = self._describe(boxes_unit, boxes_mask, found, regions)
        return RegionEncoderOutput(
            **regions, hidden_states=found.get("hidden_states"), attentions=found.get("attentions")
        )

    def _select(self, found: dict[str, torch.Tensor]) -> RegionEncoderOutput:
        """The most confident queries that do not overlap."""
        num_regions = min(self.config.max_regions, found["scores"].shape[1])
        scores_BR, order_BR = found["scores"].topk(num_regions, dim=1)
        boxes_BR4 = _take(found["boxes_unit"], order_BR)
        keep_BR = scores_BR >= self.config.score_threshold
        if self.config.nms_threshold < 1.0:
            keep_BR = suppress_overlaps(boxes_BR4, keep_BR, self.config.nms_threshold)
        # Survivors move to the front, in order, so that padding is always at the end.
        front_BR = keep_BR.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        order_BR = order_BR.gather(1, front_BR)
        return RegionEncoderOutput(
            visual_embeds=self.standardise(_take(found["features"], order_BR)),
            visual_attention_mask=keep_BR.gather(1, front_BR).long(),
            boxes_unit=_take(found["boxes_unit"], order_BR),
            scores=found["scores"].gather(1, order_BR),
            class_ids=found["class_ids"].gather(1, order_BR),
        )

    def _describe(
        self,
        boxes_BR4: torch.Tensor,
        boxes_mask: torch.Tensor | None,
        found: dict[str, torch.Tensor],
        regions: RegionEncoderOutput,
    ) -> RegionEncoderOutput:
        """Features of given boxes, from the queries that overlap them most; of two that do, from the more confident."""
        overlaps_BR, best_BR = (box_iou(boxes_BR4, found["boxes_unit"]) * found["scores"][:, None]).max(dim=-1)
        features_BRV = self.standardise(_take(found["features"], best_BR))
        kept_BN1 = regions["visual_attention_mask"][..., None].to(features_BRV.dtype)
        mean_BV = (regions["visual_embeds"] * kept_BN1).sum(dim=1) / kept_BN1.sum(dim=1).clamp(min=1)
        is_whole_BR = corners_to_center(boxes_BR4)[..., 2:].prod(dim=-1) >= _WHOLE_IMAGE
        features_BRV = torch.where((is_whole_BR | (overlaps_BR == 0))[..., None], mean_BV[:, None], features_BRV)
        if self.config.geometry_features:  # that of the box itself, not of the query
            geometry = slice(-NUM_GEOMETRY_FEATURES, None)
            own_BR9 = (box_geometry(boxes_BR4) - self.feature_mean[geometry]) / self.feature_std[geometry]
            features_BRV = torch.cat((features_BRV[..., :-NUM_GEOMETRY_FEATURES], own_BR9), dim=-1)
        mask_BR = torch.ones_like(best_BR) if boxes_mask is None else boxes_mask.long()
        return RegionEncoderOutput(
            visual_embeds=features_BRV * mask_BR[..., None],
            visual_attention_mask=mask_BR,
            boxes_unit=boxes_BR4,
            scores=found["scores"].gather(1, best_BR),
            class_ids=found["class_ids"].gather(1, best_BR),
        )

    def detect(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None, **asked: Any
    ) -> dict[str, Any]:
        """All Q queries before selection: `features` [B, Q, V] (not standardised), `boxes_unit`, `scores`, `class_ids`; and
        what is asked for by `output_hidden_states` and `output_attentions`."""
        # Not every detector has a mask argument.
        masked = {} if pixel_mask is None else {"pixel_mask": pixel_mask}
        found = self.detector(pixel_values=pixel_values, **masked, **asked, return_dict=True)
        boxes_BQ4 = center_to_corners(found.pred_boxes).clamp(0.0, 1.0)
        states_BQD = found.last_hidden_state[:, -boxes_BQ4.shape[1] :]  # YOLOS puts its patches before the queries
        scores_BQ, class_ids_BQ = best_classes(found.logits, self.detector.config.num_labels)
        features = (states_BQD, box_geometry(boxes_BQ4)) if self.config.geometry_features else (states_BQD,)
        asked_names = [name.removeprefix("output_") for name in asked]
        return {
            "features": torch.cat(features, dim=-1),
            "boxes_unit": boxes_BQ4,
            "scores": scores_BQ,
            "class_ids": class_ids_BQ,
            **{name: found.get(f"decoder_{name}", found.get(name)) for name in asked_names},
        }


def best_classes(logits_BQC: torch.Tensor, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Score in 0..1 and index of each query's best class.

    Detectors trained with a "no object" class (DETR, YOLOS) have one logit more than labels and compare classes by softmax;
    the others judge each class by itself.
    """
    if logits_BQC.shape[-1] == num_labels + 1:
        return logits_BQC.softmax(dim=-1)[..., :-1].max(dim=-1)
    return logits_BQC.sigmoid().max(dim=-1)


def _take(rows_BQX: torch.Tensor, order_BR: torch.Tensor) -> torch.Tensor:
    return rows_BQX.gather(1, order_BR[..., None].expand(-1, -1, rows_BQX.shape[-1]))


__all__ = [
    "ImageFeaturesOutput",
    "QueryRegionEncoder",
    "RegionEncoder",
    "RegionEncoderOutput",
    "StandardisedRegionEncoder",
    "best_classes",
]
