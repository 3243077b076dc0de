r"""A custom grader, for a task without numbers: retelling every event of a story, in order.

    python examples/custom_grader.py --max_problems 64

The gold "answer" of a problem is a regular expression ("loses\b.*sells\b"), and `PatternGrader` matches solutions
against it. Anything that can tell right from wrong solutions can replace it: unit tests, a proof checker, a judge.
A solution that it cannot decide is `ungraded`, never wrong.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace

import flow_dpo


class PatternGrader:
    """Grades solutions by a regular expression (`flow_dpo.Grader`)."""

    def __init__(self, renderer: flow_dpo.Renderer) -> None:
        """`train` calls the class with the renderer, which turns sampled token ids into text."""
        self.renderer = renderer

    def begin(self, problem: flow_dpo.Problem, solution: flow_dpo.Solution) -> None:
        """Called when a rollout ends, so that slow graders can begin early; this one need not."""

    def check(self, items: Sequence[tuple[flow_dpo.Problem, flow_dpo.Solution]]) -> list[flow_dpo.Verdict]:
        return self.check_texts([(problem, self.renderer.to_text(s.pieces), s.ended) for problem, s in items])

    def check_texts(self, items: Sequence[tuple[flow_dpo.Problem, str, bool]]) -> list[flow_dpo.Verdict]:
        return [verdict(problem, text) for problem, text, _ in items]

    def grade(self, trees: Sequence[flow_dpo.Tree]) -> None:
        for tree in trees:
            for rollout in tree.rollouts:
                text = self.renderer.to_text(rollout.solution.pieces)
                tree.grade(rollout.id, text, verdict(tree.problem, text))


def verdict(problem: flow_dpo.Problem, text: str) -> flow_dpo.Verdict:
    if not problem.gold:
        return flow_dpo.Verdict(status="ungraded", reason="this story has no events")
    last_attempt = text.rpartition("Wait, that is wrong.")[2]
    found = re.search(problem.gold, last_attempt, re.DOTALL)
    return flow_dpo.Verdict(status="correct" if found else "wrong", answer=found.group() if found else None)


def retelling(problem: flow_dpo.Problem) -> flow_dpo.Problem:
    """The same problem with another gold answer: the pattern of its events."""
    events = re.findall(r"\b(?:He|She) (\w+) \d+", problem.question)
    return replace(problem, gold=".*".join(rf"{event}\b" for event in events))


def main(max_problems: int, output_dir: str) -> flow_dpo.TrainResult:
    problems = [retelling(problem) for problem in flow_dpo.load_problems("seed", max_problems=max_problems)]
    return flow_dpo.train("seed", problems, grader=PatternGrader, output_dir=output_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train on a task that a regular expression grades.")
    parser.add_argument("--max_problems", type=int, default=64)
    parser.add_argument("--output_dir", default="runs/retelling")
    main(**vars(parser.parse_args()))
