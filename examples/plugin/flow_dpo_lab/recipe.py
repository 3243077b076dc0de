"""A credit, and a recipe that uses it: of four solutions, the likeliest right one against the likeliest wrong one.

flow-dpo train --recipe most-certain --max_problems 32
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.explore import Group
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Pair
from flow_dpo.recipes.scales import SEED, SEED_SINGLE, SEED_TEMPERATURE, SEED_TOP_P


@dataclass(frozen=True, kw_only=True)
class CertainPairs:
    """One pair per problem, of rollouts of one completion each. No pair if no rollout is right, or none is wrong."""

    margin: float = 1.0
    """Margin of every pair."""

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees."""
        found = [(tree, _likeliest(tree, "correct"), _likeliest(tree, "wrong")) for tree in trees]
        return [
            self._pair(tree, right, wrong) for tree, right, wrong in found if right is not None and wrong is not None
        ]

    def _pair(self, tree: Tree, right: Node, wrong: Node) -> Pair:
        return Pair(
            request=right.request, chosen=right.completion, rejected=wrong.completion, margin=self.margin,
            problem_id=tree.problem.id, chosen_node=right.id, rejected_node=wrong.id,
        )  # fmt: skip


def _likeliest(tree: Tree, status: str) -> Node | None:
    """The completion with this verdict and the highest mean log-probability per token; None if there is none."""
    graded = [(rollout.leaf, rollout.verdict) for rollout in tree.rollouts if rollout.verdict is not None]
    nodes = [tree.nodes[leaf] for leaf, verdict in graded if verdict.status == status]
    return max(nodes, key=lambda node: sum(node.completion.logprobs) / len(node.completion.logprobs), default=None)


MostCertain = {
    "seed": SEED.preset(
        Recipe(
            flow=SEED_SINGLE,
            explore=Group(num_rollouts=4, temperature=SEED_TEMPERATURE, top_p=SEED_TOP_P),
            credit=CertainPairs(),
            objective=Dpo(beta=0.1),
        )
    )
}
"""Presets by name: `--preset seed`. One more line adds a preset for chat models (`flow_dpo.recipes.scales.CHAT`)."""
