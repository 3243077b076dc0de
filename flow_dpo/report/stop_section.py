"""The blocks on a choosing role, such as Stop: how well it tells the candidates of its time apart.

Right candidates from finished wrong ones, and finished from unfinished ones, each over time: the progressive area under
the curve of its log-odds of Yes. Its parts hold different candidates, since Answer learns as well: what Stop learned
about may no longer occur, and the area falls. Only on one fixed set (`evaluate.candidates`) are a Stop before and after
learning compared. Counted on trunk nodes, whatever was chosen there, with the verdict of the rollout that Yes
ended at the candidate (`run_data`); `flow-dpo evaluate` grades every candidate, also those that were never accepted.
Invariant: the two questions are never mixed into one number.
"""

from __future__ import annotations

from dataclasses import replace

from flow_dpo.report import formatting
from flow_dpo.report.document import Block, Chart, Paragraph, Table
from flow_dpo.report.rates import (
    Area,
    Part,
    finished_over_unfinished,
    parts,
    prefers_yes,
    quarters,
    right_over_wrong,
    to_series,
    yes_rate,
)
from flow_dpo.report.sources import RunSource
from flow_dpo.runs.charts import Panel

_KINDS = ("unfinished", "wrong", "right")
_WORDS = {"unfinished": "unfinished", "wrong": "finished, wrong", "right": "right"}


def stop_blocks(run: RunSource, role: str) -> list[Block]:
    """A chart and tables of one choosing role."""
    counts, over = run.counts, parts(run.num_seen)
    middles = [part.middle for part in over]
    finished = [finished_over_unfinished(counts, part, role) for part in over]
    right = [right_over_wrong(counts, part, role) for part in over]
    lines = [
        to_series("finished over unfinished", middles, finished, scale=1),
        to_series("right over finished wrong", middles, right, scale=1),
    ]
    shares = []
    for kind in _KINDS:
        rates = [yes_rate(counts, part, role, kind) for part in over]
        shares.append(replace(to_series(_WORDS[kind], middles, rates), low=(), high=()))
    changes = (_change("finished from unfinished", finished), _change("right from wrong", right))
    chart = Chart(
        title=f"{role}, progressive area, first part to last: {'; '.join(changes)}",
        panels=(
            Panel(y="progressive area under the curve", lines=lines, bounds=(None, 1), reference=0.5,
                  title="What it tells apart among the candidates of its time (0.5 is chance)"),
            Panel(y="said Yes (%)", lines=shares, bounds=(0, 100), title="How often it says Yes to what is ..."),
        ),
        x="problems seen",
        note="Each part holds the candidates that came in it, and they change as their writer learns: a fall may be "
        "theirs. A role before and after learning is compared on one fixed set (flow-dpo evaluate --candidates). Bands "
        "are 95 % intervals (Hanley and McNeil), which take candidates as independent.",
    )  # fmt: skip
    note = (
        f"Of candidates on the trunk, {len(counts.candidates)} have a verdict of their own; at {counts.num_unjudged} "
        "Yes was never chosen, or its rollout could not be graded, and they are left out."
    )
    return [chart, _areas(run, role), *_pairs(run, role), Paragraph(text=note)]


def _areas(run: RunSource, role: str) -> Table:
    rows: list[tuple[str, ...]] = []
    whole = Part(start=0, end=run.num_seen)
    for part in (*quarters(run.num_seen), whole):
        finished = finished_over_unfinished(run.counts, part, role)
        right = right_over_wrong(run.counts, part, role)
        rates_of_yes = [yes_rate(run.counts, part, role, kind) for kind in _KINDS]
        cells = [f"{formatting.share(rate.value)} of {rate.of}" for rate in rates_of_yes]
        areas = (formatting.band(finished.value, finished.bounds), formatting.band(right.value, right.bounds))
        rows.append((part.name, *areas, *cells))
    columns = (
        "problems", "finished over unfinished", "right over finished wrong", "Yes to unfinished",
        "Yes to finished wrong", "Yes to right",
    )  # fmt: skip
    return Table(
        caption="Progressive areas under the curve, of each part's own candidates with a verdict (95 % interval), and "
        "how often it says Yes",
        columns=columns,
        rows=tuple(rows),
    )


def _pairs(run: RunSource, role: str) -> list[Table]:
    """None where the role learns from no pairs, but from verdicts alone."""
    if not any(one.role == role for one in run.counts.choice_pairs):
        return []
    rows: list[tuple[str, ...]] = []
    for part in quarters(run.num_seen):
        rates = [prefers_yes(run.counts, part, role, finished=finished) for finished in (True, False)]
        cells = [cell for rate in rates for cell in (formatting.count(rate.of), formatting.share(rate.value))]
        rows.append((part.name, *cells))
    columns = ("problems", "pairs at finished", "prefer Yes", "pairs at unfinished", "prefer Yes")
    caption = "What its pairs teach, at finished and at unfinished candidates"
    return [Table(caption=caption, columns=columns, rows=tuple(rows))]


def _change(what: str, areas: list[Area]) -> str:
    there = [(area.value, area.bounds or (0.0, 1.0)) for area in areas if area.value is not None]
    if not there:
        return f"{what} not measured"
    (first, (first_low, first_high)), (last, (last_low, last_high)) = there[0], there[-1]
    if len(there) == 1:
        return f"{what} {first:.2f}"
    told = "" if first_high < last_low or last_high < first_low else " (no change can be told)"
    return f"{what} {first:.2f} to {last:.2f}{told}"
