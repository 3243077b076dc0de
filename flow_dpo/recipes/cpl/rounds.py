"""What does a round teach that begins with its right plays?

Critical Plan Step Learning goes in rounds (arXiv 2409.08642): search with the policy as it is, fine-tune on what was
right, then learn which steps were better. A round is one call, with the trees of `run.problems_per_batch` problems:

    trees of 200 problems    ->    all that is said again, problem by problem, and behind it all pairs

Invariant: what is said again comes first, of all trees, so that a learner that takes examples in order has fine-tuned
on a round's right plays before it sees the round's first pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example
from flow_dpo.recipes.cpl.value_pairs import ValuePairs
from flow_dpo.recipes.rejection_sampling.credit import CorrectRollouts


@dataclass(frozen=True, kw_only=True)
class SftThenPairs:
    """Right plays, and behind them pairs of siblings by value."""

    right: CorrectRollouts = field(default_factory=CorrectRollouts)
    """Which plays are said again (their number is not stated in what the recipe was made from)."""
    pairs: ValuePairs = field(default_factory=ValuePairs)

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All that is said again, then all pairs."""
        return [*self.right(trees), *self.pairs(trees)]
