"""Gradients of an objective for one role's examples, with the measures of the forward passes.

The examples are laid out in rows. Each row takes a forward under the reference policy, one under the policy, and a
backward. The gradients add up to that of the mean loss over all examples, however the rows are cut and computed:

    12 pairs of 3 trees   ->   a row with trees 1 and 2, a row with tree 3   ->   one gradient, and measures by name

Invariants: no weight is changed here; policy and reference policy get the same tokens in the same shape, so they differ
by their adapters alone; a loss or gradient that is not finite is an error and never counts as zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from operator import add
from threading import Lock

import torch

from flow_dpo.core.errors import LearningError
from flow_dpo.core.objective import Objective, TokenLogprobs
from flow_dpo.core.seeds import derive
from flow_dpo.core.types import Completion, Example, Pair, Role
from flow_dpo.learner.check import choose_way
from flow_dpo.learner.deal import Deal, RowResult, alone
from flow_dpo.learner.kept import KeptVersions
from flow_dpo.learner.logprobs import Logprobs, PackedLogprobs, PlainLogprobs, PromptedCompletion
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import RowSettings
from flow_dpo.models.drift import Drift, Held, spread
from flow_dpo.models.drift_causes import inputs
from flow_dpo.models.packing import merged_rows, padded_rows


@dataclass(frozen=True, slots=True)
class Gradient:
    """The gradient of the mean loss over one role's examples in one update."""

    pieces: list[torch.Tensor]
    """One float32 tensor per parameter of the role."""
    norm: float
    """Norm of all pieces together."""
    measures: dict[str, float]
    """Means over the examples that each measure covers, and the sums named in `SUMS`."""
    counts: dict[str, float]
    """Number of examples in each mean."""
    drift: Drift
    """Comparisons with the log-probabilities recorded at sampling."""
    learned: list[LearnedExample]
    """The examples, each as it was learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedExample:
    """An example as one update learned it: its tokens' log-probabilities, in nats, one list per completion."""

    example: Example
    version: int
    """Version of the policy that learned from it."""
    reference_version: int | None
    policy: list[list[float]]
    """With dropout, if there is any."""
    reference: list[list[float]]
    """Empty if the objective reads none."""


_Row = tuple[list[Example], int]
"""Examples that are computed in one forward, and its number of tokens."""


class NonFinite(Exception):
    """A loss or gradient that is not finite, with its role and what was found. Nothing was changed."""


class Gradients:
    """Computes gradients for the roles of a policy."""

    def __init__(
        self,
        policy: Policy,
        rows: RowSettings,
        references: Mapping[Role, str | None],
        kept: KeptVersions | None = None,
        deal: Deal = alone,
        temperature: float = 1.0,
    ) -> None:
        """`references`: the adapters of the reference policy, None for the base. `kept`: earlier weights to compare
        with. `temperature`: what logits of texts are divided by."""
        self._policy, self._rows, self._references, self._deal = policy, rows, references, deal
        self._temperature = temperature
        self._kept = kept or KeptVersions(policy, 0)
        self.packed: bool | None = None if rows.packed else False
        """Whether prefixes are shared; None until the model has been checked."""
        self.own_head: bool | None = None
        """Whether logits come from the model's own head; None until the model has been checked."""
        self.reference_versions: dict[Role, int | None] = {}
        """The adapter version in each role's reference; None if its weights are those of no version."""

    def check(self) -> None:
        """Choose how log-probabilities are computed, by comparing each way with the model's own forward.
        Does so once. Warns if prefixes cannot be shared. Raises `ModelError` if no way is right.
        """
        if self.packed is None or self.own_head is None:
            self.packed, self.own_head = choose_way(self._policy, packed=self.packed is not False)

    def logprobs(self, completions: Sequence[PromptedCompletion]) -> Logprobs:
        """Log-probabilities of these completions, computed in the chosen way."""
        way = PackedLogprobs if self.packed else PlainLogprobs
        return way(self._policy.model, completions, own_head=self.own_head is True, temperature=self._temperature)

    def compute(
        self, objective: Objective, role: Role, examples: Sequence[Example], version: int, count: int | None = None
    ) -> Gradient:
        """The gradient of the objective's mean over the examples, at this version of the policy.
        Dropout masks are seeded by `count`, the number of updates of the role's pool so far, or by the version if it is
        None. Raises `NonFinite`, and `LearningError` if the loss depends on no parameter.
        """
        total = [torch.zeros_like(w) for w in self._policy.weights(role)]
        account = Account(len(examples), version)
        count = version if count is None else count
        account.policy, account.reference = role, self._references[role]
        account.reference_version = self.reference_versions.get(role)
        objective = getattr(objective, "for_update", lambda _: objective)(examples)
        account.kinds = objective.accepts if objective.needs_reference is True else objective.needs_reference or ()
        # All ranks gather a sharded base together, so every row has to make the same number of forwards.
        account.reference_for_all = self._rows.shard_base and any(isinstance(e, account.kinds) for e in examples)
        self._compare_again(role, examples, account)
        # Longest row first, ties in the order of filling: ranks finish together, and sums always have the same order.
        rows = sorted(enumerate(self._fill(examples)), key=lambda row: -row[1][1])

        # Several threads can compute rows under one adapter. A reference is another adapter: then one thread at a time.
        turn = Lock() if any(isinstance(e, account.kinds) for e in examples) else nullcontext()

        def compute(place: int) -> RowResult:
            index, (row, _) = rows[place]
            # Only dropout is random. With this seed a resumed run equals an uninterrupted one, and rows differ.
            seed = derive(self._policy.seed, "dropout", count, role, index)
            with turn:
                return self._row_result(objective, role, row, account, seed)

        with self._policy.using(role, training=True):
            for (_, (row, _)), result in zip(rows, self._deal(len(rows), compute), strict=True):
                account.add(result, row)
                for into, piece in zip(total, result.pieces, strict=True):
                    into += piece
        norm = float(torch.nn.utils.get_total_norm(total))
        if not math.isfinite(norm):
            raise NonFinite(role, f"the gradient of role {role!r} is {norm} at version {version}")
        return Gradient(total, norm, account.measures(), account.counts, account.drift, account.learned)

    def scaled(self, role: Role, version: int, examples: Sequence[Example]) -> list[Example]:
        """The examples with the recorded log-probabilities of this role's completions of this version converted to the
        temperature: its effect under the present weights, which must be that version's, is added. Drift stays equal."""
        rows = self._fill([e for e in examples if e.request.role == role])

        def compute(place: int) -> RowResult:
            logprobs = self.logprobs([(e.request, c) for e in rows[place][0] for c in e.completions])
            with torch.no_grad(), self._policy.using(role):
                return RowResult(tokens=logprobs.num_tokens, policy=logprobs.added())

        done: dict[int, Example] = {}
        with self._policy.using(role):  # one adapter for all threads
            for (row, _), result in zip(rows, self._deal(len(rows), compute), strict=True):
                counts = [len(e.completions) for e in row]
                for example, added in zip(row, _by_example(result.policy, counts), strict=True):
                    done[id(example)] = _scaled(example, added, version)
        return [done.get(id(example), example) for example in examples]

    def _compare_again(self, role: Role, examples: Sequence[Example], account: Account) -> None:
        """Recompute a few completions of each version, one at a time, if the rows cannot be compared.
        Rows have dropout, and only the present version's weights; earlier weights can have been kept.
        """
        by_version: dict[int, list[PromptedCompletion]] = {}
        for example in examples:
            for completion in example.completions:
                by_version.setdefault(completion.policy_version, []).append((example.request, completion))
        in_rows = self.reference_versions.get(role) if all(isinstance(e, account.kinds) for e in examples) else None
        for version, sampled in sorted(by_version.items()):
            held: Held
            if version == account.version and self._policy.settings.lora_dropout:
                held, context = role, self._policy.using(role)
            elif version in self._kept.weights and version not in (account.version, in_rows):
                held, context = (role, version), self._policy.holding(role, self._kept.weights[version][role])
            else:
                continue
            account.again.add(version)
            with torch.no_grad(), context:
                for completion in spread(sampled):
                    account.drift.add(completion, self.logprobs([completion])()[0], held)

    def _row_result(
        self, objective: Objective, role: Role, examples: Sequence[Example], account: Account, seed: int
    ) -> RowResult:
        """One row's gradient, measures and log-probabilities."""
        policy = self._policy
        completions = [(e.request, c) for e in examples for c in e.completions]
        counts = [len(e.completions) for e in examples]
        logprobs = self.logprobs(completions)
        # 1. Log-probabilities under the reference policy, without a graph.
        marks = [time.perf_counter()]
        reference: list[torch.Tensor] = []
        needed = any(isinstance(e, account.kinds) for e in examples)
        if needed or account.reference_for_all:
            with torch.no_grad(), policy.using(self._references[role]):
                reference = logprobs() if needed else logprobs()[:0]
        marks.append(time.perf_counter())
        # 2. Under the policy, then the loss.
        with policy.dropout_from(seed), policy.using(role, training=True):
            found = logprobs()
            nothing = [()] * len(examples) if objective.needs_reference else []
            theirs = _by_example(reference, counts) if reference else nothing
            loss = objective(examples, _by_example(found, counts), theirs)
            marks.append(time.perf_counter())
            mean = loss.total / account.num_examples
            if not mean.requires_grad:
                raise LearningError(f"the loss of role {role!r} does not depend on its adapter: it has no gradient")
            # 3. Backwards: the gradient of this row's share of the mean loss.
            pieces = torch.autograd.grad(mean, policy.parameters(role), materialize_grads=True)
        if not torch.isfinite(mean):
            raise NonFinite(role, f"the loss of role {role!r} is {mean.item()} at version {account.version}")
        marks.append(time.perf_counter())
        return RowResult(
            pieces=pieces,
            measures={name: float(value) for name, value in loss.measures.items()},
            counts={name: loss.counts.get(name, len(examples)) for name in loss.measures},
            tokens=logprobs.num_tokens,
            seconds=(marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]),
            policy=[each.detach() for each in found],
            reference=reference,
        )

    def _fill(self, examples: Sequence[Example]) -> list[_Row]:
        """The examples as rows of at most `max_tokens` tokens."""
        self.check()
        sequences = [[inputs((e.request, c)) for c in e.completions] for e in examples]
        if self.packed:
            rows = merged_rows(sequences, [e.problem_id or i for i, e in enumerate(examples)], self._rows.most)
        else:
            rows = padded_rows(sequences, self._rows.most)
        return [([examples[i] for i in row], num_tokens) for row, num_tokens in rows]


SUMS = frozenset({"pairs", "tokens", "unshared_tokens", "rows", "reference_s", "forward_s", "backward_s"})


class Account:
    """Measures of one role's update, summed over rows."""

    def __init__(self, num_examples: int, version: int) -> None:
        self.num_examples, self.version = num_examples, version
        self.counts: dict[str, float] = {}
        self._totals: dict[str, float] = {}
        self._sums = dict.fromkeys(sorted(SUMS), 0.0) | {"pairs": float(num_examples)}
        self.drift = Drift()
        self.kinds: tuple[type, ...] = ()
        """Kinds of examples for which the objective reads the reference's log-probabilities."""
        self.reference_for_all = False
        """Whether rows without such examples compute them anyway."""
        self.again: set[int] = set()
        """Versions whose completions are recomputed, and therefore not compared in the rows."""
        self.policy: Held = None
        self.reference: Held = None
        """`policy` and `reference`: the adapters under which rows are computed."""
        self.reference_version: int | None = None
        self.learned: list[LearnedExample] = []

    def add(self, result: RowResult, examples: Sequence[Example]) -> None:
        """Add one row."""
        for name, value in result.measures.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + result.counts[name]
        completions = [(e.request, c) for e in examples for c in e.completions]
        self._sums["rows"] += 1
        self._sums["tokens"] += result.tokens
        self._sums["unshared_tokens"] += sum(len(inputs(s)) for s in completions)
        for name, seconds in zip(("reference_s", "forward_s", "backward_s"), result.seconds, strict=True):
            self._sums[name] += seconds
        self.drift.num_tokens += sum(len(c.token_ids) for _, c in completions)
        # If policy or reference has the weights that sampled a completion, comparing costs nothing.
        for index, (_, completion) in enumerate(completions):
            version = completion.policy_version
            if version == self.version and version not in self.again:
                self.drift.add(completions[index], result.policy[index], self.policy)
            elif result.reference and version == self.reference_version and version not in self.again:
                self.drift.add(completions[index], result.reference[index], self.reference)
        counts = [len(e.completions) for e in examples]
        policy = _by_example(result.policy, counts)
        reference = _by_example(result.reference, counts) if result.reference else [()] * len(examples)
        for example, ours, theirs in zip(examples, policy, reference, strict=True):
            read = theirs if isinstance(example, self.kinds) else ()
            self.learned.append(
                LearnedExample(
                    example=example,
                    version=self.version,
                    reference_version=self.reference_version if read else None,
                    policy=[each.tolist() for each in ours],
                    reference=[each.tolist() for each in read],
                )
            )

    def measures(self) -> dict[str, float]:
        """The measures by name; drift only if something was compared."""
        means = {name: total / self.counts[name] for name, total in self._totals.items()}
        return means | self._sums | self.drift.measures()


def _scaled(example: Example, added: TokenLogprobs, version: int) -> Example:
    """The example with these values added to the recorded log-probabilities of its completions of this version."""
    made: list[Completion] = []
    for completion, piece in zip(example.completions, added, strict=True):
        raw = completion.raw_logprobs or completion.logprobs
        scaled = replace(completion, logprobs=tuple(map(add, raw, piece.tolist())), raw_logprobs=raw)
        made.append(scaled if completion.policy_version == version else completion)
    names = ("chosen", "rejected") if isinstance(example, Pair) else ("completion",)
    return replace(example, **dict(zip(names, made, strict=True)))


def _by_example(pieces: Sequence[torch.Tensor], counts: Sequence[int]) -> list[TokenLogprobs]:
    rest = iter(pieces)
    return [[next(rest) for _ in range(count)] for count in counts]
