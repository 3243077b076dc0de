"""Graders for tests: a function of problems and solutions in place of a verifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, Verdict

Find = Callable[[Sequence[tuple[Problem, Solution]]], Sequence[Verdict]]


@dataclass(frozen=True)
class FunctionGrader:
    """Verdicts by a function of solutions."""

    find: Find

    def begin(self, problem: Problem, solution: Solution) -> None:
        """Nothing takes long."""

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        return list(self.find(items))

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        return self.check([(one, Solution(pieces=(text,), ended=ended)) for one, text, ended in items])

    def grade(self, trees: Sequence[Tree]) -> None:
        for tree in trees:
            for rollout in tree.rollouts:
                if rollout.value is None:
                    tree.grade(rollout.id, "", self.check([(tree.problem, rollout.solution)])[0])
