"""Solve, critique, revise: a flow of three roles (docs/flows.md walks through it)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from flow_dpo.core.flow import Flow
from flow_dpo.core.types import Completion, Message, Piece, Problem, Role, Solution, Turn


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a rollout."""

    problem: Problem
    solution: tuple[Piece, ...] = ()
    ended: bool = False
    next_role: Literal["solve", "critique", "revise"] | None = "solve"


@dataclass(frozen=True, kw_only=True)
class Critique(Flow[State]):
    """One solution, one verdict, and a second solution if the verdict is No."""

    solution_tokens: int = 64
    """Longest solution, in tokens."""

    roles: ClassVar[tuple[Role, ...]] = ("solve", "critique", "revise")

    def start(self, problem: Problem) -> State:
        return State(problem=problem)

    def turn(self, state: State) -> Turn | None:
        question = state.problem.question
        if state.next_role == "solve":
            messages = (Message(role="user", content=(question,)),)
            return Turn(role="solve", messages=messages, max_tokens=self.solution_tokens)
        read: tuple[Piece, ...] = (f"{question}\n\n", *state.solution)
        if state.next_role == "critique":
            messages = (Message(role="user", content=(*read, "\n\nIs this solution right?")),)
            return Turn(role="critique", messages=messages, choices=("Yes", "No"))
        if state.next_role == "revise":
            messages = (Message(role="user", content=(*read, "\n\nThis is wrong. Solve the problem again.")),)
            return Turn(role="revise", messages=messages, max_tokens=self.solution_tokens)
        return None

    def advance(self, state: State, completion: Completion) -> State:
        if state.next_role == "critique":
            return replace(state, next_role=None if completion.choice == 0 else "revise")
        written = replace(state, solution=(completion.content_ids,), ended=completion.ended)
        return replace(written, next_role="critique" if state.next_role == "solve" else None)

    def solution(self, state: State) -> Solution:
        return Solution(pieces=state.solution, ended=state.ended)
