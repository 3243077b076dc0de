"""Flat batch: the attention of one forward over rows of different lengths, prefill and decode together.

A step's inputs are some tokens of each row: the last sampled token of a row that decodes, or a stretch of the prompt of
a row that is prefilled. All are concatenated into one flat row, so the model's matrix products are as large as
possible, while attention is computed row by row: a token attends to its own row up to itself. Invariant: the keys and
values of all input tokens are in their rows before attention is computed, also those that another row computes.

    FlatBatch(rows, [RowInput(10, 11), RowInput(10, 11), RowInput(0, 7)])    rows 0 and 1 decode, row 2 prefills 7

Shapes: N flat tokens, A rows with one query each, P rows of a piece with T queries each (padded), C capacity, H query
heads, K key-value heads, G = H / K, D head size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from flow_dpo.engines.local.kv_rows import KvRows
from flow_dpo.engines.local.prefill_sharing import CopiedSpan

_LONGEST = 256
"""Maximum number of queries of one row that attend at once: with more, half of a large square would be masked."""
_SHORT = 16
"""Number of queries up to which padding costs less than another piece."""
_SCORES = 1 << 22
"""Maximum number of attention scores held in memory at once on a CPU: 16 MiB."""
_TABLE = 1024
"""Number of keys up to which masks are rows of a table that is computed once: 4 MiB."""


class RowInput(NamedTuple):
    """A row's input: its tokens [begin, end), and copies of earlier tokens that other rows of this step compute."""

    begin: int
    end: int
    copies: tuple[CopiedSpan, ...] = ()


@dataclass(slots=True)
class _Piece:
    """Queries of some neighbouring rows, padded to one length T."""

    first_row: int
    last_row: int
    num_keys: int
    """No query of the piece sees a key at this index or beyond."""
    position_PT: torch.Tensor
    flat_PT: torch.Tensor
    """Index of each query in the flat row; padding repeats a row's last query."""
    real: torch.Tensor | None
    """Indices of the queries among P * T that are not padding; None if there is no padding."""
    index: torch.Tensor
    """Indices of these queries in the flat row."""
    biases: dict[tuple[int | None, int], torch.Tensor] = field(
        default_factory=dict[tuple[int | None, int], torch.Tensor]
    )


class FlatBatch:
    """The attention of one forward over `rows` (a `models.attention.Layout`). Row i has the inputs `row_inputs[i]`.

    Rows with one input token must come first; the others follow in ascending order of their number of tokens.
    """

    def __init__(self, rows: KvRows, row_inputs: Sequence[RowInput]) -> None:
        self._rows = rows
        self._num_calls = 0
        self._device = rows.shapes.device
        # 1. How many inputs each row has, and where in the row they begin.
        begin_A = np.array([row_input.begin for row_input in row_inputs])
        count_A = np.array([row_input.end for row_input in row_inputs]) - begin_A
        end_A = count_A.cumsum()
        self._num_single = int((count_A == 1).argmin()) if count_A[-1] > 1 else len(row_inputs)
        # 2. Row and position of every flat token, and the index of each row's last one.
        row_N = np.repeat(np.arange(len(row_inputs)), count_A)
        position_N = np.arange(end_A[-1]) + (begin_A - end_A + count_A)[row_N]
        self._row_N, self.position_N, self.last_N = (
            torch.from_numpy(each).to(self._device) for each in (row_N, position_N, end_A - 1)
        )
        self.num_positions = int((begin_A + count_A).max())
        """All tokens are at positions below this one."""
        self._num_keys = min(self.num_positions, rows.capacity)
        self._copy_indices = _copy_indices(row_inputs, self._device)
        self._places: dict[int, torch.Tensor] = {}
        self._single_biases: dict[tuple[int | None, int, int], torch.Tensor] = {}
        self._pieces = _pieces(begin_A, count_A, end_A - count_A, self._num_single, self._device)

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
        """Write this call's keys and values into the rows, then let every token attend to its own row."""
        del layer  # a layer can attend twice; calls come in the same order in every forward
        query_NHD, key_NKD, value_NKD = (x[0].transpose(0, 1) for x in (query_1HND, key_1KND, value_1KND))
        out_NHD = self.attend_flat(query_NHD, key_NKD, value_NKD, scaling=scaling, window=window)
        return out_NHD.transpose(0, 1)[None]

    def attend_flat(
        self,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """The same as `attend`, with heads after tokens: NHD. Calls must come in the same order in every forward."""
        # 1. Write the new keys and values into the rows.
        keys, values = self._store(key_NKD, value_NKD)
        # 2. Rows with one query, which are most rows of a decode step.
        single_NHD = self._attend_single(
            query_NHD[: self._num_single], self.position_N[: self._num_single], keys, values, scaling, window
        )
        if not self._pieces:
            return single_NHD
        # 3. Prefilled rows, piece by piece.
        out_NHD = single_NHD.new_empty(*query_NHD.shape[:2], values.shape[-1])
        out_NHD[: self._num_single] = single_NHD
        for piece in self._pieces:
            out_NHD[piece.index] = self._attend_piece(piece, query_NHD, keys, values, scaling, window)
        return out_NHD

    def attend_last(
        self,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """The same if only each row's last token is needed: AHD."""
        if query_NHD.dtype != torch.float32 and self._pieces:  # rounded like the whole prompt's
            return self.attend_flat(query_NHD, key_NKD, value_NKD, scaling=scaling, window=window)[self.last_N]
        keys, values = self._store(key_NKD, value_NKD)
        return self._attend_single(query_NHD[self.last_N], self.position_N[self.last_N], keys, values, scaling, window)

    def _store(self, key_NKD: torch.Tensor, value_NKD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write this call's keys and values into the rows and copy what rows share; returns the rows' planes, RKCD."""
        keys, values = self._rows.keys[self._num_calls], self._rows.values[self._num_calls]
        self._num_calls += 1
        for plane, new_NKD in ((keys, key_NKD), (values, value_NKD)):
            self._write(plane, new_NKD)
            if self._copy_indices is not None:
                to_row, to_position, from_row, from_position = self._copy_indices
                plane[to_row, :, to_position] = plane[from_row, :, from_position]
        return keys, values

    def _write(self, plane_RKCD: torch.Tensor, new_NKD: torch.Tensor) -> None:
        """Put the flat tokens' vectors into their rows, by one index: half the time of two indices around a slice."""
        _, heads, capacity, size = plane_RKCD.shape
        if (place := self._places.get(heads)) is None:
            head_K = torch.arange(heads, device=self._device)
            place = ((self._row_N[:, None] * heads + head_K) * capacity + self.position_N[:, None]).flatten()
            self._places[heads] = place
        plane_RKCD.view(-1, size).index_copy_(0, place, new_NKD.reshape(-1, size))

    def _attend_single(
        self,
        query_AHD: torch.Tensor,
        position_A: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Rows with one query each attend to all keys up to the longest row's length, in memory order: AHD."""
        num_rows, num_heads, size = query_AHD.shape
        if not num_rows:
            return query_AHD.new_empty(0, num_heads, values.shape[-1])
        keys, values = (plane[:num_rows, :, : self._num_keys] for plane in (keys, values))
        # 1. Query heads that share a key head become queries of it: AKGD against AKCD.
        kv_heads = keys.shape[1]
        query = query_AHD.reshape(num_rows, kv_heads, num_heads // kv_heads, size)
        # 2. The mask as an additive bias, A11C; per key head, [AK]1C, if it is added inside the product. Computed once.
        few = num_rows * num_heads * keys.shape[2] <= _SCORES
        added = few and query.dtype == torch.float32 and self._device.type == "cpu"
        repeats = kv_heads if added else 1
        if (bias := self._single_biases.get((window, num_rows, repeats))) is None:
            position = position_A.repeat_interleave(repeats)
            bias = _bias(position[:, None], keys.shape[2], window, self._bias_dtype(query.dtype))
            bias = self._single_biases[window, num_rows, repeats] = bias if added else bias[:, None]
        # 3. Attention.
        if added:
            scores = torch.baddbmm(bias, query.flatten(0, 1), keys.flatten(0, 1).mT, alpha=scaling).softmax(-1)
            return torch.bmm(scores, values.flatten(0, 1)).view(num_rows, num_heads, values.shape[-1])
        return _attention(query, keys, values, bias, scaling).reshape(num_rows, num_heads, values.shape[-1])

    def _bias_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if self._device.type == "cpu" else dtype

    def _attend_piece(
        self,
        piece: _Piece,
        query_NHD: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention outputs of the piece's real queries, in the order of `piece.index`: [queries, H, D]."""
        keys = keys[piece.first_row : piece.last_row, :, : piece.num_keys]
        values = values[piece.first_row : piece.last_row, :, : piece.num_keys]
        (rows, length), num_heads, kv_heads = piece.flat_PT.shape, query_NHD.shape[1], keys.shape[1]
        group = num_heads // kv_heads
        # 1. Query heads that share a key head are folded into the query axis, so keys and values are never copied:
        #    PTKGD -> PK(GT)D against PKCD.
        query_PTHD = query_NHD[piece.flat_PT]
        if group == 1:
            query = query_PTHD.transpose(1, 2)
        else:
            query = query_PTHD.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        # 2. The mask as an additive bias, P1(GT)C, computed once for all layers.
        if (bias := piece.biases.get((window, group))) is None:
            bias = _bias(piece.position_PT, piece.num_keys, window, self._bias_dtype(query.dtype))
            bias = bias[:, None] if group == 1 else bias[:, None].repeat(1, 1, group, 1)
            piece.biases[window, group] = bias
        # 3. Attention, then back to [P * T, H, D] without the padding.
        if group == 1 and query.dtype == torch.float32:
            out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
        else:
            out = _attention(query, keys, values, bias, scaling)
        out = out.view(rows, num_heads, length, values.shape[-1]).transpose(1, 2)
        out = out.reshape(rows * length, num_heads, values.shape[-1])
        return out if piece.real is None else out[piece.real]


class JoinedBatch(FlatBatch):
    """Flat batches over different rows, such as those of several roles, concatenated into one flat row."""

    def __init__(self, parts: Sequence[FlatBatch]) -> None:
        self._parts = parts
        sizes = [len(part.position_N) for part in parts]
        self._starts = [0, *itertools.accumulate(sizes)]
        self.position_N = torch.cat([part.position_N for part in parts])
        self.num_positions = max(part.num_positions for part in parts)
        self.last_N = torch.cat([part.last_N + at for part, at in zip(parts, self._starts, strict=False)])

    def attend_flat(
        self,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention within each part."""
        out_NHD = query_NHD.new_empty(*query_NHD.shape[:2], value_NKD.shape[2])
        for part, (begin, end) in zip(self._parts, itertools.pairwise(self._starts), strict=True):
            new = (each[begin:end] for each in (query_NHD, key_NKD, value_NKD))
            out_NHD[begin:end] = part.attend_flat(*new, scaling=scaling, window=window)
        return out_NHD

    def attend_last(
        self,
        query_NHD: torch.Tensor,
        key_NKD: torch.Tensor,
        value_NKD: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """Attention within each part, for the rows' last tokens."""
        outs: list[torch.Tensor] = []
        for part, (begin, end) in zip(self._parts, itertools.pairwise(self._starts), strict=True):
            new = (each[begin:end] for each in (query_NHD, key_NKD, value_NKD))
            outs.append(part.attend_last(*new, scaling=scaling, window=window))
        return torch.cat(outs)


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention of [B, K, Q, D] queries to [B, K, C, D] keys under an additive bias, [B, 1, 1 or Q, C]."""
    num_scores = query.shape[:3].numel() * keys.shape[2]
    # In half precision, a prompt's scores must be rounded like the learner's, or its choice would differ.
    as_learned = query.dtype != torch.float32 and bias.shape[2] > 1
    if query.device.type != "cpu" or num_scores > _SCORES or as_learned:
        bias = bias.to(query.dtype)
        return torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
    # Fused attention on a CPU is written for many queries, and takes two to three times as long for few.
    scores = torch.bmm(query.flatten(0, 1), keys.flatten(0, 1).mT)
    scores = torch.add(bias, scores.view(*query.shape[:3], -1).float(), alpha=scaling).softmax(-1).to(values.dtype)
    return torch.bmm(scores.flatten(0, 1), values.flatten(0, 1)).view(*query.shape[:3], -1)


def _bias(position_PT: torch.Tensor, num_keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask, PTC: 0 if a query sees a key, otherwise minus infinity."""
    if num_keys > _TABLE:
        return _made_bias(position_PT, num_keys, window, dtype)
    table = _bias_table(_TABLE if num_keys > _TABLE // 2 else _TABLE // 2, window, dtype, position_PT.device)
    return table[:, :num_keys].index_select(0, position_PT.flatten()).view(*position_PT.shape, num_keys)


@functools.lru_cache(maxsize=8)
def _bias_table(size: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The mask of every position below `size`, one row each."""
    return _made_bias(torch.arange(size, device=device)[None], size, window, dtype)[0]


def _made_bias(position_PT: torch.Tensor, num_keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    key_C = torch.arange(num_keys, device=position_PT.device)
    position_PT1 = position_PT[..., None]
    hidden = key_C > position_PT1
    if window is not None:
        hidden |= key_C <= position_PT1 - window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _copy_indices(row_inputs: Sequence[RowInput], device: torch.device) -> torch.Tensor | None:
    """Target row and position, source row and position of each copied token: [4, tokens]; None without copies."""
    moves = [
        (row, position, copy.source, position)
        for row, row_input in enumerate(row_inputs)
        for copy in row_input.copies
        for position in range(copy.begin, copy.end)
    ]
    return torch.tensor(moves, device=device).T if moves else None


def _pieces(
    begin_A: np.ndarray, count_A: np.ndarray, offset_A: np.ndarray, first: int, device: torch.device
) -> list[_Piece]:
    """Pieces of the rows from `first` on: grouped so that padding at most doubles a row, cut to `_LONGEST` queries. Row
    i has `count_A[i]` inputs starting at position `begin_A[i]`, and at `offset_A[i]` in the flat row."""
    pieces: list[_Piece] = []
    while first < len(count_A):
        # 1. A group: rows with at most twice the tokens of its first and shortest row (or with few tokens anyway).
        last = int(np.searchsorted(count_A, max(_SHORT, 2 * count_A[first]), side="right"))
        begin_P1, count_P1, offset_P1 = (each[first:last, None] for each in (begin_A, count_A, offset_A))
        longest = int(count_A[last - 1])
        # 2. Its pieces: the queries [at, at + _LONGEST) of all its rows. A row with fewer repeats its last query.
        for at in range(0, longest, _LONGEST):
            index_T = np.arange(at, min(at + _LONGEST, longest))
            token_PT = np.minimum(index_T, count_P1 - 1)
            real_PT = index_T < count_P1
            position_PT, flat_PT = (torch.from_numpy(each + token_PT).to(device) for each in (begin_P1, offset_P1))
            real = None if real_PT.all() else torch.from_numpy(real_PT.flatten().nonzero()[0]).to(device)
            pieces.append(
                _Piece(
                    first_row=first,
                    last_row=last,
                    num_keys=int((begin_P1 + np.minimum(count_P1, at + _LONGEST)).max()),
                    position_PT=position_PT,
                    flat_PT=flat_PT,
                    real=real,
                    index=flat_PT.flatten() if real is None else flat_PT.flatten()[real],
                )
            )
        first = last
    return pieces
