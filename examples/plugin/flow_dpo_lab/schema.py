"""A schema for AQuA-RAT: a question with five options; the gold answer is the letter of one of them.

flow-dpo train --dataset_name data/aqua --schema aqua --grader letter
"""

from __future__ import annotations

from flow_dpo.core.types import Problem
from flow_dpo.data.columns import BadRow, Row
from flow_dpo.data.schemas import Schema


def _read(row: Row) -> Problem:
    """{"question": "2 + 3?", "options": ["A)4", "B)5"], "rationale": "", "correct": "B"}"""
    letter = str(row["correct"]).strip()
    if letter not in [option[:1] for option in row["options"]]:
        raise BadRow(f"expected the letter of an option in 'correct', found {letter!r}")
    question = "\n".join([row["question"], *row["options"], "Answer with the letter of an option."])
    return Problem(id="", question=question, gold=letter, solution=str(row.get("rationale") or ""))


AQUA = Schema(columns=frozenset({"question", "options", "correct"}), read=_read)
