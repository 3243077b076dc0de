"""Lean forward: a dense decoder in plain tensor operations, for model families whose layers are built alike.

Llama, Qwen 2 and 3, Mistral, Phi-3 and similar models are the same few operations: RMS norm, grouped-query attention
with rotary positions, a gated MLP. They are computed on the flat tokens of a step without modules, hooks or keyword
arguments; layers that read the same input share one product, and rotary tables are computed once. A small model's
forward then takes about four fifths of transformers' own time. Tokens of several roles go through one forward. Weights
with a merged adapter are applied to the slices of their role: half as many products as base and adapters separately.

    forward = lean_forward(role_model, "answer", max_packed_bytes=1 << 30)    # None if the family is built otherwise
    output = forward(ids, batch, [RoleSlice("answer", 0, 40), RoleSlice("stop", 40, 300)], wants_choices=True)

A model is recognised by its modules. Whether it also computes the same (multipliers, layers without positions) is
measured by `compatibility` before it is used. Invariant: logits are transformers' own up to rounding.

Shapes: N tokens, A rows, C hidden size, H query heads, K key-value heads, D head size, R rotated part of it, T
positions, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, pad

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Role, TokenIds
from flow_dpo.engines.local.flat_batch import FlatBatch
from flow_dpo.engines.local.forward import RoleModel, RoleSlice, StepOutput
from flow_dpo.engines.local.int8 import Int8Product
from flow_dpo.engines.local.products import LowRank, Product, ProductCache, bucket, can_pack, can_turn
from flow_dpo.models.dense_decoder import AttentionCall, Decoder, Layer, attention_calls, read_decoder
from flow_dpo.models.head import choice_logits

_FIRST_POSITIONS = 512
"""Number of positions in the first rotary tables; the number then doubles."""


@dataclass(frozen=True, slots=True)
class _RoleWeights:
    """The products of one role: four for each layer, then the head's."""

    sources: list[torch.Tensor]
    products: list[Product | Int8Product]
    adapters: list[LowRank | None]


@torch.inference_mode()
def lean_forward(
    role_model: RoleModel, role: Role, *, max_packed_bytes: int, most_positions: int | None = None, int8: bool = False
) -> LeanForward | None:
    """The lean forward for this role's model, and for others built alike; None if it is not built in the known way.

    `most_positions` is the longest context in which rotary positions do not depend on the context's length. With
    `int8`, products are approximate.
    """
    with role_model(role) as model:
        decoder = read_decoder(model)
        if decoder is None:
            return None
        calls = attention_calls(model, decoder)
    if calls is None:
        return None
    return LeanForward(role_model, decoder, calls, ProductCache(max_packed_bytes, int8=int8), most_positions)


@dataclass(frozen=True, slots=True)
class _LeanOutput:
    logits_AV: torch.Tensor
    hidden_AC: torch.Tensor
    row_roles: Callable[[], list[Role]]
    role_model: RoleModel
    exact: bool
    """Whether the logits are exactly the model's own, in float32."""

    def choice_logits(self, places: Sequence[int], choices: Sequence[TokenIds]) -> list[list[float]]:
        roles = self.row_roles()
        kept = [] if self.exact else [self.hidden_AC]
        found: dict[int, list[float]] = {}
        for role in dict.fromkeys(roles[place] for place in places):
            own = [index for index, place in enumerate(places) if roles[place] == role]
            with self.role_model(role) as model:
                logits = choice_logits(model, kept, self.logits_AV, [places[i] for i in own], [choices[i] for i in own])
            found |= zip(own, logits, strict=True)
        return [found[index] for index in range(len(places))]


class LeanForward:
    """A `forward.Forward` that takes any number of roles at once."""

    max_roles = 1 << 30

    def __init__(
        self,
        role_model: RoleModel,
        decoder: Decoder,
        calls: Sequence[AttentionCall],
        products: ProductCache,
        most_positions: int | None,
    ) -> None:
        self._role_model = role_model
        self._decoder = decoder
        self._calls = calls
        self._products = products
        self._most_positions = most_positions
        self._device = decoder.embedding_VC.device
        groups = [[layer.base.weight for layer in layers] for layers in _groups(decoder)]
        self.num_weights = max(sum(weight.numel() for weight in group) for group in groups)
        """Number of weights in the largest product."""
        self._pads = products.int8 or (can_pack(decoder.embedding_VC) and not all(map(can_turn, groups)))
        self._roles: dict[Role, _RoleWeights] = {}
        self._fresh: set[Role] = set()
        """Roles whose weights have been read since the last refresh."""
        self._cos_TR = self._sin_TR = torch.empty(0)

    def refresh(self) -> None:
        self._fresh.clear()

    def __call__(
        self, ids: Sequence[int], batch: FlatBatch, slices: Sequence[RoleSlice], *, wants_choices: bool
    ) -> StepOutput:
        parts = [(self._weights(role), begin, end) for role, begin, end in slices]
        # 1. Embeddings and rotary factors of the tokens, padded to a number of tokens that recurs.
        count, size = len(ids), len(ids)
        if self._pads:
            size = max([bucket(count), *(begin + bucket(end - begin) for _, begin, end in slices)])
        x_NC = embedding(torch.tensor([*ids, *[0] * (size - count)], device=self._device), self._decoder.embedding_VC)
        cos_N1R, sin_N1R = self._rotary(pad(batch.position_N, (0, size - count)), batch.num_positions)
        row_parts, num_rows = self._row_parts(batch, parts)
        # 2. The layers.
        for index, (block, call) in enumerate(zip(self._decoder.blocks, self._calls, strict=True)):
            # a. q, k and v side by side, split into heads; rotary positions apply to q and k.
            qkv_NHD = _apply(parts, 4 * index, block.attention_norm(x_NC)).unflatten(-1, (-1, call.size))
            value_NKD = qkv_NHD[:count, -call.kv_heads :]
            rest_NHD = qkv_NHD[:, : -call.kv_heads]
            if block.query_norm is not None and block.key_norm is not None:
                query_NHD, key_NKD = rest_NHD[:, : -call.kv_heads], rest_NHD[:, -call.kv_heads :]
                rest_NHD = torch.cat((block.query_norm(query_NHD), block.key_norm(key_NKD)), 1)
            rest_NHD = _rotated(rest_NHD, cos_N1R, sin_N1R)[:count]
            query_NHD, key_NKD = rest_NHD[:, : -call.kv_heads], rest_NHD[:, -call.kv_heads :]
            # b. Attention of the tokens without padding; the last layer computes only tokens whose logits are needed.
            attend = batch.attend_flat
            if index + 1 == len(self._decoder.blocks) and len(batch.last_N) < count:
                attend, count, x_NC = batch.attend_last, len(batch.last_N), x_NC.index_select(0, batch.last_N)
                parts, size = row_parts, num_rows
                x_NC = pad(x_NC, (0, 0, 0, size - count))
            out_NC = attend(query_NHD, key_NKD, value_NKD, scaling=call.scaling, window=call.window).flatten(1)
            if size > count:
                out_NC = pad(out_NC, (0, 0, 0, size - count))
            x_NC = _apply(parts, 4 * index + 1, out_NC, x_NC)
            # c. The gated MLP.
            gate_N, up_N = _apply(parts, 4 * index + 2, block.mlp_norm(x_NC)).chunk(2, -1)
            x_NC = _apply(parts, 4 * index + 3, block.activation(gate_N).mul_(up_N), x_NC)
        # 3. Logits of each row's last token.
        hidden_AC = self._decoder.norm(x_NC)
        logits_AV = _apply(row_parts, -1, hidden_AC)
        num_rows = len(batch.last_N)

        def row_roles() -> list[Role]:
            return [
                slice_.role
                for slice_, (_, begin, end) in zip(slices, row_parts, strict=True)
                for _ in range(begin, end)
            ]

        exact = hidden_AC.dtype == torch.float32 and not self._products.int8
        return _LeanOutput(logits_AV[:num_rows], hidden_AC[:num_rows], row_roles, self._role_model, exact)

    def _row_parts(
        self, batch: FlatBatch, parts: Sequence[tuple[_RoleWeights, int, int]]
    ) -> tuple[list[tuple[_RoleWeights, int, int]], int]:
        """The slices in terms of rows instead of tokens, and the number of rows with padding."""
        last_A = batch.last_N
        ends = [len(last_A)]
        if len(parts) > 1:
            ends = torch.searchsorted(last_A, torch.tensor([end for _, _, end in parts], device=self._device)).tolist()
        row_parts = [(part[0], begin, end) for part, begin, end in zip(parts, [0, *ends], ends, strict=False)]
        size = max(begin + bucket(end - begin) for _, begin, end in row_parts) if self._pads else len(last_A)
        return row_parts, size

    def _weights(self, role: Role) -> _RoleWeights:
        """The role's products, updated at the first use after a refresh."""
        if role in self._fresh:
            return self._roles[role]
        with self._role_model(role) as model:
            decoder = read_decoder(model)
        if decoder is None or len(decoder.blocks) != len(self._decoder.blocks):
            raise ModelError(f"expected the model of role {role!r} to be built like that of other roles, found another")
        groups = _groups(decoder)
        sources = [layer.base.weight for layers in groups for layer in layers]
        # Free what the role no longer needs before packing anything: both together could exceed the budget.
        known = self._roles.pop(role, None)
        same = known is not None and all(map(_is, known.sources, sources))
        products = known.products if same and known else []
        del known
        products = products or [self._products.get([layer.base for layer in layers]) for layers in groups]
        self._roles[role] = _RoleWeights(sources, products, [LowRank.of(layers) for layers in groups])
        self._fresh.add(role)
        return self._roles[role]

    def _rotary(self, position_N: torch.Tensor, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The cosines and signed sines of these positions, N1R."""
        if num_positions > len(self._cos_TR):
            most = max(_FIRST_POSITIONS, 1 << (num_positions - 1).bit_length())
            most = max(num_positions, min(most, self._most_positions or most))
            cos_1TR, sin_1TR = self._steady_rotary(torch.arange(most, device=self._device)[None])
            half = sin_1TR.shape[-1] // 2
            # x cos + (-second half, first half) sin: the sign goes into the sine.
            self._cos_TR, self._sin_TR = cos_1TR[0], torch.cat((-sin_1TR[0, :, :half], sin_1TR[0, :, half:]), -1)
        return self._cos_TR[position_N][:, None], self._sin_TR[position_N][:, None]

    def _steady_rotary(self, position_1T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary module's cosines and sines, once two calls agree: MKL's first sine in a process can be imprecise
        (pytorch/pytorch issue 188792), and a table would keep it."""
        known = self._decoder.rotary(self._decoder.embedding_VC[:1], position_1T)
        for _ in range(8):
            again = self._decoder.rotary(self._decoder.embedding_VC[:1], position_1T)
            if all(map(torch.equal, known, again)):
                return again
            known = again
        raise ModelError("expected the same rotary factors from two calls in a row, found others in each of eight")


def _groups(decoder: Decoder) -> list[list[Layer]]:
    """The layers of each product: four products for each block, then the head's."""
    return [layers for block in decoder.blocks for layers in block.inputs] + [decoder.head]


def _is(left: object, right: object) -> bool:
    return left is right


def _apply(
    parts: Sequence[tuple[_RoleWeights, int, int]], index: int, x_NC: torch.Tensor, onto_NO: torch.Tensor | None = None
) -> torch.Tensor:
    """The product `index` of each role over its slice, with adapters; rows after the last slice are padding. If
    `onto_NO` is given, the result is added to it in place."""
    # 1. One role, or roles that differ only in their adapters: one product for all tokens. Otherwise slice by slice.
    first = parts[0][0].products[index]
    shared = all(weights.products[index] is first for weights, _, _ in parts)
    adds = onto_NO is not None and first.adds
    if shared and not adds:
        out_NO = first(x_NC)
    else:
        out_NO = onto_NO if onto_NO is not None and adds else x_NC.new_empty(len(x_NC), first.num_outputs)
        for weights, begin, end in [(parts[0][0], 0, len(x_NC))] if shared else parts:
            weights.products[index].write(x_NC, begin, end, out_NO, add=adds)
        if not adds and not shared and parts[-1][2] < len(x_NC):
            out_NO[parts[-1][2] :] = 0
    # 2. Adapters.
    for weights, begin, end in parts:
        if (adapter := weights.adapters[index]) is not None:
            adapter.add(x_NC[begin:end], out_NO[begin:end])
    return out_NO if adds or onto_NO is None else onto_NO.add_(out_NO)


def _rotated(x_NHD: torch.Tensor, cos_N1R: torch.Tensor, sin_N1R: torch.Tensor) -> torch.Tensor:
    """The heads with rotary positions applied to their rotated part."""
    size = cos_N1R.shape[-1]
    turned_NHR = x_NHD if size == x_NHD.shape[-1] else x_NHD[..., :size]
    swapped_NHR = turned_NHR.roll(size // 2, -1)
    if x_NHD.dtype == torch.float32:
        turned_NHR = (turned_NHR * cos_N1R).addcmul_(swapped_NHR, sin_N1R)
    else:  # rounded where transformers rounds
        turned_NHR = (turned_NHR * cos_N1R).add_(swapped_NHR.mul_(sin_N1R))
    return turned_NHR if size == x_NHD.shape[-1] else torch.cat((turned_NHR, x_NHD[..., size:]), -1)
