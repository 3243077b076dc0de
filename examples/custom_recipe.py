"""Shortest right against longest wrong solution of six: a recipe in one file (docs/own-recipe.md walks through it).

    flow-dpo train --recipe examples/custom_recipe.py:ShortestRight --max_problems 32

Six solutions of a problem are sampled; the shortest right one is preferred to the longest wrong one. Only the credit
is new: the flow, the exploration and the loss are the package's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Pair
from flow_dpo.recipes.scales import CHAT, SEED, SEED_SINGLE, SEED_TEMPERATURE, SEED_TOP_P, Preset
from flow_dpo.recipes.single import Single


@dataclass(frozen=True, kw_only=True)
class ShortestAgainstLongest:
    """One pair a problem, of rollouts that are one completion each; no pair where all are right or none is."""

    min_difference: int = 1
    """How many tokens longer the wrong solution must be. 0 also takes an equally long one, -5 one 5 shorter."""

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees, tree by tree."""
        return [pair for tree in trees for pair in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[Pair]:
        right, wrong = _ends(tree, "correct"), _ends(tree, "wrong")
        if not right or not wrong:
            return []
        chosen, rejected = min(right, key=_length), max(wrong, key=_length)
        if _length(rejected) - _length(chosen) < self.min_difference:
            return []
        return [
            Pair(
                request=chosen.request,
                chosen=chosen.completion,
                rejected=rejected.completion,
                margin=1.0,
                problem_id=tree.problem.id,
                chosen_node=chosen.id,
                rejected_node=rejected.id,
            )
        ]


def _ends(tree: Tree, status: str) -> list[Node]:
    """The completions of rollouts with this verdict."""
    graded = [(rollout, rollout.verdict) for rollout in tree.rollouts if rollout.verdict is not None]
    return [tree.nodes[rollout.leaf] for rollout, verdict in graded if verdict.status == status]


def _length(node: Node) -> int:
    return len(node.completion.token_ids)


def _recipe(flow: Single, explore: Group) -> Recipe:
    return Recipe(flow=flow, explore=explore, credit=ShortestAgainstLongest(), objective=Dpo(beta=0.1))


ShortestRight: Mapping[str, Preset] = {
    "chat": CHAT.preset(_recipe(Single(max_tokens=960), Group(num_rollouts=6, temperature=0.9))),
    "seed": SEED.preset(_recipe(SEED_SINGLE, Group(num_rollouts=6, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P))),
}
"""`--preset chat`, for any chat model, and `--preset seed`, for the embedded one."""
