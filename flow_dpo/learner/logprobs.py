"""Teacher-forced log-probabilities of completions: for whole trees at once, or for each completion on its own.

Two implementations with one result. `PackedLogprobs` merges everything with a common prefix into one row (`packing`);
`PlainLogprobs` runs each completion after its own prompt, padded to a batch. Both are compared with the model's own
forward before they are used (`check`), and the first that is right is used.

A token's log-probability is read at the token before it, so the last token of a completion is never an input:

    prompt 5 6, completion 7 8   inputs 5 6 7     labels 7 at 6, 8 at 7
    siblings 7 8 and 7 9         inputs 5 6 7     labels 7 at 6, 8 and 9 at 7: one hidden state, two labels
    a choice among 3 and 4       inputs 5 6       label 3, renormalised over 3 and 4, at 6

The output head (`models.head`) is applied only at label positions, and once at each. Values are returned on the CPU, by
one copy that gradients pass through, so an objective can read them without making the device wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from flow_dpo.models import fused_decoder
from flow_dpo.models.attention import layout_inputs
from flow_dpo.models.drift_causes import PromptedCompletion, inputs
from flow_dpo.models.head import Head, OwnHead, decoder_of
from flow_dpo.models.labels import Labels
from flow_dpo.models.packing import merge
from flow_dpo.models.tree_attention import PathLayout, row_layout

_LaidOut = tuple[list[np.ndarray], dict[str, Any]]
"""The input positions at which each completion's labels are read, and the model's arguments."""


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
        """`temperature`: what logits are divided by, except those of choices."""
        self._model, self._own_head, self._temperature = model, own_head, temperature
        at, self._arguments = self._lay_out(completions, model.device)
        self.num_tokens = self._arguments["input_ids"].numel()
        """Input tokens of one forward."""
        self._labels = Labels(completions, at, model.device)

    def __call__(self) -> list[torch.Tensor]:
        """For each completion one float32 value per token, under the adapter in use, on the CPU."""
        return self._labels.logprobs(*self._forward(), self._temperature)

    def added(self) -> list[torch.Tensor]:
        """What the temperature adds to each value that a call returns."""
        found = self._forward()
        scaled, plain = (self._labels.logprobs(*found, each) for each in (self._temperature, 1.0))
        return [one - other for one, other in zip(scaled, plain, strict=True)]

    def _lay_out(self, completions: Sequence[PromptedCompletion], device: torch.device) -> _LaidOut:
        raise NotImplementedError

    def _forward(self) -> tuple[torch.Tensor, Head | OwnHead]:
        """One forward: hidden states and the head to apply to them, or logits of the model's own head."""
        if self._own_head:
            return self._model(**self._arguments).logits.flatten(0, 1), OwnHead()
        return decoder_of(self._model)(**self._arguments).last_hidden_state.flatten(0, 1), Head(self._model)


class PackedLogprobs(Logprobs):
    """Log-probabilities by one forward over the trie of all completions' inputs."""

    def _lay_out(self, completions: Sequence[PromptedCompletion], device: torch.device) -> _LaidOut:
        self._row = row = merge([inputs(s) for s in completions])
        self._layout = row_layout(row, device)
        at = [path[len(s[0].prompt_ids) - 1 :] for s, path in zip(completions, row.paths, strict=True)]
        return at, {
            "input_ids": torch.from_numpy(row.token_ids_N)[None].to(device, non_blocking=True),
            "position_ids": torch.from_numpy(row.positions_N)[None].to(device, non_blocking=True),
            "layout": self._layout,
            **layout_inputs(device),
        }

    def _forward(self) -> tuple[torch.Tensor, Head | OwnHead]:
        if (fused := fused_decoder.of(self._model)) and isinstance(self._layout, PathLayout) and not self._own_head:
            return fused(self._model, self._row, self._layout, self._labels.rows), Head(self._model)
        with self._layout.saving():
            return super()._forward()


class PlainLogprobs(Logprobs):
    """Log-probabilities of each completion after its own prompt, padded on the right to a batch; nothing is shared."""

    def _lay_out(self, completions: Sequence[PromptedCompletion], device: torch.device) -> _LaidOut:
        rows = [inputs(s) for s in completions]
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        at = [
            i * ids_BT.shape[1] + np.arange(len(s[0].prompt_ids) - 1, len(row))
            for i, (s, row) in enumerate(zip(completions, rows, strict=True))
        ]
        # No mask: attention is causal, and padding comes after every label position.
        return at, {"input_ids": ids_BT.to(device, non_blocking=True), "use_cache": False}
