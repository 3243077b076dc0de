"""The paper's incremental flow: an Answer role writes a solution in chunks, a Stop role ends it.

Answer continues the solution by one chunk, then Stop chooses Yes or No: Yes ends the rollout, No lets Answer continue
(Flow-DPO, arXiv 2410.22304, section 2). With chunks of 3 tokens and E the end token:

    answer [5 6 7]   stop No   answer [8 9 E]   stop Yes            solution 5 6 7 8 9, ended
    answer [5 6 7]   stop No   answer [8 9 E]   stop No  "Wait, ..."  answer [4 4 1]   ...
    answer [5 6 7]   stop Yes  closing [E]                          solution 5 6 7, ended; cut at any other token

The end token never enters later context. After the last chunk allowed Stop gets no turn. If a rollout ends without
Answer's end token, one more token is sampled: a whole answer counts, and the "Answer: 1" of a cut 15 does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from flow_dpo.core.errors import expect
from flow_dpo.core.flow import Flow
from flow_dpo.core.prompts import check_gaps
from flow_dpo.core.types import Completion, Message, Piece, Problem, Role, Solution, Turn

ANSWER: Role = "answer"
STOP: Role = "stop"


@dataclass(frozen=True, kw_only=True)
class WorkedExample:
    """One solved question, shown to Answer as two chat turns before the question."""

    question: str
    solution: str


@dataclass(frozen=True, kw_only=True)
class RolePrompts:
    """The prompts of both roles, in any flow with these roles. The defaults follow the meaning of the paper's prompts,
    whose exact English is not stated."""

    answer_system: str = (
        "You are a helpful math assistant. Explain your reasoning step by step, then solve the problem. "
        'End with a last line of the form "Answer: " followed by the final answer alone.'
    )
    answer_user: str = "{question}"
    """`{question}` stands for the problem."""
    stop_system: str = (
        'You can only answer "Yes" or "No". You are given a problem and a candidate solution. '
        "Decide whether the candidate solution is correct."
    )
    stop_user: str = (
        "Problem:\n{question}\n\nCandidate solution:\n{candidate}\n\n"
        "Is the candidate solution correct? Answer only Yes or No."
    )
    """`{candidate}` stands for the solution so far, spliced in as the tokens that were sampled."""
    yes: str = "Yes"
    no: str = "No"
    examples: tuple[WorkedExample, ...] = ()
    """Worked examples, as chat turns before the question. Small models need two to end their solutions at all."""

    def __post_init__(self) -> None:
        check_gaps(self, {"answer_user": ("question",), "stop_user": ("question", "candidate")})


@dataclass(frozen=True, kw_only=True)
class AnswerStopPrompts(RolePrompts):
    """The prompts of the paper's flow."""

    reopen: str = "\nWait, this is wrong. Let me solve it again in a different way.\n"
    """Fixed text after an ended answer that Stop refused; never scored and never learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStopState:
    """The state of a rollout."""

    problem: Problem
    pieces: tuple[Piece, ...] = ()
    """What Answer has written: sampled ids, and the fixed text that reopened an ended answer."""
    attempt_start: int = 0
    """Index of the first piece after the last text that reopened an ended answer; 0 if none was reopened."""
    num_chunks: int = 0
    ended: bool = False
    """Whether Answer's last chunk ended with its end token or a stop string."""
    next_role: Literal["answer", "stop"] | None = "answer"


@dataclass(frozen=True, kw_only=True)
class AnswerStop(Flow[AnswerStopState]):
    """The paper's flow, with the chunk length and the cap of its section 3.1."""

    chunk_tokens: int = 160
    """Maximum length of a chunk of the Answer role, in tokens."""
    max_chunks: int = 6
    on_refused_end: Literal["reopen", "accept"] = "reopen"
    """What happens to an answer that has ended (not stated in the paper): "reopen" asks Stop, and on No drops the end
    token, adds the prompts' `reopen` text and lets Answer continue; "accept" accepts the answer without asking Stop."""
    prompts: AnswerStopPrompts = field(default_factory=AnswerStopPrompts)

    roles: ClassVar[tuple[Role, ...]] = (ANSWER, STOP)

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "chunk_tokens", "max_chunks")

    def start(self, problem: Problem) -> AnswerStopState:
        return AnswerStopState(problem=problem)

    def turn(self, state: AnswerStopState) -> Turn | None:
        if state.next_role == "answer":
            return self._answer_turn(state)
        if state.next_role == "stop":
            return self._stop_turn(state)
        return None

    def closing(self, state: AnswerStopState) -> Turn | None:
        cut = state.next_role is None and state.num_chunks and not state.ended
        return replace(self._answer_turn(state), max_tokens=1) if cut else None

    def advance(self, state: AnswerStopState, completion: Completion) -> AnswerStopState:
        if state.next_role == "answer":
            return self._after_answer(state, completion)
        if state.next_role is None:
            return _written(state, completion)
        if completion.choice == 0:
            return replace(state, next_role=None)
        if not state.ended:
            return replace(state, next_role="answer")
        pieces = (*state.pieces, self.prompts.reopen)
        return replace(state, pieces=pieces, attempt_start=len(pieces), ended=False, next_role="answer")

    def solution(self, state: AnswerStopState) -> Solution:
        return Solution(pieces=state.pieces, ended=state.ended, attempt_start=state.attempt_start)

    def tags(self, state: AnswerStopState) -> tuple[str, ...]:
        if state.next_role != "stop":
            return ()
        return ("finished",) if state.ended else ("unfinished",)

    def _after_answer(self, state: AnswerStopState, completion: Completion) -> AnswerStopState:
        state = replace(_written(state, completion), num_chunks=state.num_chunks + 1)
        stops = state.num_chunks >= self.max_chunks or (state.ended and self.on_refused_end == "accept")
        return replace(state, next_role=None if stops else "stop")

    def _answer_turn(self, state: AnswerStopState) -> Turn:
        return Turn(
            role=ANSWER,
            messages=answer_messages(self.prompts, state.problem),
            continuation=state.pieces,
            max_tokens=self.chunk_tokens,
        )

    def _stop_turn(self, state: AnswerStopState) -> Turn:
        return Turn(
            role=STOP,
            messages=stop_messages(self.prompts, state.problem, state.pieces),
            choices=(self.prompts.yes, self.prompts.no),
        )


def _written(state: AnswerStopState, completion: Completion) -> AnswerStopState:
    """The state with Answer's completion added to the solution."""
    content = completion.content_ids
    pieces = (*state.pieces, content) if content else state.pieces
    return replace(state, pieces=pieces, ended=completion.ended)


def answer_messages(prompts: RolePrompts, problem: Problem) -> tuple[Message, ...]:
    """The chat before Answer's turn: system message, worked examples, question."""
    messages = [Message(role="system", content=(prompts.answer_system,))]
    for example in prompts.examples:
        question = prompts.answer_user.replace("{question}", example.question)
        messages.append(Message(role="user", content=(question,)))
        messages.append(Message(role="assistant", content=(example.solution,)))
    messages.append(Message(role="user", content=(prompts.answer_user.replace("{question}", problem.question),)))
    return tuple(messages)


def stop_messages(prompts: RolePrompts, problem: Problem, candidate: tuple[Piece, ...]) -> tuple[Message, ...]:
    """The chat in which Stop is asked whether a candidate is right."""
    # Split before the question is filled in: a question can contain the text "{candidate}" itself.
    texts = prompts.stop_user.split("{candidate}")
    before, after = (text.replace("{question}", problem.question) for text in texts)
    return (
        Message(role="system", content=(prompts.stop_system,)),
        Message(role="user", content=(before, *candidate, after)),
    )
