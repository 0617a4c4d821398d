"""Probes: words at which attention is read, with the regions that are right there.

Entity grounding probes a phrase at its last word piece; the regions of the phrase are right. Syntactic grounding probes two words
joined by a dependency, one of which stands for regions; at the other word, these regions are right (paper, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics.grounding import matching_proposals
from .trees import Edge

Group = tuple[str, ...]
ENTITIES: Group = ("entities", "all")
DIRECTIONS = ("at dependent", "at head")  # where attention is read; the right regions are those of the other word


@dataclass(frozen=True)
class Probe:
    """At the word with this index, the regions in `right` are right (possibly none); the probe counts in all its `groups`."""

    word: int
    right: tuple[int, ...]
    groups: tuple[Group, ...]


def entity_probes(row: Mapping[str, Any], boxes: Sequence[Sequence[float]]) -> list[Probe]:
    """One probe for each phrase that has a box.

    Args:
        row: A sentence of Flickr30k Entities, see [`load_flickr30k`].
        boxes: The image's regions, in pixels.
    """
    return [
        Probe(word, tuple(matching_proposals(gold, boxes)), (ENTITIES, *(("entities", kind) for kind in kinds)))
        for word, gold, kinds in zip(row["last_words"], row["boxes"], row["entity_types"], strict=True)
    ]


def syntax_probes(row: Mapping[str, Any], edges: Sequence[Edge], boxes: Sequence[Sequence[float]]) -> list[Probe]:
    """For each dependency, and each of its two words that stands for regions, one probe at the other word.

    The regions of a phrase belong to its head, the word that depends on no other word of the phrase.
    """
    head_of = {edge.dependent: edge.head for edge in edges}
    regions: dict[int, tuple[int, ...]] = {}
    for phrase, last, gold in zip(row["phrases"], row["last_words"], row["boxes"], strict=True):
        words = range(last - len(phrase.split()) + 1, last + 1)
        heads = [word for word in words if head_of.get(word) not in words]
        regions[heads[-1]] = tuple(matching_proposals(gold, boxes))
    probes = []
    for edge in edges:
        for direction, at, other in zip(
            DIRECTIONS, (edge.dependent, edge.head), (edge.head, edge.dependent), strict=True
        ):
            if other in regions:
                probes.append(Probe(at, regions[other], (("syntax", edge.relation, direction),)))
    return probes


__all__ = ["DIRECTIONS", "ENTITIES", "Group", "Probe", "entity_probes", "syntax_probes"]
