"""Images with the attention of selected heads, for the figures of an analysis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..data.flickr30k import load_flickr30k
from ..features.extract import region_names
from ..hub_code.explain_visualbert import attention_weights
from ..hub_code.image_processing_visualbert import load_image
from ..hub_code.regions_visualbert import pad_regions
from ..hub_code.text_visualbert import encode_words, pad_texts
from ..metrics.grounding import matching_proposals
from ..visualization import region_labels
from .figures import MAX_IMAGE_LAYERS, Example
from .run import Material


def make_examples(material: Material, report: Mapping[str, Any], count: int) -> Iterator[tuple[str, Example]]:
    """Yield (sentence id, example) for the first images of the split that have phrases with boxes.

    Each example is the sentence with the most such phrases, with the best head of each of up to six layers.

    Args:
        material: The analysed checkpoint and data.
        report: The result of the analysis, see [`grounding_report`].
        count: Number of images.
    """
    heads = _chosen_heads(report)
    made = 0
    for image_id in material.image_ids["test"]:
        if made == count:
            return
        rows = list(load_flickr30k(material.folder, [image_id], skipped=[]))
        ((_, regions),) = material.regions_of([image_id])
        if rows and len(regions["visual_embeds"]):
            row = max(rows, key=lambda row: len(row["phrases"]))
            made += 1
            yield f"{image_id}-{row['sentence_number']}", _example(material, row, regions, heads)


def _chosen_heads(report: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(layer, head), counted from 1, for at most six layers from first to last."""
    best = report["entities"]["all"]["best_of_each_layer"]
    places = np.linspace(0, len(best) - 1, min(len(best), MAX_IMAGE_LAYERS)).round().astype(int)
    return [(best[place]["layer"], best[place]["head"]) for place in places]


@torch.inference_mode()
def _example(
    material: Material, row: Mapping[str, Any], regions: Mapping[str, torch.Tensor], heads: Sequence[tuple[int, int]]
) -> Example:
    words = row["sentence"].split()
    text, last_pieces = encode_words(material.tokenizer, words, max_length=512, name=f"image {row['image_id']}")
    inputs = {**pad_texts([text], material.tokenizer), **pad_regions([regions])}
    attentions = attention_weights(material.model, **{k: v.to(material.model.device) for k, v in inputs.items()})
    first_region = inputs["input_ids"].shape[1]
    boxes = regions["boxes"].tolist()
    encoder = material.model.region_encoder if material.model.config.region_encoder_config is not None else None
    names = {} if encoder is None else region_names(encoder)
    return Example(
        image=load_image(material.paths[row["image_id"]]),
        boxes=boxes,
        labels=region_labels({k: regions[k] for k in ("boxes", "class_ids") if k in regions}, names.get("classes")),
        words=words,
        heads=[f"layer {layer}, head {head}" for layer, head in heads],
        weights=np.stack(
            [
                attentions[layer - 1][0, head - 1, last_pieces, first_region:].float().cpu().numpy()
                for layer, head in heads
            ]
        ),
        right={
            word: matching_proposals(gold, boxes) for word, gold in zip(row["last_words"], row["boxes"], strict=True)
        },
    )


__all__ = ["make_examples"]
