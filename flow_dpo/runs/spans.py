"""The rows of timeline.jsonl: what workers and learner did, from when to when; and how long they were busy.

    {"schema": "span/1", "batch": 3, "lane": "worker 0", "what": "sampling", "start": 1764331200.5, "end": 1764331212.0}

The file mixes the clocks of several machines, so it is used only for a picture, shares and estimates. Two equal runs
have different spans. Invariant: no result depends on what is in the file, or on whether it exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from flow_dpo.data.typed_json import Count, Words
from flow_dpo.runs.records import iter_rows

FILE = "timeline.jsonl"
LEARNER = "learner"
"""The learner's lane."""
WAITING = "waiting"
"""What a lane without work is doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanRow:
    """What one lane did for a stretch of time: a row of timeline.jsonl."""

    SCHEMA: ClassVar[str] = "span/1"
    batch: Count
    """The batch for which it was done, from 0."""
    lane: Words
    """ "worker 0", "here", "learner"."""
    what: Words
    """ "sampling", "grading", "learning", "waiting"."""
    start: float
    """Seconds since the epoch, by the clock of the lane's machine."""
    end: float

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"expected an 'end' at or after its 'start', found {self.end} after {self.start}")

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


def read_spans(path: Path, *, num_batches: int | None = None) -> list[SpanRow]:
    """The rows of a run's timeline.jsonl, only of the newest `num_batches` if given; empty if there is no file.

    Raises `DataError` naming file, line and field of the first invalid row.
    """
    kept: list[SpanRow] = []
    for _, row in iter_rows(path, SpanRow) if path.exists() else ():
        if num_batches is not None and kept and row.batch >= kept[0].batch + 2 * num_batches:
            kept = [one for one in kept if one.batch > row.batch - num_batches]
        kept.append(row)
    newest = max((row.batch for row in kept), default=0)
    return kept if num_batches is None else [row for row in kept if row.batch > newest - num_batches]


def without_pauses(spans: Sequence[SpanRow], *, longest: float = 30.0) -> tuple[list[SpanRow], int]:
    """The spans sorted by start, without the stretches of more than `longest` seconds in which no lane did anything,
    such as before a run was resumed; and the number of these stretches."""
    moved: list[SpanRow] = []
    cut, ended, num = 0.0, 0.0, 0
    for span in sorted(spans, key=lambda one: one.start):
        if moved and span.start - ended > longest:
            cut, num = cut + span.start - ended, num + 1
        ended = max(ended, span.end)
        moved.append(replace(span, start=span.start - cut, end=span.end - cut))
    return moved, num


def lanes(spans: Sequence[SpanRow]) -> list[str]:
    """The lanes: workers sorted by name and number, the learner last."""
    return sorted({span.lane for span in spans}, key=_order)


def _order(lane: str) -> tuple[bool, str, int, str]:
    name, _, number = lane.rpartition(" ")
    return (lane == LEARNER, name, int(number), "") if number.isdecimal() else (lane == LEARNER, lane, 0, "")


def busy_seconds(spans: Sequence[SpanRow]) -> float:
    """Seconds in which one lane did something other than wait; overlapping spans count once."""
    total, ended = 0.0, float("-inf")
    for span in sorted(spans, key=lambda one: one.start):
        if span.what != WAITING and span.end > ended:
            total += span.end - max(span.start, ended)
            ended = span.end
    return total
