"""Monte-Carlo tree search (MCTS) over the turns of a flow, as in Critical Plan Step Learning (arXiv 2409.08642).

From the beginning, go down to the child with the highest

    Q(child) + puct * P(child) * sqrt(N(node)) / (1 + N(child))

until a node has not yet been expanded; draw what children it lacks, value each, and add the value to every node on its
path. The value is the reward, 1 or -1, of a rollout to the end (Monte-Carlo), or with `valued_by` a role's prediction
for the new state: twice the probability of its first choice minus 1 (the paper's value head); an end has its reward
in both. N counts rollouts through a node, Q is their mean, P the geometric mean of the probabilities of its tokens
(how it is normalised is not stated in the paper). All turns of a rollout are part of the tree: its next turn is the
first child of each node on it.

    rollout 0    from the beginning to the end: the trunk, a plain draw from the flow
    rollout 1, 2 the other two children of the root, each continued to its end
    rollout 3, 4 the other two of the child that scores highest, ...

Invariant: no more than `num_rollouts` are sampled; what is exhausted is not visited again, and a completion that is
there already begins no rollout, so a tree alone, without any counts of visits, holds N and Q.
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

    num_rollouts: int = 32
    """Rollouts of a problem at most (not stated in the paper); a completion that is there already costs none."""
    num_children: int = 3
    """Completions drawn at a node when it is expanded; equal ones are one child. The paper's is 3."""
    puct: float = 1.5
    """How much is given to what was rarely visited; the paper's is 1.5."""
    num_at_once: int = 1
    """Nodes of a tree that are expanded beside one another, so that an engine has more to do (not in the paper). Each
    is chosen as if every rollout still to come of those before it had the value -1 (virtual loss)."""
    valued_by: str = ""
    """The role of the flow whose choice, the first or another, values a new state: every rollout but the trunk stops
    with it. No alternative to it is sampled. Rollouts go to the end where empty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 1 or more", lambda value: value >= 1, "num_children", "num_at_once")

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
    """Completions drawn here, equal ones too."""
    num_rollouts: int = 0
    num_valued: int = 0
    total: float = 0.0
    """Sum of the values of the rollouts that have one: a reward, 1 or -1, or the prediction for their last state."""
    num_pending: int = 0
    """Rollouts through here that are still to come: each counts as one of the value -1."""
    closed: bool = False
    """Nothing new can be found here or below."""
    id: int = -1

    @property
    def value(self) -> float:
        """Q; 0 where nothing could be graded, which is where right and wrong weigh alike."""
        num = self.num_valued + self.num_pending
        return (self.total - self.num_pending) / num if num else 0.0

    @property
    def visits(self) -> int:
        """N, with what is still to come."""
        return self.num_rollouts + self.num_pending

    @property
    def prior(self) -> float:
        assert self.sampled is not None
        logprobs = self.sampled[1].logprobs
        return math.exp(math.fsum(logprobs) / len(logprobs))


@dataclass(slots=True, kw_only=True)
class _Rollout:
    """A rollout from a new child to the end, or to where it was valued."""

    first: _Node
    leaf: _Node
    index: int
    solution: Solution | None = None
    value: float | None = None

    @property
    def stopped(self) -> bool:
        return self.leaf.turn is not None


class _Search:
    """The search on one problem. Expansions of one wave run side by side; the rollout that ends last continues."""

    def __init__(self, settings: Mcts, flow: Flow[Any], problem: Problem, seed: int) -> None:
        self.settings, self.flow, self.problem, self.seed = settings, flow, problem, seed
        start = flow.start(problem)
        self.root = _Node(parent=None, state=start, turn=flow.turn(start))
        self.rollouts: list[_Rollout] = []
        self.num_drawn = 0
        self.wave: list[tuple[_Node, int]] = []
        """Nodes that are being expanded, each with the number of completions that are drawn there."""
        self.started: list[_Rollout] = []
        """Rollouts of this wave, in the order in which they began."""
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
        """The first wave: the trunk alone."""
        self._choose(self.root, 1)
        return self._expansions()

    def tree(self) -> Tree:
        """The finished tree, rollout by rollout."""
        tree = Tree(problem=self.problem)
        for rollout in self.rollouts:
            path = [node for node in _up(rollout.leaf) if node.id < 0 and node.sampled is not None][::-1]
            above = rollout.first.parent
            assert above is not None
            assert rollout.solution is not None
            turns = [node.sampled for node in path if node.sampled is not None]
            for id, node in enumerate(path, start=len(tree.nodes)):
                node.id = id
            value = rollout.value if rollout.stopped else None
            tree.add_rollout(None if above.sampled is None else above.id, turns, rollout.solution, value=value)
        return tree

    def _choose(self, node: _Node, num: int) -> None:
        """Have this many completions drawn at a node in the next wave."""
        self.wave.append((node, num))
        node.num_drawn += num
        for above in _up(node):
            above.num_pending += num

    def _expansions(self) -> list[RolloutSteps]:
        """Draw what was chosen, and continue from what is new."""
        self.num_open = len(self.wave)
        steps: list[RolloutSteps] = []
        for node, num in self.wave:
            first, self.num_drawn = self.num_drawn, self.num_drawn + num
            drawn: dict[int, Sampled] = {}
            steps += [self._draw(node, index, drawn, num) for index in range(first, first + num)]
        return steps

    def _draw(self, node: _Node, index: int, drawn: dict[int, Sampled], num: int) -> RolloutSteps:
        drawn[index] = yield from self._sample_turn(node, index)
        if len(drawn) == num:
            yield from self._play_on(node, drawn)

    def _play_on(self, node: _Node, drawn: Mapping[int, Sampled]) -> RolloutSteps:
        """Add the new completions as children, and continue each of them to the end."""
        for index, sampled in sorted(drawn.items()):
            if all(sampled.completion.token_ids != _ids(child) for child in node.children):
                child = self._child(node, sampled)
                rollout = _Rollout(first=child, leaf=child, index=index)
                self.started.append(rollout)
                self.num_open += 1
                yield self._finish(rollout)
        yield from self._ended()

    def _finish(self, rollout: _Rollout) -> RolloutSteps:
        node, valued = rollout.first, False
        while node.turn is not None and not valued:
            sampled = yield from self._sample_turn(node, rollout.index)
            valued = self._is_valued(node) and rollout.index > 0
            node.num_drawn += 1
            node = self._child(node, sampled)
        rollout.leaf, rollout.solution = node, self.flow.solution(node.state)
        if rollout.stopped:
            rollout.value = _said_value(node)
        else:
            verdict = yield from verify(self.problem, rollout.solution)
            rollout.value = None if verdict.reward is None else 2 * verdict.reward - 1
        yield from self._ended()

    def _ended(self) -> RolloutSteps:
        """One part of the wave has ended; after the last, back up what was found and choose the next."""
        self.num_open -= 1
        if self.num_open:
            return
        # 1. what was to come has come, and counts by its value
        for node, num in self.wave:
            for above in _up(node):
                above.num_pending -= num
        done, self.started, self.wave = sorted(self.started, key=lambda one: one.index), [], []
        self.rollouts += done
        for rollout in done:
            rollout.leaf.closed = not rollout.stopped
            for node in _up(rollout.leaf):
                node.num_rollouts += 1
                if rollout.value is not None:
                    node.num_valued += 1
                    node.total += rollout.value
        self._close()
        # 2. the next, as far as the budget goes
        left = self.settings.num_rollouts - len(self.rollouts)
        while left > 0 and not self.root.closed and len(self.wave) < self.settings.num_at_once:
            node = self._select()
            num = min(left, self._num_wanted(node) - node.num_drawn)
            self._choose(node, num)
            left -= num
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
        """Close what has all its children and only closed ones, from the leaves of the last rollouts upwards."""
        order = [self.root]
        for node in order:
            order += node.children
        for node in reversed(order):
            if node.turn is not None and node.num_drawn >= self._num_wanted(node):
                node.closed = all(child.closed for child in node.children)

    def _is_valued(self, node: _Node) -> bool:
        """Whether the next turn is the value of the state."""
        return bool(self.settings.valued_by) and node.turn is not None and node.turn.role == self.settings.valued_by

    def _num_wanted(self, node: _Node) -> int:
        """How many completions are drawn at a node that is expanded."""
        return 1 if self._is_valued(node) else self.settings.num_children

    def _sample_turn(self, node: _Node, index: int) -> Generator[Yields, Sampled | Verdict, Sampled]:
        """Sample a node's turn, for one rollout. Raises `FlowError` for a turn that breaks a rule."""
        assert node.turn is not None
        depth = sum(1 for _ in _up(node)) - 1
        check_turn(self.flow, node.turn, depth, self.problem)
        if self._is_valued(node) and not node.turn.choices:
            raise FlowError(
                f"explore.valued_by expects a role of {type(self.flow).__name__} that chooses a word, found "
                f"{node.turn.role!r}, which writes"
            )
        # Rollout 0 is drawn as any exploration draws its trunk.
        place = (-1, 0, depth) if index == 0 else ("search", index, depth)
        seed = derive(self.seed, self.problem.id, *place)
        return sample(
            SampleRequest(turn=node.turn, sampling=self.settings.for_turn(node.turn, trunk=index == 0), seed=seed)
        )

    def _child(self, node: _Node, sampled: Sampled) -> _Node:
        state = self.flow.advance(node.state, sampled.completion)
        child = _Node(
            parent=node,
            state=state,
            turn=self.flow.turn(state),
            sampled=(sampled.request, sampled.completion, self.flow.tags(node.state)),
        )
        node.children.append(child)
        return child


def _up(node: _Node) -> Iterator[_Node]:
    """The node and all above it, the root last."""
    at: _Node | None = node
    while at is not None:
        yield at
        at = at.parent


def _said_value(node: _Node) -> float:
    """The value that was predicted for the state: 1 where the first choice is certain, -1 where it is impossible."""
    assert node.sampled is not None
    return 2 * math.exp(node.sampled[1].choice_logprobs[0]) - 1


def _ids(node: _Node) -> tuple[int, ...]:
    assert node.sampled is not None
    return node.sampled[1].token_ids
