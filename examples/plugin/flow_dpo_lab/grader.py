"""A grader for multiple choice: the last option letter in a solution is its answer.

flow-dpo evaluate --run runs/train --grader letter
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flow_dpo.core.types import Verdict
from flow_dpo.models.render import Renderer
from flow_dpo.verify.grader import AnswerGrader


class _Letters:
    """Compares letters (`flow_dpo.verify.grader.Verifies`)."""

    def begin(self, items: Sequence[tuple[str, str, bool]]) -> None:
        """Does nothing: comparing letters takes no time, so there is nothing to begin early."""

    def grade_many(self, items: Sequence[tuple[str, str, bool]]) -> list[Verdict]:
        return [self._grade(gold, text) for gold, text, _ in items]

    def _grade(self, gold: str, text: str) -> Verdict:
        named = re.findall(r"\b[A-E]\b", text)
        if not named:
            return Verdict(status="wrong", reason="no letter")
        return Verdict(status="correct" if named[-1] == gold else "wrong", answer=named[-1])


def letter(renderer: Renderer) -> AnswerGrader:
    """Builds the grader from the renderer, which turns sampled ids into text."""
    return AnswerGrader(_Letters(), renderer)
