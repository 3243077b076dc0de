"""Wall-clock of the quick start after installation, and the accuracy gained in it.

    python -m benchmarks.quickstart

`flow-dpo quickstart` as shipped runs in a process of its own and is timed from outside. The rise is that of the
windowed accuracy (250 problems, each before it was learned from), from the first full window to the last; where no
window fills, from the first row. Target: at most 30 seconds on two otherwise idle cores, and a rise of at least 0.25.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import Figure
from benchmarks.watching import watch

MODULE = "benchmarks.quickstart"
WINDOW = 250


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.set_defaults(repeats=1, num_threads=2)
    settings = parser.parse_args()
    words = ["quickstart", *(["--max_problems", "64"] if settings.tiny else [])]
    seconds: list[float] = []
    rises: list[float] = []
    for _ in range(settings.repeats):
        with tempfile.TemporaryDirectory() as folder:
            watched = watch(words, Path(folder) / "run", num_threads=settings.num_threads)
        rows = [batch.row for batch in watched.rows]
        first = next((row for row in rows if row["progressive/window_problems"] >= WINDOW), rows[0])
        before, after = (row["progressive/window_accuracy"] for row in (first, rows[-1]))
        print(f"{watched.total_s:.1f} s, windowed accuracy {before:.1%} to {after:.1%}", flush=True)
        seconds.append(watched.total_s)
        rises.append(after - before)
    details = {"seconds": seconds, "rises": rises}
    figures = [
        Figure(name="quickstart: seconds", ratio=statistics.median(seconds), reach="<= 30", details=details),
        Figure(name="quickstart: rise", ratio=statistics.median(rises), reach=">= 0.25", details=details),
    ]
    measuring.keep(figures, settings, MODULE)


if __name__ == "__main__":
    main()
