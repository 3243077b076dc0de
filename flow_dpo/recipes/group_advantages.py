"""Advantages of whole rollouts, relative to the other rollouts of the problem or of the batch.

    rewards 1 0 0 0    mean 1/4, deviation sqrt(3)/4    advantages sqrt(3), -1/sqrt(3) three times    (GRPO)
                       mean of the others 0 and 1/3     advantages 1, -1/3 three times                (RLOO)

Invariant: what teaches nothing makes no example. This holds for an advantage of 0 and, with `drop_tied`, for a group
whose rewards are all equal. The record counts such groups as "tied_trees".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Rollout, Tree
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.recipes.scored import scored_as_sampled

_ROUNDING = 1e-9
"""Rewards of a group count as equal if their relative spread is at most this."""


@dataclass(frozen=True, kw_only=True)
class GroupAdvantages:
    """Credits every completion of a rollout with its reward relative to a baseline (GRPO, arXiv 2402.03300, section
    4.1.2, outcome supervision):

        advantage = (reward - mean of the problem's rewards) / their standard deviation

    Ungraded rollouts enter neither the mean nor the examples.
    """

    baseline: Literal["group", "others", "none"] = "group"
    """What is subtracted: "group", the mean of the problem's rewards; "others", the mean of its other rollouts' rewards
    (RLOO, arXiv 2402.14740); "none", nothing (REINFORCE++, arXiv 2501.03262, which whitens instead)."""
    scale: bool = True
    """Divide by the standard deviation of the group's rewards. Without it, easy and hard questions weigh the same. This
    is one half of Dr. GRPO (arXiv 2503.20783); the other is `objective.reduction` "constant"."""
    whiten: bool = False
    """Subtract the mean of all advantages of the batch and divide by their standard deviation, each advantage weighted
    by its tokens."""
    drop_tied: bool = True
    """Leave out groups whose rewards are all equal. Their advantages are 0 anyway, unless `baseline` is "none",
    `whiten` is on or `overlong_share` lowers a reward."""
    overlong_share: float = 0.0
    """The last share of the longest completion that the flow allows, over which the reward falls linearly (DAPO's soft
    punishment, arXiv 2503.14476, equation 13: 4,096 of 20,480 tokens); 0 lowers nothing."""
    overlong_penalty: float = 0.5
    """The most that is subtracted for length. DAPO's 1, for rewards of 1 and -1, is 0.5 for a verifier's 1 and 0."""

    def __post_init__(self) -> None:
        expect(self, "of 0 to 1", lambda value: 0 <= value <= 1, "overlong_share")
        expect(self, "to be a finite number of 0 or more", lambda value: 0 <= value < math.inf, "overlong_penalty")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no problem can ever make an example."""
        num_rollouts = getattr(recipe.explore, "num_rollouts", 2)
        if self.baseline == "none" and not self.scale and not self.drop_tied:
            if self.whiten and num_rollouts * problems_per_batch < 2:
                raise ConfigError(
                    "expected --problems_per_batch of 2 or more, found 1: the batch's mean is the baseline, and "
                    "one answer alone is equal to it"
                )
        elif num_rollouts < 2:
            raise ConfigError(
                "expected --num_rollouts of 2 or more, found 1: an answer is compared with the others of its problem, "
                "and a single one teaches nothing (reinforce-pp compares across problems)"
            )

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, in the order of their nodes."""
        found = [(tree, self._advantages(tree)) for tree in trees]
        if self.whiten:
            found = _whitened(found)
        return [
            scored_as_sampled(tree, node, advantages[node.rollout])
            for tree, advantages in found
            for node in tree.nodes
            if advantages.get(node.rollout)
        ]

    def _advantages(self, tree: Tree) -> dict[int, float]:
        """The advantage of each graded rollout of a problem, by rollout id; empty if the group is left out."""
        given = {r.id: r.verdict.reward for r in tree.rollouts if r.verdict and r.verdict.reward is not None}
        if (self.drop_tied and _alike(given.values())) or (self.baseline == "others" and len(given) < 2):
            return {}
        rewards = {id: reward - self._taken(tree, tree.rollouts[id]) for id, reward in given.items()}
        mean, total = fmean(rewards.values()), math.fsum(rewards.values())
        if self.scale and _alike(rewards.values()):
            return {}
        spread = pstdev(rewards.values()) if self.scale else 1.0
        baseline = {
            "group": lambda _: mean,
            "others": lambda reward: (total - reward) / (len(rewards) - 1),
            "none": lambda _: 0.0,
        }[self.baseline]
        return {id: (reward - baseline(reward)) / spread for id, reward in rewards.items()}

    def _taken(self, tree: Tree, rollout: Rollout) -> float:
        """What is subtracted from the reward for the length of the rollout's last completion."""
        leaf = tree.nodes[rollout.leaf]
        allowed, length = leaf.request.max_tokens, len(leaf.completion.token_ids)
        if not self.overlong_share or leaf.request.choices:
            return 0.0
        over = length - (1 - self.overlong_share) * allowed
        return self.overlong_penalty * min(1.0, max(0.0, over / (self.overlong_share * allowed)))


def whitened(advantages: Sequence[float], lengths: Sequence[float]) -> list[float]:
    """Standard scores, weighted by `lengths`; zeros if nothing varies."""
    total = math.fsum(lengths)
    if not total:
        return []
    mean = math.fsum(a * n for a, n in zip(advantages, lengths, strict=True)) / total
    variance = math.fsum(n * (a - mean) ** 2 for a, n in zip(advantages, lengths, strict=True)) / total
    if variance < 1e-12:
        return [0.0] * len(advantages)
    return [(a - mean) / math.sqrt(variance) for a in advantages]


def _whitened(found: Sequence[tuple[Tree, dict[int, float]]]) -> list[tuple[Tree, dict[int, float]]]:
    """The advantages of all rollouts as standard scores, each weighted by the number of its nodes' tokens."""
    advantages = [advantage for _, mine in found for advantage in mine.values()]
    lengths = [float(_length(tree, tree.rollouts[id])) for tree, mine in found for id in mine]
    scores = iter(whitened(advantages, lengths))
    return [(tree, {id: next(scores) for id in mine}) for tree, mine in found]


def _length(tree: Tree, rollout: Rollout) -> int:
    """Number of tokens sampled in the rollout."""
    return sum(len(node.completion.token_ids) for node in tree.nodes[rollout.start : rollout.leaf + 1])


def _alike(rewards: Iterable[float]) -> bool:
    """Whether the rewards are equal up to rounding: noise is no advantage."""
    values = list(rewards)
    return len(values) < 2 or pstdev(values) <= _ROUNDING * max(1.0, abs(fmean(values)))
