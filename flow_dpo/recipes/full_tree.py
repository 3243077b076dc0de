r"""A full tree of rollouts: several completions at every branching point, each continued to the end.

The beginning of every turn is a branching point and, with `segment_tokens`, so is every so many tokens within a turn.
At the first one `branch_factors[0]` completions are drawn, below each of those `branch_factors[1]`, and so on. What
is left after the last factor is one completion per turn, as long as the turn allows:

    branch_factors (3, 2), segment_tokens 100    3 segments of 100 tokens, 2 ways to the end from each: 6 rollouts

What has ended earlier is not branched. Invariant: siblings are independent draws from one state, equal ones included,
so the mean of their outcomes is an unbiased estimate of that state's value under the policy. The first rollout is the
trunk, itself a plain draw from the flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flow_dpo.core.errors import FlowError, expect
from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.rollouts import Finished, RolloutRunner, RolloutSteps, SampleRequest, sample
from flow_dpo.core.seeds import derive
from flow_dpo.core.steps import join
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Solution, Turn
from flow_dpo.recipes.step_rollouts import request_after


@dataclass(frozen=True, kw_only=True)
class FullTree(TurnSampling):
    """Several completions at every branching point, each continued to the end. The first rollout is the trunk."""

    branch_factors: tuple[int, ...] = (6, 6, 6)
    """Number of completions at each branching point, from the beginning on."""
    segment_tokens: int = 0
    """Tokens after which a turn is branched; 0 branches only between turns. A turn of one line, or one that chooses a
    word, is never cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "to be one or more whole numbers of 1 or more"
        expect(self, rule, lambda value: value and all(isinstance(one, int) and one >= 1 for one in value),
               "branch_factors")  # fmt: skip
        expect(self, "of 0 or more", lambda value: value >= 0, "segment_tokens")

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        grown = [_Grown(self, flow, problem, seed) for problem in problems]
        runner.run([child for one in grown for child in one.branch(one.root)])
        return [one.tree() for one in grown]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)


@dataclass(slots=True, kw_only=True, eq=False)
class _Place:
    """A segment, and the state after it. The root is the beginning, before any segment."""

    path: tuple[int, ...] = ()
    """The index of the child at each level, from the root on."""
    state: Any
    """The flow's state at the beginning of the turn that is next or under way."""
    turn: Turn | None
    kept: Completion | None = None
    """What has been written of that turn."""
    num_turns: int = 0
    sampled: tuple[Request, Completion, tuple[str, ...]] | None = None
    children: list[_Place] = field(default_factory=list["_Place"])
    solution: Solution | None = None


class _Grown:
    """The tree of one problem while it grows."""

    def __init__(self, settings: FullTree, flow: Flow[Any], problem: Problem, seed: int) -> None:
        self.settings, self.flow, self.problem, self.seed = settings, flow, problem, seed
        start = flow.start(problem)
        self.root = _Place(state=start, turn=flow.turn(start))
        if self.root.turn is None:
            raise FlowError(f"{type(flow).__name__} ended a rollout of {problem.id} without a turn")

    def branch(self, place: _Place) -> Iterator[RolloutSteps]:
        """The rollouts that start the children of a place, each with everything below it."""
        factors, level = self.settings.branch_factors, len(place.path)
        for index in range(factors[level] if level < len(factors) else 1):
            child = replace(place, path=(*place.path, index), children=[])
            place.children.append(child)
            yield self._grow(place, child)

    def _grow(self, parent: _Place, child: _Place) -> RolloutSteps:
        """Sample one segment, then start what comes after it."""
        turn, kept = parent.turn, parent.kept
        assert turn is not None
        check_turn(self.flow, turn, parent.num_turns, self.problem)
        limit = self._limit(turn, kept, len(parent.path))
        trunk = not any(child.path)
        request = SampleRequest(
            turn=replace(turn, max_tokens=limit),
            sampling=self.settings.for_turn(turn, trunk=trunk),
            seed=derive(self.seed, self.problem.id, "tree", *child.path),
            prefix_ids=() if kept is None else kept.token_ids,
        )
        sampled = yield from sample(request)
        asked = replace(sampled.request, max_tokens=turn.max_tokens) if limit < turn.max_tokens else sampled.request
        child.sampled = (
            asked if kept is None else request_after(asked, kept), sampled.completion, self.flow.tags(parent.state)
        )  # fmt: skip
        written = sampled.completion if kept is None else join(kept, sampled.completion)
        if limit < turn.max_tokens and written.finish_reason == "length" and len(written.token_ids) == limit:
            child.kept = written
        else:
            child.state, child.kept = self.flow.advance(parent.state, written), None
            child.turn, child.num_turns = self.flow.turn(child.state), parent.num_turns + 1
        if child.turn is not None:
            yield from self.branch(child)
            return
        end = derive(self.seed, self.problem.id, "tree", *child.path, "end")
        child.solution = yield from self.settings.solution(self.flow, child.state, trunk=trunk, seed=end)
        yield Finished(problem=self.problem, solution=child.solution)

    def _limit(self, turn: Turn, kept: Completion | None, level: int) -> int:
        """The most tokens of the turn that are written before it is branched."""
        segment, factors = self.settings.segment_tokens, self.settings.branch_factors
        if not segment or turn.choices or turn.one_line or level + 1 >= len(factors):
            return turn.max_tokens
        return min(turn.max_tokens, segment + (0 if kept is None else len(kept.token_ids)))

    def tree(self) -> Tree:
        """The finished tree: a rollout leads from its first segment through first children to a leaf."""
        tree = Tree(problem=self.problem)
        starts: list[tuple[int | None, _Place]] = [(None, child) for child in reversed(self.root.children)]
        while starts:
            parent, first = starts.pop()
            chain = [first]
            while chain[-1].children:
                chain.append(chain[-1].children[0])
            turns = [place.sampled for place in chain if place.sampled is not None]
            solution = chain[-1].solution
            assert solution is not None
            rollout = tree.rollouts[tree.add_rollout(parent, turns, solution)]
            starts += reversed([
                (node, child)
                for node, place in enumerate(chain, start=rollout.start)
                for child in place.children[1:]
            ])  # fmt: skip
        return tree
