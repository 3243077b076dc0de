"""How many ordinary answers does the verifier grade in a second?

    python -m benchmarks.verifier --dataset_names GSM8K_FOLDER MATH500_FOLDER

Every gold answer of the data sets is graded twice, in the words of a solution: against itself, and against the gold of
the next problem. What needs algebra goes to the child processes; pairs are graded once each, so no cache helps. The
work is that of `flow-dpo verify` without reading and writing files.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from itertools import pairwise

from benchmarks import measuring
from flow_dpo.extract import AnswerRule
from flow_dpo.problems import load_problems
from flow_dpo.verify import Verifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_names", nargs="+", default=["seed"])
    parser.add_argument("--dataset_split", default="test")
    settings = parser.parse_args()
    for name in settings.dataset_names:
        golds = [problem.gold for problem in load_problems(name, split=settings.dataset_split).problems]
        pairs = dict.fromkeys(zip(golds, golds, strict=True)) | dict.fromkeys(pairwise(golds))
        items = [(gold, f"First this, then that.\nAnswer: {answer}", True) for gold, answer in pairs]
        with Verifier(rule=AnswerRule()) as verifier:
            verifier.grade("x+1", "\\boxed{1+x}", ended=True)  # the workers are up
            began = time.perf_counter()
            verdicts = verifier.grade_many(items)
            seconds = time.perf_counter() - began
        algebra = sum(verdict.reason.startswith("algebra") for verdict in verdicts)
        counts = dict(Counter(verdict.status for verdict in verdicts))
        print(
            f"{name}: {len(items) / seconds:.0f} answers a second ({len(items)} in {seconds:.2f} s, {algebra} by "
            f"algebra): {counts}\n{measuring.machine(2)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
