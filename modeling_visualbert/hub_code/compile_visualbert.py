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
    Compile the forward pass of a model in place. The first call takes about a minute (the log says how long), later ones less
    time than without compilation.

    One graph serves all lengths and batch sizes (a batch of one gets its own), so padding is computed. Without compilation a
    CPU leaves it out, which is faster for texts of very different lengths (`benchmarks/NOTES.md`).

    Args:
        model: A model, already on the device where it will run.
        training: Whether it will be trained.

    Returns:
        Whether the model will be compiled. If not, the log says why in one line, and the model runs uncompiled: there is no
        C++ compiler (on a GPU: no Triton), or it would be trained on a CPU with dropout in the attention (which torch 2.13
        cannot compile for varying lengths). The same happens later when the compiler fails during the first call.
    """
    if obstacle := _obstacle(model, training):
        logger.warning("%s: the model runs without compilation", obstacle)
        return False
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            maybe_install_capturing_hooks(module)  # done now because the lock that it takes cannot be traced
    model.compile(dynamic=True)
    compiled: Any = model._compiled_call_impl

    def first_call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            output = compiled(*args, **kwargs)
        except BackendCompilerFailed as error:  # for example missing headers; nothing has been computed yet
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
    # The one that torch would use.
    compiler = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if shutil.which(compiler) is None:
        return f"no C++ compiler ({compiler}; $CXX names another) on this machine"
    if training and device == "cpu" and getattr(config, "attention_probs_dropout_prob", 0.0) > 0:
        return "torch cannot compile training on a CPU with dropout in the attention"
    return None


__all__ = ["compile_model"]
