"""Flat batch: the attention of one forward over rows of different lengths, prefill and decode together.

A step's inputs are some tokens of each row: the last sampled one of a row that decodes, a stretch of the prompt of a
row that is prefilled. All are concatenated into one flat row of tokens, so the model's matrix products are as large as
can be, while attention goes row by row: a token attends to its own row up to itself. Invariant: the keys and values of
every input token are in its row before anything attends, those that another row computes in the same step included.

    FlatBatch(rows, [RowInput(10, 11), RowInput(10, 11), RowInput(0, 7)])    rows 0 and 1 decode, row 2 prefills 7

Shapes: N flat tokens, A rows with one query each, P rows of a piece, T queries of each (padded), C capacity, H query
heads, K key-value heads, G = H / K, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from flow_dpo.engines.local.kv_rows import KvRows
from flow_dpo.engines.local.prefill_sharing import CopiedSpan

_LONGEST = 256
"""Queries of one row that attend at once; of more, half a large square would be masked and computed for nothing."""
_SHORT = 16
"""Queries up to which padding costs less than another piece."""


@dataclass(frozen=True, slots=True)
class RowInput:
    """A row's input: its tokens [begin, end), and copies of those before them that other rows of this step compute."""

    begin: int
    end: int
    copies: tuple[CopiedSpan, ...] = ()


@dataclass(slots=True)
class _Piece:
    """Queries of some neighbouring rows, padded to one length T."""

    first_row: int
    last_row: int
    num_keys: int
    """None of them sees a key beyond this one."""
    position_PT: torch.Tensor
    flat_PT: torch.Tensor
    """Index of each query in the flat row; padding repeats a row's last one."""
    real: torch.Tensor
    """Indices of those of the P * T queries that are not padding."""
    biases: dict[tuple[int | None, int], torch.Tensor] = field(
        default_factory=dict[tuple[int | None, int], torch.Tensor]
    )


class FlatBatch:
    """The attention of one forward over `rows`: a `models.attention.Layout`. Row i has the inputs `row_inputs[i]`.

    Rows with one input token come first, the others follow by ascending number of tokens.
    """

    def __init__(self, rows: KvRows, row_inputs: Sequence[RowInput]) -> None:
        self._rows = rows
        self._num_calls = 0
        self._device = rows.shapes.device
        self._num_single = next(
            (row for row, row_input in enumerate(row_inputs) if row_input.end - row_input.begin > 1), len(row_inputs)
        )
        row_N = [row for row, row_input in enumerate(row_inputs) for _ in range(row_input.end - row_input.begin)]
        position_N = [position for row_input in row_inputs for position in range(row_input.begin, row_input.end)]
        self.num_positions = max(row_input.end for row_input in row_inputs)
        """No token is at this position or beyond."""
        self._row_N, self.position_N = torch.tensor([row_N, position_N], device=self._device)
        self.last_N = (
            torch.tensor([row_input.end - row_input.begin for row_input in row_inputs], device=self._device).cumsum(0)
            - 1
        )
        """Index of the last input token of each row in the flat row."""
        self._copy_indices = _copy_indices(row_inputs, self._device)
        self._single_biases: dict[tuple[int | None, int], torch.Tensor] = {}
        self._pieces = _pieces(row_inputs, self._num_single, self._device)

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
        del layer  # a layer may attend twice; calls come in the same order in every forward
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
        """The same with heads after tokens: NHD. Calls come in the same order in every forward."""
        keys, values = self._rows.keys[self._num_calls], self._rows.values[self._num_calls]  # RKCD
        self._num_calls += 1
        # 1. Write the new keys and values into the rows, then copy what several rows share.
        for plane, new in ((keys, key_NKD), (values, value_NKD)):
            plane[self._row_N, :, self.position_N] = new
            if self._copy_indices is not None:
                to_row, to_position, from_row, from_position = self._copy_indices
                plane[to_row, :, to_position] = plane[from_row, :, from_position]
        # 2. Rows with one query, which are most rows of a decode step.
        single_NHD = self._attend_single(query_NHD[: self._num_single], keys, values, scaling, window)
        if not self._pieces:
            return single_NHD
        # 3. Prefilled rows, piece by piece.
        out_NHD = single_NHD.new_empty(*query_NHD.shape[:2], values.shape[-1])
        out_NHD[: self._num_single] = single_NHD
        for piece in self._pieces:
            out_NHD[piece.flat_PT.flatten()[piece.real]] = self._attend_piece(
                piece, query_NHD, keys, values, scaling, window
            )
        return out_NHD

    def _attend_single(
        self, query_AHD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """Rows with one query each attend over the whole capacity of the first rows, in memory order: AHD."""
        num_rows, num_heads, size = query_AHD.shape
        if not num_rows:
            return query_AHD.new_empty(0, num_heads, values.shape[-1])
        kv_heads, capacity = keys.shape[1:3]
        # 1. Query heads that share a key head become queries of it: AKGD against AKCD.
        query = query_AHD.reshape(num_rows, kv_heads, num_heads // kv_heads, size)
        keys, values = keys[:num_rows], values[:num_rows]
        # 2. The mask as an additive bias, [A * K, 1, C], made once for all layers.
        if (bias := self._single_biases.get((window, kv_heads))) is None:
            bias = _bias(self.position_N[:num_rows, None], capacity, window, self._bias_dtype(query.dtype))
            self._single_biases[window, kv_heads] = bias = bias.repeat_interleave(kv_heads, 0)
        # 3. Attention.
        if self._device.type != "cpu":
            mask = bias.view(num_rows, kv_heads, 1, capacity)
            out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
        else:
            # Two to three times as fast on a CPU as its fused attention, which is written for many queries.
            query, keys_T = query.flatten(0, 1), keys.flatten(0, 1).mT
            if query.dtype == torch.float32:
                scores = torch.baddbmm(bias, query, keys_T, alpha=scaling)
            else:
                scores = torch.bmm(query, keys_T).float().mul_(scaling).add_(bias)
            out = torch.bmm(scores.softmax(-1).to(values.dtype), values.flatten(0, 1))
        return out.reshape(num_rows, num_heads, values.shape[-1])

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
        """Attention outputs of the real queries of this piece, in the order of `piece.real`: [queries, H, D]."""
        keys = keys[piece.first_row : piece.last_row, :, : piece.num_keys]
        values = values[piece.first_row : piece.last_row, :, : piece.num_keys]
        (rows, length), num_heads, kv_heads = piece.flat_PT.shape, query_NHD.shape[1], keys.shape[1]
        group = num_heads // kv_heads
        # 1. Query heads that share a key head are folded into the query axis, so keys and values are never copied:
        #    PTKGD -> PK(GT)D against PKCD.
        query_PTKGD = query_NHD[piece.flat_PT].unflatten(2, (kv_heads, group))
        query = query_PTKGD.permute(0, 2, 3, 1, 4).flatten(2, 3)
        # 2. The mask as an additive bias, P1(GT)C, made once for all layers.
        if (bias := piece.biases.get((window, group))) is None:
            bias = _bias(piece.position_PT, piece.num_keys, window, query.dtype)
            bias = piece.biases[window, group] = bias[:, None].repeat(1, 1, group, 1)
        # 3. Attention, then back to [P * T, H, D] without the padding.
        out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scaling)
        out = out.view(rows, num_heads, length, values.shape[-1]).transpose(1, 2)
        return out.reshape(rows * length, num_heads, values.shape[-1])[piece.real]


def _bias(position_PT: torch.Tensor, num_keys: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask, PTC: 0 where a query sees a key, minus infinity where it does not."""
    key_C = torch.arange(num_keys, device=position_PT.device)
    position_PT1 = position_PT[..., None]
    hidden = key_C > position_PT1
    if window is not None:
        hidden |= key_C <= position_PT1 - window
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _copy_indices(row_inputs: Sequence[RowInput], device: torch.device) -> torch.Tensor | None:
    """Target row and position, source row and position of each copied token: [4, tokens]; None where there are none."""
    moves = [
        (row, position, copy.source, position)
        for row, row_input in enumerate(row_inputs)
        for copy in row_input.copies
        for position in range(copy.begin, copy.end)
    ]
    return torch.tensor(moves, device=device).T if moves else None


def _pieces(row_inputs: Sequence[RowInput], first: int, device: torch.device) -> list[_Piece]:
    """Pieces of the rows from `first` on: grouped so that padding at most doubles a row, cut to `_LONGEST` queries."""
    # 1. Where each row's tokens begin in the flat row.
    offsets = [0]
    for row_input in row_inputs:
        offsets.append(offsets[-1] + row_input.end - row_input.begin)
    pieces: list[_Piece] = []
    while first < len(row_inputs):
        # 2. A group: rows of at most twice the tokens of its first, which has fewest (or of few tokens anyway).
        shortest = row_inputs[first].end - row_inputs[first].begin
        last = first + 1
        while last < len(row_inputs) and row_inputs[last].end - row_inputs[last].begin <= max(_SHORT, 2 * shortest):
            last += 1
        group = row_inputs[first:last]
        # 3. Its pieces: the queries [at, at + _LONGEST) of all its rows. A row with fewer repeats its last query.
        count_P1 = torch.tensor([row_input.end - row_input.begin for row_input in group], device=device)[:, None]
        begin_P1 = torch.tensor([row_input.begin for row_input in group], device=device)[:, None]
        offset_P1 = torch.tensor(offsets[first:last], device=device)[:, None]
        longest = group[-1].end - group[-1].begin
        for at in range(0, longest, _LONGEST):
            index_T = torch.arange(at, min(at + _LONGEST, longest), device=device)
            token_PT = torch.minimum(index_T, count_P1 - 1)
            pieces.append(
                _Piece(
                    first_row=first,
                    last_row=last,
                    num_keys=max(min(row_input.end, row_input.begin + at + _LONGEST) for row_input in group),
                    position_PT=begin_P1 + token_PT,
                    flat_PT=offset_P1 + token_PT,
                    real=(index_T < count_P1).flatten().nonzero()[:, 0],
                )
            )
        first = last
    return pieces
