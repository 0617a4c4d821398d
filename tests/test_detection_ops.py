"""Primitive operations of detectors against recorded numbers, and against plain loops where those are clearer."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detector_golden import golden, golden_set  # noqa: F401
from torch.nn import functional as F

from modeling_visualbert.hub_code import detection_ops as ops

both_sets = pytest.mark.usefixtures("golden_set")
THRESHOLDS = (0.3, 0.5, 0.7)
SCALES = {"out7": (7, 7, 1 / 16, 1.0), "out14": (14, 14, 1 / 16, 1.0), "out3x5_scale0.25": (3, 5, 0.25, 0.25)}
tight = {"atol": 1e-5, "rtol": 1e-5}


def random_boxes(count, seed=0, extent=100.0, side=40.0):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * extent
    return torch.cat((low, low + torch.rand(count, 2, generator=generator) * side), dim=1)


def nms_by_loop(boxes, scores, threshold, legacy=False, inclusive=False, labels=None):
    """The definition, one box after another."""
    plus, kept = int(legacy), []

    def iou(a, b):
        sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2]) + plus).clamp(min=0)
        areas = [(box[2] - box[0] + plus) * (box[3] - box[1] + plus) for box in (a, b)]
        return sides[0] * sides[1] / (areas[0] + areas[1] - sides[0] * sides[1])

    for i in scores.argsort(descending=True, stable=True).tolist():
        beaten = False
        for j in kept:
            if labels is not None and labels[i] != labels[j]:
                continue
            overlap = iou(boxes[i], boxes[j])
            overlap = overlap if legacy else overlap.double()  # threshold: float in legacy code, double in torchvision
            beaten |= overlap >= threshold if inclusive else overlap > threshold
        if not beaten:
            kept.append(i)
    return kept


# -------------------------------------------------------------------------------------------------- recorded numbers


@both_sets
def test_continuous_anchors():
    case = golden("ops")
    cells = ops.cell_anchors((64, 128, 256, 512), (0.5, 1.0, 2.0))
    torch.testing.assert_close(cells, case["anchors/cell"], **tight)
    torch.testing.assert_close(ops.grid_anchors(cells, (3, 4), 16), case["anchors/grid_3x4"], **tight)


@both_sets
def test_legacy_anchors():
    case = golden("ops")
    for level, (stride, size) in enumerate(zip((4, 8, 16, 32, 64), (32, 64, 128, 256, 512), strict=True), start=2):
        cells = ops.legacy_cell_anchors(stride, (size,), (0.5, 1.0, 2.0))
        assert torch.equal(cells, case[f"anchors_legacy/cell_stride{stride}_size{size}"])
        grid = case[f"anchors_legacy/grid_P{level}"]
        found = [
            ops.grid_anchors(cells.float(), (h, len(grid) // 3 // h), stride)
            for h in range(1, len(grid) // 3 + 1)
            if len(grid) // 3 % h == 0
        ]
        assert any(torch.equal(anchors, grid) for anchors in found)


@both_sets
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("name", "weights"), [("w1", (1.0, 1.0, 1.0, 1.0)), ("w10_5", (10.0, 10.0, 5.0, 5.0))])
def test_box_deltas(name, weights, legacy):
    prefix = "box_coder_legacy" if legacy else "box_coder"
    case = golden("ops").group(f"{prefix}/")
    encoded = ops.encode_boxes(case["reference_boxes"], case["proposals"], weights, legacy)
    torch.testing.assert_close(encoded, case[f"{name}/encoded"], **tight)
    decoded = ops.decode_boxes(case[f"{name}/codes_k3"], case["proposals"], weights, legacy)
    torch.testing.assert_close(decoded, case[f"{name}/decoded_k3"], atol=1e-3, rtol=1e-5)
    back = ops.decode_boxes(encoded, case["proposals"], weights, legacy)
    torch.testing.assert_close(back, case["reference_boxes"], atol=1e-3, rtol=1e-5)


@both_sets
def test_clipping():
    case = golden("ops")
    assert torch.equal(ops.clip_boxes(case["clip/boxes"], case["clip/size_hw"].tolist()), case["clip/clipped"])
    size_hw = case["clip_legacy/size_wh"].flip(0).tolist()
    assert torch.equal(ops.clip_boxes(case["clip_legacy/boxes"], size_hw, legacy=True), case["clip_legacy/clipped"])
    sides = case["clip/clipped"][:, 2:] - case["clip/clipped"][:, :2]
    assert torch.equal((sides > 0).all(dim=1), case["clip/nonempty"].bool())


@both_sets
def test_pyramid_levels():
    case = golden("ops")
    for name in ("level_index", "level_index_detectron"):
        assert torch.equal(ops.fpn_levels(case["fpn_level/boxes"], 224, 4, 2, 5), case[f"fpn_level/{name}"])


@both_sets
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_nms(threshold):
    case = golden("ops")
    boxes, scores = case["nms/boxes"], case["nms/scores"]
    assert torch.equal(ops.nms(boxes, scores, threshold), case[f"nms/keep_by_score_{threshold}"])
    batched = ops.nms(boxes, scores, threshold, labels_N=case["batched_nms/labels"])
    assert torch.equal(batched, case[f"batched_nms/keep_by_score_{threshold}"])
    legacy = ops.nms(case["nms_legacy/boxes"], case["nms_legacy/scores"], threshold, legacy=True, inclusive=True)
    assert torch.equal(legacy.sort().values, case[f"nms_legacy/keep_ascending_{threshold}"])


@both_sets
def test_nms_at_exactly_the_threshold():
    case = golden("ops")
    assert torch.equal(ops.nms(case["nms_tie/boxes"], case["nms_tie/scores"], 0.5), case["nms_tie/keep_by_score_0.5"])
    boxes, scores = case["nms_legacy_tie/boxes"], case["nms_legacy_tie/scores"]
    kept = ops.nms(boxes, scores, 0.5, legacy=True, inclusive=True).sort().values
    assert torch.equal(kept, case["nms_legacy_tie/keep_cpu_0.5"])
    assert len(ops.nms(boxes, scores, 0.5, legacy=True)) > len(kept)


@both_sets
@pytest.mark.parametrize("name", SCALES)
def test_roi_pool(name):
    case = golden("ops").group("roi_pool/")
    down, across, scale, factor = SCALES[name]
    rois = case["rois"].clone()
    rois[:, 1:] *= factor
    assert torch.equal(ops.roi_pool(case["features"], rois, (down, across), scale), case[name])


@both_sets
@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_roi_align(sampling, aligned, layout):
    case = golden("ops").group("roi_align/")
    features = case["features"].contiguous(memory_format=layout)
    found = ops.roi_align(features, case["rois"], 7, 1 / 16, sampling, aligned)
    torch.testing.assert_close(found, case[f"out7_aligned{int(aligned)}_sampling{sampling}"], **tight)


@both_sets
@pytest.mark.parametrize("sampling", [0, 2])
def test_legacy_roi_align(sampling):
    case = golden("ops").group("roi_align_legacy/")
    found = ops.roi_align(case["features"], case["rois"], 7, 1 / 16, sampling)
    torch.testing.assert_close(found, case[f"out7_sampling{sampling}"], **tight)


@both_sets
@pytest.mark.parametrize("number", range(4))
def test_cv2_resize(number):
    case = golden("ops").group(f"cv2_resize/{number}/")
    found = ops.resize_by_factor(case["input_hwc"].numpy(), case["scale"].item())
    np.testing.assert_allclose(found, case["output_hwc"].numpy(), atol=1e-4, rtol=0)


@both_sets
@pytest.mark.parametrize("number", range(5))
def test_polygon_mask(number):
    case = golden("ops").group(f"polygon_mask/{number}/")
    polygons = [value.tolist() for key, value in sorted(case.items()) if key.startswith("polygon_")]
    found = ops.polygon_mask(case["box"].tolist(), polygons)
    assert np.array_equal(found, case["mask14"].numpy())


@both_sets
@pytest.mark.parametrize("number", range(3))
def test_caffe_pooling(number):
    case = golden("ops").group(f"ceil_maxpool/{number}/")
    assert torch.equal(F.max_pool2d(case["input"], 3, 2, padding=0, ceil_mode=True), case["output"])


# ------------------------------------------------------------------------------------------------------- plain loops


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9])
def test_nms_equals_a_plain_loop(threshold, legacy):
    for seed in range(4):
        boxes = random_boxes(60, seed, extent=60).round() if seed % 2 else random_boxes(60, seed, extent=60)
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(60, generator=generator).mul(20).round()  # many ties
        labels = torch.randint(3, (60,), generator=generator)
        for inclusive in (False, True) if threshold else (False,):
            found = ops.nms(boxes, scores, threshold, legacy, inclusive)
            assert found.tolist() == nms_by_loop(boxes, scores, threshold, legacy, inclusive)
        found = ops.nms(boxes, scores, threshold, legacy, labels_N=labels)
        assert found.tolist() == nms_by_loop(boxes, scores, threshold, legacy, labels=labels)


LAYOUTS = {
    "scattered": lambda generator: random_boxes(90, 1),
    "crowded": lambda generator: random_boxes(90, 2, extent=20.0, side=60.0),
    "clusters": lambda generator: random_boxes(3, 3).repeat(30, 1) + torch.rand(90, 4, generator=generator) * 2,
    "identical": lambda generator: torch.tensor([[1.0, 2, 9, 8]]).repeat(90, 1),
    "chain": lambda generator: torch.arange(90.0)[:, None] + torch.tensor([0.0, 0, 8, 8]),
    "without area": lambda generator: random_boxes(90, 4).round()[:, [0, 1, 0, 1]],
    "whole pixels": lambda generator: random_boxes(90, 5, extent=6.0, side=5.0).round(),  # IoUs at the threshold
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_nms_of_any_layout_equals_a_plain_loop(layout, legacy, monkeypatch):
    """Across blocks, with equal scores and with labels."""
    monkeypatch.setattr(ops, "_BLOCK", 16)
    generator = torch.Generator().manual_seed(7)
    boxes = LAYOUTS[layout](generator)
    scores = (torch.rand(90, generator=generator) * 20).round() / 20
    labels = torch.randint(3, (90,), generator=generator)
    for threshold, inclusive, of_class in (
        (0.3, False, None),
        (0.5, True, None),
        (0.5, False, labels),
        (0.7, False, None),
    ):
        found = ops.nms(boxes, scores, threshold, legacy, inclusive, of_class)
        assert found.tolist() == nms_by_loop(boxes, scores, threshold, legacy, inclusive, of_class)


@pytest.mark.parametrize("apart", [False, True])
def test_nms_needs_little_memory(apart):
    """Whether millions of pairs overlap or every box stays, the pairs are never all there at once."""
    if apart:
        boxes = torch.arange(6000.0)[:, None] * 100 + torch.tensor([0.0, 0, 8, 8])
    else:
        boxes = random_boxes(6000, extent=10.0, side=10.0) + torch.tensor([0.0, 0, 600, 600])
    scores = torch.rand(6000, generator=torch.Generator().manual_seed(0))
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = ops.nms(boxes, scores, 0.7)
    assert kept.tolist() == (scores.argsort(descending=True, stable=True) if apart else scores.argmax()[None]).tolist()
    assert max(event.self_cpu_memory_usage for event in profile.events()) < 2**24


def test_nms_of_none_one_and_boxes_without_area():
    assert ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    assert ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0.3]), 0.5).tolist() == [0]
    points = torch.tensor([[5.0, 5.0, 5.0, 5.0]] * 3)
    assert ops.nms(points, torch.tensor([0.1, 0.3, 0.2]), 0.5).tolist() == [1, 2, 0]


def test_a_long_chain_of_boxes():
    """Each box overlaps its neighbours only, so that keeping alternates along the whole chain."""
    left = torch.arange(200.0) * 4
    boxes = torch.stack((left, torch.zeros(200), left + 10, torch.full((200,), 10.0)), dim=1)
    kept = ops.nms(boxes, -left, 0.4)
    assert kept.tolist() == list(range(0, 200, 2))


def test_best_surviving_scores_equal_one_nms_for_each_class():
    boxes = random_boxes(80, 3)
    scores = torch.rand(80, 6, generator=torch.Generator().manual_seed(3))
    scores[:40, 2] = 0.25  # ties rank by index
    expected = torch.zeros(80)
    for k in range(6):
        kept = ops.nms(boxes, scores[:, k], 0.3, legacy=True)
        expected[kept] = torch.maximum(expected[kept], scores[kept, k])
    found = ops.best_surviving_scores(boxes, scores, 0.3, legacy=True)
    assert torch.equal(found, expected)
    assert (found == 0).any() and (found < scores.max(dim=1).values).any()
    far = torch.tensor([[0.0, 0.0, 1.0, 1.0], [50.0, 50.0, 60.0, 60.0]])
    assert torch.equal(ops.best_surviving_scores(far, scores[:2], 0.5), scores[:2].max(dim=1).values)


def test_rounding_is_that_of_c():
    numbers = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 2.4999998, -2.2, 3.0])
    assert ops._round_half_away(numbers).tolist() == [1.0, 2.0, 3.0, -1.0, -2.0, 0.0, 2.0, -2.0, 3.0]


def pool_by_loop(features, roi, size, scale):
    index, *corners = roi.tolist()
    x1, y1, x2, y2 = (math.floor(abs(c * scale) + 0.5) * (1 if c >= 0 else -1) for c in corners)
    height, width = features.shape[2:]
    step_y, step_x = max(y2 - y1 + 1, 1) / size, max(x2 - x1 + 1, 1) / size
    found = torch.zeros(features.shape[1], size, size)
    for i, j in np.ndindex(size, size):
        top, bottom = (min(max(e + y1, 0), height) for e in (math.floor(i * step_y), math.ceil((i + 1) * step_y)))
        left, right = (min(max(e + x1, 0), width) for e in (math.floor(j * step_x), math.ceil((j + 1) * step_x)))
        if bottom > top and right > left:
            found[:, i, j] = features[int(index), :, top:bottom, left:right].amax(dim=(1, 2))
    return found


def test_roi_pool_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 17, 23, generator=generator)
    boxes = random_boxes(30, 1, extent=200, side=350) - 60  # some outside, some larger than the map
    rois = torch.cat((torch.randint(2, (30, 1), generator=generator).float(), boxes), dim=1)
    found = ops.roi_pool(features, rois, (4, 4), 1 / 16)
    expected = torch.stack([pool_by_loop(features, roi, 4, 1 / 16) for roi in rois])
    assert torch.equal(found, expected)
    assert (expected == 0).any()
    beyond = torch.tensor([[1.0, 900.0, 900.0, 990.0, 990.0]])
    assert not ops.roi_pool(features, beyond, (4, 4), 1 / 16).any()


@pytest.mark.parametrize("pool", ["align", "adaptive", "max"])
def test_gradients_of_pooling(pool):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 2, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 3.0, 10.0, 60.0, 70.0], [0.0, 40.0, 30.0, 90.0, 79.0]], dtype=torch.float64)
    functions = {
        "align": lambda maps: ops.roi_align(maps, rois, 2, 1 / 16, 2),
        "adaptive": lambda maps: ops.roi_align(maps, rois, 2, 1 / 16, 0),
        "max": lambda maps: ops.roi_pool(maps, rois, (2, 2), 1 / 16),
    }
    assert torch.autograd.gradcheck(functions[pool], (features,))


def test_pooling_without_regions():
    features, none = torch.randn(1, 3, 4, 5), torch.zeros(0, 5)
    assert ops.roi_align(features, none, 7, 0.25, 2).shape == (0, 3, 7, 7)
    assert ops.roi_align(features, none, 7, 0.25, 0).shape == (0, 3, 7, 7)
    assert ops.roi_pool(features, none, (2, 3), 0.25).shape == (0, 3, 2, 3)


# ------------------------------------------------------------------------------------------------------- torchvision


@pytest.fixture
def fake_torchvision(monkeypatch):
    """Pretend that torchvision is installed with the given operators."""

    def install(**operators):
        monkeypatch.setattr(ops, "_torchvision_ops", SimpleNamespace(**operators))
        ops._torchvision_op.cache_clear()

    yield install
    monkeypatch.undo()
    ops._torchvision_op.cache_clear()


def test_torchvision_is_used_when_equal(fake_torchvision):
    calls = []
    fake_torchvision(roi_pool=lambda *arguments: calls.append(1) or ops._roi_pool(*arguments))
    features, rois = torch.randn(1, 3, 4, 5), torch.tensor([[0.0, 2.0, 2.0, 40.0, 40.0]])
    assert torch.equal(ops.roi_pool(features, rois, (2, 2), 1 / 16), ops._roi_pool(features, rois, (2, 2), 1 / 16))
    assert len(calls) == 2  # on the small example, and for us


def test_torchvision_is_not_used_when_it_differs(fake_torchvision):
    fake_torchvision(roi_align=lambda maps, rois, size, *_: torch.ones(len(rois), maps.shape[1], size, size))
    assert ops._torchvision_op("roi_align") is None
    features, rois = torch.randn(1, 3, 4, 5), torch.tensor([[0.0, 2.0, 2.0, 9.0, 9.0]])
    assert not torch.equal(ops.roi_align(features, rois, 2, 0.25), torch.ones(1, 3, 2, 2))


@pytest.mark.parametrize("sampling", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_an_operator_that_differs_in_one_mode_is_not_used(fake_torchvision, sampling, aligned):
    def theirs(*arguments):
        return ops._roi_align(*arguments) + 0.01 * (arguments[4:] == (sampling, aligned))

    fake_torchvision(roi_align=theirs)
    assert ops._torchvision_op("roi_align") is None


@pytest.mark.parametrize("place", [-1.0, 0.0, 3.5, 4.0, 6.0])
def test_samples_on_the_border_count_and_those_beyond_do_not(place):
    """One sample of a map of ones, 4 cells high and 6 wide, at a place above, beside or behind it."""
    for x, y in ((place, 2.0), (2.0, place)):
        rois = torch.tensor([[0.0, x - 1, y - 1, x + 1, y + 1]])
        inside = -1 <= x <= 6 and -1 <= y <= 4
        for nudged, expected in ((0.0, inside), (1e-3, inside and x + 1e-3 <= 6 and y + 1e-3 <= 4)):
            found = ops.roi_align(
                torch.ones(1, 1, 4, 6), rois + torch.tensor([0, nudged, nudged, nudged, nudged]), 1, 1.0, 1
            )
            assert found.item() == pytest.approx(float(expected))
