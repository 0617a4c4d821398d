"""Which part of a vision tower is trained with the model: its last blocks, or small additions to its weights (LoRA)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..hub_code.modeling_grid_encoder import GridRegionEncoder

_NAME = "default"  # of the only adapter


def train_last_layers(encoder: Any, count: int) -> None:
    """Freeze a tower but for its last blocks (stages, of a convolutional tower) and what comes after them.

    Frozen parts stay in evaluation mode, see [`GridRegionEncoder.train`].

    Raises:
        ValueError: The region encoder is no vision tower, or has fewer blocks.
    """
    flag = f"--train_backbone_layers {count}"
    tower = _tower(encoder, flag)
    name, blocks = main_blocks(tower)
    if count > len(blocks):
        raise ValueError(f"{flag}: the tower has {len(blocks)} blocks or stages; expected at most as many")
    tower.requires_grad_(False)
    is_reached = False
    for parameter_name, parameter in tower.named_parameters():  # in the order in which they are applied
        is_reached = is_reached or parameter_name.startswith(f"{name}.{len(blocks) - count}.")
        parameter.requires_grad_(is_reached)


def main_blocks(tower: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name of the list of a tower's blocks, or stages, and the list: the one with the most parameters.

    Raises:
        ValueError: There is none.
    """
    lists = {name: module for name, module in tower.named_modules() if isinstance(module, nn.ModuleList) and name}
    outermost = {name: found for name, found in lists.items() if not any(name.startswith(f"{o}.") for o in lists)}
    if not outermost:
        raise ValueError(f"{type(tower).__name__} has no list of blocks; expected a tower that has")
    return max(outermost.items(), key=lambda item: sum(parameter.numel() for parameter in item[1].parameters()))


def add_adapters(encoder: Any, rank: int) -> None:
    """
    Freeze a tower, and add trainable matrices of a low rank to the linear layers of its blocks (LoRA, arXiv 2106.09685), or to
    the 1 x 1 convolutions of a tower that has no linear layers.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: The region encoder is no vision tower.
    """
    tower = _tower(encoder, f"--backbone_lora_rank {rank}")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('--backbone_lora_rank needs PEFT: pip install "modeling-visualbert[lora]"') from error
    name, blocks = main_blocks(tower)
    linear = [key for key, module in blocks.named_modules() if isinstance(module, nn.Linear)]
    pointwise = [key for key, module in blocks.named_modules() if _is_pointwise(module)]
    targets = [f"{name}.{key}" for key in linear or pointwise]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), tower, _NAME)


def merged_weights(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a model as if those of its adapters were part of them, under the names that they have without adapters.

    The model stays as it is: merging and taking apart again would round its weights.
    """
    if "peft" not in sys.modules:  # then there are no adapters
        return dict(weights)
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    merged = dict(weights)
    for name, module in adapted.items():
        own = [key for key in weights if key.startswith(f"{name}.")]
        for key in own:
            value = merged.pop(key)
            if key.startswith(base := f"{name}.base_layer."):
                part = key.removeprefix(base)
                if part == "weight":
                    delta = module.get_delta_weight(_NAME).detach()
                    value = value + delta.to(value.device, value.dtype)
                merged[f"{name}.{part}"] = value
    return merged


def _tower(encoder: Any, flag: str) -> nn.Module:
    if not isinstance(encoder, GridRegionEncoder):
        raise ValueError(
            f"{flag}: the region encoder is a {type(encoder).__name__}; expected a vision tower (--grid_backbone)"
        )
    return encoder.backbone


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


__all__ = ["add_adapters", "main_blocks", "merged_weights", "train_last_layers"]
