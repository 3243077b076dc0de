"""Output head of a model, applied only where it is needed: at a few positions, or for a few tokens of the vocabulary.

With a frozen linear head the vocabulary's logits are computed in chunks, and the forward also stores what the backward
needs of them: a vector for each position instead of a probability for each token of the vocabulary. An adapter on the
head, a cap on the logits or a quantised weight takes the general way, with the same result.

The logits of a few tokens (a request's choices) are computed in float32 whatever the model's precision. In half
precision the model's own logits are rounded to steps of 1/16 above 8 and 1/8 above 16, so two of them often tie:

    Head(model).logits(hidden_RC, ids_K)                      RK in float32, with a gradient
    with head_inputs(model) as kept: logits = model(...).logits
    choice_logits(model, kept, logits, places, choices)       the same for an engine, from the forward that it makes

Invariant: both are the model's own logits up to rounding; if a model processes its head's output in a way that is not
known here, `choice_logits` returns the model's own logits.

Shapes: N tokens in a row, C hidden size, R positions, M labels, V tokens of the vocabulary, K of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import TokenIds

MAX_LOGITS = 1 << 23
"""Maximum number of logits in memory at a time: 32 MiB in float32."""
MAX_HALF_LOGITS = 1 << 25
"""The same for a head in half precision, whose weight is repacked for every product."""
_ROUNDING = 0.02
"""Share of a row's largest logit by which half precision may round: at most 1/128 for each step of a model's own."""


def decoder_of(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its output head. Raises `ModelError` if the two are not separate modules."""
    decoder = model.get_decoder()
    if decoder is model:
        # transformers found none (Llama 4 declares another name than it uses).
        decoder = getattr(model, "model", None)
    if not isinstance(decoder, torch.nn.Module):
        raise ModelError(f"{type(model).__name__} has no decoder apart from its head; a causal model is needed")
    return decoder


class Head:
    """The output head of a model (hidden states to logits over the vocabulary), applied at label positions only."""

    def __init__(self, model: PreTrainedModel) -> None:
        module = model.get_output_embeddings()
        if module is None:
            raise ModelError(f"{type(model).__name__} has no head over a vocabulary; a causal language model is needed")
        if isinstance(module, ModulesToSaveWrapper):  # each role's own head, or the base's
            module = (
                module.modules_to_save[module.active_adapters[0]] if module.active_adapters else module.original_module
            )
        self._module: Any = module
        config = model.config.get_text_config()
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        # An adapter on the head, a quantised weight or a cap on the logits needs the general implementation.
        self._frozen = type(module) is torch.nn.Linear and not module.weight.requires_grad and self._cap is None

    def logits(self, hidden_RC: torch.Tensor, ids_K: torch.Tensor) -> torch.Tensor:
        """Logits of K tokens only, RK, computed in float32 whatever the model's precision."""
        module = self._module
        plain = type(module) is LoraLinear and not module.lora_magnitude_vector  # without DoRA
        base = module.get_base_layer() if plain else module
        if type(base) is not torch.nn.Linear:
            return self._shape(module(hidden_RC)).index_select(1, ids_K)
        hidden_RC = hidden_RC.float()
        bias_K = None if base.bias is None else base.bias[ids_K].float()
        few_RK = linear(hidden_RC, base.weight[ids_K].float(), bias_K)
        if plain and not module.disable_adapters:
            for name in module.active_adapters:
                (down,), (up,) = (list(pair[name].parameters()) for pair in (module.lora_A, module.lora_B))
                lowered = linear(module.lora_dropout[name](hidden_RC), down.float())
                few_RK = few_RK + linear(lowered, up[ids_K].float()) * module.scaling[name]
        return self._shape(few_RK)

    def logprobs(
        self, hidden_RC: torch.Tensor, row_M: torch.Tensor, ids_M: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """log softmax(logits[row_M] / temperature)[ids_M], M in float32. Several labels can read one row. `row_M` must
        be on the CPU, where it can be cut into chunks without waiting for a device."""
        weight = self._module.weight
        most = MAX_LOGITS if weight.dtype == torch.float32 else MAX_HALF_LOGITS
        cut = _chunks(len(hidden_RC), row_M, max(1, most // weight.shape[0]))
        chunks = [(rows, labels.to(hidden_RC.device, non_blocking=True)) for rows, labels in cut]
        row_M = row_M.to(hidden_RC.device, non_blocking=True)
        if self._frozen:
            return _FrozenHead.apply(  # pyright: ignore[reportReturnType]
                hidden_RC, row_M, ids_M, weight, self._module.bias, self._scale / temperature, chunks
            )
        pieces, order = [], []
        for rows, labels in chunks:
            arguments = (hidden_RC[rows], row_M[labels] - rows.start, ids_M[labels], temperature)
            pieces.append(checkpoint(self._general, *arguments, use_reentrant=False))
            order.append(labels)
        return torch.cat(pieces)[torch.cat(order).argsort()]

    def _general(
        self, hidden_RC: torch.Tensor, row_M: torch.Tensor, ids_M: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """The same for any head, with autograd through the full logits of a chunk."""
        return _over(self._shape(self._module(hidden_RC)), temperature).log_softmax(-1)[row_M, ids_M]

    def _shape(self, logits: torch.Tensor) -> torch.Tensor:
        """Cap and scale logits as the model's own forward does; the result is float32."""
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits.float() * self._scale if self._scale != 1.0 else logits.float()


class OwnHead:
    """Reads logits of the model's own head, which are computed for every token of a row: more memory than with `Head`.

    For families that process logits in a way that `Head` does not know.
    """

    def logits(self, logits_RV: torch.Tensor, ids_K: torch.Tensor) -> torch.Tensor:
        """Logits of K tokens only, RK in float32."""
        return logits_RV.index_select(1, ids_K).float()

    def logprobs(
        self, logits_RV: torch.Tensor, row_M: torch.Tensor, ids_M: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """log softmax(logits[row_M] / temperature)[ids_M], M in float32."""
        row_M = row_M.to(logits_RV.device, non_blocking=True)
        return _over(logits_RV.float(), temperature).log_softmax(-1)[row_M, ids_M]


@contextmanager
def head_inputs(model: PreTrainedModel, *, wanted: bool = True) -> Iterator[list[torch.Tensor]]:
    """A context that keeps what the model's forward passes to its head; nothing if not `wanted`, or in float32, where
    the logits are exact anyway."""
    kept: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    if not wanted or head is None or model.dtype == torch.float32:
        yield kept
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        yield kept
    finally:
        handle.remove()


def choice_logits(
    model: PreTrainedModel,
    kept: Sequence[torch.Tensor],
    logits_NV: torch.Tensor,
    places: Sequence[int],
    choices: Sequence[TokenIds],
) -> list[list[float]]:
    """The logits of each place's choices, from the logits of N positions and what `head_inputs` kept for them."""
    # [R, K]: shorter lists of choices are padded with their first choice.
    most = max(len(ids) for ids in choices)
    padded_RK = torch.tensor([[*ids, *ids[:1] * (most - len(ids))] for ids in choices], device=logits_NV.device)
    place_R1 = torch.tensor(places, device=logits_NV.device)[:, None]
    own_RK = logits_NV[place_R1, padded_RK].float()
    if len(kept) == 1 and kept[0].flatten(0, -2).shape[0] == len(logits_NV):
        ids_K, at_RK = padded_RK.unique(return_inverse=True)
        found_RK = Head(model).logits(kept[0].flatten(0, -2)[place_R1[:, 0]], ids_K).gather(1, at_RK)
        allowed_R1 = _ROUNDING * logits_NV[place_R1[:, 0]].float().abs().amax(-1, keepdim=True)
        known_R1 = ((found_RK - own_RK).abs() <= allowed_R1).all(-1, keepdim=True)
        own_RK = torch.where(known_R1, found_RK, own_RK)
    return [row[: len(ids)] for row, ids in zip(own_RK.double().tolist(), choices, strict=True)]


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities through a frozen linear head; nothing of the vocabulary's size is kept for the backward.

    With logits z = s (W h + b):  d log p(y) / d h = s (W_y - sum_v p_v W_v). The sum does not depend on the label, so
    the forward computes it while the logits are in memory, and the backward needs neither logits nor a second product.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        hidden_RC, row_M, ids_M, weight_VC, bias_V, scale, chunks = args
        new, size = hidden_RC.new_empty, chunks[0][0].stop
        # 1. Buffers for one chunk of rows, used for all: fresh memory of this size costs more than the arithmetic.
        raw_RV = new(size, len(weight_VC))
        logits_RV = raw_RV if raw_RV.dtype == torch.float32 else new(raw_RV.shape, dtype=torch.float32)
        logprobs_M = new(len(ids_M), dtype=torch.float32)
        mean_RC = new(hidden_RC.shape, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for rows, labels in chunks:
            # 2. Logits of the chunk in float32: z = s (W h + b), [rows of the chunk, V].
            raw, z = (x[: rows.stop - rows.start] for x in (raw_RV, logits_RV))
            torch.mm(hidden_RC[rows], weight_VC.t(), out=raw)
            if bias_V is not None:
                raw += bias_V
            if z.dtype != raw.dtype:
                z.copy_(raw)
            z *= scale
            # 3. log p(y) = z_y - log sum_v exp z_v, with the largest logit subtracted; z becomes exp(z - top).
            at = (row_M[labels] - rows.start, ids_M[labels])
            picked, top = z[at], z.amax(-1, keepdim=True)
            total = z.sub_(top).exp_().sum(-1, keepdim=True)
            logprobs_M[labels] = picked - (total.log() + top)[at[0], 0]
            # 4. sum_v p_v W_v for the backward, [rows of the chunk, C].
            if mean_RC is not None:
                if z.dtype != raw.dtype:
                    raw.copy_(z)
                mean_RC[rows] = (raw @ weight_VC).float() / total
        if mean_RC is not None:
            ctx.save_for_backward(row_M, ids_M, mean_RC, weight_VC)
            ctx.scale, ctx.dtype = scale, hidden_RC.dtype
        return logprobs_M

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        row_M, ids_M, mean_RC, weight_VC = ctx.saved_tensors
        # dh_r = s (sum over the labels m of row r of g_m W_y(m)  -  (sum of their g_m) * sum_v p_v W_v)
        grad_M = grads[0] * ctx.scale
        total_R = torch.zeros_like(mean_RC[:, 0]).index_add_(0, row_M, grad_M)
        grad_RC = (-total_R[:, None] * mean_RC).index_add_(0, row_M, grad_M[:, None] * weight_VC[ids_M].float())
        return grad_RC.to(ctx.dtype), None, None, None, None, None, None


def _over(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits divided by the temperature, without a copy at temperature 1."""
    return logits if temperature == 1 else logits / temperature


def _chunks(num_rows: int, row_M: torch.Tensor, size: int) -> list[tuple[slice, torch.Tensor]]:
    """Slices of at most `size` rows, each with the indices of the labels that read them."""
    slices = [slice(low, min(low + size, num_rows)) for low in range(0, num_rows, size)]
    return [(s, ((row_M >= s.start) & (row_M < s.stop)).nonzero()[:, 0]) for s in slices]
