"""Regions of a feature store -> the visual part of a batch, copied once and in the store's own precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


class StoredRegions(dict[str, np.ndarray]):
    """Regions of an image as a store has them: read-only views of its file.

    All numbers were checked when they were written, so [`processor_arguments`] does not look at them again.
    """


def pad_stored(examples: Sequence[Sequence[Mapping[str, np.ndarray]]]) -> dict[str, torch.Tensor]:
    """Pad the regions of B examples to the longest: `visual_embeds` [B, R, V] in their own dtype, and `visual_attention_mask`
    [B, R].

    The images of an example follow one another; if there are several, `visual_token_type_ids` [B, R] is 0 for the first, 1 for
    the next, ...
    """
    features = [[np.asarray(image["visual_embeds"]) for image in images] for images in examples]
    lengths = np.array([sum(map(len, rows)) for rows in features])
    first = features[0][0]
    padded = np.empty((len(examples), lengths.max(), first.shape[1]), first.dtype.newbyteorder("="))
    mask = np.arange(lengths.max()) < lengths[:, None]
    segments = np.zeros(padded.shape[:2], np.int64)
    for row, images in enumerate(features):
        end = 0
        for number, one in enumerate(images):
            start, end = end, end + len(one)
            padded[row, start:end] = one
            segments[row, start:end] = number
        padded[row, end:] = 0
    batch = {"visual_embeds": torch.from_numpy(padded), "visual_attention_mask": torch.from_numpy(mask).long()}
    if any(len(images) > 1 for images in features):
        batch["visual_token_type_ids"] = torch.from_numpy(segments)
    return batch


def processor_arguments(images: Sequence[Any] | None) -> dict[str, Any]:
    """Images or regions of examples (or lists of several) as arguments of the processor; those of a store are only padded."""
    if images is None:
        return {}
    listed = [one if isinstance(one, (list, tuple)) else [one] for one in images]
    if all(isinstance(image, StoredRegions) for one in listed for image in one):
        return {"regions": pad_stored(listed)}
    return {"images": images}


__all__ = ["StoredRegions", "pad_stored", "processor_arguments"]
