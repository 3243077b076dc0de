r"""Chains that fork where the policy was least sure: the entropy-guided tree of TreeRL.

TreeRL's exploration, EPTree (arXiv 2506.11902, and the authors' code, THUDM/TreeRL at f0edbea,
`entropy_chain_local_manager.py` and `tree_node.py`): several chains are sampled to the end. Then in every round the
least sure tokens of each chain's tree become forks, from each of which several completions are sampled to the end:

    chain   a b c d e      surprises .1 .9 .2 .7 .3       num_forks 2: before b and before d
    forks   a | x y z      a | b w      a b c | u v       a b c | d t        (num_completions 2)

A token's surprise stands in for its entropy, as in the authors' code: the negative log-probability of the token that
was sampled. An entropy is of the whole distribution, a surprise of one draw from it; the mean surprise is the entropy.
So a likely token at an undecided place is passed over, and an unlikely one at a decided place can become a fork.

Invariants: a fork's first token is no fork again, nor is anything after the words that open the final answer, and no
place is forked in two rounds (the authors' code can do that). A fork is a plain draw from its state, which can repeat
what is there. The first chain is the trunk, drawn as in any exploration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flow_dpo.core.errors import FlowError, expect
from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import Finished, RolloutRunner, RolloutSteps
from flow_dpo.core.seeds import derive
from flow_dpo.core.steps import join, split
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Solution
from flow_dpo.recipes.step_rollouts import Step, continuation, request_after

At = tuple[int, int]
"""A place in a branch: the number of its turn, and how many of that turn's tokens in the branch come before it."""


@dataclass(frozen=True, kw_only=True)
class EntropyForks(TurnSampling):
    """Chains of a problem, and forks at their least sure tokens. The first chain is the trunk."""

    num_rollouts: int = 6
    """Chains per problem, M; TreeRL's is 6."""
    num_forks: int = 2
    """Forks per chain's tree in a round, N; TreeRL's is 2."""
    num_completions: int = 2
    """Completions per fork, T; TreeRL's is 2."""
    fork_rounds: int = 1
    """Rounds of forking, L; from the second on, forks can be forked. TreeRL's is 1."""
    no_forks_after: tuple[str, ...] = ("conclusion", "answer")
    """Words after which a turn is not forked: a token whose text contains one, in lower case, is the last that can be a
    fork. The defaults are TreeRL's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 0 or more", lambda value: value >= 0, "fork_rounds")

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        explored = [
            [_Chain(self, flow, problem, runner, seed, index) for index in range(self.num_rollouts)]
            for problem in problems
        ]
        runner.run([chain.grow(chain.branches[0]) for chains in explored for chain in chains])
        return [_tree(problem, chains) for problem, chains in zip(problems, explored, strict=True)]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)


@dataclass(slots=True, kw_only=True, eq=False)
class _Branch:
    """A rollout from the beginning or from a fork to the end."""

    id: int
    """Its number in its chain's tree."""
    parent: _Branch | None = None
    at: At = (0, 0)
    """Where in its parent it begins."""
    steps: list[Step] = field(default_factory=list[Step])
    """Its turns, the first of which can continue one of its parent's."""
    solution: Solution | None = None
    nodes: dict[At, int | None] = field(default_factory=dict[At, "int | None"])
    """In the finished tree, the node that ends at each of its forks; None at the problem's beginning."""


class _Chain:
    """A chain and all its forks."""

    def __init__(
        self, settings: EntropyForks, flow: Flow[Any], problem: Problem, runner: RolloutRunner, seed: int, index: int
    ) -> None:
        self.settings, self.flow, self.problem, self.runner = settings, flow, problem, runner
        self.seed, self.index = seed, index
        self.branches = [_Branch(id=0)]
        self.round, self._num_waiting = 0, 1

    def grow(self, branch: _Branch) -> RolloutSteps:
        """Sample a branch to its end; the last of a round starts the next round."""
        start = self._start(branch)
        trunk = branch.id == 0 and self.index == 0
        branch.steps, branch.solution = yield from continuation(
            self.settings, self.flow, self.problem, turn=start[0], state=start[1], kept=start[2], trunk=trunk,
            seed_of=lambda num_turns: self._seed(branch, num_turns),
        )  # fmt: skip
        if not branch.steps:
            raise FlowError(f"{type(self.flow).__name__} ended a rollout of {self.problem.id} without a turn")
        yield Finished(problem=self.problem, solution=branch.solution)
        self._num_waiting -= 1
        if self._num_waiting or self.round == self.settings.fork_rounds:
            return
        self.round += 1
        forks = sorted(self._places(), key=lambda found: -found[0])[: self.settings.num_forks]
        started = [
            _Branch(id=len(self.branches) + index, parent=parent, at=at)
            for index, (_, parent, at) in enumerate(
                fork for fork in forks for _ in range(self.settings.num_completions)
            )
        ]
        self.branches += started
        self._num_waiting = len(started)
        for one in started:
            yield self.grow(one)

    def _start(self, branch: _Branch) -> tuple[Any, Any, Completion | None]:
        """Where a branch begins: the turn, the state before it, and what is written of it."""
        if branch.parent is None:
            state = self.flow.start(self.problem)
            return self.flow.turn(state), state, None
        (number, offset), step = branch.at, branch.parent.steps[branch.at[0]]
        own = split(step.completion, (offset,))[0] if offset else None
        before = step.kept if number == 0 else None
        kept = own if before is None else before if own is None else join(before, own)
        return step.turn, step.state, kept

    def _places(self) -> Iterator[tuple[float, _Branch, At]]:
        """Every token that can be a fork and is none yet, with its surprise."""
        known = {(id(one.parent), one.at) for one in self.branches}
        for branch in self.branches:
            for number, step in enumerate(branch.steps):
                if step.turn.choices:
                    continue
                first = 1 if number == 0 and branch.parent is not None else 0
                for offset in range(first, self._num_open(step.completion)):
                    if (id(branch), (number, offset)) not in known:
                        yield -step.completion.logprobs[offset], branch, (number, offset)

    def _num_open(self, completion: Completion) -> int:
        """How many tokens of a completion, from the first, can be forks."""
        for at, token in enumerate(completion.token_ids):
            text = self.runner.renderer.to_text(((token,),)).lower()
            if any(word in text for word in self.settings.no_forks_after):
                return at + 1
        return len(completion.token_ids)

    def _seed(self, branch: _Branch, num_turns: int) -> int:
        if branch.parent is None:
            return derive(self.seed, self.problem.id, -1, self.index, num_turns)
        return derive(self.seed, self.problem.id, "fork", self.index, branch.id, num_turns)


def _tree(problem: Problem, chains: Sequence[_Chain]) -> Tree:
    """The finished tree, chain by chain: a branch's turns are cut where others fork off."""
    tree = Tree(problem=problem)
    for chain in chains:
        for branch in chain.branches:
            forks = sorted({other.at for other in chain.branches if other.parent is branch})
            parent = None if branch.parent is None else branch.parent.nodes[branch.at]
            turns: list[tuple[Request, Completion, tuple[str, ...]]] = []
            places: list[At] = []
            for number, step in enumerate(branch.steps):
                cuts = [offset for at, offset in forks if at == number and offset]
                turns += _pieces(step, cuts)
                places += [(number, offset) for offset in cuts] + [(number + 1, 0)]
            assert branch.solution is not None
            start = tree.rollouts[tree.add_rollout(parent, turns, branch.solution)].start
            branch.nodes = {(0, 0): parent} | {place: start + at for at, place in enumerate(places)}
    return tree


def _pieces(step: Step, cuts: Sequence[int]) -> list[tuple[Request, Completion, tuple[str, ...]]]:
    """A turn's completion, cut at these numbers of tokens, each piece with its request."""
    pieces, kept = list[tuple[Request, Completion, tuple[str, ...]]](), None
    for piece in split(step.completion, cuts):
        pieces.append((step.request if kept is None else request_after(step.request, kept), piece, step.tags))
        kept = piece if kept is None else join(kept, piece)
    return pieces
