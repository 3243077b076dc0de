"""Statistics of shares and rankings: Wilson's interval, the area under the curve."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson(num_correct: float, num_problems: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share, 95 % unless `z` says otherwise; (0, 1) where nothing was counted."""
    if num_problems == 0:
        return (0.0, 1.0)
    n, p = num_problems, num_correct / num_problems
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def auc(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Probability that a value of `above` exceeds one of `below`, ties as half; None where either is empty."""
    if not above or not below:
        return None
    ranked = sorted([(value, 1) for value in above] + [(value, 0) for value in below])
    wins, seen, at = 0.0, 0, 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        ones = sum(side for _, side in ranked[at:end])
        zeros = end - at - ones
        wins += ones * (seen + zeros / 2)
        seen += zeros
        at = end
    return wins / (len(above) * len(below))
