"""The accelerator of a run, and what the loop asks of it."""

from __future__ import annotations

import os
import time

from accelerate import Accelerator
from accelerate.utils import DynamoBackend

from .args import TrainArgs
from .run_log import make_trackers
from .sharding import check_sharding, is_sharded, set_up_sharding


def make_accelerator(args: TrainArgs) -> Accelerator:
    """One accelerator for the run.

    Raises:
        ValueError: Accelerate is set up in a way that the loop does not follow.
        ImportError: A tracker is not installed.
    """
    check_sharding()
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        log_with=make_trackers(args) or None,
        project_dir=args.output_dir,
    )
    check_launcher(accelerator)
    set_up_sharding(accelerator)
    check_accelerator(accelerator, args)
    return accelerator


def end_run(accelerator: Accelerator) -> None:
    """End the trackers and the group of processes, as the last thing that a run does.

    The threads of gloo let go of the gradients' last exchange only some milliseconds after it is over, and need the interpreter
    for that: a process that ends sooner is aborted ("terminate called without an active exception"), or waits for ever.
    """
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        time.sleep(0.2)
    accelerator.end_training()


def check_launcher(accelerator: Accelerator) -> None:
    """
    Raises:
        ValueError: `accelerate launch --cpu` was asked for several processes, which it leaves to MPI: it starts one.
    """
    given = os.environ
    if (
        accelerator.num_processes == 1
        and given.get("ACCELERATE_USE_CPU", "").lower() == "true"
        and "MASTER_ADDR" in given
        and given.get("WORLD_SIZE", "1") == "1"
    ):
        raise ValueError(
            "`accelerate launch --cpu` was to start several processes, but leaves that to mpirun and started one; expected "
            "`torchrun --nproc_per_node N SCRIPT --cpu ...`, or --num_processes 1"
        )


def check_accelerator(accelerator: Accelerator, args: TrainArgs) -> None:
    """
    Raises:
        ValueError: The accelerator would divide the gradients for an accumulation of its own, compile the model or share it in
            another way than FSDP2, or has another precision than the arguments.
    """
    check_sharding(accelerator)
    if is_sharded(accelerator) and args.optimizer != "adamw":
        raise ValueError(
            f"--optimizer {args.optimizer} where processes share the model (FSDP2); expected adamw, whose moments are shared too"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"Accelerate is set up for {accelerator.gradient_accumulation_steps} gradient accumulation steps "
            "(ACCELERATE_GRADIENT_ACCUMULATION_STEPS, or its configuration); expected 1 and --micro_batch_size, which "
            "accumulates gradients up to --batch_size"
        )
    if (backend := accelerator.state.dynamo_plugin.backend) != DynamoBackend.NO:
        raise ValueError(  # it would wrap the model, whose weights could not be read again
            f"Accelerate is set up to compile with {backend.value.lower()} (ACCELERATE_DYNAMO_BACKEND, or its configuration); "
            "expected no backend and --compile"
        )
    if accelerator.mixed_precision != args.mixed_precision:
        raise ValueError(
            f"--mixed_precision {args.mixed_precision}, but the accelerator has {accelerator.mixed_precision}; expected the same"
        )


__all__ = ["check_accelerator", "end_run", "make_accelerator"]
