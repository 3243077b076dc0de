"""Plan and solve: one role writes a plan step by step, another carries it out.

Plan writes the steps of a plan, one line per turn, until it samples its end token or reaches the cap; then Answer
writes the whole solution in one turn (Critical Plan Step Learning, arXiv 2409.08642). Each plan step is a decision of
its own, so an exploration can branch there:

    plan "Count the apples.\\n"   plan "Take away those sold." E   answer "12 + 7 = 19 ... Answer: 14" E

With `value_role` a third role chooses after every plan step whether the plan so far will end right, Yes or No. Its
choice enters no prompt. The probability of Yes gives the value of the state to a search that stops there instead of
continuing to the end (`explore.valued_by`).

Invariant: the solution's prompt has the very ids of the plan; the plan's end token enters no prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import (
    ClassVar,  # noqa: F401  (the parser of settings resolves the annotations of Flow by this module's names)
    Literal,
)

from flow_dpo.core.errors import expect
from flow_dpo.core.flow import Flow
from flow_dpo.core.prompts import check_gaps
from flow_dpo.core.types import Completion, Message, Piece, Problem, Role, Solution, TokenIds, Turn

PLAN: Role = "plan"
VALUE: Role = "value"
ANSWER: Role = "answer"
_GAP = "{question}"


@dataclass(frozen=True, kw_only=True)
class WorkedPlan:
    """A worked question, as chat turns before the problem's: for Plan with the plan, for Answer with the solution."""

    question: str
    plan: str
    solution: str


@dataclass(frozen=True, kw_only=True)
class PlanSolvePrompts:
    """The prompts of all roles: built like the authors' (mcts_plan/prompt.py), in our words. Their one prompt asks for
    two sections, numbered plan steps and an implementation that follows them; here each section is a role's."""

    plan_system: str = (
        "You are good at reasoning and planning. Plan how to solve the problem before it is solved. Write numbered "
        'steps, one on each line: "Plan 1: ...", "Plan 2: ...". A step may pick out what is given, pose a part of the '
        "question, or look at the problem from a new side. Each step has to add an insight of its own; leave out what "
        "is general or vague. Stop after the last step, without solving anything."
    )
    plan_user: str = "{question}"
    """`{question}` stands for the problem."""
    solve_system: str = (
        "You are a helpful math assistant. Carry out the plan: number your steps as it does, and give each in detail. "
        'End with a last line of the form "Answer: " followed by the final answer alone.'
    )
    solve_user: str = "Problem:\n{question}\n\nPlan:\n{plan}\n\nSolve the problem by following this plan."
    """`{plan}` stands for the plan's very ids. If this is empty, Answer continues where Plan stopped: the plan is then
    the beginning of the solution, and a plan that ends is a whole solution."""
    examples: tuple[WorkedPlan, ...] = ()
    """Worked questions; the authors' prompt has two. The value role sees none, like their value model."""
    value_system: str = (
        'You can only answer "Yes" or "No". You judge whether the beginning of a plan leads to the answer.'
    )
    """System prompt of the role that predicts how a plan will end, if there is one."""
    value_user: str = (
        "Problem:\n{question}\n\nPlan so far:\n{plan}\n\nWill following this plan lead to the correct answer? "
        "Answer only Yes or No."
    )
    yes: str = "Yes"
    no: str = "No"

    def __post_init__(self) -> None:
        solve = {"solve_user": ("question", "plan")} if self.solve_user else {}
        check_gaps(self, {"plan_user": ("question",), "value_user": ("plan",), **solve}, ("question",))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSolveState:
    """The state of a rollout."""

    problem: Problem
    plan: tuple[TokenIds, ...] = ()
    num_steps: int = 0
    solution: TokenIds = ()
    ended: bool = False
    too_long: bool = False
    """Whether the plan had more steps than are allowed."""
    next_role: Literal["plan", "value", "answer"] | None = "plan"
    after_value: Literal["plan", "value", "answer"] | None = None
    """The role that takes its turn after the value role."""


@dataclass(frozen=True, kw_only=True)
class PlanSolve(Flow[PlanSolveState]):
    """A plan, line by line, and then a solution. A path has at most six turns by default, as in the paper."""

    plan_tokens: int = 256
    """Longest plan step, in tokens; a step ends earlier with its line. The authors' is 1,500, as for a solution."""
    max_plan_steps: int = 5
    """Most plan steps; with 5 and the solution a path has the authors' depth of 6."""
    long_plan: Literal["wrong", "solve"] = "wrong"
    """What becomes of a plan that does not end after `max_plan_steps`: "wrong", the next step makes the rollout wrong
    whatever it holds (it has no solution), as in the authors' code; "solve", it is solved as it stands."""
    max_tokens: int = 1500
    """Longest solution, in tokens; the authors' is 1,500 (configs/mcts_round1.yaml)."""
    value_role: bool = False
    """Whether a role predicts after every plan step if the plan will end right. The prediction changes no rollout."""
    prompts: PlanSolvePrompts = field(default_factory=PlanSolvePrompts)

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "plan_tokens", "max_plan_steps", "max_tokens")

    @property
    def roles(self) -> tuple[Role, ...]:
        return (PLAN, VALUE, ANSWER) if self.value_role else (PLAN, ANSWER)

    def start(self, problem: Problem) -> PlanSolveState:
        return PlanSolveState(problem=problem)

    def turn(self, state: PlanSolveState) -> Turn | None:
        if state.next_role == "plan":
            return Turn(
                role=PLAN,
                messages=self._plan_messages(state.problem),
                continuation=state.plan,
                max_tokens=self.plan_tokens,
                one_line=True,
            )
        if state.next_role is None:
            return None
        prompts = self.prompts
        if state.next_role == "value":
            messages = self._about_the_plan(prompts.value_system, prompts.value_user, state)
            return Turn(role=VALUE, messages=messages, choices=(prompts.yes, prompts.no))
        if not prompts.solve_user:
            messages, continuation = self._plan_messages(state.problem), state.plan
        else:
            messages, continuation = self._solve_messages(state), ()
        return Turn(role=ANSWER, messages=messages, continuation=continuation, max_tokens=self.max_tokens)

    def advance(self, state: PlanSolveState, completion: Completion) -> PlanSolveState:
        if state.next_role == "value":
            return replace(state, next_role=state.after_value, after_value=None)
        ended = completion.ended
        content = completion.content_ids
        if state.next_role == "answer":
            return replace(state, solution=content, ended=ended, next_role=None)
        plan = (*state.plan, content) if content else state.plan
        num_steps = state.num_steps + 1
        if content and num_steps > self.max_plan_steps:  # the cap is exceeded
            return replace(state, plan=plan, num_steps=num_steps, next_role=None, too_long=True)
        if ended and not self.prompts.solve_user:
            return replace(state, plan=plan, num_steps=num_steps, ended=True, next_role=None)
        is_whole = ended or (num_steps == self.max_plan_steps and self.long_plan == "solve")
        next_role = "answer" if is_whole else "plan"
        if self.value_role:
            return replace(state, plan=plan, num_steps=num_steps, next_role="value", after_value=next_role)
        return replace(state, plan=plan, num_steps=num_steps, next_role=next_role)

    def solution(self, state: PlanSolveState) -> Solution:
        if state.too_long:
            return Solution(pieces=(), ended=False)
        before: tuple[Piece, ...] = () if self.prompts.solve_user else state.plan
        own: tuple[Piece, ...] = (state.solution,) if state.solution else ()
        return Solution(pieces=before + own, ended=state.ended)

    def _plan_messages(self, problem: Problem) -> tuple[Message, ...]:
        prompts = self.prompts
        shown = [(prompts.plan_user.replace(_GAP, each.question), each.plan) for each in prompts.examples]
        question = prompts.plan_user.replace(_GAP, problem.question)
        return (
            Message(role="system", content=(prompts.plan_system,)),
            *_as_chat(shown),
            Message(role="user", content=(question,)),
        )

    def _solve_messages(self, state: PlanSolveState) -> tuple[Message, ...]:
        prompts = self.prompts
        before, _, after = prompts.solve_user.partition("{plan}")
        shown = [
            (f"{before.replace(_GAP, each.question)}{each.plan}{after.replace(_GAP, each.question)}", each.solution)
            for each in prompts.examples
        ]
        system, user = self._about_the_plan(prompts.solve_system, prompts.solve_user, state)
        return (system, *_as_chat(shown), user)

    def _about_the_plan(self, system: str, template: str, state: PlanSolveState) -> tuple[Message, ...]:
        # Split before the question goes in: a question can contain the text "{plan}".
        before, _, after = template.partition("{plan}")
        content: tuple[Piece, ...] = (
            before.replace(_GAP, state.problem.question),
            *state.plan,
            after.replace(_GAP, state.problem.question),
        )
        return (Message(role="system", content=(system,)), Message(role="user", content=content))


def _as_chat(shown: Sequence[tuple[str, str]]) -> Iterator[Message]:
    """Worked examples as turns of a user and an assistant."""
    for user, assistant in shown:
        yield Message(role="user", content=(user,))
        yield Message(role="assistant", content=(assistant,))
