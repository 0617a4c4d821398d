"""Boxes, checks of regions, and regions from detectors of several families."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_detectors import CONFIGS, IMAGE_SIZE, NUM_CLASSES, NUM_QUERIES, images, tiny_detector
from torch import nn
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrImageProcessorPil,
    DetrConfig,
    DetrImageProcessorPil,
    RTDetrImageProcessorPil,
    YolosImageProcessorPil,
)

from modeling_visualbert.hub_code.configuration_region_encoder import QueryRegionEncoderConfig
from modeling_visualbert.hub_code.modeling_region_encoder import QueryRegionEncoder, best_classes
from modeling_visualbert.hub_code.regions_visualbert import (
    box_geometry,
    box_iou,
    center_to_corners,
    check_regions,
    corners_to_center,
    encode_boxes,
    find_regions,
    pad_regions,
    scale_boxes,
    split_regions,
    suppress_overlaps,
)

FAMILIES = list(CONFIGS)
PROCESSORS = {
    "d_fine": RTDetrImageProcessorPil,
    "rt_detr": RTDetrImageProcessorPil,
    "detr": DetrImageProcessorPil,
    "conditional_detr": ConditionalDetrImageProcessorPil,
    "yolos": YolosImageProcessorPil,
}
close = {"atol": 1e-5, "rtol": 1e-5}


class StandInDetector(nn.Module):
    """Returns what it was given, as a detector would."""

    def __init__(self, boxes, logits, states, num_labels):
        super().__init__()
        self.config = SimpleNamespace(num_labels=num_labels)
        self.found = SimpleNamespace(pred_boxes=boxes, logits=logits, last_hidden_state=states)

    def forward(self, pixel_values, return_dict=True):
        return self.found


def random_corners(generator, *shape):
    low, size = torch.rand(2, *shape, 2, generator=generator)
    return torch.cat((low * 0.7, low * 0.7 + size * 0.3), dim=-1)


def encoder_with(family="yolos", **fields):
    """An encoder over a tiny detector; keeps everything unless told otherwise."""
    keep_all = {"score_threshold": 0.0, "nms_threshold": 1.0}
    return QueryRegionEncoder.from_detector(tiny_detector(family), **{**keep_all, **fields}).eval()


def stand_in_encoder(scores, boxes=None, **fields):
    """An encoder whose detector finds the given `scores` [B, Q] of class 2 (others less) at the given corner boxes."""
    generator = torch.Generator().manual_seed(5)
    encoder = encoder_with(**{"geometry_features": False, **fields})
    boxes = random_corners(generator, *scores.shape) if boxes is None else boxes
    logits = torch.full((*scores.shape, NUM_CLASSES), -20.0)
    logits[..., 2] = torch.logit(scores)
    states = torch.randn(*scores.shape, 16, generator=generator)
    encoder.detector = StandInDetector(corners_to_center(boxes), logits, states, NUM_CLASSES)
    return encoder, boxes, states


def survivors_by_loop(boxes, keep, threshold):
    """Non-maximum suppression of one image, one box after another."""
    chosen = []
    for i in range(len(boxes)):
        if keep[i] and all(iou_by_hand(boxes[i].tolist(), boxes[j].tolist()) <= threshold for j in chosen):
            chosen.append(i)
    return chosen


def iou_by_hand(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


# ---------------------------------------------------------------------------------------------------------- boxes


def test_corners_and_centers_are_inverse():
    corners = random_corners(torch.Generator().manual_seed(0), 4, 7)
    torch.testing.assert_close(center_to_corners(corners_to_center(corners)), corners)
    assert corners_to_center(torch.tensor([1.0, 2.0, 5.0, 10.0])).tolist() == [3.0, 6.0, 4.0, 8.0]


def test_iou_equals_counting_cells():
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        low = torch.randint(0, 8, (2, 2), generator=generator)
        boxes = torch.cat((low, low + torch.randint(0, 5, (2, 2), generator=generator)), dim=1)
        cells = torch.zeros(2, 12, 12, dtype=torch.bool)
        for cell, (x1, y1, x2, y2) in zip(cells, boxes.tolist(), strict=True):
            cell[y1:y2, x1:x2] = True
        union = int((cells[0] | cells[1]).sum())
        expected = int((cells[0] & cells[1]).sum()) / union if union else 0.0
        assert box_iou(boxes[:1].float(), boxes[1:].float()).item() == pytest.approx(expected)


def test_iou_is_pairwise_and_batched():
    generator = torch.Generator().manual_seed(2)
    first, second = random_corners(generator, 2, 3), random_corners(generator, 2, 5)
    found = box_iou(first, second)
    assert found.shape == (2, 3, 5) and found.count_nonzero() > 0
    for b, n, m in np.ndindex(2, 3, 5):
        expected = iou_by_hand(first[b, n].tolist(), second[b, m].tolist())
        assert found[b, n, m].item() == pytest.approx(expected, abs=1e-6)


def test_scale_takes_height_first():
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    assert scale_boxes(boxes, (200, 400)).tolist() == [[100.0, 100.0, 300.0, 200.0]]
    assert scale_boxes(boxes, torch.tensor([200, 400])).tolist() == [[100.0, 100.0, 300.0, 200.0]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32])
def test_boxes_of_any_type_of_numbers_are_normalised(dtype):
    found = encode_boxes([torch.tensor([[30, 15, 60, 45]], dtype=dtype), []], [(60, 120), (30, 40)])
    assert found["boxes_unit"].dtype == torch.float32 and found["boxes_mask"].tolist() == [[1], [0]]
    expected = torch.tensor([[[0.25, 0.25, 0.5, 0.75]], [[0.0] * 4]])
    torch.testing.assert_close(found["boxes_unit"], expected)


def test_geometry_numbers():
    numbers = box_geometry(torch.tensor([0.25, 0.5, 0.75, 0.625]))
    assert numbers.tolist() == [0.25, 0.5, 0.75, 0.625, 0.5, 0.5625, 0.5, 0.125, 0.0625]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.6])
def test_suppression_equals_a_plain_loop(threshold):
    generator = torch.Generator().manual_seed(3)
    suppressed = 0
    for _ in range(20):
        boxes = random_corners(generator, 3, 15)
        keep = torch.rand(3, 15, generator=generator) < 0.8
        found = suppress_overlaps(boxes, keep, threshold)
        for row in range(3):
            assert found[row].nonzero().flatten().tolist() == survivors_by_loop(boxes[row], keep[row], threshold)
        suppressed += int(keep.sum() - found.sum())
    assert suppressed > 0


# ------------------------------------------------------------------------------------------------- regions as data


def good_regions(**changes):
    regions = {
        "visual_embeds": np.arange(12, dtype=np.float32).reshape(3, 4),
        "boxes": [[0, 0, 10, 10], [5, 5, 20, 15], [0, 0, 40, 30]],
        "scores": [0.9, 0.5, 0.4],
        "class_ids": [1, 0, 2],
        "image_size": (30, 40),
    }
    return {**regions, **changes}


def with_row(key, row, value):
    array = np.array(good_regions()[key], dtype=np.float32)
    array[row] = value
    return {key: array}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": [1]}, "image 7: unknown key 'features'"),
        ({"visual_embeds": None}, "image 7: key 'visual_embeds' is missing"),
        ({"visual_embeds": np.zeros(4)}, r"'visual_embeds' has shape \(4,\)"),
        ({"visual_embeds": np.zeros((3, 5))}, "dim 5, this model expects 4"),
        ({"visual_embeds": [["a", "b", "c", "d"]] * 3}, "'visual_embeds' holds .*expected numbers"),
        (with_row("visual_embeds", 2, np.nan), "'visual_embeds': row 2 holds NaN or infinity"),
        (with_row("visual_embeds", 1, -np.inf), "'visual_embeds': row 1 holds NaN or infinity"),
        ({"boxes": np.zeros((2, 4))}, r"'boxes' has shape \(2, 4\); expected \(3, 4\)"),
        (with_row("boxes", 1, [0, np.nan, 1, 1]), "'boxes': row 1 holds NaN or infinity"),
        (with_row("boxes", 2, [9, 0, 3, 5]), "'boxes': row 2 is inverted"),
        (with_row("boxes", 0, [0, 9, 5, 3]), "'boxes': row 0 is inverted"),
        (with_row("boxes", 1, [0, 0, 44, 5]), "'boxes': row 1 .*outside the image of 40 x 30"),
        (with_row("boxes", 1, [0, 0, 5, 34]), "'boxes': row 1 .*outside the image of 40 x 30"),
        (with_row("boxes", 0, [-3, 0, 5, 5]), "'boxes': row 0 .*outside the image of 40 x 30"),
        (with_row("boxes", 1, [0, 0, 41.5, 5]), "'boxes': row 1 .*outside the image of 40 x 30"),
        (
            {"boxes": np.array(good_regions()["boxes"]) / [40, 30, 40, 30]},
            r"'boxes': all boxes lie in 0..1 \(row 0: \[0.0, 0.0, 0.25, .*\]\), but the image has 40 x 30 pixels",
        ),
        ({"scores": [0.5]}, r"'scores' has shape \(1,\); expected \(3,\)"),
        (with_row("scores", 1, np.nan), "'scores'.*row 1.*NaN"),
        ({"class_ids": np.zeros((3, 1))}, r"'class_ids' has shape \(3, 1\)"),
        ({"image_size": (30, 40, 3)}, r"'image_size' has shape \(3,\); expected \(2,\)"),
    ],
)
def test_check_names_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=f"^image 7.*{message.removeprefix('image 7')}"):
        check_regions(good_regions(**changes), region_dim=4, name="image 7")


def test_check_returns_tensors():
    regions = good_regions(visual_embeds=good_regions()["visual_embeds"].astype(np.float16), scores=None)
    regions["boxes"] = np.array(regions["boxes"], dtype=np.float64) + 0.9  # a detector overshoots by a pixel
    regions["visual_embeds"].flags.writeable = False
    checked = check_regions(regions, region_dim=None)
    assert set(checked) == {"visual_embeds", "boxes", "class_ids", "image_size"}
    assert checked["visual_embeds"].dtype == checked["boxes"].dtype == torch.float32
    assert checked["visual_embeds"].tolist() == good_regions()["visual_embeds"].tolist()


def test_boxes_without_area_or_in_a_tiny_image_are_not_taken_for_normalised():
    for boxes, size in ((np.zeros((3, 4)), (30, 40)), ([[0, 0, 1, 1]] * 3, (2, 2))):
        assert len(check_regions(good_regions(boxes=boxes, image_size=size), region_dim=4)["boxes"]) == 3


def test_padding_and_splitting_are_inverse():
    generator = torch.Generator().manual_seed(4)
    sizes = [(30, 40), (100, 50), (8, 8)]
    images_in = [
        {"visual_embeds": torch.randn(n, 4, generator=generator), "boxes": random_corners(generator, n)}
        for n in (2, 0, 3)
    ]
    batch = pad_regions(images_in)
    assert batch["visual_attention_mask"].tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert batch["visual_embeds"].shape == (3, 3, 4)
    assert batch["visual_embeds"][0, 2:].abs().sum() == batch["visual_embeds"][1].abs().sum() == 0
    batch["boxes_unit"] = torch.nn.utils.rnn.pad_sequence([p["boxes"] for p in images_in], batch_first=True)
    batch["scores"] = torch.arange(9.0).view(3, 3)
    for before, after, size in zip(images_in, split_regions(batch, sizes), sizes, strict=True):
        assert torch.equal(after["visual_embeds"], before["visual_embeds"])
        assert torch.equal(after["boxes"], scale_boxes(before["boxes"], size))
        assert after["image_size"].tolist() == list(size) and "class_ids" not in after
    assert [p["scores"].tolist() for p in split_regions(batch, sizes)] == [[0.0, 1.0], [], [6.0, 7.0, 8.0]]
    with pytest.raises(ValueError, match="2 image sizes for regions of 3 images"):
        split_regions(batch, sizes[:2])


@pytest.mark.parametrize("writeable", [True, False])
def test_arrays_that_may_not_be_written_are_copied(writeable):
    """PyTorch warns of tensors that share a read-only array; what may be written is shared."""
    features = np.ones((2, 3), np.float32)
    features.flags.writeable = writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = check_regions({"visual_embeds": features}, 3)["visual_embeds"]
    tensor += 1
    assert features[0, 0] == (2 if writeable else 1)


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_pixels_are_given_in_the_type_of_the_encoder(dtype):
    encoder = encoder_with("detr").to(torch.bfloat16)
    inputs = {"pixel_values": images(2), "image_sizes": torch.tensor([[64, 96], [32, 48]])}
    first, second = find_regions(encoder, inputs, dtype)
    assert {first[name].dtype for name in ("visual_embeds", "boxes", "scores")} == {dtype or torch.bfloat16}
    assert first["class_ids"].dtype == torch.long and second["image_size"].tolist() == [32, 48]


# -------------------------------------------------------------------------------------------------------- encoder


@pytest.mark.parametrize("family", FAMILIES)
def test_regions_of_a_family(family):
    encoder = encoder_with(family, max_regions=7)
    found = encoder(images())
    assert found.visual_embeds.shape == (3, 7, encoder.config.region_dim) == (3, 7, 16 + 9)
    assert found.boxes_unit.shape == (3, 7, 4) and found.scores.shape == found.class_ids.shape == (3, 7)
    assert (found.scores.diff(dim=1) <= 0).all() and found.scores.max() > found.scores.min()
    assert found.boxes_unit.min() >= 0 and found.boxes_unit.max() <= 1
    assert (found.boxes_unit[..., 2:] >= found.boxes_unit[..., :2]).all()
    assert found.class_ids.min() >= 0 and found.class_ids.max() < NUM_CLASSES
    torch.testing.assert_close(found.visual_embeds[..., 16:], box_geometry(found.boxes_unit))


@pytest.mark.parametrize("family", FAMILIES)
def test_best_region_agrees_with_the_library(family):
    """The image processor of each family decodes the detector's output in its own way."""
    encoder, pixels = encoder_with(family), images()
    raw = encoder.detector(pixels)
    theirs = PROCESSORS[family]().post_process_object_detection(raw, threshold=0.0, target_sizes=[IMAGE_SIZE] * 3)
    ours = encoder(pixels)
    for row, found in enumerate(theirs):
        best = found["scores"].argmax()
        torch.testing.assert_close(ours.scores[row, 0], found["scores"][best])
        assert ours.class_ids[row, 0] == found["labels"][best]
        inside = found["boxes"][best].clamp(min=0).minimum(torch.tensor([*IMAGE_SIZE[::-1], *IMAGE_SIZE[::-1]]))
        torch.testing.assert_close(scale_boxes(ours.boxes_unit[row, 0], IMAGE_SIZE), inside, **close)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_alone_gives_the_same_regions(family):
    encoder, pixels = encoder_with(family), images()
    together = encoder(pixels)
    for row in range(len(pixels)):
        single = encoder(pixels[row : row + 1])
        for key, value in single.items():
            torch.testing.assert_close(value[0], together[key][row], atol=1e-3, rtol=1e-3)
    assert (together.visual_embeds[0] - together.visual_embeds[1]).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_the_query_states(family):
    encoder, pixels = encoder_with(family, geometry_features=False), images()
    states = encoder.detector(pixels).last_hidden_state[:, -NUM_QUERIES:]
    found = encoder(pixels)
    assert found.visual_embeds.shape == (3, NUM_QUERIES, 16)
    for row in range(3):
        rows = {tuple(state) for state in states[row].tolist()}
        assert {tuple(state) for state in found.visual_embeds[row].tolist()} == rows


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(family, tmp_path):
    encoder, pixels = encoder_with(family, max_regions=5, nms_threshold=0.4), images()
    encoder.fit_standardisation([{"pixel_values": pixels}])
    encoder.save_pretrained(tmp_path)
    again = QueryRegionEncoder.from_pretrained(tmp_path)
    assert type(again.config.detector_config) is type(encoder.config.detector_config)
    assert again.config.max_regions == 5 and again.feature_std.min() != 1.0
    for key, value in encoder(pixels).items():
        assert torch.equal(value, again(pixels)[key]), key


def test_a_checkpoint_that_was_never_standardised_is_left_as_it_is(tmp_path):
    encoder = encoder_with("detr")
    encoder.fit_standardisation([{"pixel_values": images()}])
    encoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name not in ("feature_mean", "feature_std")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    again = QueryRegionEncoder.from_pretrained(tmp_path)
    assert (again.feature_mean == 0).all() and (again.feature_std == 1).all()


@pytest.mark.parametrize("best", range(NUM_CLASSES))
def test_any_class_can_be_the_best_but_no_object(best):
    logits = torch.zeros(1, 2, NUM_CLASSES + 1)
    logits[..., best], logits[..., -1] = 2.0, 5.0
    scores, ids = best_classes(logits, NUM_CLASSES)
    assert ids.tolist() == [[best, best]]
    torch.testing.assert_close(scores, logits.softmax(dim=-1)[..., best])
    alone, ids = best_classes(logits[..., :-1], NUM_CLASSES)
    assert ids.tolist() == [[best, best]]
    torch.testing.assert_close(alone, torch.full((1, 2), 2.0).sigmoid())


def test_a_fingerprint_is_of_what_an_encoder_does_not_of_where_it_came_from(tmp_path):
    encoder = encoder_with("detr")
    before = encoder.fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", before)
    encoder.config.auto_map = {"AutoModel": "file.Class"}
    encoder.config.architectures = ["Another"]
    encoder.save_pretrained(tmp_path)
    assert encoder.fingerprint() == QueryRegionEncoder.from_pretrained(tmp_path).fingerprint() == before
    encoder.config.max_regions -= 1
    assert encoder.fingerprint() != before
    encoder.config.max_regions += 1
    encoder.feature_mean[0] += 1
    assert encoder.fingerprint() != before


def test_logits_with_a_no_object_class_are_compared_by_softmax():
    encoder = encoder_with("detr", geometry_features=False)
    logits = torch.tensor([[[0.0, 3.0, 1.0, 0.0, 0.0, 5.0]]])
    encoder.detector = StandInDetector(torch.full((1, 1, 4), 0.5), logits, torch.zeros(1, 1, 16), NUM_CLASSES)
    found = encoder.detect(None)
    torch.testing.assert_close(found["scores"], logits.softmax(-1)[..., 1])
    assert found["class_ids"].item() == 1


def test_regions_below_the_threshold_become_padding_at_the_end():
    scores = torch.tensor([[0.3, 0.9, 0.1, 0.7], [0.1, 0.05, 0.15, 0.02], [0.8, 0.6, 0.7, 0.9]])
    encoder, boxes, states = stand_in_encoder(scores, score_threshold=0.25)
    found = encoder(None)
    assert found.visual_attention_mask.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert found.class_ids.unique().tolist() == [2]
    for row, order in enumerate([[1, 3, 0], [], [3, 0, 2, 1]]):
        torch.testing.assert_close(found.scores[row, : len(order)], scores[row, order])
        torch.testing.assert_close(found.boxes_unit[row, : len(order)], boxes[row, order])
        assert torch.equal(found.visual_embeds[row, : len(order)], states[row, order])


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5])
def test_selection_equals_a_plain_loop(threshold):
    generator = torch.Generator().manual_seed(6)
    scores = torch.rand(6, 20, generator=generator)
    boxes = random_corners(generator, 6, 5).repeat(1, 4, 1)  # four boxes about each object
    boxes = corners_to_center(boxes) * (1 + 0.2 * torch.rand(6, 20, 4, generator=generator))
    boxes = center_to_corners(boxes).clamp(0, 1)
    encoder, _, states = stand_in_encoder(scores, boxes, score_threshold=0.2, nms_threshold=threshold, max_regions=12)
    found = encoder(None)
    for row in range(6):
        best = scores[row].argsort(descending=True)[:12]
        chosen = best[survivors_by_loop(boxes[row, best], scores[row, best] >= 0.2, threshold)]
        count = int(found.visual_attention_mask[row].sum())
        assert found.visual_attention_mask[row].tolist() == [1] * count + [0] * (12 - count)
        assert torch.equal(found.visual_embeds[row, :count], states[row, chosen])
    assert (found.visual_attention_mask.sum(dim=1) < (scores.topk(12).values >= 0.2).sum(dim=1)).all()


def test_a_given_box_gets_the_feature_of_the_query_found_there():
    """Whatever the order, and whether or not that query would have been kept."""
    scores = torch.tensor([[0.3, 0.9, 0.1, 0.7], [0.6, 0.5, 0.8, 0.4]])
    corners = [[0.0, 0.0, 0.2, 0.2], [0.3, 0.0, 0.5, 0.2], [0.0, 0.4, 0.2, 0.6], [0.5, 0.5, 0.9, 0.9]]
    encoder, boxes, states = stand_in_encoder(scores, torch.tensor([corners] * 2), score_threshold=0.25)
    order = torch.tensor([[2, 0, 3], [1, 1, 2]])
    given = boxes[torch.arange(2)[:, None], order]
    found = encoder(None, boxes_unit=given)
    assert torch.equal(found.visual_embeds, states[torch.arange(2)[:, None], order])
    assert torch.equal(found.boxes_unit, given) and found.visual_attention_mask.tolist() == [[1] * 3] * 2
    torch.testing.assert_close(found.scores, scores.gather(1, order))
    assert found.class_ids.unique().tolist() == [2]


def test_a_given_box_between_queries_gets_the_one_with_most_overlap_times_score():
    found_boxes = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.6, 0.6, 0.9, 0.9]]])
    given = torch.tensor([[[0.0, 0.0, 0.44, 0.4], [0.06, 0.0, 0.5, 0.4], [0.5, 0.5, 0.9, 0.9]]])
    for scores, best in (([0.9, 0.9, 0.3], [0, 1, 2]), ([0.9, 0.2, 0.1], [0, 0, 2]), ([0.1, 0.9, 0.1], [1, 1, 2])):
        encoder, _, states = stand_in_encoder(torch.tensor([scores]), found_boxes)
        assert torch.equal(encoder(None, boxes_unit=given).visual_embeds[0], states[0, best])


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
def test_the_whole_image_is_the_mean_of_what_would_be_found(threshold):
    scores = torch.tensor([[0.3, 0.9, 0.1, 0.7]])
    encoder, _, states = stand_in_encoder(scores, score_threshold=threshold)
    encoder.feature_mean.fill_(0.5)
    encoder.feature_std.fill_(2.0)
    given = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.98]]])
    whole, large = encoder(None, boxes_unit=given).visual_embeds[0]
    kept = ((states - 0.5) / 2.0)[0, scores[0] >= threshold]
    torch.testing.assert_close(whole, kept.mean(dim=0) if len(kept) else torch.zeros(16))
    assert any(torch.equal(large, state) for state in (states[0] - 0.5) / 2.0)  # not quite the whole image: a box


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_found_and_given_again_have_the_same_features(family):
    encoder, pixels = encoder_with(family, max_regions=5, score_threshold=0.2, nms_threshold=0.3), images()
    encoder.fit_standardisation([{"pixel_values": pixels}])
    found = encoder(pixels)
    again = encoder(pixels, boxes_unit=found.boxes_unit, boxes_mask=found.visual_attention_mask)
    assert found.visual_attention_mask.sum() > 3
    for key in ("visual_attention_mask", "boxes_unit"):
        assert torch.equal(again[key], found[key])
    # Where a more confident query lies about the same place, that one is described; its geometry stays that of the box.
    keep = found.visual_attention_mask.bool()
    torch.testing.assert_close(again.visual_embeds[keep][:, 16:], found.visual_embeds[keep][:, 16:], **close)
    same = (again.visual_embeds - found.visual_embeds).abs().amax(dim=-1)[keep] < 1e-4
    assert same.float().mean() > 0.7
    assert again.visual_embeds[~keep].abs().sum() == 0


@pytest.mark.parametrize("family", ["d_fine", "detr"])
def test_given_boxes_alone_padded_and_in_a_batch(family):
    encoder, pixels = encoder_with(family, score_threshold=0.2, nms_threshold=0.3), images()
    given = random_corners(torch.Generator().manual_seed(8), 3, 4)
    given[:, 0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    mask = (torch.arange(4) < torch.tensor([[4], [2], [3]])).long()
    together = encoder(pixels, boxes_unit=given * mask[..., None], boxes_mask=mask)
    assert torch.equal(together.visual_attention_mask, mask)
    assert together.visual_embeds[~mask.bool()].abs().sum() == 0
    for row, count in enumerate(mask.sum(dim=1).tolist()):
        alone = encoder(pixels[row : row + 1], boxes_unit=given[row : row + 1, :count])
        for key, value in alone.items():
            torch.testing.assert_close(value[0], together[key][row, :count], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(together.visual_embeds[..., 16:], box_geometry(given) * mask[..., None])
    assert (together.visual_embeds[0, 0, :16] - together.visual_embeds[1, 0, :16]).abs().max() > 0.01


def test_boxes_are_cut_at_the_border():
    outside = torch.tensor([[[-0.5, 0.25, 0.5, 1.5]]])
    encoder, _, _ = stand_in_encoder(torch.tensor([[0.9]]), outside)
    torch.testing.assert_close(encoder(None).boxes_unit, torch.tensor([[[0.0, 0.25, 0.5, 1.0]]]))


def test_standardised_regions_have_mean_zero_and_deviation_one():
    encoder = encoder_with("d_fine", score_threshold=0.5, nms_threshold=0.7)
    batches = [{"pixel_values": images(seed=seed)} for seed in range(4)]
    before = encoder(**batches[0])
    encoder.fit_standardisation(iter(batches))
    found = [encoder(**batch) for batch in batches]
    rows = torch.cat([f.visual_embeds[f.visual_attention_mask.bool()] for f in found])
    assert 0 < len(rows) < 4 * 3 * NUM_QUERIES
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(25), atol=3e-4, rtol=0)
    expected_std = torch.ones(25)
    expected_std[-9:] = 3.0  # the box's geometry weighs more
    torch.testing.assert_close(rows.std(dim=0, correction=0), expected_std, atol=3e-3, rtol=0)
    restored = found[0].visual_embeds * encoder.feature_std + encoder.feature_mean
    torch.testing.assert_close(restored, before.visual_embeds, atol=1e-4, rtol=1e-4)
    encoder.fit_standardisation(batches)  # measures raw features, so it may be repeated
    torch.testing.assert_close(encoder(**batches[0]).visual_embeds, found[0].visual_embeds, atol=1e-4, rtol=1e-4)


def test_standardisation_without_a_region():
    encoder = encoder_with(score_threshold=1.0)
    with pytest.raises(ValueError, match="score_threshold"):
        encoder.fit_standardisation([{"pixel_values": images()}])


def test_pixel_mask_reaches_the_detector():
    encoder, pixels = encoder_with("detr"), images(1)
    mask = torch.ones(1, *IMAGE_SIZE, dtype=torch.long)
    mask[:, :, 64:] = 0
    hidden = encoder(pixels, mask).visual_embeds
    assert (hidden - encoder(pixels).visual_embeds).abs().max() > 1e-3


def test_configuration():
    config = QueryRegionEncoderConfig(detector_config=CONFIGS["detr"]().to_dict())
    assert isinstance(config.detector_config, DetrConfig)
    assert config.region_dim == 25
    assert QueryRegionEncoderConfig(detector_config=config.detector_config, geometry_features=False).region_dim == 16
    again = QueryRegionEncoderConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="model_type"):
        QueryRegionEncoderConfig(detector_config={"d_model": 16})
    with pytest.raises(ValueError, match="detector_config"):
        QueryRegionEncoder(QueryRegionEncoderConfig())


def test_detector_inside_is_the_given_one(tmp_path):
    detector = tiny_detector("rt_detr")
    detector.save_pretrained(tmp_path)
    encoder = QueryRegionEncoder.from_detector(AutoModelForObjectDetection.from_pretrained(tmp_path)).eval()
    assert torch.equal(encoder.detector(images()).logits, detector(images()).logits)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_settings_of_the_detector_that_are_no_truth_values_are_refused(name):
    with pytest.raises(ValueError, match=rf"^detector_config.{name} is -1; expected true or false$"):
        QueryRegionEncoderConfig(detector_config={"model_type": "d_fine", name: -1})
