"""Learner: pools examples, computes gradients, and updates each role's adapter with its own optimizer.

Examples wait in a pool, in order. Every `examples_per_update` of them make one update: each role among them takes one
step of its own optimizer (Adam) over its own parameters, on the mean loss of its own examples. Examples that fill no
update wait:

    learner.update(dpo, 40 pairs)   one update on the first 32, version 0 -> 1, 8 wait
    learner.update(dpo, 10 pairs)   18 wait: no update, and the measures say so

A role can have its own pool, and then learns independently of the others; pools that are ready share an update.
Versions that batches in flight were sampled with can be kept (`kept`), for comparing and for sampling again.
Invariants: the gradients of all roles are computed and checked before any weight changes, so a failed update changes
nothing and its examples stay in the pool; a learner that is saved and loaded continues bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import chain
from pathlib import Path

import torch

from flow_dpo.core.errors import ConfigError, LearningError
from flow_dpo.core.objective import Objective, check_examples
from flow_dpo.core.types import Adapter, Example, Role, by_role
from flow_dpo.learner import state
from flow_dpo.learner.deal import Deal, alone
from flow_dpo.learner.gradients import SUMS, Gradient, Gradients, LearnedExample, NonFinite
from flow_dpo.learner.kept import KeptVersions
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.pool import SHARED, Window, make_pools
from flow_dpo.learner.settings import LearnerSettings
from flow_dpo.models.drift import Held

Row = dict[str, float]
"""Measures by name, as a run records them: "learn/answer/loss"."""


class Learner:
    """Owns the pools, the optimizers and the version of a policy's adapters."""

    def __init__(
        self,
        policy: Policy,
        settings: LearnerSettings | None = None,
        *,
        kept_versions: int = 0,
        deal: Deal = alone,
    ) -> None:
        """`kept_versions`: number of calls of `update` before the last one whose versions are kept; the lag of a run.
        `deal` distributes the computing of rows."""
        self.policy, self.settings = policy, settings or LearnerSettings()
        unknown = set(self.settings.roles) - set(policy.roles)
        if unknown:
            raise ConfigError(f"learner.roles names {sorted(unknown)}, but the policy's roles are {policy.roles}")
        self.version = 0
        """Updates so far; one counter for all roles."""
        self.pools = make_pools(self.settings, policy.seed)
        """The shared pool, and by role those of roles that have their own."""
        self._texts = state.Texts()
        self.learned: list[LearnedExample] = []
        """Examples of the last call's updates, in order, as they were learned."""
        self._role_updates: dict[Role, int] = dict.fromkeys(policy.roles, 0)
        self._optimizers = {role: torch.optim.Adam(policy.weights(role), lr=0.0) for role in policy.roles}
        frozen = self.settings.reference.kind == "snapshot"
        references = {role: policy.snapshot(role) if frozen else None for role in policy.roles}
        self._kept = KeptVersions(policy, kept_versions)
        one, rows = self.settings, self.settings.rows
        self._gradients = Gradients(policy, rows, references, self._kept, deal, one.logit_temperature)
        version = 0 if frozen or policy.is_at_base() else None
        self._gradients.reference_versions = dict.fromkeys(policy.roles, version)
        self._before: tuple[int, dict[str, list[torch.Tensor]]] = (0, {})
        """The version before the last update and its weights, which can explain a drift."""
        if self.settings.rows.gradient_checkpointing is True:
            policy.checkpoint_activations()

    @property
    def adapters(self) -> dict[Role, Adapter]:
        """The adapters in force, for an engine in this process."""
        return {role: Adapter(role=role, version=self.version) for role in self.policy.roles}

    @property
    def pool(self) -> list[Example]:
        """The examples that wait to be learned, except those in windows."""
        return [example for pool in self.pools.values() if not isinstance(pool, Window) for example in pool.examples]

    @contextmanager
    def holding(self, version: int) -> Iterator[dict[Role, Adapter]]:
        """A context in which the policy holds all roles' weights of this version; it gives their adapters.
        The present weights are restored bit for bit. Raises `LearningError` for a version that was not kept.
        """
        if version != self.version and version not in self._kept.weights:
            raise LearningError(
                f"the weights of version {version} were not kept; expected one of "
                f"{sorted({*self._kept.weights, self.version})}: those of the last `kept_versions` calls are kept"
            )
        with ExitStack() as stack:
            if version != self.version:
                for role, weights in self._kept.weights[version].items():
                    stack.enter_context(self.policy.holding(role, weights))
            yield {role: Adapter(role=role, version=version) for role in self.policy.roles}

    @property
    def way(self) -> tuple[bool | None, bool | None]:
        """Whether log-probabilities are computed with shared prefixes, and by the model's own head; None if unknown."""
        return self._gradients.packed, self._gradients.own_head

    def tensors(self) -> dict[str, torch.Tensor]:
        """The live tensors that an update reads or writes, by name ("answer/exp_avg/<name>")."""
        return state.live_tensors(self.policy, self._optimizers, self._kept.weights)

    def check(self) -> None:
        """Choose how log-probabilities are computed, now rather than at the first update. Raises `ModelError`."""
        self._gradients.check()

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Add examples to their pools, make updates while a pool has a batch, and return metrics.

        "learn/updates" counts updates, "learn/skipped" batches dropped by `skip_nonfinite`, "learn/waiting" examples
        that fill no update, "learn/<role>/window" examples in a window. Other "learn/<role>/..." metrics are means over
        the examples of the role that they cover, or sums: "pairs" (examples of any kind), "tokens" and the like. Raises
        `LearningError` for a bad loss, gradient or drift, before anything but the pools has changed; also, once it has,
        for an adapter that moved or did not move against expectation.
        """
        started = time.perf_counter()
        self._check_examples(objective, examples)
        examples = self._scaled(examples)
        calls = self._kept.begin(self.version)
        self._move_references(self.policy.roles if self.settings.reference.each_batch else ())
        for name, pool in self.pools.items():
            pool.take([example for example in examples if self._pool_of(example.request.role) == name])
        done: list[dict[Role, tuple[Row, Row]]] = []
        self.learned = []
        num_skipped = 0
        while batches := {name: batch for name, pool in self.pools.items() if (batch := pool.batch())}:
            try:
                done.append(self._learn(objective, batches))
            except NonFinite as error:
                role, found = error.args
                if not self.settings.passes.skip_nonfinite:
                    raise LearningError(f"{found}; nothing was changed. Lower the learning rate or beta") from error
                num_skipped += 1
                self.pools[self._pool_of(role)].give_up()
        self._kept.end(calls, self.version)
        row: Row = {"updates": len(done), "skipped": num_skipped, "waiting": len(self.pool)}
        row |= {"seconds": time.perf_counter() - started}
        row |= {f"{name}/window": len(p.examples) for name, p in self.pools.items() if isinstance(p, Window)}
        for role, measures in _summarise(done).items():
            row |= {f"{role}/{name}": value for name, value in measures.items()}
        return {f"learn/{name}": value for name, value in row.items()}

    def save(self, folder: str | Path) -> None:
        """Write all that `load` needs to continue bit for bit, with the adapters in PEFT's layout."""
        facts = {"version": self.version, "role_updates": self._role_updates, "packed": self.way[0]}
        facts |= {"pool_updates": {name: pool.num_updates for name, pool in self.pools.items()}}
        facts |= {"reference_versions": self._gradients.reference_versions, "kept": self._kept.calls}
        examples = [example for pool in self.pools.values() for example in pool.examples]
        kept = {version: self._kept.weights[version] for version in sorted({*self._kept.calls} - {self.version})}
        state.write(Path(folder), self.policy, self._optimizers, facts, self._texts(examples), kept)

    def load(self, folder: str | Path) -> None:
        """Restore what `save` wrote for a learner of the same model and settings. Raises `DataError`."""
        facts, examples, kept = state.read(Path(folder), self.policy, self._optimizers)
        self.version, self._role_updates = facts.version, facts.role_updates
        self._gradients.packed, self._gradients.reference_versions = facts.packed, facts.reference_versions
        self._kept.replace(facts.kept, kept, self.version)
        for name, pool in self.pools.items():
            # A role that had no pool of its own when saved starts with the count of its updates.
            pool.num_updates = facts.pool_updates.get(name, self._role_updates.get(name, 0))
            pool.examples = [each for each in examples if self._pool_of(each.request.role) == name]

    def _scaled(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The examples, with the recorded log-probabilities converted to the temperature under the weights that
        sampled; a completion for another request than it was sampled for (version -1) stays as it is."""
        found = {(e.request.role, c.policy_version) for e in examples for c in e.completions}
        for role, version in sorted(found) if self.settings.logit_temperature != 1 else ():
            if version >= 0:
                with self.holding(version):
                    examples = self._gradients.scaled(role, version, examples)
        return examples

    def _pool_of(self, role: Role) -> str:
        return role if role in self.pools else SHARED

    def _learn(self, objective: Objective, batches: Mapping[str, Sequence[Example]]) -> dict[Role, tuple[Row, Row]]:
        """One update with a batch of each of these pools: first all roles' gradients, then all optimizer steps."""
        counts = {role: self.pools[self._pool_of(role)].num_updates for role in self.policy.roles}
        gradients = {
            role: self._gradients.compute(objective, role, examples, self.version, counts[role])
            for role, examples in by_role([*chain(*batches.values())]).items()
        }
        for role, gradient in gradients.items():
            self._check_drift(role, gradient)
        before = {adapter: [w.clone() for w in self.policy.weights(adapter)] for adapter in self.policy.adapters}
        rates = {role: self._step(role, gradient.pieces) for role, gradient in gradients.items()}
        self._before = (self.version, before)
        self.version += 1
        self._check_moves(before, {role: gradient.norm for role, gradient in gradients.items()})
        for name in batches:
            self.pools[name].learned()
        self.learned += [each for gradient in gradients.values() for each in gradient.learned]
        every, updates = self.settings.reference.every, {name: self.pools[name].num_updates for name in batches}
        due = [role for role in self.policy.roles if every and updates.get(self._pool_of(role), 1) % every == 0]
        self._move_references([role for role in due if self._pool_of(role) in batches])
        return {
            role: (gradient.measures | {"grad_norm": gradient.norm, "learning_rate": rates[role]}, gradient.counts)
            for role, gradient in gradients.items()
        }

    def _move_references(self, roles: Sequence[Role]) -> None:
        for role in roles:
            self.policy.move_snapshot(role, self.settings.reference.lerp)
            self._gradients.reference_versions[role] = self.version if self.settings.reference.lerp == 1 else None

    def _step(self, role: Role, gradient: Sequence[torch.Tensor]) -> float:
        """Take one optimizer step over the role's weights; return its learning rate."""
        settings, optimizer, weights = self.settings, self._optimizers[role], self.policy.weights(role)
        for weight, piece in zip(weights, gradient, strict=True):
            weight.grad = piece
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        self._role_updates[role] += 1
        optimizer.param_groups[0]["lr"] = settings.rate(role, self._role_updates[role])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.policy.publish(role)
        return optimizer.param_groups[0]["lr"]

    def _check_examples(self, objective: Objective, examples: Sequence[Example]) -> None:
        check_examples(objective, examples)
        unknown = {e.request.role for e in examples} - set(self.policy.roles)
        if unknown:
            raise LearningError(f"examples of {sorted(unknown)}, but the policy's roles are {self.policy.roles}")

    def _check_moves(self, before: Mapping[str, list[torch.Tensor]], norms: Mapping[Role, float]) -> None:
        """Raise `LearningError` if an update changed an adapter that did not learn, or did not change one that did."""
        # Read all at once: reading weight by weight would wait for the device each time.
        subtract = torch._foreach_sub  # pyright: ignore[reportPrivateImportUsage]
        changes = [subtract(old, self.policy.weights(adapter)) for adapter, old in before.items()]
        farthest = torch.stack([torch.nn.utils.get_total_norm(each, torch.inf) for each in changes]).tolist()
        for adapter, moved in zip(before, farthest, strict=True):
            if moved and adapter not in norms:
                raise LearningError(f"update {self.version} of {sorted(norms)} moved the adapter {adapter!r} as well")
            if not moved and norms.get(adapter, 0.0) > 0:
                rate = self._optimizers[adapter].param_groups[0]["lr"]
                raise LearningError(
                    f"update {self.version} changed no parameter of {adapter!r} though its gradient has norm "
                    f"{norms[adapter]:.3g}; is the learning rate {rate} too small?"
                )

    def _known(self) -> dict[int, Mapping[str, list[torch.Tensor]]]:
        """Weights of earlier versions, which can explain a drift."""
        return {version: weights for version, weights in [self._before] if weights} | self._kept.weights

    def _under(self, held: Held) -> AbstractContextManager[object]:
        """A context in which an adapter is on: the present one by its name, or one of an earlier version; or none."""
        if not isinstance(held, tuple):
            return self.policy.using(held)
        name, version = held
        return self.policy.holding(name, self._known()[version][name])

    def _check_drift(self, role: Role, gradient: Gradient) -> None:
        limit, drift = self.settings.max_logprob_drift, gradient.measures.get("logprob_drift", 0.0)
        if not limit or drift <= limit:
            return
        # Any recent version, and any role: an engine can have mixed up either.
        earlier: dict[Held, str] = {
            (name, version): f"version {version} of {name!r}" for version in self._known() for name in self.policy.roles
        }
        others: dict[Held, str] = {name: f"the adapter of {name!r}" for name in self.policy.adapters} | earlier
        cause = gradient.drift.explain(self.policy.model, self._under, others, limit)
        raise LearningError(
            f"role {role!r}: log-probabilities at sampling and at learning differ by {drift:.3f} nats per token on "
            f"average over the {gradient.measures['compared_share']:.0%} of tokens that were compared, at most "
            f"{limit} expected: {cause}; nothing was changed"
        )


def _summarise(updates: Sequence[Mapping[Role, tuple[Row, Row]]]) -> dict[Role, Row]:
    """Measures of one call's updates by role: sums, the last learning rate, maxima, and means over examples."""
    out: dict[Role, Row] = {}
    for role in dict.fromkeys(role for update in updates for role in update):
        parts = [update[role] for update in updates if role in update]
        names = dict.fromkeys(name for row, _ in parts for name in row)
        out[role] = {name: _combine(name, [part for part in parts if name in part[0]]) for name in names}
    return out


def _combine(name: str, parts: Sequence[tuple[Row, Row]]) -> float:
    values = [row[name] for row, _ in parts]
    if name in SUMS:
        return sum(values)
    if name == "learning_rate":
        return values[-1]
    if name.startswith("max_"):
        return max(values)
    weights = [counts.get(name, row["pairs"]) for row, counts in parts]
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
