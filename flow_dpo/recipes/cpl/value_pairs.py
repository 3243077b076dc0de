"""Which siblings of a search led to more right than wrong, and which to more wrong than right?

Critical Plan Step Learning's credit (arXiv 2409.08642): the value Q of a node is the mean reward, 1 or -1,
of the plays through it; at every node, each child with a value above 0 against each below 0, with the difference of
the two as the margin:

    children a (plays 1, 1, -1), b (-1), c (1, -1)    Q 1/3, -1, 0    ->    Pair(a, b, margin=4/3)

`ValuesThenPairs` also teaches the role that says what a state is worth, where the flow has one.

Invariant: values are of a tree in which nothing is visited twice, so they are means over its plays. They lean towards
what the search went on with; only their signs and order at one node are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Pair


def node_values(tree: Tree) -> dict[int, float]:
    """Mean value of the plays through each node, by its id; none where there is no such play.

    A play's value is its reward, 1 or -1; of one that stopped before its end, what was said of where it stopped.
    """
    found: dict[int, list[float]] = {}
    for rollout in tree.rollouts:
        reward = None if rollout.verdict is None else rollout.verdict.reward
        value = rollout.value if reward is None else 2 * reward - 1
        if value is not None and not rollout.probe:
            for node in tree.path(rollout.leaf):
                found.setdefault(node.id, []).append(value)
    return {node: fmean(values) for node, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class ValuePairs:
    """Every sibling with a value above the threshold against every one below its opposite."""

    threshold: float = 0.0
    """How far from 0 a value must be; the paper's is 0."""

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees, tree by tree, node by node."""
        return [pair for tree in trees for pair in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[Pair]:
        values = node_values(tree)
        families: dict[int | None, list[int]] = {}
        for node in tree.nodes:
            if node.id in values:
                families.setdefault(node.parent, []).append(node.id)
        return [
            Pair(
                request=tree.nodes[good].request,
                chosen=tree.nodes[good].completion,
                rejected=tree.nodes[bad].completion,
                margin=values[good] - values[bad],
                problem_id=tree.problem.id,
                chosen_node=good,
                rejected_node=bad,
                depth=tree.nodes[good].depth,
                tags=tree.nodes[good].tags,
            )
            for family in families.values()
            for good in family
            for bad in family
            if values[good] > self.threshold
            and values[bad] < -self.threshold
            and tree.nodes[good].completion.token_ids != tree.nodes[bad].completion.token_ids
        ]
