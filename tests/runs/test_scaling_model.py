"""Is the model of throughput the loop's arithmetic, and does it read a run's costs back?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flow_dpo.runs.files import append_jsonl
from flow_dpo.runs.records import to_json
from flow_dpo.runs.spans import FILE, SpanRow
from tests.support.record_examples import METRICS
from tools.scaling_model import main, measure
from tools.scaling_plan import Costs, advise, best, gpus_of, guess, plans, simulate

COSTS = Costs(problems=8, shard=4, tokens=100, token_s=0.01, rows=3, row_s=1, update_s=1, batch_s=1)
"""A shard takes 4 s, a batch of two 8 s on one worker; 4 s are learned, and one more passes."""


def seconds(costs: Costs, workers: int = 1, ranks: int = 1, lag: int = 0, *, here: bool = False) -> float:
    """Of a batch."""
    found = simulate(costs, workers=workers, ranks=ranks, lag=lag, here=here)
    return 3600 * costs.problems / found.problems_an_hour


def test_batches_take_what_the_loop_takes() -> None:
    # By turns: 8 + 4 + 1. A lag is nothing to one process.
    assert seconds(COSTS, here=True) == pytest.approx(13)
    assert seconds(COSTS, lag=2, here=True) == pytest.approx(13)
    assert seconds(COSTS) == pytest.approx(13)
    # Two workers halve the sampling, a third finds no shard, and at lag 1 all but the longer of both is hidden.
    assert seconds(COSTS, workers=2) == pytest.approx(9)
    assert seconds(COSTS, workers=3) == pytest.approx(9)
    assert seconds(COSTS, lag=1) == pytest.approx(8)
    assert seconds(COSTS, workers=2, lag=1) == pytest.approx(5)
    # Three rows on two ranks: the longest has two; a fourth rank has none.
    assert seconds(COSTS, workers=2, ranks=2) == pytest.approx(8)
    assert seconds(COSTS, workers=2, ranks=4) == seconds(COSTS, workers=2, ranks=3) == pytest.approx(7)
    # Serial steps are paid by each shard, alone or beside others.
    assert seconds(replace(COSTS, steps=30, step_s=0.1)) == pytest.approx(13 + 2 * 3)
    assert seconds(replace(COSTS, steps=30, step_s=0.1), workers=2, lag=1) == pytest.approx(7)


def test_shares_and_fractions() -> None:
    found = simulate(COSTS, workers=2)
    assert (found.workers_busy, found.learner_busy) == (pytest.approx(4 / 9), pytest.approx(4 / 9))
    assert replace(COSTS, rows=2.5).rows_of_longest(2) == pytest.approx(1.5)  # 2 or 3 rows: 1 or 2 on a rank
    assert replace(COSTS, rows=0.5).rows_of_longest(8) == pytest.approx(0.5)
    # Uneven shards cost a lagging run less than one that waits for the slowest of each batch.
    uneven = replace(COSTS, spread=0.5, batch_s=0)
    assert seconds(uneven, workers=2) > 1.05 * seconds(replace(COSTS, batch_s=0), workers=2)
    assert seconds(uneven, workers=2, lag=3) < seconds(uneven, workers=2, lag=1) < seconds(uneven, workers=2)


def test_what_is_guessed_grows_with_the_model_and_a_run_saturates() -> None:
    small, large = (guess(size, chunk_tokens=160, max_chunks=6) for size in (0.5, 8))
    assert small.tokens == large.tokens
    assert small.step_s < large.step_s
    assert small.row_s < large.row_s
    assert [gpus_of(size) for size in (0.5, 8, 32, 70)] == [1, 1, 2, 4]
    ways = plans(large, 64)
    rates = [way.found.problems_an_hour for count in (1, 2, 4, 8, 16, 32, 64) if (way := best(ways, count))]
    assert rates == sorted(rates)
    assert rates[-1] == rates[-2] > 3 * rates[0]
    assert all(way.workers + way.ranks == way.gpus for way in ways[1:])
    assert best(plans(guess(70, chunk_tokens=160, max_chunks=6), 64, each=4), 7) is None
    lines = advise(large, [8, 64])
    assert any(line.startswith("64 GPUs, runs in parallel") for line in lines)
    assert advise(large, [2], each=4) == ["one run needs 8 GPUs or more"]


def run(path: Path, costs: Costs, *, batches: int = 6) -> Path:
    """The folder of a run by turns in one process, which took what the model says."""
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"workers": {"kind": "here", "shard": 0}}))
    now, told, rows = 0.0, list[SpanRow](), list[dict[str, object]]()
    for batch in range(batches):
        forwards, tokens = 50 + 10 * (batch % 3), 800 + 40 * batch
        sampled = forwards * costs.step_s + tokens * costs.token_s
        learned = costs.rows * costs.row_s + costs.update_s
        rows.append(METRICS | {
            "problems_seen": 8 * (batch + 1), "rollout/num_forwards": forwards, "rollout/sampled_tokens": tokens,
            "rollout/seconds": sampled, "grade/seconds": 8 * costs.grade_s, "learn/seconds": learned,
            "learn/answer/rows": costs.rows, "learn/answer/forward_s": costs.rows * costs.row_s / 4,
            "learn/answer/backward_s": 3 * costs.rows * costs.row_s / 4, "run/lag": 0,
        })  # fmt: skip
        for lane, what, took in (
            ("here", "sampling", sampled), ("here", "grading", 8 * costs.grade_s), ("learner", "learning", learned),
        ):  # fmt: skip
            told.append(SpanRow(batch=batch, lane=lane, what=what, start=now, end=now + took))
            now += took
        now += costs.batch_s
    append_jsonl(path / "metrics.jsonl", rows)
    append_jsonl(path / FILE, [to_json(span) for span in told])
    return path


def test_a_runs_costs_are_read_back_and_predict_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true = replace(COSTS, shard=0, step_s=0.02, grade_s=0.25)
    folder = run(tmp_path / "run", true)
    found = measure(folder)
    for name in ("step_s", "token_s", "grade_s", "rows", "row_s", "update_s", "batch_s", "shard", "problems"):
        assert getattr(found.costs, name) == pytest.approx(getattr(true, name), abs=1e-6), name
    assert (found.here, found.workers, found.ranks, found.lag) == (True, 1, 1, 0)
    assert found.by(found.costs) == pytest.approx(found.problems_an_hour, rel=0.02)
    # The command prints both, takes a cost of one's own, and says what is measured and what is guessed.
    main(["--run", str(folder), "--check", str(folder), "--row_s", "0.5", "--workers", "1", "2"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"Measured: {folder}; given: row_s\n")
    assert shown.count("| run | here | 1 | 0 |") == 2
    main(["--size", "8"])
    assert capsys.readouterr().out.startswith("Guessed, not measured: ")


def test_too_short_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected three batches or more in .*, found 2"):
        measure(run(tmp_path / "run", COSTS, batches=2))


def test_a_step_of_no_cost_and_a_token_of_none_are_told_apart(tmp_path: Path) -> None:
    for name, true in (("tokens", replace(COSTS, step_s=0)), ("steps", replace(COSTS, step_s=0.02, token_s=0))):
        found = measure(run(tmp_path / name, true)).costs
        assert (found.step_s, found.token_s) == (pytest.approx(true.step_s), pytest.approx(true.token_s)), name
    rows = [json.loads(line) for line in (tmp_path / "steps" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6
