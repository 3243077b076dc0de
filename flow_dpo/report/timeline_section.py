"""The blocks on a run's time: workers and learner as lanes of one time line, and what limits the run.

Only the newest batches are drawn, without the pauses between two sessions of a run. Invariant: a run without
timeline.jsonl (an older one) has no such blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.report import formatting
from flow_dpo.report.document import Bar, Block, Lanes, Table
from flow_dpo.report.sources import RunSource
from flow_dpo.runs.bottleneck import bottleneck
from flow_dpo.runs.spans import LEARNER, SpanRow, busy_seconds, lanes, without_pauses

_MOST_LANES = 16
"""Most lanes that are drawn and listed one by one."""


def timeline_blocks(run: RunSource) -> list[Block]:
    """The time line and its table; empty if there is nothing to draw."""
    spans, num_pauses = without_pauses(run.spans)
    whole = max((span.end for span in spans), default=0.0) - min((span.start for span in spans), default=0.0)
    if whole <= 0:
        return []
    names, batches = lanes(spans), sorted({span.batch for span in spans})
    drawn = names if len(names) <= _MOST_LANES else [*names[: _MOST_LANES - 1], names[-1]]
    shares = {name: busy_seconds([span for span in spans if span.lane == name]) / whole for name in names}
    limit = bottleneck([row for at, row in enumerate(run.rows) if at >= batches[0]])
    busiest = max(names, key=lambda name: shares[name])
    finding = limit[:1].upper() + limit[1:] if limit else f"Busiest: {busiest}, {formatting.share(shares[busiest])}"
    between = f"Batches {batches[0] + 1:,} to {batches[-1] + 1:,}"
    unit, bars = _bars(drawn, spans, whole)
    note = _caption(run, between, names, drawn, num_pauses)
    line = Lanes(title=f"{finding}.", lanes=tuple(drawn), bars=bars, x=unit, note=note)
    rows = [(name, formatting.share(shares[name]), formatting.seconds(whole * shares[name])) for name in drawn]
    if rest := [name for name in names if name not in drawn]:
        mean = sum(shares[name] for name in rest) / len(rest)
        rows.insert(-1, (f"{len(rest)} more, each", formatting.share(mean), formatting.seconds(whole * mean)))
    rows += _ranks([row for at, row in enumerate(run.rows) if at in batches], whole)
    columns = ("lane", "busy", "time")
    table = Table(caption=f"Of {formatting.seconds(whole)}, {between.lower()}", columns=columns, rows=tuple(rows))
    return [line, table]


def _ranks(rows: Sequence[Mapping[str, Any]], whole: float) -> list[tuple[str, str, str]]:
    """The time that each of several ranks of a learner spent on its rows."""
    found: list[tuple[str, str, str]] = []
    for rank in range(int(max((row.get("ranks/num") or 1 for row in rows), default=1))):
        names = [row[name] for row in rows if (name := f"ranks/{rank}/seconds") in row]
        if names:
            found.append((f"rank {rank}", formatting.share(sum(names) / whole), formatting.seconds(sum(names))))
    return found


def _caption(run: RunSource, between: str, names: Sequence[str], drawn: Sequence[str], num_pauses: int) -> str:
    words = [f"{between} of {len(run.rows):,}; numbers below the learner are batches."]
    replayed = [row["rollout/shards_replayed"] for row in run.rows if row.get("rollout/shards_replayed") is not None]
    if replayed:
        words.append(
            f"Shards sampled again in the whole run because their worker was lost: {formatting.count(sum(replayed))}."
        )
    if len(names) > len(drawn):
        words.append(f"{len(drawn)} of {len(names)} lanes are drawn.")
    if num_pauses:
        words.append(f"Pauses without work, left out: {formatting.count(num_pauses)}.")
    return " ".join(words)


def _bars(drawn: Sequence[str], spans: Sequence[SpanRow], whole: float) -> tuple[str, tuple[Bar, ...]]:
    """The unit of the axis, and a bar for each span of the drawn lanes."""
    unit, seconds = ("minutes", 60.0) if whole >= 300 else ("seconds", 1.0)
    begin, rows = min(span.start for span in spans), {lane: row for row, lane in enumerate(drawn)}
    return unit, tuple(
        Bar(
            lane=rows[span.lane],
            what=span.what,
            start=(span.start - begin) / seconds,
            end=(span.end - begin) / seconds,
            text=str(span.batch + 1) if span.lane == LEARNER and span.what == "learning" else "",
        )
        for span in spans
        if span.lane in rows
    )
