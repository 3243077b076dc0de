"""Pairs of right and wrong answers to a question: a fixed number of them, with all answers used about equally often.

Iterative RPO's pairs (Pang et al., arXiv 2404.19733, section 2 and its footnote): the lists of right and of wrong
answers are walked side by side, each starting over at its end, until there are K pairs:

    right a b c, wrong x y, K 5    ->    a x, b y, c x, a y, b x

Invariant: a pair that occurs n times is one example of weight n; a question whose answers are all right or all wrong
makes none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.errors import expect
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Pair
from flow_dpo.recipes.state_values import refuse_without_siblings


@dataclass(frozen=True, kw_only=True)
class CycledPairs:
    """K pairs of a right and a wrong answer per problem, from its rollouts from the beginning."""

    num_pairs: int = 10
    """K, the number of pairs per problem, counting equal ones; the paper's is 10 on GSM8K, 15 on MATH, 20 on ARC."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "num_pairs")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no problem can ever have two answers."""
        refuse_without_siblings(recipe)

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees, tree by tree, in the order of their first occurrence."""
        return [pair for tree in trees for pair in self._of(tree)]

    def _of(self, tree: Tree) -> list[Pair]:
        graded = [(node, tree.rollout_of(node).verdict) for node in tree.children(None)]
        right, wrong = (
            [node for node, verdict in graded if verdict is not None and verdict.status == status]
            for status in ("correct", "wrong")
        )
        if not right or not wrong:
            return []
        drawn = Counter((right[k % len(right)].id, wrong[k % len(wrong)].id) for k in range(self.num_pairs))
        return [
            Pair(
                request=tree.nodes[good].request,
                chosen=tree.nodes[good].completion,
                rejected=tree.nodes[bad].completion,
                margin=1.0,
                weight=float(count),
                problem_id=tree.problem.id,
                chosen_node=good,
                rejected_node=bad,
                depth=tree.nodes[good].depth,
                tags=tree.nodes[good].tags,
            )
            for (good, bad), count in drawn.items()
            if tree.nodes[good].completion.token_ids != tree.nodes[bad].completion.token_ids
        ]
