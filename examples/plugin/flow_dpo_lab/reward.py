"""A reward function with TRL's signature: the shorter a solution, the higher its reward.

flow-dpo train --reward answer,short --max_problems 32
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def short(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 for an empty text, 0.5 for a thousand characters."""
    return [1 / (1 + len(text) / 1000) for text in completions]
