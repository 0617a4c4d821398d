"""8-bit integers in the encoder: close to single precision, saved and loaded, one flag."""

import json

import pytest
import torch
import transformers
from helpers import MODELS, inputs_for, tiny_model
from torch import nn
from torch.nn import functional as F

from modeling_visualbert.cli import main
from modeling_visualbert.hub_code.linear_visualbert import apply_linear, linear
from modeling_visualbert.publish.export import int8_config

pytest.importorskip("torchao")
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerTensor,
    quantize_,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # what torchao says about its own deprecations
SIZES = {"hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model saved in single precision, and loaded with integers and saved again."""
    folder = tmp_path_factory.mktemp("int8")
    tiny_model("vqa", **SIZES).save_pretrained(folder / "single")
    loaded = MODELS["vqa"].from_pretrained(folder / "single", quantization_config=int8_config())
    loaded.save_pretrained(folder / "int8")
    return folder / "single", folder / "int8", loaded.eval()


def int8_layers(model):
    return {
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and type(m.weight).__name__ == "Int8Tensor"
    }


def test_linear_layers_of_the_encoder_are_integers(folders):
    _, _, model = folders
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert int8_layers(model) == {name for name in layers if ".encoder." in name}
    assert len(int8_layers(model)) == 12


def test_logits_stay_close(folders):
    single, _, model = folders
    inputs = inputs_for("vqa", batch=8)
    with torch.inference_mode():
        expected = MODELS["vqa"].from_pretrained(single).eval()(**inputs).logits
        found = model(**inputs).logits
    error = (found - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.1


def test_saved_integers_come_back(folders):
    _, int8, model = folders
    again = MODELS["vqa"].from_pretrained(int8).eval()
    assert int8_layers(again) == int8_layers(model)
    inputs = inputs_for("vqa")
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    weights = (int8 / "model.safetensors").stat().st_size
    assert weights < 0.8 * (int8.parent / "single" / "model.safetensors").stat().st_size
    assert "torchao" in json.loads((int8 / "config.json").read_text())["quantization_config"]["quant_method"]


@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 64), (1, 1, 64)], ids=str)
def test_our_product_equals_that_of_torchao(folders, shape):
    layer = folders[2].visual_bert.encoder.layer[0].intermediate.dense
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = linear(states, layer.weight, layer.bias)
        expected = F.linear(states, layer.weight, layer.bias)
    assert (found - expected).norm() < 2e-3 * expected.norm()  # a value between two integers may go either way
    assert found.shape == expected.shape and not torch.equal(linear(torch.zeros(shape), layer.weight), found)


@pytest.mark.parametrize("other", ["weights only", "one scale", "7 bits"])
def test_other_integers_are_left_to_torchao(other):
    config = {
        "weights only": Int8WeightOnlyConfig(),
        "one scale": Int8DynamicActivationInt8WeightConfig(granularity=PerTensor()),
        "7 bits": Int8DynamicActivationInt8WeightConfig(reduce_range=True),
    }[other]
    layer, states = nn.Linear(64, 48), torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    quantize_(layer, config)
    with torch.no_grad():
        assert type(layer.weight).__name__ == "Int8Tensor"
        assert torch.equal(apply_linear(layer, states), F.linear(states, layer.weight, layer.bias))


@pytest.mark.parametrize("kind", [0, 1], ids=["single", "int8"])
def test_the_flag_reaches_the_model(folders, kind, monkeypatch):
    """Also for a checkpoint that was saved with integers."""
    seen = []

    def stop(name, *args, **kwargs):
        raise ValueError(f"no processor here: {name}")

    load = MODELS["vqa"].from_pretrained.__func__
    monkeypatch.setattr(
        MODELS["vqa"], "from_pretrained", classmethod(lambda c, *a, **k: (seen.append(load(c, *a, **k)), seen[-1])[1])
    )
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", stop)
    (folders[kind] / "processor_config.json").touch()  # a checkpoint without it would first be completed
    assert main(["ask", "--model", str(folders[kind]), "docs/scene.jpg", "What?", "--int8"]) == 2
    assert len(int8_layers(seen[0])) == 12
