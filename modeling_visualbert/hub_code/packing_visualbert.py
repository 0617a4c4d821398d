"""Sequences of different lengths without their padding: what the encoder computes on instead of a padded batch.

Letters: B batch (rows), S longest row, N visible positions of all rows together, P positions of each row that are read, D hidden
size, H heads, E size of a head.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.utils.generic import is_flash_attention_requested

varlen_attn: Any
try:  # torch 2.10
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None


@dataclass(frozen=True)
class Packing:
    """
    Which positions of a padded batch are visible. Packed, they follow one another row by row, shorter rows first, so that rows
    of one length lie next to each other and are a dense batch of their own.

    Args:
        shape: B and S.
        row_order: [B], which row of the batch comes where.
        row_lengths: [B], visible positions of each row, in packed order.
        places: [N], for each packed position its place `row * S + column` in the flattened batch.
        groups: Length of a row and number of rows that have it, in packed order.
        kernel: What attends to them, see [`packed_kernel`].
    """

    shape: tuple[int, int]
    row_order: torch.Tensor
    row_lengths: torch.Tensor
    places: torch.Tensor
    groups: tuple[tuple[int, int], ...]
    kernel: str

    @classmethod
    def from_mask(cls, mask_BS: torch.Tensor, kernel: str = "rows") -> "Packing":
        """From a bool mask, True where visible, with any pattern. A row without anything visible keeps its first position.

        The lengths are needed outside of the tensors, so a mask on a GPU is waited for, once for all layers.
        """
        width = mask_BS.shape[1]
        first = torch.arange(width, device=mask_BS.device) == 0
        mask_BS = mask_BS | (first & ~mask_BS.any(dim=1, keepdim=True))
        lengths_B, rows_B = mask_BS.sum(dim=1).sort(stable=True)
        lengths = lengths_B.tolist()
        # `nonzero` would wait once more for a GPU to say how many there are.
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
        """Packed places of positions in the padded rows, rows in packed order. The positions must be visible."""
        packed = read_BP.new_zeros(self.shape[0] * self.shape[1])
        packed[self.places] = torch.arange(len(self.places), device=packed.device, dtype=packed.dtype)
        return packed.view(self.shape).gather(1, read_BP)[self.row_order]

    def restore_rows(self, states_BPD: torch.Tensor) -> torch.Tensor:
        """Rows in packed order -> rows in the order of the batch."""
        return states_BPD.index_select(0, self.row_order.argsort())

    def attend(self, attend: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """
        Every row attends to itself.

        Args:
            attend: Attention of a dense batch: [B, H, queries, E], [B, H, S, E], [B, H, S, E] -> [B, queries, H, E].
                The `"flash"` kernel gets the packed rows as a batch of one, and [`~Packing.varlen_arguments`].
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
        """Where rows begin and how long they are, as variable-length kernels want it.

        Args:
            num_queries: P; None when every position asks.
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


def packed_kernel(states: torch.Tensor, head_size: int, implementation: str, dropout: float) -> str | None:
    """What attends to packed rows.

    Args:
        states: What goes into the encoder.
        head_size: Of one attention head.
        implementation: Name of the attention implementation.
        dropout: Of the attention weights, now.

    Returns:
        `"rows"`: the implementation itself, once for all rows of one length (CPU). `"varlen"`: torch's kernel for rows of any
        length (GPU of compute capability 8.0, half precision, no dropout). `"flash"`: the implementation itself, told the
        lengths. None: nothing does; rows have to be padded.
    """
    if torch.compiler.is_compiling():  # one graph for all lengths
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


__all__ = ["Packing", "packed_kernel"]
