"""A flow: the roles' turn-taking on one problem, as a pure state machine.

It needs no engine, no tokenizer, no clock and no randomness, so branching at a state is free and tests need no model:

    state = flow.start(problem)
    while (turn := flow.turn(state)) is not None:
        state = flow.advance(state, sampled_for(turn))
    flow.solution(state)

`core.tree` and `core.explore` rely on five rules: states are immutable; `turn` always returns the same turn for a
state; a turn names a declared role; sampled token ids are passed on unchanged; every rollout ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from flow_dpo.core.errors import FlowError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Role, Solution, Turn

StateT = TypeVar("StateT")
_MOST_TURNS = 10_000
"""A flow that makes more turns than this in one rollout has broken the rule that every rollout ends."""


class Flow(ABC, Generic[StateT]):
    """Roles taking turns on one problem. A subclass is a frozen dataclass whose fields are its settings."""

    roles: ClassVar[tuple[Role, ...]]
    """Every role that takes turns; each gets its own adapter."""

    @abstractmethod
    def start(self, problem: Problem) -> StateT:
        """The state before the first turn."""

    @abstractmethod
    def turn(self, state: StateT) -> Turn | None:
        """The next turn, or None if the rollout has ended."""

    @abstractmethod
    def advance(self, state: StateT, completion: Completion) -> StateT:
        """The state after `state`'s turn was sampled as `completion`."""

    @abstractmethod
    def solution(self, state: StateT) -> Solution:
        """What has been written so far."""

    def closing(self, state: StateT) -> Turn | None:
        """A turn of one more token if the rollout ended in the middle of a text, to tell a whole answer from a cut one.
        Its completion goes to `advance`, but is not a node of the tree."""
        return None

    def tags(self, state: StateT) -> tuple[str, ...]:
        """Tags to record with the turn at `state`, such as ("finished",)."""
        return ()

    def evidence(self, tree: Tree) -> list[dict[str, Any]]:
        """What `calibrated` can learn from a graded tree, as rows of JSON values."""
        return []

    def calibrated(self, evidence: Sequence[Mapping[str, Any]]) -> Flow[StateT]:
        """The flow with its settings fitted to the evidence of earlier problems; by default, the flow itself."""
        return self

    def calibration(self) -> dict[str, float]:
        """The settings that `calibrated` sets, by name, for the record."""
        return {}


def check_turn(flow: Flow[Any], turn: Turn, num_turns: int, problem: Problem) -> None:
    """Raise `FlowError` for a turn of an undeclared role, or one beyond the limit of turns in a rollout."""
    name = type(flow).__name__
    if turn.role not in flow.roles:
        raise FlowError(
            f"{name} made a turn of role {turn.role!r}, at turn {num_turns} of {problem.id}; it declares only "
            f"{list(flow.roles)}"
        )
    if num_turns >= _MOST_TURNS:
        raise FlowError(f"{name} has made {num_turns} turns on {problem.id}; every rollout must end")
