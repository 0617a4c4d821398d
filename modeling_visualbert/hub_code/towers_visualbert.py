"""Vision models as towers: which part of a checkpoint sees, how it is built and loaded, and the map that it makes of an image.

Letters: B batch, C channels of the map, H and W its rows and columns, P patches (and, before them, class and register tokens).
"""

import copy
import importlib
import inspect
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_MAPPING,
)

from .configuration_grid_encoder import SUPPORTED_BACKBONES, tower_config
from .loading_visualbert import load_checked

_DEFAULT_SIZE = 224
_NAFLEX = "siglip2_vision_model"  # reads patches, as many as an image has, instead of pixels
# Backbones normalise the map of the stage that is read, and checkpoints of whole models have no weights for that. `transformers`
# gives it ones and zeros.
_NEW_PARTS = ("hidden_states_norms.",)


def tower_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class that makes a map of an image: the backbone of `transformers` if there is one, otherwise the plain model.

    Raises:
        ValueError: It is no model that reads images, or it is a detector.
    """
    kind = f"backbone {config.model_type!r}"
    if type(config) in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        raise ValueError(
            f"{kind} is an object detector, which finds regions itself (QueryRegionEncoder.from_detector); "
            f"expected {SUPPORTED_BACKBONES}"
        )
    mapping = MODEL_FOR_BACKBONE_MAPPING if type(config) in MODEL_FOR_BACKBONE_MAPPING else MODEL_MAPPING
    found = mapping.get(type(config), None) or _class_of_family(config)
    if found is None:
        raise ValueError(f"{kind} has no model of its own in transformers; expected {SUPPORTED_BACKBONES}")
    if not isinstance(found, type) or getattr(found, "main_input_name", None) != "pixel_values":
        raise ValueError(f"{kind} does not read images; expected {SUPPORTED_BACKBONES}")
    return found


def _class_of_family(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The vision model of a family that has no Auto class for it, such as BLIP: `transformers` keeps it beside the family's other
    models."""
    where = type(config).__module__
    if not where.startswith("transformers.models."):
        return None
    module = importlib.import_module(where.replace(".configuration_", ".modeling_"))
    name = type(config).__name__.removesuffix("Config") + "Model"  # BlipVisionConfig: BlipVisionModel
    return getattr(module, name, None) if name.endswith("VisionModel") else None


def build_tower(config: PretrainedConfig) -> PreTrainedModel:
    """A tower with new weights, without what reads the image as a whole (pooler, attention pooling), which no cell needs.

    Raises:
        ValueError: There is no tower for this configuration, or it needs a package that is not installed.
    """
    model_class = tower_class(config)
    config = copy.deepcopy(config)
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = False
    try:
        return model_class._from_config(config, **_without_pooler(model_class))
    except ImportError as error:
        raise ValueError(f"backbone {config.model_type!r}: {' '.join(str(error).split()):.200}") from error


def load_tower(name: Any) -> PreTrainedModel:
    """
    The vision model of a checkpoint, of whatever class it was saved as: a backbone, a model with or without a head, or one of
    images and text, such as CLIP, whose vision tower is taken.

    (`AutoBackbone.from_pretrained` asks the Hub about local folders; the model's own class does not.)

    Args:
        name: Folder or Hub name.

    Raises:
        ValueError: It is no vision model; or its weights are damaged, or some are missing.
    """
    whole = AutoConfig.from_pretrained(name)
    config = tower_config(whole)
    if hasattr(type(config), "region_dim"):
        raise ValueError(f"{name}: a region encoder already ({config.model_type}); expected a vision model")
    try:
        model_class = tower_class(config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    kwargs = {"config": config, **_without_pooler(model_class)}
    if config is not whole and model_class.base_model_prefix != "vision_model":  # which the others take off themselves
        kwargs["key_mapping"] = {r"^vision_model\.": ""}
    with _without_report():
        return load_checked(model_class.from_pretrained, name, (), kwargs, _NEW_PARTS).eval()


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps the list of tensors that are left over, such as those of CLIP's text model, from the screen."""
    log = logging.getLogger("transformers.modeling_utils")

    def is_kept(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(is_kept)
    try:
        yield
    finally:
        log.removeFilter(is_kept)


def tower_inputs(tower: nn.Module) -> dict[str, Any]:
    """What a tower is called with beside its pixels: learned positions are interpolated where it knows how to."""
    known = inspect.signature(tower.forward).parameters
    return {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in known else {}


def tower_map(
    tower: nn.Module, config: PretrainedConfig, pixel_values: torch.Tensor, inputs: dict[str, Any]
) -> tuple[torch.Tensor, Any]:
    """
    The map [B, C, H, W] that a tower makes of images, and all that it returns.

    Args:
        tower, config: The tower and its configuration.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): Images.
        inputs: See [`tower_inputs`]; and `output_hidden_states` or `output_attentions`.

    Raises:
        ValueError: It gives no map of the last stage, nor one state for each patch.
    """
    outputs = _outputs(tower, config, pixel_values, inputs)
    return _as_map(outputs, config, pixel_values.shape[-2:]), outputs


def _outputs(tower: nn.Module, config: PretrainedConfig, pixel_values: torch.Tensor, inputs: dict[str, Any]) -> Any:
    if config.model_type == _NAFLEX:
        return tower(**_patches(pixel_values, config.patch_size))
    # Convolutions, batch norm and pooling are a fifth faster on CPUs with the channels innermost.
    return tower(pixel_values.contiguous(memory_format=torch.channels_last), **inputs)


def _as_map(outputs: Any, config: PretrainedConfig, size_hw: Sequence[int]) -> torch.Tensor:
    if "feature_maps" in outputs:
        return outputs["feature_maps"][-1]
    states = outputs["last_hidden_state"]
    if states.dim() == 4:
        return states
    patch = patch_shape(config)
    rows, columns = (0, 0) if patch is None else (size_hw[0] // patch[0], size_hw[1] // patch[1])
    if states.dim() != 3 or not 0 < rows * columns <= states.shape[1]:
        raise ValueError(
            f"backbone {config.model_type!r} gives states of shape {tuple(states.shape)}, not one for each of "
            f"{rows} x {columns} patches; expected {SUPPORTED_BACKBONES}"
        )
    patches_BPC = states[:, states.shape[1] - rows * columns :]  # class and register tokens come first
    return patches_BPC.transpose(1, 2).unflatten(2, (rows, columns))


def patch_shape(config: PretrainedConfig) -> tuple[int, int] | None:
    """Height and width of the patches of a ViT-like tower; None for convolutional and hierarchical ones."""
    patch = getattr(config, "patch_size", None)
    if patch is None or not isinstance(getattr(config, "hidden_size", None), int) or hasattr(config, "depths"):
        return None
    return (patch, patch) if isinstance(patch, int) else (patch[0], patch[1])


def whole_patches(pixel_values: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Images padded to the right and below until they consist of whole patches: a ViT leaves out what is beyond the last one."""
    patch = patch_shape(config)
    if patch is None:
        return pixel_values
    height, width = pixel_values.shape[-2:]
    return F.pad(pixel_values, (0, -width % patch[1], 0, -height % patch[0]))


def own_size(config: PretrainedConfig) -> tuple[int, int]:
    """Height and width of the images that a tower was made for, as far as its configuration tells."""
    size = getattr(config, "image_size", None)
    if size is None and config.model_type == _NAFLEX:
        size = round(config.num_patches**0.5) * config.patch_size
    size = size or _DEFAULT_SIZE
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def map_shape(config: PretrainedConfig, size_hw: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """
    Channels, rows and columns of the map of an image, from a forward pass without data (on the meta device), because
    configurations name these in many ways, or not at all.

    Args:
        config: Configuration of the tower.
        size_hw: Height and width of the image; those that the tower was made for, when not given.

    Raises:
        ValueError: The tower does not read images of this size, or gives no map.
    """
    description = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return _map_shape(_Described(config, description), size_hw or own_size(config))


class _Described:
    """A configuration that counts as equal to another one with the same values, for the cache."""

    def __init__(self, config: PretrainedConfig, description: str):
        self.config, self.description = config, description

    def __hash__(self) -> int:
        return hash(self.description)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Described) and other.description == self.description


@lru_cache(maxsize=64)
def _map_shape(described: _Described, size_hw: tuple[int, int]) -> tuple[int, int, int]:
    config = described.config
    with torch.device("meta"), torch.no_grad():
        tower = build_tower(config).eval()
        pixels = torch.zeros(1, getattr(config, "num_channels", 3), *size_hw, dtype=tower.dtype)
        pixels = whole_patches(pixels, config)
        try:
            outputs = _outputs(tower, config, pixels, tower_inputs(tower))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"backbone {config.model_type!r} does not read images of {size_hw[0]} x {size_hw[1]} pixels "
                f"({' '.join(str(error).split()):.120}); its own size is {own_size(config)[0]} x {own_size(config)[1]}; "
                f"expected {SUPPORTED_BACKBONES}"
            ) from error
        found = _as_map(outputs, config, pixels.shape[-2:])
    return found.shape[1], found.shape[2], found.shape[3]


def _without_pooler(model_class: type[PreTrainedModel]) -> dict[str, bool]:
    return (
        {"add_pooling_layer": False}
        if "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
        else {}
    )


def _patches(pixel_values: torch.Tensor, patch: int) -> dict[str, torch.Tensor | None]:
    """What NaFlex towers read: flat patches [B, P, patch * patch * 3], and how many rows and columns of them there are."""
    rows, columns = (side // patch for side in pixel_values.shape[-2:])
    cut = pixel_values[..., : rows * patch, : columns * patch].unflatten(-1, (columns, patch))
    cut_B3HpWp = cut.unflatten(-3, (rows, patch))
    patches_BPV = cut_B3HpWp.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    # On the CPU, where the model reads them one by one.
    shapes_B2 = torch.tensor([[rows, columns]], device="cpu").expand(len(pixel_values), -1)
    return {"pixel_values": patches_BPV, "pixel_attention_mask": None, "spatial_shapes": shapes_B2}


__all__ = [
    "build_tower",
    "load_tower",
    "map_shape",
    "own_size",
    "patch_shape",
    "tower_class",
    "tower_inputs",
    "tower_map",
    "whole_patches",
]
