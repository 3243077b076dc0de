"""Exploration: which rollouts of a flow are sampled on a problem, and how.

An exploration is a value that says which rollouts are made and how their completions are drawn. It knows no model, and
its random numbers for a problem depend only on the seed and the problem:

    TurnSampling(temperature=0.7).for_turn(turn, trunk=False)    ->  Sampling(temperature=0.7, top_p=1.0)
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from flow_dpo.core.divergence import draw_divergence, splice
from flow_dpo.core.errors import FlowError, expect
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.rollouts import Finished, RolloutRunner, RolloutSteps, Sampled, SampleRequest, Yields, sample
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Role, Sampling, Solution, Turn, Verdict


class Explore(Protocol):
    """A rule for which rollouts are sampled."""

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        """One tree per problem, in their order; progressive validation reads the first rollout of each.
        The same seed gives the same trees, however the problems are batched.
        """
        ...

    def alone(self, *, greedy: bool) -> Explore:
        """The same sampling with one rollout per problem, for evaluation."""
        ...


@dataclass(frozen=True, kw_only=True)
class TurnSampling:
    """How the completions of an exploration are drawn."""

    greedy_trunk: bool = False
    """Whether the trunk takes the likeliest token (not stated in the paper). Alternatives are always sampled."""
    temperature: float = 1.0
    """Temperature of Answer and of any other role that writes text (not stated in the paper; its predecessor: 0.7)."""
    top_p: float = 1.0
    """Top-p of the same roles (not stated in the paper; its predecessor: 0.9)."""
    choice_temperature: float = 1.0
    """Temperature of turns with declared choices, such as Stop's (not stated in the paper)."""
    stop_strings: tuple[str, ...] = ()
    """Strings that end a role's text, as its end token does: they are learned, but are not part of the text."""

    def __post_init__(self) -> None:
        counts = [field.name for field in fields(self) if field.name.startswith("num_")]
        above = "above 0 (greedy_trunk takes the likeliest token)"
        expect(self, above, lambda value: 0 < value < math.inf, "temperature", "choice_temperature")
        expect(self, "above 0 and at most 1", lambda value: 0 < value <= 1, "top_p")
        expect(self, "of 1 or more", lambda value: value >= 1, *({"num_rollouts"} & {*counts}))
        expect(self, "to be texts that are not empty", lambda value: all(value), "stop_strings")
        expect(self, "of 0 or more", lambda value: value >= 0, *counts)

    def for_turn(self, turn: Turn, *, trunk: bool) -> Sampling:
        """The distribution that a turn's completion is drawn from."""
        greedy = (trunk and self.greedy_trunk) if turn.greedy is None else turn.greedy
        if turn.choices:
            return Sampling(temperature=self.choice_temperature, greedy=greedy, threshold=turn.threshold)
        stops = self.stop_strings
        return Sampling(temperature=self.temperature, top_p=self.top_p, greedy=greedy, stop_strings=stops)

    def solution(
        self, flow: Flow[Any], state: Any, *, trunk: bool, seed: int
    ) -> Generator[Yields, Sampled | Verdict, Solution]:
        """The solution of a rollout that has ended, after sampling the closing token if the flow asks for one."""
        turn = flow.closing(state)
        if turn is not None:
            request = SampleRequest(turn=turn, sampling=self.for_turn(turn, trunk=trunk), seed=seed)
            state = flow.advance(state, (yield from sample(request)).completion)
        return flow.solution(state)


def explore_problems(
    turn_sampling: TurnSampling,
    flow: Flow[Any],
    runner: RolloutRunner,
    problems: Sequence[Problem],
    seed: int,
    *,
    num_rollouts: int,
    num_alternatives: int,
) -> list[Tree]:
    """One tree per problem: `num_rollouts` from the beginning, and `num_alternatives` at every node of the first."""
    explored = [
        ProblemRollouts(turn_sampling, flow, problem, seed, num_rollouts, num_alternatives) for problem in problems
    ]
    runner.run(
        [
            one.rollout(record, flow.start(problem))
            for one, problem in zip(explored, problems, strict=True)
            for record in one.rollouts
        ]
    )
    return [one.tree() for one in explored]


@dataclass(slots=True, kw_only=True)
class RolloutRecord:
    """One rollout while it is being sampled."""

    at: int | None = None
    """Depth of the trunk node to which it is an alternative; None for a rollout from the beginning."""
    index: int = 0
    """Its index among the rollouts, or among the alternatives at the same node."""
    turns: list[tuple[Request, Completion, tuple[str, ...]]] = field(
        default_factory=list[tuple[Request, Completion, tuple[str, ...]]]
    )
    solution: Solution | None = None


class ProblemRollouts:
    """All rollouts of one problem while they are being sampled."""

    def __init__(
        self,
        turn_sampling: TurnSampling,
        flow: Flow[Any],
        problem: Problem,
        seed: int,
        num_rollouts: int,
        num_alternatives: int,
    ) -> None:
        self.turn_sampling, self.flow, self.problem, self.seed = turn_sampling, flow, problem, seed
        self.num_alternatives = num_alternatives
        self.rollouts = [RolloutRecord(index=index) for index in range(num_rollouts)]
        self.alternative_records: list[RolloutRecord] = []
        self.skipped: dict[Role, int] = {}

    def rollout(self, record: RolloutRecord, state: Any) -> RolloutSteps:
        """Sample from `state` to the end; on the trunk, start the alternatives of every node on the way."""
        trunk = record is self.rollouts[0]
        while (turn := self.flow.turn(state)) is not None:
            check_turn(self.flow, turn, len(record.turns), self.problem)
            seed = self._seed(record, len(record.turns))
            sampled = yield from sample(
                SampleRequest(turn=turn, sampling=self.turn_sampling.for_turn(turn, trunk=trunk), seed=seed)
            )
            depth = len(record.turns)
            record.turns.append((sampled.request, sampled.completion, self.flow.tags(state)))
            if trunk and self.num_alternatives:
                yield self.alternatives(turn, state, sampled, depth)
            state = self.flow.advance(state, sampled.completion)
        seed = self._seed(record, len(record.turns))
        record.solution = yield from self.turn_sampling.solution(self.flow, state, trunk=trunk, seed=seed)
        yield Finished(problem=self.problem, solution=record.solution)

    def alternatives(self, turn: Turn, state: Any, trunk: Sampled, depth: int) -> RolloutSteps:
        """Sample the alternatives at one node of the trunk, and continue each to its end."""
        done = [trunk.completion]
        for index in range(self.num_alternatives):
            record = RolloutRecord(at=depth, index=index)
            rng = random.Random(self._seed(record, "divergence"))
            completion = self._other_choice(trunk.request, done, rng) if turn.choices else None
            divergence = None if turn.choices else draw_divergence(done, rng)
            if divergence is not None:
                sampled = yield from sample(
                    SampleRequest(
                        turn=turn,
                        sampling=self.turn_sampling.for_turn(turn, trunk=False),
                        seed=self._seed(record, "completion"),
                        prefix_ids=divergence.of.token_ids[: divergence.kept],
                        excluded_ids=divergence.excluded_ids,
                    )
                )
                completion = splice(divergence, sampled.completion)
            if completion is None:
                if index == 0:
                    self.skipped[turn.role] = self.skipped.get(turn.role, 0) + 1
                return
            done.append(completion)
            record.turns.append((trunk.request, completion, self.flow.tags(state)))
            self.alternative_records.append(record)
            yield self.rollout(record, self.flow.advance(state, completion))

    def tree(self) -> Tree:
        """The finished tree, numbered by where the alternatives are and not by when they finished."""
        tree = Tree(problem=self.problem, skipped=dict(sorted(self.skipped.items())))
        alternatives = sorted(self.alternative_records, key=lambda record: (record.at or 0, record.index))
        for record in [*self.rollouts, *alternatives]:
            if record.solution is None or not record.turns:
                raise FlowError(f"{type(self.flow).__name__} ended a rollout of {self.problem.id} without a turn")
            # Node ids of the trunk are its depths, so an alternative at depth d hangs below node d - 1.
            parent = None if record.at is None or record.at == 0 else record.at - 1
            tree.add_rollout(parent, record.turns, record.solution)
        return tree

    def _other_choice(self, request: Request, done: Sequence[Completion], rng: random.Random) -> Completion | None:
        """Draw one of the choices not yet taken, by their relative probabilities; None if all are taken."""
        like = done[0]
        taken = {completion.choice for completion in done}
        left = [index for index in range(len(request.choices)) if index not in taken]
        if not left:
            return None
        scaled = [value / self.turn_sampling.choice_temperature for value in like.choice_logprobs]
        highest = max(scaled[index] for index in left)
        choice = rng.choices(left, [math.exp(scaled[index] - highest) for index in left])[0] if left[1:] else left[0]
        total = max(scaled) + math.log(math.fsum(math.exp(value - max(scaled)) for value in scaled))
        return replace(
            like,
            token_ids=(request.choices[choice],),
            logprobs=(like.choice_logprobs[choice],),
            sampled_logprobs=(scaled[choice] - total,),
            choice=choice,
        )

    def _seed(self, record: RolloutRecord, what: int | str) -> int:
        at = -1 if record.at is None else record.at
        return derive(self.seed, self.problem.id, at, record.index, what)


@dataclass(frozen=True, kw_only=True)
class Siblings(TurnSampling):
    """A trunk with alternatives at every node, each continued to the end."""

    num_alternatives: int = 1
    """Alternatives per node; they differ from the trunk and from each other. A choice has at most one fewer than its
    number of options. 1 in the paper; 0 samples only the trunk."""

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        return explore_problems(
            self, flow, runner, problems, seed, num_rollouts=1, num_alternatives=self.num_alternatives
        )

    def alone(self, *, greedy: bool) -> Siblings:
        return replace(self, num_alternatives=0, greedy_trunk=greedy)


@dataclass(frozen=True, kw_only=True)
class Group(TurnSampling):
    """Independent rollouts of one problem from its beginning (GRPO, arXiv 2402.03300). Two of them can be equal."""

    num_rollouts: int = 8
    """Rollouts per problem; the first is the trunk."""

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        return explore_problems(self, flow, runner, problems, seed, num_rollouts=self.num_rollouts, num_alternatives=0)

    def alone(self, *, greedy: bool) -> Group:
        return replace(self, num_rollouts=1, greedy_trunk=greedy)


def single_rollout(turn_sampling: TurnSampling, *, greedy: bool) -> Group:
    """One plain rollout of the flow, drawn as `turn_sampling` says, to evaluate explorations of other kinds."""
    drawn: dict[str, Any] = {each.name: getattr(turn_sampling, each.name) for each in fields(TurnSampling)}
    return replace(Group(**drawn), num_rollouts=1, greedy_trunk=greedy)
