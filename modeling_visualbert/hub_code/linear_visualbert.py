"""The linear layer of the model: on a CPU, the faster of the two matrix libraries that come with torch.

Torch multiplies single-precision matrices with Intel's MKL, which uses its AVX-512 kernels on Intel's processors only; others run
at half their speed. oneDNN, which torch has too (for convolutions), uses AVX-512 everywhere. Both compute in single precision
and differ by rounding only; figures are in `benchmarks/NOTES.md`. Products with torchao's 8-bit weights are faster here too.

Layers are plain `nn.Linear`, which is what quantisation (`quantize_dynamic`, bitsandbytes), adapters and offloading look for and
replace. Modules call theirs through [`apply_linear`], which leaves a layer that was replaced, hooked or wrapped to itself.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies single-precision matrices faster here: torch has both libraries, and the processor has AVX-512
    and is not Intel's. It is a rule, not a measurement, so that a machine always gives the same bits."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")  # only Linux tells
        vendor = re.search(r"^vendor_id\s*:\s*(\S+)", told, flags=re.MULTILINE)
    except OSError:
        return False
    return vendor is not None and vendor[1] != "GenuineIntel"


_PREFERS_ONEDNN = prefers_onednn()
_WORTHWHILE = 2**22  # multiplications from which on the faster library makes up for the cost of calling it


def apply_linear(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """`layer(states)`, computed by [`linear`] if the layer is an `nn.Linear` that nobody has changed."""
    if not is_untouched(layer, nn.Linear):
        return layer(states)
    return linear(states, layer.weight, layer.bias)  # type: ignore[arg-type]


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a layer would do no more than the class `kind` does: no hooks, no `forward` of its own, no other class."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is kind and "forward" not in layer.__dict__ and not any(hooks) and not _has_any_global_hook()


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` in the faster library."""
    if _is_int8(states, weight):
        return _int8_product(states, weight, bias)
    if not _onednn_takes(states, weight):
        return F.linear(states, weight, bias)
    if torch.is_grad_enabled():
        return _OneDnnLinear.apply(states, weight, bias)
    return _product(states, weight, bias)


def _onednn_takes(states: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        _PREFERS_ONEDNN
        and states.dtype is torch.float32
        and weight.dtype is torch.float32
        and states.device.type == "cpu"
        and states.dim() > 1
        and (torch.compiler.is_compiling() or states.numel() * weight.shape[0] >= _WORTHWHILE)
        # Neither quantised nor distributed nor any other kind of tensor.
        and type(weight) in (torch.Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # whoever reads the trace, such as the ONNX exporter, knows standard operators only
    )


def _is_int8(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the weight was made by torchao's `Int8DynamicActivationInt8WeightConfig` and is used on a CPU, not compiled.
    Everything else, such as weights of its other configurations, is left to torchao's own code."""
    return (
        type(weight).__name__ == "Int8Tensor"
        and _rounds_as_we_do(weight)
        and states.device.type == "cpu"
        and states.dtype is torch.float32
        and states.dim() > 1
        and states.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _rounds_as_we_do(weight: Any) -> bool:
    """One symmetric scale per row of the weight and per position of the states, over all 8 bits, and nothing else."""
    how = getattr(weight, "act_quant_kwargs", None)
    return (
        how is not None
        and type(how.granularity).__name__ == "PerRow"
        and how.mapping_type.name == "SYMMETRIC"
        and not how.reduce_range
        and weight.scale.numel() == weight.shape[0]
        and weight.act_pre_scale is None
        and weight.act_quant_scale is None
    )


def _int8_product(states: torch.Tensor, weight: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """What torchao computes (each position quantised to 8 bits with its own scale) in a third of the operations."""
    scales = states.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-9).div_(127.5)
    quantised = states.div(scales).round_().clamp_(-128, 127).to(torch.int8)
    products = torch._int_mm(quantised.flatten(0, -2), weight.qdata.t()).to(torch.float32)
    products = products.unflatten(0, states.shape[:-1]).mul_(scales).mul_(weight.scale.flatten())
    return products if bias is None else products.add_(bias)


def _product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if torch.compiler.is_compiling():  # its code generator supports the operator below for constant weights only
        return _opaque_product(states, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


# This file may be loaded twice, from the package and from a checkpoint: each needs an operator name of its own. The module of a
# checkpoint is called after its folder, which may have any letters; those of operators are ASCII.
_OPERATOR = re.sub(r"\W", lambda found: f"_{ord(found[0]):x}", __name__, flags=re.ASCII)


@torch.library.custom_op(f"modeling_visualbert::{_OPERATOR}", mutates_args=())
def _opaque_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if states.numel() == 0:
        return F.linear(states, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


@_opaque_product.register_fake
def _(states, weight, bias):
    return states.new_empty((*states.shape[:-1], weight.shape[0]))


class _OneDnnLinear(torch.autograd.Function):
    """The product with gradients, which are such products themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(states, weight, bias):
        return _product(states, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        states, weight, bias = inputs
        ctx.save_for_backward(states, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx, gradient):
        states, weight = ctx.saved_tensors
        gradient_NO, states_NI = gradient.flatten(0, -2), states.flatten(0, -2)
        for_states = linear(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        for_weight = linear(gradient_NO.t(), states_NI.t()) if ctx.needs_input_grad[1] else None
        for_bias = gradient_NO.sum(dim=0) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return for_states, for_weight, for_bias


__all__ = ["apply_linear", "is_untouched", "linear", "prefers_onednn"]
