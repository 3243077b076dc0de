"""The tree of rollouts of one problem.

A node stores only the tokens that it adds, their role and their rollout. A rollout leads from a node to a leaf; the
reward belongs to the rollout, never to a node. With A an Answer chunk and S a choice of Stop:

    A0 -- S1 -- A2 -- S3          rollout 0, the trunk
     \\     \\     \\
      \\     \\     A7 -- S8       rollout 3 starts at A7, an alternative to A2
       \\     S6                  rollout 2 starts at S6, the flip of S1
        A4' ...

Nodes are numbered trunk first, then rollout by rollout, regardless of the order in which the engine finished them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flow_dpo.core.types import Completion, Problem, Request, Role, Solution, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One completion in the tree."""

    id: int
    parent: int | None
    """The node of the previous turn; None at the root."""
    rollout: int
    """The rollout in which it was sampled."""
    depth: int
    """Number of nodes before it on its path: turns, or steps of turns if the exploration splits turns into steps."""
    request: Request
    completion: Completion
    tags: tuple[str, ...] = ()

    @property
    def role(self) -> Role:
        return self.request.role


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout from `start` to `leaf`. The trunk starts at the root."""

    id: int
    start: int
    leaf: int
    solution: Solution
    text: str = ""
    """The decoded solution; set when the rollout is graded."""
    verdict: Verdict | None = None
    """None until the rollout is graded; stays None if it stopped before its end."""
    probe: bool = False
    """Sampled only to estimate the value of the state from which it starts: none of its completions is learned."""
    value: float | None = None
    """Estimated value of its leaf, from -1 to 1, if the rollout stopped there and so cannot be graded."""


@dataclass(slots=True, kw_only=True)
class Tree:
    """All rollouts of one problem."""

    problem: Problem
    nodes: list[Node] = field(default_factory=list[Node])
    rollouts: list[Rollout] = field(default_factory=list[Rollout])
    skipped: dict[Role, int] = field(default_factory=dict[Role, int])
    """Number of trunk nodes, by role, where no other completion had any probability, so no alternative was sampled."""

    @property
    def trunk(self) -> Rollout:
        return self.rollouts[0]

    def trunk_nodes(self) -> list[Node]:
        """The nodes of the first rollout, root first."""
        return [node for node in self.nodes if node.rollout == 0]

    def children(self, parent: int | None) -> list[Node]:
        """The nodes directly after `parent`, which are siblings, in the order of their rollouts."""
        return [node for node in self.nodes if node.parent == parent]

    def path(self, node: int) -> list[Node]:
        """The nodes from the root to `node`, both included."""
        walk: list[Node] = []
        at: int | None = node
        while at is not None:
            walk.append(self.nodes[at])
            at = self.nodes[at].parent
        return walk[::-1]

    def rollout_of(self, node: Node) -> Rollout:
        """The rollout in which `node` was sampled, whose end it led to."""
        return self.rollouts[node.rollout]

    def add_rollout(
        self,
        parent: int | None,
        turns: Sequence[tuple[Request, Completion, tuple[str, ...]]],
        solution: Solution,
        *,
        probe: bool = False,
        value: float | None = None,
    ) -> int:
        """Append one rollout below `parent` and return its id. Raises `ValueError` if it has no turns."""
        if not turns:
            raise ValueError("a rollout needs at least one completion, found none")
        rollout, start = len(self.rollouts), len(self.nodes)
        depth = 0 if parent is None else self.nodes[parent].depth + 1
        for request, completion, tags in turns:
            node = Node(
                id=len(self.nodes),
                parent=parent,
                rollout=rollout,
                depth=depth,
                request=request,
                completion=completion,
                tags=tags,
            )
            self.nodes.append(node)
            parent, depth = node.id, depth + 1
        leaf = len(self.nodes) - 1
        self.rollouts.append(Rollout(id=rollout, start=start, leaf=leaf, solution=solution, probe=probe, value=value))
        return rollout

    def grade(self, rollout: int, text: str, verdict: Verdict) -> None:
        """Set the text and the verdict of one rollout."""
        self.rollouts[rollout] = replace(self.rollouts[rollout], text=text, verdict=verdict)
