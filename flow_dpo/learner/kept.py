"""Versions of the adapters that batches in flight may have been sampled with, kept beside the present one.

With a lag of k batches, the batch that is learned next was submitted with the adapters as they stood k calls of
`Learner.update` ago, and those in flight behind it with later ones:

    calls    version 0 --update--> 2 --update--> 2 --update--> 3 (present)
    kept 2   2, 2: one set of weights; 0 is dropped

Invariants: what is kept is the float32 masters, copied; a version that several calls share is kept once, and the
present one not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from flow_dpo.core.types import Role
from flow_dpo.learner.policy import Policy

Weights = Mapping[Role, list[torch.Tensor]]
"""Each role's float32 masters, in the order of `Policy.weights`."""


class KeptVersions:
    """The weights of all roles as they stood after each of the last calls but the last one."""

    def __init__(self, policy: Policy, num: int) -> None:
        self._policy, self._num = policy, num
        self.calls: list[int] = []
        """The version after each of the last calls before the last one, oldest first; at most `num`."""
        self.weights: dict[int, Weights] = {}
        """By version; the present one is in the policy."""

    def begin(self, version: int) -> list[int]:
        """Copy the present weights, which a call may change. Returns the versions by call, for `end`."""
        if not self._num:
            return []
        if version not in self.weights:
            self.weights[version] = {
                role: [w.clone() for w in self._policy.weights(role)] for role in self._policy.roles
            }
        return [*self.calls, version]

    def end(self, calls: Sequence[int], present: int) -> None:
        """A call is done, and `present` the version now: drop what no batch in flight was submitted with."""
        self.calls = list(calls[-self._num :]) if self._num else []
        self.weights = {version: self.weights[version] for version in sorted({*self.calls} - {present})}

    def replace(self, calls: Sequence[int], weights: Mapping[int, Weights], present: int) -> None:
        """Take up all that was saved, and keep as many from here on: with a smaller lag than then, there may still be
        batches in flight that were submitted with any of them."""
        self.weights = dict(weights)
        self._num = max(self._num, len(calls))
        self.end(calls, present)
