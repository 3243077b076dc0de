"""One rollout from beginning to end, for the explorations that sample whole chains.

A search decides by what it has seen, so it runs the runner several times and looks at the results in between:

    chains = [Chain(flow, problem, turn_sampling, seed=derive(seed, problem.id, i), checked=True) for i in range(4)]
    runner.run([chain.rollout() for chain in chains])
    [chain.right for chain in chains]                   what the verifier found, to steer the search by

Invariant: a search is steered by the very verdicts that its tree is graded with (`grading.rule` included), so what it
takes for right is what is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flow_dpo.core.errors import FlowError
from flow_dpo.core.explore import TurnSampling
from flow_dpo.core.flow import Flow, check_turn
from flow_dpo.core.rollouts import Finished, RolloutSteps, SampleRequest, sample, verify
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Request, Solution, Status


class Chain:
    """One rollout from a problem's beginning."""

    def __init__(
        self,
        flow: Flow[Any],
        problem: Problem,
        turn_sampling: TurnSampling,
        *,
        seed: int,
        trunk: bool = False,
        tags: tuple[str, ...] = (),
        between: Callable[[Any], Any] | None = None,
        checked: bool = False,
    ) -> None:
        """`tags` are added to each turn's own. `between` can replace the state between two turns. With `checked` the
        solution is verified at the end."""
        self.flow, self.problem, self.turn_sampling, self.seed = flow, problem, turn_sampling, seed
        self.trunk, self.tags, self.between, self.checked = trunk, tags, between, checked
        self.status: Status | None = None
        """What the verifier found; None if the rollout is not checked."""
        self.turns: list[tuple[Request, Completion, tuple[str, ...]]] = []
        self.solution = Solution(pieces=(), ended=False)

    def rollout(self) -> RolloutSteps:
        """Sample to the end. Raises `FlowError` for a turn that the flow is not allowed to take."""
        state = self.flow.start(self.problem)
        while (turn := self.flow.turn(state)) is not None:
            depth = len(self.turns)
            check_turn(self.flow, turn, depth, self.problem)
            sampling = self.turn_sampling.for_turn(turn, trunk=self.trunk)
            sampled = yield from sample(SampleRequest(turn=turn, sampling=sampling, seed=derive(self.seed, depth)))
            self.turns.append((sampled.request, sampled.completion, (*self.flow.tags(state), *self.tags)))
            state = self.flow.advance(state, sampled.completion)
            if self.between is not None:
                state = self.between(state)
        seed = derive(self.seed, len(self.turns))
        self.solution = yield from self.turn_sampling.solution(self.flow, state, trunk=self.trunk, seed=seed)
        if self.checked:
            verdict = yield from verify(self.problem, self.solution)
            self.status = verdict.status
        else:
            yield Finished(problem=self.problem, solution=self.solution)

    @property
    def right(self) -> bool:
        """Whether the verifier found the solution right."""
        return self.status == "correct"

    def add_to(self, tree: Tree) -> int:
        """Add the rollout below the tree's root, and return its rollout id."""
        if not self.turns:
            raise FlowError(f"{type(self.flow).__name__} ended a rollout of {self.problem.id} without a turn")
        return tree.add_rollout(None, self.turns, self.solution)
