"""Hits of every attention head, counted in constant memory, and their confidence intervals.

Results for the same image are not independent, so the sampling unit is the image, not the word: the intervals are those of a
ratio of sums over clusters (Cochran, Sampling Techniques, section 6.4), with the image as the cluster. They need only sums of
products over images. All sums are integers, so neither the order of the images nor the number of processes changes a digit.

Letters: L layers, H heads, P probes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import sqrt
from statistics import NormalDist

import torch

SCALE = 2**32  # shares in 0..1 are summed as integers, in units of 1 / SCALE


def _zero() -> torch.Tensor:
    return torch.zeros((), dtype=torch.long)


@dataclass
class HeadCounts:
    """Sums over images; image c has n_c probes, h_c hits of a head, and b_c hits of the most confident region."""

    probes: int = 0  # sum of n_c
    images: int = 0  # images with at least one probe
    matchable: int = 0  # probes for which some region is right
    baseline: int = 0  # sum of b_c
    chance: int = 0  # sum of the share of regions that are right, in units of 1 / SCALE
    nn: int = 0  # sum of n_c * n_c, and so on
    bb: int = 0
    bn: int = 0
    h: torch.Tensor = field(default_factory=_zero)  # this field and the following ones are [L, H]
    hh: torch.Tensor = field(default_factory=_zero)
    hn: torch.Tensor = field(default_factory=_zero)
    hb: torch.Tensor = field(default_factory=_zero)
    share: torch.Tensor = field(default_factory=_zero)  # sum of the attention to regions, in units of 1 / SCALE

    def add_image(
        self,
        hits_PLH: torch.Tensor,
        share_PLH: torch.Tensor,
        baseline_P: torch.Tensor,
        chance_P: torch.Tensor,
        matchable_P: torch.Tensor,
    ) -> None:
        """Add all probes of one image in a single call; an image that is added in parts would count as several.

        Args:
            hits_PLH: Whether the region that the head attends to most is right (bool).
            share_PLH: Share of the head's attention that goes to regions, in 0..1.
            baseline_P: Whether the most confident region is right (bool).
            chance_P: Share of the regions that are right, in 0..1.
            matchable_P: Whether any region is right (bool).
        """
        n, b, h_LH = len(hits_PLH), int(baseline_P.sum()), hits_PLH.long().sum(dim=0)
        self.add(
            HeadCounts(
                probes=n,
                images=1,
                matchable=int(matchable_P.sum()),
                baseline=b,
                chance=int(_whole(chance_P).sum()),
                nn=n * n,
                bb=b * b,
                bn=b * n,
                h=h_LH,
                hh=h_LH * h_LH,
                hn=h_LH * n,
                hb=h_LH * b,
                share=_whole(share_PLH).sum(dim=0),
            )
        )

    def add(self, other: HeadCounts) -> None:
        """Add the sums over other images."""
        for sums in fields(self):
            setattr(self, sums.name, getattr(self, sums.name) + getattr(other, sums.name))

    def accuracy(self, layer: int, head: int) -> float:
        """Share of the probes that a head gets right, in 0..1."""
        return int(self.h[layer, head]) / self.probes

    def mean_chance(self) -> float:
        """Accuracy of a random region, in 0..1."""
        return self.chance / SCALE / self.probes

    def region_share(self, layer: int, head: int) -> float:
        """Mean share of a head's attention that goes to regions, in 0..1."""
        return int(self.share[layer, head]) / SCALE / self.probes

    def interval(self, layer: int, head: int, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a head's accuracy: Wilson's, with the effective number of independent probes."""
        h, hh, hn = (int(sums[layer, head]) for sums in (self.h, self.hh, self.hn))
        variance = _ratio_variance(h, hh, hn, self.probes, self.nn, self.images)
        return wilson(h / self.probes, _independent(h / self.probes, variance, self.probes, self.images), confidence)

    def baseline_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the accuracy of the most confident region."""
        share = self.baseline / self.probes
        variance = _ratio_variance(self.baseline, self.bb, self.bn, self.probes, self.nn, self.images)
        return wilson(share, _independent(share, variance, self.probes, self.images), confidence)

    def gain(self, layer: int, head: int, confidence: float = 0.95) -> tuple[float, float, float]:
        """How much better a head is than the most confident region on the same probes: the mean and its interval."""
        h, hh, hn, hb = (int(sums[layer, head]) for sums in (self.h, self.hh, self.hn, self.hb))
        d, dd, dn = h - self.baseline, hh - 2 * hb + self.bb, hn - self.bn
        mean = d / self.probes
        variance = _ratio_variance(d, dd, dn, self.probes, self.nn, self.images)
        reach = _quantile(confidence) * sqrt(variance) if self.images > 1 else 2.0
        return mean, max(-1.0, mean - reach), min(1.0, mean + reach)


def wilson(share: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share in 0..1 of `count` independent trials."""
    z = _quantile(confidence)
    middle, reach = share + z * z / (2 * count), z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def _whole(shares: torch.Tensor) -> torch.Tensor:
    return (shares.double() * SCALE).round().long()


def _ratio_variance(x: int, xx: int, xn: int, n: int, nn: int, clusters: int) -> float:
    """Variance of sum(x_c) / sum(n_c) over clusters c, in integers until the last step, so that no digits cancel."""
    if clusters < 2:
        return 0.0
    squares = xx * n * n - 2 * x * xn * n + x * x * nn  # n^2 times the sum of (x_c - x/n * n_c)^2
    return clusters / (clusters - 1) * (squares / n**4)


def _independent(share: float, variance: float, probes: int, images: int) -> float:
    """The number of independent trials with this variance: at most `probes`, or `images` if the variance is 0."""
    return min(probes, share * (1 - share) / variance) if variance > 0 else images


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


__all__ = ["HeadCounts", "wilson"]
