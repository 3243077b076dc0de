"""Accuracy, pass@k and majority vote from several samples per problem, with 95 % intervals.

    p1   right wrong right right      mean 0.75    pass@2 = 1 - C(1,2)/C(4,2) = 1
    p2   wrong wrong right wrong      mean 0.25    pass@2 = 1 - C(3,2)/C(4,2) = 0.5

`pass@k` is the unbiased estimate (arXiv 2107.03374): the probability that k of the draws, chosen without replacement,
include a right one. `majority@k` takes the draws k at a time and lets their answers vote; tied answers share.
Invariant: an ungraded draw counts as not right; `accuracy_graded` leaves it out. The interval accounts for the fact
that draws on one problem are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.types import Problem, Verdict
from flow_dpo.evaluate.statistics import interval, ungraded_reasons
from flow_dpo.verify.equivalence import same


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One problem and the verdicts on its draws."""

    problem: Problem
    verdicts: tuple[Verdict, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """Rewards of all draws, 0 for one that could not be graded."""
        return tuple(verdict.right or 0.0 for verdict in self.verdicts)

    @property
    def graded(self) -> tuple[float, ...]:
        """Rewards of the draws that could be graded."""
        return tuple(verdict.right for verdict in self.verdicts if verdict.right is not None)


def summary(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Accuracy (a mean over draws), its 95 % interval, the accuracy over graded draws, and the counts behind them; also
    by level and subject, if problems have them, and `pass_at_k` and `majority_at_k`, if there are several draws."""
    overall = _accuracy(drawn)
    for column in ("level", "subject"):
        groups: dict[str, list[Drawn]] = {}
        for one in drawn:
            if getattr(one.problem, column):
                groups.setdefault(getattr(one.problem, column), []).append(one)
        if len(groups) > 1:
            overall[f"by_{column}"] = {name: _accuracy(group) for name, group in sorted(groups.items())}
    most = max((len(one.verdicts) for one in drawn), default=0)
    if most > 1:
        overall["pass_at_k"] = {str(k): mean([pass_at_k(one.rewards, k) for one in drawn]) for k in ks(most)}
        overall["majority_at_k"] = {str(k): mean([majority_at_k(one.verdicts, k) for one in drawn]) for k in ks(most)}
    return overall


def pass_at_k(rewards: Sequence[float], k: int) -> float | None:
    """1 - C(n - c, k) / C(n, k) for n draws with c right ones; None for fewer than k draws."""
    n, c = len(rewards), int(sum(rewards))
    return None if n < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_at_k(verdicts: Sequence[Verdict], k: int) -> float | None:
    """How often the most frequent answer of k draws is right, with the draws taken k at a time.

    None for fewer than k draws. Answers are equal if they are the same number or name. A draw without an answer has no
    vote, and an answer that could not be graded is not right.
    """
    groups = [verdicts[start : start + k] for start in range(0, len(verdicts) - k + 1, k)]
    return mean([vote(group) for group in groups])


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are."""
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def _accuracy(drawn: Sequence[Drawn]) -> dict[str, Any]:
    means = [sum(one.rewards) / len(one.rewards) for one in drawn if one.rewards]
    num_draws = sum(len(one.verdicts) for one in drawn)
    reasons = ungraded_reasons([verdict for one in drawn for verdict in one.verdicts])
    found: dict[str, Any] = {
        "accuracy": mean(means),
        "interval": list(interval(means, num_draws)),
        "accuracy_graded": mean([mean(one.graded) for one in drawn]),
        "num_problems": len(drawn),
        "num_draws": num_draws,
        "num_correct": int(sum(sum(one.rewards) for one in drawn)),
        "num_ungraded": sum(reasons.values()),
    }
    values = [verdict.value for one in drawn for verdict in one.verdicts]
    found |= {} if (reward := mean(values)) is None else {"reward": reward}
    return found | ({"ungraded_reasons": reasons} if reasons else {})


def ks(most: int) -> list[int]:
    """1, 2, 4, ... and the number of all draws; empty without draws."""
    return sorted({1 << power for power in range(most.bit_length())} | {most}) if most else []


def same_answer(one: str, other: str) -> bool:
    """Whether a vote counts two answers as equal: they are written alike, or the same number or name."""
    return one.strip() == other.strip() or bool(same(one, other))


def vote(verdicts: Sequence[Verdict], weights: Sequence[float] | None = None) -> float:
    """The share of right ones among the answers with the most votes. A draw's vote counts as its weight (1 without
    weights); 0 if there is no answer."""
    clusters: list[tuple[list[Verdict], list[float]]] = []
    for verdict, weight in zip(verdicts, weights or [1.0] * len(verdicts), strict=True):
        if verdict.answer is None:
            continue
        for alike, votes in clusters:
            if same_answer(alike[0].answer or "", verdict.answer):
                alike.append(verdict)
                votes.append(weight)
                break
        else:
            clusters.append(([verdict], [weight]))
    sums = [math.fsum(votes) for _, votes in clusters]
    # Answers that count as equal can have different verdicts, for example after a timeout.
    won = [
        math.fsum(one.right or 0.0 for one in alike) / len(alike)
        for (alike, _), votes in zip(clusters, sums, strict=True)
        if _equal(votes, max(sums))
    ]
    return math.fsum(won) / len(won) if won else 0.0


def _equal(one: float, other: float) -> bool:
    """Whether two sums of votes are equal up to rounding."""
    return math.isclose(one, other, rel_tol=1e-9)
