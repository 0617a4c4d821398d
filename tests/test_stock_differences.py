"""Where we differ from the `visual_bert` classes of `transformers`, one test each; checkpoints that open in both."""

import inspect
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    HEADS,
    MODELS,
    NUM_LABELS,
    SIZES,
    inputs_for,
    labels_for,
    meaningful,
    randomise,
    scores_of,
    tiny_config,
    tiny_model,
)
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny_detectors import tiny_detector
from transformers import BertConfig, BertForPreTraining, BertModel
from transformers.models.visual_bert import modeling_visual_bert as stock
from transformers.models.visual_bert.configuration_visual_bert import VisualBertConfig as StockConfig

import modeling_visualbert
from modeling_visualbert.hub_code.configuration_region_encoder import QueryRegionEncoderConfig
from modeling_visualbert.hub_code.configuration_visualbert import VisualBertConfig

close = {"atol": 2e-5, "rtol": 1e-5}
TABLES = ("token_type_embeddings", "position_embeddings")

# Opens each folder with the class named in its config, in a process where our package cannot be imported.
STOCK_PROCESS = """
import json, pathlib, sys
sys.modules["modeling_visualbert"] = None
import torch, transformers
from safetensors.torch import load_file, save_file

for folder in map(pathlib.Path, sys.argv[1:]):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert type(model).__module__ == "transformers.models.visual_bert.modeling_visual_bert", type(model)
    with torch.no_grad():
        output = model.eval()(**load_file(folder / "inputs.safetensors"))
    save_file({key: value.contiguous() for key, value in output.items()}, folder / "outputs.safetensors")
    (folder / "info.json").write_text(json.dumps({key: sorted(map(str, info[key])) for key in info}))
"""


def both(head, **fields):
    """Our model and the one of `transformers` with equal weights."""
    ours = tiny_model(head, **fields)
    config = StockConfig(**{**SIZES, "num_labels": NUM_LABELS.get(head, 2), "pad_token_id": 0, **fields})
    theirs = getattr(stock, MODELS[head].__name__)(config).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def stock_inputs(head):
    """Inputs that `transformers` takes: masks, segments, one image per choice, no alignment per choice."""
    return {name: value for name, value in inputs_for(head).items() if name != "image_text_alignment"}


# ----------------------------------------------------------------------------------------------------- differences


@pytest.mark.parametrize("head", HEADS)
def test_regions_are_in_segment_zero_by_default(head):
    (ours, theirs), inputs = both(head), stock_inputs(head)
    types = inputs.pop("visual_token_type_ids")
    zero, one = (
        meaningful(head, theirs(**inputs, visual_token_type_ids=torch.full_like(types, value)), inputs)
        for value in (0, 1)
    )
    torch.testing.assert_close(meaningful(head, ours(**inputs), inputs), zero, **close)
    torch.testing.assert_close(meaningful(head, theirs(**inputs), inputs), one, **close)
    assert (zero - one).abs().max() > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_late_fusion_works(head):
    (ours, theirs), inputs = both(head, bypass_transformer=True), stock_inputs(head)
    late = meaningful(head, ours(**inputs), inputs)
    early = meaningful(head, tiny_model(head)(**inputs), inputs)
    assert late.isfinite().all() and (late - early).abs().max() > 1e-3
    with pytest.raises((IndexError, UnboundLocalError)):
        theirs(**inputs)


@pytest.mark.parametrize("bert_class", [BertForPreTraining, BertModel])
@pytest.mark.parametrize("head", MODELS)
def test_regions_start_from_the_text_tables_of_bert(head, bert_class, tmp_path):
    sizes = {name: value for name, value in SIZES.items() if name != "visual_embedding_dim"}
    bert = randomise(bert_class(BertConfig(**sizes)))
    bert.save_pretrained(tmp_path)
    model = MODELS[head].from_bert(tmp_path, visual_embedding_dim=10, num_labels=NUM_LABELS.get(head, 2))
    base, source = getattr(model, "visual_bert", model), getattr(bert, "bert", bert)
    weights = base.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(weights[name], value), name
    for table in TABLES:
        copied = weights[f"embeddings.visual_{table}.weight"]
        assert torch.equal(copied, weights[f"embeddings.{table}.weight"]), table
        assert copied.data_ptr() != weights[f"embeddings.{table}.weight"].data_ptr()
    assert base.config.visual_embedding_dim == 10 and base.config.vocab_size == SIZES["vocab_size"]


@pytest.mark.parametrize("head", ["pretraining", "flickr30k"])
def test_the_language_head_of_bert_is_kept(head, tmp_path):
    sizes = {name: value for name, value in SIZES.items() if name != "visual_embedding_dim"}
    bert = randomise(BertForPreTraining(BertConfig(**sizes)))
    bert.save_pretrained(tmp_path)
    model = MODELS[head].from_bert(tmp_path)
    for name, value in bert.cls.state_dict().items():
        assert torch.equal(model.cls.state_dict()[name], value), name


def test_a_new_language_head_has_no_bias(tmp_path):
    sizes = {name: value for name, value in SIZES.items() if name != "visual_embedding_dim"}
    randomise(BertModel(BertConfig(**sizes))).save_pretrained(tmp_path)
    predictions = MODELS["pretraining"].from_bert(tmp_path).cls.predictions
    assert not predictions.bias.any() and predictions.decoder.bias is predictions.bias


def test_only_bert_is_taken_for_bert(tmp_path):
    tiny_model("vqa").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'visual_bert' checkpoint; expected 'bert'"):
        MODELS["vqa"].from_bert(tmp_path)


def test_fresh_models_have_copied_tables_too():
    ours, theirs = MODELS["vqa"](tiny_config("vqa")), stock.VisualBertModel(StockConfig(**SIZES))
    separate = MODELS["vqa"](tiny_config("vqa", special_visual_initialize=False))
    for table in TABLES:
        equal = [
            torch.equal(getattr(m, table).weight, getattr(m, f"visual_{table}").weight)
            for m in (ours.visual_bert.embeddings, separate.visual_bert.embeddings, theirs.embeddings)
        ]
        assert equal == [True, False, False], table  # the copies of `transformers` are overwritten afterwards


def test_multiple_choice_takes_one_image_per_example():
    (ours, theirs), inputs = both("vcr"), stock_inputs("vcr")
    per_example = {name: value[:, 0] if name.startswith("visual_") else value for name, value in inputs.items()}
    per_choice = {
        name: value[:, :1].expand_as(value).contiguous() if name.startswith("visual_") else value
        for name, value in inputs.items()
    }
    expected = theirs(**per_choice).logits
    torch.testing.assert_close(ours(**per_example).logits, expected, **close)
    torch.testing.assert_close(ours(**per_choice).logits, expected, **close)
    with pytest.raises(RuntimeError):
        theirs(**per_example)


def test_multiple_choice_takes_alignment():
    (ours, theirs), inputs = both("vcr"), inputs_for("vcr")
    logits = ours(**inputs).logits
    assert (logits - ours(**stock_inputs("vcr")).logits).abs().max() > 1e-3
    flat = {name: value.flatten(0, 1) for name, value in inputs.items()}
    expected = theirs.cls(theirs.visual_bert(**flat).pooler_output).view(-1, logits.shape[1])
    torch.testing.assert_close(logits, expected, **close)
    with pytest.raises(ValueError, match="Visual position embeddings length"):
        theirs(**inputs)


def test_masked_word_labels_cover_the_text():
    (ours, theirs), inputs = both("pretraining"), inputs_for("pretraining")
    labels = labels_for("pretraining", inputs)["labels"]
    with pytest.raises(ValueError, match="same sequence length as total"):
        theirs(**inputs, labels=labels)
    over_all = torch.nn.functional.pad(labels, (0, inputs["visual_embeds"].shape[1]), value=-100)
    expected = theirs(**inputs, labels=over_all).loss
    torch.testing.assert_close(ours(**inputs, labels=labels).loss, expected, **close)
    torch.testing.assert_close(ours(**inputs, labels=over_all).loss, expected, **close)


def test_sentence_image_loss_needs_no_word_labels():
    (ours, theirs), inputs = both("pretraining"), inputs_for("pretraining")
    labels = labels_for("pretraining", inputs)["sentence_image_labels"]
    expected = torch.nn.functional.cross_entropy(ours(**inputs).seq_relationship_logits, labels)
    torch.testing.assert_close(ours(**inputs, sentence_image_labels=labels).loss, expected)
    assert theirs(**inputs, sentence_image_labels=labels).loss is None


def test_vqa_logits_do_not_depend_on_labels():
    (ours, theirs), inputs = both("vqa"), inputs_for("vqa")
    labels = labels_for("vqa", inputs)
    plain, labelled = theirs(**inputs), theirs(**inputs, **labels)
    found = ours(**inputs, **labels)
    torch.testing.assert_close(found.logits, plain.logits, **close)
    torch.testing.assert_close(found.loss, labelled.loss, **close)
    torch.testing.assert_close(labelled.logits, plain.logits.log_softmax(-1))  # log-probabilities over there


@pytest.mark.parametrize("head", ["vqa", "flickr30k"])
def test_masks_may_be_missing(head):
    (ours, theirs), inputs = both(head), inputs_for(head)
    ones = {name: torch.ones_like(inputs.pop(name)) for name in ("attention_mask", "visual_attention_mask")}
    expected = meaningful(head, theirs(**inputs, **ones), {**inputs, **ones})
    torch.testing.assert_close(meaningful(head, ours(**inputs), {**inputs, **ones}), expected, **close)
    with pytest.raises(AttributeError):
        theirs(**inputs)


def test_padding_is_token_zero():
    ours, theirs = tiny_config("pretraining"), StockConfig(**SIZES)
    assert (ours.pad_token_id, theirs.pad_token_id) == (0, 1)
    inputs = inputs_for("base")
    inputs["input_ids"][:, 2] = 1  # an ordinary word piece of BERT
    trained = []
    for model in (MODELS["base"](ours), stock.VisualBertModel(theirs)):
        randomise(model)(**inputs).last_hidden_state.sin().sum().backward()
        trained.append(bool(model.get_input_embeddings().weight.grad[1].any()))
    assert trained == [True, False]


@pytest.mark.parametrize("head", HEADS)
def test_scaled_dot_product_attention_is_the_default(head):
    ours, theirs = both(head)
    assert (ours.config._attn_implementation, theirs.config._attn_implementation) == ("sdpa", "eager")
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        getattr(stock, MODELS[head].__name__)._from_config(StockConfig(**SIZES), attn_implementation="sdpa")


@pytest.mark.parametrize("head", MODELS)
def test_attention_weights_are_those_of_transformers(head):
    """Without a word about the implementation: its only one has them, ours takes eager attention for the call."""
    ours, theirs = both(head)
    inputs = inputs_for(head)
    if head == "vcr":
        del inputs["image_text_alignment"]
    found, expected = (model(**inputs, output_attentions=True).attentions for model in (ours, theirs))
    torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 0}, {"hidden_dropout_prob": float("nan")}])
def test_impossible_configurations_are_refused(fields):
    StockConfig(**fields).validate()
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        VisualBertConfig(**fields)


# --------------------------------------------------------------------------------------------------- cross loading


@pytest.fixture(scope="module")
def opened_by_stock(tmp_path_factory):
    """Folders saved by us, by head and by region encoder, after a process without our package opened all of them."""
    detector = tiny_detector("rt_detr").config.to_dict()
    encoder = QueryRegionEncoderConfig(detector_config=detector)
    folders, models = {}, {}
    for head in HEADS:
        for name, fields in (("plain", {}), ("with_region_encoder", {"region_encoder_config": encoder})):
            folder = folders[head, name] = tmp_path_factory.mktemp(f"{head}_{name}")
            model = models[head, name] = tiny_model(head, **fields)
            model.save_pretrained(folder)
            inputs = stock_inputs(head)
            features = torch.randn(*inputs["visual_embeds"].shape[:-1], model.config.visual_embedding_dim)
            save_file({**inputs, "visual_embeds": features}, folder / "inputs.safetensors")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", STOCK_PROCESS, *map(str, folders.values())]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return models, folders


@pytest.mark.parametrize("kind", ["plain", "with_region_encoder"])
@pytest.mark.parametrize("head", HEADS)
def test_what_we_save_opens_in_transformers(opened_by_stock, head, kind):
    models, folders = opened_by_stock
    folder = folders[head, kind]
    inputs = load_file(folder / "inputs.safetensors")
    theirs = SimpleNamespace(**load_file(folder / "outputs.safetensors"))
    with torch.no_grad():
        ours = models[head, kind](**inputs)
    torch.testing.assert_close(meaningful(head, ours, inputs), meaningful(head, theirs, inputs), **close)


@pytest.mark.parametrize("kind", ["plain", "with_region_encoder"])
@pytest.mark.parametrize("head", HEADS)
def test_transformers_leaves_out_the_region_encoder_only(opened_by_stock, head, kind):
    _, folders = opened_by_stock
    info = json.loads((folders[head, kind] / "info.json").read_text())
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert bool(info["unexpected_keys"]) == (kind == "with_region_encoder")
    assert all(name.startswith("visual_bert.region_encoder.") for name in info["unexpected_keys"])


@pytest.mark.parametrize("head", HEADS)
def test_what_transformers_saves_opens_in_ours(head, tmp_path):
    config = StockConfig(**{**SIZES, "num_labels": NUM_LABELS.get(head, 2)})
    theirs = randomise(getattr(stock, MODELS[head].__name__)(config))
    theirs.save_pretrained(tmp_path)
    ours, info = MODELS[head].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = stock_inputs(head)
    torch.testing.assert_close(
        meaningful(head, ours(**inputs), inputs), meaningful(head, theirs(**inputs), inputs), **close
    )
    assert scores_of(head, ours(**inputs)).requires_grad


def test_one_means_that_the_text_belongs_to_the_image():
    # Weights and numbers are the authors' (see `test_golden.py`: `is_random_next` is 1 for a match); the words differ.
    assert "0 indicates sequence B is a matching pair" in stock.VisualBertForPreTraining.forward.__doc__
    assert "1 when the text belongs to the image" in modeling_visualbert.VisualBertForPreTraining.forward.__doc__


def test_images_are_taken_by_the_heads_with_a_region_encoder():
    for name in ("VisualBertForQuestionAnswering", "VisualBertForVisualReasoning", "VisualBertForMultipleChoice"):
        assert "pixel_values" not in inspect.signature(getattr(stock, name).forward).parameters
        assert "pixel_values" in inspect.signature(getattr(modeling_visualbert, name).forward).parameters
