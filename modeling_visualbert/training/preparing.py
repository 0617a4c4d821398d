"""What the processes of a run do together before training, for minutes or days: downloading, converting, finding regions."""

from __future__ import annotations

from datetime import timedelta
from functools import cache

import torch.distributed as dist
from accelerate import Accelerator

from ..features.extract import Processes

_PATIENCE = timedelta(days=30)


def preparing_processes(accelerator: Accelerator) -> Processes:
    """The processes of a run. They wait for one another in a group of their own, which has no timeout to speak of: that of
    training (ten minutes with NCCL) is there to notice processes that hang. One that dies is noticed at once by the others."""
    wait = _wait_patiently if dist.is_available() and dist.is_initialized() else accelerator.wait_for_everyone
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.device, wait)


def _wait_patiently() -> None:
    dist.barrier(group=_patient_group())


@cache
def _patient_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


__all__ = ["preparing_processes"]
