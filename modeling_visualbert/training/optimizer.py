"""The optimiser of a run, and the learning rates of its steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from .args import TrainArgs

# What is in the names of parameters that may have a learning rate of their own.
PARTS = {
    "backbone_learning_rate": ("region_encoder.", "backbone."),
    "head_learning_rate": ("visual_projection.", "additional_layer.", "cls.", "fusion."),
}


def make_optimizer(model: PreTrainedModel, args: TrainArgs) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, without weight decay for biases and normalisation. Parts of the model that have a
    learning rate of their own have groups of their own.

    Raises:
        ImportError: Moments of 8 bits are asked for and torchao is missing.
        ValueError: There is no optimiser of this name.
    """
    own = {rate: names for rate, names in PARTS.items() if getattr(args, rate) is not None}
    parameters: dict[str, list[torch.nn.Parameter]] = {"learning_rate": [], **{rate: [] for rate in own}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = next((rate for rate, names in own.items() if any(part in name for part in names)), "learning_rate")
            parameters[rate].append(parameter)
    groups: list[dict[str, Any]] = []
    for rate, mine in parameters.items():
        decayed, others = [p for p in mine if p.dim() > 1], [p for p in mine if p.dim() <= 1]
        groups.append({"params": decayed, "weight_decay": args.weight_decay, "rate": rate})
        groups.append({"params": others, "weight_decay": 0.0, "rate": rate})
    options: dict[str, Any] = {"lr": args.learning_rate, "betas": (0.9, args.adam_beta2)}
    if args.optimizer != "adamw":
        return _with_8_bits(args.optimizer)(groups, **options)
    # One kernel that reads each parameter once: on a CPU eight times as fast as the default.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    return torch.optim.AdamW(groups, **options, fused=fused)


def _with_8_bits(name: str) -> type[torch.optim.Optimizer]:
    """AdamW whose moments have 8 bits and a scale for each block of 256: steps of uneven length (Dettmers et al., arXiv
    2110.02861) or floating point numbers."""
    try:
        from torchao.optim import AdamW8bit, AdamWFp8
    except ImportError as error:
        raise ImportError(f'--optimizer {name} needs torchao: pip install "modeling-visualbert[int8]"') from error
    kinds = {"adamw_8bit": AdamW8bit, "adamw_fp8": AdamWFp8}
    if name not in kinds:
        raise ValueError(f"optimizer {name!r}; expected adamw or one of {', '.join(kinds)}")
    return kinds[name]


def set_rates(optimizer: torch.optim.Optimizer, args: TrainArgs, factor: float) -> None:
    """Set the learning rates to this share of their peaks."""
    for group in optimizer.param_groups:
        rate = (getattr(args, _rate_of(group)) or 0.0) * factor
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rates, for the log."""
    return {_rate_of(group): float(group["lr"]) for group in optimizer.param_groups}


def _rate_of(group: dict[str, Any]) -> str:
    """The argument with the learning rate of a group. Optimisers of earlier versions mark the vision part only, or nothing."""
    return group.get("rate", "backbone_learning_rate" if group.get("is_vision") else "learning_rate")


def rate_factor(step: int, last_step: int, warmup_ratio: float, schedule: str) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then linear or cosine decay to zero, or constant."""
    warmup = round(warmup_ratio * last_step)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, last_step - warmup)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0 if schedule == "constant" else 1.0 - done


__all__ = ["make_optimizer", "rate_factor", "rates_of", "set_rates"]
