"""What all our configurations share, and that of the region encoder made of any object detector of `transformers`."""

from contextlib import nullcontext
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .files_visualbert import check_json_files, check_sizes, config_file, naming

NUM_GEOMETRY_FEATURES = 9  # x1, y1, x2, y2, centre x, centre y, width, height, area; all in units of the image


class PortableConfig(PretrainedConfig):
    """A configuration whose code goes into checkpoints, for `trust_remote_code`. What names that code (`auto_map`) is in the
    saved file only: in memory a configuration is the same before and after it is saved, and when it is loaded again."""

    _auto_class: ClassVar[str | None] = "AutoConfig"

    def __post_init__(self, **kwargs):
        if not type(self).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # Where the package is imported, a checkpoint's copy of its code is not asked for, and nobody has to trust it.
            kwargs.pop("auto_map", None)
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in `transformers`, with errors that name the file.

        Raises:
            OSError: There is no such file, or the Hub cannot be reached.
            ValueError: The file is damaged, or a field cannot be what it is.
        """
        check_json_files(pretrained_model_name_or_path, "config.json")
        with naming(config_file(pretrained_model_name_or_path)):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in `transformers`. From `AutoConfig`, which says where the fields come from, errors name the file."""
        place = kwargs.get("name_or_path")
        with nullcontext() if place is None else naming(config_file(place)):
            check_sizes(config_dict)
            return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in `transformers`, with the code beside the file."""
        before = dict(self.__dict__)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.__dict__.clear()
            self.__dict__.update(before)


class WrapperConfig(PortableConfig):
    """Configuration of a region encoder around a model of `transformers`, whose configuration is the field `wrapped_field`."""

    # The field is not listed on purpose: a request for "sdpa" would reach the model's backbone, and many have eager attention.
    sub_configs: ClassVar[dict[str, Any]] = {}
    wrapped_field: ClassVar[str]

    @property
    def _attn_implementation(self):
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None):
        own = self._attn_implementation_internal = value.get("") if isinstance(value, dict) else value
        wrapped = getattr(self, self.wrapped_field)
        if own is not None and wrapped is not None:
            wrapped._attn_implementation = None if own == "sdpa" else own  # None is sdpa in each part that has it


@strict
class QueryRegionEncoderConfig(WrapperConfig):
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
    wrapped_field: ClassVar[str] = "detector_config"

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
            for name in ("output_hidden_states", "output_attentions"):
                if not isinstance(values.get(name, False), (bool, type(None))):
                    raise ValueError(f"detector_config.{name} is {values[name]!r:.40}; expected true or false")
            self.detector_config = AutoConfig.for_model(values.pop("model_type"), **values)
        super().__post_init__(**kwargs)

    @property
    def region_dim(self) -> int:
        """Length of one region feature."""
        return self.detector_config.hidden_size + (NUM_GEOMETRY_FEATURES if self.geometry_features else 0)


__all__ = ["NUM_GEOMETRY_FEATURES", "PortableConfig", "QueryRegionEncoderConfig", "WrapperConfig"]
