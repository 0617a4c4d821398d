"""The joint sequence of text and regions: its mask, and the positions in it that the heads read.

Letters: B batch, T text tokens, R regions, S = T + R, D hidden size, P positions that are read, C choices,
E phrases.
"""

from collections.abc import Iterable

import torch

_OF_IMAGES = ("visual", "pixel", "image", "region", "box", "bbox")  # beginnings of the names that are in use


def text_of(
    input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, axes: tuple[str, ...] = ("batch_size", "length")
) -> torch.Tensor:
    """Whichever of the two forms of the text was given: [B, T] or [B, T, D].

    Args:
        axes: Names of the dimensions of `input_ids`.

    Raises:
        ValueError: Both or neither, or one of another shape.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of `input_ids` and `inputs_embeds`")
    name, text, expected = "input_ids", input_ids, axes
    if text is None:
        name, text, expected = "inputs_embeds", inputs_embeds, (*axes, "hidden_size")
    assert text is not None
    if text.dim() != len(expected):
        raise ValueError(f"`{name}` of shape {tuple(text.shape)}; expected ({', '.join(expected)})")
    return text


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
    """Bool [B, S], True where visible. A missing mask counts as all ones; None when both are missing.

    Raises:
        ValueError: A mask has another length than what it masks or (on a CPU) negative values.
    """
    if text_mask is None and visual_mask is None:
        return None
    batch_size, total_length = states_BSD.shape[:2]
    _check_mask(text_mask, "attention_mask", "text_length", text_length)
    _check_mask(visual_mask, "visual_attention_mask", "regions", total_length - text_length)
    if text_mask is None:
        text_mask = torch.ones(batch_size, text_length, dtype=torch.bool, device=states_BSD.device)
    if visual_mask is None:
        visual_mask = torch.ones(batch_size, total_length - text_length, dtype=torch.bool, device=states_BSD.device)
    return torch.cat((text_mask.to(torch.bool), for_each_text(visual_mask.to(torch.bool), batch_size)), dim=1)


def _check_mask(mask: torch.Tensor | None, name: str, dimension: str, length: int) -> None:
    """A mask of another length would hide other positions than were meant; one that is added to scores would hide none."""
    if mask is None:
        return
    if mask.dim() != 2 or mask.shape[1] != length:
        raise ValueError(
            f"`{name}` of shape {tuple(mask.shape)}; expected (batch_size, {dimension}), here (_, {length})"
        )
    if has_values(mask) and mask.numel() and mask.min() < 0:
        raise ValueError(f"`{name}` holds {mask.min().item()}; expected 1 for what is there, 0 for padding")


def has_values(tensor: torch.Tensor) -> bool:
    """Whether they can be looked at: that would wait for another device, and break a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def check_phrases(positions_BE: torch.Tensor, batch_size: int, text_length: int) -> None:
    """Refuse positions of phrases that are none of the text: behind it, regions would be read.

    Raises:
        ValueError: The shape is not `(batch_size, phrases)`, they are no whole numbers, or (on a CPU) they are beyond the text.
    """
    if positions_BE.dim() != 2 or positions_BE.shape[0] != batch_size or positions_BE.is_floating_point():
        found = f"{positions_BE.dtype} {tuple(positions_BE.shape)}"
        raise ValueError(f"`region_to_phrase_position` is {found}; expected whole numbers ({batch_size}, phrases)")
    if has_values(positions_BE) and positions_BE.numel() and positions_BE.max() >= text_length:
        raise ValueError(
            f"`region_to_phrase_position` holds {positions_BE.max().item()}; expected positions in the text, 0 to "
            f"{text_length - 1}, or -1 for padding"
        )


def check_no_other_images(arguments: Iterable[str]) -> None:
    """Refuse images under the names of other models, without which the text alone would be read.

    Args:
        arguments: Names of arguments that the model does not know.

    Raises:
        TypeError: One is the name of an image or its regions.
    """
    for name in arguments:
        if name.startswith(_OF_IMAGES):
            raise TypeError(
                f"unknown argument `{name}`; expected regions as `visual_embeds`, or images as `pixel_values`"
            )


def cls_positions(text: torch.Tensor) -> torch.Tensor:
    """[B, 1]: where the pooled `[CLS]` state is read, given the text as [B, T] or [B, T, D]."""
    return torch.zeros(text.shape[0], 1, dtype=torch.long, device=text.device)


def answer_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """[B]: where the answer to a question is read, given the mask of the text [B, T]. The text ends in `[MASK] [SEP]`, so this is
    the last token but one."""
    return (attention_mask.long().sum(dim=1) - 2).clamp(min=0)


def word_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """[B, T]: all positions of the text, given its mask; those of padding are 0, so that no padding is read."""
    return torch.arange(attention_mask.shape[1], device=attention_mask.device) * attention_mask.bool()


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
    "check_no_other_images",
    "check_phrases",
    "cls_positions",
    "flatten_choices",
    "for_each_text",
    "gather_states",
    "has_values",
    "joint_mask",
    "phrase_and_region_positions",
    "text_of",
    "word_positions",
]
