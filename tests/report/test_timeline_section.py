"""Does a report draw who worked when, and only where it is known?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flow_dpo.core.types import Status
from flow_dpo.report.compose import compose
from flow_dpo.report.document import Lanes, Table
from flow_dpo.report.html import render_page
from flow_dpo.report.sources import RunSource, read_source
from flow_dpo.report.timeline_section import timeline_blocks
from flow_dpo.runs.records import append_rows
from flow_dpo.runs.spans import FILE, SpanRow
from tests.support import report_sources

VERDICTS: list[list[Status]] = [["correct", "wrong", "wrong", "wrong", "wrong"]] * 8
TITLE = "Workers and learner over time"


def spans(num_workers: int, *, batches: int = 2, begin: float = 1e9) -> list[SpanRow]:
    """Each batch takes 10 s: all workers sample for 8 s, the learner waits for them and learns for 2 s."""
    made: list[SpanRow] = []
    for batch in range(batches):
        at = begin + 10 * batch
        made += [
            SpanRow(batch=batch, lane=f"worker {number}", what="sampling", start=at, end=at + 8)
            for number in range(num_workers)
        ]
        made.append(SpanRow(batch=batch, lane="learner", what="waiting", start=at, end=at + 8))
        made.append(SpanRow(batch=batch, lane="learner", what="learning", start=at + 8, end=at + 10))
    return made


def run(tmp_path: Path, told: list[SpanRow], **row: Any) -> RunSource:
    """A run of two batches with these spans and these metrics in every row."""
    folder = report_sources.run(tmp_path / "run", VERDICTS)
    metrics = [json.loads(line) | row for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in metrics))
    append_rows(folder / FILE, told)
    source = read_source(folder, "run")
    assert isinstance(source, RunSource)
    return source


def shown(source: RunSource) -> tuple[Lanes, Table]:
    figure, table = timeline_blocks(source)
    assert isinstance(figure, Lanes)
    assert isinstance(table, Table)
    return figure, table


def test_lanes_their_shares_and_what_limits(tmp_path: Path) -> None:
    seconds = {"rollout/seconds": 16.0, "grade/seconds": 0.0, "rollout/wait_seconds": 8.0, "learn/seconds": 2.0}
    source = run(tmp_path, spans(2), **seconds, **{"rollout/workers": 2, "rollout/shards_replayed": 3})
    figure, table = shown(source)
    assert table.rows == (("worker 0", "80.0 %", "16.0 s"), ("worker 1", "80.0 %", "16.0 s"),
                          ("learner", "20.0 %", "4.0 s"))  # fmt: skip
    assert table.caption == "Of 20.0 s, batches 1 to 2"
    assert figure.title == "Learner waits 80 % of the time for rollouts: more workers (--workers.num, or more servers)."
    assert "because their worker was lost: 6." in figure.note
    ranks = {"ranks/num": 2, "ranks/0/seconds": 1.5, "ranks/1/seconds": 0.5}
    _, with_ranks = shown(run(tmp_path / "ranks", spans(2), **seconds, **ranks))
    assert with_ranks.rows[3:] == (("rank 0", "15.0 %", "3.0 s"), ("rank 1", "5.0 %", "1.0 s"))
    page = render_page(compose([source], command="flow-dpo report"))
    for words in (TITLE, ">worker 0<", ">learner<", "sampling", "learning", "waiting", ">seconds<", ">1<", ">2<"):
        assert words in page
    # Of 20 s the learner learned from the eighth to the tenth: 40 to 50 % of the line.
    assert '<rect class="t-learning" x="40.0%" width="10.0%"' in page
    assert "style=" not in page


def test_a_run_without_a_time_line_has_no_such_section(tmp_path: Path) -> None:
    source = run(tmp_path, [])
    (source.path / FILE).unlink(missing_ok=True)
    again = read_source(source.path, "run")
    assert isinstance(again, RunSource)
    assert timeline_blocks(again) == []
    page = render_page(compose([again], command="flow-dpo report"))
    assert TITLE not in page


def test_many_lanes_a_pause_and_a_long_run(tmp_path: Path) -> None:
    # A worker in forty batches is drawn in the newest; an hour lies between two sessions.
    early, late = spans(40, batches=39), spans(40, batches=1, begin=1e9 + 10 * 39 + 3600)
    late = [SpanRow(batch=39, lane=one.lane, what=one.what, start=one.start, end=one.end) for one in late]
    figure, table = shown(run(tmp_path, early + late))
    assert figure.note.startswith("Batches 29 to 40 of 2;")
    assert "16 of 41 lanes are drawn. Pauses without work, left out: 1." in figure.note
    assert table.caption == "Of 2.0 min, batches 29 to 40"
    assert len(table.rows) == 17
    assert table.rows[-2:] == (("25 more, each", "80.0 %", "96.0 s"), ("learner", "20.0 %", "24.0 s"))


def test_one_process_names_what_it_is_busy_with(tmp_path: Path) -> None:
    told = [SpanRow(batch=0, lane="here", what="sampling", start=0, end=7),
            SpanRow(batch=0, lane="learner", what="learning", start=7, end=10)]  # fmt: skip
    figure, _ = shown(run(tmp_path, told))
    assert figure.title == "Busiest: here, 70.0 %."
    assert len(timeline_blocks(run(tmp_path / "again", told))) == 2
