"""A grader: which solutions are right. One object serves the loop, explorations and evaluation.

    grader.begin(problem, solution)         it can start grading while others are sampled
    grader.check([(problem, solution)])     [Verdict(status="correct", answer="14")]

`verify.grader.AnswerGrader` compares final answers; an object that wraps a reward function fits as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, Verdict


class Grader(Protocol):
    """Grades solutions as correct, wrong or ungraded."""

    def begin(self, problem: Problem, solution: Solution) -> Verdict | None:
        """Start grading a finished solution that will be checked later; can do nothing. Returns at once: the verdict
        if it follows from the solution alone without waiting, otherwise None."""
        ...

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        """The verdict on each solution, in the given order."""
        ...

    def grade(self, trees: Sequence[Tree]) -> None:
        """Set the text and verdict of every rollout of the trees that was sampled to its end (`Tree.grade`)."""
        ...

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        """The verdict on each text, in the given order; the flag says whether the text ended by itself."""
        ...
