"""Fused decoder: a small dense decoder's forward and backward for learning, in the few operations of `fused_layers`.

Final hidden states are computed only where labels are read: in the last layer every token has a key and a value, but
only those tokens have a query and an MLP. `learner.logprobs` computes the packed rows of a prepared model like this:

    prepare(model)                                       # whether the model is small and of the known structure
    of(model)(model, row, layout, rows_R)                # hidden states, NC: zero except at these tokens

The weights under each adapter are merged once, and again when the adapter has changed. Invariants: values and gradients
are the model's own up to rounding, which `learner.check` measures before the first update; the model itself is not
changed.

Shapes: N tokens of the row, R of them with labels, C hidden size, X heads and head size in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn.functional import embedding, rms_norm
from transformers import PreTrainedModel

from flow_dpo.models import attention
from flow_dpo.models.dense_decoder import AttentionCall, Decoder, attention_calls, read_decoder
from flow_dpo.models.fused_layers import AfterAttention, BeforeAttention, FusedBlock
from flow_dpo.models.packing import PackedRow
from flow_dpo.models.tree_attention import PathLayout

MOST_WEIGHTS = 1 << 24
"""Models with more weights than this are not fused: copies with an adapter merged in would take too much memory, and
matrix products take most of the time anyway."""

_prepared: WeakKeyDictionary[torch.nn.Module, FusedDecoder] = WeakKeyDictionary()


def prepare(model: PreTrainedModel) -> bool:
    """Compute the model's packed rows by fused layers from now on. False if it is too large or built differently."""
    give_up(model)
    size = model.num_parameters()
    if model.device.type != "cpu" or model.dtype != torch.float32 or size > MOST_WEIGHTS:
        return False
    decoder = read_decoder(model)
    if decoder is None or model.config._attn_implementation != attention.NAME or not _known(decoder, model):
        return False
    with torch.no_grad():
        calls = attention_calls(model, decoder)
        cosine = decoder.rotary(decoder.embedding_VC[:1], torch.zeros(1, 1, dtype=torch.long))[0]
    if calls is None or any(call.size != cosine.shape[-1] for call in calls):
        return False
    _prepared[model] = FusedDecoder(model, calls)
    return True


def give_up(model: PreTrainedModel) -> None:
    """Compute the model's packed rows by its own modules from now on."""
    _prepared.pop(model, None)


def of(model: PreTrainedModel) -> FusedDecoder | None:
    """The fused decoder of a prepared model; None for others."""
    return _prepared.get(model)


def _known(decoder: Decoder, model: PreTrainedModel) -> bool:
    """Whether fused layers support all that `dense_decoder` allows and this model uses."""
    swish = all(type(block.activation).__name__ in ("SiLUActivation", "SiLU") for block in decoder.blocks)
    norms = [(b.query_norm, b.key_norm) for b in decoder.blocks]
    alike = all(query is None or key is None or query.eps == key.eps for query, key in norms)
    drops = any(p > 0 for m in model.modules() if isinstance(m, torch.nn.Dropout) for p in (m.p,))
    return swish and alike and not drops


@dataclass(frozen=True, slots=True)
class _State:
    """The decoder under the adapter that was on."""

    tensors: list[torch.Tensor]
    versions: list[int]
    decoder: Decoder
    blocks: list[FusedBlock]


class FusedDecoder:
    """The layers of one model, up to its final norm."""

    def __init__(self, model: PreTrainedModel, calls: list[AttentionCall]) -> None:
        self._calls = calls
        self._adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
        self._states: dict[tuple[str, ...], _State] = {}

    def __call__(
        self, model: PreTrainedModel, row: PackedRow, layout: PathLayout, rows_R: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states after the final norm, NC, of the tokens `rows_R`; zero for others."""
        state = self._state(model)
        # 1. Embeddings, and the rotations by position as complex numbers.
        x_NC = embedding(torch.from_numpy(row.token_ids_N), state.decoder.embedding_VC)
        cosine, sine = state.decoder.rotary(x_NC[:1], torch.from_numpy(row.positions_N)[None])
        half = cosine.shape[-1] // 2
        turn_N1R = torch.complex(cosine[0, :, :half], sine[0, :, :half])[:, None]
        # 2. The layers; of the last one only what these tokens need.
        for index, block in enumerate(state.blocks):
            query, key, value = BeforeAttention.apply(x_NC, block, turn_N1R, *block.before)
            call, attends = block.call, layout
            if index + 1 == len(state.blocks):
                attends, x_NC = layout.of_queries(rows_R), x_NC.index_select(0, rows_R)
                query = query[0].transpose(0, 1).index_select(0, rows_R).transpose(0, 1)[None]
            out = attends.attend(index, query, key, value, scaling=call.scaling, window=call.window)
            x_NC = AfterAttention.apply(out[0].transpose(0, 1).flatten(1), x_NC, block, *block.after)
        # 3. The final norm, and each token back at its place.
        norm = state.decoder.norm
        hidden_RC = rms_norm(x_NC, norm.weight.shape, norm.weight, norm.eps)
        return hidden_RC.new_zeros(row.num_tokens, hidden_RC.shape[1]).index_copy(0, rows_R, hidden_RC)

    def _state(self, model: PreTrainedModel) -> _State:
        """The weights under the adapter that is on, merged again if it has changed."""
        first = self._adapted[0] if self._adapted else None
        on = () if first is None or first.disable_adapters else tuple(first.active_adapters)
        tensors: list[Any] = [
            module_dict[name].weight
            for module in self._adapted
            for name in on
            if name in module.lora_A
            for module_dict in (module.lora_A, module.lora_B)
        ]
        versions = [tensor._version for tensor in tensors]
        state = self._states.get(on)
        same = state is not None and not any(map(_other, state.tensors, tensors))
        if state is None or not same or state.versions != versions:
            # Tensors are updated in place: what was read from the modules stays valid.
            decoder = state.decoder if state is not None and same else read_decoder(model)
            if decoder is None:
                raise RuntimeError("the model no longer has the structure that was prepared")
            with torch.no_grad():
                blocks = [FusedBlock(b, call) for b, call in zip(decoder.blocks, self._calls, strict=True)]
            state = self._states[on] = _State(tensors, versions, decoder, blocks)
        return state


def _other(left: object, right: object) -> bool:
    return left is not right
