"""Memory of a forward and backward, by a dry run on torch's meta device, where tensors have shapes and no values.

    blank = blank_model(ModelSettings(model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct"))     # no weights are read
    row_memory(blank, parameters, num_tokens=2063)       # RowMemory(peak_bytes=5.2e9, kv_token_bytes=24576)

Every operation of the model's own code is dispatched, so upcasts, dropout, adapters, experts, checkpointed layers and
chunks of the vocabulary are counted as they occur; memory is the sum of the storages that are alive. Invariant: nothing
is computed and nothing is allocated, whatever the size.

Shapes: N tokens of the row, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from flow_dpo.models.attention import layout_inputs
from flow_dpo.models.head import Head, decoder_of

META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class RowMemory:
    """The memory that a row takes in addition to the weights."""

    peak_bytes: int
    """The most that is alive at once, in the forward with gradients or in the backward."""
    kv_token_bytes: int
    """Bytes of the keys and values of one token, in all layers."""


def row_memory(model: PreTrainedModel, parameters: Sequence[torch.nn.Parameter], num_tokens: int) -> RowMemory:
    """The memory of a row of `num_tokens` tokens, all learned, and of its gradient with respect to the parameters.

    The model must be on the meta device with its adapter on. Raises one of `own_forward.FAULTS` if its code needs
    values.
    """
    attention, alive = _Attention(), _Alive(model)
    with alive:
        ids_1N = torch.zeros(1, num_tokens, dtype=torch.long, device=META)
        inputs = {"position_ids": ids_1N, "layout": attention, **layout_inputs(META)}
        hidden_NC = decoder_of(model)(input_ids=ids_1N, **inputs).last_hidden_state.flatten(0, 1)
        row_M = torch.arange(num_tokens, device="cpu")
        logprobs_M = Head(model).logprobs(hidden_NC, row_M, ids_1N[0])
        torch.autograd.grad(logprobs_M.sum(), list(parameters), materialize_grads=True)
    return RowMemory(peak_bytes=alive.peak, kv_token_bytes=attention.token_bytes)


class _Attention:
    """A layout that keeps the tensors that attention keeps: queries, keys, values and its output."""

    def __init__(self) -> None:
        self.token_bytes = 0
        self._seen: set[int] = set()

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
        del scaling, window
        if layer not in self._seen:  # count once, though a checkpointed layer is recomputed
            self._seen.add(layer)
            self.token_bytes += (key_1KND.nbytes + value_1KND.nbytes) // key_1KND.shape[2]
        return _Attended.apply(query_1HND, key_1KND, value_1KND)  # pyright: ignore[reportReturnType]


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        query, _, value = args
        out = query.new_empty(*query.shape[:3], value.shape[3])
        ctx.save_for_backward(*args, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations create on the meta device, as long as they are alive."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.peak = self._now = 0
        own = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        self._known: dict[int, Any] = {storage._cdata: storage for storage in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.device == META:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known[key] = weakref.ref(storage, lambda _: self._forget(key, size))
            self._now += size
            self.peak = max(self.peak, self._now)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self._now -= size
