"""Learner: pools examples, computes gradients, and updates each role's adapter with its own optimizer.

Examples wait in a pool, in order. Every `examples_per_update` of them make one update: each role among them takes one
step of its own optimizer (Adam) over its own parameters, on the mean loss of its own examples. What fills no update
waits:

    learner.update(dpo, 40 pairs)   one update on the first 32, version 0 -> 1, 8 wait
    learner.update(dpo, 10 pairs)   18 wait: no update, and the measures say so

Invariants: the gradients of all roles are computed and checked before any weight changes, so that a failed update
changes nothing and its examples stay in the pool; saved and loaded, a learner goes on bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from flow_dpo.core.errors import ConfigError, LearningError
from flow_dpo.core.objective import Objective, check_examples
from flow_dpo.core.types import Adapter, Example, Role, by_role
from flow_dpo.learner import state
from flow_dpo.learner.gradients import SUMS, Gradient, Gradients, NonFinite
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LearnerSettings

Row = dict[str, float]
"""Measures by name, as a run records them: "learn/answer/loss"."""


class Learner:
    """Owns the pool, the optimizers and the version of a policy's adapters."""

    def __init__(self, policy: Policy, settings: LearnerSettings | None = None) -> None:
        self.policy, self.settings = policy, settings or LearnerSettings()
        unknown = set(self.settings.role_learning_rates) - set(policy.roles)
        if unknown:
            raise ConfigError(f"role_learning_rates names {sorted(unknown)}, the policy's roles are {policy.roles}")
        self.version = 0
        """Updates so far; one counter for all roles."""
        self.pool: list[Example] = []
        self._role_updates: dict[Role, int] = dict.fromkeys(policy.roles, 0)
        self._optimizers = {role: torch.optim.Adam(policy.weights(role), lr=0.0) for role in policy.roles}
        frozen = self.settings.reference.kind == "snapshot"
        references = {role: policy.snapshot(role) if frozen else None for role in policy.roles}
        self._gradients = Gradients(policy, self.settings.rows, references)
        self._starts_at_base = policy.is_at_base()
        self._before: tuple[int, dict[str, list[torch.Tensor]]] | None = None
        """The version before the last update and its weights, to explain a drift by."""
        if self.settings.rows.gradient_checkpointing:
            policy.checkpoint_activations()

    @property
    def adapters(self) -> dict[Role, Adapter]:
        """The adapters in force, for an engine in this process."""
        return {role: Adapter(role=role, version=self.version) for role in self.policy.roles}

    @property
    def packed(self) -> bool | None:
        """Whether shared prefixes are computed once; None until the model was checked."""
        return self._gradients.packed

    def check(self) -> None:
        """Choose how log-probabilities are computed, now rather than at the first update. Raises `ModelError`."""
        self._gradients.check()

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Add examples to the pool, make an update of every full batch in it, and return metrics.

        "learn/updates" counts updates, "learn/skipped" batches dropped by `skip_nonfinite`, "learn/waiting" the rest
        in the pool. "learn/<role>/..." are means over the role's pairs; sums for "pairs", "tokens" and the like.
        Raises `LearningError`: for a loss, gradient or drift before anything was changed but the pool, whose examples
        wait; for an adapter that moved or stood still against expectation when it has.
        """
        started = time.perf_counter()
        self._check_examples(objective, examples)
        self.pool.extend(examples)
        size = self.settings.examples_per_update or len(self.pool)
        done: list[dict[Role, Row]] = []
        num_skipped = 0
        while self.pool and len(self.pool) >= size:
            try:
                for _ in range(self.settings.epochs_per_batch):
                    done.append(self._learn(objective, self.pool[:size]))
            except NonFinite as error:
                if not self.settings.skip_nonfinite:
                    raise LearningError(f"{error}; nothing was changed. Lower the learning rate or beta") from error
                num_skipped += 1
            del self.pool[:size]
        row: Row = {"updates": len(done), "skipped": num_skipped, "waiting": len(self.pool)}
        row |= {"seconds": time.perf_counter() - started}
        for role, measures in _summarise(done).items():
            row |= {f"{role}/{name}": value for name, value in measures.items()}
        return {f"learn/{name}": value for name, value in row.items()}

    def save(self, folder: str | Path) -> None:
        """Write all that `load` needs to go on bit for bit, and the adapters in PEFT's layout."""
        facts = {"version": self.version, "role_updates": self._role_updates, "packed": self.packed}
        state.write(Path(folder), self.policy, self._optimizers, facts, self.pool)

    def load(self, folder: str | Path) -> None:
        """Restore what `save` wrote for a learner of the same model and settings. Raises `DataError`."""
        facts, self.pool = state.read(Path(folder), self.policy, self._optimizers)
        self.version, self._role_updates = facts["version"], facts["role_updates"]
        self._gradients.packed = facts["packed"]

    def _learn(self, objective: Objective, batch: Sequence[Example]) -> dict[Role, Row]:
        """One update: first all roles' gradients, then all optimizer steps."""
        self._gradients.reference_version = self._reference_version()
        gradients = {
            role: self._gradients.compute(objective, role, examples, self.version)
            for role, examples in by_role(batch).items()
        }
        for role, gradient in gradients.items():
            self._check_drift(role, gradient)
        before = {adapter: [w.clone() for w in self.policy.weights(adapter)] for adapter in self.policy.adapters}
        rates = {role: self._step(role, gradient.pieces) for role, gradient in gradients.items()}
        self._before = (self.version, before)
        self.version += 1
        self._check_moves(before, {role: gradient.norm for role, gradient in gradients.items()})
        reference = self.settings.reference
        if reference.every and self.version % reference.every == 0:
            for role in self.policy.roles:
                self.policy.move_snapshot(role, reference.lerp)
        return {
            role: gradient.measures | {"grad_norm": gradient.norm, "learning_rate": rates[role]}
            for role, gradient in gradients.items()
        }

    def _step(self, role: Role, gradient: Sequence[torch.Tensor]) -> float:
        """Take one optimizer step over the role's weights; return its learning rate."""
        settings, optimizer, weights = self.settings, self._optimizers[role], self.policy.weights(role)
        for weight, piece in zip(weights, gradient, strict=True):
            weight.grad = piece
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        self._role_updates[role] += 1
        rate = settings.role_learning_rates.get(role, settings.learning_rate)
        optimizer.param_groups[0]["lr"] = rate * settings.rate_share(self._role_updates[role])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.policy.publish(role)
        return optimizer.param_groups[0]["lr"]

    def _check_examples(self, objective: Objective, examples: Sequence[Example]) -> None:
        check_examples(objective, examples)
        unknown = {e.request.role for e in examples} - set(self.policy.roles)
        if unknown:
            raise LearningError(f"examples of {sorted(unknown)}, but the policy's roles are {self.policy.roles}")

    def _check_moves(self, before: Mapping[str, Sequence[torch.Tensor]], norms: Mapping[Role, float]) -> None:
        """Raise `LearningError` where an update changed an adapter that did not learn, or none of one that did.

        Copying and comparing the weights costs next to nothing.
        """
        for adapter, old in before.items():
            moved = any(not torch.equal(a, b) for a, b in zip(old, self.policy.weights(adapter), strict=True))
            if moved and adapter not in norms:
                raise LearningError(f"update {self.version} of {sorted(norms)} moved the adapter {adapter!r} as well")
            if not moved and norms.get(adapter, 0.0) > 0:
                rate = self._optimizers[adapter].param_groups[0]["lr"]
                raise LearningError(
                    f"update {self.version} changed no parameter of {adapter!r} though its gradient has norm "
                    f"{norms[adapter]:.3g}; is the learning rate {rate} too small?"
                )

    def _reference_version(self) -> int | None:
        """The version of the adapters that the reference policy holds, or None where it holds none whole."""
        reference = self.settings.reference
        if reference.kind == "base":
            return 0 if self._starts_at_base else None
        moved = self.version - self.version % reference.every if reference.every else 0
        return moved if moved == 0 or reference.lerp == 1 else None

    def _check_drift(self, role: Role, gradient: Gradient) -> None:
        limit, drift = self.settings.max_logprob_drift, gradient.measures.get("logprob_drift", 0.0)
        if not limit or drift <= limit:
            return
        version, weights = self._before or (0, {})
        earlier = {f"version {version} of {role!r}": lambda: self._earlier(role, weights[role])} if weights else {}
        cause = gradient.drift.explain(self.policy.model, self.policy.using, self.policy.adapters, limit, earlier)
        raise LearningError(
            f"role {role!r}: log-probabilities at sampling and at learning differ by {drift:.3f} nats a token on "
            f"average over the {gradient.measures['compared_share']:.0%} of tokens whose version is at hand, at most "
            f"{limit} expected: {cause}; nothing was changed"
        )

    @contextmanager
    def _earlier(self, role: Role, weights: Sequence[torch.Tensor]) -> Iterator[None]:
        with self.policy.holding(role, weights), self.policy.using(role):
            yield


def _summarise(updates: Sequence[Mapping[Role, Row]]) -> dict[Role, Row]:
    """Measures of one call's updates by role: sums, the last learning rate, maxima, and means over examples."""
    out: dict[Role, Row] = {}
    for role in dict.fromkeys(role for update in updates for role in update):
        parts = [update[role] for update in updates if role in update]
        names = dict.fromkeys(name for part in parts for name in part)
        out[role] = {name: _combine(name, [p for p in parts if name in p]) for name in names}
    return out


def _combine(name: str, parts: Sequence[Row]) -> float:
    values = [p[name] for p in parts]
    if name in SUMS:
        return sum(values)
    if name == "learning_rate":
        return values[-1]
    if name.startswith("max_"):
        return max(values)
    return sum(v * p["pairs"] for v, p in zip(values, parts, strict=True)) / sum(p["pairs"] for p in parts)
