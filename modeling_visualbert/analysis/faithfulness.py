"""Can explanations be trusted? Measures how often the answer changes without the region that a method ranks first.

Masking a region and asking again is the direct test. The cheaper methods are judged by it and compared with a random region.

Letters: P questions (probes), M methods, R regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..hub_code.explain_visualbert import explain_answers
from ..training.report import table
from ..visualization import answer_attention
from .counts import HeadCounts
from .grounding import ALONE, RegionsOf, gathered, most_confident
from .report import CONFIDENCE

METHODS = ("attention of the last layer", "attention rollout", "gradient x input", "largest drop")
ALL = "all questions"


def count_faithfulness(
    model: PreTrainedModel,
    processor: Any,
    rows: Iterable[Mapping[str, Any]],
    regions_of: RegionsOf,
    processes: Any = ALONE,
    progress: bool = True,
) -> dict[str, HeadCounts]:
    """
    For each type of question (and for all): how often the answer changes without the region that a method ranks first.

    The counts have one layer, and a "head" for each of `METHODS`; a region is right if the answer changes without it.

    Args:
        model: A [`VisualBertForQuestionAnswering`] in evaluation mode.
        processor: Its processor.
        rows: Questions as returned by [`load_vqa`], sorted by image.
        regions_of: Returns the regions of images.
        processes: The processes that share the work; each returns the complete result.
        progress: Whether the main process shows a progress bar.

    Raises:
        ValueError: The questions about an image are not consecutive, or there is no question about an image with regions.
    """
    found: dict[str, HeadCounts] = {}
    mine = islice(_by_image(rows), processes.rank, None, processes.count)
    for image_id, questions in tqdm(mine, desc="explaining answers", unit="image", disable=not progress):
        ((_, regions),) = regions_of([image_id])
        if not len(regions["visual_embeds"]):
            continue
        texts = [row["question"] for row in questions]
        inputs = processor(images=[{"visual_embeds": regions["visual_embeds"]}], text=texts).to(model.device)
        explained = explain_answers(model, processor, inputs)
        first_PM, changes_PR = _first_regions(explained, answer_attention(model, **inputs))
        hits_PM = changes_PR.gather(1, first_PM)
        shares_PM = torch.zeros(hits_PM.shape)
        confident = changes_PR[:, most_confident(regions)]
        kinds = [row.get("question_type") or "unknown" for row in questions]
        for kind in (ALL, *sorted(set(kinds))):
            asked = torch.tensor([kind in (ALL, own) for own in kinds])
            found.setdefault(kind, HeadCounts()).add_image(
                hits_PM[asked, None],
                shares_PM[asked, None],
                confident[asked],
                changes_PR[asked].float().mean(dim=1),
                changes_PR[asked].any(dim=1),
            )
    merged: dict[str, HeadCounts] = {}
    for part in gathered(found, processes):
        for kind, counts in part.items():
            merged.setdefault(kind, HeadCounts()).add(counts)
    if not merged:
        raise ValueError("no question about an image with regions; expected at least one")
    return merged


def faithfulness_report(found: Mapping[str, HeadCounts]) -> dict[str, Any]:
    """Percentages of the questions, by type of question.

    `changeable`: there is a region without which the answer changes; `random`: a random region is such a region; for each
    method: how often the region that it ranks first is such a region, with its 95% interval.
    """
    return {
        kind: {
            "questions": counts.probes,
            "changeable": 100 * counts.matchable / counts.probes,
            "random": 100 * counts.mean_chance(),
            "methods": {
                method: {
                    "changes": 100 * counts.accuracy(0, place),
                    "interval": [100 * bound for bound in counts.interval(0, place, CONFIDENCE)],
                }
                for place, method in enumerate(METHODS)
            },
        }
        for kind, counts in sorted(found.items(), key=lambda item: (item[0] != ALL, item[0]))
    }


def faithfulness_table(report: Mapping[str, Any]) -> str:
    """The report as text."""
    rows = [["", "questions", *METHODS, "random region", "any region"]]
    for kind, found in report.items():
        cells = [
            f"{method['changes']:.1f} [{method['interval'][0]:.1f}, {method['interval'][1]:.1f}]"
            for method in found["methods"].values()
        ]
        rows.append([kind, str(found["questions"]), *cells, f"{found['random']:.1f}", f"{found['changeable']:.1f}"])
    return table(rows)


def _by_image(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, list[Mapping[str, Any]]]]:
    """Group the questions by image."""
    seen: set[Any] = set()
    current: list[Mapping[str, Any]] = []
    for row in rows:
        if current and row["image_id"] != current[0]["image_id"]:
            yield current[0]["image_id"], current
            current = []
        if not current:
            if row["image_id"] in seen:
                raise ValueError(
                    f"questions about image {row['image_id']} are not consecutive; expected them sorted by image"
                )
            seen.add(row["image_id"])
        current.append(row)
    if current:
        yield current[0]["image_id"], current


def _first_regions(
    explained: Sequence[Mapping[str, Any]], attention_PR: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[P, M] the region that each method ranks first, and [P, R] whether the answer changes without a region."""

    def column(name: str) -> torch.Tensor:
        return torch.tensor([[region[name] for region in question["regions"]] for question in explained])

    ways = (attention_PR.cpu(), column("rollout"), column("gradient"), column("drop"))
    changes = [[r["answer_without"] != question["answer"] for r in question["regions"]] for question in explained]
    return torch.stack([values_PR.argmax(dim=1) for values_PR in ways], dim=1), torch.tensor(changes)


__all__ = ["METHODS", "count_faithfulness", "faithfulness_report", "faithfulness_table"]
