"""How do examples become an update of the adapters?

They wait in a pool, in order. Every `pairs_per_update` of them make one update: each role that they concern takes one
step of its own optimizer over its own parameters, on the mean loss of its own pairs. What does not fill an update waits:

    learner.update(dpo, 40 pairs)   one update on the first 32, version 0 -> 1, 8 wait
    learner.update(dpo, 10 pairs)   18 wait: no update, and the metrics say so

Invariants: gradients of all roles are computed and checked before anything moves, so an update that goes wrong changes
nothing; the gradient is that of the whole batch, however it was cut into rows; policy and reference are computed in one
shape, so that they differ by exactly zero until the adapter has moved; saved and loaded, a learner goes on bit for bit.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from flow_dpo.errors import ConfigError, LearningError, ModelError
from flow_dpo.logprobs import Logprobs, PackedLogprobs, PlainLogprobs, Spoken, disagreement, inputs
from flow_dpo.objectives import Objective, check_food, completions
from flow_dpo.packing import fill_rows
from flow_dpo.policy import Policy
from flow_dpo.seeds import derive
from flow_dpo.types import Adapter, Example, Role, by_role


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSettings:
    """What the policy is compared with. Not stated in the paper."""

    kind: Literal["base", "snapshot"] = "base"
    """The base with all adapters off, or a frozen copy of each role's adapter as the learner found it."""
    every: int = 0
    """Updates after which a snapshot is moved; 0 leaves it for good."""
    lerp: float = 1.0
    """How far it is moved to the present weights: 1 is all the way."""

    def __post_init__(self) -> None:
        if not 0 < self.lerp <= 1:
            raise ConfigError(f"lerp must be above 0 and at most 1, found {self.lerp}")
        if self.every and self.kind == "base":
            raise ConfigError("only a reference of kind 'snapshot' can be moved every so many updates, found 'base'")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """How a batch is laid out for the model. Changes time and memory, and results only by rounding."""

    packed: bool = True
    """Compute shared prefixes once. A model that cannot be packed is found out when first used."""
    max_tokens: int = 4096
    """Tokens of one forward; one tree larger than this is cut, one pair never is."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward rather than keep its activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """What stops a run that learns something wrong."""

    skip_nonfinite: bool = False
    """Drop and count a batch with a loss or gradient that is no number, instead of stopping."""
    max_logprob_drift: float = 0.2
    """Mean difference, in nats a token, between log-probabilities at sampling and at learning under one version.
    Half precision drifts by 0.01 to 0.03, a wrong prompt or adapter by far more. 0 never stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """How the adapters are moved. The paper: Adam, 5e-6, batches of 32 pairs, gradients clipped at 1."""

    learning_rate: float = 2e-4
    """The paper's 5e-6 moves nothing within a few dozen updates."""
    role_learning_rates: Mapping[Role, float] = field(default_factory=dict)
    """Of the roles that have one of their own. Not stated in the paper."""
    warmup_updates: int = 0
    """A role's first updates, over which its learning rate rises from nothing. Not stated in the paper."""
    max_grad_norm: float = 1.0
    """Of a role's gradient; 0 clips nothing."""
    pairs_per_update: int = 32
    """Of all roles together; 0 makes one update of whatever is handed over in a call.
    How problems pool to the paper's 32 pairs is not stated in the paper."""
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    rows: RowSettings = field(default_factory=RowSettings)
    checks: CheckSettings = field(default_factory=CheckSettings)


Row = dict[str, float]
"""Measures by name, as a run records them: "learn/answer/loss"."""

SUMS = frozenset({"pairs", "tokens", "unshared_tokens", "rows", "reference_s", "forward_s", "backward_s"})
LATEST = frozenset({"learning_rate"})
LARGEST = frozenset({"max_logprob_drift"})


class Learner:
    """Owns the pool, the optimizers and the version of a policy's adapters."""

    def __init__(self, policy: Policy, settings: LearnerSettings | None = None) -> None:
        self.policy = policy
        self.settings = settings or LearnerSettings()
        strange = set(self.settings.role_learning_rates) - set(policy.roles)
        if strange:
            raise ConfigError(f"role_learning_rates names {sorted(strange)}, the policy's roles are {policy.roles}")
        self.version = 0
        """Updates so far; one counter for all roles."""
        self.pool: list[Example] = []
        self.packed: bool | None = None if self.settings.rows.packed else False
        """Whether rows are packed; None until the model was tried."""
        self.role_updates: dict[Role, int] = dict.fromkeys(policy.roles, 0)
        self.optimizers = {role: torch.optim.Adam(policy.weights(role), lr=0.0) for role in policy.roles}
        self.references: dict[Role, str | None] = {
            role: policy.snapshot(role) if self.settings.reference.kind == "snapshot" else None
            for role in policy.roles
        }
        if self.settings.rows.gradient_checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def adapters(self) -> dict[Role, Adapter]:
        """What an engine in this process is to speak with."""
        return {role: Adapter(role=role, version=self.version) for role in self.policy.roles}

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Take these into the pool, learn from every batch that it now holds, and say what was done.

        "learn/updates" counts updates, "learn/skipped" batches dropped by `skip_nonfinite`, "learn/waiting" examples left
        in the pool. "learn/<role>/..." are means over the role's pairs, and sums for "pairs", "tokens" and the like.
        """
        started = time.perf_counter()
        check_food(objective, examples)
        self.pool.extend(examples)
        size = self.settings.pairs_per_update or len(self.pool)
        done: list[dict[Role, dict[str, float]]] = []
        num_skipped = 0
        while self.pool and len(self.pool) >= size:
            try:
                done.append(self._learn(objective, self.pool[:size]))
            except _NonFinite as error:
                if not self.settings.checks.skip_nonfinite:
                    raise LearningError(f"{error}; nothing was changed. Lower the learning rate or beta") from None
                num_skipped += 1
            del self.pool[:size]
        row = {"updates": len(done), "skipped": num_skipped, "waiting": len(self.pool)}
        row |= {"seconds": time.perf_counter() - started}
        for role, measures in _together(done).items():
            row |= {f"{role}/{name}": value for name, value in measures.items()}
        return {f"learn/{name}": float(value) for name, value in row.items()}

    def _learn(self, objective: Objective, batch: Sequence[Example]) -> dict[Role, dict[str, float]]:
        """One update: all gradients first, then all steps."""
        groups = by_role(batch)
        results = {role: self._gradient(objective, role, examples) for role, examples in groups.items()}
        before = {role: [w.clone() for w in self.policy.weights(role)] for role in self.policy.roles}
        for role, (gradient, measures) in results.items():
            measures |= self._step(role, gradient)
        self.version += 1
        self._check_moves(before, {role for role in groups if results[role][1]["grad_norm"] > 0})
        every = self.settings.reference.every
        if every and self.version % every == 0:
            for role in self.policy.roles:
                self.policy.move_snapshot(role, self.settings.reference.lerp)
        return {role: measures for role, (_, measures) in results.items()}

    def _gradient(
        self, objective: Objective, role: Role, examples: Sequence[Example]
    ) -> tuple[list[torch.Tensor], dict[str, float]]:
        """Of the mean loss over the examples, in float32, with what was measured on the way."""
        total = [torch.zeros_like(w) for w in self.policy.weights(role)]
        account = _Account(len(examples))
        for row in self._rows(role, examples):
            gradient = self._row_gradient(objective, role, row, len(examples), account)
            for into, piece in zip(total, gradient, strict=True):
                into += piece
        norm = float(torch.nn.utils.get_total_norm(total))
        if not math.isfinite(norm):
            raise _NonFinite(f"the gradient of role {role!r} is {norm} at version {self.version}")
        measures = account.measures()
        self._check_drift(role, measures)
        return total, measures | {"grad_norm": norm}

    def _row_gradient(
        self, objective: Objective, role: Role, row: Sequence[Example], num_examples: int, account: _Account
    ) -> Sequence[torch.Tensor]:
        policy, marks = self.policy, [time.perf_counter()]
        spoken = [(e.request, c) for e in row for c in completions(e)]
        logprobs = self._way(spoken)
        counts = [len(completions(e)) for e in row]
        reference: list[list[torch.Tensor]] = []
        if objective.needs_reference:
            with torch.no_grad(), policy.speaking(self.references[role]):
                reference = _by_example(logprobs(), counts)
        marks.append(time.perf_counter())
        # Dropout is all that is random here, and depends on nothing but the update.
        with policy.randomness(derive(policy.seed, "update", self.version, role)), policy.speaking(role, training=True):
            found = logprobs()
            loss = objective(row, _by_example(found, counts), reference)
            marks.append(time.perf_counter())
            mean = loss.total / num_examples
            if not torch.isfinite(mean):
                raise _NonFinite(f"the loss of role {role!r} is {float(mean)} at version {self.version}")
            if not mean.requires_grad:
                raise LearningError(f"the loss of role {role!r} does not depend on its adapter")
            gradient = torch.autograd.grad(mean, policy.parameters(role), materialize_grads=True)
        marks.append(time.perf_counter())
        account.add(loss.measures, spoken, logprobs.num_tokens, marks)
        account.add_drift(spoken, [f.detach() for f in found], self.version)
        return gradient

    def _step(self, role: Role, gradient: Sequence[torch.Tensor]) -> dict[str, float]:
        settings, optimizer = self.settings, self.optimizers[role]
        weights = self.policy.weights(role)
        for weight, piece in zip(weights, gradient, strict=True):
            weight.grad = piece
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        rate = settings.role_learning_rates.get(role, settings.learning_rate)
        warm = (self.role_updates[role] + 1) / settings.warmup_updates if settings.warmup_updates else 1.0
        optimizer.param_groups[0]["lr"] = rate * min(1.0, warm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.policy.publish(role)
        self.role_updates[role] += 1
        return {"learning_rate": optimizer.param_groups[0]["lr"]}

    def _check_moves(self, before: Mapping[Role, Sequence[torch.Tensor]], learned: set[Role]) -> None:
        """An update moves the adapters that had a gradient and no others. A copy and a comparison: nothing in cost."""
        for role, old in before.items():
            new = self.policy.weights(role)
            moved = any(not torch.equal(a, b) for a, b in zip(old, new, strict=True))
            if moved and not self.role_updates[role]:
                raise LearningError(f"the adapter of {role!r} moved though it never learned")
            if not moved and role in learned:
                raise LearningError(
                    f"update {self.version} changed no parameter of {role!r} though it had a gradient; "
                    f"is its learning rate {self.optimizers[role].param_groups[0]['lr']} too small for float32?"
                )

    def _check_drift(self, role: Role, measures: Mapping[str, float]) -> None:
        limit = self.settings.checks.max_logprob_drift
        drift = measures.get("logprob_drift", 0.0)
        if limit and drift > limit and not self.policy.settings.lora_dropout:
            raise LearningError(
                f"role {role!r}: log-probabilities at sampling and at learning differ by {drift:.3f} nats a token on "
                f"average under version {self.version} (at most {limit} expected): the engine spoke with another "
                f"adapter or prompt than is learned from"
            )

    def _rows(self, role: Role, examples: Sequence[Example]) -> list[list[Example]]:
        """The examples, in rows of at most the settings' tokens."""
        sequences = [[inputs((e.request, c)) for c in completions(e)] for e in examples]
        if self._is_packed(role, examples):
            trees: dict[str | int, list[int]] = {}
            for i, e in enumerate(examples):
                trees.setdefault(e.problem_id or i, []).append(i)
            members = list(trees.values())
            rows = fill_rows([[sequences[i] for i in tree] for tree in members], self.settings.rows.max_tokens)
            return [[examples[members[g][i]] for g, i in row] for row in rows]
        rows, size = [], 0
        longest_first = sorted(range(len(examples)), key=lambda i: -max(map(len, sequences[i])))
        for i in longest_first:
            if not rows or (len(rows[-1]) * size + size) * len(sequences[i]) > self.settings.rows.max_tokens:
                rows.append([])
                size = max(map(len, sequences[i]))
            rows[-1].append(examples[i])
        return rows

    def _way(self, spoken: Sequence[Spoken]) -> Logprobs:
        return (PackedLogprobs if self.packed else PlainLogprobs)(self.policy.model, spoken)

    def _is_packed(self, role: Role, examples: Sequence[Example]) -> bool:
        """Try both ways on two real examples, once, against the model's own logits."""
        if self.packed is None:
            sample = sorted(examples, key=lambda e: len(e.request.prompt_ids))[:: max(1, len(examples) - 1)][:2]
            spoken = [(e.request, c) for e in sample for c in completions(e)]
            with self.policy.speaking(role):
                self.packed = _packs(self.policy, spoken)
        return self.packed


def _packs(policy: Policy, spoken: Sequence[Spoken]) -> bool:
    tolerance = 1e-3 if policy.model.dtype == torch.float32 else 0.5
    reasons: list[str] = []
    for way in (PackedLogprobs, PlainLogprobs):
        try:
            worst = disagreement(policy.model, spoken, way(policy.model, spoken))
            reason = f"{worst:.2g} nats from the model's own" if worst > tolerance else ""
        except ModelError as error:
            reason = str(error)
        if not reason:
            if reasons:
                warnings.warn(
                    f"this model cannot share prefixes in learning ({reasons[0]}): each completion is computed behind "
                    f"its own prompt, several times slower",
                    stacklevel=2,
                )
            return not reasons
        reasons.append(reason)
    raise ModelError(f"log-probabilities of {type(policy.model).__name__} cannot be computed: {'; '.join(reasons)}")


class _NonFinite(Exception):
    """A loss or gradient that is no number, before anything was changed."""


class _Account:
    """Sums what rows report of one role's update."""

    def __init__(self, num_examples: int) -> None:
        self._num_examples = num_examples
        self._means: dict[str, float] = {}
        self._sums = dict.fromkeys(SUMS, 0.0) | {"pairs": float(num_examples)}
        self._drift: list[torch.Tensor] = []

    def add(
        self, measures: Mapping[str, torch.Tensor], spoken: Sequence[Spoken], num_tokens: int, marks: Sequence[float]
    ) -> None:
        for name, value in measures.items():
            self._means[name] = self._means.get(name, 0.0) + float(value) / self._num_examples
        self._sums["rows"] += 1
        self._sums["tokens"] += num_tokens
        self._sums["unshared_tokens"] += sum(len(inputs(s)) for s in spoken)
        for name, start, end in zip(("reference_s", "forward_s", "backward_s"), marks, marks[1:], strict=False):
            self._sums[name] += end - start

    def add_drift(self, spoken: Sequence[Spoken], found: Sequence[torch.Tensor], version: int) -> None:
        same = [i for i, (_, c) in enumerate(spoken) if c.policy_version == version]
        if same:
            recorded = torch.tensor([x for i in same for x in spoken[i][1].logprobs])
            self._drift.append((torch.cat([found[i] for i in same]).cpu() - recorded).abs())

    def measures(self) -> dict[str, float]:
        out = self._means | self._sums
        if self._drift:
            drift = torch.cat(self._drift)
            out |= {"logprob_drift": float(drift.mean()), "max_logprob_drift": float(drift.max())}
        return out


def _by_example(pieces: Sequence[torch.Tensor], counts: Sequence[int]) -> list[list[torch.Tensor]]:
    rest = iter(pieces)
    return [[next(rest) for _ in range(count)] for count in counts]


def _together(updates: Sequence[Mapping[Role, Mapping[str, float]]]) -> dict[Role, dict[str, float]]:
    """Of several updates: sums of counts, the latest learning rate, means over pairs of the rest."""
    out: dict[Role, dict[str, float]] = {}
    for role in dict.fromkeys(role for update in updates for role in update):
        parts = [update[role] for update in updates if role in update]
        names = dict.fromkeys(name for part in parts for name in part)
        out[role] = {name: _combine(name, [p for p in parts if name in p]) for name in names}
    return out


def _combine(name: str, parts: Sequence[Mapping[str, float]]) -> float:
    values = [p[name] for p in parts]
    if name in SUMS:
        return sum(values)
    if name in LATEST:
        return values[-1]
    if name in LARGEST:
        return max(values)
    return sum(v * p["pairs"] for v, p in zip(values, parts, strict=True)) / sum(p["pairs"] for p in parts)
