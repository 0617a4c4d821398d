"""An exponential moving average of the weights beside those that are trained."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from .args import TrainArgs

_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)


def average_of(model: PreTrainedModel, accelerator: Accelerator) -> AveragedModel:
    """A copy of a model that is not prepared yet, to hold the average; it becomes part of the accelerator's checkpoints.

    Every process keeps the whole average: they all have the same weights after a step. Buffers, such as the statistics of batch
    normalisation, are those of the trained model.

    Raises:
        ValueError: No process has the whole model.
    """
    if accelerator.distributed_type not in _WHOLE:
        raise ValueError(
            f"--ema_decay with {accelerator.distributed_type.value}; expected one process, or data-parallel training"
        )
    average = AveragedModel(model)
    average.module.to(accelerator.device).eval()  # the count of steps stays on the host: reading it waits for nothing
    accelerator.register_for_checkpointing(average)
    return average


def update_average(average: AveragedModel, model: PreTrainedModel, args: TrainArgs, step: int) -> None:
    """Add the weights after `step`, the first of which is 1. The decay rises to `args.ema_decay` as in TensorFlow's
    `ExponentialMovingAverage` with `num_updates`: otherwise the first weights would outweigh all others of a short run."""
    assert args.ema_decay is not None
    average.multi_avg_fn = get_ema_multi_avg_fn(min(args.ema_decay, (1 + step) / (10 + step)))
    average.update_parameters(model)


__all__ = ["average_of", "update_average"]
