"""Grader of trees: the verifier reads every rollout's solution, and its verdict is stored with the rollout.

    grader = AnswerGrader(verifier, renderer, GradingSettings())
    grader.begin(problem, solution)                  start early, while other solutions are sampled
    grader.check([(problem, solution)])              [Verdict(status="correct", answer="14")]
    grader.grade(trees)                              the same, for every rollout of the trees

Invariant: the loop, explorations that depend on verdicts, and the evaluation use the same object and rule.
Equal texts are read once. What cannot be graded stays `ungraded`: it makes no pair and enters no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Piece, Problem, Solution, Verdict
from flow_dpo.verify.extract import NO_ANSWER, AnswerRule


@dataclass(frozen=True, kw_only=True)
class GradingSettings:
    """Settings for turning a solution into a verdict."""

    rule: AnswerRule = field(default_factory=AnswerRule)
    unfinished: Literal["wrong", "ungraded"] = "wrong"
    """The verdict on a rollout without an answer, such as one cut off at the cap (not stated in the paper)."""
    timeout_s: float = 5.0
    """Seconds of processor time after which the verifier gives up on an answer, which is then ungraded. Wall-clock time
    does not count, so a busy machine changes no verdict."""
    grader: str = ""
    """Your own grader in place of the verifier, or a class that is called with the renderer: "file.py:Name",
    "package.module:Name" or the name of an installed plug-in. Its code is run."""
    rewards: tuple[str, ...] = ()
    """Reward functions that grade in place of the verifier. Each is "file.py:name", "package.module:name", the name of
    an installed plug-in, or "answer" for the verifier. The short flag is `--reward`. Their code is run."""
    reward_weights: tuple[float, ...] = ()
    """The weight of each reward function; if empty, each has weight 1."""
    correct_from: float = 1.0
    """With reward functions: the least reward that counts as correct, for accuracies, traces and Stop's words. Pairs
    and advantages compare the rewards themselves."""

    def __post_init__(self) -> None:
        expect(self, "above 0", lambda value: value > 0, "timeout_s")
        if self.grader and self.rewards:
            raise ConfigError(f"expected grader or rewards, found both: {self.grader} and {', '.join(self.rewards)}")


class Verifies(Protocol):
    """A verifier of texts (`verify.verifier.Verifier`)."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict | None] | None:
        """Start the slow part of grading these triples, for a later `grade_many`, and return at once: the verdict of
        each triple that needs no slow part, None for the others."""
        ...

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        """The verdicts on (gold, text, ended) triples, in order."""
        ...


class Decodes(Protocol):
    """The part of a renderer that grading needs."""

    def to_text(self, pieces: Sequence[Piece]) -> str:
        """The pieces decoded together."""
        ...


class AnswerGrader:
    """Grades solutions by their final answer (`core.protocols.Grader`)."""

    def __init__(self, verifier: Verifies, renderer: Decodes, settings: GradingSettings | None = None) -> None:
        self._verifier, self._renderer = verifier, renderer
        self._settings = GradingSettings() if settings is None else settings

    def begin(self, problem: Problem, solution: Solution) -> Verdict | None:
        """Let the verifier start on a solution that will be graded, and return at once: its verdict, or None if that
        needs algebra."""
        found = self._verifier.begin([self._item(problem, solution)])
        return None if not found or found[0] is None else self._scored(found[0])

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        """The verdict on each solution, in order."""
        return self._verdicts([self._item(problem, solution) for problem, solution in items])

    def grade(self, trees: Sequence[Tree]) -> None:
        """Store text and verdict with every rollout of the trees that was sampled to its end."""
        finished = [(tree, rollout) for tree in trees for rollout in tree.rollouts if rollout.value is None]
        items = [self._item(tree.problem, rollout.solution) for tree, rollout in finished]
        for (tree, rollout), (_, text, _), verdict in zip(finished, items, self._verdicts(items), strict=True):
            tree.grade(rollout.id, text, verdict)

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        """The verdict on each text alone, in order. The flag says whether the text ended (True) or was cut off."""
        return self._verifier.grade_many([(problem.gold, text, ended) for problem, text, ended in items])

    def _item(self, problem: Problem, solution: Solution) -> tuple[str, str, bool]:
        return (problem.gold, self._renderer.to_text(solution.pieces), solution.ended)

    def _verdicts(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        found = dict.fromkeys(items, Verdict(status="ungraded"))
        for item, verdict in zip(found, self._verifier.grade_many(list(found)), strict=True):
            found[item] = self._scored(verdict)
        return [found[item] for item in items]

    def _scored(self, verdict: Verdict) -> Verdict:
        """The verdict, made ungraded if there is no answer and the settings say so."""
        no_answer = verdict.reason == NO_ANSWER and self._settings.unfinished == "ungraded"
        return replace(verdict, status="ungraded") if no_answer else verdict
