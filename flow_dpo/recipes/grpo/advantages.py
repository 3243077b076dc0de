"""Advantages of rollouts relative to their group.

    rewards 1 0 0 0    mean 1/4, deviation sqrt(3)/4    advantages sqrt(3), -1/sqrt(3) three times

Invariant: the advantages of one problem's rollouts sum to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion

_ROUNDING = 1e-9
"""Rewards of a group that spread by no more than this, relatively, are equal."""


@dataclass(frozen=True, kw_only=True)
class GroupAdvantages:
    """Every completion of a rollout is credited with its reward against the group's (GRPO, arXiv 2402.03300,
    section 4.1.2, outcome supervision):

        advantage = (reward - mean of the problem's rewards) / their standard deviation

    Ungraded rollouts enter neither mean nor examples. A group that is all right or all wrong teaches nothing; the
    record counts them as "tied_trees".
    """

    scale: bool = True
    """Divide by the standard deviation. Without (Dr. GRPO, arXiv 2503.20783), easy and hard questions weigh alike."""

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, in the order of their nodes."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[ScoredCompletion]:
        rewards = {r.id: r.verdict.reward for r in tree.rollouts if r.verdict and r.verdict.reward is not None}
        if len(set(rewards.values())) < 2:
            return []
        mean, spread = fmean(rewards.values()), pstdev(rewards.values())
        if spread <= _ROUNDING * max(1.0, abs(mean)):  # sums of floats that would be equal: noise is no advantage
            return []
        return [
            ScoredCompletion(
                request=node.request,
                completion=node.completion,
                advantage=(rewards[node.rollout] - mean) / (spread if self.scale else 1.0),
                problem_id=tree.problem.id,
                node=node.id,
                depth=node.depth,
                tags=node.tags,
            )
            for node in tree.nodes
            if node.rollout in rewards and rewards[node.rollout] != mean
        ]
