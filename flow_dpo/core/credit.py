"""Credit assignment: graded trees in, examples to learn from out.

A credit is a value that is called, such as `OutcomePairs()(trees) -> [Pair, Pair]`. Invariant: what teaches nothing,
a tie or a rollout that could not be graded, makes no example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Example, Pair


class Credit(Protocol):
    """A rule by which examples are made of graded trees."""

    def __call__(self, trees: Sequence[Tree]) -> Sequence[Example]:
        """All examples of the trees, tree by tree."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutcomePairs:
    """A pair at every node at which siblings differ in the rewards of the rollouts that they led to."""

    roles: tuple[str, ...] = ()
    """The roles that learn; all where empty. The others go on speaking as they are."""
    tag_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weight of the pairs whose turn bears a tag, such as {"unfinished": 0.5} for Stop's choices on candidates that are
    not finished (not stated in the paper; 1 where not given). A weight of 0 leaves them out."""
    weight_by_divergence: bool = False
    """Weigh a pair of written completions by the probability that a second, independent draw would have differed from
    the trunk's (not stated in the paper). An alternative is drawn to differ, however sure the policy was: at 1 in 50 it
    is hardly ever sampled, and at equal weight such pairs drown those in which the policy is undecided.
    With this weight the mean loss is that of independent second draws, without their waste."""
    min_margin: float = 0.0
    """The least difference of two rewards that makes a pair (not stated in the paper, whose rewards are 1 and 0). Equal
    rewards never make one."""
    balance: bool = False
    """Scale weights so that, in one batch of trees, each tag of a role weighs as much as its others in all (not stated
    in the paper). Most Stop pairs are at unfinished candidates and teach little but "go on"."""

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees, tree by tree, trunk's root first."""
        nodes = [(tree, node) for tree in trees for node in tree.trunk_nodes()]
        learning = [(tree, node) for tree, node in nodes if not self.roles or node.role in self.roles]
        pairs = [pair for tree, node in learning for pair in self._pairs_at(tree, node)]
        return _balanced(pairs) if self.balance else pairs

    def _pairs_at(self, tree: Tree, trunk_node: Node) -> list[Pair]:
        """Every sibling against every one of a lesser reward: each correct one against each wrong one."""
        siblings = tree.children(trunk_node.parent)
        verdicts = [(node, verdict) for node in siblings if (verdict := tree.rollout_of(node).verdict) is not None]
        graded = [(node, reward) for node, verdict in verdicts if (reward := verdict.reward) is not None]
        weight = 1.0
        for tag in trunk_node.tags:
            weight *= self.tag_weights.get(tag, 1.0)
        if not weight:
            return []
        if self.weight_by_divergence and not trunk_node.request.choices:
            weight *= -math.expm1(math.fsum(trunk_node.completion.sampled_logprobs))
        return [
            Pair(
                request=trunk_node.request,
                chosen=chosen.completion,
                rejected=rejected.completion,
                margin=better - worse,
                weight=weight,
                problem_id=tree.problem.id,
                chosen_node=chosen.id,
                rejected_node=rejected.id,
                depth=trunk_node.depth,
                tags=trunk_node.tags,
            )
            for chosen, better in graded
            for rejected, worse in graded
            if better > worse
            and better - worse >= self.min_margin
            and chosen.completion.token_ids != rejected.completion.token_ids
        ]


def _balanced(pairs: Sequence[Pair]) -> list[Pair]:
    """Weights scaled so that the tags of one role have equal sums, and the role's sum stays what it was."""
    sums: dict[str, dict[tuple[str, ...], float]] = {}
    for pair in pairs:
        role = sums.setdefault(pair.request.role, {})
        role[pair.tags] = role.get(pair.tags, 0.0) + pair.weight

    def scale(pair: Pair) -> float:
        role = {tags: total for tags, total in sums[pair.request.role].items() if total > 0}
        if len(role) < 2 or pair.tags not in role:
            return 1.0
        return sum(role.values()) / (len(role) * role[pair.tags])

    return [replace(pair, weight=pair.weight * scale(pair)) for pair in pairs]
