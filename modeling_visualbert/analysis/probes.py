"""What is asked of the attention at a word: which regions are right there.

Entity grounding asks it of phrases, at their last word piece: the regions of the phrase. Syntactic grounding asks it of words
that a dependency joins, one of which stands for regions: at the other word, those regions (paper, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics.grounding import matching_proposals
from .trees import Edge

Group = tuple[str, ...]
ENTITIES: Group = ("entities", "all")
DIRECTIONS = ("at dependent", "at head")  # where the attention is read; the right regions are those of the other word


@dataclass(frozen=True)
class Probe:
    """At the word with this index, the regions `right` are right (none fits when it is empty); it counts in all `groups`."""

    word: int
    right: tuple[int, ...]
    groups: tuple[Group, ...]


def entity_probes(row: Mapping[str, Any], boxes: Sequence[Sequence[float]]) -> list[Probe]:
    """One for each phrase that has a box.

    Args:
        row: A sentence of Flickr30k Entities, see [`load_flickr30k`].
        boxes: The image's regions, in pixels.
    """
    return [
        Probe(word, tuple(matching_proposals(gold, boxes)), (ENTITIES, *(("entities", kind) for kind in kinds)))
        for word, gold, kinds in zip(row["last_words"], row["boxes"], row["entity_types"], strict=True)
    ]


def syntax_probes(row: Mapping[str, Any], edges: Sequence[Edge], boxes: Sequence[Sequence[float]]) -> list[Probe]:
    """For each dependency and each end of it that stands for regions, one at the other end.

    A phrase's regions are those of its head: the word that depends on none of the phrase.
    """
    head_of = {edge.dependent: edge.head for edge in edges}
    regions: dict[int, tuple[int, ...]] = {}
    for phrase, last, gold in zip(row["phrases"], row["last_words"], row["boxes"], strict=True):
        words = range(last - len(phrase.split(" ")) + 1, last + 1)
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
