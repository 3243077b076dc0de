"""Trained models against the untrained ones that were measured in the same way, problem by problem.

    evaluations of a run's flow and of the model without adapters, both greedy, on the same 500 problems
    ->  one `Paired`: +40.0 points, 95 % interval +35.6 to +44.4

Invariant: a difference is paired, over problems that both sides answered exactly once, with the same decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.types import Status
from flow_dpo.report.sources import EvaluationSource

_RIGHT: dict[Status, float | None] = {"correct": 1.0, "wrong": 0.0, "ungraded": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A trained model's accuracy minus an untrained one's, as a share."""

    trained: EvaluationSource
    untrained: EvaluationSource
    mean: float
    low: float
    high: float
    num: int
    """Number of problems."""

    @property
    def side(self) -> int:
        """1 or -1 if the interval excludes zero, otherwise 0."""
        return int(self.low > 0) - int(self.high < 0)


def pairs_of(evaluations: Sequence[EvaluationSource]) -> list[Paired]:
    """Each trained model with the untrained one that was measured in the same way, if possible one pass with one pass.
    No pair if nothing was graded."""
    from flow_dpo.evaluate.statistics import difference  # loads scipy

    found: list[Paired] = []
    for one in evaluations:
        alike = [other for other in evaluations if _comparable(one, other)]
        other = min(alike, key=lambda other: other.single != one.single, default=None)
        if other is None:
            continue
        rewards = [{id: _RIGHT[status] for id, status in side.statuses.items()} for side in (one, other)]
        if all(value is None for side in rewards for value in side.values()):
            continue
        gap = difference([rewards[0]], [rewards[1]])
        found.append(
            Paired(
                trained=one,
                untrained=other,
                mean=gap["mean"],
                low=gap["low"],
                high=gap["high"],
                num=gap["num_questions"],
            )
        )
    return found


def _comparable(trained: EvaluationSource, untrained: EvaluationSource) -> bool:
    both = (trained, untrained)
    return (
        untrained.untrained
        and not trained.untrained
        and all(_answered_once(one) for one in both)
        and _setting(trained) == _setting(untrained)
        and trained.statuses.keys() == untrained.statuses.keys()
    )


def _answered_once(one: EvaluationSource) -> bool:
    """Whether every problem has exactly one answer."""
    summary = one.summary
    return bool(one.statuses) and summary.get("num_draws") == summary.get("num_problems") == len(one.statuses)


def _setting(one: EvaluationSource) -> tuple[Any, ...]:
    summary = one.summary
    decoding = summary.get("decoding") or {}
    drawn = tuple(decoding.get(name) for name in ("temperature", "top_p", "choice_temperature"))
    # Ids are row numbers: those of two lists are equal, and no data set's name tells them apart.
    rows = summary.get("data_fingerprint") if summary.get("handed_over") else None
    return summary.get("dataset"), rows, summary.get("model"), bool(decoding.get("greedy")), drawn
