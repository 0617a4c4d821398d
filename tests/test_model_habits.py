"""What users do with any model of `transformers`: choose attention, spread weights over devices, trace, wrap, copy, save."""

import copy
import io
import itertools
import os
import pickle

import pytest
import torch
from helpers import (
    HEADS,
    MODELS,
    NUM_CHOICES,
    inputs_for,
    labels_for,
    meaningful,
    scores_of,
    tiny_config,
    tiny_model,
)
from huggingface_hub.errors import StrictDataclassError
from tiny_detectors import CONFIGS, images, tiny_detector
from torch import nn
from transformers import AutoModel, ResNetConfig, ViTConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from modeling_visualbert.hub_code import linear_visualbert
from modeling_visualbert.hub_code.configuration_grid_encoder import GridRegionEncoderConfig
from modeling_visualbert.hub_code.configuration_region_detector import RegionDetectorConfig
from modeling_visualbert.hub_code.configuration_region_encoder import QueryRegionEncoderConfig
from modeling_visualbert.hub_code.configuration_visualbert import VisualBertConfig

close = {"atol": 2e-5, "rtol": 1e-5}
ALL = list(MODELS)
KINDS = ("regions", "pixels")


def vit_config():
    return ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
    )


def encoder_config(family):
    """A small region encoder: cells of a ViT or ResNet, the queries of a detector, or a small Faster R-CNN."""
    if family == "vit":
        return GridRegionEncoderConfig(backbone_config=vit_config(), grid_rows=2, grid_columns=3)
    if family == "resnet":
        backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
        return GridRegionEncoderConfig(backbone_config=backbone, grid_rows=2, grid_columns=3)
    if family == "faster_rcnn":
        return RegionDetectorConfig(
            depths=[1, 1, 1, 1],
            stem_channels=8,
            res2_channels=16,
            group_width=8,
            rpn_channels=8,
            min_regions=1,
            max_regions=6,
        )
    detector = CONFIGS[family]().to_dict()
    return QueryRegionEncoderConfig(detector_config=detector, max_regions=6, score_threshold=0.0, nms_threshold=1.0)


def model_of(head, kind, family="d_fine"):
    if kind == "regions":
        return tiny_model(head)
    model = tiny_model(head, region_encoder_config=encoder_config(family))
    if family in CONFIGS:
        model.base_model.region_encoder.detector.load_state_dict(tiny_detector(family).state_dict())
    return model


def inputs_of(head, kind, **sizes):
    inputs = inputs_for(head, **sizes)
    if kind == "regions":
        return inputs
    inputs = {name: value for name, value in inputs.items() if not name.startswith(("visual_", "image_text"))}
    return {**inputs, "pixel_values": images(len(inputs["input_ids"]))}


def numbers(head, model, kind="regions"):
    """Everything that a head returns, for inputs that are always the same."""
    inputs = inputs_of(head, kind)
    with torch.no_grad():
        output = model(**inputs)
    return (
        meaningful(head, output, inputs) if kind == "regions" else torch.cat([v.flatten() for v in output.to_tuple()])
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model of each head, with a region encoder and without."""
    folder = tmp_path_factory.mktemp("saved")
    for head, kind in itertools.product(ALL, KINDS):
        model_of(head, kind).save_pretrained(folder / kind / head)
    return folder


# ------------------------------------------------------------------------------------------------------------ attention


def attention_of(model):
    """Of the model, of its region encoder and of the detector in it."""
    base = model.base_model
    parts = [model, base]
    if hasattr(base, "region_encoder"):
        parts += [base.region_encoder, base.region_encoder.detector]
    return [part.config._attn_implementation for part in parts]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ALL)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_attention_is_chosen_when_loading_and_later(folders, head, kind, attention):
    """A region encoder keeps its own, also when it does not have what the text model has."""
    plain = MODELS[head].from_pretrained(folders / kind / head)
    loaded = MODELS[head].from_pretrained(folders / kind / head, attn_implementation=attention)
    expected, of_encoder = numbers(head, plain, kind), attention_of(plain)[2:]
    plain.set_attn_implementation(attention)
    for model in (loaded, plain):
        assert attention_of(model) == [attention, attention, *of_encoder]
        torch.testing.assert_close(numbers(head, model, kind), expected, **close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["flash_attention_2", "foo"])
def test_attention_that_cannot_run_here_is_refused(folders, kind, attention):
    if attention != "foo" and torch.cuda.is_available():
        pytest.skip("it may run here")
    model = MODELS["vqa"].from_pretrained(folders / kind / "vqa")
    before = attention_of(model)
    for refused in (
        lambda: model.set_attn_implementation(attention),
        lambda: MODELS["vqa"].from_pretrained(folders / kind / "vqa", attn_implementation=attention),
    ):
        with pytest.raises((ImportError, ValueError), match="FlashAttention2|not supported"):
            refused()
    assert attention_of(model) == before


def test_attention_of_the_region_encoder_is_asked_for_by_name(folders):
    asked = {"region_encoder_config": "eager"}
    model = MODELS["vqa"].from_pretrained(folders / "pixels" / "vqa", attn_implementation=asked)
    assert attention_of(model) == ["sdpa", "sdpa", "eager", "eager"]
    model.set_attn_implementation({"": "eager", "region_encoder_config": "sdpa"})
    assert attention_of(model) == ["eager", "eager", "sdpa", "sdpa"]
    model.set_attn_implementation({"": "sdpa"})
    assert attention_of(model) == ["sdpa", "sdpa", "sdpa", "sdpa"]
    with pytest.raises(ValueError, match="flex_attention"):
        model.set_attn_implementation({"region_encoder_config": "flex_attention"})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"text_config": "eager"}, "has the key 'text_config'"),
        ({"region_encoder_config": "eager"}, "no region encoder"),
    ],
)
def test_attention_of_a_part_that_is_not_there_is_refused(folders, asked, message):
    folder = folders / "regions" / "vqa"
    with pytest.raises(ValueError, match=message):
        MODELS["vqa"].from_pretrained(folder, attn_implementation=asked)
    with pytest.raises(ValueError, match=message):
        MODELS["vqa"].from_pretrained(folder).set_attn_implementation(asked)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("head", ALL)
def test_attention_weights_come_from_every_implementation(head, attention, late):
    """The VisualBERT of `transformers` has eager attention only, so that they can always be had."""
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True)
        model.set_attn_implementation(attention)
        found = model(**inputs, output_attentions=True)
        model.config.output_attentions = True
        by_config = model(**inputs)
    assert len(expected.attentions) == 2 + late
    for output in (found, by_config):
        torch.testing.assert_close(output.attentions, expected.attentions, **close)
        torch.testing.assert_close(meaningful(head, output, inputs), meaningful(head, expected, inputs), **close)
    model.config.validate()


# -------------------------------------------------------------------------------------------------- weights on devices


def placements(head, kind):
    """Values of `device_map`, with what is left out of memory."""
    prefix = "" if head == "base" else "visual_bert."
    rest = {"vqa": ["cls"], "vcr": ["cls"], "nlvr2": ["cls"], "pretraining": ["cls"], "flickr30k": ["cls", "attention"]}
    parts = [prefix + name for name in ("embeddings", "encoder", "pooler")] + rest.get(head, [])
    parts += [prefix + "region_encoder"] * (kind == "pixels")
    on_cpu = dict.fromkeys(parts, "cpu")
    yield {"device_map": "cpu"}, False
    yield {"device_map": "auto"}, False
    yield {"device_map": {"": "cpu"}}, False
    yield {"device_map": {"": "disk"}}, True
    yield {"device_map": "auto", "max_memory": {"cpu": "60KB"}}, True
    for name in parts:
        # What is tied has to stay together, as everywhere in `transformers`.
        if not (head in ("pretraining", "flickr30k") and name in (prefix + "embeddings", "cls")):
            yield {"device_map": {**on_cpu, name: "disk"}}, True


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize(
    ("head", "kind"),
    [
        *((head, "regions") for head in ALL),
        *(pytest.param(head, "pixels", marks=[] if head == "vqa" else pytest.mark.slow) for head in ALL),
    ],
)
def test_weights_may_lie_on_disk(folders, head, kind, tmp_path):
    pytest.importorskip("accelerate")
    plain = MODELS[head].from_pretrained(folders / kind / head)
    expected = numbers(head, plain, kind)
    for place, (arguments, on_disk) in enumerate(placements(head, kind)):
        model = MODELS[head].from_pretrained(
            folders / kind / head, offload_folder=tmp_path / f"offload{place}", **arguments
        )
        assert any(weight.device.type == "meta" for weight in model.parameters()) == on_disk, arguments
        torch.testing.assert_close(
            numbers(head, model, kind), expected, msg=lambda m, a=arguments: f"{a}: {m}", **close
        )
    model.save_pretrained(tmp_path / "again")
    again = MODELS[head].from_pretrained(tmp_path / "again")
    torch.testing.assert_close(dict(again.state_dict()), dict(plain.state_dict()), atol=0, rtol=0)


# -------------------------------------------------------------------------------------------------- tracing and wrapping


@pytest.fixture
def onednn(monkeypatch):
    """The library that other processors than Intel's take, whatever this one is."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(linear_visualbert, "_PREFERS_ONEDNN", True)
    monkeypatch.setattr(linear_visualbert, "_WORTHWHILE", 1)


of_tracing = pytest.mark.filterwarnings("ignore::Warning")  # torch's, which call all of this deprecated
OTHER_SHAPES = ({"batch": 3, "text": 9, "regions": 6}, {"batch": 5, "text": 12, "regions": 4, "seed": 5})


@of_tracing
@pytest.mark.parametrize("head", ALL)
def test_a_traced_model_takes_other_lengths(head, onednn):
    model = tiny_model(head)
    model.config.return_dict = False
    traced = torch.jit.trace(model, example_kwarg_inputs=inputs_for(head), check_trace=False)
    for shape in OTHER_SHAPES:
        inputs = inputs_for(head, **shape)
        torch.testing.assert_close(traced(**inputs), model(**inputs), **close)


@of_tracing
def test_a_traced_loss_has_a_gradient():
    model, inputs = tiny_model("vqa").train(), inputs_for("vqa")
    model.config.return_dict = False
    labels = labels_for("vqa", inputs)
    traced = torch.jit.trace(model, example_kwarg_inputs={**inputs, **labels}, check_trace=False)
    model(**inputs, **labels)[0].backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    traced(**inputs, **labels)[0].backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, **close)


@of_tracing
@pytest.mark.parametrize("head", ALL)
def test_the_older_onnx_exporter_writes_a_model_for_other_lengths(head, onednn, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, inputs = tiny_model(head), inputs_for(head)
    model.config.return_dict = False
    axes = {name: dict(enumerate(f"{name}_{axis}" for axis in range(value.dim() - (name == "visual_embeds"))))
            for name, value in inputs.items()}  # fmt: skip
    torch.onnx.export(
        model, (), tmp_path / "model.onnx", kwargs=inputs, dynamo=False, input_names=list(inputs), dynamic_axes=axes
    )
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    read = [value.name for value in session.get_inputs()]
    for shape in OTHER_SHAPES:
        inputs = inputs_for(head, **shape)
        found = session.run(None, {name: inputs[name].numpy() for name in read})
        torch.testing.assert_close(tuple(map(torch.from_numpy, found)), model(**inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ALL)
def test_copies_are_equal(head, kind):
    model, file = model_of(head, kind), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = numbers(head, model, kind)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False))  # noqa: S301
    for other in copies:
        assert torch.equal(numbers(head, other, kind), expected)
        assert other.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ALL)
def test_weights_in_several_files_come_back(head, kind, tmp_path):
    model = model_of(head, kind)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again = MODELS[head].from_pretrained(tmp_path)
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), atol=0, rtol=0)
    assert again.num_parameters() == model.num_parameters() > again.num_parameters(exclude_embeddings=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_model_takes_single_precision_inputs(head, kind, dtype):
    model, inputs = model_of(head, kind).to(dtype), inputs_of(head, kind)
    output = model(**inputs)
    scores = output.last_hidden_state if head == "base" else scores_of(head, output)
    assert model.dtype == scores.dtype == dtype and scores.isfinite().all()


def test_a_new_model_without_a_checkpoint():
    """`from_pretrained(None, state_dict={})` is how tools make one; weights that are given are checked."""
    model = MODELS["vqa"].from_pretrained(None, config=tiny_config("vqa"), state_dict={})
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    some = dict(itertools.islice(model.state_dict().items(), 3))
    with pytest.raises(ValueError, match="3 of the 45 tensors"):
        MODELS["vqa"].from_pretrained(None, config=tiny_config("vqa"), state_dict=some)


# --------------------------------------------------------------------------------------------------------- configuration


def configurations():
    yield tiny_config("vqa")
    for family in ("d_fine", "vit", "resnet", "faster_rcnn"):
        yield encoder_config(family)
        yield tiny_config("vqa", region_encoder_config=encoder_config(family))


@pytest.mark.parametrize("number", range(9))
def test_a_configuration_is_the_same_after_it_is_saved_and_loaded(number, tmp_path):
    config = list(configurations())[number]
    before, attributes = copy.deepcopy(config.to_dict()), set(vars(config))
    config.save_pretrained(tmp_path)
    assert config.to_dict() == before and set(vars(config)) == attributes
    assert "auto_map" in (tmp_path / "config.json").read_text()
    again = type(config).from_pretrained(tmp_path)
    assert again.to_dict() == before


@pytest.mark.parametrize("family", [None, "d_fine", "vit", "faster_rcnn"])
def test_saving_a_model_tells_its_configuration_what_it_is_and_no_more(family, tmp_path):
    model = tiny_model("vqa", region_encoder_config=None if family is None else encoder_config(family))
    before = copy.deepcopy(model.config.to_dict())
    model.save_pretrained(tmp_path)
    # As all models of `transformers`.
    expected = {**before, "architectures": [type(model).__name__], "dtype": "float32"}
    assert model.config.to_dict() == expected
    again = MODELS["vqa"].from_pretrained(tmp_path)
    loaded = {**again.config.to_dict(), "_name_or_path": ""}
    if family is not None:
        loaded["region_encoder_config"]["dtype"] = None  # told to the parts of a model when it is loaded
    assert loaded == expected
    before = copy.deepcopy(again.config.to_dict())
    again.save_pretrained(tmp_path)
    assert again.config.to_dict() == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *((name, 0, f"{name} 0; expected at least 1") for name in ("vocab_size", "hidden_size", "num_attention_heads")),
        *((name, -1, f"{name} -1; expected at least 1") for name in ("num_hidden_layers", "visual_embedding_dim")),
        ("hidden_dropout_prob", float("nan"), "hidden_dropout_prob nan; expected at least 0 and less than 1"),
        ("attention_probs_dropout_prob", 1.0, "attention_probs_dropout_prob 1.0; expected at least 0 and less than 1"),
        ("initializer_range", -0.1, "initializer_range -0.1; expected a number of at least 0"),
        ("layer_norm_eps", float("inf"), "layer_norm_eps inf; expected a number of at least 0"),
        ("hidden_size", "768", "expected int, got str"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(field, value, message, tmp_path):
    """When it is made, by `validate()`, and when it is saved; a wrong type at once."""
    with pytest.raises(StrictDataclassError, match=message):
        tiny_config(**{field: value})
    config = tiny_config()
    if isinstance(value, str):
        with pytest.raises(StrictDataclassError, match=message):
            setattr(config, field, value)
        return
    setattr(config, field, value)  # fields are changed one after the other, and need not fit in between
    for checked in (config.validate, lambda: config.save_pretrained(tmp_path)):
        with pytest.raises(StrictDataclassError, match=message):
            checked()
    setattr(config, field, getattr(tiny_config(), field))
    config.validate()


# -------------------------------------------------------------------------------------------------------- image features

ENCODERS = {  # family -> layers whose states and attentions there are; a convolutional network has no attentions
    "d_fine": (3, 2),
    "rt_detr": (3, 2),
    "detr": (3, 2),
    "conditional_detr": (3, 2),
    "yolos": (3, 2),
    "vit": (3, 2),
    "resnet": (3, None),
    "faster_rcnn": (1, None),
}


@pytest.mark.parametrize("family", ENCODERS)
def test_image_features_have_what_transformers_expects_beside_ours(family):
    model, pixels = model_of("vqa", "pixels", family), images()
    found = model.get_image_features(pixels)
    assert isinstance(found, BaseModelOutputWithPooling)
    batch, regions, dim = found.visual_embeds.shape
    assert batch == 3 and dim == model.config.visual_embedding_dim
    assert found.last_hidden_state is found.visual_embeds
    assert found.pooler_output.shape == (batch, regions, model.config.hidden_size)
    projected = model.visual_bert.embeddings.visual_projection(found.visual_embeds)
    torch.testing.assert_close(found.pooler_output, projected, **close)
    assert found.hidden_states is None and found.attentions is None
    names = ["last_hidden_state", "pooler_output", "visual_embeds", "visual_attention_mask", "boxes_unit", "scores"]
    assert list(found)[:6] == names
    as_tuple = model.get_image_features(pixels, return_dict=False)
    assert type(as_tuple) is tuple
    torch.testing.assert_close(as_tuple, found.to_tuple(), atol=0, rtol=0)
    model.config.return_dict = False
    assert type(model.get_image_features(pixels)) is tuple
    inputs = inputs_of("vqa", "pixels")
    assert torch.equal(model(**inputs, return_dict=True).logits, model(**inputs)[0])


@pytest.mark.parametrize("family", ENCODERS)
def test_states_and_attentions_of_the_region_encoder(family):
    states, attentions = ENCODERS[family]
    model, pixels = model_of("vqa", "pixels", family), images()
    if attentions is not None:
        model.set_attn_implementation({"region_encoder_config": "eager"})
    expected = model.get_image_features(pixels)
    asked = {"output_hidden_states": True, "output_attentions": attentions is not None}
    found = [model.get_image_features(pixels, **asked), model.base_model.region_encoder(pixels, **asked)]
    for name, value in asked.items():
        setattr(model.config, name, value)
    found.append(model.get_image_features(pixels))
    for output in found:
        assert len(output.hidden_states) == states
        assert attentions is None or len(output.attentions) == attentions
        torch.testing.assert_close(output.visual_embeds, expected.visual_embeds, **close)
    assert model.get_image_features(pixels, output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("family", ["d_fine", "vit", "faster_rcnn"])
def test_a_region_encoder_alone_returns_a_tuple_when_asked(family, tmp_path):
    encoder = model_of("base", "pixels", family).region_encoder
    expected = encoder(images()).to_tuple()
    torch.testing.assert_close(encoder(images(), return_dict=False), expected, atol=0, rtol=0)
    encoder.config.return_dict = False
    torch.testing.assert_close(encoder(images()), expected, atol=0, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["d_fine", "detr", "yolos", "vit"])
def test_attention_of_a_region_encoder_reaches_its_parts(family, attention, tmp_path):
    encoder = model_of("base", "pixels", family).region_encoder
    encoder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=attention)
    encoder.set_attn_implementation(attention)
    for model in (encoder, loaded):
        inner = model.backbone if family == "vit" else model.detector
        assert model.config._attn_implementation == inner.config._attn_implementation == attention
        torch.testing.assert_close(model(images()).visual_embeds, encoder(images()).visual_embeds, **close)


# ------------------------------------------------------------------------------------- shapes that `transformers` has


def test_outputs_have_the_shapes_of_those_of_transformers():
    """As its own tests of VisualBERT call the heads: labels and phrases over text and regions, 16 segments, three labels."""
    batch, text, regions, total = 5, 7, 5, 12
    config = tiny_config(num_labels=3, type_vocab_size=16, is_decoder=False)
    positions = torch.cat((torch.randint(0, regions, (batch, text)), torch.full((batch, regions), -1)), dim=1)
    inputs = {
        "input_ids": torch.randint(0, 60, (batch, text)),
        "token_type_ids": torch.randint(0, 16, (batch, text)),
        "attention_mask": torch.ones(batch, text, dtype=torch.long),
        "visual_embeds": torch.rand(batch, regions, config.visual_embedding_dim),
        "visual_token_type_ids": torch.randint(0, 16, (batch, regions)),
        "visual_attention_mask": torch.ones(batch, regions, dtype=torch.long),
    }
    per_choice = {name: value[:, None].expand(-1, NUM_CHOICES, *value.shape[1:]) for name, value in inputs.items()}
    calls = {
        "base": (inputs, {"last_hidden_state": (batch, total, 32)}),
        "pretraining": (
            {
                **inputs,
                "labels": torch.randint(0, 60, (batch, total)),
                "sentence_image_labels": torch.ones(batch).long(),
            },
            {"prediction_logits": (batch, total, 60), "seq_relationship_logits": (batch, 2)},
        ),
        "vqa": ({**inputs, "labels": torch.rand(batch, 3)}, {"logits": (batch, 3)}),
        "vcr": ({**per_choice, "labels": torch.zeros(batch).long()}, {"logits": (batch, NUM_CHOICES)}),
        "nlvr2": ({**inputs, "labels": torch.tensor([0, 1, 2, 0, 1])}, {"logits": (batch, 3)}),
        "flickr30k": (
            {**inputs, "region_to_phrase_position": positions, "labels": torch.rand(batch, total, regions)},
            {"logits": (batch, total, regions)},
        ),
    }
    for head, (given, shapes) in calls.items():
        output = MODELS[head](config).eval()(**given, output_attentions=True, output_hidden_states=True)
        assert {name: tuple(output[name].shape) for name in shapes} == shapes, head
        assert head == "base" or output.loss.isfinite()
        assert len(output.hidden_states) == 3 and len(output.attentions) == 2
        assert output.hidden_states[0].shape[-2:] == (total, 32) and output.attentions[0].shape[-3:] == (
            4,
            total,
            total,
        )
        assert list(output)[-2:] == ["hidden_states", "attentions"]


def test_the_configuration_has_the_fields_of_that_of_transformers():
    from transformers.models.visual_bert.configuration_visual_bert import VisualBertConfig as StockConfig

    assert set(StockConfig().to_dict()) <= set(VisualBertConfig().to_dict())


# -------------------------------------------------------------------------------------------------- several processes


def _train_a_step(rank, port, results):
    """One of two processes: each trains on half of a batch, twice: the second fails if gradients of the first are awaited."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for head, kind in itertools.product(HEADS, KINDS):
        model, inputs = model_of(head, kind).train(), inputs_of(head, kind, batch=4)
        labels = labels_for(head, inputs_for(head, batch=4))
        mine = {name: value[2 * rank : 2 * rank + 2] for name, value in {**inputs, **labels}.items()}
        model.gradient_checkpointing_enable()
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            wrapped.zero_grad()
            wrapped(**mine).loss.backward()
        if rank == 0:
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            torch.save(gradients, results / f"{kind}-{head}.pt")
    # Not `destroy_process_group`: the group ends with the last model, and its end waits, with the interpreter locked, for a
    # thread that may be waiting for that lock.
    torch.distributed.barrier()
    os._exit(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # `gradient_checkpointing_enable` has a new name
def test_two_processes_with_gradient_checkpointing_train_as_one(tmp_path):
    """As the `Trainer` of `transformers` does it: it does not let `DistributedDataParallel` look for unused parameters then."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_train_a_step, args=(port, tmp_path), nprocs=2)
    for head, kind in itertools.product(HEADS, KINDS):
        model, inputs = model_of(head, kind).train(), inputs_of(head, kind, batch=4)
        labels = labels_for(head, inputs_for(head, batch=4))
        for rank in range(2):
            mine = {name: value[2 * rank : 2 * rank + 2] for name, value in {**inputs, **labels}.items()}
            (model(**mine).loss / 2).backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found = torch.load(tmp_path / f"{kind}-{head}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, **close)
