"""Teacher-forced log-probabilities of completions: of whole trees at once, or one completion at a time.

Two implementations with one result. `PackedLogprobs` merges everything with a common prefix into one row (`packing`);
`PlainLogprobs` runs each completion after its own prompt, padded to a batch. Both are compared with the model's own
forward before they are used (`check`), and the first that is right is taken.

A token's log-probability is read at the token before it, so the last token of a completion is never an input:

    prompt 5 6, completion 7 8   inputs 5 6 7     labels 7 at 6, 8 at 7
    siblings 7 8 and 7 9         inputs 5 6 7     labels 7 at 6, 8 and 9 at 7: one hidden state, two labels
    a choice among 3 and 4       inputs 5 6       label 3, renormalised over 3 and 4, at 6

The output head (`models.head`) is applied at label positions alone, and never twice. Values are returned on the CPU, by
one copy that gradients pass through: an objective may then read them as it likes, and no device waits for it.

Shapes: N tokens in a row, C hidden size, R label positions, M labels, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from flow_dpo.core.types import TokenIds
from flow_dpo.models.attention import layout_inputs
from flow_dpo.models.drift_causes import PromptedCompletion, inputs
from flow_dpo.models.head import Head, OwnHead, decoder_of
from flow_dpo.models.packing import merge
from flow_dpo.models.tree_attention import row_layout

_LaidOut = tuple[list[np.ndarray], dict[str, Any]]
"""Where among the input tokens each completion's labels are read, and the model's arguments."""


class Logprobs:
    """Log-probabilities of some completions: prepared once, computed under the policy and under its reference."""

    def __init__(
        self,
        model: PreTrainedModel,
        completions: Sequence[PromptedCompletion],
        *,
        own_head: bool = False,
        temperature: float = 1.0,
    ) -> None:
        """`temperature`: logits are divided by it, but for choices."""
        self._model, self._own_head, self._temperature = model, own_head, temperature
        at, self._arguments = self._lay_out(completions, model.device)
        self.num_tokens = self._arguments["input_ids"].numel()
        """Input tokens of one forward."""
        self._labels = _Labels(completions, at, model.device)

    def __call__(self) -> list[torch.Tensor]:
        """For each completion one float32 value a token, under the adapter in use, on the CPU."""
        return self._labels.logprobs(*self._forward(), self._temperature)

    def added(self) -> list[torch.Tensor]:
        """What the temperature adds to each of these values."""
        found = self._forward()
        scaled, plain = (self._labels.logprobs(*found, each) for each in (self._temperature, 1.0))
        return [one - other for one, other in zip(scaled, plain, strict=True)]

    def _lay_out(self, completions: Sequence[PromptedCompletion], device: torch.device) -> _LaidOut:
        raise NotImplementedError

    def _forward(self) -> tuple[torch.Tensor, Head | OwnHead]:
        """One forward: hidden states and the head to apply, or the logits by the model's own head."""
        if self._own_head:
            return self._model(**self._arguments).logits.flatten(0, 1), OwnHead()
        return decoder_of(self._model)(**self._arguments).last_hidden_state.flatten(0, 1), Head(self._model)


class PackedLogprobs(Logprobs):
    """Log-probabilities by one forward over the trie of all completions' inputs."""

    def _lay_out(self, completions: Sequence[PromptedCompletion], device: torch.device) -> _LaidOut:
        row = merge([inputs(s) for s in completions])
        self._layout = row_layout(row, device)
        at = [path[len(s[0].prompt_ids) - 1 :] for s, path in zip(completions, row.paths, strict=True)]
        return at, {
            "input_ids": torch.from_numpy(row.token_ids_N)[None].to(device, non_blocking=True),
            "position_ids": torch.from_numpy(row.positions_N)[None].to(device, non_blocking=True),
            "layout": self._layout,
            **layout_inputs(device),
        }

    def _forward(self) -> tuple[torch.Tensor, Head | OwnHead]:
        with self._layout.saving():
            return super()._forward()


class PlainLogprobs(Logprobs):
    """Log-probabilities of each completion after its own prompt, padded on the right to a batch: nothing shared."""

    def _lay_out(self, completions: Sequence[PromptedCompletion], device: torch.device) -> _LaidOut:
        rows = [inputs(s) for s in completions]
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        at = [
            i * ids_BT.shape[1] + np.arange(len(s[0].prompt_ids) - 1, len(row))
            for i, (s, row) in enumerate(zip(completions, rows, strict=True))
        ]
        # No mask: attention is causal, and padding comes after every label position.
        return at, {"input_ids": ids_BT.to(device, non_blocking=True), "use_cache": False}


class _Labels:
    """The labels of some completions: which hidden states predict which tokens."""

    def __init__(
        self, completions: Sequence[PromptedCompletion], at: Sequence[np.ndarray], device: torch.device
    ) -> None:
        self._device = device
        self._lengths = [len(c.token_ids) for _, c in completions]
        # 1. Completions by kind: choices (by the set of choices), and free text.
        kinds: dict[TokenIds, list[int]] = {}
        for i, (request, _) in enumerate(completions):
            kinds.setdefault(request.choices, []).append(i)
        self._free = free = kinds.pop((), [])
        # 2. Free text: several labels may share one hidden state, whose logits are then computed once.
        if free:
            where_M = np.concatenate([at[i] for i in free])
            ids_M = np.concatenate([np.asarray(completions[i][1].token_ids, np.int64) for i in free])
            rows_R, row_M = np.unique(where_M, return_inverse=True)
            self._rows_R, self._ids_M = self._tensor(rows_R), self._tensor(ids_M)
            self._row_M = torch.from_numpy(row_M)
        # 3. Choices: the label's index among the choices, at the end of the prompt.
        self._choices = {
            choices: (
                members,
                self._tensor(np.array([at[i][0] for i in members])),
                self._tensor(np.array([choices.index(completions[i][1].token_ids[0]) for i in members])),
            )
            for choices, members in kinds.items()
        }

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def logprobs(self, hidden_NC: torch.Tensor, head: Head | OwnHead, temperature: float) -> list[torch.Tensor]:
        """For each completion its tokens' log-probabilities, from the hidden states of all input tokens."""
        found, order = list[torch.Tensor](), [*self._free]
        if self._free:
            found.append(head.logprobs(hidden_NC.index_select(0, self._rows_R), self._row_M, self._ids_M, temperature))
        for choices, (members, rows, drawn) in self._choices.items():
            logits = head.logits(hidden_NC.index_select(0, rows), self._tensor(np.array(choices)))
            found.append(logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0])
            order += members
        pieces = torch.cat(found).cpu().split([self._lengths[i] for i in order])
        return [piece for _, piece in sorted(zip(order, pieces, strict=True), key=lambda each: each[0])]
