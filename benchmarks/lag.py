"""Accuracy on the embedded seed by lag: what learning from rollouts of older adapters costs.

    python -m benchmarks.lag --output_dir runs/lag                      # nine runs of 1,000 problems, an hour
    python -m benchmarks.lag --divide --output_dir runs/lag-divided     # smaller batches: as many problems in flight

Trains at lag 0, 1 and 3 with each of three seeds and evaluates the adapters on held-out problems. Runs with the same
seed differ only in the lag: they learn from the same problems in the same order. Each lag is compared with lag 0 by the
accuracies of each seed and their mean difference with its 95 % t-interval over the seeds, and in the same way by the
progressive validation of the last 250 problems. With `--divide` a batch at lag k has 1 / (k + 1) of the problems (and
of Stop's updates), so as many problems are in flight as at lag 0. Finished runs are not repeated. Everything is written
to lag.json in the folder. A run samples in this process; other workers would not change a token.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure

MODULE = "benchmarks.lag"
BATCH, STOP_UPDATES = 32, 2
"""Of the preset `seed`: problems of a batch, and Stop's updates of one."""


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/lag"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lags", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--divide", action="store_true", help="keep the number of problems in flight")
    parser.add_argument("--max_problems", type=int, default=1000)
    parser.add_argument("--num_held_out", type=int, default=1000)
    settings = parser.parse_args()
    if settings.tiny:
        settings.seeds, settings.lags, settings.max_problems, settings.num_held_out = [0, 1], [1], 32, 16
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    lags = [0, *settings.lags]
    runs = [one(settings, lag, seed) for seed in settings.seeds for lag in lags]
    found = compare(runs, lags)
    facts = {"command": shlex.join(["python", "-m", MODULE, *sys.argv[1:]]), "runs": runs, "against_lag_0": found}
    (settings.output_dir / "lag.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(table(runs, lags, found))
    divided = " in smaller batches" if settings.divide else ""
    names = {"held_out": "held-out accuracy", "last_250": "progressive accuracy of the last 250"}
    figures = [
        # A ratio of accuracies; whether the interval of the difference holds 0 is in the details.
        Figure(
            name=f"lag {lag}{divided} over lag 0, seed model: {names[what]}",
            ratio=each["ratio"],
            reach="",
            details=each,
        )
        for lag, by in found.items()
        for what, each in by.items()
    ]
    measuring.keep(figures, settings, MODULE)


def one(settings: argparse.Namespace, lag: int, seed: int) -> dict[str, Any]:
    """One run and its evaluation, unless they are there."""
    run = settings.output_dir / f"lag{lag}-seed{seed}"
    threads = ["--num_threads", str(settings.num_threads)]
    batch = [
        "--problems_per_batch", str(BATCH // (lag + 1)), "--learner.roles.stop.updates_per_batch",
        str(max(1, STOP_UPDATES // (lag + 1))),
    ] if settings.divide else []  # fmt: skip
    flow_dpo(
        run / "adapters", "train", "--run.lag", str(lag), "--seed", str(seed), "--max_problems",
        str(settings.max_problems), "--output_dir", str(run), *batch, *threads,
    )  # fmt: skip
    evaluated = run / "held_out"
    flow_dpo(
        evaluated / "summary.json", "evaluate", "--run", str(run), "--max_problems", str(settings.num_held_out),
        "--output_dir", str(evaluated), *threads,
    )  # fmt: skip
    trees = [json.loads(line) for line in (run / "trees.jsonl").read_text(encoding="utf-8").splitlines()]
    right = [tree["rollouts"][0]["verdict"]["status"] == "correct" for tree in trees]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    drifts = [value for row in rows for name, value in row.items() if name.endswith("/max_logprob_drift")]
    return {
        "lag": lag,
        "seed": seed,
        "held_out": json.loads((evaluated / "summary.json").read_text(encoding="utf-8"))["accuracy"],
        "last_250": sum(right[-250:]) / len(right[-250:]),
        "updates": sum(row["learn/updates"] for row in rows),
        "max_logprob_drift": max(drifts, default=None),
    }


def flow_dpo(done: Path, *words: str) -> None:
    """Run one command unless its output is there; a run that was interrupted is gone on with."""
    if done.exists():
        return
    folder = Path(words[words.index("--output_dir") + 1])
    more = ["--resume"] if words[0] == "train" and (folder / "config.yaml").exists() else []
    subprocess.run([sys.executable, "-m", "flow_dpo", *words, *more], check=True, cwd=measuring.ROOT)


def compare(runs: Sequence[Mapping[str, Any]], lags: Sequence[int]) -> dict[int, dict[str, dict[str, Any]]]:
    """Each lag against 0, paired by seed: mean difference, its 95 % t-interval, and whether that holds 0."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for lag in (each for each in lags if each):
        found[lag] = {}
        for what in ("held_out", "last_250"):
            by = {(run["lag"], run["seed"]): run[what] for run in runs}
            seeds = [seed for at, seed in by if at == 0]
            before, after = [by[0, seed] for seed in seeds], [by[lag, seed] for seed in seeds]
            low, mean, high = interval([b - a for a, b in zip(before, after, strict=True)])
            found[lag][what] = {
                "difference": mean, "interval": [low, high], "holds_0": low <= 0 <= high,
                "ratio": sum(after) / max(sum(before), 1e-9), "lag_0": before, "lagged": after,
            }  # fmt: skip
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower bound of the 95 % t-interval, mean, upper bound; of one value nothing is known but itself."""
    from scipy import stats

    mean = sum(values) / len(values)
    if len(values) < 2:
        return float("-inf"), mean, float("inf")
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.tstd(values) / len(values) ** 0.5)
    return mean - half, mean, mean + half


def table(runs: Sequence[Mapping[str, Any]], lags: Sequence[int], found: Mapping[int, Any]) -> str:
    """Accuracies by lag and seed in per cent, and the differences, as Markdown."""
    lines = [
        "| lag | held out, by seed | difference | last 250 problems, by seed | difference |",
        "|---|---|---|---|---|",
    ]
    for lag in lags:
        cells = [str(lag)]
        for what in ("held_out", "last_250"):
            cells.append(", ".join(f"{100 * run[what]:.1f}" for run in runs if run["lag"] == lag))
            if lag:
                each = found[lag][what]
                low, high = each["interval"]
                cells.append(f"{100 * each['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
            else:
                cells.append("")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
