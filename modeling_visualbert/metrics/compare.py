"""Do two models differ by more than chance on the same examples? A paired bootstrap over groups of examples.

Examples about the same image (for NLVR2: with the same sentence) are not independent, so whole groups are drawn: the same ones
for both models, since what one model finds difficult is mostly difficult for the other too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_DRAWS_AT_ONCE = 1 << 22  # bounds the memory


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    counts: Sequence[int],
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, float]:
    """
    Compare two means over examples that come in groups.

    Args:
        first, second: For each group the sum of the scores of its examples, by the first and the second model.
        counts: For each group the number of its examples.
        samples: How often as many groups as there are are drawn with replacement.
        seed: Seed of the draws.
        confidence: Share of the samples between the ends of the interval.

    Returns:
        Means `first` and `second`, their `difference` (second - first), `low` and `high`, the ends of its percentile interval,
        and `p`: twice the share of samples in which the difference is zero or has the other sign (at most 1, at least 2 in
        `samples` + 1). It is below 0.05 where the 95% interval does not hold zero.

    Raises:
        ValueError: There are fewer than two groups, lengths differ, or there are no samples.
    """
    if samples < 1:
        raise ValueError(f"{samples} samples; expected at least 1")
    if not len(first) == len(second) == len(counts):
        raise ValueError(f"{len(first)}, {len(second)} and {len(counts)} groups; expected the same number of each")
    sums, sizes = np.asarray([first, second], dtype=np.float64), np.asarray(counts, dtype=np.int64)
    if (sizes > 0).sum() < 2:
        raise ValueError(f"{(sizes > 0).sum()} groups of examples; expected several, such as many images")
    means = sums.sum(axis=1) / sizes.sum()
    drawn = np.concatenate(list(_drawn_differences(sums[1] - sums[0], sizes, samples, np.random.default_rng(seed))))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    tail = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
    return {
        "first": float(means[0]),
        "second": float(means[1]),
        "difference": float(means[1] - means[0]),
        "low": float(low),
        "high": float(high),
        "p": float(min(1.0, 2 * tail / (samples + 1))),
    }


def _drawn_differences(
    differences: np.ndarray, sizes: np.ndarray, samples: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Differences of means of the samples, some at a time."""
    groups = len(sizes)
    at_once = max(1, _DRAWS_AT_ONCE // groups)
    for start in range(0, samples, at_once):
        chosen = generator.integers(groups, size=(min(at_once, samples - start), groups), dtype=np.int32)
        counted = sizes[chosen].sum(axis=1)
        # A sample may hold none of few groups that have examples of this metric.
        yield differences[chosen].sum(axis=1) / np.maximum(counted, 1)


__all__ = ["paired_bootstrap"]
