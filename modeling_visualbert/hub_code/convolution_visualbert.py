"""The convolutions of the detectors: on a CPU and without gradients, oneDNN makes one pass of convolution, bias and ReLU.

Torch computes most convolutions with oneDNN, but 1 x 1 convolutions of a few images in one thread with MKL (`use_mkldnn` in its
`Convolution.cpp`), which takes twice as long on AMD processors with AVX-512. Figures are in `benchmarks/NOTES.md`.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .linear_visualbert import is_untouched


def apply_convolution(layer: nn.Module, maps_BCHW: torch.Tensor, relu: bool = False) -> torch.Tensor:
    """`layer(maps)` and a ReLU if asked for, computed by [`convolve`] if the layer is an `nn.Conv2d` that nobody has changed."""
    if is_untouched(layer, nn.Conv2d):
        return convolve(layer, maps_BCHW, relu=relu)  # type: ignore[arg-type]
    found = layer(maps_BCHW)
    return F.relu(found, inplace=True) if relu else found


def convolve(
    conv: nn.Conv2d,
    maps_BCHW: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """
    A convolution, and a ReLU if asked for.

    Args:
        conv: Says stride, padding, dilation and groups; its hooks are not called.
        maps_BCHW: `[batch, channels, height, width]`, fastest in the layout `channels_last`.
        weight, bias: What to use instead of the layer's own.
        relu: Whether negative values become 0.
    """
    if weight is None:
        weight, bias = conv.weight, conv.bias
    if not _onednn_takes(conv, maps_BCHW, weight):
        found = conv._conv_forward(maps_BCHW, weight, bias)
        return F.relu(found, inplace=True) if relu else found
    return torch.ops.mkldnn._convolution_pointwise(
        maps_BCHW,
        weight,
        bias,
        conv.padding,
        conv.stride,
        conv.dilation,
        conv.groups,
        "relu" if relu else "none",
        [],
        "",
    )


def _onednn_takes(conv: nn.Conv2d, maps_BCHW: torch.Tensor, weight: torch.Tensor) -> bool:
    return bool(
        not torch.is_grad_enabled()
        and maps_BCHW.device.type == "cpu"
        and maps_BCHW.dtype is torch.float32
        and weight.dtype is torch.float32
        and maps_BCHW.numel() > 0
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        # Neither quantised nor distributed nor any other kind of tensor.
        and type(maps_BCHW) is torch.Tensor
        and type(weight) in (torch.Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
    )


__all__ = ["apply_convolution", "convolve"]
