"""ONNX files give what the model gives, for other sizes than they were exported with; int8 stays close."""

import pytest
import torch
from helpers import inputs_for, meaningful, tiny_model
from transformers.utils import ModelOutput

from modeling_visualbert.cli import main
from modeling_visualbert.publish.export import export_onnx, int8_config

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # exporter and quantiser use what torch and onnx deprecate


def complete(inputs):
    """All inputs that the file wants, in the types that it wants."""
    return {name: value.float() if name == "visual_embeds" else value.long() for name, value in inputs.items()}


def run(path, inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return ModelOutput({name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)})


def sized(head, *sizes):
    inputs = complete(inputs_for(head, *sizes, seed=4))
    if head == "vcr":  # one image for all choices of an example
        for name in ("visual_embeds", "visual_attention_mask", "visual_token_type_ids"):
            inputs[name] = inputs[name][:, 0]
    return inputs


FUSED = {"image_fusion_size": 12}


@pytest.mark.parametrize(
    ("head", "fields"),
    [
        ("vqa", {}),
        ("vqa", FUSED),
        *(pytest.param(h, {}, marks=pytest.mark.slow) for h in ("pretraining", "vcr", "nlvr2", "flickr30k")),
    ],
)
def test_onnx_equals_the_model_for_all_sizes(head, fields, tmp_path):
    model = tiny_model(head, **fields)
    names = export_onnx(model, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    for sizes in ((3, 9, 6), (5, 14, 11)):
        inputs = sized(head, *sizes)
        assert set(names) == inputs.keys()
        with torch.no_grad():
            expected = meaningful(head, model(**inputs), inputs)
        found = meaningful(head, run(tmp_path / "model.onnx", inputs), inputs)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_size_that_became_that_of_the_example_is_told(tmp_path, monkeypatch):
    model = tiny_model("vqa", **FUSED)
    project = model.fusion.project_image
    monkeypatch.setattr(
        model.fusion, "project_image", lambda regions, mask: project(regions, mask) * torch.ones(len(regions), 1)
    )
    with pytest.raises(RuntimeError, match="input_ids: axis 0 of the ONNX file is 2 for good; expected any size"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_int8_onnx_from_the_command_line(tmp_path, capsys):
    model, inputs = tiny_model("vqa"), sized("vqa", 4, 10, 8)
    model.save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "int8.onnx"), "--int8"]) == 0
    assert "input_ids" in capsys.readouterr().out
    with torch.no_grad():
        expected = model(**inputs).logits
    found = run(tmp_path / "int8.onnx", inputs).logits
    assert 1e-6 < (found - expected).norm() / expected.norm() < 0.1


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    tiny_model("vqa").save_pretrained(tmp_path / "model")
    (tmp_path / "old.onnx").write_text("keep me")
    for target in ("old.onnx", "model"):
        assert main(["export", str(tmp_path / "model"), str(tmp_path / target)]) == 2
        assert f"{target} exists" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "nowhere" / "new.onnx")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert (tmp_path / "old.onnx").read_text() == "keep me"


@pytest.mark.filterwarnings("ignore")  # what torchao says about its own deprecations
def test_quantised_weights_are_refused(tmp_path, capsys):
    pytest.importorskip("torchao")
    model = tiny_model("vqa", hidden_size=64, intermediate_size=96)
    model.save_pretrained(tmp_path / "single")
    loaded = type(model).from_pretrained(tmp_path / "single", quantization_config=int8_config())
    loaded.save_pretrained(tmp_path / "int8")
    assert main(["export", str(tmp_path / "int8"), str(tmp_path / "new.onnx")]) == 2
    assert "has quantised weights; expected single precision" in capsys.readouterr().err


def test_a_model_without_a_head_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="no head to export"):
        export_onnx(tiny_model("base"), tmp_path / "model.onnx")
    assert main(["export", str(tmp_path / "nowhere" / "model"), str(tmp_path / "model.onnx")]) == 2
    assert "nowhere" in capsys.readouterr().err
