"""Teacher-forced log-probabilities of completions, with a frozen head, in chunks of the vocabulary's logits.

Two implementations with one result. `PackedLogprobs` merges everything with a common prefix into one row (`packing`);
`PlainLogprobs` runs each completion after its own prompt, padded to a batch. The first is checked against the model's
own logits on a small sample of the real data when first used, and gives way to the second where it disagrees.

A token's log-probability is read at the token before it, so the last token of a completion is never an input:

    prompt 5 6, completion 7 8   inputs 5 6 7     labels 7 at 6, 8 at 7
    siblings 7 8 and 7 9         inputs 5 6 7     labels 7 at 6, 8 and 9 at 7: one hidden state, two labels
    a choice among 3 and 4       inputs 5 6       label 3, renormalised over 3 and 4, at 6

The output head is applied at label positions alone, in chunks, and never twice: the forward also stores what the
backward needs of it, a vector for each position instead of a probability for each token of the vocabulary.

Shapes: N tokens in a row, C hidden size, R label positions, M labels, V tokens of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Completion, Request, TokenIds
from flow_dpo.learner.packing import PackedRow, merge
from flow_dpo.learner.tree_attention import row_layout
from flow_dpo.models.attention import layout_inputs

PromptedCompletion = tuple[Request, Completion]
"""A completion with the request that it answers: the unit of which token log-probabilities are computed."""

MAX_LOGITS = 1 << 23
"""Logits in memory at a time: 32 MiB in float32."""
MAX_HALF_LOGITS = 1 << 25
"""The same for a head in half precision, whose weight is repacked for every product."""


class Logprobs(Protocol):
    """Log-probabilities of some completions: prepared once, computed under the policy and under its reference."""

    num_tokens: int
    """Input tokens of one forward."""

    def __call__(self) -> list[torch.Tensor]:
        """For each completion one float32 value a token, under the adapter in use."""
        ...


def inputs(completions: PromptedCompletion) -> TokenIds:
    """The input token ids: prompt and completion without its last token."""
    request, completion = completions
    return request.prompt_ids + completion.token_ids[:-1]


@torch.no_grad()
def disagreement(model: PreTrainedModel, completions: Sequence[PromptedCompletion], logprobs: Logprobs) -> torch.Tensor:
    """Absolute differences, in nats, from log-probabilities of the model's own logits, one completion at a time."""
    differences: list[torch.Tensor] = []
    for s, found in zip(completions, logprobs(), strict=True):
        request, completion = s
        logits_TV = _own_logits(model, inputs(s), len(request.prompt_ids) - 1)
        if request.choices:
            logprobs_TV = logits_TV[:, list(request.choices)].log_softmax(-1)
            labels = [request.choices.index(completion.token_ids[0])]
        else:
            logprobs_TV, labels = logits_TV.log_softmax(-1), list(completion.token_ids)
        expected = logprobs_TV[range(len(labels)), labels]
        # A NaN counts as an infinite difference.
        differences.append((found - expected).abs().nan_to_num(nan=torch.inf))
    return torch.cat(differences)


def _own_logits(model: PreTrainedModel, token_ids: TokenIds, start: int) -> torch.Tensor:
    """The model's logits from position `start` on, TV in float32; only these are computed where the model allows it."""
    few = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        few["logits_to_keep"] = len(token_ids) - start
    ids_1T = torch.tensor([token_ids], device=model.device)
    return model(input_ids=ids_1T, use_cache=False, **few).logits[0, start - len(token_ids) :].float()


class PackedLogprobs:
    """Log-probabilities by one forward over the trie of all completions' inputs."""

    def __init__(
        self,
        model: PreTrainedModel,
        completions: Sequence[PromptedCompletion],
        row: PackedRow | None = None,
        *,
        own_head: bool = False,
    ) -> None:
        row = row or merge([inputs(s) for s in completions])
        self.num_tokens = row.num_tokens
        device = model.device
        self._model, self._own_head = model, own_head
        self._layout = row_layout(row, device)
        self._arguments: dict[str, Any] = {
            "input_ids": torch.from_numpy(row.token_ids_N)[None].to(device),
            "position_ids": torch.from_numpy(row.positions_N)[None].to(device),
            "layout": self._layout,
            **layout_inputs(device),
        }
        at = [path[len(s[0].prompt_ids) - 1 :] for s, path in zip(completions, row.paths, strict=True)]
        self._labels = _Labels(completions, at, device)

    def __call__(self) -> list[torch.Tensor]:
        with self._layout.saving():
            out_1NC, head = _run(self._model, self._arguments, own_head=self._own_head)
        return self._labels.logprobs(out_1NC[0], head)


class PlainLogprobs:
    """Log-probabilities of each completion after its own prompt, padded on the right to a batch: nothing shared."""

    def __init__(
        self, model: PreTrainedModel, completions: Sequence[PromptedCompletion], *, own_head: bool = False
    ) -> None:
        self._model, self._own_head = model, own_head
        device = model.device
        rows = [inputs(s) for s in completions]
        width = max(len(r) for r in rows)
        self.num_tokens = len(rows) * width
        ids_BT = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids_BT[i, : len(row)] = row
        # No mask: attention is causal, and padding comes after every label position.
        self._arguments = {"input_ids": torch.from_numpy(ids_BT).to(device), "use_cache": False}
        at = [
            i * width + np.arange(len(s[0].prompt_ids) - 1, len(row))
            for i, (s, row) in enumerate(zip(completions, rows, strict=True))
        ]
        self._labels = _Labels(completions, at, device)

    def __call__(self) -> list[torch.Tensor]:
        out_BTC, head = _run(self._model, self._arguments, own_head=self._own_head)
        return self._labels.logprobs(out_BTC.flatten(0, 1), head)


def _run(model: PreTrainedModel, arguments: dict[str, Any], *, own_head: bool) -> tuple[torch.Tensor, Head | OwnHead]:
    """One forward: hidden states and the head to apply, or the logits by the model's own head."""
    if own_head:
        return model(**arguments).logits, OwnHead()
    return _decoder(model)(**arguments).last_hidden_state, Head(model)


def _decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its output head."""
    decoder = model.get_decoder()
    if decoder is model:
        # transformers found none (Llama 4 declares another name than it uses).
        decoder = getattr(model, "model", None)
    if not isinstance(decoder, torch.nn.Module):
        raise ModelError(f"{type(model).__name__} has no decoder apart from its head; a causal model is needed")
    return decoder


class _Labels:
    """The labels of some completions: which hidden states predict which tokens."""

    def __init__(
        self, completions: Sequence[PromptedCompletion], at: Sequence[np.ndarray], device: torch.device
    ) -> None:
        self._device = device
        self._lengths = [len(c.token_ids) for _, c in completions]
        # 1. Completions by kind: choices (by the set of choices), and free text.
        self._choices: dict[TokenIds, list[int]] = {}
        free: list[int] = []
        for i, (request, _) in enumerate(completions):
            (self._choices.setdefault(request.choices, []) if request.choices else free).append(i)
        self._free = free
        # 2. Free text: several labels may share one hidden state, whose logits are then computed once.
        if free:
            where_M = np.concatenate([at[i] for i in free])
            ids_M = np.concatenate([np.asarray(completions[i][1].token_ids, np.int64) for i in free])
            rows_R, row_M = np.unique(where_M, return_inverse=True)
            self._rows_R, self._row_M, self._ids_M = (self._tensor(a) for a in (rows_R, row_M, ids_M))
        # 3. Choices: the label's index among the choices, at the end of the prompt.
        self._chosen = {
            choices: (
                self._tensor(np.array([at[i][0] for i in members])),
                self._tensor(np.array([choices.index(completions[i][1].token_ids[0]) for i in members])),
            )
            for choices, members in self._choices.items()
        }

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def logprobs(self, hidden_NC: torch.Tensor, head: Head | OwnHead) -> list[torch.Tensor]:
        """For each completion its tokens' log-probabilities, from the hidden states of all input tokens."""
        out: list[torch.Tensor] = [torch.empty(0)] * len(self._lengths)
        if self._free:
            flat_M = head.logprobs(hidden_NC.index_select(0, self._rows_R), self._row_M, self._ids_M)
            for i, piece in zip(self._free, flat_M.split([self._lengths[i] for i in self._free]), strict=True):
                out[i] = piece
        for choices, members in self._choices.items():
            rows, drawn = self._chosen[choices]
            logits = head.logits(hidden_NC.index_select(0, rows), self._tensor(np.array(choices)))
            picked = logits.log_softmax(-1).gather(1, drawn[:, None])
            for i, piece in zip(members, picked.unbind(), strict=True):
                out[i] = piece
        return out


class Head:
    """The output head of a model (hidden states to logits over the vocabulary), applied at label positions only."""

    def __init__(self, model: PreTrainedModel) -> None:
        module = model.get_output_embeddings()
        if module is None:
            raise ModelError(f"{type(model).__name__} has no head over a vocabulary; a causal language model is needed")
        self._module = module
        config = model.config.get_text_config()
        self._scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)
        # An adapter on the head, a quantised weight or a cap on the logits needs the general implementation.
        self._frozen = type(module) is torch.nn.Linear and not module.weight.requires_grad and self._cap is None

    def logits(self, hidden_RC: torch.Tensor, ids_K: torch.Tensor) -> torch.Tensor:
        """Logits of K tokens only, RK in float32."""
        if not self._frozen:
            return self._shape(self._module(hidden_RC)).index_select(1, ids_K)
        bias = self._module.bias
        few = torch.nn.functional.linear(hidden_RC, self._module.weight[ids_K], None if bias is None else bias[ids_K])
        return self._shape(few)

    def logprobs(self, hidden_RC: torch.Tensor, row_M: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        """log softmax(logits[row_M])[ids_M], M in float32. Several labels may read one row."""
        weight = self._module.weight
        most = MAX_LOGITS if weight.dtype == torch.float32 else MAX_HALF_LOGITS
        size = max(1, most // weight.shape[0])
        if self._frozen:
            return _FrozenHead.apply(  # pyright: ignore[reportReturnType]
                hidden_RC, row_M, ids_M, weight, self._module.bias, self._scale, size
            )
        pieces, order = [], []
        for rows, labels in _chunks(len(hidden_RC), row_M, size):
            arguments = (hidden_RC[rows], row_M[labels] - rows.start, ids_M[labels])
            pieces.append(checkpoint(self._general, *arguments, use_reentrant=False))
            order.append(labels)
        return torch.cat(pieces)[torch.cat(order).argsort()]

    def _general(self, hidden_RC: torch.Tensor, row_M: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        """The same for any head, with autograd through the full logits of a chunk."""
        return self._shape(self._module(hidden_RC)).log_softmax(-1)[row_M, ids_M]

    def _shape(self, logits: torch.Tensor) -> torch.Tensor:
        """Cap and scale logits as the model's own forward does, in float32."""
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits.float() * self._scale if self._scale != 1.0 else logits.float()


class OwnHead:
    """Reads logits that the model's own head made: of every token of a row, and so with more memory than `Head`.

    For families that shape logits in a way of their own.
    """

    def logits(self, logits_RV: torch.Tensor, ids_K: torch.Tensor) -> torch.Tensor:
        """Logits of K tokens only, RK in float32."""
        return logits_RV.index_select(1, ids_K).float()

    def logprobs(self, logits_RV: torch.Tensor, row_M: torch.Tensor, ids_M: torch.Tensor) -> torch.Tensor:
        """log softmax(logits[row_M])[ids_M], M in float32."""
        return logits_RV.float().log_softmax(-1)[row_M, ids_M]


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities through a frozen linear head, with nothing of the vocabulary's size kept for the backward.

    With logits z = s (W h + b):  d log p(y) / d h = s (W_y - sum_v p_v W_v). The sum does not depend on the label, so
    the forward computes it while the logits are in memory, and the backward needs neither logits nor a second product.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        hidden_RC, row_M, ids_M, weight_VC, bias_V, scale, size = args
        new, size = hidden_RC.new_empty, min(size, len(hidden_RC))
        # 1. Buffers for one chunk of rows, used for all: fresh memory of this size costs more than the arithmetic.
        raw_RV = new(size, len(weight_VC))
        logits_RV = raw_RV if raw_RV.dtype == torch.float32 else new(raw_RV.shape, dtype=torch.float32)
        logprobs_M = new(len(ids_M), dtype=torch.float32)
        mean_RC = new(hidden_RC.shape, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        for rows, labels in _chunks(len(hidden_RC), row_M, size):
            # 2. Logits of the chunk in float32: z = s (W h + b), [rows of the chunk, V].
            raw, z = (x[: rows.stop - rows.start] for x in (raw_RV, logits_RV))
            torch.mm(hidden_RC[rows], weight_VC.t(), out=raw)
            if bias_V is not None:
                raw += bias_V
            if z.dtype != raw.dtype:
                z.copy_(raw)
            z *= scale
            # 3. log p(y) = z_y - log sum_v exp z_v, with the largest logit taken off; z becomes exp(z - top).
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


def _chunks(num_rows: int, row_M: torch.Tensor, size: int) -> list[tuple[slice, torch.Tensor]]:
    """Slices of at most `size` rows, each with the indices of the labels that read them."""
    slices = [slice(low, min(low + size, num_rows)) for low in range(0, num_rows, size)]
    return [(s, ((row_M >= s.start) & (row_M < s.stop)).nonzero()[:, 0]) for s in slices]
