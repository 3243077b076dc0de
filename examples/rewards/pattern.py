"""A task without a number to check: solutions of few steps, by a regular expression.

flow-dpo train --reward examples/rewards/pattern.py:few_steps --max_problems 512 --output_dir runs/pattern
"""

from __future__ import annotations

import re
from typing import Any

STEP = re.compile(r"^\S.*: .* = -?\d+$", re.MULTILINE)
"""A line that states a calculation: "She buys 4: 51 + 4 = 55"."""
ANSWER = re.compile(r"^Answer: \S+\s*\Z", re.MULTILINE)


def few_steps(completions: list[str], **columns: Any) -> list[float]:
    """1 for a solution of at most one step that ends with its answer, a half less for each step more; 0 without one."""
    return [0.5 ** max(len(STEP.findall(text)) - 1, 0) if ANSWER.search(text) else 0.0 for text in completions]
