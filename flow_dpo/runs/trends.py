"""Trends of noisy series: the mean of the first third against that of the last, and whether they can be told apart.

    trend([2.1, 1.9, 1.2, 1.1, 0.4, 0.5])      Trend(first=2.0, last=0.45, low=-2.24, high=-0.86): it fell
    trend([0.03, 0.04, 0.03, 0.04, 0.007])     an interval that contains 0: no change can be told from noise

A single value is mostly the noise of its batch: the last one of a fine-tuning is often that of one left-over row. Each
value is weighted by the number of things that it averages (tokens, pairs), and both thirds have the same total weight.
Invariant: for values from one distribution, `is_told` is true in one of twenty series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The first and the last third of a series."""

    first: float
    """Weighted mean of the first third."""
    last: float
    num: int
    """Number of values in the whole series."""
    low: float | None = None
    """95 % interval of last minus first (Welch's t); None if a third holds only one value."""
    high: float | None = None

    @property
    def is_told(self) -> bool:
        """Whether a change can be told from noise."""
        return self.low is not None and self.high is not None and not self.low <= 0.0 <= self.high


def trend(values: Sequence[float | None], weights: Sequence[float | None] | None = None) -> Trend | None:
    """The trend of a series, in its order. Values that are None are left out; returns None if no value is left."""
    weights = [1.0] * len(values) if weights is None else weights
    there = [
        (value, weight)
        for value, weight in zip(values, weights, strict=True)
        if value is not None and weight and math.isfinite(value)
    ]
    if not there:
        return None
    first, last = _third(there), _third(there[::-1])
    (one, one_error, one_freedom), (other, other_error, other_freedom) = first, last
    low = high = None
    if one_freedom and other_freedom:
        from scipy import stats

        error = one_error + other_error
        freedom = error**2 / (one_error**2 / one_freedom + other_error**2 / other_freedom) if error else math.inf
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(error)
        low, high = other - one - half, other - one + half
    return Trend(first=one, last=other, num=len(there), low=low, high=high)


def _third(series: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Mean, squared standard error and degrees of freedom of the first values, up to a third of the total weight."""
    left = sum(weight for _, weight in series) / 3
    taken: list[tuple[float, float]] = []
    for value, weight in series:
        if left <= 1e-9 * weight:
            break
        taken.append((value, min(weight, left)))
        left -= weight
    total = math.fsum(weight for _, weight in taken)
    mean = math.fsum(value * weight for value, weight in taken) / total
    effective = total**2 / math.fsum(weight**2 for _, weight in taken)  # as many values of equal weight
    if effective < 1.5:
        return mean, 0.0, 0.0
    spread = math.fsum(weight * (value - mean) ** 2 for value, weight in taken) / total * effective / (effective - 1)
    return mean, spread / effective, effective - 1
