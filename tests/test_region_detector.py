"""Region detectors as parts of the whole: saving, inside VisualBERT, training along, frozen, and what is refused."""

import numpy as np
import pytest
import torch
from helpers import inputs_for, randomise, tiny_config
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from modeling_visualbert import (
    RegionDetector,
    RegionDetectorConfig,
    RegionDetectorImageProcessor,
    VisualBertForMultipleChoice,
    VisualBertForQuestionAnswering,
    VisualBertModel,
    VisualBertProcessor,
)
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.hub_code.configuration_visualbert import VisualBertConfig
from modeling_visualbert.hub_code.regions_visualbert import check_regions, find_regions, split_regions

TINY = {"depths": [1, 1, 1, 1], "stem_channels": 8, "res2_channels": 8, "group_width": 4, "num_classes": 5}
TINY_C4 = {
    **{"anchor_sizes": [[16, 32]], "rpn_channels": 8, "rpn_pre_nms": 60, "rpn_post_nms": 20, "rpn_total": 20},
    **{"roi_size": 4, "num_attributes": 3, "class_embedding_dim": 4, "attribute_hidden_dim": 6},
    **{"min_regions": 4, "max_regions": 6},
}
TINY_PYRAMID = {
    **{"groups": 2, "fpn_channels": 8, "rpn_channels": 8, "rpn_pre_nms": 40, "rpn_post_nms": 10, "rpn_total": 25},
    **{"anchor_sizes": [[8], [16], [32], [64], [96]], "canonical_scale": 32, "roi_size": 3, "hidden_dim": 12},
    **{"min_regions": 6, "max_regions": 6},
}
TINY_GIVEN = {
    **{"roi_size": 3, "hidden_dim": 10, "class_embedding_dim": 4, "mask_channels": 3, "mask_size": 6, "dropout": 0.0},
}
KINDS = {
    "c4": lambda **fields: RegionDetectorConfig.bottom_up_attention_vg(**{**TINY, **TINY_C4, **fields}),
    "fpn": lambda **fields: RegionDetectorConfig.pythia_x101(**{**TINY, **TINY_PYRAMID, **fields}),
    "given": lambda **fields: RegionDetectorConfig.vcr_resnet50(**{**TINY, **TINY_GIVEN, **fields}),
}
SIZES = {"c4": {"shortest_edge": 96, "longest_edge": 160}, "fpn": {"shortest_edge": 96, "longest_edge": 160}}
SIZES["given"] = {"height": 64, "width": 96}


def tiny_detector(kind, seed=0, **fields):
    torch.manual_seed(seed)
    return spread(RegionDetector(KINDS[kind](**fields)).eval(), seed)


def spread(model, seed=0):
    """Weights that tell regions and classes apart, and statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    detector = getattr(getattr(model, "visual_bert", model), "region_encoder", model)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if "norm.weight" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif name.startswith(("rpn.logits", "rpn.deltas", "head.classes", "head.deltas")):
                parameter.normal_(0.0, 0.1, generator=generator)
        for name, buffer in detector.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.5, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return model


def processor_for(kind, **fields):
    return RegionDetectorImageProcessor.for_config(KINDS[kind](), **{"size": SIZES[kind], **fields})


def image(width=80, height=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def objects_for(kind):
    """What only the detector of VCR is given."""
    if kind != "given":
        return {}
    return {"boxes": [[[5, 5, 40, 30], [20, 10, 70, 55]], [[1, 2, 30, 50]]], "classes": [[1, 4], ["LABEL_2"]]}


def batch_for(kind, **fields):
    return processor_for(kind, **fields)([image(), image(50, 70, seed=1)], **objects_for(kind))


# ---------------------------------------------------------------------------------------------------- interface, saving


@pytest.mark.parametrize("kind", KINDS)
def test_output_has_the_form_of_every_region_encoder(kind):
    detector, inputs = tiny_detector(kind), batch_for(kind)
    with torch.no_grad():
        found = detector(**inputs)
    regions = found["visual_embeds"].shape[1]
    assert found["visual_embeds"].shape == (2, regions, detector.config.region_dim)
    for name in ("visual_attention_mask", "scores", "class_ids"):
        assert found[name].shape == (2, regions)
    mask = found["visual_attention_mask"].bool()
    assert mask[:, 0].all() and found["visual_embeds"][mask].abs().sum(dim=-1).gt(0).any()
    assert not found["visual_embeds"][~mask].any()
    assert ("attribute_ids" in found) == (kind == "c4")
    assert ("cnn_regularization_loss" in found) == (kind == "given")
    assert (found["class_ids"] < detector.config.num_classes).all()
    for regions in split_regions(found, inputs["image_sizes"].tolist()):
        check_regions(regions, detector.config.region_dim)  # boxes inside the image


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    detector, inputs = tiny_detector(kind), batch_for(kind)
    detector.save_pretrained(tmp_path)
    processor_for(kind).save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is RegionDetector and type(AutoConfig.from_pretrained(tmp_path)) is RegionDetectorConfig
    assert again.fingerprint() == detector.fingerprint()
    assert again.fingerprint() != tiny_detector(kind, seed=1).fingerprint()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is RegionDetectorImageProcessor
    prepared = processor([image(), image(50, 70, seed=1)], **objects_for(kind))
    assert prepared.keys() == inputs.keys()
    with torch.no_grad():
        for name, value in again(**prepared).items():
            assert torch.equal(value, detector(**inputs)[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_detector_of_vcr_reads_objects(kind):
    assert KINDS[kind]().reads_objects == processor_for(kind).reads_objects == (kind == "given")
    assert "reads_objects" not in KINDS[kind]().to_dict() and "reads_objects" not in processor_for(kind).to_dict()


@pytest.mark.parametrize("kind", ["c4", "given"])
def test_batching_changes_nothing(kind):
    """The pyramid detectors are different on purpose, see the recorded batch of two."""
    detector, processor, objects = tiny_detector(kind), processor_for(kind), objects_for(kind)
    together = detector(**processor([image(), image(50, 70, seed=1)], **objects))
    for row, pixels in enumerate((image(), image(50, 70, seed=1))):
        alone = detector(**processor(pixels, **{name: values[row] for name, values in objects.items()}))
        count = alone["visual_embeds"].shape[1]
        assert together["visual_attention_mask"][row].sum() == count
        if kind == "given":
            torch.testing.assert_close(together["visual_embeds"][row, :count], alone["visual_embeds"][0])
            torch.testing.assert_close(together["boxes_unit"][row, :count], alone["boxes_unit"][0])
        else:  # zeros behind the image change the last cells a little
            assert together["boxes_unit"][row].max() <= 1.0


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
@pytest.mark.parametrize(
    ("size", "window"), [((160, 40), (0, 20, 96, 44)), ((40, 80), (32, 0, 64, 64)), ((96, 64), (0, 0, 96, 64))]
)
def test_wide_and_tall_images_are_fitted_into_the_middle(size, window, channel_order):
    """Red on the left, blue on the right: enlarged or reduced as a whole, black around them, in the asked order of channels."""
    halves = Image.new("RGB", size, (255, 0, 0))
    halves.paste((0, 0, 255), (size[0] // 2, 0, *size))
    fields = {"channel_order": channel_order, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 1.0, 2.0]}
    inputs = processor_for("given", **fields)(halves)
    assert inputs["picture_windows"].tolist() == [list(window)]
    x1, y1, x2, y2 = window
    shown = inputs["pixel_values"][0] * torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    shown = shown + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    shown = shown if channel_order == "RGB" else shown.flip(0)
    middle = (x1 + x2) // 2
    for colour, columns in (([1.0, 0.0, 0.0], slice(x1, middle - 2)), ([0.0, 0.0, 1.0], slice(middle + 2, x2))):
        part = shown[:, y1:y2, columns]
        torch.testing.assert_close(part, torch.tensor(colour)[:, None, None].expand_as(part), atol=1e-5, rtol=0)
    assert shown.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=1e-3)
    if "pixel_mask" in inputs:
        assert inputs["pixel_mask"].sum() == inputs["pixel_mask"][0, y1:y2, x1:x2].sum() == (x2 - x1) * (y2 - y1)


def test_objects_are_told_when_a_field_is_changed_for_one_call():
    objects = {name: values[0] for name, values in objects_for("given").items()}
    changed = processor_for("given")(image(), **objects, image_mean=[0.0] * 3)
    plain = processor_for("given")(image(), **objects)
    assert not torch.equal(changed["pixel_values"], plain["pixel_values"])
    for name in ("boxes_unit", "boxes_mask", "object_classes", "object_masks"):
        assert torch.equal(changed[name], plain[name])
    polygons = [[[[5, 5], [40, 5], [5, 30]]], [[[20, 10], [70, 10], [70, 55]]]]
    filled = processor_for("given")(image(), **objects, polygons=polygons, image_mean=[0.0] * 3)
    assert filled["object_masks"].sum() < plain["object_masks"].sum()


def test_classes_are_numbers_where_there_are_no_names():
    nameless = processor_for("given", class_names=None)
    assert nameless(image(), boxes=[[1, 2, 3, 4]], classes=[70])["object_classes"].tolist() == [[0, 70]]
    for wrong, message in (
        (-1, "class -1; expected at least 0, or a name"),
        ("cup", "unknown class 'cup'; expected one of 0"),
    ):
        with pytest.raises(ValueError, match=f"^classes 0: {message}"):
            nameless(image(), boxes=[[1, 2, 3, 4]], classes=[wrong])


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_model_inputs_are_named(kind):
    assert set(processor_for(kind).model_input_names) == batch_for(kind).keys()


def test_detect_names_what_it_finds():
    detector = tiny_detector("c4", attribute_names=["red", "tall", "wet"], id2label={i: f"thing {i}" for i in range(5)})
    found = detector.detect(Image.fromarray(image()), processor_for("c4"))
    count = len(found["boxes"])
    assert 0 < count <= 6 and found["boxes"].shape == (count, 4) and found["visual_embeds"].shape == (count, 64)
    assert found["classes"] == [f"thing {i}" for i in found["class_ids"].tolist()]
    assert found["attributes"] == [["red", "tall", "wet"][i] for i in found["attribute_ids"].tolist()]
    assert found["image_size"].tolist() == [60, 80]
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= torch.tensor([80, 60, 80, 60]) + 1e-3).all()
    two = detector.detect([image(), image(50, 70)], processor_for("c4"))
    assert isinstance(two, list) and two[1]["image_size"].tolist() == [70, 50]


def test_detect_takes_the_image_processor_beside_the_checkpoint(tmp_path):
    detector, image_processor = tiny_detector("c4"), processor_for("c4")
    expected = detector.detect(image(), image_processor)
    detector.save_pretrained(tmp_path)
    loaded = RegionDetector.from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"{tmp_path}: no preprocessor_config.json .* expected one, or `image_processor`"
    ):
        loaded.detect(image())
    image_processor.save_pretrained(tmp_path)
    torch.testing.assert_close(loaded.detect(image())["boxes"], expected["boxes"])
    # Made of a configuration: as the published detector of this kind.
    published = RegionDetectorImageProcessor.for_config(detector.config)
    small = image(40, 30)
    torch.testing.assert_close(detector.detect(small)["boxes"], detector.detect(small, published)["boxes"])


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_given_boxes_are_described_instead_of_found_ones(kind):
    detector, processor = tiny_detector(kind), processor_for(kind)
    found = detector(**processor(image()))
    boxes = split_regions(found, [(60, 80)])[0]["boxes"][:3]
    given = processor(image(), boxes=boxes)
    described = detector(**given)
    assert torch.equal(described["boxes_unit"], given["boxes_unit"])
    assert described["visual_embeds"].shape == (1, 3, detector.config.region_dim)
    if kind == "fpn":  # its boxes are the proposals themselves
        inside = found["boxes_unit"][0, :3].clamp(0, 1) == found["boxes_unit"][0, :3]
        for row in inside.all(dim=1).nonzero()[:, 0].tolist():
            torch.testing.assert_close(
                described["visual_embeds"][0, row], found["visual_embeds"][0, row], atol=1e-3, rtol=0
            )


def test_a_mask_tells_where_the_image_is_when_nothing_else_does():
    detector, inputs = tiny_detector("fpn"), batch_for("fpn")
    exact = detector(**inputs)["boxes_unit"]
    guessed = detector(inputs["pixel_values"], inputs["pixel_mask"])["boxes_unit"]
    assert exact.shape == guessed.shape and (exact - guessed).abs().max() < 0.05


@pytest.mark.parametrize(
    ("level", "scale", "expected"),
    [(4, 32, [0, 0, 1, 2, 3, 3]), (3, 32, [0, 0, 0, 1, 2, 3]), (4, 64, [0, 0, 0, 1, 2, 3])],
)
def test_the_configuration_says_which_map_a_box_is_read_from(level, scale, expected):
    """Each map is constant, so that what is pooled names it."""
    detector = tiny_detector("fpn", canonical_level=level, canonical_scale=scale)
    boxes = torch.tensor([[3.0, 3.0, 2.0 + side / 2, 2.0 + side * 2] for side in (6, 10, 20, 40, 80, 150)])
    maps = [torch.full((1, 8, 160 >> number, 128 >> number), float(number)) for number in range(4)]
    pooled = detector.head.pool(maps, torch.cat((torch.zeros(6, 1), boxes), dim=1))
    assert pooled.mean(dim=(1, 2, 3)).tolist() == expected


@pytest.mark.parametrize("statistics", ["frozen", "running", "batch"])
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_adds_the_configured_eps(statistics, training):
    """To the variance of the batch where that is used, to the stored one elsewhere."""
    detector = tiny_detector("given", norm_statistics=statistics, norm_eps=0.5).train(training)
    conv, pixels = detector.backbone.stem.conv, torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    plain = F.conv2d(pixels, conv.weight, None, conv.stride, conv.padding)
    mean, variance = conv.norm.running_mean, conv.norm.running_var
    if statistics == "batch" or (statistics == "running" and training):
        mean, variance = plain.mean(dim=(0, 2, 3)), plain.var(dim=(0, 2, 3), correction=0)
    scaled = (plain - mean[:, None, None]) / (variance[:, None, None] + 0.5).sqrt()
    expected = scaled * conv.norm.weight[:, None, None] + conv.norm.bias[:, None, None]
    torch.testing.assert_close(conv(pixels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["fpn", "given"])
def test_the_place_of_wide_and_tall_images_is_seen_in_their_mask(kind):
    """To half a pixel: the padding is below and to the right, or, for the detector of VCR, on both sides."""
    processor, objects = processor_for(kind), objects_for(kind)
    objects |= {"boxes": [[[5, 5, 40, 30], [20, 10, 70, 25]], [[1, 2, 30, 50]]]} if objects else {}
    inputs = processor([image(90, 30), image(30, 90, seed=1)], **objects)
    detector = tiny_detector(kind)
    exact = detector(**inputs)
    guessed = detector(**{name: value for name, value in inputs.items() if name != "picture_windows"})
    assert exact["boxes_unit"].shape == guessed["boxes_unit"].shape
    assert (exact["boxes_unit"] - guessed["boxes_unit"]).abs().max() < 0.05
    difference = (exact["visual_embeds"] - guessed["visual_embeds"]).abs().mean()
    assert difference < 0.1 * exact["visual_embeds"].abs().mean()


def test_without_a_mask_images_fill_their_pixels():
    detector = tiny_detector("c4")
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    windows = torch.tensor([[0.0, 0.0, 96.0, 64.0]] * 2)
    found, told = detector(pixels), detector(pixels, picture_windows=windows)
    for name, value in found.items():
        torch.testing.assert_close(value, told[name])
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.5, 0.25, 1.0, 0.5]]] * 2)
    described = detector(pixels, boxes_unit=boxes)["visual_embeds"]
    torch.testing.assert_close(described, detector(pixels, boxes_unit=boxes, picture_windows=windows)["visual_embeds"])


# ----------------------------------------------------------------------------------------------------- inside VisualBERT


def tiny_model(head, kind, **fields):
    config = tiny_config("vqa" if head is VisualBertForQuestionAnswering else "vcr", **fields).to_dict()
    config.pop("visual_embedding_dim")
    config["region_encoder_config"] = KINDS[kind]()
    torch.manual_seed(0)
    return spread(randomise(head(VisualBertConfig(**config)), std=0.1))


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_a_model_answers_from_pixels(kind, tmp_path):
    model, pixels = tiny_model(VisualBertForQuestionAnswering, kind), batch_for(kind)
    text = {key: value for key, value in inputs_for("vqa", batch=2).items() if "visual" not in key}
    with torch.no_grad():
        logits = model(**text, **pixels).logits
        regions = model.get_image_features(**pixels)
        two_steps = model(**text, **{key: regions[key] for key in ("visual_embeds", "visual_attention_mask")}).logits
    torch.testing.assert_close(logits, two_steps)
    model.save_pretrained(tmp_path)
    again = VisualBertForQuestionAnswering.from_pretrained(tmp_path).eval()
    assert type(again.visual_bert.region_encoder) is RegionDetector
    with torch.no_grad():
        torch.testing.assert_close(again(**text, **pixels).logits, logits)
    assert not any(p.requires_grad for p in again.visual_bert.region_encoder.parameters())


def test_a_model_finds_the_regions_that_its_encoder_finds():
    model, pixels = tiny_model(VisualBertForQuestionAnswering, "c4"), batch_for("c4")
    inside = find_regions(model.visual_bert.region_encoder, pixels)
    for mine, expected in zip(find_regions(model.visual_bert, pixels), inside, strict=True):
        assert mine.keys() == expected.keys() and len(mine["boxes"])
        for name, value in mine.items():
            torch.testing.assert_close(value, expected[name])
    with pytest.raises(ValueError, match="no region encoder"):
        find_regions(VisualBertModel(tiny_config()), pixels)


def test_regions_of_two_images():
    model, pixels = tiny_model(VisualBertForQuestionAnswering, "fpn").visual_bert, batch_for("fpn")
    text = {key: value[:1] for key, value in inputs_for("vqa").items() if "visual" not in key}
    with torch.no_grad():
        both = model(**text, **{key: value[None] for key, value in pixels.items()}).last_hidden_state
        found = model.get_image_features(**pixels)
    assert both.shape[1] == text["input_ids"].shape[1] + found["visual_embeds"].shape[1] * 2


def test_unknown_region_encoder_is_named():
    with pytest.raises(ValueError, match="'query_region_encoder' or 'region_detector'"):
        VisualBertConfig(region_encoder_config={"model_type": "detr"})


def vcr_batch():
    text = {key: value for key, value in inputs_for("vcr", batch=2).items() if "visual" not in key}
    text.pop("image_text_alignment")
    return {**text, **batch_for("given"), "labels": torch.tensor([0, 2])}


def test_detector_of_vcr_trains_along():
    model, inputs = tiny_model(VisualBertForMultipleChoice, "given", freeze_region_encoder=False), vcr_batch()
    detector = model.visual_bert.region_encoder
    regions = {key: value for key, value in inputs.items() if key in batch_for("given")}
    model.train()
    statistics = {name: value.clone() for name, value in detector.named_buffers() if "running" in name}
    output = model(**inputs)
    assert all(not torch.equal(value, dict(detector.named_buffers())[name]) for name, value in statistics.items())
    output.loss.backward()
    without = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not without
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in detector.named_parameters() if "bias" not in name)
    model.eval()
    with torch.no_grad():
        output, found = model(**inputs), detector(**regions)
    choice = F.cross_entropy(output.logits, inputs["labels"])
    torch.testing.assert_close(output.loss, choice + found["cnn_regularization_loss"])
    model.config.region_encoder_config.class_loss_weight = 0.5
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).loss, choice + 0.5 * found["cnn_regularization_loss"])
        accumulated = model(**inputs, num_items_in_batch=8).loss
    torch.testing.assert_close(accumulated, (choice + 0.5 * found["cnn_regularization_loss"]) / 4)


def test_processor_tells_the_detector_of_vcr_what_the_objects_are():
    image_processor = processor_for("given", class_names=["whole image", "red circle", "blue square", "cup", "tie"])
    processor = VisualBertProcessor(image_processor, corpus_tokenizer(), task="vcr", max_length=64)
    inputs = processor(
        images=image(),
        text="what is [0] ?",
        choices=["red", "blue [1]"],
        objects=["blue square", "cup"],
        boxes=[[5, 5, 40, 30], [20, 10, 70, 55]],
        polygons=[[[[5, 5], [40, 5], [5, 30]]], [[[20, 10], [70, 10], [70, 55], [20, 55]]]],
    )
    assert inputs["object_classes"].tolist() == [[0, 2, 3]]
    masks = inputs["object_masks"][0]
    assert masks[0].all() and 0.3 < masks[1].mean() < 0.7 and masks[2].mean() == 1.0
    model = tiny_model(VisualBertForMultipleChoice, "given", vocab_size=len(corpus_tokenizer()))
    assert model(**inputs).logits.shape == (1, 2)


def test_a_step_lowers_the_class_loss():
    detector, inputs = tiny_detector("given").train(), batch_for("given")
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        loss = detector(**inputs)["cnn_regularization_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_frozen_detector_of_vcr():
    model, inputs = tiny_model(VisualBertForMultipleChoice, "given"), vcr_batch()
    detector = model.visual_bert.region_encoder
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    output = model.train()(**inputs)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, inputs["labels"]))
    output.loss.backward()
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_frozen_backbone(statistics):
    """The authors' `freeze_detector` freezes the backbone only; its statistics are those of the batch or do not move."""
    detector, inputs = tiny_detector("given", freeze_backbone=True, norm_statistics=statistics), batch_for("given")
    trained = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("head.") for name in trained)
    assert {name for name, p in detector.requires_grad_(True).named_parameters() if p.requires_grad} == trained
    before = {name: value.clone() for name, value in detector.backbone.named_buffers()}
    evaluated = detector.feature_maps(inputs["pixel_values"])[0]
    detector.train()(**inputs)["cnn_regularization_loss"].backward()
    assert all(torch.equal(value, before[name]) for name, value in detector.backbone.named_buffers())
    torch.testing.assert_close(detector.feature_maps(inputs["pixel_values"])[0], evaluated)
    assert detector.head.res5[0].conv1.norm.training
    alone = detector.feature_maps(inputs["pixel_values"][:1])[0]
    assert torch.allclose(alone, evaluated[:1], atol=1e-4) == (statistics == "running")


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_found_regions_train_along_too(kind):
    detector, inputs = tiny_detector(kind).train(), batch_for(kind)
    detector(**inputs)["visual_embeds"].square().sum().backward()
    weights = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert not any("norm" in name for name in weights)  # fixed scale and shift
    reached = {name for name, parameter in weights.items() if parameter.grad is not None}
    assert "backbone.stem.conv.weight" in reached and not any(name.startswith("rpn") for name in reached)


# ---------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes_unit": None}, "this detector finds no boxes; expected `boxes_unit`"),
        ({"object_classes": None}, r"object_classes are missing; expected the class of each given box, \(2, 3\)"),
        ({"object_classes": torch.zeros(2, 4).long()}, r"object_classes of shape \(2, 4\); expected \(2, 3\)"),
        ({"object_masks": torch.zeros(2, 3, 7, 7)}, r"object_masks of shape \(2, 3, 7, 7\); expected \(2, 3, 6, 6\)"),
        ({"object_classes": torch.full((2, 3), 5)}, "object_classes hold 5; expected 0 to 4"),
        ({"object_classes": torch.full((2, 3), -1)}, "object_classes hold -1; expected 0 to 4"),
        ({"boxes_mask": torch.ones(2, 5)}, r"boxes_mask of shape \(2, 5\)"),
        ({"boxes_unit": torch.ones(2, 3, 5)}, r"boxes_unit of shape \(2, 3, 5\).*expected \(batch, regions, 4\)"),
        ({"pixel_values": torch.zeros(2, 4, 64, 96)}, r"pixel_values of shape \(2, 4, 64, 96\); expected \(batch, 3"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_detector("given")(**{**batch_for("given"), **change})


def test_pyramid_needs_padded_images():
    with pytest.raises(ValueError, match="100 x 64 pixels; expected multiples of 32"):
        tiny_detector("fpn")(torch.zeros(1, 3, 100, 64))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("c4", {"head": "c5"}, "head 'c5'; expected one of c4, fpn, given"),
        ("c4", {"norm_statistics": "none"}, "norm_statistics 'none'; expected one of frozen, running, batch"),
        ("fpn", {"anchor_sizes": [[8]]}, "anchor_sizes for 1 maps; expected 5 for head 'fpn'"),
        ("c4", {"attribute_names": ["red"]}, "1 attribute_names; expected 3"),
        ("c4", {"min_regions": 7}, "min_regions 7, max_regions 6"),
        ("c4", {"depths": [1, 1, 1]}, "expected the blocks of four stages"),
    ],
)
def test_wrong_configurations_are_named(kind, fields, message):
    with pytest.raises(Exception, match=message):
        KINDS[kind](**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": "magic"}, "recipe 'magic'; expected one of interpolate, factor, fit"),
        ({"channel_order": "GRB"}, "channel_order 'GRB'; expected 'BGR' or 'RGB'"),
        ({"recipe": "fit"}, "expected height and width for recipe 'fit'"),
    ],
)
def test_wrong_recipes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RegionDetectorImageProcessor(**fields)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"boxes": [[1, 2, 3, 4]]}, "boxes without classes"),
        ({"classes": [1]}, "classes or polygons without boxes"),
        ({"boxes": [[1, 2, 3, 4]], "classes": [1, 2]}, "classes 0: 2 classes for 1 boxes"),
        ({"boxes": [[1, 2, 3, 4]], "classes": ["yeti"]}, "classes 0: unknown class 'yeti'"),
        ({"boxes": [[1, 2, 3]], "classes": [1]}, r"boxes 0 of shape \(1, 3\)"),
        ({"boxes": [[1, 2, 3, 4]], "classes": [1], "polygons": []}, "polygons 0: those of 0 objects for 1 boxes"),
        ({"boxes": [[1, 2, 3, 4]], "classes": [5]}, "classes 0: class 5; expected 0 to 4, or a name"),
        ({"boxes": [[1, 2, 3, 4]], "classes": [-1]}, "classes 0: class -1; expected 0 to 4, or a name"),
        ({"boxes": [[1, 2, 3, 4]], "classes": [1.5]}, "classes 0: 1.5; expected a number or a name of a class"),
        (
            {"boxes": [[1, 2, 3, 4], [1, float("nan"), 3, 4]], "classes": [1, 1]},
            r"boxes 0: row 1 holds NaN or infinity, \[1.0, nan, 3.0, 4.0\]; expected finite numbers",
        ),
        (
            {"boxes": [[1, 2, float("inf"), 4]], "classes": [1]},
            "boxes 0: row 0 holds NaN or infinity, .*inf.*expected finite numbers",
        ),
        (
            {"boxes": [[9, 2, 3, 4]], "classes": [1]},
            r"boxes 0: row 0 is inverted, \[9.0, .*expected x1 <= x2 and y1 <= y2",
        ),
        (
            {"boxes": [[1, 2, 3, 4], [1, 2, 300, 4]], "classes": [1, 1]},
            r"boxes 0: row 1 \[1.0, 2.0, 300.0, 4.0\] is outside the image of \d+ x \d+ pixels",
        ),
        ({"boxes": [[0.1, 0.2, 0.5, 1.0]], "classes": [1]}, r"boxes 0: all boxes lie in 0..1 \(row 0: \[0.1"),
    ],
)
def test_wrong_objects_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        processor_for("given")(image(), **given)


@pytest.mark.parametrize("name", ["boxes", "classes", "polygons"])
def test_objects_of_another_number_of_images_are_refused(name):
    objects = {"boxes": [[[1, 2, 3, 4]]], "classes": [[1]], "polygons": [[[[[1, 2], [3, 2], [3, 4]]]]]}
    objects = {key: value * 2 if key == name else value for key, value in objects.items()}
    with pytest.raises(ValueError, match=f"^{name} for 2 images, but 1 images; expected as many"):
        processor_for("given").encode_objects([[60, 80]], **objects)


def test_objects_may_be_a_pixel_wide_or_high():
    found = processor_for("given")(image(), boxes=[[20, 15, 20, 30], [20, 15, 40, 15]], classes=[1, 2])
    assert found["boxes_unit"][0, 1:].tolist() == [[0.25, 0.25, 0.25, 0.5], [0.25, 0.25, 0.5, 0.25]]


# ------------------------------------------------------------------------------------------------------ unusual images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 8), (8, 900), (700, 9), (500, 300)])
def test_small_long_and_large_images(kind, size):
    detector, processor = tiny_detector(kind), processor_for(kind)
    objects = {"boxes": [[1, 1, 6, 7]], "classes": [2]} if kind == "given" else {}
    found = detector.detect(image(*size), processor, **objects)
    assert torch.isfinite(found["visual_embeds"]).all() and torch.isfinite(found["boxes"]).all()
    assert found["image_size"].tolist() == [size[1], size[0]]


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow warns, we refuse
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "message"), [((1, 1), "1 x 1 pixels; expected at least 8"), ((12000, 12000), "12000 x 12000 pixels")]
)
def test_impossible_images_are_refused(kind, size, message, tmp_path):
    Image.new("1", size).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match=rf"image\.png: {message}"):
        processor_for(kind)(tmp_path / "image.png")


def test_objects_without_boxes_are_only_the_whole_image():
    found = tiny_detector("given")(**processor_for("given")(image(), boxes=[], classes=[]))
    assert found["visual_embeds"].shape == (1, 1, 10) and found["class_ids"].tolist() == [[0]]


def test_a_place_anywhere_for_training():
    processor = processor_for("given", random_place=True)
    torch.manual_seed(0)
    places = {tuple(processor(image(30, 60))["picture_windows"][0].tolist()) for _ in range(20)}
    assert len(places) > 5


def test_names_of_coco_in_the_spelling_of_vcr():
    processor = RegionDetectorImageProcessor.for_config(RegionDetectorConfig.vcr_resnet50())
    found = processor(image(), boxes=[[0, 0, 9, 9]] * 3, classes=["wineglass", "wine glass", "person"])
    assert found["object_classes"].tolist() == [[0, 41, 41, 1]]


def test_base_model_without_detector_still_refuses_pixels():
    with pytest.raises(ValueError, match="no region encoder"):
        VisualBertModel(tiny_config()).get_image_features(torch.zeros(1, 3, 32, 32))
