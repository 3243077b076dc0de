"""Tree attention: masks and positions of packed rows, in which each token attends to its ancestors and itself.

Two layouts of the same attention:

    PathLayout   gathers the keys along the path of each piece of the row, and pads similar pieces into one batch
    CudaLayout   a block mask: k is an ancestor of q, or q itself, where k <= q < subtree_end[k] (CUDA, FlexAttention)

Invariant: both give what a dense mask over the whole row gives. The dense mask would cost N squared: in a row of 4,096
tokens with sixteen trees, sixteen times as much as is visible.

    row a b c d e x y, x after c        pieces [a b c d e] and [x y], the second with the keys a b c x y

Shapes: N tokens in the row, P pieces in a group, Q queries and L keys of a piece, H query heads, K key heads, D head
size, X heads and head size in one, M padded queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch

from flow_dpo.models.attention import Layout
from flow_dpo.models.flex_attention import CudaLayout

MAX_QUERIES = 256
"""Maximum number of queries in a piece: more would waste more of the square mask, fewer would copy more keys."""
MAX_WASTE = 1.15
"""Factor by which padding to one size may enlarge a group of pieces."""
SMALL_WASTE = 1 << 12
"""Query-key products up to which padding is cheaper than another call."""


class TreeRow(Protocol):
    """A packed row (`models.packing.PackedRow`), as far as its attention depends on it."""

    @property
    def positions_N(self) -> np.ndarray: ...
    @property
    def subtree_end_N(self) -> np.ndarray: ...
    @property
    def segments(self) -> Sequence[tuple[int, np.ndarray]]: ...
    @property
    def num_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Group:
    """Pieces of similar size, padded to one size."""

    queries_PQ: torch.Tensor
    keys_PL: torch.Tensor
    distance_PQL: torch.Tensor
    """Positions from key to query; negative where the query must not see the key."""


@dataclass(frozen=True, slots=True)
class _Gathered:
    """How a tensor of keys or values was gathered, to gather it again in the backward pass."""

    source_NX: torch.Tensor
    index_PL: torch.Tensor
    heads: int


def _unpack(saved: torch.Tensor | _Gathered) -> torch.Tensor:
    return saved if isinstance(saved, torch.Tensor) else _gather(saved.source_NX, saved.index_PL, saved.heads)


class RowLayout(Layout, Protocol):
    """The attention of a packed row."""

    def saving(self) -> AbstractContextManager[Any]:
        """A context for forwards in which autograd keeps few of the tensors that attention reads."""
        ...


def row_layout(row: TreeRow, device: torch.device) -> RowLayout:
    """The fastest layout on this device."""
    return CudaLayout(row, device) if device.type == "cuda" else PathLayout(row, device)


class PathLayout:
    """Attention in which each piece of the row attends to the keys of its path. A `models.attention.Layout`."""

    def __init__(self, row: TreeRow, device: torch.device | str = "cpu") -> None:
        self._row, self._device = row, torch.device(device)
        self._groups, self._order_N = _group_pieces(row, self._device)
        self._of_queries: tuple[torch.Tensor, PathLayout] | None = None
        self._masks: dict[tuple[int, int, int | None, torch.dtype], torch.Tensor] = {}
        self._reading: list[tuple[torch.Tensor, _Gathered]] = []
        """The gathered keys and values of the current attention call, and how each was made."""

    def saving(self) -> AbstractContextManager[None]:
        """A context in which autograd keeps no gathered keys and values: the backward pass gathers them again.

        They are several times as many as the row's tokens and, if every query head has its own key head, a quarter of
        the numbers that a layer keeps. Checkpointed layers keep nothing anyway.
        """
        return torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Gathered:
        for read, how in self._reading:
            same = tensor.data_ptr() == read.data_ptr() and tensor.shape == read.shape
            if same and tensor.stride() == read.stride():
                return how
        return tensor.detach()  # detached: an output kept by its own operation would be a reference cycle

    def of_queries(self, rows_R: torch.Tensor) -> PathLayout:
        """The layout of the same row in which only these tokens have queries; their indices must increase."""
        if self._of_queries is None or self._of_queries[0] is not rows_R:
            layout = copy(self)
            layout._groups, layout._order_N = _group_pieces(self._row, self._device, rows_R.numpy())
            layout._masks, layout._reading = {}, []
            self._of_queries = rows_R, layout
        return self._of_queries[1]

    def attend(
        self,
        layer: int,
        query_1HND: torch.Tensor,
        key_1KND: torch.Tensor,
        value_1KND: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        del layer
        # 1. One row of X numbers per token: rows are gathered much faster than columns, and after rotary embeddings
        #    this transpose is free.
        query_NX, key_NX, value_NX = (x[0].transpose(0, 1).flatten(1) for x in (query_1HND, key_1KND, value_1KND))
        kv_heads = key_1KND.shape[1]
        repeats = query_1HND.shape[1] // kv_heads
        outs_MX: list[torch.Tensor] = []
        for i, group in enumerate(self._groups):
            # 2. The queries and keys of this group's pieces: PQKGD, PKLD, PKLD.
            pieces, queries = group.queries_PQ.shape
            query = query_NX.index_select(0, group.queries_PQ.flatten()).view(pieces, queries, kv_heads, repeats, -1)
            key, value = (_gather(x, group.keys_PL, kv_heads) for x in (key_NX, value_NX))
            self._reading = [
                (gathered, _Gathered(source.detach(), group.keys_PL, kv_heads))
                for gathered, source in ((key, key_NX), (value, value_NX))
            ]
            # 3. Query heads that share a key head become further queries of it, PK(GQ)D: keys are never repeated.
            out = torch.nn.functional.scaled_dot_product_attention(
                query.permute(0, 2, 3, 1, 4).flatten(2, 3),
                key,
                value,
                attn_mask=self._mask(i, repeats, window, query.dtype),
                scale=scaling,
            )
            self._reading = []
            outs_MX.append(out.unflatten(2, (repeats, queries)).permute(0, 3, 1, 2, 4).reshape(pieces * queries, -1))
        # 4. Back to the order of the row, without padding.
        out_NX = torch.cat(outs_MX).index_select(0, self._order_N)
        return out_NX.unflatten(1, (kv_heads * repeats, -1)).transpose(0, 1)[None]

    def _mask(self, group: int, repeats: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Additive mask, P1(GQ)L. Made once for all layers: SDPA would convert a boolean mask in each of them."""
        mask = self._masks.get((group, repeats, window, dtype))
        if mask is None:
            distance = self._groups[group].distance_PQL
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            mask_PQL = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
            mask = self._masks[group, repeats, window, dtype] = mask_PQL.repeat(1, repeats, 1)[:, None]
        return mask


def _gather(x_NX: torch.Tensor, index_PL: torch.Tensor, heads: int) -> torch.Tensor:
    """The gathered keys or values, [P, heads, L, D]."""
    return x_NX.index_select(0, index_PL.flatten()).view(*index_PL.shape, heads, -1).transpose(1, 2)


def _group_pieces(
    row: TreeRow, device: torch.device, only_R: np.ndarray | None = None
) -> tuple[list[_Group], torch.Tensor]:
    """The row's segments as groups of padded pieces, and each token's index in their concatenated outputs, N. With
    `only_R` only these tokens have queries; they are indexed by their place in `only_R`, and the result is R long.
    """
    # 1. Cut each segment into pieces of at most MAX_QUERIES: (the queries' indices, the indices of all keys they see).
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    for start, path in row.segments:
        first = int(row.positions_N[start])
        cuts = np.linspace(first, len(path), 1 + -(-(len(path) - first) // MAX_QUERIES)).astype(int)
        pieces += [(path[low:high], path[:high]) for low, high in pairwise(cuts)]
    if only_R is not None:
        wanted = [(query[np.isin(query, only_R, assume_unique=True)], key) for query, key in pieces]
        pieces = [(query, key[: row.positions_N[query[-1]] + 1]) for query, key in wanted if len(query)]
    place_N = np.arange(row.num_tokens)
    if only_R is not None:
        place_N[only_R] = np.arange(len(only_R))
    pieces.sort(key=lambda piece: (_bucket(len(piece[0])), len(piece[1])), reverse=True)
    # 2. Pad pieces of similar size together.
    groups, order_N, offset = [], np.empty(row.num_tokens if only_R is None else len(only_R), np.int64), 0
    while pieces:
        size = _group_size(pieces)
        members, pieces = pieces[:size], pieces[size:]
        num_queries, num_keys = (max(len(m[k]) for m in members) for k in (0, 1))
        # 3. Indices of queries and keys, and the distance from each key to each query: the query at path index i and
        #    the key at path index j are i - j positions apart.
        queries_PQ = np.zeros((size, num_queries), np.int64)
        keys_PL = np.zeros((size, num_keys), np.int64)
        distance_PQL = np.full((size, num_queries, num_keys), -1, np.int64)
        for p, (query, key) in enumerate(members):
            queries_PQ[p, : len(query)], keys_PL[p, : len(key)] = place_N[query], key
            order_N[place_N[query]] = offset + p * num_queries + np.arange(len(query))
            distance_PQL[p, : len(query), : len(key)] = row.positions_N[query][:, None] - np.arange(len(key))
        # 4. A mask row in which nothing is visible has no softmax: padding queries see the first key.
        distance_PQL[:, :, 0] = np.where(distance_PQL.max(axis=2) < 0, 0, distance_PQL[:, :, 0])
        groups.append(_Group(*(torch.from_numpy(a).to(device) for a in (queries_PQ, keys_PL, distance_PQL))))
        offset += size * num_queries
    return groups, torch.from_numpy(order_N).to(device)


def _bucket(num_queries: int) -> int:
    return (num_queries - 1).bit_length()


def _group_size(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """How many of the first pieces to pad together: as many as possible with little waste."""
    area = most_queries = most_keys = 0
    for count, (query, key) in enumerate(pieces):
        area += len(query) * len(key)
        most_queries, most_keys = max(most_queries, len(query)), max(most_keys, len(key))
        padded = (count + 1) * most_queries * most_keys
        if padded > MAX_WASTE * area and padded - area > SMALL_WASTE:
            return count
    return len(pieces)
