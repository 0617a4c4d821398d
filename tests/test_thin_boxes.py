"""Legacy detectors find boxes thinner than a pixel, which end before they start; what they hand out is always valid."""

import pytest
import torch
from PIL import Image
from test_region_detector import KINDS, image, processor_for, spread, tiny_detector
from tiny_checkpoints import ANSWERS
from transformers import pipeline

from modeling_visualbert import VisualBertConfig, VisualBertForQuestionAnswering, VisualBertProcessor
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.features.extract import ExtractionOptions, extract_store
from modeling_visualbert.features.store import FeatureStore
from modeling_visualbert.hub_code.regions_visualbert import check_regions, find_regions

ALL = {"min_regions": 25, "max_regions": 25}  # every proposal becomes a region


def thinned(model):
    """Boxes of the second of three shapes of anchors become thinner than a pixel; no shape is likelier than another."""
    detector = getattr(getattr(model, "visual_bert", model), "region_encoder", model)
    detector.rpn.logits.bias.detach().zero_()
    weight = detector.rpn.logits.weight.detach()
    weight[:] = weight[:1].clone()
    detector.rpn.deltas.bias.detach().view(-1, 4)[1, 2] = -8.0
    return model


def proposals_of(detector, inputs):
    maps = detector.feature_maps(inputs["pixel_values"])
    ((boxes, _),) = detector.propose(maps, inputs["pixel_values"], inputs.get("pixel_mask"))
    return boxes


@pytest.fixture
def detector():
    return thinned(tiny_detector("fpn", **ALL))


@torch.no_grad()
def test_the_detector_finds_thin_boxes_and_hands_out_valid_ones(detector):
    inputs = processor_for("fpn")(image())
    proposals = proposals_of(detector, inputs)
    inverted = (proposals[:, 2:] < proposals[:, :2]).any(dim=1)
    assert 0 < inverted.sum() < len(proposals)
    (found,) = find_regions(detector, inputs)
    check_regions(found, detector.config.region_dim)
    flat = (found["boxes"][:, 2:] == found["boxes"][:, :2]).any(dim=1)
    assert 0 < flat.sum() < len(flat)


@torch.no_grad()
def test_features_and_ordinary_boxes_stay_as_they_were(detector):
    inputs = processor_for("fpn")(image())
    maps, proposals = detector.feature_maps(inputs["pixel_values"]), proposals_of(detector, inputs)
    described = detector.head(maps, torch.nn.functional.pad(proposals, (1, 0)))
    scale = inputs["picture_windows"][0, 2:] / inputs["image_sizes"][0].flip(0)
    selected = detector.select(described, proposals, (96, 128), scale)
    found = detector(**inputs)
    assert torch.equal(found["visual_embeds"][0], selected["visual_embeds"])
    boxes = found["boxes_unit"][0] * inputs["picture_windows"][0, 2:].repeat(2)
    valid = (selected["boxes_unit"][:, 2:] >= selected["boxes_unit"][:, :2]).all(dim=1)
    assert valid.any() and not valid.all()
    torch.testing.assert_close(boxes[valid], selected["boxes_unit"][valid])
    torch.testing.assert_close(boxes[:, :2], selected["boxes_unit"][:, :2])


def test_a_store_of_them_is_valid(detector, tmp_path):
    source = Image.fromarray(image())
    options = ExtractionOptions(dtype="float32")
    extract_store(tmp_path / "s", [("a", source)], detector, processor_for("fpn"), options, progress=False)
    stored = FeatureStore(tmp_path / "s")["a"]
    check_regions(stored, detector.config.region_dim)
    assert (stored["boxes"][:, 2:] == stored["boxes"][:, :2]).any()


def test_a_model_answers_about_the_picture_of_its_own_detector(tmp_path):
    tokenizer = corpus_tokenizer()
    torch.manual_seed(0)
    config = VisualBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=40,
        region_encoder_config=KINDS["fpn"](**ALL),
        id2label=dict(enumerate(ANSWERS)),
    )
    model = thinned(spread(VisualBertForQuestionAnswering(config).eval()))
    processor = VisualBertProcessor(
        processor_for("fpn"), tokenizer, task="vqa", answers=ANSWERS, region_dim=config.visual_embedding_dim
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ask = pipeline("visual-question-answering", model=str(tmp_path))
    source = Image.fromarray(image())
    found = ask(source, "What color is the star?", top_k=1)
    regions = ask.find_regions(source)
    assert (regions["boxes"][:, 2:] == regions["boxes"][:, :2]).any()
    assert ask(regions, "What color is the star?", top_k=1) == found
