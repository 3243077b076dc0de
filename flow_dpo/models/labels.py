"""Labels of completions: which hidden states predict which tokens, and their log-probabilities.

    labels = Labels(completions, at, device)         # at: the tokens at which each completion's labels are read
    labels.logprobs(hidden_NC, Head(model), 1.0)     # for each completion one value per token, on the CPU

Invariant: only the hidden states at `rows` are read.

Shapes: N tokens in a row, C hidden size, R label positions, M labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flow_dpo.core.types import TokenIds
from flow_dpo.models.drift_causes import PromptedCompletion
from flow_dpo.models.head import Head, OwnHead


class Labels:
    """The labels of some completions."""

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
        self.rows = self._tensor(np.unique(np.concatenate(at)))
        """Indices of all hidden states that predict a token."""
        # 2. Free text: several labels can share one hidden state, whose logits are then computed once.
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
