"""Throughput of the verifier on ordinary answers, in answers a second.

    python -m benchmarks.verifier --dataset_names GSM8K_FOLDER MATH500_FOLDER

Every gold answer of the data sets is graded twice, worded as a solution: against itself, and against the gold answer of
the next problem. Answers that need algebra go to the child processes. Each pair is graded once, so no cache helps. The
work is that of `flow-dpo verify` without reading and writing files.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import Figure

MODULE = "benchmarks.verifier"


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.set_defaults(num_threads=2)
    parser.add_argument("--dataset_names", nargs="+", default=["seed"])
    parser.add_argument("--dataset_split", default="test")
    settings = parser.parse_args()
    most = 50 if settings.tiny else None
    figures = [figure(name, settings.dataset_split, most) for name in settings.dataset_names]
    measuring.keep(figures, settings, MODULE)


def figure(name: str, split: str, most: int | None) -> Figure:
    """Answers a second on one data set."""
    from flow_dpo.data.problems import load_problems
    from flow_dpo.verify.extract import AnswerRule
    from flow_dpo.verify.verifier import Verifier

    golds = [problem.gold for problem in load_problems(name, split=split, max_problems=most).problems]
    pairs = dict.fromkeys(zip(golds, golds, strict=True)) | dict.fromkeys(pairwise(golds))
    items = [(gold, f"First this, then that.\nAnswer: {answer}", True) for gold, answer in pairs]
    with Verifier(rule=AnswerRule()) as verifier:
        verifier.grade("x+1", "\\boxed{1+x}", ended=True)  # the workers are up
        began = time.perf_counter()
        verdicts = verifier.grade_many(items)
        seconds = time.perf_counter() - began
    details = {
        "answers": len(items),
        "seconds": seconds,
        "by_algebra": sum(verdict.reason.startswith("algebra") for verdict in verdicts),
        "verdicts": dict(Counter(verdict.status for verdict in verdicts)),
    }
    print(f"{name}: {details}", flush=True)
    title = f"verifier, answers of {Path(name).name}: a second"
    return Figure(name=title, ratio=len(items) / seconds, reach=">= 1000", details=details)


if __name__ == "__main__":
    main()
