"""Compilation of a model in place, where the machine can compile at all."""

import logging
import os
import shutil
import sys
import time
from typing import Any

from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils._triton import has_triton
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

logger = logging.getLogger(__name__)


def compile_model(model: nn.Module, training: bool = False) -> bool:
    """
    Compile the forward pass of a model in place. The first call takes about a minute, which the log tells, later ones less
    than before.

    One graph serves all lengths and batch sizes (a batch of one gets its own), so it works on padded batches; on a CPU, where
    padding is not computed otherwise, ragged batches are faster without it (`benchmarks/NOTES.md`).

    Args:
        model: A model on the device that it will run on.
        training: Whether it will be trained.

    Returns:
        Whether it will be compiled. Where it cannot be, one line of the log says why, and the model runs as it did: there is
        no C++ compiler (on a GPU: no Triton), or it would be trained on a CPU with dropout in the attention (torch 2.13 does
        not compile that for lengths that change). A compiler that fails at the first call ends the same way.
    """
    if obstacle := _obstacle(model, training):
        logger.warning("%s: the model runs without compilation", obstacle)
        return False
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            maybe_install_capturing_hooks(module)  # its lock cannot be traced
    model.compile(dynamic=True)
    compiled: Any = model._compiled_call_impl

    def first_call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            output = compiled(*args, **kwargs)
        except BackendCompilerFailed as error:  # missing headers, say; nothing was computed yet
            model._compiled_call_impl = None
            logger.warning("%s: the model runs without compilation", " ".join(str(error).splitlines()[:2]))
            return model(*args, **kwargs)
        logger.warning("compiled: the first call took %.1f s", time.perf_counter() - started)
        model._compiled_call_impl = compiled
        return output

    model._compiled_call_impl = first_call
    return True


def _obstacle(model: nn.Module, training: bool) -> str | None:
    device, config = next(model.parameters()).device.type, getattr(model, "config", None)
    if device == "cuda":
        return None if has_triton() else "no Triton on this machine"
    compiler = os.environ.get(
        "CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    )  # torch takes no other
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}; $CXX names another) on this machine"
    if training and device == "cpu" and getattr(config, "attention_probs_dropout_prob", 0.0) > 0:
        return "torch cannot compile training on a CPU with dropout in the attention"
    return None


__all__ = ["compile_model"]
