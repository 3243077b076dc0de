"""What is an exploration?

A value that says which plays of a flow are made on a problem, and how their completions are drawn. It knows no model,
and what it draws for a problem depends on the seed and the problem alone:

    Drawing(temperature=0.7).sampling(turn, trunk=False)    ->  Sampling(temperature=0.7, top_p=1.0)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from flow_dpo.core.divergence import draw_divergence, splice
from flow_dpo.core.errors import FlowError
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.rollouts import Ask, Play, Said, Speaker, say
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Role, Sampling, Solution, Turn


class Explore(Protocol):
    """A rule that says which plays are made."""

    def __call__(self, flow: Flow[Any], speaker: Speaker, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        """One tree a problem, in their order; its first rollout is what progressive validation reads.

        The same seed gives the same trees, however the problems are batched.
        """
        ...

    def alone(self, *, greedy: bool) -> Explore:
        """The same drawing with one play a problem, for evaluation."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the plays of an exploration are drawn."""

    greedy_trunk: bool = False
    """Whether the trunk takes the likeliest token (not stated in the paper). Alternatives are always drawn."""
    temperature: float = 1.0
    """Of the Answer role and any other that writes (not stated in the paper; its ancestor used 0.7)."""
    top_p: float = 1.0
    """Nucleus of the same (not stated in the paper; its ancestor used 0.9)."""
    choice_temperature: float = 1.0
    """Of turns with declared choices, such as Stop's (not stated in the paper)."""

    def sampling(self, turn: Turn, *, trunk: bool) -> Sampling:
        """The distribution that a turn's completion is drawn from."""
        greedy = trunk and self.greedy_trunk
        if turn.choices:
            return Sampling(temperature=self.choice_temperature, greedy=greedy)
        return Sampling(temperature=self.temperature, top_p=self.top_p, greedy=greedy)


def explore(
    drawing: Drawing,
    flow: Flow[Any],
    speaker: Speaker,
    problems: Sequence[Problem],
    seed: int,
    *,
    num_plays: int,
    num_alternatives: int,
) -> list[Tree]:
    """One tree a problem: `num_plays` plays from the beginning, `num_alternatives` at every node of the first."""
    explored = [
        Explored(drawing, flow, problem, seed, num_plays, num_alternatives, speaker.ended) for problem in problems
    ]
    speaker.run(
        [
            one.rollout(record, flow.start(problem))
            for one, problem in zip(explored, problems, strict=True)
            for record in one.plays
        ]
    )
    return [one.tree() for one in explored]


@dataclass(slots=True, kw_only=True)
class Record:
    """One rollout as it is being played."""

    at: int | None = None
    """Depth of the trunk's node that it is an alternative to; None for a play from the beginning."""
    index: int = 0
    """Which of the plays or alternatives at one place."""
    said: list[tuple[Request, Completion, tuple[str, ...]]] = field(
        default_factory=list[tuple[Request, Completion, tuple[str, ...]]]
    )
    solution: Solution | None = None


class Explored:
    """All plays of one problem while they are under way."""

    def __init__(
        self,
        drawing: Drawing,
        flow: Flow[Any],
        problem: Problem,
        seed: int,
        num_plays: int,
        num_alternatives: int,
        ended: Callable[[Problem, Solution], None],
    ) -> None:
        self.ended = ended
        self.drawing, self.flow, self.problem, self.seed = drawing, flow, problem, seed
        self.num_alternatives = num_alternatives
        self.plays = [Record(index=index) for index in range(num_plays)]
        self.alternatives_made: list[Record] = []
        self.skipped: dict[Role, int] = {}

    def rollout(self, record: Record, state: Any) -> Play:
        """Play from `state` to the end; on the trunk, start the alternatives of every node on the way."""
        trunk = record is self.plays[0]
        while (turn := self.flow.turn(state)) is not None:
            check_turn(self.flow, turn, len(record.said), self.problem)
            seed = self._seed(record, len(record.said))
            said = yield from say(Ask(turn=turn, sampling=self.drawing.sampling(turn, trunk=trunk), seed=seed))
            depth = len(record.said)
            record.said.append((said.request, said.completion, self.flow.tags(state)))
            if trunk and self.num_alternatives:
                yield self.alternatives(turn, state, said, depth)
            state = self.flow.advance(state, said.completion)
        record.solution = self.flow.solution(state)
        self.ended(self.problem, record.solution)

    def alternatives(self, turn: Turn, state: Any, trunk: Said, depth: int) -> Play:
        """Say something else at one node of the trunk, as often as asked, and play each on."""
        done = [trunk.completion]
        for index in range(self.num_alternatives):
            record = Record(at=depth, index=index)
            rng = random.Random(self._seed(record, "divergence"))
            if turn.choices:
                completion = self._other_choice(trunk.request, done, rng)
            else:
                completion = None
                divergence = draw_divergence(done, rng)
                if divergence is not None:
                    said = yield from say(
                        Ask(
                            turn=turn,
                            sampling=self.drawing.sampling(turn, trunk=False),
                            seed=self._seed(record, "completion"),
                            kept=divergence.of.token_ids[: divergence.kept],
                            struck=divergence.struck,
                        )
                    )
                    completion = splice(divergence, said.completion)
            if completion is None:
                if index == 0:
                    self.skipped[turn.role] = self.skipped.get(turn.role, 0) + 1
                return
            done.append(completion)
            record.said.append((trunk.request, completion, self.flow.tags(state)))
            self.alternatives_made.append(record)
            yield self.rollout(record, self.flow.advance(state, completion))

    def tree(self) -> Tree:
        """The finished tree, numbered by where alternatives stand and not by when they were done."""
        tree = Tree(problem=self.problem, skipped=dict(sorted(self.skipped.items())))
        alternatives = sorted(self.alternatives_made, key=lambda record: (record.at or 0, record.index))
        for record in [*self.plays, *alternatives]:
            if record.solution is None or not record.said:
                raise FlowError(f"{type(self.flow).__name__} ended a play of {self.problem.id} before anybody spoke")
            # Node ids of the trunk are its depths, so an alternative at depth d hangs below node d - 1.
            parent = None if record.at is None or record.at == 0 else record.at - 1
            tree.add_rollout(parent, record.said, record.solution)
        return tree

    def _other_choice(self, request: Request, done: Sequence[Completion], rng: random.Random) -> Completion | None:
        """Draw one of the choices not yet taken, as likely as they are among themselves; None when all are."""
        like = done[0]
        taken = {completion.choice for completion in done}
        left = [index for index in range(len(request.choices)) if index not in taken]
        if not left:
            return None
        scaled = [value / self.drawing.choice_temperature for value in like.choice_logprobs]
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

    def _seed(self, record: Record, what: int | str) -> int:
        at = -1 if record.at is None else record.at
        return derive(self.seed, self.problem.id, at, record.index, what)


@dataclass(frozen=True, kw_only=True)
class Siblings(Drawing):
    """A trunk, and alternatives at every node of it, each played to the end."""

    num_alternatives: int = 1
    """Alternatives at a node; they differ from the trunk and from each other. A choice has one fewer than its words.
    The paper makes one; 0 plays the trunk alone."""

    def __call__(self, flow: Flow[Any], speaker: Speaker, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        return explore(self, flow, speaker, problems, seed, num_plays=1, num_alternatives=self.num_alternatives)

    def alone(self, *, greedy: bool) -> Siblings:
        return replace(self, num_alternatives=0, greedy_trunk=greedy)


@dataclass(frozen=True, kw_only=True)
class Group(Drawing):
    """Independent plays of one problem from its beginning (GRPO, arXiv 2402.03300). Two may say the same."""

    num_plays: int = 8
    """Plays of a problem, the first of which is its trunk."""

    def __call__(self, flow: Flow[Any], speaker: Speaker, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        return explore(self, flow, speaker, problems, seed, num_plays=self.num_plays, num_alternatives=0)

    def alone(self, *, greedy: bool) -> Group:
        return replace(self, num_plays=1, greedy_trunk=greedy)


def one_play(drawing: Drawing, *, greedy: bool) -> Group:
    """The plain flow, played once as `drawing` draws: what an exploration that plays otherwise is evaluated by."""
    return Group(
        num_plays=1,
        greedy_trunk=greedy,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        choice_temperature=drawing.choice_temperature,
    )
