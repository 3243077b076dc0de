"""DOTS' credit: the trajectory that a search found best, as the planner is to choose it (arXiv 2410.03864)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.credit import scored_as_sampled, scored_for
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion

TAUGHT = "taught"
"""Tag of the rollout in which an exploration lays down what a search has found best."""


@dataclass(frozen=True, kw_only=True)
class BestTrajectory:
    """The way that a search found best, as the planner is to say it: why, and which (DOTS, arXiv 2410.03864).

    The "taught" rollout's first completion, an explanation in hindsight, is learned for the trunk's first request, in
    which the planner is asked; the second, the way's name, for its own. Nothing is learned of a problem whose graded
    plays are all right or all wrong, or of a best way of which the verifier found no play right.
    """

    keep_reasoning: bool = False
    """Also learn the first right play of the best way, turn by turn: the paper's internalised planner. Otherwise the
    planner alone is learned, and what solves stays as it was."""

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, tree by tree."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[ScoredCompletion]:
        *plays, last = tree.rollouts
        taught = tree.path(last.leaf)
        if TAUGHT not in taught[0].tags:
            return []
        searched = [rollout for rollout in plays if rollout.id != tree.trunk.id and rollout.verdict is not None]
        statuses = {rollout.id: rollout.verdict.status for rollout in searched if rollout.verdict is not None}
        of_the_way = [rollout for rollout in searched if taught[0].tags[1] in tree.nodes[rollout.start].tags]
        best = [rollout for rollout in of_the_way if statuses[rollout.id] == "correct"]
        if len(set(statuses.values()) - {"ungraded"}) < 2 or not best:
            return []
        why, which = taught
        said = [scored_for(tree, why, tree.nodes[0]), scored_as_sampled(tree, which)]
        if self.keep_reasoning:
            said += [scored_as_sampled(tree, node) for node in tree.path(best[0].leaf)]
        return said
