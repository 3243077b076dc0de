"""Time and memory of a problem early and late in a long run.

    python -m benchmarks.long_run

One run of 2,000 problems on the embedded seed with the shipped preset. The seconds of a problem are measured from
outside, between rows of metrics.jsonl, so they include the records and the checkpoints. Memory is what the process
holds when a row is written. The problems around the 200th are compared with the last ones, the same number of each.

A run's behaviour changes as it learns: solutions get shorter and alternatives rarer, while question and verdict are
read as before, so more tokens are read for each sampled one. Seconds of sampling are therefore given per thousand
sampled tokens, which is what a token costs, and per thousand tokens that went through the model, sampled or read, which
shows whether computing a token has become slower. Target: at most 1.1 times.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import Figure
from benchmarks.watching import Batch, watch

MODULE = "benchmarks.long_run"


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--max_problems", type=int, default=2000)
    parser.add_argument("--early", type=int, default=200, help="the problem to compare the last one with")
    parser.add_argument("--around", type=int, default=192, help="problems on each side of the comparison")
    settings = parser.parse_args()
    if settings.tiny:
        settings.max_problems, settings.early, settings.around = 160, 64, 64
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "--max_problems", str(settings.max_problems)]
        watched = watch(words, Path(folder) / "run", num_threads=settings.num_threads)
    early = window(watched.rows, settings.early + settings.around // 2, settings.around)
    late = window(watched.rows, settings.max_problems, settings.around)
    details = {"early": early, "late": late, "total_s": watched.total_s}
    names = f"problem {settings.max_problems:,} against {settings.early:,}"
    figures = [
        Figure(name=f"{names}: {what}", ratio=late[key] / early[key], reach="<= 1.1", details=details)
        for what, key in (
            ("seconds", "s_a_problem"),
            ("memory", "rss_mib"),
            ("seconds of sampling, of 1,000 sampled tokens", "sampling_s_a_thousand_sampled"),
            ("seconds of sampling, of 1,000 computed tokens", "sampling_s_a_thousand_computed"),
        )
    ]
    print(f"early {early}\nlate  {late}")
    measuring.keep(figures, settings, MODULE)


def window(rows: Sequence[Batch], end: int, size: int) -> dict[str, float]:
    """Means over the batches that end after problem `end - size` and not after `end`."""
    inside = [i for i, b in enumerate(rows) if i and end - size < b.row["problems_seen"] <= end]
    assert inside, f"no batch ends within {size} problems before problem {end}"
    first, last = rows[inside[0] - 1], rows[inside[-1]]
    sampled, read, sampling_s, num_forwards = (
        sum(rows[i].row[f"rollout/{name}"] for i in inside)
        for name in ("sampled_tokens", "prefilled_tokens", "seconds", "num_forwards")
    )
    seconds = last.at_s - first.at_s
    return {
        "s_a_problem": seconds / (last.row["problems_seen"] - first.row["problems_seen"]),
        "s_a_thousand_tokens": 1000 * seconds / sampled,
        "sampling_s_a_thousand_sampled": 1000 * sampling_s / sampled,
        "sampling_s_a_thousand_computed": 1000 * sampling_s / (sampled + read),
        "read_a_sampled_token": read / sampled,
        "sampled_a_forward": sampled / num_forwards,
        "rss_mib": statistics.mean(rows[i].rss_mib for i in inside if rows[i].rss_mib),
    }


if __name__ == "__main__":
    main()
