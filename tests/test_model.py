"""Promises of the model: padding and batching change nothing, every branch runs, what is saved is what is loaded."""

import inspect
import re

import pytest
import torch
from helpers import (
    FIXTURES,
    HEADS,
    MODELS,
    NUM_CHOICES,
    NUM_LABELS,
    REGION_AXIS,
    SIZES,
    alone,
    inputs_for,
    labels_for,
    loss_of,
    meaningful,
    pad,
    randomise,
    scores_of,
    tiny_config,
    tiny_model,
)
from tiny_detectors import images, tiny_detector
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.models.visual_bert import modeling_visual_bert as stock
from transformers.models.visual_bert.configuration_visual_bert import VisualBertConfig as StockConfig

from modeling_visualbert.hub_code.configuration_region_encoder import QueryRegionEncoderConfig
from modeling_visualbert.hub_code.modeling_visualbert import VisualBertModel

close = {"atol": 2e-5, "rtol": 1e-5}
ALL = list(MODELS)
ONE_IMAGE_ARGUMENTS = ("visual_embeds", "visual_attention_mask", "visual_token_type_ids")
POOLER = {"visual_bert.pooler.dense.weight", "visual_bert.pooler.dense.bias"}
UNUSED = {  # in the published checkpoints, but not read by the head
    "base": set(),
    "pretraining": set(),
    "vqa": POOLER,
    "vcr": set(),
    "nlvr2": set(),
    "flickr30k": POOLER
    | {
        "attention.value.weight",
        "attention.value.bias",
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    },
}
fusion = pytest.mark.parametrize("late", [False, True], ids=["early", "late"])


def model_with_eyes(head, freeze=True):
    """A model that owns a tiny detector and keeps up to six of its twelve queries."""
    detector = tiny_detector("d_fine")
    encoder = QueryRegionEncoderConfig(
        detector_config=detector.config.to_dict(), max_regions=6, score_threshold=0.8, nms_threshold=0.6
    )
    model = tiny_model(head, region_encoder_config=encoder, freeze_region_encoder=freeze)
    region_encoder(model).detector.load_state_dict(detector.state_dict())
    return model


def base_of(model):
    return getattr(model, "visual_bert", model)


def region_encoder(model):
    return base_of(model).region_encoder


def only_text(inputs):
    return {name: value for name, value in inputs.items() if not name.startswith(("visual_", "image_text"))}


def gradients_of(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# ------------------------------------------------------------------------------------------- padding and batching


@fusion
@pytest.mark.parametrize("head", ALL)
@pytest.mark.parametrize("extra", [{"text": 5}, {"regions": 4}, {"text": 3, "regions": 2}], ids=str)
def test_more_padding_changes_nothing(head, extra, late):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head)
    padded = pad(inputs, **extra)
    expected = meaningful(head, model(**inputs), inputs)
    torch.testing.assert_close(meaningful(head, model(**padded), padded), expected, **close)


@pytest.mark.parametrize("head", HEADS)
def test_more_padding_does_not_change_the_loss(head):
    model, inputs = tiny_model(head), inputs_for(head)
    labels = labels_for(head, inputs)
    expected = model(**inputs, **labels).loss
    if head == "pretraining":
        labels["labels"] = F.pad(labels["labels"], (0, 5), value=-100)
    if head == "flickr30k":
        labels["labels"] = F.pad(labels["labels"], (0, 4))
    torch.testing.assert_close(model(**pad(inputs, text=5, regions=4), **labels).loss, expected, **close)


@fusion
@pytest.mark.parametrize("head", ALL)
def test_an_example_alone_equals_the_example_in_a_batch(head, late):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head, batch=4)
    together = meaningful(head, model(**inputs), inputs)
    singles = [alone(inputs, row) for row in range(4)]
    apart = torch.cat([meaningful(head, model(**single), single) for single in singles])
    torch.testing.assert_close(apart, together, **close)


@fusion
@pytest.mark.parametrize("head", ALL)
def test_missing_masks_are_all_ones(head, late):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head)
    masks = {name: torch.ones_like(inputs[name]) for name in ("attention_mask", "visual_attention_mask")}
    full = {**inputs, **masks}
    expected = meaningful(head, model(**full), full)
    for left_out in (["attention_mask"], ["visual_attention_mask"], list(masks)):
        given = {name: value for name, value in full.items() if name not in left_out}
        torch.testing.assert_close(meaningful(head, model(**given), full), expected, **close)


@pytest.mark.parametrize("head", ALL)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_masks_of_any_type(head, dtype):
    model, inputs = tiny_model(head), inputs_for(head)
    masks = {name: inputs[name].to(dtype) for name in ("attention_mask", "visual_attention_mask")}
    expected = meaningful(head, model(**inputs), inputs)
    assert torch.equal(meaningful(head, model(**{**inputs, **masks}), inputs), expected)


@fusion
@pytest.mark.parametrize("head", ["base", "pretraining", "vqa", "vcr", "nlvr2"])
def test_invisible_regions_equal_no_regions(head, late):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head)
    hidden = {**inputs, "visual_attention_mask": torch.zeros_like(inputs["visual_attention_mask"])}
    empty = {name: inputs[name].narrow(axis, 0, 0) for name, axis in REGION_AXIS.items() if name in inputs}
    empty = {**inputs, **empty}
    expected = meaningful(head, model(**hidden), hidden)
    assert expected.isfinite().all()
    torch.testing.assert_close(meaningful(head, model(**empty), empty), expected, **close)
    if not late:  # without an image late fusion has no additional layer
        torch.testing.assert_close(meaningful(head, model(**only_text(inputs)), empty), expected, **close)


@fusion
@pytest.mark.parametrize("head", HEADS)
def test_invisible_regions_train_without_nan(head, late):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head)
    inputs["visual_attention_mask"] = torch.zeros_like(inputs["visual_attention_mask"])
    output = model(**inputs, **labels_for(head, inputs))
    output.loss.backward()
    assert scores_of(head, output).isfinite().all() and output.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients_of(model).values())


# ------------------------------------------------------------------------------------------------ names, gradients


@pytest.mark.parametrize("head", ALL)
def test_parameter_names_are_a_contract(head):
    name = MODELS[head].__name__
    stored = (FIXTURES / "keys" / f"{name}.txt").read_text().split()
    assert sorted(tiny_model(head).state_dict()) == sorted(stored)
    theirs = getattr(stock, name)(StockConfig(**SIZES, num_labels=2))
    assert sorted(theirs.state_dict()) == sorted(stored)


@pytest.mark.parametrize("head", ALL)
def test_late_fusion_adds_the_names_that_transformers_has(head):
    theirs = getattr(stock, MODELS[head].__name__)(StockConfig(**SIZES, bypass_transformer=True))
    ours = tiny_model(head, bypass_transformer=True, num_labels=2)
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


@fusion
@pytest.mark.parametrize("head", ALL)
def test_every_parameter_gets_a_gradient(head, late):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head)
    loss_of(head, model, inputs).backward()
    assert model.state_dict().keys() >= UNUSED[head]
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == UNUSED[head]
    # Zero in exact arithmetic: softmax does not see what is added to all keys, or to all choices.
    zero = {name for name in gradients_of(model) if name.endswith("key.bias") or (head == "vcr" and name == "cls.bias")}
    flat = {name for name, gradient in gradients_of(model).items() if not gradient.any()}
    assert flat <= zero


def test_alignment_trains_text_positions():
    model, inputs = tiny_model("base"), inputs_for("vcr")
    inputs = {name: value[:, 0] for name, value in inputs.items()}
    without = model(**{**inputs, "image_text_alignment": None}).last_hidden_state
    assert (model(**inputs).last_hidden_state - without).abs().max() > 0.01
    nothing = torch.full_like(inputs["image_text_alignment"], -1)
    assert torch.equal(model(**{**inputs, "image_text_alignment": nothing}).last_hidden_state, without)


# -------------------------------------------------------------------------------------------------- heads, outputs


@pytest.mark.parametrize("head", HEADS)
def test_logits_do_not_depend_on_labels(head):
    model, inputs = tiny_model(head), inputs_for(head)
    plain, labelled = model(**inputs), model(**inputs, **labels_for(head, inputs))
    assert torch.equal(scores_of(head, plain), scores_of(head, labelled))
    assert plain.loss is None and labelled.loss.dim() == 0 and labelled.loss > 0


@pytest.mark.parametrize("head", [head for head in HEADS if head != "pretraining"])
def test_loss_is_a_sum_over_the_global_batch(head):
    model, inputs = tiny_model(head), inputs_for(head, batch=3)
    labels = labels_for(head, inputs)
    mean = model(**inputs, **labels).loss
    for count in (12, torch.tensor(12)):
        torch.testing.assert_close(model(**inputs, **labels, num_items_in_batch=count).loss * 12, mean * 3, **close)


@pytest.mark.parametrize(
    "given", [("labels",), ("sentence_image_labels",), ("labels", "sentence_image_labels")], ids=str
)
def test_pretraining_losses_of_micro_batches_sum_to_that_of_the_batch(given):
    model, inputs = tiny_model("pretraining"), inputs_for("pretraining", batch=4)
    labels = {name: value for name, value in labels_for("pretraining", inputs).items() if name in given}
    labels["labels" if "labels" in given else "sentence_image_labels"][0] = -100  # counts differ between the parts
    counts = {
        "num_items_in_batch": int((labels.get("labels", torch.tensor(-100)) != -100).sum()),
        "num_pairs_in_batch": (labels.get("sentence_image_labels", torch.tensor(-100)) != -100).sum(),
    }
    whole = model(**inputs, **labels).loss
    torch.testing.assert_close(model(**inputs, **labels, **counts).loss, whole, **close)
    parts = [
        model(**{name: value[rows] for name, value in {**inputs, **labels}.items()}, **counts).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(parts), whole, **close)
    plain = [model(**{k: v[rows] for k, v in {**inputs, **labels}.items()}).loss for rows in (slice(0, 1), slice(1, 4))]
    assert abs(sum(plain) / 2 - whole) > 1e-3, "the parts weigh the same; the counts prove nothing"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_loss_under_the_trainer_of_transformers(head, accumulation, tmp_path):
    """It passes `num_items_in_batch` = the number of elements of `labels` to models that seem to want it."""
    pytest.importorskip("accelerate")
    model, inputs = tiny_model(head), inputs_for(head, batch=4)
    inputs.update(labels_for(head, inputs))
    size = 4 // accumulation
    parts = [{name: value[i : i + size] for name, value in inputs.items()} for i in range(0, 4, size)]
    expected = sum(model(**part).loss.item() for part in parts) / accumulation
    rows = [{name: value[i] for name, value in inputs.items()} for i in range(4)]
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=0.0,
        train_sampling_strategy="sequential",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    assert Trainer(model, arguments, train_dataset=rows).train().training_loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("head", ["pretraining", "vcr", "nlvr2"])
def test_ignored_labels(head):
    model, inputs = tiny_model(head), inputs_for(head)
    labels = {name: torch.full_like(value, -100) for name, value in labels_for(head, inputs).items()}
    assert model(**inputs, **labels).loss == 0
    some = labels_for(head, inputs)
    some["labels"][0] = -100
    rest = {name: value[1:] for name, value in inputs.items()}
    expected = model(**rest, labels=some["labels"][1:]).loss
    torch.testing.assert_close(model(**inputs, labels=some["labels"]).loss, expected, **close)


def test_sentence_image_loss_alone_and_together():
    model, inputs = tiny_model("pretraining"), inputs_for("pretraining")
    labels = labels_for("pretraining", inputs)
    alone_losses = [model(**inputs, **{name: value}).loss for name, value in labels.items()]
    torch.testing.assert_close(sum(alone_losses), model(**inputs, **labels).loss, **close)


@pytest.mark.parametrize("head", ALL)
def test_arguments_are_named(head):
    """Others read the signature: the `Trainer` of transformers drops columns that it does not find there."""
    inputs = inputs_for(head)
    expected = {*inputs, *(labels_for(head, inputs) if head != "base" else ()), "image_text_alignment"}
    expected |= {"position_ids", "inputs_embeds", "pixel_values", "pixel_mask"}
    assert expected <= inspect.signature(MODELS[head].forward).parameters.keys()


@pytest.mark.parametrize("head", ALL)
def test_tuple_output(head):
    model, inputs = tiny_model(head), inputs_for(head)
    labels = labels_for(head, inputs) if head != "base" else {}
    named = model(**inputs, **labels, output_hidden_states=True)
    plain = model(**inputs, **labels, output_hidden_states=True, return_dict=False)
    assert type(plain) is tuple and len(plain) == len(named.to_tuple())
    torch.testing.assert_close(plain, named.to_tuple(), atol=0, rtol=0)
    model.config.return_dict = False  # as some people's configurations say
    torch.testing.assert_close(model(**inputs, **labels, output_hidden_states=True), plain, atol=0, rtol=0)


@fusion
@pytest.mark.parametrize("head", ALL)
def test_hidden_states_and_attentions(head, late):
    model, inputs = tiny_model(head, bypass_transformer=late), inputs_for(head)
    model.set_attn_implementation("eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    layers = SIZES["num_hidden_layers"] + late
    assert len(output.hidden_states) == layers + 1 and len(output.attentions) == layers
    masks = [inputs[name].flatten(0, -2).bool() for name in ("attention_mask", "visual_attention_mask")]
    visible = torch.cat(masks, dim=1)
    weights = output.attentions[-1]
    rows, length = visible.shape
    assert weights.shape == (rows, SIZES["num_attention_heads"], length, length)
    assert not weights.transpose(1, 3)[~visible].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert output.hidden_states[-1].shape == (rows, length, SIZES["hidden_size"])
    if head == "base":
        assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
        torch.testing.assert_close(model(**inputs).last_hidden_state, output.last_hidden_state, **close)


@pytest.mark.parametrize("head", ALL)
def test_attention_implementations_agree(head):
    model, inputs = tiny_model(head), inputs_for(head)
    assert model.config._attn_implementation == "sdpa"
    expected = meaningful(head, model(**inputs), inputs)
    model.set_attn_implementation("eager")
    assert base_of(model).config._attn_implementation == "eager"
    torch.testing.assert_close(meaningful(head, model(**inputs), inputs), expected, **close)


@pytest.mark.parametrize("head", ALL)
def test_word_vectors_instead_of_ids(head):
    model, inputs = tiny_model(head), inputs_for(head)
    given = {name: value for name, value in inputs.items() if name != "input_ids"}
    words = model.get_input_embeddings()(inputs["input_ids"])
    positions = torch.arange(words.shape[-2]).expand(words.shape[:-1])
    output = model(**given, inputs_embeds=words, position_ids=positions)
    assert torch.equal(meaningful(head, output, inputs), meaningful(head, model(**inputs), inputs))
    with pytest.raises(ValueError, match="exactly one of"):
        model(**inputs, inputs_embeds=words)


@pytest.mark.parametrize("head", ALL)
def test_texts_of_another_shape_are_named(head):
    model, axes = tiny_model(head), "batch_size, num_choices, length" if head == "vcr" else "batch_size, length"
    places = {"region_to_phrase_position": torch.zeros(1, 1)} if head == "flickr30k" else {}
    for name, text in {"input_ids": torch.ones(5, dtype=torch.long), "inputs_embeds": torch.ones(1, 5)}.items():
        shape, more = re.escape(str(tuple(text.shape))), ", hidden_size" if name == "inputs_embeds" else ""
        with pytest.raises(ValueError, match=rf"`{name}` of shape {shape}; expected \({axes}{more}\)"):
            model(**{name: text}, **places)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", ALL)
def test_each_dropout_is_applied_in_training_only(head, attention):
    model, inputs = tiny_model(head, num_hidden_layers=1), inputs_for(head)
    model.set_attn_implementation(attention)
    dropouts = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert len(dropouts) == (5 if head in ("vqa", "vcr", "nlvr2") else 4)
    for name, module in dropouts.items():
        module.p = 0.5
        still = [meaningful(head, model.eval()(**inputs), inputs) for _ in range(2)]
        moving = [meaningful(head, model.train()(**inputs), inputs) for _ in range(2)]
        assert torch.equal(*still) and not torch.allclose(*moving, atol=1e-3), name
        module.p = 0.0


@pytest.mark.parametrize("head", ["pretraining", "flickr30k"])
def test_new_words_keep_the_decoder_tied(head):
    model = tiny_model(head)
    model.resize_token_embeddings(SIZES["vocab_size"] + 7, mean_resizing=False)
    predictions = model.cls.predictions
    assert predictions.decoder.weight is model.get_input_embeddings().weight
    assert predictions.decoder.bias is predictions.bias and len(predictions.bias) == SIZES["vocab_size"] + 7
    other = torch.nn.Linear(SIZES["hidden_size"], SIZES["vocab_size"])
    model.set_output_embeddings(other)
    assert model.get_output_embeddings() is other and predictions.bias is other.bias


# ------------------------------------------------------------------------------------- one image for several texts


@pytest.mark.parametrize("head", [head for head in ALL if head != "vcr"])
def test_one_image_serves_many_questions(head):
    model, inputs = tiny_model(head), inputs_for(head)
    one = {**inputs, **{name: inputs[name][1:2] for name in ONE_IMAGE_ARGUMENTS}}
    many = {**inputs, **{name: inputs[name][1:2].expand_as(inputs[name]) for name in ONE_IMAGE_ARGUMENTS}}
    torch.testing.assert_close(meaningful(head, model(**one), many), meaningful(head, model(**many), many), **close)


@pytest.mark.parametrize("name", [*ONE_IMAGE_ARGUMENTS, "image_text_alignment", None])
def test_one_image_per_example_or_per_choice(name):
    model, per_choice = tiny_model("vcr"), inputs_for("vcr")
    shared = [name] if name else [*ONE_IMAGE_ARGUMENTS, "image_text_alignment"]
    once = {**per_choice, **{key: per_choice[key][:, 0] for key in shared}}
    for key in shared:
        per_choice[key] = once[key][:, None].expand_as(per_choice[key])
    assert torch.equal(model(**once).logits, model(**per_choice).logits)
    assert model(**once).logits.shape == (3, NUM_CHOICES)


# ------------------------------------------------------------------------------------------------------ from pixels


@pytest.mark.parametrize("head", ALL)
def test_pixels_equal_their_regions(head):
    model, inputs = model_with_eyes(head), only_text(inputs_for(head))
    found = base_of(model).get_image_features(images())
    assert 0 < found.visual_attention_mask.sum() < found.visual_attention_mask.numel()
    regions = {name: found[name] for name in ("visual_embeds", "visual_attention_mask")}
    masks = {**inputs, **regions}
    from_pixels = meaningful(head, model(**inputs, pixel_values=images()), masks)
    torch.testing.assert_close(from_pixels, meaningful(head, model(**inputs, **regions), masks), atol=0, rtol=0)
    other = meaningful(head, model(**inputs, pixel_values=images(seed=9)), masks)
    assert (from_pixels - other).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["base", "pretraining", "vqa", "nlvr2", "flickr30k"])
def test_two_images_have_segments_zero_and_one(head):
    model, inputs = model_with_eyes(head), only_text(inputs_for(head))
    pixels = torch.stack((images(seed=1), images(seed=2)), dim=1)
    found = [base_of(model).get_image_features(pixels[:, image]) for image in range(2)]
    regions = {name: torch.cat([f[name] for f in found], dim=1) for name in ("visual_embeds", "visual_attention_mask")}
    segments = torch.tensor([0] * 6 + [1] * 6).expand(3, -1)
    masks = {**inputs, **regions}
    both = meaningful(head, model(**inputs, pixel_values=pixels), masks)
    expected = model(**inputs, **regions, visual_token_type_ids=segments)
    torch.testing.assert_close(both, meaningful(head, expected, masks), **close)
    without = meaningful(head, model(**inputs, **regions), masks)
    assert (both - without).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["base", "pretraining", "vqa", "vcr"])
def test_given_boxes_equal_their_regions(head):
    model, inputs = model_with_eyes(head), only_text(inputs_for(head))
    corners = torch.rand(3, 4, 2, 2, generator=torch.Generator().manual_seed(7)).sort(dim=-2).values
    boxes = {
        "boxes_unit": corners.flatten(-2),
        "visual_attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]),
    }
    found = model.get_image_features(
        images(), boxes_unit=boxes["boxes_unit"], boxes_mask=boxes["visual_attention_mask"]
    )
    regions = {name: found[name] for name in ("visual_embeds", "visual_attention_mask")}
    masks = {**inputs, **regions}
    from_pixels = meaningful(head, model(**inputs, pixel_values=images(), **boxes), masks)
    torch.testing.assert_close(from_pixels, meaningful(head, model(**inputs, **regions), masks), atol=0, rtol=0)
    other = meaningful(
        head, model(**inputs, pixel_values=images(), **{**boxes, "boxes_unit": corners.flatten(-2) / 2}), masks
    )
    assert (from_pixels - other).abs().max() > 1e-3
    longer = {name: F.pad(value, (0, 0, 0, 2) if value.dim() == 3 else (0, 2)) for name, value in boxes.items()}
    padded = meaningful(head, model(**inputs, pixel_values=images(), **longer), {**inputs, **longer})
    torch.testing.assert_close(padded, from_pixels, **close)


@pytest.mark.parametrize("head", ALL)
def test_errors_about_pixels(head):
    inputs = inputs_for(head)
    with pytest.raises(ValueError, match="no region encoder"):
        tiny_model(head)(**only_text(inputs), pixel_values=images())
    with pytest.raises(ValueError, match="not both"):
        model_with_eyes(head)(**inputs, pixel_values=images())


@pytest.mark.parametrize("origin", ["new", "switched", "loaded"])
def test_frozen_region_encoder(origin, tmp_path):
    model, inputs = model_with_eyes("vqa"), inputs_for("vqa")
    if origin == "new":  # modules start in training mode
        model = MODELS["vqa"](model.config)
    if origin == "loaded":
        model.save_pretrained(tmp_path)
        model = MODELS["vqa"].from_pretrained(tmp_path)
    if origin != "new":
        model.train()
    assert model.training and not any(module.training for module in region_encoder(model).modules())
    buffers = {name: value.clone() for name, value in region_encoder(model).named_buffers()}
    model(**only_text(inputs), pixel_values=images(), **labels_for("vqa", inputs)).loss.backward()
    assert all(torch.equal(value, buffers[name]) for name, value in region_encoder(model).named_buffers())
    assert not any(name.startswith("visual_bert.region_encoder.") for name in gradients_of(model))
    assert not any(parameter.requires_grad for parameter in region_encoder(model).parameters())


def test_region_encoder_can_be_trained_along():
    model, inputs = model_with_eyes("vqa", freeze=False), inputs_for("vqa")
    model.train()
    assert all(module.training for module in region_encoder(model).modules())
    model(**only_text(inputs), pixel_values=images(), **labels_for("vqa", inputs)).loss.backward()
    reached = {name for name, gradient in gradients_of(model).items() if gradient.any()}
    for part in ("model.backbone.model.embedder", "model.encoder", "model.decoder.layers.1"):
        assert any(name.startswith(f"visual_bert.region_encoder.detector.{part}") for name in reached), part


# ------------------------------------------------------------------------------------------------- saving, loading


@pytest.mark.parametrize("head", ALL)
def test_save_and_load(head, tmp_path):
    model, inputs = tiny_model(head, bypass_transformer=head == "nlvr2", id2label={0: "no", 1: "yes"}), inputs_for(head)
    model.save_pretrained(tmp_path)
    again, info = MODELS[head].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not again.training
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), atol=0, rtol=0)
    torch.testing.assert_close(
        meaningful(head, again(**inputs), inputs), meaningful(head, model(**inputs), inputs), **close
    )
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize("head", ["base", "vqa"])
def test_save_and_load_with_a_region_encoder(head, tmp_path):
    model, inputs = model_with_eyes(head), only_text(inputs_for(head))
    region_encoder(model).fit_standardisation([{"pixel_values": images()}])
    model.save_pretrained(tmp_path)
    again = MODELS[head].from_pretrained(tmp_path)
    assert again.config.visual_embedding_dim == model.config.visual_embedding_dim == 25
    assert type(again.config.region_encoder_config.detector_config) is type(
        model.config.region_encoder_config.detector_config
    )
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), atol=0, rtol=0)
    ours, theirs = (m(**inputs, pixel_values=images(seed=3)).to_tuple() for m in (model, again))
    torch.testing.assert_close(theirs, ours, **close)


def test_a_head_starts_from_another_heads_encoder(tmp_path):
    tiny_model("pretraining").save_pretrained(tmp_path)
    head, info = MODELS["vqa"].from_pretrained(tmp_path, num_labels=11, output_loading_info=True)
    assert set(info["missing_keys"]) == {"cls.weight", "cls.bias"}
    base = VisualBertModel.from_pretrained(tmp_path)
    inputs = inputs_for("base")
    expected = tiny_model("pretraining").visual_bert(**inputs).last_hidden_state
    assert torch.equal(head.visual_bert(**inputs).last_hidden_state, expected)
    assert torch.equal(base(**inputs).last_hidden_state, expected)


def test_configuration_is_checked():
    with pytest.raises(ValueError, match="hidden_size 32 is not a multiple of num_attention_heads 5"):
        VisualBertModel(tiny_config(num_attention_heads=5))
    with pytest.raises(ValueError, match="model_type 'detr'"):
        tiny_config(region_encoder_config={"model_type": "detr"})


# -------------------------------------------------------------------------------------- precision, memory, compiling


@pytest.mark.parametrize("head", ALL)
def test_bfloat16_is_close(head):
    model, inputs = tiny_model(head), inputs_for(head)
    expected = meaningful(head, model(**inputs), inputs)
    inputs["visual_embeds"] = inputs["visual_embeds"].bfloat16()
    output = model.bfloat16()(**inputs, **(labels_for(head, inputs) if head != "base" else {}))
    found = meaningful(head, output, inputs)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("head", ["vqa", "flickr30k"])
def test_loss_over_soft_scores_is_not_rounded_to_bfloat16(head):
    model, inputs = tiny_model(head).bfloat16(), inputs_for(head)
    inputs["visual_embeds"] = inputs["visual_embeds"].bfloat16()
    labels = labels_for(head, inputs)["labels"]
    output = model(**inputs, labels=labels)
    expected = F.kl_div(output.logits.float().log_softmax(-1), labels, reduction="batchmean")
    torch.testing.assert_close(output.loss.float(), expected, atol=0, rtol=1e-4)


@pytest.mark.parametrize("head", ALL)
def test_activation_checkpointing_gives_equal_gradients(head):
    model, inputs = tiny_model(head).train(), inputs_for(head)
    loss_of(head, model, inputs).backward()
    expected = {name: gradient.clone() for name, gradient in gradients_of(model).items()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    runs = []
    base_of(model).encoder.layer[0].intermediate.register_forward_hook(lambda *_: runs.append(1))
    loss_of(head, model, inputs).backward()
    assert len(runs) == 2, "the layer was not recomputed"
    torch.testing.assert_close(gradients_of(model), expected, **close)


@fusion
@pytest.mark.parametrize("head", ALL)
def test_one_graph_serves_all_shapes(head, late):
    """Captured by `torch.compile(fullgraph=True, dynamic=True)`, run without code generation."""
    model = randomise(MODELS[head](tiny_config(head, num_hidden_layers=1, bypass_transformer=late)))
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch, text, regions in ((2, 9, 6), (5, 12, 7), (4, 10, 8)):  # no two equal numbers in the first
        inputs = inputs_for(head, batch, text, regions)
        torch.testing.assert_close(
            meaningful(head, compiled(**inputs), inputs), meaningful(head, model(**inputs), inputs), **close
        )
    assert len(graphs) == 1


@pytest.mark.parametrize("head", ["vqa", *(pytest.param(h, marks=pytest.mark.slow) for h in ALL if h != "vqa")])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch 2.13 inductor
def test_compiled_equals_eager(head):
    model = randomise(MODELS[head](tiny_config(head, num_hidden_layers=1)))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch, text, regions in ((3, 9, 6), (2, 12, 7)):
        inputs = inputs_for(head, batch, text, regions)
        expected = meaningful(head, model(**inputs), inputs)
        torch.testing.assert_close(meaningful(head, compiled(**inputs), inputs), expected, **close)


def test_exported_vqa_model_takes_other_shapes():
    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    batch, text, regions = (torch.export.Dim(name, min=2, max=32) for name in ("batch", "text", "regions"))
    axes = {
        **{name: {0: batch, 1: text} for name in ("input_ids", "attention_mask", "token_type_ids")},
        **{name: {0: batch, 1: regions} for name in ONE_IMAGE_ARGUMENTS},
    }
    exported = torch.export.export(model, (), inputs, dynamic_shapes=axes).module()
    for shape in ((3, 9, 6), (5, 14, 11)):
        other = inputs_for("vqa", *shape, seed=4)
        logits = exported(**other).logits
        assert logits.shape == (shape[0], NUM_LABELS["vqa"])
        torch.testing.assert_close(logits, model(**other).logits, **close)


OTHER_INPUTS = {  # a change of the inputs, and what is said about it
    "attention_mask": (
        lambda x: x[:, :-1],
        r"`attention_mask` of shape \(3, 8\); expected \(batch_size, text_length\)",
    ),
    "visual_attention_mask": (
        lambda x: x[:, :-1],
        r"`visual_attention_mask` of shape \(3, 5\); expected \(batch_size, re",
    ),
    "visual_embeds": (
        lambda x: x[..., :-1],
        r"`visual_embeds` of shape \(3, 6, \d+\); expected \(batch_size, regions, ",
    ),
}


@pytest.mark.parametrize("name", OTHER_INPUTS)
def test_inputs_of_another_shape_are_named(name):
    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    change, said = OTHER_INPUTS[name]
    with pytest.raises(ValueError, match=said):
        model(**{**inputs, name: change(inputs[name])})


@pytest.mark.parametrize("name", ["attention_mask", "visual_attention_mask"])
def test_masks_to_add_are_refused(name):
    inputs = inputs_for("vqa")
    with pytest.raises(ValueError, match=f"`{name}` holds -10000.0; expected 1 for what is there, 0 for padding"):
        tiny_model("vqa")(**{**inputs, name: (1.0 - inputs[name]) * -10000.0})


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["visual_feats", "image_features", "visual_embed"])
def test_images_under_other_names_are_not_ignored(head, name):
    inputs = inputs_for(head)
    with pytest.raises(TypeError, match=f"unknown argument `{name}`; expected regions as `visual_embeds`"):
        tiny_model(head)(**inputs, **{name: inputs["visual_embeds"]})


def test_phrases_are_in_the_text():
    model, inputs = tiny_model("flickr30k"), inputs_for("flickr30k")
    places = inputs.pop("region_to_phrase_position")
    for other, said in (
        (places[:2], r"is torch.int64 \(2, 4\); expected whole numbers \(3, phrases\)"),
        (places.float(), r"is torch.float32 \(3, 4\); expected whole numbers"),
        (torch.full_like(places, 9), r"holds 9; expected positions in the text, 0 to 8, or -1 for padding"),
    ):
        with pytest.raises(ValueError, match=said):
            model(**inputs, region_to_phrase_position=other)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="hidden_act 'gelo'; expected one of gelu"):
        tiny_model("vqa", hidden_act="gelo")
