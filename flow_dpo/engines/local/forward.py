"""Forward pass of one step: from the input tokens of a flat batch to the logits of each row's last token.

The tokens of a step can belong to several roles, in consecutive slices. The plain forward is transformers' own, one
role at a time. A faster one gives the same logits up to rounding, and can take several roles at once (`max_roles`).

    forward = PlainForward(policy.using, torch.device("cpu"))
    output = forward(ids, batch, [RoleSlice("answer", 0, len(ids))], wants_choices=False)
    output.logits_AV                            # to sample from
    output.choice_logits([3], [(7, 9)])         # [[0.25, -1.5]], for row 3, in float32

Invariant: a row's logits depend only on its own tokens and its role's weights, up to rounding of sums.

Shapes: A rows, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from transformers import PreTrainedModel

from flow_dpo.core.types import Role, TokenIds
from flow_dpo.engines.local.flat_batch import FlatBatch
from flow_dpo.models.attention import layout_inputs
from flow_dpo.models.head import choice_logits, head_inputs

RoleModel = Callable[[Role], AbstractContextManager[PreTrainedModel]]
"""Yields the model with a role's adapter active, without dropout."""


class RoleSlice(NamedTuple):
    """The input tokens [begin, end) of a step belong to this role. A role can have several slices."""

    role: Role
    begin: int
    end: int


class StepOutput(Protocol):
    """The result of a forward: logits of the last token of each row."""

    @property
    def logits_AV(self) -> torch.Tensor: ...

    def choice_logits(self, places: Sequence[int], choices: Sequence[TokenIds]) -> list[list[float]]:
        """The logits of each of these rows' choices, computed in float32 whatever the model's precision.

        The forward must have been called with `wants_choices`.
        """
        ...


class Forward(Protocol):
    """Computes one step."""

    @property
    def max_roles(self) -> int:
        """Maximum number of roles in one call."""
        ...

    def __call__(
        self, ids: Sequence[int], batch: FlatBatch, slices: Sequence[RoleSlice], *, wants_choices: bool
    ) -> StepOutput:
        """`ids` are the input tokens of `batch`, row after row; `slices` cover them in order, without gaps.

        Must be called in inference mode.
        """
        ...

    def refresh(self) -> None:
        """Called when adapters may have changed since the last call."""
        ...


@dataclass(frozen=True, slots=True)
class _PlainOutput:
    logits_AV: torch.Tensor
    role: Role
    role_model: RoleModel
    kept: Sequence[torch.Tensor]
    """The input of the model's head, kept in half precision only."""

    def choice_logits(self, places: Sequence[int], choices: Sequence[TokenIds]) -> list[list[float]]:
        with self.role_model(self.role) as model:
            return choice_logits(model, self.kept, self.logits_AV, places, choices)


class PlainForward:
    """transformers' own forward of the role's model."""

    max_roles = 1

    def __init__(self, role_model: RoleModel, device: torch.device) -> None:
        self._role_model = role_model
        self._device = device
        self._inputs = layout_inputs(device)

    def __call__(
        self, ids: Sequence[int], batch: FlatBatch, slices: Sequence[RoleSlice], *, wants_choices: bool
    ) -> StepOutput:
        [(role, _, _)] = slices
        with self._role_model(role) as model, head_inputs(model, wanted=wants_choices) as kept:
            logits_AV = model(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=batch.position_N[None],
                layout=batch,
                logits_to_keep=0 if len(ids) == len(batch.last_N) else batch.last_N,
                **self._inputs,
            ).logits[0]
        return _PlainOutput(logits_AV, role, self._role_model, kept)

    def refresh(self) -> None:
        """Does nothing: no weights are kept."""
