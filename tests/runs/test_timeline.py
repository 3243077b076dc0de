"""Does a run tell who worked when, and is it the same run with and without that?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import DataError, StorageError
from flow_dpo.core.protocols import Rollouts, Span
from flow_dpo.core.tree import Tree
from flow_dpo.runs import run_folder
from flow_dpo.runs.bottleneck import Balance, bottleneck
from flow_dpo.runs.files import append_jsonl
from flow_dpo.runs.spans import FILE, SpanRow, busy_seconds, lanes, read_spans, without_pauses
from flow_dpo.runs.timeline import Timeline
from tests.support.tree_builders import two_chunk_tree


def span(lane: str, start: float, end: float, *, what: str = "sampling", batch: int = 0) -> SpanRow:
    return SpanRow(batch=batch, lane=lane, what=what, start=start, end=end)


class Workers:
    """Hand out what they are given, done or still to come."""

    def __init__(self, *batches: Future[Rollouts]) -> None:
        self.batches = list(batches)
        self.adapters: Any = None

    def submit(self, explore: Any, flow: Any, problems: Any, *, seed: int) -> Future[Rollouts]:
        return self.batches.pop(0)

    def refresh(self, adapters: Any) -> None:
        self.adapters = adapters


class Learner:
    adapters: Mapping[str, Any] = {"answer": 1}
    version = 7

    def update(self, objective: Any, examples: Sequence[Any]) -> dict[str, Any]:
        return {"learn/loss": len(examples)}


def batch(trees: Sequence[Tree], *spans: tuple[str, float, float]) -> Rollouts:
    told = [Span(lane=lane, what="sampling", start=start, end=end) for lane, start, end in spans]
    return Rollouts(trees=list(trees), spans=told)


def rows(folder: Path) -> list[tuple[int, str, str]]:
    return [(row.batch, row.lane, row.what) for row in read_spans(folder / FILE)]


def test_every_batchs_spans_are_written_whichever_is_done_first(tmp_path: Path) -> None:
    # A run that goes on after two batches, with two batches in flight, of which the second is done before the first.
    append_jsonl(tmp_path / "metrics.jsonl", [{}, {}])
    timeline = Timeline(tmp_path)
    first, second = Future[Rollouts](), Future[Rollouts]()
    workers, learner = timeline.workers(Workers(first, second)), timeline.learner(Learner())
    made = [two_chunk_tree("correct")], [two_chunk_tree("wrong")]
    none: Any = None
    assert workers.submit(none, none, [], seed=0) is first
    assert workers.submit(none, none, [], seed=0) is second
    second.set_result(batch(made[1], ("worker 1", 5.0, 6.0)))
    first.set_result(batch(made[0], ("worker 0", 1.0, 9.0)))
    for future in (first, second):
        assert learner.update(none, [none, none]) == {"learn/loss": 2}
        timeline.on_batch({"rollout/wait_seconds": 0.5}, future.result().trees, [])
    assert rows(tmp_path) == [
        (2, "worker 0", "sampling"), (2, "learner", "waiting"), (2, "learner", "learning"),
        (3, "worker 1", "sampling"), (3, "learner", "waiting"), (3, "learner", "learning"),
    ]  # fmt: skip
    assert (learner.version, learner.adapters) == (7, {"answer": 1})
    of_learner = [row for row in read_spans(tmp_path / FILE) if row.lane == "learner"]
    for row, after in itertools.pairwise(of_learner):
        assert row.end <= after.start, "the learner does one thing at a time"
    assert of_learner[0].seconds == pytest.approx(0.5, abs=1e-3)


def test_a_batch_that_was_there_is_not_waited_for_and_a_clock_set_back_makes_no_negative_time(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    done = Future[Rollouts]()
    done.set_result(batch([], ("here", 100.0, 40.0)))
    none: Any = None
    timeline.workers(Workers(done)).submit(none, none, [], seed=0)
    timeline.learner(Learner()).update(none, [])
    timeline.on_batch({"rollout/wait_seconds": 1e-5}, done.result().trees, [])
    found = read_spans(tmp_path / FILE)
    assert [row.what for row in found] == ["sampling", "learning"]
    assert (found[0].start, found[0].end) == (100.0, 100.0)


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path)
    none: Any = None
    timeline.learner(Learner()).update(none, [])
    (tmp_path / FILE).mkdir()  # nothing can be appended to it
    with pytest.raises(StorageError, match=r"could not write to .*timeline\.jsonl"):
        timeline.on_batch({}, [], [])


def test_rows_are_read_strictly_and_of_the_newest_batches(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert read_spans(path) == []
    good = {"schema": "span/1", "batch": 0, "lane": "here", "what": "sampling", "start": 1.0, "end": 2.0}
    append_jsonl(path, [good | {"batch": number} for number in range(40)])
    assert [row.batch for row in read_spans(path, num_batches=3)] == [37, 38, 39]
    assert len(read_spans(path)) == 40
    append_jsonl(path, [good | {"end": 0.5}])
    with pytest.raises(DataError, match=r"timeline\.jsonl, line 41: expected an 'end' at or after its 'start'"):
        read_spans(path)


def test_lanes_pauses_and_busy_time() -> None:
    spans = [span("learner", 0, 1), span("worker 10", 0, 4), span("worker 2", 2, 3), span("here", 1, 2)]
    assert lanes(spans) == ["here", "worker 2", "worker 10", "learner"]
    # 0 to 4, then nothing for 96 s, then 100 to 102: a run that was resumed.
    moved, num = without_pauses([*spans, span("learner", 100, 102)])
    assert (num, max(row.end for row in moved)) == (1, 6.0)
    assert without_pauses(spans) == (sorted(spans, key=lambda row: row.start), 0)
    # What overlaps counts once, and waiting is not work.
    mine = [
        span("a", 0, 4),
        span("a", 2, 5),
        span("a", 3, 4),
        span("a", 7, 8),
        replace(span("a", 9, 20), what="waiting"),
    ]
    assert busy_seconds(mine) == 6


def seconds(*, sampled: float, waited: float, learned: float, workers: float = 2, lag: int = 0) -> dict[str, Any]:
    return {
        "rollout/seconds": sampled, "grade/seconds": 0.0, "rollout/wait_seconds": waited, "learn/seconds": learned,
        "rollout/workers": workers, "run/lag": lag,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "told"),
    [
        # Two workers are busy all through a wait that is nearly all of the time.
        (seconds(sampled=18, waited=9, learned=1), "learner waits 90 % of the time for rollouts: more workers"),
        # By turns, half and half.
        (seconds(sampled=9, waited=5, learned=5), "waits 50 % of the time for rollouts: let them sample ahead"),
        # Four workers, of whom one had something to do.
        (seconds(sampled=9, waited=9, learned=1, workers=4), "have too little to do: smaller shards"),
        (seconds(sampled=20, waited=4, learned=6, lag=1), "learner waits 40 % of the time for rollouts: more workers"),
        (seconds(sampled=6, waited=0.1, learned=9.9, lag=1), "workers wait 70 % of the time for the learner: more lea"),
        (seconds(sampled=3, waited=1.5, learned=8.5), "workers wait 85 % of the time for the learner: let them"),
        (seconds(sampled=18, waited=0.5, learned=9.5, lag=1), "workers and learner are both busy"),
    ],
)  # fmt: skip
def test_what_limits_is_told_with_a_remedy(row: dict[str, Any], told: str) -> None:
    assert told in bottleneck([row, row])


def test_ranks_without_rows_are_no_remedy() -> None:
    row = seconds(sampled=6, waited=0.1, learned=9.9, lag=1) | {"ranks/num": 4, "learn/updates": 1}
    assert "more learner ranks" in bottleneck([row | {"learn/answer/rows": 3.0, "learn/stop/rows": 5.0}])
    assert "ranks have no more rows to share" in bottleneck([row | {"learn/answer/rows": 3.0, "learn/stop/rows": 1.0}])
    assert "more learner ranks" in bottleneck([row | {"learn/updates": 0}])


def test_nothing_is_said_of_one_process_or_of_nothing() -> None:
    assert bottleneck([]) == ""
    assert bottleneck([{"rollout/seconds": 3.0, "learn/seconds": 1.0, "run/lag": 1}]) == ""
    assert bottleneck([seconds(sampled=0, waited=0, learned=0)]) == ""


def test_only_the_last_batches_count() -> None:
    old, new = seconds(sampled=18, waited=9, learned=1), seconds(sampled=6, waited=0.1, learned=9.9, lag=1)
    assert bottleneck([old] * 50 + [new] * 8) == bottleneck([new])
    assert Balance.of([old, new]).waited == pytest.approx(9.1)


def test_a_run_writes_its_time_line_and_a_resumed_one_goes_on_with_it(tmp_path: Path) -> None:
    """Every batch once, whatever was written after the checkpoint that is gone on from."""
    import flow_dpo

    words: dict[str, Any] = {
        "max_problems": 4, "quiet": True, "settings": {"run.problems_per_batch": 2}, "examples_per_update": 4,
    }  # fmt: skip
    folder = tmp_path / "run"
    flow_dpo.train(output_dir=folder, **words)
    told = [(row.batch, row.lane, row.what) for row in read_spans(folder / FILE)]
    assert told[:3] == [(0, "here", "sampling"), (0, "here", "grading"), (0, "learner", "learning")]
    assert {number for number, _, _ in told} == {0, 1}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["run/lag"] for row in metrics] == [0, 0]
    spans = read_spans(folder / FILE)
    sampled = sum(row.seconds for row in spans if row.what == "sampling")
    assert sampled == pytest.approx(sum(row["rollout/seconds"] for row in metrics), abs=0.05)
    # Whatever follows the last checkpoint is cut off.
    append_jsonl(folder / FILE, [{"schema": "span/1", "torn": 1}])
    flow_dpo.train(output_dir=folder, resume=True, quiet=True)
    assert [(row.batch, row.lane, row.what) for row in read_spans(folder / FILE)] == told


def test_a_checkpoint_of_before_there_was_a_time_line_is_gone_on_from(tmp_path: Path) -> None:
    folder = run_folder.RunFolder.create(tmp_path / "run", {}, {})
    append_jsonl(folder.path / "metrics.jsonl", [{}])
    older = {name: size for name, size in folder.sizes().items() if name != FILE}
    folder.reopen(older)
    append_jsonl(folder.path / FILE, [{"of": "a batch that no checkpoint knows"}])
    folder.reopen(older)
    assert folder.sizes()[FILE] == 0
    assert folder.sizes()["metrics.jsonl"] == older["metrics.jsonl"] > 0
