"""Rates with intervals over time, from a run's counts.

The stream is cut into equal parts, in the order of its problems; each rate is a share of one part with its Wilson
interval. Of 256 problems, `parts(256)` is 8 parts of 32.

Invariant: the parts cover every problem once. What was never counted in a part is None, not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from flow_dpo.core.stats import wilson
from flow_dpo.evaluate.statistics import auc
from flow_dpo.report.run_data import JudgedCandidate, NodeSeen, RunCounts
from flow_dpo.runs.charts import Series

_LEAST = 32
"""Least number of problems per part, if there are enough."""
_MOST_PARTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Problems `start` to `end` - 1 of the stream."""

    start: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.start + 1} to {self.end}"

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share, and the counts behind it."""

    hits: int
    of: int

    @property
    def value(self) -> float | None:
        return self.hits / self.of if self.of else None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """95 % Wilson interval."""
        return wilson(self.hits, self.of) if self.of else None


def parts(num_problems: int, most: int = _MOST_PARTS) -> list[Part]:
    """At most `most` equal parts, of at least 32 problems each if there are so many; none without problems."""
    if num_problems == 0:
        return []
    num = max(1, min(most, num_problems // _LEAST))
    cuts = [round(k * num_problems / num) for k in range(num + 1)]
    return [Part(start=start, end=end) for start, end in pairwise(cuts)]


def quarters(num_problems: int) -> list[Part]:
    """The four quarters of a stream; fewer parts of a short one."""
    return parts(num_problems, most=4)


def accuracy(counts: RunCounts, part: Part) -> Rate:
    """The share of problems that the trunk solved; one that could not be graded counts as not solved."""
    rewards = _answered(counts, part)
    return Rate(hits=int(sum(reward or 0 for reward in rewards)), of=len(rewards))


def ungraded(counts: RunCounts, part: Part) -> int:
    """Problems whose trunk could not be graded."""
    return sum(reward is None for reward in _answered(counts, part))


def _answered(counts: RunCounts, part: Part) -> list[float | None]:
    rewards = enumerate(counts.rewards[part.start : part.end], start=part.start)
    return [reward for index, reward in rewards if index not in counts.unanswered]


def example_rate(counts: RunCounts, part: Part, role: str, depth: int | None = None) -> Rate:
    """The share of a role's completions (at one depth) that gave at least one example."""

    def fits(node: NodeSeen) -> bool:
        inside = part.start <= node.index < part.end and node.role == role
        return inside and (depth is None or node.depth == depth)

    mine = [node for node in counts.nodes if fits(node)]
    return Rate(hits=sum(node.gave_example for node in mine), of=len(mine))


def yes_rate(counts: RunCounts, part: Part, role: str, kind: str) -> Rate:
    """The share of candidates of one kind for which a choosing role chose Yes."""
    mine = [one for one in _candidates(counts, part, role) if one.kind == kind]
    return Rate(hits=sum(one.chose_yes for one in mine), of=len(mine))


def prefers_yes(counts: RunCounts, part: Part, role: str, *, finished: bool) -> Rate:
    """The share of a choosing role's pairs that preferred Yes, by whether the candidate was finished."""
    mine = [one for one in counts.choice_pairs if one.role == role and one.finished == finished]
    mine = [one for one in mine if part.start <= one.index < part.end]
    return Rate(hits=sum(one.prefers_yes for one in mine), of=len(mine))


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """An area under the curve, or a difference, with its 95 % interval; None if a side is empty."""

    value: float | None
    bounds: tuple[float, float] | None = None


def change(first: Rate, last: Rate) -> Area:
    """Last minus first, on different problems, with Newcombe's interval (1998, Statistics in Medicine 17, method 10)
    from both Wilson intervals; no value if a side is empty."""
    if first.value is None or last.value is None or first.bounds is None or last.bounds is None:
        return Area(value=None)
    (low, high), (last_low, last_high) = first.bounds, last.bounds
    gap = last.value - first.value
    down, up = (
        math.hypot(last.value - last_low, high - first.value),
        math.hypot(last_high - last.value, first.value - low),
    )
    return Area(value=gap, bounds=(max(-1.0, gap - down), min(1.0, gap + up)))


def cut(counts: RunCounts, part: Part) -> Rate:
    """Trunks that did not end by themselves but were cut by a limit."""
    of = len(counts.rewards[part.start : part.end])
    return Rate(hits=sum(part.start <= index < part.end for index in counts.cut), of=of)


def wrong_steps(counts: RunCounts, part: Part) -> Rate:
    """Right trunks with a wrong step, among those whose steps could be checked."""
    checked = [wrong for index, wrong in counts.wrong_step.items() if part.start <= index < part.end]
    return Rate(hits=sum(checked), of=len(checked))


def to_series(label: str, x: Sequence[float], rates: Sequence[Rate | Area], scale: float = 100) -> Series:
    """A chart line of rates with their intervals, in per cent unless `scale` says otherwise."""
    bounds = [rate.bounds or (None, None) for rate in rates]
    y, low, high = (
        [None if value is None else scale * value for value in values]
        for values in ([rate.value for rate in rates], [low for low, _ in bounds], [high for _, high in bounds])
    )
    return Series(label=label, x=list(x), y=y, low=low, high=high)


def right_over_wrong(counts: RunCounts, part: Part, role: str) -> Area:
    """How well the log-odds of Yes separate the part's right candidates from its finished wrong ones."""
    return _area(counts, part, role, lambda one: one.kind == "right", lambda one: one.kind == "wrong")


def finished_over_unfinished(counts: RunCounts, part: Part, role: str) -> Area:
    """How well they separate candidates that are right or finished from unfinished ones."""
    return _area(counts, part, role, lambda one: one.kind != "unfinished", lambda one: one.kind == "unfinished")


def area(above: Sequence[float], below: Sequence[float]) -> Area:
    """The area under the ROC curve with the interval of Hanley and McNeil (1982, Radiology 143, equation 2).

    Candidates are treated as independent, though those of one problem are alike: the interval is somewhat too narrow.
    """
    value = auc(above, below)
    if value is None:
        return Area(value=None)
    m, n = len(above), len(below)
    q1, q2 = value / (2 - value), 2 * value * value / (1 + value)
    variance = (value * (1 - value) + (m - 1) * (q1 - value * value) + (n - 1) * (q2 - value * value)) / (m * n)
    half = 1.959964 * math.sqrt(max(variance, 0.0))
    return Area(value=value, bounds=(max(0.0, value - half), min(1.0, value + half)))


def choosing_roles(counts: RunCounts) -> list[str]:
    """Roles whose candidates have verdicts."""
    return list(dict.fromkeys(one.role for one in counts.candidates))


def roles(counts: RunCounts) -> list[str]:
    """All roles with a completion."""
    return list(dict.fromkeys(node.role for node in counts.nodes))


def _candidates(counts: RunCounts, part: Part, role: str) -> list[JudgedCandidate]:
    return [one for one in counts.candidates if one.role == role and part.start <= one.index < part.end]


def _area(
    counts: RunCounts,
    part: Part,
    role: str,
    above: Callable[[JudgedCandidate], bool],
    below: Callable[[JudgedCandidate], bool],
) -> Area:
    mine = _candidates(counts, part, role)
    return area([one.log_odds for one in mine if above(one)], [one.log_odds for one in mine if below(one)])
