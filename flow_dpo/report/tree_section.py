"""One tree, node by node: its drawing in text, and the figure of its shape.

The trunk stands from its root to its leaf. Below each node stand the rollouts with another completion in its place,
drawn likewise; so each node is drawn once, and each rollout with its verdict:

    0 answer "She loses 17: ..."   chosen
        instead: 6 answer "She loses 17: 46 - 17 = 39"   rejected ... -> wrong (yes)
    1 stop "No", P(Yes) 7.6 %

Invariant: every node of the tree is in the drawing, whatever the exploration was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from flow_dpo.report.document import Branch, Figure, TreeDrawing, TreeNode
from flow_dpo.report.figures import Dot, draw_shape
from flow_dpo.report.run_data import ExampleSeen
from flow_dpo.runs.tree_rows import NodeRow, TreeRow

_DEEPEST = 40
"""Rollouts that are drawn inside each other; a hostile file could nest them without end."""


def draw_tree(tree: TreeRow, examples: Sequence[ExampleSeen]) -> TreeDrawing:
    """One row of trees.jsonl as rollouts within rollouts."""
    starts: dict[int | None, list[int]] = {}
    for rollout in tree.rollouts[1:]:
        starts.setdefault(tree.nodes[rollout.start].parent, []).append(rollout.id)
    drawer = _TreeDrawer(tree, examples, starts)
    branches = [drawer.branch(0, 0)]
    # Rollouts that leave no node of the trunk are drawn beside it.
    branches += [drawer.branch(rollout.id, 0) for rollout in tree.rollouts if rollout.id not in drawer.drawn]
    return TreeDrawing(question=tree.problem.question, gold=tree.problem.gold, branches=tuple(branches))


class _TreeDrawer:
    """Draws each rollout once."""

    def __init__(
        self, tree: TreeRow, examples: Sequence[ExampleSeen], starts: Mapping[int | None, Sequence[int]]
    ) -> None:
        self._tree, self._starts = tree, starts
        self.drawn: set[int] = set()
        self._chosen = {one.node for one in examples if one.rejected is not None}
        self._rejected = {one.rejected for one in examples if one.rejected is not None}
        self._advantage = {one.node: one.advantage for one in examples if one.advantage is not None}

    def branch(self, id: int, level: int) -> Branch:
        """One rollout with the rollouts that leave it."""
        self.drawn.add(id)
        rollout = self._tree.rollouts[id]
        mine = [node for node in self._tree.nodes if node.rollout == id]
        nodes = tuple(self._node(node, self._branches_at(node.parent, level)) for node in mine)
        answer = None if rollout.verdict is None else rollout.verdict.answer
        outcome = rollout.status + (f" (answer {answer})" if answer is not None else " (no answer found)")
        if rollout.value is not None:
            outcome = f"stopped, its value estimated as {rollout.value:+.2f}"
        continuations = self._branches_at(rollout.leaf, level)
        return Branch(nodes=nodes, status=rollout.status, outcome=outcome, continuations=continuations)

    def _branches_at(self, parent: int | None, level: int) -> tuple[Branch, ...]:
        """The rollouts that start below a node and are not drawn yet."""
        here = [other for other in self._starts.get(parent, ()) if level < _DEEPEST and other not in self.drawn]
        self.drawn.update(here)
        return tuple(self.branch(other, level + 1) for other in here)

    def _node(self, node: NodeRow, alternatives: tuple[Branch, ...]) -> TreeNode:
        notes: list[str] = [*node.tags]
        choices = node.choice_logprobs
        if len(choices) == 2:
            notes.append(f"probability of its first word {100 * math.exp(min(choices[0], 0.0)):.1f} %")
        elif node.logprobs:
            notes.append(f"{len(node.logprobs)} tokens, log-probability {sum(node.logprobs):.2f}")
        if node.id in self._advantage:
            notes.append(f"advantage {self._advantage[node.id]:+.2f}")
        return TreeNode(
            id=node.id,
            role=node.role,
            text=node.text,
            notes=tuple(notes),
            preferred=_SIDES[node.id in self._chosen, node.id in self._rejected],
            alternatives=alternatives,
        )


_SIDES: dict[tuple[bool, bool], Literal["", "chosen", "rejected", "both"]] = {
    (False, False): "", (True, False): "chosen", (False, True): "rejected", (True, True): "both",
}  # fmt: skip


def draw_outline(name: str, tree: TreeRow, examples: Sequence[ExampleSeen]) -> Figure:
    """The tree's shape: rollouts as rows, turns as columns."""
    nodes = tree.nodes
    roles = list(dict.fromkeys(node.role for node in nodes))
    chosen = {one.node for one in examples if one.rejected is not None}
    rejected = {one.rejected for one in examples}
    at = {node.id: (float(node.depth), float(node.rollout)) for node in nodes}
    dots = [
        Dot(
            x=at[node.id][0],
            y=at[node.id][1],
            role=roles.index(node.role),
            parent=None if node.parent is None else at[node.parent],
            preferred="chosen" if node.id in chosen else "rejected" if node.id in rejected else "",
        )
        for node in nodes
    ]
    ends = [(*at[rollout.leaf], rollout.status) for rollout in tree.rollouts]
    counted = f"{len(tree.rollouts)} rollouts, {len(nodes)} turns and {len(examples)} examples to learn from"
    return Figure(
        title=f"One problem, {counted}",
        svg=draw_shape(name, dots, roles, ends, alt=f"The shape of one tree: {counted}. Its words stand below."),
        caption="Each row is a rollout, the trunk on top; a line goes to the turn before. + is the chosen side of a "
        "pair, \u2212 the rejected one.",
    )
