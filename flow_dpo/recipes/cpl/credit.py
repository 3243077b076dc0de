"""Pairs of siblings by their value in a search, optionally after completions to fine-tune on.

Critical Plan Step Learning's credit (arXiv 2409.08642): the value Q of a node is the mean reward, 1 or -1, of the
rollouts through it; at every node, each child with a value above 0 against each below 0, with the difference of the two
as the margin:

    children a (rewards 1, 1, -1), b (-1), c (1, -1)    Q 1/3, -1, 0    ->    Pair(a, b, margin=4/3)

The paper goes in rounds: search with the policy as it is, fine-tune on what was right, then learn which steps were
better. A round is one call, with the trees of `run.problems_per_batch` problems; with `fine_tune`

    trees of 200 problems    ->    the right rollouts of all of them, problem by problem, and after them all pairs

A role that predicts the value of a state (`valued_by`) learns from the trunk's end alone: at every state that it
valued on the trunk, its target is its first choice where the trunk was right, and its second where it was wrong:

    plan  Value "Yes"  plan  Value "No"  answer, right    ->    Yes at both states, each with advantage 1

which under `Nll` is the cross-entropy against how rollouts from there end, since the trunk is a plain draw from the
flow. Other rollouts of a search were chosen by these values, and those that reach an end lean to short solutions.

Invariants: values are of a tree in which nothing is visited twice, so they are means over its rollouts. They lean
towards what the search went on with; only their signs and order at one node are used. A prediction is never
a target, so that a value is not learned from itself. All that is fine-tuned on precedes the first pair, so that a
learner that takes examples in order has fine-tuned on a round before it sees the round's pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flow_dpo.core.errors import expect
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Pair, Role, ScoredCompletion
from flow_dpo.recipes.rejection_sampling.credit import CorrectRollouts
from flow_dpo.recipes.scored import scored_word


def node_values(tree: Tree) -> dict[int, float]:
    """Mean value of the rollouts through each node, by its id; none where there is no such rollout.

    A rollout's value is its reward, 1 or -1; of one that stopped before its end, the value of where it stopped.
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
    fine_tune: bool = False
    """Begin with the completions of right rollouts. Needs an objective that learns them: `StepApo` with `sft`."""
    max_per_problem: int = 1
    """Right rollouts of a problem that are fine-tuned on, in their order; 0 keeps all (not stated in what the recipe
    was made from)."""
    valued_by: Role = ""
    """The role of the flow that predicts the value of states, by a choice of two words, and learns from how the trunk
    ended; none where empty. Needs an objective as `fine_tune` does."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "max_per_problem")

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """The targets of the value role, what is fine-tuned on, and all pairs: each tree by tree."""
        values = [target for tree in trees for target in _targets(tree, self.valued_by)] if self.valued_by else []
        correct = CorrectRollouts(max_per_problem=self.max_per_problem)(trees) if self.fine_tune else []
        return [*values, *correct, *(pair for tree in trees for pair in self._pairs(tree))]

    def _pairs(self, tree: Tree) -> list[Pair]:
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


def _targets(tree: Tree, role: Role) -> list[ScoredCompletion]:
    """The targets of this role on the trunk; nothing where the trunk could not be graded."""
    right = None if tree.trunk.verdict is None else tree.trunk.verdict.right
    if right is None:
        return []
    return [scored_word(tree, node, 0 if right else 1) for node in tree.trunk_nodes() if node.role == role]
