"""Configuration of the region encoder that cuts an image into cells: for images that no detector knows."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig

from .configuration_region_encoder import NUM_GEOMETRY_FEATURES, WrapperConfig

SUPPORTED_BACKBONES = (
    "a backbone of transformers (ResNet, ConvNeXt, Swin, DINOv2, ...), a vision model with a map (EfficientNet, MobileNet, ...) "
    "or with patch states (ViT, DeiT, BEiT, ...), or a model that has one inside (CLIP, SigLIP, ...)"
)


def tower_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a checkpoint's configuration that describes its vision model: all of it, or that of the tower of CLIP and
    its kin."""
    return getattr(config, "vision_config", None) or config


@strict
class GridRegionEncoderConfig(WrapperConfig):
    r"""
    Configuration of [`GridRegionEncoder`]: which backbone reads the image, and into how many cells it is cut.

    Args:
        backbone_config (`PretrainedConfig` or `dict`):
            Configuration of the vision tower: any backbone that `AutoBackbone` can build (ResNet, ConvNeXt, Swin, DINOv2, ...;
            its last stage is read), a model whose last state is a map (EfficientNet, MobileNet, RegNet, MobileViT, ...) or
            patch states (ViT, DeiT, ...). Of one for images and text (CLIP, SigLIP, ...), the vision part is taken.
        grid_rows (`int`, *optional*, defaults to 6), grid_columns (`int`, *optional*, defaults to 6):
            The image is cut into so many cells; a cell's feature is the mean of the backbone's map over it.
        geometry_features (`bool`, *optional*, defaults to `True`):
            Append the nine box numbers of the cell: without them nothing tells where it is.
        geometry_weight (`float`, *optional*, defaults to 3.0):
            How much a geometry number counts beside a number of the backbone, once both are standardised.
        bgr (`bool`, *optional*, defaults to `False`):
            Whether the tower reads blue, green and red, in this order (MobileViT).
    """

    model_type = "grid_region_encoder"
    wrapped_field: ClassVar[str] = "backbone_config"

    backbone_config: Any = None
    grid_rows: int = 6
    grid_columns: int = 6
    geometry_features: bool = True
    geometry_weight: float = 3.0
    bgr: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            values = dict(self.backbone_config)
            if "model_type" not in values:
                raise ValueError("`backbone_config` needs a `model_type`, such as 'resnet' or 'vit'")
            self.backbone_config = AutoConfig.for_model(values.pop("model_type"), **values)
        if self.backbone_config is not None:
            self.backbone_config = tower_config(self.backbone_config)
        if min(self.grid_rows, self.grid_columns) < 1:
            raise ValueError(f"a grid of {self.grid_rows} x {self.grid_columns} cells; expected at least 1 x 1")
        super().__post_init__(**kwargs)

    @property
    def max_regions(self) -> int:
        """Number of cells."""
        return self.grid_rows * self.grid_columns

    @property
    def region_dim(self) -> int:
        """Length of one region feature.

        Raises:
            ValueError: There is no vision tower for `backbone_config`.
        """
        # Imported here: configurations are registered before models can be imported.
        from .towers_visualbert import map_shape

        width = map_shape(self.backbone_config)[0]
        return width + (NUM_GEOMETRY_FEATURES if self.geometry_features else 0)


__all__ = ["SUPPORTED_BACKBONES", "GridRegionEncoderConfig", "tower_config"]
