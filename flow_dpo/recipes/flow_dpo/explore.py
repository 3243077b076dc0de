"""Trees of attempts: a trunk of the whole flow, and alternatives that end with their own attempt.

At every Answer node of the trunk's first attempts an alternative is sampled to the end of that attempt, and Stop judges
it. At every attempt that Stop refused, the rollout in which it is accepted is added, at no cost. So every ended attempt
of a tree has a Stop node that ends a rollout, and that rollout's verdict is the attempt's own:

    trunk    A0 -- A1 -- S2 No -- A3 -- S4 Yes          two attempts, the first refused
              \\     \\     S2' Yes                        the first attempt's verdict
               \\     A1' -- S Yes                        alternatives end with their attempt, as if accepted
                A0' -- A -- S Yes

Invariant: nothing is sampled after an alternative's own attempt; what Stop thought of it is in its choice's
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from flow_dpo.core.errors import FlowError, expect
from flow_dpo.core.explore import Group, ProblemRollouts, RolloutRecord, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.rollouts import Finished, RolloutRunner, RolloutSteps, SampleRequest, sample
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution
from flow_dpo.recipes.flow_dpo.attempts import Attempts, AttemptsState


class _AttemptRollouts(ProblemRollouts):
    """The rollouts of one problem; alternatives end with their attempt."""

    def __init__(self, settings: AttemptSiblings, flow: Attempts, problem: Problem, seed: int) -> None:
        super().__init__(settings, flow, problem, seed, 1, settings.num_alternatives)
        self.branched = settings.branched_attempts
        self.attempt_at: dict[int, int] = {}
        """The number of the trunk's attempt, from 0, at each of its depths."""

    def rollout(self, record: RolloutRecord, state: AttemptsState) -> RolloutSteps:
        """Sample the trunk to its end, or an alternative to the end of its attempt."""
        trunk = record is self.rollouts[0]
        # An alternative's first chunk may have been cut at the cap: `state` has then begun the next attempt.
        own = 0 if record.at is None else self.attempt_at[record.at]
        while (turn := self.flow.turn(state)) is not None and (trunk or len(state.refused) == own):
            check_turn(self.flow, turn, len(record.turns), self.problem)
            if turn.choices and not trunk:
                turn = replace(turn, threshold=0.0)
            seed, depth = self._seed(record, len(record.turns)), len(record.turns)
            sampling = self.turn_sampling.for_turn(turn, trunk=trunk)
            sampled = yield from sample(SampleRequest(turn=turn, sampling=sampling, seed=seed))
            record.turns.append((sampled.request, sampled.completion, self.flow.tags(state)))
            branches = sampled.completion.choice != 0 if turn.choices else len(state.refused) < self.branched
            if trunk and self.num_alternatives and branches:
                self.attempt_at[depth] = len(state.refused)
                yield self.alternatives(turn, state, sampled, depth)
            state = self.flow.advance(state, sampled.completion)
        cut = not trunk and len(state.refused) > own
        attempt = state.refused[own] if cut else state.attempt
        record.solution = Solution(pieces=attempt.pieces, ended=attempt.ended)
        yield Finished(problem=self.problem, solution=record.solution)


@dataclass(frozen=True, kw_only=True)
class AttemptSiblings(TurnSampling):
    """A trunk of attempts, and alternatives at the Answer nodes of its first ones."""

    num_alternatives: int = 1
    """Alternatives per node; they differ from the trunk and from each other. 0 samples only the trunk."""
    branched_attempts: int = 1
    """How many of the trunk's attempts, from the first, have alternatives to their chunks; 0 varies only refusals."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 0 or more", lambda value: value >= 0, "branched_attempts")

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        if not isinstance(flow, Attempts):
            raise FlowError(
                f"AttemptSiblings expects the flow Attempts, found {type(flow).__name__}; explore other flows with "
                f"Siblings"
            )
        explored = [_AttemptRollouts(self, flow, problem, seed) for problem in problems]
        starts = [(one, flow.start(problem)) for one, problem in zip(explored, problems, strict=True)]
        runner.run([one.rollout(one.rollouts[0], start) for one, start in starts])
        return [one.tree() for one in explored]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)
