"""Several rollout workers against one, sampling beside learning against one after the other, and what Ray itself costs.

    python -m benchmarks.workers                                        # engines that sleep, and the model against them
    python -m benchmarks.workers --model_name_or_path FOLDER            # and a real model, on Ray: two idle cores

A scripted engine that sleeps at every request shows what the pool costs: 2 workers over 1 with shards enough for both,
and 1, 2 and 4 workers at lags 0 and 1 against the throughput model (`tools.scaling_plan`), which is given only the
seconds of a shard on one worker and the seconds of learning.

With a real model, runs are made as a user makes them, each in a process of its own, with one thread for each worker and
one for the learner: in this process, on Ray with one worker and with two, and with one worker at lag 1. The first batch
of each run, in which workers warm up, is left out. The seconds that the learner waits for a batch are compared (at lag
0, all of the sampling); at lag 1, the wall-clock over the longer of sampling and learning.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.measuring import Figure, Report

MODULE = "benchmarks.workers"
SLEEPING = [(workers, lag) for lag in (0, 1) for workers in (1, 2, 4)]


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", help="a real model, with workers on Ray")
    parser.add_argument("--only_given", action="store_true", help="leave the sleeping engines out")
    parser.add_argument("--sleep_s", type=float, default=0.005, help="seconds of a request to a sleeping engine")
    parser.add_argument("--learn_s", type=float, default=1.2, help="seconds the sleeping learner takes for a batch")
    parser.add_argument("--max_problems", type=int, default=64, help="problems for the real model")
    parser.add_argument("--problems_per_batch", type=int, default=8, help="for the real model, in shards of a fourth")
    settings = parser.parse_args()
    if settings.tiny:
        settings.sleep_s, settings.learn_s, settings.max_problems = 0.001, 0.05, 12
        settings.problems_per_batch, settings.repeats = 4, 1
    if settings.side:
        kind, _, words = settings.side.partition("-")
        measuring.report(sleeping(settings, words) if kind == "sleep" else real(settings, settings.side))
        return
    if not settings.only_given:
        pooled(settings)
    if not settings.model_name_or_path:
        print("workers with a real model: skipped, for --model_name_or_path is not given", flush=True)
    elif not importlib.util.find_spec("ray"):
        print("workers with a real model: skipped, for Ray is not installed (pip install -e '.[ray]')", flush=True)
    else:
        on_ray(settings)


# ---- engines that sleep ----------------------------------------------------------------------------------------------


def pooled(settings: argparse.Namespace) -> None:
    """The pool alone, and the model of throughput against it."""
    flags = ["--sleep_s", str(settings.sleep_s), "--learn_s", str(settings.learn_s)]
    flags += ["--tiny"] if settings.tiny else []
    sides = dict.fromkeys(["sleep-1-none", "sleep-2-none", *(f"sleep-{w}-{lag}" for w, lag in SLEEPING)], flags)
    found = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    seconds = {side: measuring.median(reports, "seconds") for side, reports in found.items()}
    figures = [
        Figure(
            name="workers, an engine that sleeps: 2 over 1",
            ratio=seconds["sleep-1-none"] / seconds["sleep-2-none"],
            reach=">= 1.9",
            details={"seconds": seconds, "runs": found},
        )
    ]
    one = found["sleep-1-0"][0]
    for workers, lag in SLEEPING:
        side = f"sleep-{workers}-{lag}"
        measured = measuring.median(found[side], "batch_s")
        forecast = predicted(settings, one["sampled_s"] / one["shards"], workers, lag)
        name = f"workers, an engine that sleeps, {workers} at lag {lag}: seconds of a batch over the model's"
        details = {"measured_s": measured, "predicted_s": forecast}
        figures.append(Figure(name=name, ratio=measured / forecast, reach="", details=details))
    measuring.keep(figures, settings, MODULE)


def sizes(settings: argparse.Namespace) -> dict[str, int]:
    """Eight shards a batch: as many for each of 1, 2 and 4 workers."""
    return {"problems": 64, "problems_per_batch": 16, "shard": 2} if settings.tiny else {
        "problems": 256, "problems_per_batch": 32, "shard": 4,
    }  # fmt: skip


def sleeping(settings: argparse.Namespace, words: str) -> Report:
    """One loop over sleeping workers; "none" as its lag is without a learner, in one batch of all problems."""
    from benchmarks import sleeping as asleep

    workers, _, lag = words.partition("-")
    size = sizes(settings)
    shards = size["problems"] // size["shard"]
    if lag == "none":
        size["problems_per_batch"] = size["problems"]
    learn_s = 0.0 if lag == "none" else settings.learn_s
    found = asleep.run(
        workers=int(workers), lag=0 if lag == "none" else int(lag), sleep_s=settings.sleep_s, learn_s=learn_s, **size
    )
    return {**found, "shards": shards}


def predicted(settings: argparse.Namespace, shard_s: float, workers: int, lag: int) -> float:
    """Seconds of a batch by the model, from those of a shard and of learning."""
    from tools.scaling_plan import Costs, simulate

    size = sizes(settings)
    costs = Costs(
        problems=size["problems_per_batch"],
        shard=size["shard"],
        tokens=1,
        token_s=shard_s / size["shard"],
        update_s=settings.learn_s,
    )
    return 3600 * costs.problems / simulate(costs, workers=workers, lag=lag).problems_an_hour


# ---- a real model ----------------------------------------------------------------------------------------------------


def on_ray(settings: argparse.Namespace) -> None:
    """Workers on Ray against this process."""
    model = settings.model_name_or_path
    flags = ["--model_name_or_path", model, "--max_problems", str(settings.max_problems)]
    flags += ["--problems_per_batch", str(settings.problems_per_batch), *(["--tiny"] if settings.tiny else [])]
    sides = dict.fromkeys(["here", "ray-1", "ray-2", "lag-1"], flags)
    found = measuring.take_turns(MODULE, sides, num_threads=settings.num_threads, repeats=settings.repeats)
    name, details = model.rstrip("/").rpartition("/")[2], {"runs": found}

    def seconds(side: str, what: str) -> float:
        return measuring.median(found[side], what)

    longer = max(seconds("lag-1", "sampled_s"), seconds("lag-1", "learned_s"))
    figures = [
        Figure(name=f"workers, {name}: 2 on Ray over 1", reach=">= 1.7", details=details,
               ratio=seconds("ray-1", "waited_s") / seconds("ray-2", "waited_s")),
        Figure(name=f"workers, {name}: 1 on Ray over this process, seconds of sampling", reach="<= 1.05",
               ratio=seconds("ray-1", "waited_s") / seconds("here", "sampled_s"), details=details),
        Figure(name=f"workers, {name}: lag 1, wall-clock over the longer of sampling and learning", reach="<= 1.15",
               ratio=seconds("lag-1", "wall_s") / longer, details=details),
    ]  # fmt: skip
    measuring.keep(figures, settings, MODULE)


def real(settings: argparse.Namespace, side: str) -> Report:
    """One run, as a user makes it."""
    import flow_dpo
    from flow_dpo.runs.records import read_metrics
    from flow_dpo.runs.spans import FILE, LEARNER, read_spans

    kind, _, number = side.partition("-")
    given: dict[str, Any] = {
        "run.problems_per_batch": settings.problems_per_batch, "model.num_threads": settings.num_threads,
        "workers.kind": "here" if kind == "here" else "ray", "workers.num": int(number) if kind == "ray" else 1,
        "workers.shard": max(1, settings.problems_per_batch // 4), "workers.num_threads": settings.num_threads,
        "run.lag": 1 if kind == "lag" else 0,
        # Updates of what there is: a weak model finds few pairs.
        "learner.examples_per_update": 0,
    }  # fmt: skip
    preset = "seed" if settings.model_name_or_path == "seed" else "small"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        flow_dpo.train(settings.model_name_or_path, "seed", preset=preset, max_problems=settings.max_problems,
                       output_dir=path, quiet=True, settings=given)  # fmt: skip
        rows = read_metrics(path / "metrics.jsonl")[1:]
        ends = [row.end for row in read_spans(path / FILE) if row.lane == LEARNER and row.what == "learning"]

    def total(*names: str) -> float:
        return sum(row[name] for row in rows for name in names)

    return {
        "sampled_s": total("rollout/seconds", "grade/seconds"),
        "waited_s": total("rollout/wait_seconds"),
        "learned_s": total("learn/seconds"),
        "wall_s": max(ends) - min(ends),
        "tokens": total("rollout/sampled_tokens"),
    }


if __name__ == "__main__":
    main()
