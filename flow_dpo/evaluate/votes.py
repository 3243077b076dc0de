"""Several attempts at each problem and Stop's P(Yes) of each: results by vote, by choice, and by a threshold.

An attempt is `Attempted`: its verdict, P(Yes), and the tokens that it took. Of three attempts at one problem,

    answer 14, right, P(Yes) .6      answer 15, P(Yes) .3      answer 15, P(Yes) .2

the majority says 15, the majority weighted by P(Yes) 14, and the best by P(Yes) is 14; accepting above .5 takes one
attempt. If the flow has a judgement of its own (`recipes.flow_dpo.judgement`), its P(right) is used beside P(Yes).
`at_k` takes the attempts k at a time in their order, like `pass_at_k.majority_at_k`, so all rules use the same tokens;
`accepting` is the result of a threshold. Invariant: an attempt that was cut off (Stop never saw it), or has no answer,
has no vote and is not the best, unless that is true of its whole group. With one attempt, all rules give the result of
that attempt. An attempt that could not be graded counts as not right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.pass_at_k import ks, mean, vote
from flow_dpo.evaluate.statistics import interval

THRESHOLDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
"""Of the curve in a summary. 0 accepts whatever Stop saw; 1 accepts nothing, which leaves the best of all attempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """One attempt at a problem."""

    verdict: Verdict
    yes: float | None
    """Stop's P(Yes); None for an attempt that was cut off, which Stop is not asked about."""
    tokens: int
    """Sampled for it, by both roles."""
    right: float | None = None
    """P(right) by the flow's judgement, if it has one of its own; None for an attempt that was cut off."""

    @property
    def reward(self) -> float:
        """1 if it was shown to be right, otherwise 0."""
        return self.verdict.right or 0.0

    @property
    def votes(self) -> bool:
        """Whether it ended and has an answer, so it can vote."""
        return self.yes is not None and self.verdict.answer is not None


Attempts = Sequence[Attempted]
"""The attempts at one problem, in the order in which they were drawn."""


# ---- the rules: the result of a group of attempts -------------------------------------------------------------------


def majority(group: Attempts) -> float:
    """Whether the most frequent answer is right; tied answers share."""
    voters = _voters(group)
    return vote([one.verdict for one in voters])


def weighted_majority(group: Attempts) -> float:
    """Whether the answer with the largest sum of P(Yes) is right; tied answers share."""
    voters = _voters(group)
    return vote([one.verdict for one in voters], [one.yes or 0.0 for one in voters])


def best(group: Attempts) -> float:
    """Whether the attempt with the highest P(Yes) is right; the first one if several are equal."""
    return max(_voters(group), key=_rank).reward


def oracle(group: Attempts) -> float:
    """Whether any attempt is right: what a perfect Stop would reach."""
    return max(one.reward for one in group)


RULES: Mapping[str, Callable[[Attempts], float]] = {
    "majority": majority,
    "weighted_majority": weighted_majority,
    "best": best,
    "oracle": oracle,
}
BY_RIGHT: Mapping[str, Callable[[Attempts], float]] = {
    "weighted_by_right": lambda group: weighted_majority(_by_right(group)),
    "best_by_right": lambda group: best(_by_right(group)),
}
"""Two of these rules by P(right), for a flow with a judgement of its own."""
RULE_WORDS = {
    "one_attempt": "one attempt",
    "majority": "majority",
    "weighted_majority": "weighted by P(Yes)",
    "best": "best by P(Yes)",
    "weighted_by_right": "weighted by P(right)",
    "best_by_right": "best by P(right)",
    "oracle": "oracle",
    "greedy": "one greedy pass",
}
"""How tables name the rules; those of `BY_RIGHT` are shown if a summary has them."""


# ---- the threshold's rule --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What accepting by a threshold gives on one problem, averaged over the orders of its attempts."""

    reward: float
    tokens: float
    """Sampled until one is accepted."""
    attempts: float
    """Made until one is accepted."""


def accepting(drawn: Attempts, max_attempts: int, threshold: float) -> Expected:
    """Accept the first attempt whose P(Yes) exceeds `threshold`; if none of `max_attempts` does, the one with the
    highest P(Yes) answers, the first if several are equal.

    This is the exact mean over all orders of the n draws, of which the first `max_attempts` can be made: draws are
    exchangeable, so no order says more than another. As in `recipes.flow_dpo.attempts`, it does not matter whether an
    attempt has an answer, and one that was cut off is never accepted. Raises `ValueError` for more attempts than draws.
    """
    n, k = len(drawn), max_attempts
    if not 0 < k <= n:
        raise ValueError(f"expected 1 to {n} attempts of {n} draws, found {k}")
    over = [one for one in drawn if one.yes is not None and one.yes > threshold]
    rest = sorted((one for one in drawn if one.yes is None or one.yes <= threshold), key=_rank, reverse=True)
    m = len(rest)
    # 1. The chance that none of k draws is accepted; the first accepted one is equally often each of `over`.
    none = math.comb(m, k) / math.comb(n, k)
    reward = (1 - none) * math.fsum(one.reward for one in over) / max(len(over), 1)
    # 2. The best of k refused draws is the i-th best of all if the other k - 1 are below it.
    ranks = [_rank(one) for one in rest]
    tied = {rank: mean([one.reward for one in rest if _rank(one) == rank]) or 0.0 for rank in ranks}
    reward += math.fsum(tied[rank] * math.comb(m - 1 - i, k - 1) for i, rank in enumerate(ranks)) / math.comb(n, k)
    # 3. A refused draw is made if it comes j-th and the j - 1 before it are refused.
    made = math.fsum(math.comb(m - 1, j) / math.comb(n - 1, j) for j in range(k)) / n if m else 0.0
    tokens = made * sum(one.tokens for one in rest)
    tokens += (1 - none) * sum(one.tokens for one in over) / max(len(over), 1)
    return Expected(reward=reward, tokens=tokens, attempts=made * m + 1 - none)


# ---- over problems ---------------------------------------------------------------------------------------------------


def summary(attempts: Sequence[Attempts]) -> dict[str, Any]:
    """`by_k`: every rule at 1, 2, 4, ... and all attempts; `threshold_curve`: the threshold's with 2, 4, ... and all.
    If attempts have a P(right), also its rules, and `right_curve`: thresholds of P(right), like the flow's own.

    `attempts` has one entry per problem, with equally many attempts.
    """
    most = min((len(one) for one in attempts), default=0)
    found = {
        "by_k": {str(k): at_k(attempts, k) for k in ks(most)},
        "threshold_curve": [row for k in ks(most)[1:] for row in threshold_curve(attempts, k)],
    }
    if not _has_right(attempts):
        return found
    judged = [_by_right(one) for one in attempts]
    return found | {"right_curve": [row for k in ks(most)[1:] for row in threshold_curve(judged, k)]}


def at_k(attempts: Sequence[Attempts], k: int) -> dict[str, Any]:
    """For k attempts per problem: the tokens sampled for them, the accuracy of a single one, and that of every rule in
    `RULES` (and in `BY_RIGHT`, if attempts have a P(right)), with 95 % intervals over problems."""
    every = {**RULES, **(BY_RIGHT if _has_right(attempts) else {})}
    grouped = [groups(one, k) for one in attempts]
    tokens = mean([mean([sum(each.tokens for each in group) for group in of_one]) for of_one in grouped])
    single = _accuracy([[one.reward for group in of_one for one in group] for of_one in grouped])
    rules = {name: _accuracy([[rule(group) for group in of_one] for of_one in grouped]) for name, rule in every.items()}
    return {"tokens": tokens, "one_attempt": single, **rules}


def threshold_curve(
    attempts: Sequence[Attempts], max_attempts: int, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, Any]]:
    """`accepting` at each threshold: accuracy with its 95 % interval, tokens and attempts per problem. Use it to choose
    a threshold: the highest accuracy, or the fewest tokens at an accuracy."""
    curve: list[dict[str, Any]] = []
    for threshold in thresholds:
        found = [accepting(one, max_attempts, threshold) for one in attempts]
        made = mean([one.attempts for one in found])
        # The number of independent rollouts that the draws would make.
        num_rollouts = round(sum(map(len, attempts)) / made) if made else 0
        rewards = [one.reward for one in found]
        curve.append({
            "max_attempts": max_attempts, "threshold": threshold, "accuracy": mean(rewards),
            "interval": list(interval(rewards, num_rollouts)),
            "tokens": mean([one.tokens for one in found]), "attempts": made,
        })  # fmt: skip
    return curve


def _accuracy(rewards: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The mean over problems of the means over their groups, with its 95 % interval."""
    means = [math.fsum(of_one) / len(of_one) for of_one in rewards if of_one]
    return {"accuracy": mean(means), "interval": list(interval(means, sum(map(len, rewards))))}


def _has_right(attempts: Sequence[Attempts]) -> bool:
    return any(each.right is not None for one in attempts for each in one)


def _by_right(attempts: Attempts) -> Attempts:
    """The attempts with P(right) in place of P(Yes), so every rule for one applies to the other."""
    return [replace(one, yes=one.right) for one in attempts]


def groups(attempts: Attempts, k: int) -> list[Attempts]:
    """The attempts k at a time; leftover ones are dropped."""
    return [attempts[start : start + k] for start in range(0, len(attempts) - k + 1, k)] if k else []


def _voters(group: Attempts) -> Attempts:
    return [one for one in group if one.votes] or group


def _rank(one: Attempted) -> float:
    return -math.inf if one.yes is None else one.yes
