"""Which plays were right?

The verifier reads every rollout's solution and its finding is put to the rollout, never to a node. Plays that ended in
the same words are read once. A play whose answer cannot be graded stays `ungraded`: it makes no pair and enters no
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Piece, Problem, Solution, Verdict
from flow_dpo.verify.extract import NO_ANSWER, AnswerRule


@dataclass(frozen=True, kw_only=True)
class GradingSettings:
    """How a solution becomes a verdict."""

    rule: AnswerRule = field(default_factory=AnswerRule)
    unfinished: Literal["wrong", "ungraded"] = "wrong"
    """The score of a play without an answer, such as one cut at the cap of chunks (not stated in the paper)."""
    timeout_s: float = 20.0
    """Seconds after which the verifier gives an answer up as ungraded. By the wall, and generous: a busy machine does
    not change verdicts."""


class Verifies(Protocol):
    """The verifier, as far as grading needs it."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> None:
        """Begin with what takes long of these triples, which `grade_many` will be asked about, and return at once."""
        ...

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        """Verdicts of (gold, text, ended) triples, in their order."""
        ...


class Decodes(Protocol):
    """The renderer, as far as grading needs it."""

    def to_text(self, pieces: Sequence[Piece]) -> str:
        """The pieces decoded together."""
        ...


def grade(trees: Sequence[Tree], verifier: Verifies, renderer: Decodes, settings: GradingSettings) -> None:
    """Put a verdict to every rollout of the trees that was played to its end."""
    played = [(tree, rollout) for tree in trees for rollout in tree.rollouts if rollout.value is None]
    found = _found([(tree.problem, rollout.solution) for tree, rollout in played], verifier, renderer, settings)
    for (tree, rollout), (text, verdict) in zip(played, found, strict=True):
        tree.grade(rollout.id, text, verdict)


def finder(
    verifier: Verifies, renderer: Decodes, settings: GradingSettings
) -> Callable[[Sequence[tuple[Problem, Solution]]], list[Verdict]]:
    """What a speaker asks on behalf of explorations: the verdicts that `grade` would put to plays with these ends."""
    return lambda items: [verdict for _, verdict in _found(items, verifier, renderer, settings)]


def starter(verifier: Verifies, renderer: Decodes) -> Callable[[Problem, Solution], None]:
    """What a speaker is to do with plays that have ended: the verifier begins with them while others are under way."""
    return lambda problem, end: verifier.begin([(problem.gold, renderer.to_text(end.pieces), end.ended)])


def _found(
    items: Sequence[tuple[Problem, Solution]], verifier: Verifies, renderer: Decodes, settings: GradingSettings
) -> list[tuple[str, Verdict]]:
    """Text and verdict of each solution; equal words are read once."""
    texts = [renderer.to_text(solution.pieces) for _, solution in items]
    keys = [(problem.gold, text, end.ended) for (problem, end), text in zip(items, texts, strict=True)]
    asked = dict.fromkeys(keys, Verdict(status="ungraded"))
    for key, verdict in zip(asked, verifier.grade_many(list(asked)), strict=True):
        if verdict.reason == NO_ANSWER and settings.unfinished == "ungraded":
            verdict = replace(verdict, status="ungraded")
        asked[key] = verdict
    return [(text, asked[key]) for text, key in zip(texts, keys, strict=True)]
