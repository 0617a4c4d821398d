"""Width and height, x and y: nothing here is square, so nothing can be swapped. And limits, from both sides."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_grid_encoder import grid_encoder
from test_region_detector import tiny_detector
from torch import nn

from modeling_visualbert import RegionDetectorConfig, VisualBertImageProcessor, VisualBertProcessor, load_image
from modeling_visualbert.corpus.vocabulary import corpus_tokenizer
from modeling_visualbert.data.nlvr2 import image_names
from modeling_visualbert.hub_code.detection_ops import fpn_levels
from modeling_visualbert.hub_code.image_processing_visualbert import MIN_SIDE
from modeling_visualbert.hub_code.modeling_region_encoder import RegionEncoderOutput
from modeling_visualbert.hub_code.regions_visualbert import (
    box_geometry,
    encode_boxes,
    normalise_boxes,
    scale_boxes,
    split_regions,
)
from modeling_visualbert.metrics.nlvr2 import nlvr2_accuracy

WIDE, TALL = (30, 120), (120, 30)  # height, width


@pytest.mark.parametrize("size", [WIDE, TALL])
def test_pixels_become_normalised_boxes_and_back(size):
    height, width = size
    boxes = torch.tensor([[0.0, 0.0, width, height], [width / 2, height / 5, width, height / 2]])
    normalised = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.2, 1.0, 0.5]])
    torch.testing.assert_close(normalise_boxes(boxes, size), normalised)
    torch.testing.assert_close(scale_boxes(normalised, size), boxes)
    assert box_geometry(normalised)[1].tolist() == pytest.approx([0.5, 0.2, 1.0, 0.5, 0.75, 0.35, 0.5, 0.3, 0.15])


def test_given_boxes_are_cut_at_the_border_and_padded():
    given = encode_boxes([[[0.0, 15.0, 60.0, 30.9]], [[15.0, 0.0, 30.5, 60.0], [0, 0, 6, 12]]], [WIDE, TALL], True)
    assert given["boxes_unit"].tolist() == [
        [[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]],
        [[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.0, 0.5], [0.0, 0.0, pytest.approx(0.2), pytest.approx(0.1)]],
    ]
    assert given["boxes_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_regions_of_a_batch_get_the_size_of_their_own_image():
    found = RegionEncoderOutput(
        visual_embeds=torch.zeros(2, 1, 3),
        visual_attention_mask=torch.ones(2, 1, dtype=torch.long),
        boxes_unit=torch.tensor([[[0.25, 0.5, 0.75, 1.0]]]).expand(2, -1, -1),
    )
    wide, tall = split_regions(found, [WIDE, TALL])
    assert wide["boxes"].tolist() == [[30.0, 15.0, 90.0, 30.0]] and wide["image_size"].tolist() == [30, 120]
    assert tall["boxes"].tolist() == [[7.5, 60.0, 22.5, 120.0]] and tall["image_size"].tolist() == [120, 30]


@pytest.mark.parametrize("height_and_width", [(48, 64), (64, 32)])
def test_padding_of_a_grid_does_not_move_its_cells(height_and_width):
    """An image that fills a part of the padded batch, wide or high, has the cells that it has alone."""
    height, width = height_and_width
    encoder = grid_encoder(grid_rows=2, grid_columns=3)
    encoder.backbone = _Mean()
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    padded, mask = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.long)
    padded[..., :height, :width], mask[:, :height, :width] = image, 1
    alone, beside = encoder(image), encoder(padded, mask)
    torch.testing.assert_close(beside["visual_embeds"], alone["visual_embeds"])
    torch.testing.assert_close(beside["boxes_unit"], alone["boxes_unit"])


class _Mean(nn.Module):
    """A backbone without context: the mean of each 8 x 8 block, repeated for 32 channels."""

    def forward(self, pixel_values):
        return {
            "feature_maps": [nn.functional.avg_pool2d(pixel_values.mean(dim=1, keepdim=True), 8).expand(-1, 32, -1, -1)]
        }


def test_image_processor_pads_right_and_below():
    processor = VisualBertImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    wide, tall = (np.full((*size, 3), 255, dtype=np.uint8) for size in ((20, 40), (40, 20)))
    batch = processor([wide, tall])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["image_sizes"].tolist() == [[20, 40], [40, 20]]
    assert batch["pixel_mask"][0].sum(dim=0).tolist() == [32] * 64 and batch["pixel_mask"][0, :32].all()
    assert batch["pixel_mask"][1].sum(dim=1).tolist() == [32] * 64 and batch["pixel_mask"][1, :, :32].all()


def test_pyramid_levels_of_boxes_of_every_scale():
    """Equation 1 of Lin et al. (arXiv 1612.03144): 224 pixels belong to level 4; half the scale, one level less."""
    boxes = torch.tensor([[0.0, 0.0, side / 2, side * 2] for side in (10, 100, 120, 200, 240, 400, 480, 2000)])
    assert fpn_levels(boxes, 224, 4, 2, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert fpn_levels(boxes, 224, 3, 2, 5).tolist() == [0, 0, 0, 0, 1, 1, 2, 3]
    assert fpn_levels(boxes, 448, 4, 2, 5).tolist() == [0, 0, 0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_batch_norm_has_the_eps_of_the_configuration(eps):

    detector = tiny_detector("c4", norm_eps=eps).eval()
    block = detector.backbone.stem.conv
    assert RegionDetectorConfig().norm_eps == 1e-5
    with torch.no_grad():
        block.norm.running_mean.uniform_(-1, 1)
        block.norm.running_var.uniform_(0.1, 1)
        images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
        plain = nn.functional.conv2d(images, block.weight, None, block.stride, block.padding)
        norm = block.norm
        expected = nn.functional.batch_norm(plain, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=eps)
        torch.testing.assert_close(block(images), expected, atol=1e-4, rtol=1e-4)


def test_the_smallest_image_is_eight_pixels_on_a_side(tmp_path):
    assert MIN_SIDE == 8
    for size in ((8, 100), (100, 8), (8, 8)):
        Image.new("RGB", size).save(tmp_path / "image.png")
        assert load_image(tmp_path / "image.png").size == size
    for size in ((7, 100), (100, 7)):
        Image.new("RGB", size).save(tmp_path / "image.png")
        with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels; expected at least 8 on each side"):
            load_image(tmp_path / "image.png")


@pytest.mark.parametrize("identifier", ["dev-1-0", "dev-1-0-0-0", "dev", "", "dev-1-0-0-"])
def test_identifiers_of_nlvr2_have_four_parts(identifier):
    with pytest.raises(ValueError, match="expected split-set-pair-sentence"):
        nlvr2_accuracy({identifier: "True"}, {identifier: "True"})
    with pytest.raises(ValueError, match="here: identifier .*; expected split-set-pair-sentence"):
        image_names(identifier, "here")


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("vcr", {"choices": [["a star", "red"]]}),
        ("flickr30k", {"phrases": [["a star"]]}),
        ("pretraining", {"text_pair": ["a star"]}),
    ],
)
def test_what_belongs_to_a_text_is_refused_without_it(task, arguments):
    processor = VisualBertProcessor(tokenizer=corpus_tokenizer(), task=task)
    (name,) = arguments
    regions = {"visual_embeds": torch.zeros(2, 5)}
    with pytest.raises(ValueError, match=f"{name} without `text`; expected the text"):
        processor(images=regions, **arguments)
