"""Convolutions that oneDNN computes in one pass equal torch's, and layers that somebody changed are left to themselves."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_visualbert.hub_code import convolution_visualbert
from modeling_visualbert.hub_code.convolution_visualbert import apply_convolution, convolve

LAYERS = {
    "1 x 1": {"kernel_size": 1},
    "strides": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 4},
    "uneven": {"kernel_size": (3, 1), "padding": (1, 0), "stride": (1, 2)},
    "no bias": {"kernel_size": 1, "bias": False},
}
NOT_OURS = {
    "padding by reflection": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "padding by name": {"kernel_size": 3, "padding": "same"},
}


@pytest.fixture
def calls(monkeypatch):
    """How often oneDNN was asked directly."""
    made, takes = [], convolution_visualbert._onednn_takes

    def counted(*arguments):
        made.append(takes(*arguments))
        return made[-1]

    monkeypatch.setattr(convolution_visualbert, "_onednn_takes", counted)
    return made


def layer_and_maps(fields, images=2):
    torch.manual_seed(0)
    return nn.Conv2d(8, 12, **fields), torch.randn(images, 8, 7, 9).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("fields", {**LAYERS, **NOT_OURS}.values(), ids={**LAYERS, **NOT_OURS})
@torch.no_grad()
def test_equal_to_torch(fields, relu, calls):
    layer, maps = layer_and_maps(fields)
    expected = layer(maps)
    found = apply_convolution(layer, maps, relu)
    torch.testing.assert_close(found, F.relu(expected) if relu else expected, atol=1e-5, rtol=1e-5)
    assert calls == [fields in LAYERS.values() and torch.backends.mkldnn.is_available()]


@torch.no_grad()
def test_other_weights_than_the_layers_own():
    layer, maps = layer_and_maps(LAYERS["1 x 1"])
    weight, bias = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
    torch.testing.assert_close(convolve(layer, maps, weight, bias), F.conv2d(maps, weight, bias), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(convolve(layer, maps, weight), F.conv2d(maps, weight), atol=1e-5, rtol=1e-5)


def test_gradients_are_torchs(calls):
    layer, maps = layer_and_maps(LAYERS["dilated"])
    found = [torch.autograd.grad(apply_convolution(layer, maps, relu=True).sum(), [*layer.parameters()])]
    found.append(torch.autograd.grad(F.relu(layer(maps)).sum(), [*layer.parameters()]))
    torch.testing.assert_close(*found)
    assert calls == [False]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs(dtype, calls):
    layer, maps = layer_and_maps(LAYERS["1 x 1"])
    assert apply_convolution(layer.to(dtype), maps.to(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert apply_convolution(layer.float(), maps).dtype == torch.bfloat16
    assert not any(calls)


@torch.no_grad()
def test_no_images_at_all(calls):
    layer, maps = layer_and_maps(LAYERS["1 x 1"], images=0)
    assert apply_convolution(layer, maps).shape == (0, 12, 7, 9)
    assert calls == [False]


@torch.no_grad()
def test_layers_that_somebody_changed_are_called(calls):
    layer, maps = layer_and_maps(LAYERS["1 x 1"])
    heard = []
    handle = layer.register_forward_hook(lambda *_: heard.append(1))
    apply_convolution(layer, maps, relu=True)
    handle.remove()
    apply_convolution(layer, maps)
    assert heard == [1]
    assert len(calls) == 1
    assert apply_convolution(nn.Sequential(layer), maps, relu=True).min() == 0
