"""DOTS' credit: the trajectory that a search found best, as the planner should choose it (arXiv 2410.03864)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.recipes.dots.lesson import lesson_of
from flow_dpo.recipes.scored import scored_as_sampled, scored_for


@dataclass(frozen=True, kw_only=True)
class BestTrajectory:
    """The way that a search found best, as the planner should write it: why, and which one (DOTS, arXiv 2410.03864).

    The lesson's explanation, made in hindsight, is learned for the trunk's first request, which is the planner's. The
    way's name is learned for its own request. Nothing is learned from a problem whose graded rollouts are all right or
    all wrong, or whose best way has no rollout that was graded correct.
    """

    keep_reasoning: bool = False
    """Also learn the first right rollout of the best way, turn by turn: the paper's internalised planner. Otherwise
    only the planner learns, and what solves stays as it was."""

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, tree by tree."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[ScoredCompletion]:
        lesson = lesson_of(tree)
        if lesson is None:
            return []
        statuses = {rollout.verdict.status for rollout in lesson.searched if rollout.verdict is not None}
        best = [one for one in lesson.of_best_way(tree) if one.verdict is not None and one.verdict.status == "correct"]
        if len(statuses - {"ungraded"}) < 2 or not best:
            return []
        examples = [scored_for(tree, lesson.why, tree.nodes[0]), scored_as_sampled(tree, lesson.which)]
        if self.keep_reasoning:
            examples += [scored_as_sampled(tree, node) for node in tree.path(best[0].leaf)]
        return examples
