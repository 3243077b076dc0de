"""The plain flow: one role writes the whole solution in one completion.

One turn, one completion, up to the longest allowed: plain inference, the baseline for every other flow.

    answer [5 6 7 8 9 E]     solution 5 6 7 8 9, ended
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from flow_dpo.core.answer_stop import ANSWER, RolePrompts, answer_messages
from flow_dpo.core.errors import expect
from flow_dpo.core.flow import Flow
from flow_dpo.core.types import Completion, Problem, Role, Solution, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleState:
    """A problem, and the completion once there is one."""

    problem: Problem
    completion: Completion | None = None


@dataclass(frozen=True, kw_only=True)
class Single(Flow[SingleState]):
    """One Answer role, one turn."""

    max_tokens: int = 960
    """Longest answer, in tokens; the default is what the Flow-DPO paper's flow can write in all."""
    prompts: RolePrompts = field(default_factory=RolePrompts)

    roles: ClassVar[tuple[Role, ...]] = (ANSWER,)

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "max_tokens")

    def start(self, problem: Problem) -> SingleState:
        return SingleState(problem=problem)

    def turn(self, state: SingleState) -> Turn | None:
        if state.completion is not None:
            return None
        return Turn(role=ANSWER, messages=answer_messages(self.prompts, state.problem), max_tokens=self.max_tokens)

    def advance(self, state: SingleState, completion: Completion) -> SingleState:
        return SingleState(problem=state.problem, completion=completion)

    def solution(self, state: SingleState) -> Solution:
        if state.completion is None:
            return Solution(pieces=(), ended=False)
        return Solution(pieces=(state.completion.content_ids,), ended=state.completion.ended)
