"""A reward without a gold answer: a regular expression counts the steps, and few steps are better.

flow-dpo train --reward examples/rewards/pattern.py:few_steps --max_problems 512 --output_dir runs/pattern
"""

from __future__ import annotations

import re
from typing import Any

STEP = re.compile(r"^\S.*: .* = -?\d+$", re.MULTILINE)
"""A line that states a calculation: "She buys 4: 51 + 4 = 55"."""
ANSWER = re.compile(r"^Answer: \S+\s*\Z", re.MULTILINE)


def few_steps(completions: list[str], **columns: Any) -> list[float]:
    """1 for a solution with at most one step, halved for each further step; 0 if it does not end with its answer."""
    return [0.5 ** max(len(STEP.findall(text)) - 1, 0) if ANSWER.search(text) else 0.0 for text in completions]
