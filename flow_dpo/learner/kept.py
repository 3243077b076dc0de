"""Earlier versions of the adapters, kept because batches in flight can have been sampled with them.

With a lag of k batches, the batch that is learned next was submitted with the adapters of k calls of `Learner.update`
ago, and the batches in flight after it with later ones:

    calls    version 0 --update--> 2 --update--> 2 --update--> 3 (present)
    kept 2   2, 2: one set of weights; 0 is dropped

Invariants: the float32 master weights are kept, as copies; a version that several calls share is kept once, and the
present version not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from flow_dpo.core.types import Role
from flow_dpo.learner.policy import Policy

Weights = Mapping[Role, list[torch.Tensor]]
"""Each role's float32 master weights, in the order of `Policy.weights`."""


class KeptVersions:
    """The weights of all roles after each of the most recent calls, except the last one."""

    def __init__(self, policy: Policy, num: int) -> None:
        self._policy, self._num = policy, num
        self.calls: list[int] = []
        """The version after each of the most recent calls except the last one, oldest first; at most `num`."""
        self.weights: dict[int, Weights] = {}
        """Weights by version; the present ones are in the policy."""

    def begin(self, version: int) -> list[int]:
        """Copy the present weights, which a call can change. Returns the versions by call, for `end`."""
        if not self._num:
            return []
        if version not in self.weights:
            self.weights[version] = {
                role: [w.clone() for w in self._policy.weights(role)] for role in self._policy.roles
            }
        return [*self.calls, version]

    def end(self, calls: Sequence[int], present: int) -> None:
        """End a call; the version is now `present`. Drops versions that no batch in flight was submitted with."""
        self.calls = list(calls[-self._num :]) if self._num else []
        self.weights = {version: self.weights[version] for version in sorted({*self.calls} - {present})}

    def replace(self, calls: Sequence[int], weights: Mapping[int, Weights], present: int) -> None:
        """Restore all that was saved, and keep as many from now on: even if the lag is smaller than it was, batches in
        flight can have been submitted with any of them."""
        self.weights = dict(weights)
        self._num = max(self._num, len(calls))
        self.end(calls, present)
