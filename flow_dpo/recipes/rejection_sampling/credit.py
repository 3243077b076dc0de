"""Rejection sampling's credit: the completions of correct rollouts, all with the same advantage, 1.

`CorrectRollouts` keeps the rollouts that verifiably ended right, as do rejection-sampling fine-tuning and expert
iteration (STaR, arXiv 2203.14465; RFT, arXiv 2308.01825; ReST-EM, arXiv 2312.06585). Of four rollouts of one problem:

    A0 "3+4=7"  right      kept
    A1 "3+4=8"  wrong
    A2 "3+4=7"  right      the same tokens again: never counted twice
    A3 "4+3=7"  right      kept if `max_per_problem` allows two

Invariant: what could not be graded is never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.recipes.scored import distinct_correct, scored_as_sampled


@dataclass(frozen=True, kw_only=True)
class CorrectRollouts:
    """Every completion on the way to a right answer, from the first distinct rollouts that ended in one."""

    max_per_problem: int = 1
    """Rollouts kept per problem, in their order; 0 keeps all. A limit keeps easy problems from drowning out hard ones:
    ReST-EM keeps 10, STaR draws only one, RFT keeps every distinct one of 100."""

    def __post_init__(self) -> None:
        if self.max_per_problem < 0:
            raise ConfigError(f"max_per_problem must be 0 (all) or more, found {self.max_per_problem}")

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, in the order of their rollouts; a node that two rollouts share is one example."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[ScoredCompletion]:
        kept = list(islice(distinct_correct(tree), self.max_per_problem or None))
        nodes = dict.fromkeys(node.id for rollout in kept for node in tree.path(rollout.leaf))
        return [scored_as_sampled(tree, tree.nodes[id]) for id in nodes]
