"""The blocks on a role that chooses, such as Stop: how well it separates the candidates that it judged.

Two questions, each over time: does it separate right candidates from finished wrong ones, and finished from unfinished
ones? The answer is the progressive area under the ROC curve of its log-odds of Yes. Each part holds other candidates,
since Answer learns too, so an area can fall because of them; Stop before and after learning is only comparable on one
fixed set (`evaluate.candidates`). Trunk nodes are counted, whatever was chosen there, with the verdict of the rollout
that Yes ended at the candidate (`run_data`); `flow-dpo evaluate` also grades the candidates that were never accepted.
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
    """A chart and tables for one choosing role."""
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
                  title="How well it separates the candidates of each part (0.5 is chance)"),
            Panel(y="said Yes (%)", lines=shares, bounds=(0, 100), title="How often it says Yes, by kind of candidate"),
        ),
        x="problems seen",
        note="Each part has its own candidates, which change as their writer learns: a fall can be due to them. To "
        "compare a role before and after learning, use one fixed set (flow-dpo evaluate --candidates). Bands are 95 % "
        "intervals (Hanley and McNeil), which treat candidates as independent.",
    )  # fmt: skip
    note = (
        f"{len(counts.candidates)} candidates on the trunk have a verdict of their own. {counts.num_unjudged} more are "
        "left out: Yes was never chosen there, or its rollout could not be graded."
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
        caption="Progressive areas under the curve over each part's own graded candidates (95 % interval), and how "
        "often it says Yes",
        columns=columns,
        rows=tuple(rows),
    )


def _pairs(run: RunSource, role: str) -> list[Table]:
    """Empty if the role learns from verdicts only and not from pairs."""
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
    told = "" if first_high < last_low or last_high < first_low else " (no clear change)"
    return f"{what} {first:.2f} to {last:.2f}{told}"
