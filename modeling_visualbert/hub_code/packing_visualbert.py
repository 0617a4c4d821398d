"""Faster encoding: rows of different lengths without their padding, and a last layer that computes only what is read.

[`encode`] runs layers over a batch, and [`choose_kernel`] decides whether the padding can be left out. Simply calling the layers
with padded states and a mask would give the same results.

Letters: B batch (rows), S longest row, N visible positions of all rows together, P positions of each row that are read, D hidden
size, H heads, E size of a head.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import is_flash_attention_requested

from .sequence_visualbert import gather_states

varlen_attn: Any
try:  # torch 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


@dataclass(frozen=True)
class Packing:
    """
    Which positions of a padded batch are visible. The packed states are these positions, row by row, shorter rows first: rows of
    the same length are neighbours and form a dense batch of their own.

    Args:
        shape: B and S.
        row_order: [B], the rows of the batch in packed order.
        row_lengths: [B], visible positions of each row, in packed order.
        places: [N], for each packed position its place `row * S + column` in the flattened batch.
        groups: Each length and the number of rows that have it, in packed order.
        kernel: The attention kernel, see [`packed_kernel`].
    """

    shape: tuple[int, int]
    row_order: torch.Tensor
    row_lengths: torch.Tensor
    places: torch.Tensor
    groups: tuple[tuple[int, int], ...]
    kernel: str

    @classmethod
    def from_mask(cls, mask_BS: torch.Tensor, kernel: str = "rows") -> "Packing":
        """From a bool mask, True where visible, in any pattern. A row with nothing visible keeps its first position.

        The lengths are needed as Python numbers, so with a mask on a GPU this synchronises, once for all layers.
        """
        width = mask_BS.shape[1]
        first = torch.arange(width, device=mask_BS.device) == 0
        mask_BS = mask_BS | (first & ~mask_BS.any(dim=1, keepdim=True))
        lengths_B, rows_B = mask_BS.sum(dim=1).sort(stable=True)
        lengths = lengths_B.tolist()
        # `nonzero` would synchronise with the GPU a second time, to learn how many there are.
        visible_N = mask_BS[rows_B].flatten().logical_not().to(torch.uint8).sort(stable=True).indices[: sum(lengths)]
        places_N = rows_B[visible_N // width] * width + visible_N % width
        return cls((mask_BS.shape[0], width), rows_B, lengths_B, places_N, tuple(Counter(lengths).items()), kernel)

    def pack(self, states_BSD: torch.Tensor) -> torch.Tensor:
        """[1, N, D] of [B, S, D]."""
        return states_BSD.flatten(0, 1).index_select(0, self.places)[None]

    def unpack(self, states_1ND: torch.Tensor) -> torch.Tensor:
        """[B, S, D] of [1, N, D], zero where nothing is visible."""
        padded = states_1ND.new_zeros(self.shape[0] * self.shape[1], states_1ND.shape[-1])
        return padded.index_copy(0, self.places, states_1ND[0]).unflatten(0, self.shape)

    def places_of(self, read_BP: torch.Tensor) -> torch.Tensor:
        """[B, P], rows in packed order: where the given (visible) positions of the padded rows are in the packed states."""
        packed = read_BP.new_zeros(self.shape[0] * self.shape[1])
        packed[self.places] = torch.arange(len(self.places), device=packed.device, dtype=packed.dtype)
        return packed.view(self.shape).gather(1, read_BP)[self.row_order]

    def restore_rows(self, states_BPD: torch.Tensor) -> torch.Tensor:
        """Puts rows that are in packed order back into the order of the batch."""
        return states_BPD.index_select(0, self.row_order.argsort())

    def attend(self, attend: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """
        Attention within each row.

        Args:
            attend: Attention of a dense batch: [B, H, queries, E], [B, H, S, E], [B, H, S, E] -> [B, queries, H, E].
                For the `"flash"` kernel it is called with the packed rows as a batch of one, and [`~Packing.varlen_arguments`].
            query: [1, N, H, E], or [B, P, H, E] with rows in packed order.
            key, value: [1, N, H, E].

        Returns:
            A tensor shaped like `query`.
        """
        num_queries = None if query.shape[:2] == key.shape[:2] else query.shape[1]
        tensors = [tensor.flatten(0, 1) for tensor in (query, key, value)]
        if self.kernel == "flash":
            heads = (tensor.transpose(0, 1)[None] for tensor in tensors)
            return attend(*heads, **self.varlen_arguments(num_queries)).view_as(query)
        if self.kernel == "varlen":
            return varlen_attn(*tensors, *self.varlen_arguments(num_queries).values()).view_as(query)
        keys = [length * rows for length, rows in self.groups]
        queries = keys if num_queries is None else [num_queries * rows for _, rows in self.groups]
        parts = zip(
            *(tensor.split(sizes) for tensor, sizes in zip(tensors, (queries, keys, keys), strict=True)), strict=True
        )
        contexts = [
            attend(*(part.unflatten(0, (rows, -1)).transpose(1, 2) for part in group)).flatten(0, 1)
            for (_, rows), group in zip(self.groups, parts, strict=True)
        ]
        return torch.cat(contexts).view_as(query)

    def varlen_arguments(self, num_queries: int | None = None) -> dict[str, Any]:
        """Where rows begin and how long they are, in the form that variable-length kernels take.

        Args:
            num_queries: P; None when every position is a query.
        """
        starts = F.pad(self.row_lengths.cumsum(0), (1, 0)).to(torch.int32)
        longest = self.groups[-1][0]
        if num_queries is None:
            return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
        queries = num_queries * torch.arange(self.shape[0] + 1, device=starts.device, dtype=torch.int32)
        return {
            "cu_seq_lens_q": queries,
            "cu_seq_lens_k": starts,
            "max_length_q": num_queries,
            "max_length_k": longest,
        }


def encode(
    layers: nn.Module,
    states_BSD: torch.Tensor,
    mask_BS: torch.Tensor | None,
    read_BP: torch.Tensor | None = None,
    *,
    config: PretrainedConfig,
    kernel: str | None = None,
    **kwargs,
) -> torch.Tensor:
    """
    Run layers over a batch.

    Args:
        layers: The encoder or a single layer; called as `layers(states, mask, places, **kwargs)`.
        states_BSD: Embeddings of text and regions.
        mask_BS: True where visible; None when everything is.
        read_BP: Positions whose last states are wanted; all of them when not given.
        config: The model's configuration.
        kernel: What [`choose_kernel`] returned. With a kernel the padding is left out, and its states are zero.
        kwargs: Passed on to the layers.

    Returns:
        Last states, [B, P, D] of the positions to read or else [B, S, D].
    """
    if kernel is not None and mask_BS is not None:
        return _encode_packed(layers, states_BSD, Packing.from_mask(mask_BS, kernel), read_BP, **kwargs)
    if wants_attentions(config, **kwargs):
        mask = _additive_mask(mask_BS, states_BSD.dtype)
    else:
        mask = create_bidirectional_mask(
            config=config,
            inputs_embeds=states_BSD,
            attention_mask=mask_BS,
            allow_is_bidirectional_skip=states_BSD.device.type == "cpu",  # on a GPU it would synchronise
        )
    if read_BP is None:
        return layers(states_BSD, mask, **kwargs)
    one_row_serves_all = mask is None or config._attn_implementation in ("eager", "sdpa")  # of the mask, for any query
    if _records_layers(config, **kwargs) or not one_row_serves_all:
        return gather_states(layers(states_BSD, mask, **kwargs), read_BP)
    batch_size, length = states_BSD.shape[:2]
    places_BP = read_BP + length * torch.arange(batch_size, device=read_BP.device)[:, None]
    return layers(states_BSD, None if mask is None else mask[:, :, :1], places_BP, **kwargs)


def wants_attentions(config: PretrainedConfig, **kwargs) -> bool:
    """Whether attention weights are asked for; then attention is eager in this call, the only implementation that has them."""
    return bool(kwargs.get("output_attentions", config.output_attentions))


def _additive_mask(mask_BS: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """[B, 1, 1, S]: 0 where visible, else the smallest number, for eager attention."""
    if mask_BS is None:
        return None
    return torch.zeros_like(mask_BS, dtype=dtype).masked_fill(~mask_BS, torch.finfo(dtype).min)[:, None, None]


def _encode_packed(
    layers: nn.Module, states_BSD: torch.Tensor, packing: Packing, read_BP: torch.Tensor | None, **kwargs
) -> torch.Tensor:
    packed_1ND = packing.pack(states_BSD)
    if read_BP is None:
        return packing.unpack(layers(packed_1ND, packing, **kwargs))
    return packing.restore_rows(layers(packed_1ND, packing, packing.places_of(read_BP), **kwargs))


def choose_kernel(
    config: PretrainedConfig,
    states_BSD: torch.Tensor,
    mask_BS: torch.Tensor | None,
    read_BP: torch.Tensor | None,
    training: bool,
    **kwargs,
) -> str | None:
    """The attention kernel for rows without padding, see [`packed_kernel`]. None, which means that padding is computed as in the
    authors' code, when all states are wanted, when a state of padding is read, and where there is no kernel."""
    if mask_BS is None or read_BP is None or _records_layers(config, **kwargs):
        return None
    dropout = config.attention_probs_dropout_prob if training else 0.0
    head_size = config.hidden_size // config.num_attention_heads
    kernel = packed_kernel(states_BSD, head_size, config._attn_implementation, dropout)
    return None if kernel is None or not mask_BS.gather(1, read_BP).all() else kernel


def _records_layers(config: PretrainedConfig, **kwargs) -> bool:
    """Whether the states or attentions of all layers are asked for."""
    names = ("output_attentions", "output_hidden_states")
    return any(kwargs.get(name, getattr(config, name, False)) for name in names)


def packed_kernel(states: torch.Tensor, head_size: int, implementation: str, dropout: float) -> str | None:
    """The attention kernel for packed rows.

    Args:
        states: The input of the encoder.
        head_size: Size of one attention head.
        implementation: Name of the attention implementation.
        dropout: Dropout of the attention weights in this call.

    Returns:
        `"rows"`: the implementation itself, called once for all rows of the same length (CPU). `"varlen"`: torch's kernel for
        rows of any length (GPU from compute capability 8.0, half precision, no dropout). `"flash"`: the implementation itself,
        which is given the lengths. None: there is no kernel, rows have to be padded.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # one graph has to serve all lengths
        return None
    if is_flash_attention_requested(requested_attention_implementation=implementation):
        return "flash"
    if implementation not in ("eager", "sdpa"):
        return None
    if states.device.type == "cpu":
        return "rows"
    if not states.is_cuda or implementation != "sdpa" or varlen_attn is None or dropout > 0.0:
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else states.dtype
    fits = dtype in (torch.float16, torch.bfloat16) and head_size % 8 == 0 and head_size <= 256
    return "varlen" if fits and torch.cuda.get_device_capability(states.device) >= (8, 0) else None


__all__ = ["Packing", "choose_kernel", "encode", "packed_kernel", "wants_attentions"]
