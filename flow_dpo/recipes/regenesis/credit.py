"""ReGenesis' credit: paths that end right, learned for the plain question (arXiv 2410.02108, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion, TokenIds
from flow_dpo.recipes.regenesis.kept import kept_part
from flow_dpo.recipes.scored import scored_for


@dataclass(frozen=True, kw_only=True)
class CorrectFinals:
    """What the exploration kept of right paths (`regenesis.kept`), learned for the *trunk's* first request, the plain
    question. The guidelines, structures and hints that led to it are not learned."""

    max_per_problem: int = 5
    """Most distinct paths learned per problem, in the order of their rollouts, which is random; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.max_per_problem < 0:
            raise ConfigError(f"max_per_problem must be 0 (all) or more, found {self.max_per_problem}")

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, tree by tree."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[ScoredCompletion]:
        kept: dict[TokenIds, ScoredCompletion] = {}
        for rollout in tree.rollouts:
            if rollout.verdict is None or rollout.verdict.status != "correct":
                continue
            for node in tree.path(rollout.leaf):
                part = kept_part(node.completion, node.tags)
                if part is not None and part.token_ids not in kept:
                    example = scored_for(tree, node, tree.nodes[0])
                    kept[part.token_ids] = replace(example, completion=part)
        return list(kept.values())[: self.max_per_problem or None]
