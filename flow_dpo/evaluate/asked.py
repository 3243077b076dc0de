"""The values of an answered question: its settings, the turns that were sampled, and the outcome.

    outcome([answer, stop of P(right) .31, answer, stop of P(right) .88], best=True)
    # (2, True, "its P(right) of 0.88 exceeds the threshold, 0.50")

Invariant: nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flow_dpo.core.types import Role


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """How a question is answered."""

    mode: Literal["flow", "single"] = "flow"
    """"single" is one pass of the Answer role."""
    greedy: bool = True
    """Take the likeliest token; otherwise sample with the exploration's temperature and top-p. A flow of attempts
    samples its second and later attempts in any case."""
    seed: int = 0
    """Another seed can give another answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTurn:
    """One sampled turn of a role."""

    role: Role
    text: str
    """What it wrote, or the word that it chose. Not escaped: for a terminal use `core.errors.visible`."""
    choices: Mapping[str, float] = field(default_factory=dict[str, float])
    """For a turn with declared choices, the probability of each: {"Yes": 0.93, "No": 0.07}."""
    attempt: int = 1
    """The attempt at a solution that the turn belongs to, from 1."""
    right: float | None = None
    """After Stop's turn in a flow of attempts: P(right), which its judgement computes from P(Yes) and the attempt's own
    likelihood."""
    threshold: float | None = None
    """What P(right) must exceed for the attempt to be accepted; None if Stop's choice is sampled."""
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question, what the roles wrote, and the outcome."""

    question: str
    answer: str | None
    """The final answer in the solution, by the rule in force (`grading.rule`); None if it gives none."""
    solution: str
    """The text of the attempt that counts."""
    ended: bool
    """Whether it ended by itself instead of being cut off at the token limit."""
    attempt: int
    """Number of that attempt, from 1."""
    num_attempts: int
    accepted: bool | None
    """Whether Stop's last word was Yes; None if no role chose a word."""
    why: str
    """Why the rollout ended there, in a sentence."""
    turns: tuple[AskedTurn, ...]
    tokens: int
    """Sampled in total."""


def outcome(turns: Sequence[AskedTurn], *, best: bool) -> tuple[int, bool | None, str]:
    """Which attempt answers, whether it was accepted, and why, judging by the turns.

    With `best`, if all attempts were refused the one with the highest P(right) answers, otherwise the last one.
    """
    last = turns[-1]
    choosing = [turn for turn in turns if len(turn.choices) == 2]
    if not choosing:
        return last.attempt, None, "the flow ended by itself; none of its roles judges the answer"
    word, yes = next(iter(choosing[-1].choices.items()))
    if last is choosing[-1] and last.text == word:
        if last.right is None or last.threshold is None:
            return last.attempt, True, f"{last.role} chose {word}, with probability {yes:.2f}"
        return last.attempt, True, f"its P(right) of {last.right:.2f} exceeds the threshold, {last.threshold:.2f}"
    judged = {turn.attempt: turn.right for turn in choosing if turn.right is not None}
    if best and judged:
        number = max(judged, key=lambda attempt: (judged[attempt], -attempt))
        return number, False, f"none was accepted; its P(right) of {judged[number]:.2f} is the highest"
    cut = not last.choices
    return last.attempt, False, "none was accepted; " + ("it was cut at the token limit" if cut else "it is the last")
