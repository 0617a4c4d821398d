"""The primitive operations of region detectors, vectorised: anchors, box codes, suppression, pooling of regions.

Two conventions meet here. *Continuous* boxes span x2 - x1 (bottom-up attention in PyTorch). *Legacy* boxes hold whole
pixels, so they span x2 - x1 + 1 (Detectron and what descends from it); functions take `legacy=True` for those. Numbers
agree with the original code bases, see `tests/test_detection_ops.py`. All boxes are x1, y1, x2, y2 in pixels of the
network's input, a RoI is a box with the index of its image in front.

Letters: N boxes or RoIs, E pairs of overlapping boxes, A anchors of a cell, K classes, C channels, H, W cells of a map.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

MAX_LOG_SCALE = math.log(1000.0 / 16)  # a box grows at most by this factor in one step
_CLASSES_AT_ONCE = 128
# Of suppression:
_PAIRS_OF_A_BOX = 12  # with more of them on average, boxes are looked at in blocks
_BLOCK, _ROWS = 256, 64  # boxes of a block, and how many are compared with all others at once
_ROUNDS = 16

try:
    from torchvision import ops as _torchvision_ops
except Exception:  # not installed, or built for another torch
    _torchvision_ops = None

# ------------------------------------------------------------------------------------------------------- anchors


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> torch.Tensor:
    """[A, 4] continuous anchors around the origin; sizes outer, ratios (height / width) inner; area is size squared."""
    widths = [math.sqrt(size**2 / ratio) for size in sizes for ratio in ratios]
    heights = [width * ratio for width, ratio in zip(widths, list(ratios) * len(sizes), strict=True)]
    half = torch.tensor([widths, heights], dtype=torch.float64).T / 2
    return torch.cat((-half, half), dim=1).float()


def legacy_cell_anchors(stride: int, sizes: Sequence[float], ratios: Sequence[float]) -> torch.Tensor:
    """[A, 4] anchors (float64) of Detectron: the cell (0, 0, stride - 1, stride - 1) in rounded shapes, then enlarged.

    Ratios outer, sizes inner.
    """
    center, anchors = (stride - 1) / 2, []
    for ratio in ratios:
        width = round(math.sqrt(stride**2 / ratio))
        height = round(width * ratio)
        for size in sizes:
            half_w, half_h = ((side * size / stride - 1) / 2 for side in (width, height))
            anchors.append((center - half_w, center - half_h, center + half_w, center + half_h))
    return torch.tensor(anchors, dtype=torch.float64)


def grid_anchors(cells_A4: torch.Tensor, size_hw: Sequence[int], stride: int) -> torch.Tensor:
    """[H * W * A, 4] anchors of every cell of a feature map, in the order row, column, anchor."""
    rows, columns = (
        torch.arange(n, device=cells_A4.device, dtype=cells_A4.dtype) * stride for n in (size_hw[0], size_hw[1])
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts_HW14 = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
    return (shifts_HW14 + cells_A4).reshape(-1, 4)


# --------------------------------------------------------------------------------------------------------- boxes


def encode_boxes(
    targets_N4: torch.Tensor, boxes_N4: torch.Tensor, weights: Sequence[float], legacy: bool = False
) -> torch.Tensor:
    """[N, 4] codes dx, dy, dw, dh that move `boxes` onto `targets`; inverse of [`decode_boxes`] below the size limit."""
    center, size = _center_and_size(boxes_N4, legacy)
    target_center, target_size = _center_and_size(targets_N4, legacy)
    codes_N4 = torch.cat(((target_center - center) / size, torch.log(target_size / size)), dim=-1)
    return codes_N4 * codes_N4.new_tensor(weights)


def decode_boxes(
    codes_NX: torch.Tensor, boxes_N4: torch.Tensor, weights: Sequence[float], legacy: bool = False
) -> torch.Tensor:
    """Apply codes [N, 4 K] (K codes for each box) to boxes [N, 4]: [N, 4 K] corner boxes."""
    center, size = _center_and_size(boxes_N4, legacy)
    codes_NK4 = codes_NX.unflatten(-1, (-1, 4)) / codes_NX.new_tensor(weights)
    new_center = codes_NK4[..., :2] * size[:, None] + center[:, None]
    new_half = codes_NK4[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * size[:, None] * 0.5
    return torch.cat((new_center - new_half, new_center + new_half - int(legacy)), dim=-1).flatten(1)


def _center_and_size(boxes: torch.Tensor, legacy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    size = boxes[..., 2:] - boxes[..., :2] + int(legacy)
    return boxes[..., :2] + 0.5 * size, size


def clip_boxes(boxes: torch.Tensor, size_hw: Sequence[float], legacy: bool = False) -> torch.Tensor:
    """[..., 4 K] boxes cut at the border: 0 .. W continuous, 0 .. W - 1 legacy (and the same for the height)."""
    height, width = (float(side) - int(legacy) for side in size_hw)
    limits = boxes.new_tensor([width, height, width, height]).repeat(boxes.shape[-1] // 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def box_areas(boxes: torch.Tensor, legacy: bool = False) -> torch.Tensor:
    """[...] areas of [..., 4] boxes."""
    return (boxes[..., 2] - boxes[..., 0] + int(legacy)) * (boxes[..., 3] - boxes[..., 1] + int(legacy))


def fpn_levels(
    boxes_N4: torch.Tensor, canonical_scale: float, canonical_level: int, lowest: int, highest: int
) -> torch.Tensor:
    """[N] pyramid level of each (legacy) box, minus `lowest`: a box of `canonical_scale` belongs to `canonical_level`."""
    scale_N = box_areas(boxes_N4, legacy=True).sqrt()
    level_N = torch.floor(canonical_level + torch.log2(scale_N / canonical_scale + 1e-6))
    return level_N.clamp(lowest, highest).long() - lowest


# --------------------------------------------------------------------------------------------------- suppression


def nms(
    boxes_N4: torch.Tensor,
    scores_N: torch.Tensor,
    threshold: float,
    legacy: bool = False,
    inclusive: bool = False,
    labels_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Greedy non-maximum suppression.

    Args:
        boxes_N4, scores_N: Boxes and their scores; equal scores rank by index.
        threshold: A box goes when its IoU with a better kept one is above this.
        legacy: Areas count whole pixels (+ 1).
        inclusive: A box goes at exactly the threshold too, as in the legacy CPU code (its CUDA code and torchvision
            compare with >). Needs a threshold above 0.
        labels_N: Boxes of different labels do not suppress one another ("batched" suppression).

    Returns:
        Indices of the kept boxes, best first. (The legacy code returns the same set by ascending index.)
    """
    plain = not legacy and not inclusive and labels_N is None
    if plain and (fast := _torchvision_op("nms")):
        return fast(boxes_N4, scores_N, threshold)
    return _nms(boxes_N4, scores_N, threshold, legacy, inclusive, labels_N)


def _nms(
    boxes_N4: torch.Tensor,
    scores_N: torch.Tensor,
    threshold: float,
    legacy: bool = False,
    inclusive: bool = False,
    labels_N: torch.Tensor | None = None,
) -> torch.Tensor:
    order_N = scores_N.argsort(descending=True, stable=True)
    sorted_N4, sorted_N = boxes_N4[order_N], None if labels_N is None else labels_N[order_N]
    # Pairs are found fastest where there are few; crowds have millions, of which the first box decides most.
    pairs = _pairs_up_to(_PAIRS_OF_A_BOX * len(order_N), sorted_N4, threshold, legacy, inclusive)
    if pairs is None:
        return order_N[_greedy_in_blocks(sorted_N4, threshold, legacy, inclusive, sorted_N)]
    first_E, second_E = pairs
    if sorted_N is not None:
        same_E = sorted_N[first_E] == sorted_N[second_E]
        first_E, second_E = first_E[same_E], second_E[same_E]
    return order_N[_greedy(first_E, second_E, len(order_N))]


def _greedy(first_E: torch.Tensor, second_E: torch.Tensor, count: int) -> torch.Tensor:
    """[N] bool: which boxes, sorted by score, stay when `first` < `second` means that the second would go.

    Repeats "who is beaten by those that stay" until nothing changes. A box whose longest chain of better neighbours has
    length d is right after d rounds and stays so: the result is that of the loop over boxes, in as many rounds as the
    longest chain. Where chains are long, the loop is run instead.
    """
    keep_N = torch.ones(count, dtype=torch.bool, device=first_E.device)
    for _ in range(_ROUNDS):
        now_N = torch.ones_like(keep_N)
        now_N[second_E[keep_N[first_E]]] = False
        if torch.equal(now_N, keep_N):
            return keep_N
        keep_N = now_N
    keep, in_order_E = [True] * count, first_E.argsort()
    for first, second in zip(first_E[in_order_E].tolist(), second_E[in_order_E].tolist(), strict=True):
        if keep[first]:  # all that could beat it have been looked at
            keep[second] = False
    return torch.tensor(keep, dtype=torch.bool, device=first_E.device)


def _greedy_in_blocks(
    boxes_N4: torch.Tensor, threshold: float, legacy: bool, inclusive: bool, labels_N: torch.Tensor | None
) -> torch.Tensor:
    """[N] bool: which boxes, sorted by score, stay; some at a time, all later boxes that they beat being dropped at once.

    What is left after a block is compared with the few boxes that stayed, never with those that went.
    """
    boxes_N4 = boxes_N4.float()
    keep_N = torch.zeros(len(boxes_N4), dtype=torch.bool, device=boxes_N4.device)
    left_M = torch.arange(len(boxes_N4), device=boxes_N4.device)
    while len(left_M):
        block_R, left_M = left_M[:_BLOCK], left_M[_BLOCK:]
        some_R4, labels_R = boxes_N4[block_R], None if labels_N is None else labels_N[block_R]
        beats_RR = _above(_pair_iou(some_R4[:, None], some_R4[None], legacy), threshold, legacy, inclusive)
        if labels_R is not None:
            beats_RR &= labels_R[:, None] == labels_R
        won_S = block_R[_greedy_of_matrix(beats_RR)]
        keep_N[won_S] = True
        beaten_M = torch.zeros(len(left_M), dtype=torch.bool, device=boxes_N4.device)
        left_5M = _columns(boxes_N4[left_M], legacy)
        for some_S in won_S.split(_ROWS):
            close_SM = _close(_columns(boxes_N4[some_S], legacy), left_5M, threshold)
            if labels_N is not None:
                close_SM &= labels_N[some_S, None] == labels_N[left_M]
            first_E, second_E = close_SM.nonzero().T
            overlaps_E = _pair_iou(boxes_N4[some_S[first_E]], boxes_N4[left_M[second_E]], legacy)
            beaten_M[second_E[_above(overlaps_E, threshold, legacy, inclusive)]] = True
        left_M = left_M[~beaten_M]
    return keep_N


def _greedy_of_matrix(beats_RR: torch.Tensor) -> torch.Tensor:
    """[R] bool: which boxes, sorted by score, stay when [i, j] says that i beats j. The loop over boxes, a bit for each."""
    packed = np.packbits(beats_RR.cpu().numpy(), axis=1, bitorder="little")
    gone, stays = 0, []
    for number, row in enumerate(packed):
        stays.append(not gone >> number & 1)
        if stays[-1]:
            gone |= int.from_bytes(row.tobytes(), "little")
    return torch.tensor(stays, dtype=torch.bool, device=beats_RR.device)


def best_surviving_scores(
    boxes_N4: torch.Tensor, scores_NK: torch.Tensor, threshold: float, legacy: bool = False
) -> torch.Tensor:
    """[N]: the largest of a box's K class scores with which it survives that class's suppression among *all* boxes.

    0 for a box that survives in no class. All classes share the boxes, so they share the overlaps, and the rounds of
    [`_greedy`] run for all of them at once.
    """
    first_E, second_E = overlapping_pairs(boxes_N4, threshold, legacy)
    # A few classes at a time: their numbers then stay near the processor.
    best = [_best_of_classes(some_NK, first_E, second_E) for some_NK in scores_NK.split(_CLASSES_AT_ONCE, dim=1)]
    return torch.stack(best).amax(dim=0)


def _best_of_classes(scores_NK: torch.Tensor, first_E: torch.Tensor, second_E: torch.Tensor) -> torch.Tensor:
    scores_NK = scores_NK.contiguous()
    # An edge runs from the better box to the worse, which differs between classes: each pair stands for both directions.
    first_wins_EK = scores_NK[first_E] >= scores_NK[second_E]
    second_wins_EK = ~first_wins_EK
    keep_NK = torch.ones_like(scores_NK, dtype=torch.bool)
    while True:
        beaten_NK = torch.zeros_like(scores_NK, dtype=torch.int32)
        beaten_NK.index_add_(0, second_E, (keep_NK[first_E] & first_wins_EK).int())
        beaten_NK.index_add_(0, first_E, (keep_NK[second_E] & second_wins_EK).int())
        now_NK = beaten_NK == 0
        if torch.equal(now_NK, keep_NK):
            return (scores_NK * keep_NK).amax(dim=1).clamp(min=0)
        keep_NK = now_NK


def overlapping_pairs(
    boxes_N4: torch.Tensor, threshold: float, legacy: bool = False, inclusive: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of boxes with an IoU above the threshold (or at it): indices `first` [E] < `second` [E].

    IoU above t needs areas that differ by less than the factor t, so boxes are sorted by area and each block of them is
    compared with the stretch that can matter.
    """
    pairs = _pairs_up_to(None, boxes_N4, threshold, legacy, inclusive)
    assert pairs is not None
    return pairs


def _pairs_up_to(
    limit: int | None, boxes_N4: torch.Tensor, threshold: float, legacy: bool, inclusive: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """[`overlapping_pairs`], or None when there are more than about so many."""
    boxes_N4 = boxes_N4.float()
    areas_N = box_areas(boxes_N4, legacy)
    by_area = areas_N.argsort()
    sorted_N4, sorted_N = boxes_N4[by_area], areas_N[by_area]
    # A hair below the threshold here: the exact comparison follows for the few pairs that are left.
    ends = torch.searchsorted(sorted_N, sorted_N / max(0.999 * threshold, 1e-6), right=True).tolist()
    found, count = [], 0
    block = _ROWS if boxes_N4.device.type == "cpu" else 1024
    columns_5N = _columns(sorted_N4, legacy)
    for start in range(0, len(sorted_N), block):
        stop = min(start + block, len(sorted_N))
        close = _close(columns_5N[:, start:stop], columns_5N[:, start : ends[stop - 1]], threshold).nonzero()
        found.append(close + start)
        count += len(close)
        if limit is not None and count > limit + 2 * stop:  # boxes are close to themselves, some pairs come twice
            return None
    pairs_E2 = torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.long, device=boxes_N4.device)
    pairs_E2 = by_area[pairs_E2[pairs_E2[:, 0] < pairs_E2[:, 1]]]
    first_E, second_E = pairs_E2.min(dim=1).values, pairs_E2.max(dim=1).values
    overlaps_E = _pair_iou(boxes_N4[first_E], boxes_N4[second_E], legacy)
    above_E = _above(overlaps_E, threshold, legacy, inclusive)
    return first_E[above_E], second_E[above_E]


def _columns(boxes_N4: torch.Tensor, legacy: bool) -> torch.Tensor:
    """[5, N]: x1, y1, and x2, y2 behind the last pixel, and areas."""
    x1, y1, x2, y2 = boxes_N4.T
    return torch.stack((x1, y1, x2 + int(legacy), y2 + int(legacy), box_areas(boxes_N4, legacy)))


def _close(first_5S: torch.Tensor, second_5R: torch.Tensor, threshold: float) -> torch.Tensor:
    """[S, R] bool: which boxes overlap by more than a hair below the threshold."""
    (x1, y1, x2, y2, area), (u1, v1, u2, v2, other) = first_5S[:, :, None], second_5R
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(0)
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1))
    # intersection / union > t  <=>  intersection > t / (1 + t) * (sum of areas)
    share = 0.999 * threshold / (1 + threshold)
    return width.mul_(height) > (area * share).add(other * share)


def _pair_iou(first_E4: torch.Tensor, second_E4: torch.Tensor, legacy: bool) -> torch.Tensor:
    """IoU of boxes [..., 4] that lie at the same place of both, or are broadcast."""
    low = torch.maximum(first_E4[..., :2], second_E4[..., :2])
    high = torch.minimum(first_E4[..., 2:], second_E4[..., 2:])
    sides_E2 = (high - low + int(legacy)).clamp(min=0)
    intersection_E = sides_E2[..., 0] * sides_E2[..., 1]
    return intersection_E / (box_areas(first_E4, legacy) + box_areas(second_E4, legacy) - intersection_E)


def _above(overlaps: torch.Tensor, threshold: float, legacy: bool, inclusive: bool) -> torch.Tensor:
    """[...] bool: torchvision's threshold is a double, that of the legacy code a float."""
    overlaps = overlaps if legacy else overlaps.double()
    return overlaps >= threshold if inclusive else overlaps > threshold


# ------------------------------------------------------------------------------------------- pooling of regions


def roi_align(
    features_BCHW: torch.Tensor,
    rois_N5: torch.Tensor,
    size: int,
    scale: float,
    sampling: int = 0,
    aligned: bool = False,
) -> torch.Tensor:
    """
    Mean of bilinear samples in each of size x size bins of a RoI: [N, C, size, size].

    Args:
        features_BCHW: Feature maps.
        rois_N5: Image index and box, in pixels of the input.
        size: Bins on each side.
        scale: Cells of the map for one pixel, such as 1 / 16.
        sampling: Samples on each side of a bin; 0 chooses ceil(size of the RoI / size).
        aligned: Shift by half a cell (Detectron2). The first version does not, and makes RoIs at least one cell large.
    """
    if fast := _torchvision_op("roi_align"):
        return fast(features_BCHW, rois_N5, size, scale, sampling, aligned)
    return _roi_align(features_BCHW, rois_N5, size, scale, sampling, aligned)


def _roi_align(
    features_BCHW: torch.Tensor, rois_N5: torch.Tensor, size: int, scale: float, sampling: int, aligned: bool
) -> torch.Tensor:
    start_N2 = rois_N5[:, 1:3] * scale - 0.5 * aligned
    extent_N2 = rois_N5[:, 3:5] * scale - 0.5 * aligned - start_N2
    extent_N2 = extent_N2 if aligned else extent_N2.clamp(min=1.0)
    batch_size, channels, height, width = features_BCHW.shape
    cells_XC = features_BCHW.permute(0, 2, 3, 1).reshape(-1, channels)  # a view, when the map is channels_last
    grids_N2 = torch.full_like(extent_N2, sampling) if sampling else torch.ceil(extent_N2 / size)
    pooled = features_BCHW.new_zeros(len(rois_N5), size * size, channels)
    # RoIs of one grid of samples at a time: with adaptive sampling there are a few different ones.
    for grid_x, grid_y in grids_N2.unique(dim=0).long().tolist():
        if min(grid_x, grid_y) < 1:
            continue  # a box without extent, "aligned" only: no samples, zeros
        mine_N = ((grids_N2[:, 0] == grid_x) & (grids_N2[:, 1] == grid_y)).nonzero()[:, 0]
        start_x, start_y = start_N2[mine_N].T
        extent_x, extent_y = extent_N2[mine_N].T
        x_NPS, weight_x_NPS = _samples(start_x, extent_x, size, grid_x, width)
        y_NPS, weight_y_NPS = _samples(start_y, extent_y, size, grid_y, height)
        y_NPS = y_NPS + rois_N5[mine_N, 0].long()[:, None, None] * height
        index = y_NPS[:, :, None, :, None] * width + x_NPS[:, None, :, None, :]
        weight = weight_y_NPS[:, :, None, :, None] * (weight_x_NPS / (grid_x * grid_y))[:, None, :, None, :]
        rows = F.embedding_bag(
            index.flatten(3).flatten(0, 2),
            cells_XC,
            mode="sum",
            per_sample_weights=weight.flatten(3).flatten(0, 2).to(cells_XC.dtype),
        ).view(len(mine_N), size * size, channels)
        if len(mine_N) == len(rois_N5):
            pooled = rows
        else:
            pooled = pooled.index_copy(0, mine_N, rows)
    return pooled.view(-1, size, size, channels).permute(0, 3, 1, 2)


def _samples(
    start_N: torch.Tensor, extent_N: torch.Tensor, size: int, grid: int, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Along one axis: cells [N, size, 2 grid] that the samples of each bin lie between, and their weights."""
    bin_N11 = (extent_N / size)[:, None, None]
    bins_P1 = torch.arange(size, device=start_N.device, dtype=start_N.dtype)[:, None]
    within_S = torch.arange(grid, device=start_N.device, dtype=start_N.dtype) + 0.5
    place_NPS = start_N[:, None, None] + bins_P1 * bin_N11 + within_S * bin_N11 / grid
    inside_NPS = (place_NPS >= -1.0) & (place_NPS <= limit)
    place_NPS = place_NPS.clamp(0.0, limit - 1)
    low_NPS = place_NPS.floor()
    part_NPS = place_NPS - low_NPS
    cells = torch.cat((low_NPS, (low_NPS + 1).clamp(max=limit - 1)), dim=-1).long()
    weights = torch.cat(((1 - part_NPS) * inside_NPS, part_NPS * inside_NPS), dim=-1)
    return cells, weights


def roi_pool(
    features_BCHW: torch.Tensor, rois_N5: torch.Tensor, size_hw: tuple[int, int], scale: float
) -> torch.Tensor:
    """
    Largest value in each bin of a RoI whose corners are rounded to cells: [N, C, size, size]; 0 for an empty bin.

    A bin covers whole cells, so its maximum is the maximum of four overlapping windows with sides of powers of two, which
    are computed once for the whole map.

    Args:
        features_BCHW: Feature maps.
        rois_N5: Image index and box, in pixels of the input.
        size_hw: Bins down and across.
        scale: Cells of the map for one pixel.
    """
    if fast := _torchvision_op("roi_pool"):
        return fast(features_BCHW, rois_N5, size_hw, scale)
    return _roi_pool(features_BCHW, rois_N5, size_hw, scale)


def _roi_pool(
    features_BCHW: torch.Tensor, rois_N5: torch.Tensor, size_hw: tuple[int, int], scale: float
) -> torch.Tensor:
    height, width = features_BCHW.shape[2:]
    corners_N4 = _round_half_away(rois_N5[:, 1:] * scale)
    low_y_NP, high_y_NP = _bin_edges(corners_N4[:, 1], corners_N4[:, 3], size_hw[0], height)
    low_x_NP, high_x_NP = _bin_edges(corners_N4[:, 0], corners_N4[:, 2], size_hw[1], width)
    empty_NPP = (high_y_NP <= low_y_NP)[:, :, None] | (high_x_NP <= low_x_NP)[:, None, :]
    low_y_NP, low_x_NP = low_y_NP.clamp(max=height - 1), low_x_NP.clamp(max=width - 1)
    power_y_NP, last_y_NP = _power_of_two(low_y_NP, high_y_NP)
    power_x_NP, last_x_NP = _power_of_two(low_x_NP, high_x_NP)
    windows_XC, strides = _window_maxima(features_BCHW, _top(power_y_NP), _top(power_x_NP))
    per_power_y, per_power_x, per_image = strides
    base_N11 = (rois_N5[:, 0].long() * per_image)[:, None, None]
    base_NPP = base_N11 + (power_y_NP * per_power_y)[:, :, None] + (power_x_NP * per_power_x)[:, None, :]
    first_NPP = base_NPP + (low_y_NP * width)[:, :, None] + low_x_NP[:, None, :]
    pooled = F.embedding(first_NPP, windows_XC)
    for y_NP, x_NP in ((low_y_NP, last_x_NP), (last_y_NP, low_x_NP), (last_y_NP, last_x_NP)):
        index_NPP = base_NPP + (y_NP * width)[:, :, None] + x_NP[:, None, :]
        other_X = (index_NPP != first_NPP).flatten().nonzero()[:, 0]  # most bins are one or two cells wide
        rows_XC = F.embedding(index_NPP.flatten()[other_X], windows_XC)
        flat = pooled.view(-1, pooled.shape[-1])
        flat.index_copy_(0, other_X, torch.maximum(flat[other_X], rows_XC))
    if empty_NPP.any():
        pooled = pooled.masked_fill(empty_NPP[..., None], 0.0)
    return pooled.permute(0, 3, 1, 2)


def _round_half_away(numbers: torch.Tensor) -> torch.Tensor:
    """C's `round`: k + 0.5 goes away from zero, where `torch.round` goes to the even neighbour."""
    whole = numbers.trunc()
    return whole + ((numbers - whole).abs() >= 0.5) * numbers.sign()


def _bin_edges(low_N: torch.Tensor, high_N: torch.Tensor, size: int, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First cell and one past the last of each bin along one axis, [N, size]; products in float32 like the original."""
    step_N1 = ((high_N - low_N + 1).clamp(min=1) / size)[:, None]
    bins_P = torch.arange(size, device=low_N.device, dtype=low_N.dtype)
    first_NP = ((bins_P * step_N1).floor() + low_N[:, None]).clamp(0, limit)
    last_NP = (((bins_P + 1) * step_N1).ceil() + low_N[:, None]).clamp(0, limit)
    return first_NP.long(), last_NP.long()


def _power_of_two(low_NP: torch.Tensor, high_NP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exponent of the largest window that fits between the edges, and where its last position starts."""
    length_NP = (high_NP - low_NP).clamp(min=1)
    power_NP = length_NP.float().log2().floor().long()
    return power_NP, (high_NP - (1 << power_NP)).clamp(min=0)


def _top(power_NP: torch.Tensor) -> int:
    return int(power_NP.max()) if power_NP.numel() else 0


def _window_maxima(features_BCHW: torch.Tensor, top_y: int, top_x: int) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Rows of C maxima over windows of 2**py x 2**px cells that start at each cell, for all py <= top_y, px <= top_x, and how
    many rows lie between two values of py, of px and of the image index."""
    tall_BHWC = features_BCHW.permute(0, 2, 3, 1)
    rows = tall_BHWC.shape[:3].numel()
    tables = []
    for power_y in range(top_y + 1):
        if power_y:
            tall_BHWC = _shifted_maximum(tall_BHWC, 1, 1 << (power_y - 1))
        wide_BHWC = tall_BHWC
        for power_x in range(top_x + 1):
            if power_x:
                wide_BHWC = _shifted_maximum(wide_BHWC, 2, 1 << (power_x - 1))
            tables.append(wide_BHWC.reshape(rows, -1))
    return torch.cat(tables), ((top_x + 1) * rows, rows, rows // len(features_BCHW))


def _shifted_maximum(maps: torch.Tensor, axis: int, shift: int) -> torch.Tensor:
    """Maximum of each position and the one `shift` behind; the last positions, whose windows stick out, stay as they are."""
    kept = maps.shape[axis] - shift
    if kept <= 0:
        return maps
    both = torch.maximum(maps.narrow(axis, 0, kept), maps.narrow(axis, shift, kept))
    return torch.cat((both, maps.narrow(axis, kept, shift)), dim=axis)


@lru_cache
def _torchvision_op(name: str) -> Callable | None:
    """torchvision's operator, if it is installed and gives the same numbers as ours on a small example."""
    theirs = getattr(_torchvision_ops, name, None)
    if theirs is None:
        return None
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(12, 2, generator=generator) * 60
    boxes = torch.cat((corners, corners + torch.rand(12, 2, generator=generator) * 40), dim=1)
    boxes[0] = torch.tensor([8.0, 24.0, 40.0, 56.0])  # edges at half cells
    rois = torch.cat((torch.zeros(12, 1), boxes), dim=1)
    maps = torch.randn(1, 3, 6, 7, generator=generator)
    ours: dict[str, Callable] = {"nms": _nms, "roi_pool": _roi_pool, "roi_align": _roi_align}
    examples: dict[str, list[tuple]] = {
        "nms": [(boxes, boxes[:, 0], 0.3)],
        "roi_pool": [(maps, rois, (3, 5), 1 / 16)],
        "roi_align": [(maps, rois, 3, 1 / 16, sampling, aligned) for sampling in (0, 2) for aligned in (False, True)],
    }
    pairs = [(theirs(*example), ours[name](*example)) for example in examples[name]]
    return theirs if all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs) else None


# ------------------------------------------------------------------------------------------------------ images


def resize_by_factor(image_HWC: np.ndarray, factor: float) -> np.ndarray:
    """Bilinear resize of a float32 image as `cv2.resize(image, None, fx=factor, fy=factor)` does it.

    Coordinates are mapped with 1 / factor, not with the ratio of the rounded sizes; sizes are rounded half to even; no
    antialiasing. Returns float32 of shape (round(H * factor), round(W * factor), C), at least one pixel each way.
    """
    rows, next_rows, below = _cv2_neighbours(image_HWC.shape[0], factor)
    columns, next_columns, right = _cv2_neighbours(image_HWC.shape[1], factor)
    image_HWC = image_HWC.astype(np.float32, copy=False)
    right = right[None, :, None]
    wide = image_HWC[:, columns] * (1 - right) + image_HWC[:, next_columns] * right
    below = below[:, None, None]
    return wide[rows] * (1 - below) + wide[next_rows] * below


def _cv2_neighbours(length: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # In double precision, then a float weight: rounding the places first is ten times further from OpenCV's numbers.
    places = (np.arange(max(1, round(length * factor))) + 0.5) * (1 / factor) - 0.5
    low = np.floor(places).astype(np.int64)
    part = places - low
    part[(low < 0) | (low >= length - 1)] = 0.0
    low = low.clip(0, length - 1)
    return low, (low + 1).clip(max=length - 1), part.astype(np.float32)


def polygon_mask(box: Sequence[float], polygons: Sequence[Sequence[Sequence[float]]], size: int = 14) -> np.ndarray:
    """
    float32 [size, size]: which of size x size points spread over the box lie in any of the polygons (even-odd rule).

    Args:
        box: x1, y1, x2, y2 in pixels; points are the centres of its cells.
        polygons: Lists of (x, y) corners in the same pixels.
        size: Points on each side.
    """
    centers = (np.arange(size) + 0.5) / size
    x = np.float64(box[0]) + centers * (box[2] - box[0])
    y = np.float64(box[1]) + centers * (box[3] - box[1])
    mask = np.zeros((size, size), dtype=bool)
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        crossings = np.zeros((size, size), dtype=np.int64)
        for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            spans = (y1 > y) != (y2 > y)  # the edge crosses the row of this point
            if spans.any():
                at = x1 + (y[spans] - y1) * (x2 - x1) / (y2 - y1)
                crossings[spans] += x[None, :] < at[:, None]
        mask |= crossings % 2 == 1
    return mask.astype(np.float32)


__all__ = [
    "best_surviving_scores",
    "box_areas",
    "cell_anchors",
    "clip_boxes",
    "decode_boxes",
    "encode_boxes",
    "fpn_levels",
    "grid_anchors",
    "legacy_cell_anchors",
    "nms",
    "overlapping_pairs",
    "polygon_mask",
    "resize_by_factor",
    "roi_align",
    "roi_pool",
]
