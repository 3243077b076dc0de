"""Wilson's interval for a share. Statistics that only evaluations need are in `evaluate.statistics`."""

from __future__ import annotations

import math


def wilson(num_correct: float, num_problems: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a share, 95 % at the default quantile `z`; (0, 1) if nothing was counted."""
    if num_problems == 0:
        return (0.0, 1.0)
    n, p = num_problems, num_correct / num_problems
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))
