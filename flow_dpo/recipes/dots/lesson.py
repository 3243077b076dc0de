"""A lesson: the way that a search found best, stored as the last rollout of its tree.

The exploration writes it and the credit reads it, both through this module. In the tree it is two completions:

    request made in hindsight   -> why the way suits the problem      tags ("taught", "rewrite+cot")
    the planner's own request   -> the way's name                     tags ("taught", "rewrite+cot")

Invariant: a tree has at most one lesson, and it is the last rollout; no other rollout has the tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.tree import Node, Rollout, Tree
from flow_dpo.core.types import Completion, Request, Solution

TAUGHT = "taught"
"""Tag of a lesson's completions; the way's name is the next tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """The way that was found best for one problem."""

    way: str
    """Name of the best way, such as "decompose+cot+verify"."""
    why: Node
    """The explanation, made in hindsight."""
    which: Node
    """The way's name, as the planner would choose it after the explanation."""
    searched: Sequence[Rollout]
    """The rollouts of all ways: neither the trunk nor the lesson."""

    def of_best_way(self, tree: Tree) -> list[Rollout]:
        """The rollouts of the best way."""
        return [rollout for rollout in self.searched if self.way in tree.nodes[rollout.start].tags]


def add_lesson(
    tree: Tree, way: str, *, why: tuple[Request, Completion], which: tuple[Request, Completion], solution: Solution
) -> None:
    """Append the lesson, with the best way's solution, after all other rollouts."""
    tags = (TAUGHT, way)
    tree.add_rollout(None, [(*why, tags), (*which, tags)], solution)


def lesson_of(tree: Tree) -> Lesson | None:
    """The tree's lesson; None if there was no search, or it decided nothing."""
    *rollouts, last = tree.rollouts
    nodes = tree.path(last.leaf)
    if TAUGHT not in nodes[0].tags:
        return None
    why, which = nodes
    searched = [rollout for rollout in rollouts if rollout.id != tree.trunk.id]
    return Lesson(way=why.tags[1], why=why, which=which, searched=searched)
