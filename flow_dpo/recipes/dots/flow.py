"""DOTS' flow: a planner chooses a trajectory of modules, and the modules carry it out.

DOTS (arXiv 2410.03864): a way consists of an analysis (none, rewrite the question, decompose it), a solution (reasoning
in words, CoT, or a program, PoT) and a verification (none, or self-verification): 12 ways. The planner explains which
way suits the question and then names it, as one of the declared choices:

    plan     "There are two quantities, so ..."     plan   D, which is rewrite+cot+verify
    answer   the question in other words            answer "... Answer: 14"
    answer   a check of that                        answer "incorrect", one of two declared choices
    answer   "... Answer: 15", only because the first was found incorrect; a solution found correct stands

A program is not run here, because a flow evaluates nothing: `awaiting` returns what is to be run, and an exploration
that is allowed to run programs passes the result to `with_output`. Without that a program's solution has no answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from flow_dpo.core.answer_stop import ANSWER, AnswerStopPrompts, answer_messages
from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.flow import Flow
from flow_dpo.core.prompts import check_gaps, fill
from flow_dpo.core.types import Completion, Message, Piece, Problem, Role, Solution, Turn

PLAN: Role = "plan"
Analysis = Literal["none", "rewrite", "decompose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One way to solve a problem."""

    analysis: Analysis = "none"
    program: bool = False
    verify: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of its modules, in order."""
        analysis = () if self.analysis == "none" else (self.analysis,)
        return (*analysis, "pot" if self.program else "cot", *(("verify",) if self.verify else ()))

    @property
    def name(self) -> str:
        """Its name, such as "decompose+cot+verify"."""
        return "+".join(self.modules)


_ANALYSES: tuple[Analysis, ...] = ("none", "rewrite", "decompose")
TRAJECTORIES = tuple(
    Trajectory(analysis=analysis, program=program, verify=verify)
    for program in (False, True)
    for analysis in _ANALYSES
    for verify in (False, True)
)
"""All 12 ways; the first six need no program."""


@dataclass(frozen=True, kw_only=True)
class ModuleWords:
    """The prompts of the modules, in our own words, not the paper's. `{question}` is the problem, `{analysis}`,
    `{draft}` and `{explanation}` are what was written before, `{ways}` is the list of choices."""

    plan: str = (
        "Problem:\n{question}\n\nThese ways to solve it can be taken:\n{ways}\n\n"
        "Explain in two sentences which of them suits this problem. Do not solve it."
    )
    choose: str = (
        "Problem:\n{question}\n\nThese ways to solve it can be taken:\n{ways}\n\n{explanation}\n\n"
        "Which way is taken? Answer with its letter alone."
    )
    rewrite: str = (
        "{question}\n\nWrite this problem again, clearer and shorter, with nothing left out. Do not solve it."
    )
    decompose: str = "{question}\n\nList the smaller questions that have to be answered first. Do not answer them."
    rewritten: str = "\n\nIn other words:\n{analysis}"
    """Follows the question in the plain prompt of a solution, after a rewriting."""
    parts: str = "\n\nAnswer these questions first:\n{analysis}"
    """Follows the question there after a decomposition."""
    program: str = (
        "{question}{analysed}\n\nWrite a short Python program that calculates and prints the answer alone. Only the "
        "modules math, fractions, itertools and statistics can be imported."
    )
    """`{analysed}` is `rewritten`, `parts` or nothing."""
    verify: str = (
        "Problem:\n{question}\n\nProposed solution:\n{draft}\n\nSuppose that its final answer is right, ask a new "
        "question about the problem on that ground, and see whether there is a contradiction. Do not solve it again."
    )
    verdict: str = (
        "Problem:\n{question}\n\nProposed solution:\n{draft}\n\nCheck of it:\n{check}\n\nIs the proposed solution "
        "correct or incorrect? Answer with that word alone."
    )
    again: str = (
        "Problem:\n{question}\n\nThis solution was found to be incorrect:\n{draft}\n\nCheck of it:\n{check}\n\n"
        "Solve the problem again, step by step, without that mistake. End with a last line of the form "
        '"Answer: " followed by the final answer alone.'
    )

    def __post_init__(self) -> None:
        needs = {name: () if name in ("rewritten", "parts") else ("question",) for name in vars(self)}
        check_gaps(self, needs, ("ways", "explanation", "analysis", "analysed", "draft", "check"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedState:
    """What has been planned, analysed, solved, run and verified so far."""

    problem: Problem
    explanation: tuple[Piece, ...] | None = None
    trajectory: Trajectory | None = None
    analysis: tuple[Piece, ...] | None = None
    draft: Completion | None = None
    result: str = ""
    """What the first draft's program printed, as a closed last line."""
    check: tuple[Piece, ...] | None = None
    """The verification of the draft."""
    again: bool = False
    """Whether the draft was found incorrect, so another one is written."""
    given_up: tuple[tuple[Piece, ...], ...] = ()
    """The drafts before the current one."""
    settled: bool = False
    """Whether the draft is the solution."""


@dataclass(frozen=True, kw_only=True)
class Planned(Flow[PlannedState]):
    """A planner, and the way that it chooses."""

    max_tokens: int = 960
    """Longest solution, program or verification, in tokens."""
    explanation_tokens: int = 256
    """Longest explanation and longest analysis, in tokens."""
    programs: bool = False
    """Whether the six ways with a program are among the choices. Their programs, which the model wrote, are RUN, in a
    child process without files, network or other processes. Off by default."""
    fixed: str = ""
    """The name of a way that is taken without a planner, such as "decompose+cot+verify"."""
    labels: tuple[str, ...] = tuple("ABCDEFGHIJKL")
    """Words that name the ways; each begins with a different token."""
    verdicts: tuple[str, str] = ("correct", "incorrect")
    """The two words that end a verification, each beginning with a different token."""
    max_again: int = 1
    """How often a solution is written again because its verification says "incorrect"; the authors' code has 1."""
    prompts: AnswerStopPrompts = field(default_factory=AnswerStopPrompts)
    """The prompts of plain solutions."""
    module_words: ModuleWords = field(default_factory=ModuleWords)

    roles: ClassVar[tuple[Role, ...]] = (PLAN, ANSWER)
    longest_output: ClassVar[int] = 200
    """Longest line, in bytes, that a program's answer can be: prompts that contain it must fit the context window."""

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "max_tokens", "explanation_tokens", "max_again")
        num = len(self.trajectories)
        if len(set(self.labels)) < max(num, len(self.labels)):
            raise ConfigError(f"expected {num} different labels, one for each way, found {list(self.labels)}")
        if self.fixed and self.fixed not in [t.name for t in TRAJECTORIES]:
            raise ConfigError(
                f"expected fixed to name a way, found {self.fixed!r}; there are {[t.name for t in TRAJECTORIES]}"
            )
        if self.fixed and "pot" in self.fixed.split("+") and not self.programs:
            raise ConfigError(f"the way {self.fixed} runs programs that the model writes; ask for that with --programs")

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The ways that can be taken, in the order of their labels."""
        return tuple(t for t in TRAJECTORIES if self.programs or not t.program)

    def start(self, problem: Problem) -> PlannedState:
        fixed = next((t for t in TRAJECTORIES if t.name == self.fixed), None)
        return PlannedState(problem=problem, trajectory=fixed)

    def turn(self, state: PlannedState) -> Turn | None:
        way, words = state.trajectory, self.module_words
        if way is None:
            if state.explanation is None:
                return self._ask(PLAN, words.plan, state, self.explanation_tokens)
            return replace(self._ask(PLAN, words.choose, state, 1), choices=self.labels[: len(self.trajectories)])
        if way.analysis != "none" and state.analysis is None:
            template = words.rewrite if way.analysis == "rewrite" else words.decompose
            return self._ask(ANSWER, template, state, self.explanation_tokens)
        if state.draft is None:
            if way.program:
                return self._ask(ANSWER, words.program, state, self.max_tokens)
            *before, last = answer_messages(self.prompts, state.problem)
            last = replace(last, content=(*last.content, *self._analysed(state)))
            return Turn(role=ANSWER, messages=(*before, last), max_tokens=self.max_tokens)
        if not way.verify or state.settled:
            return None
        if state.check is None:
            return self._ask(ANSWER, words.verify, state, self.max_tokens)
        if not state.again:
            return replace(self._ask(ANSWER, words.verdict, state, 1), choices=self.verdicts)
        return self._ask(ANSWER, words.again, state, self.max_tokens)

    def advance(self, state: PlannedState, completion: Completion) -> PlannedState:
        if state.trajectory is None:
            if state.explanation is None:
                return replace(state, explanation=(completion.content_ids,))
            return replace(state, trajectory=self.trajectories[completion.choice or 0])
        if state.trajectory.analysis != "none" and state.analysis is None:
            return replace(state, analysis=(completion.content_ids,))
        if state.draft is None:
            return replace(state, draft=completion)
        if state.check is None:
            return replace(state, check=(completion.content_ids,))
        if not state.again:
            wrong = completion.choice == 1
            return replace(state, again=wrong, settled=not wrong)
        given_up = (*state.given_up, self._draft(state))
        settled = len(given_up) >= self.max_again
        return replace(state, draft=completion, given_up=given_up, check=None, again=False, settled=settled)

    def solution(self, state: PlannedState) -> Solution:
        before = tuple(piece for draft in state.given_up for piece in (*draft, "\n\n"))
        # A program is finished by what it prints, not by its own end.
        ended = state.draft is not None and state.draft.ended and not self._is_program(state)
        return Solution(pieces=(*before, *self._draft(state)), ended=ended, attempt_start=len(before))

    def tags(self, state: PlannedState) -> tuple[str, ...]:
        return () if state.trajectory is None else (state.trajectory.name,)

    def awaiting(self, state: PlannedState) -> tuple[Piece, ...]:
        """The text of a program that must be run before the rollout continues; empty if there is none."""
        waits = self._is_program(state) and not state.result
        return (state.draft.content_ids,) if waits and state.draft else ()

    def with_output(self, state: PlannedState, *, output: str, reason: str) -> PlannedState:
        """The state once the program has run: its last line is the answer; one that failed, or whose last line is too
        long, has none."""
        lines = output.strip().splitlines()
        if reason or not lines or len(lines[-1].strip().encode()) > self.longest_output:
            # Without the reason, or any word that introduces an answer: the verifier reads this.
            return replace(state, result="\n\nThe program failed.")
        return replace(state, result=f"\n\nThe program prints its answer.\nAnswer: {lines[-1].strip()}\n")

    def _ask(self, role: Role, template: str, state: PlannedState, max_tokens: int) -> Turn:
        ways = zip(self.labels, self.trajectories, strict=False)
        values: dict[str, tuple[Piece, ...]] = {
            "question": (state.problem.question,),
            "ways": ("\n".join(f"{label}: {', then '.join(_MEANINGS[m] for m in t.modules)}" for label, t in ways),),
            "explanation": state.explanation or (),
            "analysis": state.analysis or (),
            "analysed": self._analysed(state),
            "draft": self._draft(state),
            "check": state.check or (),
        }
        return Turn(role=role, messages=(Message(role="user", content=fill(template, values)),), max_tokens=max_tokens)

    def _analysed(self, state: PlannedState) -> tuple[Piece, ...]:
        if state.analysis is None or state.trajectory is None:
            return ()
        words = self.module_words.rewritten if state.trajectory.analysis == "rewrite" else self.module_words.parts
        return fill(words, {"analysis": state.analysis})

    def _is_program(self, state: PlannedState) -> bool:
        """Whether the draft is a program; a draft that is written again is in words."""
        return state.trajectory is not None and state.trajectory.program and not state.given_up

    def _draft(self, state: PlannedState) -> tuple[Piece, ...]:
        if state.draft is None:
            return ()
        run = self._is_program(state) and state.result
        return (state.draft.content_ids, state.result) if run else (state.draft.content_ids,)


_MEANINGS = {
    "rewrite": "say the problem in other words",
    "decompose": "split the problem into smaller questions",
    "cot": "reason step by step",
    "pot": "write a program",
    "verify": "check the solution, and solve again what is incorrect",
}
