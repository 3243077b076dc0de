"""Profile of the wall-clock of a whole run, by what it is spent on.

    python -m benchmarks.profile_run                                            # the embedded seed, 320 problems
    python -m benchmarks.profile_run --model_name_or_path FOLDER                # and a real model, 32 problems

The run is started as a user starts it. Its metrics.jsonl has the time of the engine and of the learner. When each row
is written is seen from outside; time between the rows that is in none of the metrics is the record: text, JSON, disk,
checkpoints, progress bar. By construction the lines add up to the whole. A line called "other" is what is left of a
measured part: in rollouts, the Python of flows, rendering and runner; in learning, packing, the optimizer, checks and
the engine's refresh. The time of forwards is divided by tokens: decoding, prompts, and Stop's.

Arithmetic on tokens is decode, prefill, Stop's scoring, drawing tokens, reference, policy forward and backward. Target,
on a real model: anything else takes at most 0.15 of the time from the first batch's start to the last row. Starting up
(imports, loading) and finishing (last checkpoint, adapters, picture) happen once a run; they have lines of their own
and are left out of that share.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import Figure
from benchmarks.watching import Batch, Watched, watch

MODULE = "benchmarks.profile_run"
SEED = "seed"
ARITHMETIC = ("decode", "prefill", "stop scoring", "drawing", "reference", "policy forward", "backward")
ONCE = ("starting up", "finishing")


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model_name_or_path", help="a real model, profiled after the seed")
    parser.add_argument("--only_given", action="store_true", help="leave the seed out")
    parser.add_argument("--max_problems", type=int, help="default: 320 on the seed, 32 on a real model")
    settings = parser.parse_args()
    if settings.tiny:
        settings.max_problems = settings.max_problems or 64
    given = [settings.model_name_or_path] if settings.model_name_or_path else []
    for model in given if settings.only_given else [SEED, *given]:
        profile(model, settings)
    if not given:
        print("profile of a real model: skipped, for --model_name_or_path is not given", flush=True)


def profile(model: str, settings: argparse.Namespace) -> None:
    problems = settings.max_problems or (320 if model == SEED else 32)
    words = ["train", "--max_problems", str(problems), "--num_threads", str(settings.num_threads)]
    if model != SEED:
        # Updates of what there is: a short run on a weak model finds few pairs.
        words += ["--model_name_or_path", model, "--preset", "small", "--problems_per_batch", "16"]
        words += ["--dataset_name", "seed", "--examples_per_update", "0"]
    with tempfile.TemporaryDirectory() as folder:
        watched = watch(words, Path(folder) / "run", num_threads=settings.num_threads)
    parts = account(watched)
    name = model.rstrip("/").rpartition("/")[2]
    print(f"\n{name}, {problems} problems\n\n{as_table(parts)}\n", flush=True)
    running = sum(seconds for part, seconds in parts.items() if part not in ONCE)
    share = 1 - sum(parts[part] for part in ARITHMETIC) / running
    print(f"not arithmetic on tokens: {share:.1%}", flush=True)
    if model != SEED:
        figure = Figure(
            name=f"profile {name}: not arithmetic", ratio=share, reach="<= 0.15", details={"seconds": parts}
        )
        measuring.keep([figure], settings, MODULE)


def account(watched: Watched) -> dict[str, float]:
    """Seconds by what they were spent on; they add up to the run's."""
    rows = watched.rows
    rollouts, learning = total(rows, ["rollout/seconds"]), total(rows, ["learn/seconds"])
    grading = total(rows, ["grade/seconds"])
    first = sum(rows[0].row[name] for name in ("rollout/seconds", "grade/seconds", "learn/seconds"))
    starting = max(0.0, rows[0].at_s - first)
    parts = {
        "starting up": starting,
        "decode": total(rows, ["rollout/decode_s"]),
        "prefill": total(rows, ["rollout/prefill_s"]),
        "stop scoring": total(rows, ["rollout/choice_s"]),
        "drawing": total(rows, ["rollout/draw_s"]),
    }
    parts["playing, other"] = rollouts - sum(parts[part] for part in ("decode", "prefill", "stop scoring", "drawing"))
    parts["verification"] = grading
    for part, name in (("reference", "reference_s"), ("policy forward", "forward_s"), ("backward", "backward_s")):
        parts[part] = total(rows, [f"learn/answer/{name}", f"learn/stop/{name}"])
    parts["learning, other"] = learning - sum(parts[part] for part in ("reference", "policy forward", "backward"))
    parts["record and disk"] = rows[-1].at_s - starting - rollouts - grading - learning
    parts["finishing"] = watched.total_s - rows[-1].at_s
    return parts


def total(rows: Sequence[Batch], names: Sequence[str]) -> float:
    """Sum over the batches; a batch without an update has no seconds of one."""
    return sum(batch.row.get(name, 0.0) for batch in rows for name in names)


def as_table(parts: Mapping[str, float]) -> str:
    """Seconds and shares as a Markdown table."""
    whole = sum(parts.values())
    lines = ["| spent on | seconds | share |", "|---|---|---|"]
    lines += [f"| {part} | {seconds:.1f} | {seconds / whole:.1%} |" for part, seconds in parts.items()]
    return "\n".join([*lines, f"| all | {whole:.1f} | |"])


if __name__ == "__main__":
    main()
