"""What is the gradient of a role's examples, and what was seen on the way?

The examples are laid out in rows; each row is computed under the reference, under the policy, and backwards; the rows'
gradients add up to that of the mean loss over all examples, whatever the rows are:

    12 pairs of 3 trees   ->   a row with trees 1 and 2, a row with tree 3   ->   one gradient, and measures by name

Invariants: nothing is changed here; policy and reference see the same tokens in the same shape, so that their
difference is that of the adapters alone; a loss or gradient that is no number is an error, never a zero.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from flow_dpo.core.errors import LearningError, ModelError
from flow_dpo.core.objective import Objective, TokenLogprobs
from flow_dpo.core.seeds import derive
from flow_dpo.core.types import Example, Role
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs, Spoken, disagreement, inputs
from flow_dpo.learner.packing import fill_rows
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import RowSettings

FULL_TOLERANCE = 1e-3
"""Of the largest difference between log-probabilities and the model's own, in nats, when a model is first used."""
HALF_TOLERANCE = 0.5
"""Of the mean difference in half precision with separate forwards: logits above 16 are an eighth apart there. It is
0.01 to 0.03 on text that the model would write, 0.3 on tokens that it finds absurd."""
HALF_SLACK = 0.05
"""With shared prefixes it may be three times that of separate ones, and so much more. Tokens that see what they should
not are off by more."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """Of the mean loss over one role's examples in one update."""

    pieces: list[torch.Tensor]
    """Of each of the role's parameters, float32."""
    norm: float
    measures: dict[str, float]
    """Means over the examples, and the sums named in `SUMS`."""


class NonFinite(Exception):
    """A loss or gradient that is no number. Nothing was changed."""


class Gradients:
    """Computes gradients for the roles of a policy."""

    def __init__(self, policy: Policy, rows: RowSettings, references: Mapping[Role, str | None]) -> None:
        self._policy, self._rows, self._references = policy, rows, references
        self.packed: bool | None = None if rows.packed else False
        """Whether prefixes are shared; None until the model was tried."""

    def of(self, objective: Objective, role: Role, examples: Sequence[Example], version: int) -> Gradient:
        """`version` is the policy's. Raises `NonFinite`, and `LearningError` where no gradient can be had."""
        total = [torch.zeros_like(w) for w in self._policy.weights(role)]
        account = Account(len(examples), version)
        for row in self._fill(role, examples):
            for into, piece in zip(total, self._of_row(objective, role, row, account), strict=True):
                into += piece
        norm = float(torch.nn.utils.get_total_norm(total))
        if not math.isfinite(norm):
            raise NonFinite(f"the gradient of role {role!r} is {norm} at version {version}")
        return Gradient(total, norm, account.measures())

    def _of_row(
        self, objective: Objective, role: Role, row: Sequence[Example], account: Account
    ) -> Sequence[torch.Tensor]:
        policy = self._policy
        spoken = [(e.request, c) for e in row for c in e.completions]
        counts = [len(e.completions) for e in row]
        logprobs = self._way()(policy.model, spoken)
        marks = [time.perf_counter()]
        reference: list[TokenLogprobs] = []
        if objective.needs_reference:
            with torch.no_grad(), policy.speaking(self._references[role]):
                reference = _by_example(logprobs(), counts)
        marks.append(time.perf_counter())
        # Dropout is all that is random here; its seed makes a resumed run go on as the interrupted one would have.
        seed = derive(policy.seed, "dropout", account.version, role)
        with policy.dropout_from(seed), policy.speaking(role, training=True):
            found = logprobs()
            loss = objective(row, _by_example(found, counts), reference)
            marks.append(time.perf_counter())
            mean = loss.total / account.num_examples
            if not torch.isfinite(mean):
                raise NonFinite(f"the loss of role {role!r} is {mean.item()} at version {account.version}")
            if not mean.requires_grad:
                raise LearningError(f"the loss of role {role!r} does not depend on its adapter: no target was reached")
            gradient = torch.autograd.grad(mean, policy.parameters(role), materialize_grads=True)
        marks.append(time.perf_counter())
        account.add(loss.measures, spoken, logprobs.num_tokens, marks)
        account.add_drift(spoken, [f.detach() for f in found])
        return gradient

    def _way(self) -> type[PackedLogprobs] | type[PlainLogprobs]:
        return PackedLogprobs if self.packed else PlainLogprobs

    def _fill(self, role: Role, examples: Sequence[Example]) -> list[list[Example]]:
        """The examples, in rows of at most the settings' tokens."""
        if self.packed is None:
            with self._policy.speaking(role):
                self.packed = can_pack(self._policy, _sample(examples))
        sequences = [[inputs((e.request, c)) for c in e.completions] for e in examples]
        if not self.packed:
            return [[examples[i] for i in row] for row in _padded_rows(sequences, self._rows.max_tokens)]
        trees: dict[str | int, list[int]] = {}
        for i, e in enumerate(examples):
            trees.setdefault(e.problem_id or i, []).append(i)
        members = list(trees.values())
        rows = fill_rows([[sequences[i] for i in tree] for tree in members], self._rows.max_tokens)
        return [[examples[members[tree][i]] for tree, i in row] for row in rows]


def _padded_rows(sequences: Sequence[Sequence[Sequence[int]]], max_tokens: int) -> list[list[int]]:
    """Items of similar length together, each row padded to its longest."""
    lengths = [max(map(len, item)) for item in sequences]
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if rows:
            num_sequences = sum(len(sequences[j]) for j in [*rows[-1], i])
            if num_sequences * lengths[rows[-1][0]] <= max_tokens:
                rows[-1].append(i)
                continue
        rows.append([i])
    return rows


def _sample(examples: Sequence[Example]) -> list[Spoken]:
    """Two examples, of the longest prompt and of the one next to it: they share most, and a window shows."""
    longest = sorted(examples, key=lambda e: (len(e.request.prompt_ids), e.request.prompt_ids))[-2:]
    return [(e.request, c) for e in longest for c in e.completions]


def can_pack(policy: Policy, spoken: Sequence[Spoken]) -> bool:
    """Try both ways against the model's own logits; warns where only the slow one agrees. The adapter on stays on."""
    half = policy.model.dtype != torch.float32
    separate = _off(policy, PlainLogprobs, spoken) if half else None
    allowed = HALF_SLACK + 3 * separate if isinstance(separate, float) else HALF_TOLERANCE if half else FULL_TOLERANCE
    shared = _fault(_off(policy, PackedLogprobs, spoken), allowed)
    if not shared:
        return True
    if separate is None:
        separate = _off(policy, PlainLogprobs, spoken)
    if fault := _fault(separate, HALF_TOLERANCE if half else FULL_TOLERANCE):
        raise ModelError(
            f"{type(policy.model).__name__}'s log-probabilities cannot be computed: with shared prefixes {shared}, "
            f"with separate ones {fault}"
        )
    warnings.warn(
        f"prefixes are not shared in learning, for this model does not allow it ({shared}): each completion is "
        f"computed behind its own prompt, exact but several times slower",
        stacklevel=2,
    )
    return False


def _fault(off: float | str, allowed: float) -> str:
    """What is wrong with a way that is so far off; "" where nothing is."""
    if isinstance(off, str):
        return off
    return f"{off:.2g} nats off the model's own logits, {allowed:.2g} allowed" if off > allowed else ""


def _off(policy: Policy, way: type[PackedLogprobs] | type[PlainLogprobs], spoken: Sequence[Spoken]) -> float | str:
    """Nats from the model's own log-probabilities: the most, in half precision the mean; or why there are none."""
    model = policy.model
    try:
        differences = disagreement(model, spoken, way(model, spoken))
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        # A model that knows no layouts may refuse the argument, or trip over it anywhere inside.
        return f"{type(error).__name__}: {error}"
    return (differences.max() if model.dtype == torch.float32 else differences.mean()).item()


SUMS = frozenset({"pairs", "tokens", "unshared_tokens", "rows", "reference_s", "forward_s", "backward_s"})


class Account:
    """Sums what rows report of one role's update."""

    def __init__(self, num_examples: int, version: int) -> None:
        self.num_examples, self.version = num_examples, version
        self._means: dict[str, float] = {}
        self._sums = dict.fromkeys(sorted(SUMS), 0.0) | {"pairs": float(num_examples)}
        self._drift: list[torch.Tensor] = []

    def add(
        self, measures: Mapping[str, torch.Tensor], spoken: Sequence[Spoken], num_tokens: int, marks: Sequence[float]
    ) -> None:
        """`marks` are the times before the reference, after it, after the forward and after the backward."""
        for name, value in measures.items():
            self._means[name] = self._means.get(name, 0.0) + float(value) / self.num_examples
        self._sums["rows"] += 1
        self._sums["tokens"] += num_tokens
        self._sums["unshared_tokens"] += sum(len(inputs(s)) for s in spoken)
        for name, start, end in zip(("reference_s", "forward_s", "backward_s"), marks, marks[1:], strict=False):
            self._sums[name] += end - start

    def add_drift(self, spoken: Sequence[Spoken], found: Sequence[torch.Tensor]) -> None:
        """Compare with what the engine said while sampling, where it spoke with the present version."""
        same = [i for i, (_, c) in enumerate(spoken) if c.policy_version == self.version]
        if same:
            recorded = torch.tensor([x for i in same for x in spoken[i][1].logprobs])
            self._drift.append((torch.cat([found[i] for i in same]).cpu() - recorded).abs())

    def measures(self) -> dict[str, float]:
        """By name; drift only where something could be compared."""
        out = self._means | self._sums
        if self._drift:
            drift = torch.cat(self._drift)
            out |= {"logprob_drift": float(drift.mean()), "max_logprob_drift": float(drift.max())}
        return out


def _by_example(pieces: Sequence[torch.Tensor], counts: Sequence[int]) -> list[TokenLogprobs]:
    rest = iter(pieces)
    return [[next(rest) for _ in range(count)] for count in counts]
