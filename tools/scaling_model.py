"""Predicts a run's throughput from workers, ranks, lag, chunks and model size, with measured, guessed or given costs.

    python -m tools.scaling_model --run runs/train                           costs from a run, compared with that run
    python -m tools.scaling_model --run runs/one --check runs/two runs/four  also compared with other runs
    python -m tools.scaling_model --size 8 --chunk_tokens 160 --max_chunks 6 costs guessed for a GPU
    python -m tools.scaling_model --run runs/train --row_s 0.4               any cost can be given (see --help)

The loop is simulated batch by batch, as it runs (`tools.scaling_plan`). A shard takes

    steps * step_s + problems * (tokens * token_s + grade_s)

where `steps` is the number of consecutive decoding steps, however few problems there are, and `token_s` is what each
token adds to them. Invariant: costs from a run are measured, costs from `--size` are guessed, and the first line of the
output says which.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from flow_dpo.runs import spans
from flow_dpo.runs.records import read_metrics
from flow_dpo.runs.resolve import read_settings
from tools.scaling_plan import Costs, advise, gpus_of, guess, simulate

# ---- measured costs and throughput -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run: its costs, its setup, and its throughput."""

    costs: Costs
    workers: int
    ranks: int
    lag: int
    here: bool
    problems_an_hour: float | None
    """From the run's time line; None without one."""

    def by(self, costs: Costs) -> float:
        """The predicted problems per hour with other costs, in this run's setup."""
        own = self.costs
        rows = costs.rows * own.problems / costs.problems
        again = replace(costs, problems=own.problems, shard=own.shard, rows=rows)
        found = simulate(again, workers=self.workers, ranks=self.ranks, lag=self.lag, here=self.here)
        return found.problems_an_hour


def measure(run: Path) -> Measured:
    """The costs of a run's batches, without the first one, which includes warm-up. Exits if there are too few."""
    rows = read_metrics(run / "metrics.jsonl")
    if len(rows) < 3:
        raise SystemExit(f"expected three batches or more in {run}, found {len(rows)}: let the run continue")
    settings = read_settings(run / "config.yaml").get("workers") or {}
    problems = [int(b["problems_seen"] - a["problems_seen"]) for a, b in pairwise([{"problems_seen": 0}, *rows])]
    rows, counts = rows[1:], problems[1:]
    size, num = max(problems), sum(counts)
    here = "rollout/workers" not in rows[-1]
    shard = int(settings.get("shard") or (0 if here else 16))
    shards = sum(math.ceil(count / (shard or size)) for count in counts)

    def total(*names: str) -> float:
        return sum(float(row.get(name) or 0.0) for row in rows for name in names)

    roles = sorted({name.split("/")[1] for row in rows for name in row if name.endswith("/rows") and "learn/" in name})
    num_rows = total(*(f"learn/{role}/rows" for role in roles))
    work_s = total(*(f"learn/{role}/{part}" for role in roles for part in ("reference_s", "forward_s", "backward_s")))
    ranks = int(rows[-1].get("ranks/num") or 1)
    step_s, token_s = _two_costs(rows)
    gap_s, rate = _times(run, problems)
    costs = Costs(
        problems=size,
        shard=shard,
        tokens=total("rollout/sampled_tokens") / num,
        steps=total("rollout/num_forwards") / shards,
        step_s=step_s,
        token_s=token_s,
        grade_s=total("grade/seconds") / num,
        rows=num_rows / len(rows),
        row_s=work_s / max(num_rows, 1),
        update_s=max(0.0, total("learn/seconds") - work_s / ranks) / len(rows),
        batch_s=gap_s,
    )
    return Measured(
        costs=costs,
        workers=1 if here else round(statistics.median(row["rollout/workers"] for row in rows)),
        ranks=ranks,
        lag=int(rows[-1].get("run/lag") or 0),
        here=here,
        problems_an_hour=rate,
    )


def _two_costs(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds per decoding step and per token, by least squares over the batches; neither is negative."""
    data = [
        (
            float(row.get("rollout/num_forwards") or 0),
            float(row["rollout/sampled_tokens"]),
            float(row["rollout/seconds"]),
        )
        for row in rows
    ]
    ff, ft, tt = (sum(a * b for a, b in pairs) for pairs in (
        [(f, f) for f, _, _ in data], [(f, t) for f, t, _ in data], [(t, t) for _, t, _ in data]))  # fmt: skip
    fs, ts = sum(f * s for f, _, s in data), sum(t * s for _, t, s in data)
    determinant = ff * tt - ft * ft
    if determinant > 1e-6 * ff * tt:
        step_s, token_s = (fs * tt - ts * ft) / determinant, (ts * ff - fs * ft) / determinant
        if step_s >= 0 and token_s >= 0:
            return step_s, token_s
        if token_s < 0:
            return fs / ff, 0.0
    return 0.0, ts / max(tt, 1e-9)


def _times(run: Path, problems: Sequence[int]) -> tuple[float, float | None]:
    """The median seconds of a batch outside sampling and learning, and problems per hour; both from the learner's lane
    of the time line, from the end of the first batch."""
    recorded = spans.read_spans(run / spans.FILE)
    ends, gaps = dict[int, float](), list[float]()
    for span in recorded:
        if span.lane == spans.LEARNER and span.what == "learning":
            ends[span.batch] = span.end
    for batch, end in sorted(ends.items()):
        if batch - 1 in ends:
            mine = [s for s in recorded if s.batch == batch and (s.lane == spans.LEARNER or s.lane == "here")]
            gaps.append(max(0.0, end - ends[batch - 1] - sum(span.seconds for span in mine)))
    if not gaps:
        return 0.0, None
    first, last = min(ends), max(ends)
    return statistics.median(gaps), 3600 * sum(problems[first + 1 : last + 1]) / (ends[last] - ends[first])


# ---- the command -----------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> None:
    """Print the costs, the table against workers, ranks and lag, checks and advice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run folder; its metrics and time line give the costs")
    source.add_argument("--size", type=float, help="billions of parameters, for guessed costs on an H100")
    parser.add_argument("--chunk_tokens", type=int, default=160, help="with --size")
    parser.add_argument("--max_chunks", type=int, default=6, help="with --size")
    parser.add_argument("--check", type=Path, nargs="+", default=[], help="runs to compare the prediction with")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    for field in fields(Costs):
        parser.add_argument(f"--{field.name}", type=int if field.name in ("problems", "shard") else float)
    given = parser.parse_args(words)
    own = {name.name: getattr(given, name.name) for name in fields(Costs) if getattr(given, name.name) is not None}
    measured = measure(given.run) if given.run else None
    if measured is not None:
        costs, each, what = measured.costs, 1, f"Measured: {given.run}"
    else:
        costs = guess(given.size, chunk_tokens=given.chunk_tokens, max_chunks=given.max_chunks)
        each, what = gpus_of(given.size), "Guessed, not measured: an H100 of 80 GB"
    costs = replace(costs, rows=costs.rows * (given.problems or costs.problems) / costs.problems)
    costs = replace(costs, **own)
    shown = ", ".join(f"{field.name} {getattr(costs, field.name):.4g}" for field in fields(Costs))
    print(f"{what}{'; given: ' + ', '.join(own) if own else ''}\n{shown}\n")
    runs = ([(given.run, measured)] if measured is not None else []) + [(run, measure(run)) for run in given.check]
    if runs:
        print("| run | workers | ranks | lag | measured/h | predicted/h | measured over predicted |")
        print("|---|---:|---:|---:|---:|---:|---:|")
    for run, one in runs:
        rate, by = one.problems_an_hour or math.nan, one.by(costs)
        kind = "here" if one.here else f"{one.workers}"
        print(f"| {run.name} | {kind} | {one.ranks} | {one.lag} | {rate:,.0f} | {by:,.0f} | {rate / by:.2f} |")
    print("\n| problems/h | " + " | ".join(f"{w} worker{'s' * (w > 1)}" for w in given.workers) + " |")
    print("|---|" + "---:|" * len(given.workers))
    for ranks in given.ranks:
        for lag in given.lags:
            rates = [simulate(costs, workers=w, ranks=ranks, lag=lag).problems_an_hour for w in given.workers]
            print(f"| {ranks} rank{'s' * (ranks > 1)}, lag {lag} | " + " | ".join(f"{r:,.0f}" for r in rates) + " |")
    print("", *advise(costs, given.gpus, each=each, lags=given.lags), sep="\n")


if __name__ == "__main__":
    main()
