"""From counts to a report: which heads are best, with confidence intervals and baselines.

The best of many heads looks better than it is, so heads are chosen on one split (dev) and reported on another (test). With only
one split, the intervals are widened instead so that they hold for all heads jointly (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .counts import HeadCounts
from .grounding import Grounding
from .probes import DIRECTIONS, ENTITIES

CONFIDENCE = 0.95
MIN_PROBES = 200  # relations that occur less often are reported but left out of the summary
LOW_SHARE = 0.2  # heads with a smaller share of attention on regions are drawn smaller (paper, Figure 3)


def grounding_report(test: Grounding, dev: Grounding | None) -> dict[str, Any]:
    """All numbers of an analysis. Accuracies and shares are in percent; layers and heads count from 1.

    Args:
        test: The counts to report.
        dev: The counts on which heads are chosen; with None, heads are chosen on `test` and the intervals are wider.
    """
    choosers = {} if dev is None else dev.counts
    groups = {group: _group_report(counts, choosers.get(group), test.layers) for group, counts in test.counts.items()}
    relations = sorted({group[1] for group in groups if group[0] == "syntax"})
    syntax = {
        relation: {
            direction: groups["syntax", relation, direction]
            for direction in DIRECTIONS
            if ("syntax", relation, direction) in groups
        }
        for relation in relations
    }
    return {
        **test.seen,
        "skipped": len(test.skipped),
        "layers": [layer + 1 for layer in test.layers],
        "entities": {group[1]: report for group, report in sorted(groups.items()) if group[0] == ENTITIES[0]},
        "syntax": dict(sorted(syntax.items(), key=lambda item: -_occurrences(item[1]))),
    }


def best_direction(relation: dict[str, Any]) -> dict[str, Any]:
    """The direction of a relation whose best head has the larger lower bound of the gain, on the data where heads were chosen;
    the result includes its `direction`."""
    named = [{"direction": direction, **report} for direction, report in relation.items()]
    return max(named, key=lambda report: report["best"]["chosen_by_gain_of_at_least"])


def _occurrences(relation: dict[str, Any]) -> int:
    return max(report["probes"] for report in relation.values())


def _group_report(counts: HeadCounts, dev: HeadCounts | None, layers: Sequence[int]) -> dict[str, Any]:
    chooser, confidence = dev, CONFIDENCE
    if chooser is None:  # there is no dev split, or it has no probes of this group
        chooser, confidence = counts, 1 - (1 - CONFIDENCE) / counts.h.numel()
    places = [(layer, head) for layer in range(len(layers)) for head in range(counts.h.shape[1])]

    def choice(place: tuple[int, int]) -> float:
        return chooser.accuracy(*place)

    best = max(places, key=choice)
    per_layer = [max((p for p in places if p[0] == layer), key=choice) for layer in range(len(layers))]
    mean, low, high = counts.gain(*best, confidence)
    return {
        "probes": counts.probes,
        "images": counts.images,
        "confidence": confidence,  # of each interval; 95% for all heads jointly if they were chosen on the same data
        "upper_bound": _percent(counts.matchable / counts.probes),
        "chance": _percent(counts.mean_chance()),
        "baseline": _percent(counts.baseline / counts.probes),
        "baseline_interval": _percents(counts.baseline_interval(confidence)),
        "best": {
            **_head_report(counts, best, layers, confidence),
            "chosen_by_accuracy": _percent(choice(best)),
            "chosen_by_gain_of_at_least": _percent(chooser.gain(*best, confidence)[1]),
            "gain": _percent(mean),
            "gain_interval": _percents((low, high)),
            "beats_baseline": low > 0,
        },
        "best_of_each_layer": [_head_report(counts, place, layers, confidence) for place in per_layer],
        "heads": [_head_report(counts, place, layers, confidence) for place in places],
    }


def _head_report(
    counts: HeadCounts, place: tuple[int, int], layers: Sequence[int], confidence: float
) -> dict[str, Any]:
    return {
        "layer": layers[place[0]] + 1,
        "head": place[1] + 1,
        "accuracy": _percent(counts.accuracy(*place)),
        "interval": _percents(counts.interval(*place, confidence)),
        "region_share": _percent(counts.region_share(*place)),
    }


def _percent(share: float) -> float:
    return round(100.0 * share, 4)


def _percents(interval: Sequence[float]) -> list[float]:
    return [_percent(share) for share in interval]


__all__ = ["CONFIDENCE", "LOW_SHARE", "MIN_PROBES", "best_direction", "grounding_report"]
