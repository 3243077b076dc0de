"""Credit assignment: graded trees in, examples to learn from out.

A credit is a callable value: `OutcomePairs()(trees) -> [Pair, Pair]`. Invariant: ties and rollouts that could not be
graded teach nothing, so they make no example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Example, Pair


class Credit(Protocol):
    """A rule that turns graded trees into examples."""

    def __call__(self, trees: Sequence[Tree]) -> Sequence[Example]:
        """All examples of the trees, tree by tree."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutcomePairs:
    """Pairs of siblings whose rollouts got different rewards, at every node of the trunk."""

    roles: tuple[str, ...] = ()
    """The roles that learn; all if empty. The others are sampled but not changed."""
    tag_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weight of the pairs whose turn has a tag, such as {"unfinished": 0.5} for Stop's choices on unfinished candidates
    (not stated in the paper). Tags that are not listed weigh 1; a weight of 0 leaves their pairs out."""
    weight_by_divergence: bool = False
    """Weight a pair of texts by the probability that a second, independent draw would have differed from the trunk's
    (not stated in the paper). An alternative always differs, however sure the policy is. If an independent draw would
    differ only once in 50, the pair is rare in truth; at equal weight such pairs drown out those in which the policy is
    undecided. With this weight the mean loss is that of independent second draws, without wasting any."""
    min_margin: float = 0.0
    """Smallest difference of two rewards that makes a pair (not stated in the paper, whose rewards are 1 and 0). Equal
    rewards never make a pair."""
    balance: bool = False
    """Scale weights so that, in one batch of trees, all tags of a role have the same total weight (not stated in the
    paper). Most Stop pairs are on unfinished candidates and teach little but "continue"."""

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees, tree by tree, trunk's root first."""
        nodes = [(tree, node) for tree in trees for node in tree.trunk_nodes()]
        learning = [(tree, node) for tree, node in nodes if not self.roles or node.role in self.roles]
        pairs = [pair for tree, node in learning for pair in self._pairs_at(tree, node)]
        return _balanced(pairs) if self.balance else pairs

    def _pairs_at(self, tree: Tree, trunk_node: Node) -> list[Pair]:
        """Each sibling against every sibling with a lower reward: each correct one against each wrong one."""
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
    """The pairs with weights scaled so that all tags of a role have equal sums; the role's own sum does not change."""
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
