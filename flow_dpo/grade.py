"""Which plays were right?

The verifier reads every rollout's solution and its finding is put to the rollout, never to a node. Plays that ended in
the same words are read once. A play whose answer cannot be graded stays `ungraded`: it makes no pair and enters no
mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from flow_dpo.extract import NO_ANSWER, AnswerRule
from flow_dpo.tree import Tree
from flow_dpo.types import Piece, Verdict


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

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        """Verdicts of (gold, text, ended) triples, in their order."""
        ...


class Decodes(Protocol):
    """The renderer, as far as grading needs it."""

    def to_text(self, pieces: Sequence[Piece]) -> str:
        """The pieces decoded together."""
        ...


def grade(trees: Sequence[Tree], verifier: Verifies, renderer: Decodes, settings: GradingSettings) -> None:
    """Put a verdict to every rollout of the trees."""
    texts = [[renderer.to_text(rollout.solution.pieces) for rollout in tree.rollouts] for tree in trees]
    asked: dict[tuple[str, str, bool], Verdict] = {}
    for tree, written in zip(trees, texts, strict=True):
        for rollout, text in zip(tree.rollouts, written, strict=True):
            asked[(tree.problem.gold, text, rollout.solution.ended)] = Verdict(status="ungraded")
    for key, verdict in zip(asked, verifier.grade_many(list(asked)), strict=True):
        if verdict.reason == NO_ANSWER and settings.unfinished == "ungraded":
            verdict = replace(verdict, status="ungraded")
        asked[key] = verdict
    for tree, written in zip(trees, texts, strict=True):
        for rollout, text in zip(list(tree.rollouts), written, strict=True):
            tree.grade(rollout.id, text, asked[(tree.problem.gold, text, rollout.solution.ended)])
