"""Images of regions: where the answer looked, and how it is drawn."""

import numpy as np
import pytest
import torch
from helpers import inputs_for, tiny_model
from PIL import Image

from modeling_visualbert.training.report import plot_curves, table
from modeling_visualbert.visualization import answer_attention, captioned, draw_regions, grid


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_is_that_of_the_mask_token_to_the_regions(implementation):
    model, inputs = tiny_model("vqa"), inputs_for("vqa")
    model.set_attn_implementation(implementation)
    weights = answer_attention(model, **inputs)
    assert model.config._attn_implementation == implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layer = model(**inputs, output_attentions=True).attentions[-1]
    text = inputs["input_ids"].shape[1]
    for row in range(3):
        mask_position = int(inputs["attention_mask"][row].sum()) - 2
        expected = layer[row, :, mask_position, text:].mean(dim=0)
        torch.testing.assert_close(weights[row], expected)
        assert 0 < weights[row].sum() < 1
        assert not weights[row][inputs["visual_attention_mask"][row] == 0].any()


def test_the_strongest_region_is_thick_and_orange():
    boxes = [[10, 10, 40, 40], [60, 10, 90, 40]]
    drawn = np.asarray(draw_regions(Image.new("RGB", (480, 100), "white"), boxes, weights=[0.2, 0.8])).astype(int)
    quiet, loud = drawn[:, :50], drawn[:, 50:]
    assert (loud == (230, 85, 13)).all(axis=-1).sum() > (quiet < 255).any(axis=-1).sum() > 100
    assert not (quiet == (230, 85, 13)).all(axis=-1).any()


def test_small_images_are_enlarged_with_their_boxes():
    drawn = draw_regions(Image.new("RGB", (160, 128), "white"), [[40, 32, 80, 64]], labels=["cat"])
    assert drawn.size == (480, 384)
    dark = np.argwhere((np.asarray(drawn) < 200).any(axis=-1) & (np.arange(384)[:, None] >= 96))
    assert dark.min(axis=0).tolist() == pytest.approx([96, 120], abs=3)
    assert dark.max(axis=0).tolist() == pytest.approx([192, 240], abs=3)


def test_narrow_images_are_not_blown_up():
    assert draw_regions(Image.new("RGB", (10, 12000)), [[1, 1, 9, 11000]]).size == (10, 12000)
    assert draw_regions(Image.new("RGB", (10, 1024)), [[1, 1, 9, 1000]]).size == (40, 4096)


@pytest.mark.parametrize("weights", [None, [], [0.0]])
def test_no_regions_and_no_weight_are_drawn_too(weights):
    boxes = [[1, 1, 9, 9]] if weights == [0.0] else []
    assert draw_regions(Image.new("L", (500, 10)), boxes, weights).size == (500, 10)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"weights": [1.0]}, "1 weights"), ({"labels": ["a"] * 3}, "3 labels")]
)
def test_numbers_must_agree(kwargs, message):
    with pytest.raises(ValueError, match=f"{message} for 2 boxes; expected one for each"):
        draw_regions(Image.new("RGB", (50, 50)), [[0, 0, 9, 9]] * 2, **kwargs)


def test_lines_of_text_go_below_the_image():
    sheet = captioned(Image.new("RGB", (240, 40), "red"), ["What is it?", "a cat"])
    assert sheet.size == (480, 80 + 48)  # enlarged, so that it can be read
    pixels = np.asarray(sheet)
    assert (pixels[:80] == (255, 0, 0)).all()
    for top in (84, 104):
        assert (pixels[top : top + 20] < 100).any()


def test_images_lie_in_a_grid():
    sheet = grid([Image.new("RGB", (20 + i, 10), (i, 0, 0)) for i in range(5)], columns=3, gap=4)
    assert sheet.size == (3 * 28 + 4, 2 * 14 + 4)
    pixels = np.asarray(sheet)
    assert [pixels[y, x, 0] for y in (5, 19) for x in (5, 33, 61)] == [0, 1, 2, 3, 4, 255]
    with pytest.raises(ValueError, match="no images to lay out"):
        grid([])


def test_curves_and_table(tmp_path):
    lines = ['{"step": 1, "loss": 2.0}', '{"step": 2, "dev_accuracy": 40.0}', '{"step": 2, "loss": 1.0}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
    with Image.open(plot_curves(tmp_path, "title")) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(maxcolors=10**6)}
    assert {(31, 119, 180), (255, 127, 14)} <= colors  # the loss and the metric
    assert table([["a", "bb"], ["ccc", "d"]]) == "a    bb\n---  --\nccc  d"
