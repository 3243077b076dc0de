"""Generate, verify, refine: one role solves, one criticises, one answers in the light of both.

MALT's flow (arXiv 2412.01928): three turns by three roles, and so three adapters on one base model:

    generate  "12 + 7 = 18. Answer: 18"
    verify    reads the question and the solution     "12 + 7 is 19, not 18."
    refine    reads the question and both texts       "12 + 7 = 19. Answer: 19"       the solution

Invariant: each role reads the very ids that the others sampled, without their end tokens, and the last role writes the
whole solution.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from flow_dpo.core.answer_stop import RolePrompts, WorkedExample, answer_messages
from flow_dpo.core.errors import expect
from flow_dpo.core.flow import Flow
from flow_dpo.core.prompts import check_gaps, fill
from flow_dpo.core.types import Completion, Message, Piece, Problem, Role, Solution, TokenIds, Turn

GENERATE: Role = "generate"
VERIFY: Role = "verify"
REFINE: Role = "refine"


@dataclass(frozen=True, kw_only=True)
class RefinePrompts:
    """The prompts of the three roles, in our own words, not the paper's. `{question}` is the problem, `{solution}` what
    was generated and `{critique}` what was said about it, as the very tokens that were sampled."""

    generate_system: str = RolePrompts.answer_system
    generate_user: str = "{question}"
    verify_system: str = (
        "You check a solution of a math problem. Go through it step by step and say which steps are right and which "
        "are wrong, and why. Do not solve the problem again."
    )
    verify_user: str = "Problem:\n{question}\n\nSolution:\n{solution}\n\nCheck this solution step by step."
    refine_system: str = (
        "You are given a math problem, a solution and a critique of it. Keep what is right, mend what is wrong, and "
        'write the whole solution. End with a last line of the form "Answer: " followed by the final answer alone.'
    )
    refine_user: str = (
        "Problem:\n{question}\n\nSolution:\n{solution}\n\nCritique:\n{critique}\n\nWrite the final solution."
    )
    refine_start: str = ""
    """What the refining turn has already written when it begins; it is not part of the solution."""
    examples: tuple[WorkedExample, ...] = ()
    """Worked examples, as chat turns before the generating role's question."""

    def __post_init__(self) -> None:
        question, known = ("question",), ("question", "solution", "critique")
        needs = {"generate_user": question, "verify_user": ("question", "solution"), "refine_user": question,
                 "refine_start": ()}  # fmt: skip
        check_gaps(self, needs, known)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineState:
    """A problem, and what each role has written."""

    problem: Problem
    written: tuple[TokenIds, ...] = ()
    ended: bool = False
    """Whether the last role to write sampled its end token."""


@dataclass(frozen=True, kw_only=True)
class GenerateVerifyRefine(Flow[RefineState]):
    """One solution, one critique, one final solution."""

    max_tokens: int = 1024
    """Longest solution of the generating and of the refining role, in tokens."""
    critique_tokens: int = 512
    """Longest critique, in tokens."""
    prompts: RefinePrompts = field(default_factory=RefinePrompts)

    roles: ClassVar[tuple[Role, ...]] = (GENERATE, VERIFY, REFINE)

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "max_tokens", "critique_tokens")

    def start(self, problem: Problem) -> RefineState:
        return RefineState(problem=problem)

    def turn(self, state: RefineState) -> Turn | None:
        if len(state.written) == len(self.roles):
            return None
        role, prompts = self.roles[len(state.written)], self.prompts
        if role == GENERATE:
            plain = RolePrompts(
                answer_system=prompts.generate_system, answer_user=prompts.generate_user, examples=prompts.examples
            )
            return Turn(role=role, messages=answer_messages(plain, state.problem), max_tokens=self.max_tokens)
        if role == VERIFY:
            messages = self._messages(prompts.verify_system, prompts.verify_user, state)
            return Turn(role=role, messages=messages, max_tokens=self.critique_tokens)
        messages = self._messages(prompts.refine_system, prompts.refine_user, state)
        start = fill(prompts.refine_start, self._known(state))
        return Turn(role=role, messages=messages, continuation=start, max_tokens=self.max_tokens)

    def advance(self, state: RefineState, completion: Completion) -> RefineState:
        return replace(state, written=(*state.written, completion.content_ids), ended=completion.ended)

    def solution(self, state: RefineState) -> Solution:
        done = len(state.written) == len(self.roles)
        return Solution(pieces=state.written[-1:] if done else (), ended=done and state.ended)

    def _messages(self, system: str, user: str, state: RefineState) -> tuple[Message, ...]:
        own = Message(role="user", content=fill(user, self._known(state)))
        return (Message(role="system", content=(system,)), own)

    def _known(self, state: RefineState) -> dict[str, tuple[Piece, ...]]:
        names = ("solution", "critique")
        known: dict[str, tuple[Piece, ...]] = {"question": (state.problem.question,), "solution": (), "critique": ()}
        return known | {name: (ids,) for name, ids in zip(names, state.written, strict=False) if ids}
