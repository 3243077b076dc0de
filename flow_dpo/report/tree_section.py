"""How is one tree told, node by node?

The trunk is told from its root to its leaf. Below each node stand the plays in which something else was said in its
place, told likewise; so each node is told once, and each play with what came of it:

    0 answer "She loses 17: ..."   chosen
        instead: 6 answer "She loses 17: 46 - 17 = 39"   rejected ... -> wrong (yes)
    1 stop "No", P(Yes) 7.6 %

Invariant: every node of the tree is in the drawing, whatever the exploration was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from flow_dpo.report import figures
from flow_dpo.report.document import Figure, Play, Told, TreeDrawing
from flow_dpo.report.run_data import Taught
from flow_dpo.runs.records import NodeRow, TreeRow

_DEEPEST = 40
"""Nested plays that are told inside each other; a hostile file could nest them without end."""


def drawing(tree: TreeRow, taught: Sequence[Taught]) -> TreeDrawing:
    """One row of trees.jsonl as plays within plays."""
    starts: dict[int | None, list[int]] = {}
    for rollout in tree.rollouts[1:]:
        starts.setdefault(tree.nodes[rollout.start].parent, []).append(rollout.id)
    teller = _Teller(tree, taught, starts)
    plays = [teller.play(0, 0)]
    # What hangs nowhere the trunk comes by: told beside it.
    plays += [teller.play(rollout.id, 0) for rollout in tree.rollouts if rollout.id not in teller.told]
    problem = tree.problem
    return TreeDrawing(question=problem.question, gold=problem.gold, plays=tuple(plays))


class _Teller:
    """Tells each rollout once."""

    def __init__(self, tree: TreeRow, taught: Sequence[Taught], starts: Mapping[int | None, Sequence[int]]) -> None:
        self._tree, self._starts = tree, starts
        self.told: set[int] = set()
        self._chosen = {one.node for one in taught if one.rejected is not None}
        self._rejected = {one.rejected for one in taught if one.rejected is not None}
        self._advantage = {one.node: one.advantage for one in taught if one.advantage is not None}

    def play(self, id: int, level: int) -> Play:
        """One rollout with the plays that leave it."""
        self.told.add(id)
        rollout = self._tree.rollouts[id]
        mine = [node for node in self._tree.nodes if node.rollout == id]
        told: list[Told] = []
        for node in mine:
            others = self._starts.get(node.parent, ()) if level < _DEEPEST else ()
            here = [other for other in others if other not in self.told]
            self.told.update(here)
            instead = tuple(self.play(other, level + 1) for other in here)
            told.append(self._node(node, instead))
        answer = None if rollout.verdict is None else rollout.verdict.answer
        outcome = rollout.status + (f" (answer {answer})" if answer is not None else " (no answer found)")
        if rollout.value is not None:
            outcome = f"stopped, its value said to be {rollout.value:+.2f}"
        further = [other for other in self._starts.get(rollout.leaf, ()) if level < _DEEPEST and other not in self.told]
        self.told.update(further)
        then = tuple(self.play(other, level + 1) for other in further)
        return Play(told=tuple(told), status=rollout.status, outcome=outcome, then=then)

    def _node(self, node: NodeRow, instead: tuple[Play, ...]) -> Told:
        notes: list[str] = [*node.tags]
        choices = node.choice_logprobs
        if len(choices) == 2:
            notes.append(f"probability of its first word {100 * math.exp(min(choices[0], 0.0)):.1f} %")
        elif node.logprobs:
            notes.append(f"{len(node.logprobs)} tokens, log-probability {sum(node.logprobs):.2f}")
        if node.id in self._advantage:
            notes.append(f"advantage {self._advantage[node.id]:+.2f}")
        sides = (node.id in self._chosen, node.id in self._rejected)
        return Told(
            id=node.id,
            role=node.role,
            text=node.text,
            notes=tuple(notes),
            preferred=_SIDES[sides],
            instead=instead,
        )


_SIDES: dict[tuple[bool, bool], Literal["", "chosen", "rejected", "both"]] = {
    (False, False): "", (True, False): "chosen", (False, True): "rejected", (True, True): "both",
}  # fmt: skip


def outline(name: str, tree: TreeRow, taught: Sequence[Taught]) -> Figure:
    """The tree's shape: plays as rows, turns as columns."""
    nodes = tree.nodes
    roles = list(dict.fromkeys(node.role for node in nodes))
    chosen = {one.node for one in taught if one.rejected is not None}
    rejected = {one.rejected for one in taught}
    at = {node.id: (float(node.depth), float(node.rollout)) for node in nodes}
    dots = [
        figures.Dot(
            x=at[node.id][0],
            y=at[node.id][1],
            role=roles.index(node.role),
            parent=None if node.parent is None else at[node.parent],
            preferred="chosen" if node.id in chosen else "rejected" if node.id in rejected else "",
        )
        for node in nodes
    ]
    ends = [(*at[rollout.leaf], rollout.status) for rollout in tree.rollouts]
    counted = f"{len(tree.rollouts)} plays, {len(nodes)} turns and {len(taught)} examples to learn from"
    return Figure(
        name=name,
        title=f"One problem, {counted}",
        alt=f"The shape of one tree: {counted}. The same is told in words below.",
        svg=figures.shape(name, dots, roles, ends, f"The shape of one tree: {counted}"),
        caption="Each row is a play, the trunk on top; a line goes to what was said just before. + is the "
        "chosen side of a pair, "
        "\u2212 the rejected one.",
    )
