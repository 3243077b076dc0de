"""ReGenesis' credit: paths that end right, learned for the plain question (arXiv 2410.02108, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.recipes.regenesis.flow import HINTED
from flow_dpo.recipes.scored import distinct_correct, scored_for


@dataclass(frozen=True, kw_only=True)
class CorrectFinals:
    """The last completion of right rollouts, learned for the *trunk's* first request, the plain question (ReGenesis,
    arXiv 2410.02108, section 3.2.1). What led to it, guidelines, structures and hints, is not learned.

    Rollouts with the answer in the prompt (`HINTED`) count only where no other of the problem but the trunk is right.
    """

    max_per_problem: int = 5
    """Distinct paths of a problem at most, in the order of their rollouts; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.max_per_problem < 0:
            raise ConfigError(f"max_per_problem must be 0 (all) or more, found {self.max_per_problem}")

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, tree by tree."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[ScoredCompletion]:
        ends = [tree.nodes[rollout.leaf] for rollout in distinct_correct(tree) if rollout.id != tree.trunk.id]
        paths = {node.completion.token_ids: node for node in reversed([n for n in ends if HINTED not in n.tags])}
        paths = paths or {node.completion.token_ids: node for node in reversed(ends)}
        kept = sorted(paths.values(), key=lambda node: node.id)[: self.max_per_problem or None]
        return [scored_for(tree, node, tree.nodes[0]) for node in kept]
