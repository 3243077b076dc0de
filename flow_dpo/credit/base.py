"""What is a credit?

A value: graded trees in, examples out, such as `OutcomePairs()(trees) -> [Pair, Pair]`. Invariant: what can teach
nothing, a tie or a play that could not be graded, makes no example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flow_dpo.tree import Tree
from flow_dpo.types import Example


class Credit(Protocol):
    """A rule that says what is learned from graded trees."""

    def __call__(self, trees: Sequence[Tree]) -> Sequence[Example]:
        """All examples of the trees, tree by tree."""
        ...
