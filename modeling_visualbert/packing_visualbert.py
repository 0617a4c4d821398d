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
        rows_B: Which row of the batch comes where.
        lengths_B: Visible positions of each row, in packed order.
        places_N: For each packed position its place `row * S + column` in the flattened batch.
        groups: Length of a row and number of rows that have it, in packed order.
    """

    shape: tuple[int, int]
    rows_B: torch.Tensor
    lengths_B: torch.Tensor
    places_N: torch.Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def from_mask(cls, mask_BS: torch.Tensor) -> "Packing":
        """From a bool mask, True where visible, with any pattern. A row without anything visible keeps its first position.

        The lengths are needed outside of the tensors, so a mask on a GPU is waited for, once for all layers.
        """
        first = torch.arange(mask_BS.shape[1], device=mask_BS.device) == 0
        mask_BS = mask_BS | (first & ~mask_BS.any(dim=1, keepdim=True))
        lengths_B, rows_B = mask_BS.sum(dim=1).sort(stable=True)
        row_N, column_N = mask_BS[rows_B].nonzero(as_tuple=True)
        places_N = rows_B[row_N] * mask_BS.shape[1] + column_N
        groups = tuple(Counter(lengths_B.tolist()).items())
        return cls((mask_BS.shape[0], mask_BS.shape[1]), rows_B, lengths_B, places_N, groups)

    def pack(self, states_BSD: torch.Tensor) -> torch.Tensor:
        """[1, N, D] of [B, S, D]."""
        return states_BSD.flatten(0, 1).index_select(0, self.places_N)[None]

    def unpack(self, states_1ND: torch.Tensor) -> torch.Tensor:
        """[B, S, D] of [1, N, D], zero where nothing is visible."""
        padded = states_1ND.new_zeros(self.shape[0] * self.shape[1], states_1ND.shape[-1])
        return padded.index_copy(0, self.places_N, states_1ND[0]).unflatten(0, self.shape)

    def places_of(self, read_BP: torch.Tensor) -> torch.Tensor:
        """Packed places of positions in the padded rows, rows in packed order; 0 for a position that is not visible."""
        packed = read_BP.new_zeros(self.shape[0] * self.shape[1])
        packed[self.places_N] = torch.arange(len(self.places_N), device=packed.device, dtype=packed.dtype)
        return packed.view(self.shape).gather(1, read_BP)[self.rows_B]

    def restore_rows(self, states_BPD: torch.Tensor) -> torch.Tensor:
        """Rows in packed order -> rows in the order of the batch."""
        return states_BPD.index_select(0, self.rows_B.argsort())

    def attend(
        self, attend: Callable, takes_lengths: bool, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """
        Every row attends to itself.

        Args:
            attend: Attention of a dense batch: [B, H, queries, E], [B, H, S, E], [B, H, S, E] -> [B, queries, H, E].
            takes_lengths: Whether it also takes a packed batch, with [`~Packing.varlen_arguments`].
            query: [1, N, H, E], or [B, P, H, E] with rows in packed order.
            key, value: [1, N, H, E].

        Returns:
            A tensor shaped like `query`.
        """
        num_queries = None if query.shape[:2] == key.shape[:2] else query.shape[1]
        if takes_lengths or key.is_cuda:  # one kernel for all rows
            packed = [tensor.flatten(0, 1) for tensor in (query, key, value)]
            lengths = self.varlen_arguments(num_queries)
            if not takes_lengths:
                return varlen_attn(*packed, *lengths.values()).view_as(query)
            return attend(*(tensor.transpose(0, 1)[None] for tensor in packed), **lengths).view_as(query)
        sizes = [length * rows for length, rows in self.groups]
        query_sizes = sizes if num_queries is None else [num_queries * rows for _, rows in self.groups]
        split = (
            tensor.flatten(0, 1).split(parts) for tensor, parts in ((query, query_sizes), (key, sizes), (value, sizes))
        )
        contexts = [
            attend(*(part.unflatten(0, (rows, -1)).transpose(1, 2) for part in parts)).flatten(0, 1)
            for (_, rows), *parts in zip(self.groups, *split, strict=True)
        ]
        return torch.cat(contexts).view_as(query)

    def varlen_arguments(self, num_queries: int | None = None) -> dict[str, Any]:
        """Where rows begin and how long they are, as variable-length kernels want it.

        Args:
            num_queries: P; None when every position asks.
        """
        starts = F.pad(self.lengths_B.cumsum(0), (1, 0)).to(torch.int32)
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


def can_pack(states: torch.Tensor, implementation: str, dropout: float) -> bool:
    """Whether attention without padding exists here.

    Args:
        states: What goes into the encoder.
        implementation: Name of the attention implementation.
        dropout: Of the attention weights, now.
    """
    if torch.compiler.is_compiling():  # one graph for all lengths
        return False
    if states.is_cuda and implementation == "sdpa":  # torch's kernel is for half precision and has no dropout
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else states.dtype
        return varlen_attn is not None and dropout == 0.0 and dtype in (torch.float16, torch.bfloat16)
    return implementation.startswith("flash_attention") or (
        states.device.type == "cpu" and implementation in ("eager", "sdpa")
    )


__all__ = ["Packing", "can_pack"]
