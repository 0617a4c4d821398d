"""Models of which each process has a part (FSDP2): what the loop has to do for them beside Accelerate."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process has the whole model, so that all of them have to take part in each of its forward passes."""
    return accelerator.distributed_type == DistributedType.FSDP


def set_up_sharding(accelerator: Accelerator) -> None:
    """Follow the settings of FSDP, on processes without a GPU too, where Accelerate leaves it out without a word.

    To be called before models are opened: every process opens the whole weights. If only the first one did, as Accelerate has it,
    models with buffers could not be shared.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Every new view of the second state takes over what the first one has.
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    if is_sharded(accelerator):
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # read by `from_pretrained`
        accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False


def check_sharding(accelerator: Accelerator | None = None) -> None:
    """
    Args:
        accelerator: None before there is one: its making fails where the packages of another engine are missing.

    Raises:
        ValueError: Accelerate is set up for another way to share a model than FSDP2.
    """
    found = None
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        found = "DeepSpeed"
    elif parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"):
        found = "Megatron-LM"
    elif accelerator is not None and is_sharded(accelerator) and not accelerator.is_fsdp2:
        found = "the first version of FSDP"
    if found is not None:
        raise ValueError(
            f"Accelerate is set up for {found}, which the training loop does not follow; expected FSDP2, which shares weights, "
            "gradients and optimiser state as well (examples/accelerate/fsdp2.yaml), or none of them"
        )


def class_of(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of a model, without what FSDP makes of it."""
    kind: Any = type(model)
    return kind.__mro__[2] if isinstance(model, FSDPModule) else kind  # (FSDPName, FSDPModule, Name, ...)


def shell_of(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that is going to be sharded, without memory for its weights; see [`fill_shell`].

    FSDP takes a parameter that two modules share only where Accelerate expects it, in word embeddings. So the model loses the
    second name of its decoder's bias.
    """
    shell = copy.deepcopy(model).to("meta")
    for name in _names_of_biases(model).values():
        parent, _, own = name.rpartition(".")
        del model.get_submodule(parent)._parameters[own]
    return shell


def _names_of_biases(model: PreTrainedModel) -> dict[str, str]:
    """First and second name of each bias that has two."""
    tied = model._tied_weights_keys or {}
    return {first: second for first, second in tied.items() if first.endswith(".bias")}


def fill_shell(shell: PreTrainedModel, weights: dict[str, Any]) -> PreTrainedModel:
    """The shell with the weights that the accelerator has gathered: a whole model, to be saved."""
    second = {name: weights[first] for first, name in _names_of_biases(shell).items()}
    shell.load_state_dict({**weights, **second}, assign=True)
    shell.tie_weights()
    return shell


def complete_state(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that have had no gradient, such as a pooler that the head does not read, the state of a first step: sharded
    checkpoints are read into an optimiser that has a state for everything."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


__all__ = ["check_sharding", "class_of", "complete_state", "fill_shell", "is_sharded", "set_up_sharding", "shell_of"]
