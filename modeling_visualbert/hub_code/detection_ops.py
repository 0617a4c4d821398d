"""The primitive operations of region detectors, vectorised: anchors, box deltas, nms, pooling of regions.

There are two conventions. *Continuous* boxes span x2 - x1 (bottom-up attention in PyTorch). *Legacy* boxes hold whole
pixels, so they span x2 - x1 + 1 (Detectron and code derived from it); functions take `legacy=True` for those. Numbers
agree with the original code bases, see `tests/test_detection_ops.py`. All boxes are x1, y1, x2, y2 in pixels of the
network's input; a RoI is a box preceded by the index of its image.

Letters: N boxes or RoIs, S and M boxes that are compared, E pairs that overlap, A anchors of a cell, K classes, C channels,
H, W cells of a map.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

MAX_LOG_SCALE = math.log(1000.0 / 16)  # a box grows at most by this factor in one step
_BLOCK = 128  # boxes that are compared with all others at once
_CLASSES_AT_ONCE = 128

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
    """[N, 4] deltas dx, dy, dw, dh that move `boxes` onto `targets`; inverse of [`decode_boxes`] below the size limit."""
    center, size = _center_and_size(boxes_N4, legacy)
    target_center, target_size = _center_and_size(targets_N4, legacy)
    deltas_N4 = torch.cat(((target_center - center) / size, torch.log(target_size / size)), dim=-1)
    return deltas_N4 * deltas_N4.new_tensor(weights)


def decode_boxes(
    deltas_NX: torch.Tensor, boxes_N4: torch.Tensor, weights: Sequence[float], legacy: bool = False
) -> torch.Tensor:
    """Apply deltas [N, 4 K] (K for each box) to boxes [N, 4]: [N, 4 K] corner boxes."""
    center, size = _center_and_size(boxes_N4, legacy)
    deltas_NK4 = deltas_NX.unflatten(-1, (-1, 4)) / deltas_NX.new_tensor(weights)
    new_center = deltas_NK4[..., :2] * size[:, None] + center[:, None]
    new_half = deltas_NK4[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * size[:, None] * 0.5
    return torch.cat((new_center - new_half, new_center + new_half - int(legacy)), dim=-1).flatten(1)


def _center_and_size(boxes: torch.Tensor, legacy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    size = boxes[..., 2:] - boxes[..., :2] + int(legacy)
    return boxes[..., :2] + 0.5 * size, size


def clip_boxes(boxes: torch.Tensor, size_hw: Sequence[float], legacy: bool = False) -> torch.Tensor:
    """[..., 4 K] boxes clipped to the image: 0 .. W continuous, 0 .. W - 1 legacy (and the same for the height)."""
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


# ----------------------------------------------------------------------------------------------------------- nms


def nms(
    boxes_N4: torch.Tensor,
    scores_N: torch.Tensor,
    threshold: float,
    legacy: bool = False,
    inclusive: bool = False,
    labels_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Greedy non-maximum suppression: the best box stays and removes all that overlap it too much, and so on.

    Boxes are taken a block at a time: first the block is thinned out by itself, then the boxes that stay in it remove
    others from everything that follows. Time is at most that of comparing all pairs once, memory that of one block.

    Args:
        boxes_N4, scores_N: Boxes and their scores; equal scores rank by index.
        threshold: A box is removed when its IoU with a better kept box is above this.
        legacy: Areas count whole pixels (+ 1).
        inclusive: A box is removed at exactly the threshold too, as in the legacy CPU code (its CUDA code and torchvision
            compare with >). Needs a threshold above 0.
        labels_N: Boxes with different labels do not remove one another ("batched" nms).

    Returns:
        Indices of the kept boxes, best first. (The legacy code returns the same set by ascending index.)
    """

    def beats(better_S: torch.Tensor, worse_M: torch.Tensor) -> torch.Tensor:
        above_SM = _overlaps_above(sorted_N4[better_S], sorted_N4[worse_M], threshold, legacy, inclusive)
        return above_SM if labels_N is None else above_SM & (sorted_N[better_S, None] == sorted_N[worse_M])

    order_N = scores_N.argsort(descending=True, stable=True)
    sorted_N4, sorted_N = boxes_N4[order_N].float(), order_N if labels_N is None else labels_N[order_N]
    left_M, kept = torch.arange(len(order_N), device=order_N.device), [order_N[:0]]
    while len(left_M):
        block_S, left_M = left_M[:_BLOCK], left_M[_BLOCK:]
        stays_S = torch.ones(len(block_S), dtype=torch.bool)
        for row, beats_S in enumerate(beats(block_S, block_S).triu(1).cpu()):
            if stays_S[row]:
                stays_S &= ~beats_S
        block_S = block_S[stays_S.to(block_S.device)]
        left_M = left_M[~beats(block_S, left_M).any(dim=0)]
        kept.append(block_S)
    return order_N[torch.cat(kept)]


def best_surviving_scores(
    boxes_N4: torch.Tensor, scores_NK: torch.Tensor, threshold: float, legacy: bool = False
) -> torch.Tensor:
    """[N]: the largest of a box's K class scores with which it survives the nms of that class among *all* boxes.

    0 for a box that survives in no class. All classes share the boxes and so the pairs that overlap. "Which boxes are
    removed by those that stay" is repeated for all classes at once until nothing changes: a box whose longest chain of
    better neighbours has length d is right after d rounds, so the result is that of [`nms`].
    """
    pairs = []
    for start, some_S4 in enumerate(boxes_N4.float().split(_BLOCK)):
        above_SM = _overlaps_above(some_S4, boxes_N4.float(), threshold, legacy, inclusive=False)
        pairs.append(above_SM.triu(start * _BLOCK + 1).nonzero() + boxes_N4.new_tensor([start * _BLOCK, 0]).long())
    first_E, second_E = torch.cat(pairs).T
    # A few classes at a time: their numbers then stay in the processor's cache.
    best = [_best_of_classes(some_NK, first_E, second_E) for some_NK in scores_NK.split(_CLASSES_AT_ONCE, dim=1)]
    return torch.stack(best).amax(dim=0)


def _best_of_classes(scores_NK: torch.Tensor, first_E: torch.Tensor, second_E: torch.Tensor) -> torch.Tensor:
    scores_NK = scores_NK.contiguous()
    # Which box of a pair is the better one differs between classes: each pair stands for both directions.
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


def _overlaps_above(
    first_S4: torch.Tensor, second_M4: torch.Tensor, threshold: float, legacy: bool, inclusive: bool
) -> torch.Tensor:
    """[S, M] bool: which pairs of boxes have an IoU above the threshold (or at it)."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = first_S4.T[:, :, None], second_M4.T
    width_SM = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1))
    height_SM = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1))
    if legacy:
        width_SM, height_SM = width_SM.add_(1), height_SM.add_(1)
    shared_SM = width_SM.clamp_(min=0).mul_(height_SM)  # boxes apart have an IoU of 0 or below
    total_SM = box_areas(first_S4, legacy)[:, None] + box_areas(second_M4, legacy)
    iou_SM = shared_SM.div_(total_SM.sub_(shared_SM))
    # torchvision compares with a double, the legacy code with a float: the last float32 that is not above.
    limit = float(np.float32(threshold))
    exact = limit if legacy else threshold
    if limit > exact or (inclusive and limit == exact):
        limit = float(np.nextafter(np.float32(limit), np.float32(-1)))
    return iou_SM > limit


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
    """Maxima over windows of 2**py x 2**px cells that start at each cell, for all py <= top_y and px <= top_x.

    Returns:
        [X, C] the maxima of all windows, and by how many rows the next py, px and image lie further down.
    """
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
    """Maximum of each position and the one `shift` further on; the last `shift` positions stay as they are."""
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
    ours: dict[str, Callable] = {"roi_pool": _roi_pool, "roi_align": _roi_align}
    examples: dict[str, list[tuple]] = {
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
    "polygon_mask",
    "resize_by_factor",
    "roi_align",
    "roi_pool",
]
