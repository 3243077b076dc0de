"""Monte-Carlo tree search (MCTS) over the turns of a flow, as in Critical Plan Step Learning (arXiv 2409.08642; the
authors' code is keesh0410/CPL-Reasoning, commit 61b99b4, mcts_plan/mcts/).

An iteration descends from the root to the child with the highest

    Q(child) + puct * P(child) * sqrt(N(node)) / (1 + N(child))

until it reaches a node that is not expanded, draws its children, and adds what it found to every node on the way. N is
the visits, Q the mean of what was added, P the geometric mean of a child's token probabilities. Two ways to value:

    rollouts (Monte-Carlo)    every new child is continued to its end, whose reward is its value, 1 or -1; with
                              `num_rollouts` above 1 by as many independent draws, all but the first as probes
    valued_by (the authors')  the expanded node gets a role's prediction: twice the probability of its first choice
                              minus 1. Children that end the flow have their reward; the others have no value, and are
                              in no tree, until an iteration reaches them.

    iteration 1    num_root_children completions of the first turn; the first of them is the trunk, with either way of
                   valuing a plain draw of the flow to its end
    iteration 2    num_children completions below the child that scores highest, ...

Invariant: at most `num_iterations` iterations are made. What is exhausted is not visited again, and a completion that
exists already starts nothing, so a tree holds N and Q without any counts of visits: one rollout per value. Probes are
independent draws, of which two can be equal, and nothing is expanded below them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flow_dpo.core.errors import FlowError, expect
from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.rollouts import (
    RolloutRunner,
    RolloutSteps,
    Sampled,
    SampleRequest,
    Yields,
    sample,
    verify,
)
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Solution, Turn, Verdict


@dataclass(frozen=True, kw_only=True)
class Mcts(TurnSampling):
    """A tree search over turns. The first rollout is the trunk, a plain draw from the flow."""

    num_iterations: int = 200
    """Most expansions of a problem's tree; the authors' are 200 in the first round and 100 in the second."""
    num_children: int = 3
    """Completions drawn when a node is expanded; equal ones are one child. The authors' is 3."""
    num_root_children: int = 5
    """Completions drawn when the root is expanded; the authors' is 5."""
    num_rollouts: int = 1
    """Rollouts that value a new child if no role does; with one, a node visited once has a Q of 1 or -1."""
    puct: float = 1.5
    """Weight of exploring rarely visited nodes; the authors' is 1.5."""
    num_at_once: int = 1
    """Nodes of a tree that are expanded at once, to give an engine more work (not in the paper). Each is chosen as if
    every rollout still to come of the earlier ones had the value -1 (virtual loss)."""
    valued_by: str = ""
    """The role of the flow that values a state when it is expanded, by the probability of its first choice; if empty,
    rollouts continue to the end. No alternatives to its choice are sampled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("num_iterations", "num_children", "num_root_children", "num_at_once")
        expect(self, "of 1 or more", lambda value: value >= 1, *names)
        expect(self, "of 0 or more", lambda value: 0 <= value < math.inf, "puct")

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        searches = [_Search(self, flow, problem, seed) for problem in problems]
        runner.run([step for search in searches for step in search.begin()])
        return [search.tree() for search in searches]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)


@dataclass(slots=True, kw_only=True, eq=False)
class _Node:
    """One turn's completion, and the state after it. The root is the beginning, before any turn."""

    parent: _Node | None
    state: Any
    turn: Turn | None
    sampled: tuple[Request, Completion, tuple[str, ...]] | None = None
    children: list[_Node] = field(default_factory=list["_Node"])
    num_drawn: int = 0
    """Completions drawn here, including equal ones."""
    num_rollouts: int = 0
    num_valued: int = 0
    total: float = 0.0
    """Sum of the values of the rollouts that have one: a reward, 1 or -1, or the prediction for their last state."""
    num_pending: int = 0
    """Rollouts through here that are still to come; each counts as one with the value -1."""
    closed: bool = False
    """Nothing new can be found here or below."""
    id: int = -1

    @property
    def value(self) -> float:
        """Q; 0, halfway between right and wrong, if nothing could be graded."""
        num = self.num_valued + self.num_pending
        return (self.total - self.num_pending) / num if num else 0.0

    @property
    def visits(self) -> int:
        """N, including rollouts still to come."""
        return self.num_rollouts + self.num_pending

    @property
    def prior(self) -> float:
        assert self.sampled is not None
        logprobs = self.sampled[1].logprobs
        return math.exp(math.fsum(logprobs) / len(logprobs))


@dataclass(slots=True, kw_only=True)
class _Rollout:
    """From a new child to the end, or to a state that was valued or will be when it is visited."""

    leaf: _Node
    index: int
    probe: int = 0
    """The number of the draw from the same child; the first, 0, is part of what is searched."""
    solution: Solution | None = None
    """None while the state waits to be visited."""
    value: float | None = None

    @property
    def stopped(self) -> bool:
        return self.leaf.turn is not None


class _Search:
    """The search on one problem. Expansions of one wave run side by side; the last to end chooses the next wave."""

    def __init__(self, settings: Mcts, flow: Flow[Any], problem: Problem, seed: int) -> None:
        self.settings, self.flow, self.problem, self.seed = settings, flow, problem, seed
        start = flow.start(problem)
        self.root = _Node(parent=None, state=start, turn=flow.turn(start))
        self.rollouts: list[_Rollout] = []
        self.num_drawn = 0
        self.num_iterations = 0
        self.wave: list[tuple[_Node, int, int]] = []
        """Nodes being expanded, each with the number of completions to draw there and the number of the first of these
        draws."""
        self.started: list[_Rollout] = []
        """Rollouts of this wave."""
        self.num_open = 0
        """Expansions and rollouts of this wave that have not ended."""
        if self.root.turn is None:
            raise FlowError(f"{type(flow).__name__} ended a rollout of {problem.id} without a turn")
        if settings.valued_by and settings.valued_by not in flow.roles:
            raise FlowError(
                f"explore.valued_by expects a role of {type(flow).__name__}, one of {list(flow.roles)}, found "
                f"{settings.valued_by!r}; leave it empty to sample every new state to its end"
            )

    def begin(self) -> list[RolloutSteps]:
        """The first wave: the root alone."""
        self._choose(self.root)
        return self._expansions()

    def tree(self) -> Tree:
        """The finished tree, one rollout per value."""
        tree = Tree(problem=self.problem)
        for rollout in self.rollouts:
            path = [node for node in _up(rollout.leaf) if node.id < 0 and node.sampled is not None][::-1]
            above = path[0].parent
            assert above is not None
            assert rollout.solution is not None
            turns = [node.sampled for node in path if node.sampled is not None]
            for id, node in enumerate(path, start=len(tree.nodes)):
                node.id = id
            value = rollout.value if rollout.stopped else None
            parent = None if above.sampled is None else above.id
            tree.add_rollout(parent, turns, rollout.solution, value=value, probe=rollout.probe > 0)
        return tree

    def _choose(self, node: _Node) -> None:
        """Have a node expanded in the next wave, after a role has valued it if one does."""
        num, first = self._num_wanted(node) - node.num_drawn, self.num_drawn
        self.num_iterations += 1
        # All draws get their numbers here: these must not depend on which draw ends first.
        self.num_drawn += num + self.settings.num_children * self._is_valued(node)
        node.num_drawn += num
        self.wave.append((node, num, first))
        for above in _up(node):
            above.num_pending += num

    def _expansions(self) -> list[RolloutSteps]:
        """The steps that expand the chosen nodes."""
        self.num_open = len(self.wave)
        steps: list[RolloutSteps] = []
        for node, num, first in self.wave:
            steps += [self._visit(node, first)] if self._is_valued(node) else self._expand(node, num, first)
        return steps

    def _expand(self, node: _Node, num: int, first: int) -> list[RolloutSteps]:
        """Draw the completions that a node lacks, and continue from the new ones."""
        drawn: dict[int, Sampled] = {}
        return [self._draw(node, index, drawn, num) for index in range(first, first + num)]

    def _visit(self, node: _Node, index: int) -> RolloutSteps:
        """Have the role value a state, then expand it."""
        sampled = yield from self._sample_turn(node, index)
        leaf = self._child(node, sampled)
        solution = self.flow.solution(leaf.state)
        self.started.append(_Rollout(leaf=leaf, index=index, solution=solution, value=_said(leaf)))
        num = self._num_wanted(leaf)
        leaf.num_drawn += num
        yield from self._expand(leaf, num, index + 1)

    def _draw(self, node: _Node, index: int, drawn: dict[int, Sampled], num: int) -> RolloutSteps:
        drawn[index] = yield from self._sample_turn(node, index)
        if len(drawn) == num:
            yield from self._go_on(node, drawn)

    def _go_on(self, node: _Node, drawn: Mapping[int, Sampled]) -> RolloutSteps:
        """Add the new completions as children, and continue each of them."""
        for index, sampled in sorted(drawn.items()):
            if all(sampled.completion.token_ids != _ids(child) for child in node.children):
                child = self._child(node, sampled)
                num = self.settings.num_rollouts if child.turn is not None and not self.settings.valued_by else 1
                for probe in range(num):
                    rollout = _Rollout(leaf=child, index=index, probe=probe)
                    self.started.append(rollout)
                    self.num_open += 1
                    yield self._finish(rollout)
        yield from self._ended()

    def _finish(self, rollout: _Rollout) -> RolloutSteps:
        """Continue to the end, or to a state that must be visited to get its value."""
        node = rollout.leaf
        while node.turn is not None and (rollout.index == 0 or not self._is_valued(node)):
            sampled = yield from self._sample_turn(node, rollout.index, rollout.probe)
            node.num_drawn += not rollout.probe
            node = self._child(node, sampled, probe=rollout.probe > 0)
        rollout.leaf = node
        if not rollout.stopped:
            rollout.solution = self.flow.solution(node.state)
            verdict = yield from verify(self.problem, rollout.solution)
            rollout.value = None if verdict.reward is None else 2 * verdict.reward - 1
        yield from self._ended()

    def _ended(self) -> RolloutSteps:
        """One part of the wave has ended; after the last one, back up what was found and choose the next wave."""
        self.num_open -= 1
        if self.num_open:
            return
        # 1. what was still to come has ended, and counts with its value
        for node, num, _ in self.wave:
            for above in _up(node):
                above.num_pending -= num
        done = sorted(
            (one for one in self.started if one.solution is not None), key=lambda one: (one.index, one.probe)
        )  # fmt: skip
        self.wave, self.started = [], []
        self.rollouts += done
        for rollout in done:
            rollout.leaf.closed = not rollout.stopped
            for node in _up(rollout.leaf):
                node.num_rollouts += 1
                if rollout.value is not None:
                    node.num_valued += 1
                    node.total += rollout.value
        self._close()
        # 2. the next wave, while there is budget and something left to find
        while (
            self.num_iterations < self.settings.num_iterations
            and not self.root.closed
            and len(self.wave) < self.settings.num_at_once
        ):
            self._choose(self._select())
            self._close()
        yield from self._expansions()

    def _select(self) -> _Node:
        node = self.root
        while node.num_drawn >= self._num_wanted(node):
            visits, puct = math.sqrt(node.visits), self.settings.puct
            open_ones = [child for child in node.children if not child.closed]
            node = max(open_ones, key=lambda one: one.value + puct * one.prior * visits / (1 + one.visits))
        return node

    def _close(self) -> None:
        """Close the nodes that have all their children, all of them closed, from the leaves upwards."""
        order = [self.root]
        for node in order:
            order += node.children
        for node in reversed(order):
            if node.turn is not None and node.num_drawn >= self._num_wanted(node):
                node.closed = all(child.closed for child in node.children)

    def _is_valued(self, node: _Node) -> bool:
        """Whether the next turn is that of the role that values states."""
        return bool(self.settings.valued_by) and node.turn is not None and node.turn.role == self.settings.valued_by

    def _num_wanted(self, node: _Node) -> int:
        """How many completions are drawn when a node is expanded."""
        if self._is_valued(node):
            return 1
        return self.settings.num_children if node.parent else self.settings.num_root_children

    def _sample_turn(self, node: _Node, index: int, probe: int = 0) -> Generator[Yields, Sampled | Verdict, Sampled]:
        """Sample a node's turn for one rollout. Raises `FlowError` for a turn that breaks a rule."""
        assert node.turn is not None
        depth = sum(1 for _ in _up(node)) - 1
        check_turn(self.flow, node.turn, depth, self.problem)
        if self._is_valued(node) and not node.turn.choices:
            raise FlowError(
                f"explore.valued_by expects a role of {type(self.flow).__name__} that chooses a word, found "
                f"{node.turn.role!r}, which writes"
            )
        # Rollout 0 is drawn as any exploration draws its trunk.
        trunk = index == 0 and not probe
        place = (-1, 0, depth) if trunk else ("search", index, depth, *([probe] if probe else []))
        seed = derive(self.seed, self.problem.id, *place)
        return sample(SampleRequest(turn=node.turn, sampling=self.settings.for_turn(node.turn, trunk=trunk), seed=seed))

    def _child(self, node: _Node, sampled: Sampled, *, probe: bool = False) -> _Node:
        """The node of a completion; a probe's node is below its parent, but is not one of its children."""
        state = self.flow.advance(node.state, sampled.completion)
        child = _Node(
            parent=node,
            state=state,
            turn=self.flow.turn(state),
            sampled=(sampled.request, sampled.completion, self.flow.tags(node.state)),
        )
        if not probe:
            node.children.append(child)
        return child


def _up(node: _Node) -> Iterator[_Node]:
    """The node and all nodes above it, the root last."""
    at: _Node | None = node
    while at is not None:
        yield at
        at = at.parent


def _said(node: _Node) -> float:
    """The value predicted for the state: 1 if the first choice is certain, -1 if it is impossible."""
    assert node.sampled is not None
    return 2 * math.exp(node.sampled[1].choice_logprobs[0]) - 1


def _ids(node: _Node) -> tuple[int, ...]:
    assert node.sampled is not None
    return node.sampled[1].token_ids
