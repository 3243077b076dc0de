"""Are the numbers of a run's batches read as they stand, at the same cost for the last batch as for the first?"""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from flow_dpo.report.viewer.curves import Batches


def test_a_batch_costs_its_own_numbers_however_many_came_before() -> None:
    """Memory that a row takes is counted, also what is given back at once: columns were made for nothing."""
    num = 100_000
    batches = Batches(lambda: Path("metrics.jsonl"))
    batches.ends, batches.starts = list(range(1, num + 1)), list(range(num))
    batches.series = {"learn/loss": [0.0] * num}
    row = {"schema": "metrics/1", "problems_seen": num + 1, "learn/loss": 1.0}
    batches._add(num + 1, row)  # after which the lists have room
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        batches._add(num + 2, row | {"problems_seen": num + 2})
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert batches.series["learn/loss"][-3:] == [0.0, 1.0, 1.0]
    assert peak < num, f"{peak} bytes: a column of {num} batches takes eight times as many"


def test_a_metric_that_comes_late_has_gaps_before_it() -> None:
    batches = Batches(lambda: Path("metrics.jsonl"))
    for at, more in enumerate(({"a": 1.0}, {"b": 2}, {"a": 3.0, "b": None})):
        batches._add(at + 1, {"schema": "metrics/1", "problems_seen": at + 1, **more})
    assert batches.series == {"a": [1.0, None, 3.0], "b": [None, 2, None]}
