"""A flow of attempts: Answer writes a whole solution, and Stop accepts it or has Answer start again.

Answer writes an attempt in chunks; Stop is asked only once an attempt has ended. An attempt is accepted if its P(right)
exceeds a threshold: P(right) is Stop's P(Yes), or is computed from it and the attempt's own likelihood (`judgement`).
Otherwise the next attempt begins from the question. If none is accepted, the one with the highest P(right) answers.
With chunks of 3 tokens and E the end token:

    answer [5 6 7]  answer [8 9 E]  stop .31 No    answer [5 4 1]  answer [2 E]  stop .88 Yes      solution 5 4 1 2
    answer [5 6 7]  answer [8 9 1]  (cut)          answer [5 4 E]  stop .20 No   (no more)         solution 5 4

Invariants: every attempt that ended is judged, whichever token it ended with: one that fills its chunk ends with the
first token of the next, and the last chunk is one token longer. An attempt that was cut is never judged. The first
attempt is sampled as the exploration says; later ones are never greedy, since a greedy one would repeat the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from flow_dpo.core.answer_stop import ANSWER, STOP, RolePrompts, answer_messages, stop_messages
from flow_dpo.core.errors import expect
from flow_dpo.core.flow import Flow
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Message, Piece, Problem, Role, Solution, Turn
from flow_dpo.recipes.flow_dpo.credit import attempt_evidence
from flow_dpo.recipes.flow_dpo.judgement import Evidence, Judgement, calibrate


@dataclass(frozen=True, kw_only=True)
class AttemptsPrompts(RolePrompts):
    """The prompts of both roles."""

    retry: str = "That answer is wrong. Solve the problem again, in a different way."
    """Message after a refused attempt in Answer's chat, if `flow.retry` is "shown"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a solution."""

    pieces: tuple[Piece, ...] = ()
    num_chunks: int = 0
    ended: bool = False
    """Whether Answer sampled its end token."""
    logprob: float = 0.0
    """Log-probability of all its sampled tokens under Answer, in nats."""
    num_tokens: int = 0
    log_odds: float = -math.inf
    """Log-odds that it is right; minus infinity, less than any other, if it was not judged."""

    @property
    def mean_logprob(self) -> float:
        """Log-probability per token, in nats."""
        return self.logprob / max(self.num_tokens, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptsState:
    """The state of a rollout."""

    problem: Problem
    refused: tuple[Attempt, ...] = ()
    """Attempts that Stop refused, or that were cut."""
    attempt: Attempt = Attempt()
    """The current attempt; once the rollout has ended, the one that answers."""
    next_role: Literal["answer", "stop"] | None = "answer"


@dataclass(frozen=True, kw_only=True)
class Attempts(Flow[AttemptsState]):
    """Attempts by Answer, each judged by Stop when it has ended."""

    chunk_tokens: int = 160
    """Longest chunk of the Answer role, in tokens."""
    max_chunks: int = 6
    """Most chunks of one attempt."""
    max_attempts: int = 4
    """Most attempts of one rollout, including those that were cut. With 1, Stop judges, but nothing is tried again."""
    threshold: float | None = 0.5
    """An attempt is accepted if its P(right) exceeds this; with None Stop's choice is sampled instead."""
    judgement: Judgement = field(default_factory=Judgement)
    """How P(right) is computed; by default it is Stop's P(Yes)."""
    calibrate: bool = True
    """While a run learns, set judgement and threshold from the verdicts on attempts at earlier problems."""
    least_gain: float = 0.02
    """How much P(right) a further attempt must be expected to add to be worth its tokens; calibrates the threshold."""
    answers: Literal["best", "last"] = "best"
    """Which attempt answers if none was accepted: the one with the highest P(right), or the last."""
    retry: Literal["fresh", "shown"] = "fresh"
    """What a later attempt sees: only the question, or also the attempt that was refused last."""
    prompts: AttemptsPrompts = field(default_factory=AttemptsPrompts)

    roles: ClassVar[tuple[Role, ...]] = (ANSWER, STOP)

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "chunk_tokens", "max_chunks", "max_attempts")
        probabilities = ("least_gain",) if self.threshold is None else ("threshold", "least_gain")
        expect(self, "from 0 to 1", lambda value: 0 <= value <= 1, *probabilities)

    def start(self, problem: Problem) -> AttemptsState:
        return AttemptsState(problem=problem)

    def turn(self, state: AttemptsState) -> Turn | None:
        if state.next_role == "answer":
            return self._answer_turn(state)
        if state.next_role == "stop":
            mean = state.attempt.mean_logprob
            needed = None if self.threshold is None else self.judgement.least_yes(self.threshold, mean)
            return Turn(
                role=STOP,
                messages=stop_messages(self.prompts, state.problem, state.attempt.pieces),
                choices=(self.prompts.yes, self.prompts.no),
                threshold=needed,
            )
        return None

    def advance(self, state: AttemptsState, completion: Completion) -> AttemptsState:
        if state.next_role == "answer":
            attempt = _written(state.attempt, completion)
            if attempt.ended:
                return replace(state, attempt=attempt, next_role="stop")
            if attempt.num_chunks < self.max_chunks:
                return replace(state, attempt=attempt)
            return self._refuse(state, attempt)
        yes, no = completion.choice_logprobs
        right = self.judgement.log_odds(yes - no, state.attempt.mean_logprob)
        attempt = replace(state.attempt, log_odds=right)
        if completion.choice == 0:
            return replace(state, attempt=attempt, next_role=None)
        return self._refuse(state, attempt)

    def solution(self, state: AttemptsState) -> Solution:
        return Solution(pieces=state.attempt.pieces, ended=state.attempt.ended)

    def tags(self, state: AttemptsState) -> tuple[str, ...]:
        attempt = f"attempt {len(state.refused) + 1}"
        return ("finished", attempt) if state.next_role == "stop" else (attempt,)

    def evidence(self, tree: Tree) -> list[dict[str, Any]]:
        return [asdict(one) for one in attempt_evidence(tree)]

    def calibrated(self, evidence: Sequence[Mapping[str, Any]]) -> Attempts:
        if not self.calibrate or self.threshold is None:
            return self
        rows = [Evidence(**row) for row in evidence]
        found = calibrate(rows, least_gain=self.least_gain, recall=self.answers == "best")
        return self if found is None else replace(self, judgement=found[0], threshold=found[1])

    def calibration(self) -> dict[str, float]:
        if self.threshold is None:
            return {}
        weights = {f"judgement.{name}": value for name, value in asdict(self.judgement).items()}
        return {"threshold": self.threshold, **weights}

    def _answer_turn(self, state: AttemptsState) -> Turn:
        messages = answer_messages(self.prompts, state.problem)
        if self.retry == "shown" and state.refused:
            shown = Message(role="assistant", content=state.refused[-1].pieces)
            messages = (*messages, shown, Message(role="user", content=(self.prompts.retry,)))
        last = state.attempt.num_chunks + 1 == self.max_chunks
        return Turn(
            role=ANSWER,
            messages=messages,
            continuation=state.attempt.pieces,
            # Room for the end token of an answer that fills its last chunk.
            max_tokens=self.chunk_tokens + last,
            greedy=False if state.refused else None,
        )

    def _refuse(self, state: AttemptsState, attempt: Attempt) -> AttemptsState:
        """Begin the next attempt, or end with the attempt that answers."""
        refused = (*state.refused, attempt)
        if len(refused) < self.max_attempts:
            return replace(state, refused=refused, attempt=Attempt(), next_role="answer")
        answering = max(refused, key=lambda one: one.log_odds) if self.answers == "best" else attempt
        return replace(state, refused=refused, attempt=answering, next_role=None)


def _written(attempt: Attempt, completion: Completion) -> Attempt:
    """The attempt with one more chunk."""
    content = completion.content_ids
    return replace(
        attempt,
        pieces=(*attempt.pieces, content) if content else attempt.pieces,
        num_chunks=attempt.num_chunks + 1,
        logprob=attempt.logprob + math.fsum(completion.logprobs),
        num_tokens=attempt.num_tokens + len(completion.token_ids),
        ended=completion.ended,
    )
