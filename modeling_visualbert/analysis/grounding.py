"""Entity and syntactic grounding of every attention head (paper, section 5): takes a checkpoint and images with marked sentences,
returns counts.

Images are read, analysed and discarded a few at a time, so memory does not depend on their number.

Letters: B sentences, T text tokens, R regions, P probes, L layers, H heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.files import skipping
from ..data.flickr30k import load_flickr30k
from ..features.extract import Processes
from ..hub_code.explain_visualbert import attention_weights
from ..hub_code.regions_visualbert import pad_regions
from ..hub_code.text_visualbert import EncodedText, encode_words, pad_texts
from .counts import HeadCounts
from .probes import Group, Probe, entity_probes, syntax_probes
from .trees import Trees, edges_of

Regions = Mapping[str, torch.Tensor]
ALONE = Processes()
RegionsOf = Callable[[Sequence[int]], Iterable[tuple[int, Regions]]]  # image ids -> (image id, regions) in order


@dataclass
class ReadSentence:
    """A sentence with its probes, encoded for the model."""

    row: dict[str, Any]
    probes: list[Probe]
    text: EncodedText
    last_pieces: list[int]  # position of the last word piece of each word


@dataclass
class Grounding:
    """The counts of an analysis.

    Args:
        counts: By group: `("entities", "all")`, `("entities", <type>)`, `("syntax", <relation>, <direction>)`.
        layers: Indices, from 0, of the layers that read regions.
        seen: How many `images`, `sentences` and `phrases` were read.
        skipped: Errors of the bad records that were left out.
    """

    counts: dict[Group, HeadCounts] = field(default_factory=dict)
    layers: list[int] = field(default_factory=list)
    seen: Counter = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    def add(self, other: Grounding) -> None:
        """Add the counts of another process."""
        for group, counts in other.counts.items():
            self.counts.setdefault(group, HeadCounts()).add(counts)
        self.layers = self.layers or other.layers
        self.seen.update(other.seen)
        self.skipped += other.skipped


def count_grounding(
    model: PreTrainedModel,
    tokenizer: Any,
    data_dir: str | Path,
    image_ids: Sequence[int],
    regions_of: RegionsOf,
    trees: Trees | None = None,
    images_per_batch: int = 8,
    max_length: int = 128,
    processes: Processes = ALONE,
    skip_bad_records: bool = False,
    progress: bool = True,
) -> Grounding:
    """Count how often the attention of every layer and head hits the right region, over all sentences of the images.

    Args:
        model: A VisualBERT with any head, in evaluation mode.
        tokenizer: Its tokenizer.
        data_dir: Folder with the `Sentences/` and `Annotations/` of Flickr30k Entities.
        image_ids: Images to read.
        regions_of: Returns the regions of images, with boxes in pixels.
        trees: Returns the dependency trees of an image's sentences; without it, there is no syntactic grounding.
        images_per_batch: Number of images per batch, with all of their sentences.
        max_length: Longest sentence in tokens.
        processes: The processes that share the work; each returns the complete result.
        skip_bad_records: Leave out sentences that cannot be read or do not fit their trees, and list their errors in `skipped`.
        progress: Whether the main process shows a progress bar.

    Raises:
        FileNotFoundError, ValueError: A file is missing or malformed, a tree does not fit its sentence, or no phrase of
            the data has a box; the message names the file and the sentence.
    """
    model.eval()
    batches = _batches(image_ids, images_per_batch)
    mine = islice(batches, processes.rank, None, processes.count)
    found = Grounding()
    skipped = found.skipped if skip_bad_records else None
    with tqdm(total=len(image_ids), desc="reading attention", unit="image", disable=not progress) as bar:
        for ids in mine:
            regions = dict(regions_of(ids))
            rows = load_flickr30k(data_dir, ids, skipped=skipped)
            read = [*_read_sentences(rows, regions, tokenizer, data_dir, trees, max_length, skipped)]
            found.seen.update(images=len(ids), sentences=len(read), phrases=sum(len(s.row["phrases"]) for s in read))
            if read:
                _count_batch(found, model, tokenizer, read, regions)
            bar.update(len(ids) * processes.count)
    merged = Grounding()
    for part in gathered(found, processes):
        merged.add(part)
    if not merged.counts:
        raise ValueError(
            f"{data_dir}: none of the sentences of {len(image_ids)} images has a phrase with a box; "
            "expected phrases such as [/EN#1/people a man] whose entity has a box in Annotations/"
        )
    return merged


def _batches(image_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(image_ids), size):
        yield image_ids[start : start + size]


def _read_sentences(
    rows: Iterable[dict[str, Any]],
    regions: Mapping[int, Regions],
    tokenizer: Any,
    data_dir: str | Path,
    trees: Trees | None,
    max_length: int,
    skipped: list[str] | None,
) -> Iterator[ReadSentence]:
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    for image_id, sentences in by_image.items():
        with skipping(skipped):
            boxes = _boxes(regions[image_id], image_id)
            words = {row["sentence_number"]: row["sentence"].split() for row in sentences}
            tree_of = {} if trees is None else trees(image_id, words)
            for row in sentences:
                number = row["sentence_number"]
                where = f"{Path(data_dir) / 'Sentences' / str(image_id)}.txt: line {number + 1}"
                with skipping(skipped):
                    probes = entity_probes(row, boxes)
                    if trees is not None:
                        probes += syntax_probes(row, edges_of(tree_of[number], words[number], where), boxes)
                    text, last_pieces = encode_words(tokenizer, words[number], max_length, where)
                    yield ReadSentence(row, probes, text, last_pieces)


def _boxes(regions: Regions, image_id: int) -> list[list[float]]:
    if "boxes" not in regions:
        raise ValueError(
            f"image {image_id}: its regions have no boxes; expected boxes to compare with those of the phrases"
        )
    return regions["boxes"].tolist()


def _count_batch(
    found: Grounding,
    model: PreTrainedModel,
    tokenizer: Any,
    read: Sequence[ReadSentence],
    regions: Mapping[int, Regions],
) -> None:
    layers, hits_PLH, share_PLH = _attention_to_regions(model, tokenizer, read, regions)
    found.layers = layers
    baseline, chance, matchable = [], [], []
    places: dict[tuple[Group, int], list[int]] = {}
    number = 0
    for sentence in read:
        image_id = sentence.row["image_id"]
        count, first = len(regions[image_id]["visual_embeds"]), most_confident(regions[image_id])
        for probe in sentence.probes:
            baseline.append(first in probe.right)
            chance.append(len(probe.right) / max(1, count))
            matchable.append(bool(probe.right))
            for group in probe.groups:
                places.setdefault((group, image_id), []).append(number)
            number += 1
    numbers = [torch.tensor(values) for values in (baseline, chance, matchable)]
    for (group, _), place in places.items():
        found.counts.setdefault(group, HeadCounts()).add_image(
            hits_PLH[place], share_PLH[place], *(values[place] for values in numbers)
        )


def most_confident(regions: Regions) -> int:
    """The region with the highest confidence; the first one if confidences are not stored."""
    scores = regions.get("scores")
    return int(scores.argmax()) if scores is not None and len(scores) else 0


@torch.inference_mode()
def _attention_to_regions(
    model: PreTrainedModel, tokenizer: Any, read: Sequence[ReadSentence], regions: Mapping[int, Regions]
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """For all probes of the sentences, in order: the layers that read regions, whether the region attended to most is right
    [P, L, H], and the share of attention that goes to regions [P, L, H]."""
    texts = pad_texts([sentence.text for sentence in read], tokenizer)
    images = pad_regions([regions[sentence.row["image_id"]] for sentence in read])
    inputs = {name: tensor.to(model.device) for name, tensor in {**texts, **images}.items()}
    text_length, num_regions = inputs["input_ids"].shape[1], inputs["visual_embeds"].shape[1]
    rows = torch.tensor([row for row, sentence in enumerate(read) for _ in sentence.probes])
    words = torch.tensor([sentence.last_pieces[probe.word] for sentence in read for probe in sentence.probes])
    right_PR = torch.zeros(len(rows), num_regions, dtype=torch.bool)
    for place, probe in enumerate(probe for sentence in read for probe in sentence.probes):
        right_PR[place, list(probe.right)] = True
    layers, hits, shares = [], [], []
    for layer, weights_BHSS in enumerate(attention_weights(model, **inputs)):
        if weights_BHSS.shape[-1] == text_length and num_regions:  # late fusion: this layer does not read regions
            continue
        weights_PHR = weights_BHSS[rows, :, words, text_length:].float().cpu()
        layers.append(layer)
        shares.append(weights_PHR.sum(dim=-1))
        hits.append(_hits(weights_PHR, right_PR))
    return layers, torch.stack(hits, dim=1), torch.stack(shares, dim=1)


def _hits(weights_PHR: torch.Tensor, right_PR: torch.Tensor) -> torch.Tensor:
    """[P, H]: is the region with the largest weight right? Regions that are padding have weight 0."""
    if not right_PR.shape[1]:  # no image of the batch has any region
        return torch.zeros(weights_PHR.shape[:2], dtype=torch.bool)
    return right_PR.gather(1, weights_PHR.argmax(dim=-1))


def gathered(found: Any, processes: Processes) -> list[Any]:
    """The results of all processes, on each of them."""
    if processes.count == 1:
        return [found]
    from accelerate.utils import gather_object

    return gather_object([found])


__all__ = ["ALONE", "Grounding", "Regions", "RegionsOf", "count_grounding", "gathered", "most_confident"]
