"""Results of an update's rows, and who computes them: this thread, several threads, or the ranks of a process group.

A row's result is all that an update needs from it, so it can be computed elsewhere and sent:

    alone(3, compute)            compute(0), compute(1), compute(2): the results, in this order
    ranks.Dealt, on two ranks    compute(0) here and compute(1) there, then both results on both; then compute(2)

Invariant: results come in the order of the rows, whoever computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What one row adds to a role's update."""

    tokens: int
    """Number of input tokens of one forward."""
    policy: list[torch.Tensor]
    """Log-probabilities of the tokens of each of the row's completions, on the CPU."""
    reference: list[torch.Tensor] = field(default_factory=list[torch.Tensor])
    """The same under the reference policy; empty if they were not computed."""
    pieces: tuple[torch.Tensor, ...] = ()
    """Gradient of the row's share of the mean loss, one tensor per parameter; empty if none was asked for."""
    measures: dict[str, float] = field(default_factory=dict[str, float])
    """Sums over the row's examples."""
    counts: dict[str, int] = field(default_factory=dict[str, int])
    """Number of examples in each sum."""
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Seconds of the reference's forward, of the policy's forward with the loss, and of the backward. On a GPU, the
    wait for a backward counts towards the next row's reference."""


Deal = Callable[[int, Callable[[int], RowResult]], Iterator[RowResult]]
"""Called with the number of rows and a function that computes the row of a given index; the longest row comes first."""


def alone(num_rows: int, compute: Callable[[int], RowResult]) -> Iterator[RowResult]:
    """Every row in this thread."""
    return map(compute, range(num_rows))
