"""The joint sequence of text and regions: its mask, and the positions in it that the heads read.

Letters: B batch, T text tokens, R regions, S = T + R, D hidden size, P positions that are read, C choices,
E phrases.
"""

import torch


def text_of(input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
    """Whichever of the two forms of the text was given: [B, T] or [B, T, D].

    Raises:
        ValueError: Both or neither.
    """
    if input_ids is not None and inputs_embeds is None:
        return input_ids
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise ValueError("pass exactly one of `input_ids` and `inputs_embeds`")


def for_each_text(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """[B, ...] from one row per text or one row per image. With fewer images than texts, each image serves the same number of
    consecutive texts."""
    num_images = tensor.shape[0]
    if batch_size % num_images:
        raise ValueError(f"{num_images} images for {batch_size} texts; expected equally many texts about each image")
    return tensor[:, None].expand(-1, batch_size // num_images, *tensor.shape[1:]).flatten(0, 1)


def flatten_choices(tensor: torch.Tensor | None, ndim: int | None = None) -> torch.Tensor | None:
    """[B * C, ...] from [B, C, ...]. A tensor with `ndim` dimensions has one row per image and stays as it is."""
    return tensor if tensor is None or tensor.dim() == ndim else tensor.flatten(0, 1)


def joint_mask(
    text_mask: torch.Tensor | None, visual_mask: torch.Tensor | None, states_BSD: torch.Tensor, text_length: int
) -> torch.Tensor | None:
    """Bool [B, S], True where visible. A missing mask counts as all ones; None when both are missing."""
    if text_mask is None and visual_mask is None:
        return None
    batch_size, total_length = states_BSD.shape[:2]
    if text_mask is None:
        text_mask = torch.ones(batch_size, text_length, dtype=torch.bool, device=states_BSD.device)
    if visual_mask is None:
        visual_mask = torch.ones(batch_size, total_length - text_length, dtype=torch.bool, device=states_BSD.device)
    return torch.cat((text_mask.to(torch.bool), for_each_text(visual_mask.to(torch.bool), batch_size)), dim=1)


def cls_positions(text: torch.Tensor) -> torch.Tensor:
    """[B, 1]: where the pooled `[CLS]` state is read, given the text as [B, T] or [B, T, D]."""
    return torch.zeros(text.shape[0], 1, dtype=torch.long, device=text.device)


def answer_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """[B]: where the answer to a question is read, given the mask of the text [B, T]. The text ends in `[MASK] [SEP]`, so this is
    the last token but one."""
    return (attention_mask.long().sum(dim=1) - 2).clamp(min=0)


def phrase_and_region_positions(
    phrases_BE: torch.Tensor, visual_mask: torch.Tensor | None, text_length: int, num_regions: int
) -> torch.Tensor:
    """[B, E + R]: text positions of the phrases (not negative), then those of all regions. A padded region, whose score will
    be -10000 in any case, gets position 0, so that no padding is read."""
    batch_size = phrases_BE.shape[0]
    regions_R = text_length + torch.arange(num_regions, device=phrases_BE.device)
    regions_BR = regions_R.expand(batch_size, -1)
    if visual_mask is not None:
        regions_BR = regions_BR * for_each_text(visual_mask.to(torch.bool), batch_size)
    return torch.cat((phrases_BE, regions_BR), dim=1)


def gather_states(states_BSD: torch.Tensor, positions_BP: torch.Tensor) -> torch.Tensor:
    """[B, P, D]: the states at the given positions."""
    return states_BSD.gather(1, positions_BP[..., None].expand(-1, -1, states_BSD.shape[-1]))


__all__ = [
    "answer_positions",
    "cls_positions",
    "flatten_choices",
    "for_each_text",
    "gather_states",
    "joint_mask",
    "phrase_and_region_positions",
    "text_of",
]
