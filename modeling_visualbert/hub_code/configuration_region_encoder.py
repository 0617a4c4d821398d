"""Configuration of the region encoder that is made of any object detector of `transformers`."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig

NUM_GEOMETRY_FEATURES = 9  # x1, y1, x2, y2, centre x, centre y, width, height, area; all in units of the image


@strict
class QueryRegionEncoderConfig(PretrainedConfig):
    r"""
    Configuration of [`QueryRegionEncoder`]: which detector finds the regions, and which of its queries are kept.

    Args:
        detector_config (`PretrainedConfig` or `dict`):
            Configuration of any model that `AutoModelForObjectDetection` can build (DETR, RT-DETR, D-FINE, YOLOS, ...).
        max_regions (`int`, *optional*, defaults to 36):
            At most this many regions per image, the most confident ones.
        score_threshold (`float`, *optional*, defaults to 0.2):
            Queries whose best class scores less are dropped.
        nms_threshold (`float`, *optional*, defaults to 0.5):
            Of two boxes that overlap more than this IoU the less confident is dropped, whatever their classes.
            1.0 keeps all of them.
        geometry_features (`bool`, *optional*, defaults to `True`):
            Append the nine box numbers (corners, centre, width, height and area, in units of the image) to each
            query state.
        geometry_weight (`float`, *optional*, defaults to 3.0):
            How much a geometry number counts beside a number of the query state, once both are standardised: without
            it the few numbers that say where a thing is drown in the many that say what it is.
    """

    model_type = "query_region_encoder"
    # `detector_config` is not listed on purpose: a request such as attn_implementation="sdpa" would reach its backbone,
    # and many backbones have eager attention only.
    sub_configs: ClassVar[dict[str, Any]] = {}
    _auto_class: ClassVar[str | None] = "AutoConfig"

    detector_config: Any = None
    max_regions: int = 36
    score_threshold: float = 0.2
    nms_threshold: float = 0.5
    geometry_features: bool = True
    geometry_weight: float = 3.0

    def __post_init__(self, **kwargs):
        if isinstance(self.detector_config, dict):
            values = dict(self.detector_config)
            if "model_type" not in values:
                raise ValueError("`detector_config` needs a `model_type`, such as 'd_fine' or 'detr'")
            self.detector_config = AutoConfig.for_model(values.pop("model_type"), **values)
        super().__post_init__(**kwargs)

    @property
    def region_dim(self) -> int:
        """Length of one region feature."""
        return self.detector_config.hidden_size + (NUM_GEOMETRY_FEATURES if self.geometry_features else 0)


__all__ = ["NUM_GEOMETRY_FEATURES", "QueryRegionEncoderConfig"]
