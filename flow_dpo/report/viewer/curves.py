"""Every number of a run by batch, read from metrics.jsonl as it grows.

    batches = Batches(path)
    batches.refresh()         True if there is more than before
    batches.value()           {"batches": [{"from": 0, "to": 32}, ...], "x": {"problems": [32, ...]}, "series": {...}}

Invariant: all series have one entry per batch, None if the row lacks the value or has something other than a number. A
broken row affects nothing else, and its problems belong to no batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from flow_dpo.report.viewer.followed import FollowedFile
from flow_dpo.report.viewer.lines import integer, number

WAITED_S = 0.01
"""A run's process that samples by itself waits only microseconds for a batch. A longer wait shows that workers sample
elsewhere while it learns."""
_AT_START = 64
"""Problems for the accuracy at the start; at least those of the first batch."""


class Batches(FollowedFile):
    """The columns of one metrics.jsonl."""

    def _clear(self) -> None:
        super()._clear()
        self.ends: list[int] = []
        """Problems seen after each batch."""
        self.starts: list[int] = []
        self.series: dict[str, list[float | None]] = {}

    def _add(self, line: int, row: Mapping[str, Any]) -> None:
        seen, last = integer(row.get("problems_seen")), self.ends[-1] if self.ends else 0
        if row.get("schema") != "metrics/1" or seen is None or seen <= last:
            words = f"problems_seen above {last}, found {row.get('problems_seen')!r:.40}"
            wrong = "the schema 'metrics/1'" if row.get("schema") != "metrics/1" else words
            self.notes.append((line, f"expected a batch's numbers with {wrong}"))
            return
        num = len(self.ends)
        self.starts.append(last)
        self.ends.append(seen)
        for name, value in row.items():
            known = number(value)
            if name != "problems_seen" and known is not None:
                if name not in self.series:
                    self.series[name] = [None] * num
                self.series[name].append(known)
        for values in self.series.values():
            values.extend([None] * (num + 1 - len(values)))

    # ---- values derived from the columns -----------------------------------------------------------------------------

    def last(self, name: str) -> float | None:
        """The newest batch's value."""
        values = self.series.get(name)
        return values[-1] if values else None

    def total(self, name: str) -> float | None:
        """The sum over all batches that have a value."""
        there = [value for value in self.series.get(name, ()) if value is not None]
        return sum(there) if there else None

    def spent(self) -> dict[str, float]:
        """What the run has used of everything that a budget can limit (`runs.callbacks.budget`)."""
        learned = [name for name in self.series if name.startswith("learn/") and name.endswith("/tokens")]
        tokens = sum(self.total(name) or 0 for name in ("rollout/sampled_tokens", *learned))
        verdicts, updates = self.total("num_verdicts"), self.total("learn/updates")
        return {"tokens": tokens, "verdicts": verdicts or 0, "updates": updates or 0}

    @property
    def accuracy_at_start(self) -> float | None:
        """Accuracy over the first problems: up to 64 of them, or those of the first batch if it is larger."""
        values = self.series.get("progressive/accuracy", ())
        early = [value for end, value in zip(self.ends, values, strict=False) if end <= _AT_START and value is not None]
        return early[-1] if early else values[0] if values else None

    def updates(self) -> list[int | None]:
        """Updates of the policy after each batch."""
        made = self.series.get("learn/updates")
        before = self.series.get("learn/version") or self.series.get("policy_version")
        if before is None:
            return [int(value) for value in accumulate(value or 0 for value in made or [0] * len(self.ends))]
        both = zip(before, made or [0] * len(before), strict=True)
        return [None if value is None else int(value + (more or 0)) for value, more in both]

    def seconds(self) -> list[float]:
        """Cumulative seconds that the batches took, according to the rows. Time between batches (checkpoints,
        evaluations, a stopped run) is not included.

        If the run's own process samples, sampling, grading and learning follow one another. If workers do, they sample
        while it learns, and a batch takes the learner's update plus its wait for the batch.
        """
        num = len(self.ends)
        waited = self.series.get("rollout/wait_seconds", [])
        elsewhere = max((value or 0.0 for value in waited), default=0.0) >= WAITED_S
        names = ["rollout/wait_seconds"] if elsewhere else ["rollout/seconds", "grade/seconds"]
        columns = [self.series.get(name) or [None] * num for name in (*names, "learn/seconds")]
        return list(accumulate(sum(value or 0.0 for value in row) for row in zip(*columns, strict=True)))

    def sampled(self) -> list[int]:
        """Tokens sampled after each batch, including dropped and probing ones; in older rows, those of the trees."""
        values = self.series.get("rollout/sampled_tokens") or self.series.get("rollout/tokens") or [0] * len(self.ends)
        return [int(value) for value in accumulate(value or 0 for value in values)]

    def value(self) -> Mapping[str, Any]:
        """All curves, as the page draws them."""
        return {
            "batches": [{"from": start, "to": end} for start, end in zip(self.starts, self.ends, strict=True)],
            "x": {
                "problems": list(self.ends),
                "updates": self.updates(),
                "tokens": self.sampled(),
                "hours": [value / 3600 for value in self.seconds()],
            },
            "series": {name: list(values) for name, values in self.series.items()},
        }
