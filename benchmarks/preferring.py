"""A credit and a verifier by a fixed rule, for benchmarks where only the speed of learning matters.

Every two siblings that differ make a preference pair, whatever was written, so both sides of a comparison learn from
the same number of pairs.

    Better(score=len)(trees)      # of each two siblings the longer is chosen
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Pair, TokenIds, Verdict


@dataclass(frozen=True, kw_only=True)
class Better(OutcomePairs):
    """The sibling with the higher score is chosen; the trunk where both have the same."""

    score: Callable[[TokenIds], float]

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """A pair at every node of every trunk whose two siblings differ."""
        pairs: list[Pair] = []
        for tree in trees:
            for node in tree.trunk_nodes():
                trunk, other = tree.children(node.parent)
                if trunk.completion.token_ids == other.completion.token_ids:
                    continue
                worse, better = sorted((other, trunk), key=lambda node: self.score(node.completion.token_ids))
                pairs.append(
                    Pair(
                        request=node.request,
                        chosen=better.completion,
                        rejected=worse.completion,
                        margin=1.0,
                        problem_id=tree.problem.id,
                        chosen_node=better.id,
                        rejected_node=worse.id,
                        depth=node.depth,
                    )
                )
        return pairs


class NoVerdicts:
    """A verifier that grades nothing."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> None:
        """Nothing takes long."""

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        """A verdict for each item, ungraded."""
        return [Verdict(status="ungraded")] * len(items)
