"""A grader: which solutions are right. One object answers the loop, explorations and the evaluation alike.

    grader.begin(problem, solution)         it may start to look, while others are sampled
    grader.check([(problem, solution)])     [Verdict(status="correct", answer="14")]

`verify.grader.AnswerGrader` compares final answers; a reward function behind these methods fits as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, Verdict


class Grader(Protocol):
    """Grades solutions: correct, wrong or ungraded. One object serves loop, explorations and evaluation alike."""

    def begin(self, problem: Problem, solution: Solution) -> Verdict | None:
        """Start grading a finished solution that will be checked. May do nothing. Returns at once: its verdict where
        that is known without waiting, by the solution alone, otherwise None."""
        ...

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        """The verdict on each solution, in their order."""
        ...

    def grade(self, trees: Sequence[Tree]) -> None:
        """Put text and verdict to every rollout of the trees that was sampled to its end (`Tree.grade`)."""
        ...

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        """The verdict on each text, in their order; the flag says whether it ended by itself or was cut off."""
        ...
