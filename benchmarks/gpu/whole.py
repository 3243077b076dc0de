"""Parts that run commands: the tests marked `gpu`, and `flow-dpo train` as a user types it.

tests(context)      # pytest -m gpu on the files with that mark: the share of tests that pass
run(context)        # the same short run twice: does it work, does it drift, does it repeat?
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import watching
from benchmarks.gpu.measure import Context
from benchmarks.measuring import ROOT, Figure

_MARK = re.compile(r"mark\.gpu\b")


def tests(context: Context) -> None:
    """Run every test marked `gpu`. Exits if one fails; pytest's output is in the log."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if _MARK.search(path.read_text("utf-8"))]
    report = context.folder / "tests.xml"
    # Compilers warn on a GPU about things that are not a test's fault, so warnings are not errors here.
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "-rs"]
    status = subprocess.run([*words, f"--junit-xml={report}", *files], cwd=ROOT, check=False).returncode
    if not report.exists():
        raise SystemExit(f"pytest ended with status {status} before a report")
    # pytest has just written this file, so it contains no hostile XML entities.
    [suite] = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    ran = counts["tests"] - counts["skipped"]
    passed = ran - counts["failures"] - counts["errors"]
    name = f"tests marked gpu that pass, of {counts['tests']}"
    context.keep([Figure(name=name, ratio=passed / max(1, counts["tests"]), reach=">= 1", details=counts)])
    if status:
        raise SystemExit(f"pytest ended with status {status}")


def run(context: Context) -> None:
    """One short run on the seed model, twice with the same random seed. Exits if it fails."""
    problems, batch = ("8", "4") if context.rehearse else ("96", "32")
    words = ["train", "--max_problems", problems, "--problems_per_batch", batch]
    words += ["--examples_per_update", "0", "--num_threads", str(min(8, len(os.sched_getaffinity(0))))]
    watched = [watching.watch(words, context.folder / name, num_threads=1) for name in ("once", "again")]
    row = watched[0].rows[-1].row
    drifts = {name: value for name, value in row.items() if name.endswith("/logprob_drift")}
    if not drifts:
        raise SystemExit(f"expected an update, found none in {problems} problems: {sorted(row)}")
    found = [
        Figure(
            name="run on the seed: drift of log-probabilities from engine to learner, over the limit of 0.2 nats",
            ratio=max(drifts.values()) / 0.2,
            reach="<= 1",
            details={"drifts": drifts, "seconds": [one.total_s for one in watched]},
        ),
        Figure(
            name="run on the seed: trees that a second run repeats to the token", ratio=alike(context), reach=">= 1"
        ),
        Figure(name="run on the seed: problems a second, start aside", ratio=_rate(watched[0]), reach=""),
    ]
    context.keep(found)


def alike(context: Context) -> float:
    """The share of the first run's trees that have the same tokens in the second."""
    from flow_dpo.runs.files import read_jsonl

    def tokens(name: str) -> Mapping[str, Any]:
        rows = read_jsonl(Path(context.folder) / name / "trees.jsonl")
        return {row["problem"]["id"]: [node["token_ids"] for node in row["nodes"]] for row in rows}

    once, again = tokens("once"), tokens("again")
    return sum(again.get(name) == found for name, found in once.items()) / len(once)


def _rate(watched: watching.Watched) -> float:
    """Problems per second between the first batch's row and the last one's."""
    first, last = watched.rows[0], watched.rows[-1]
    return (last.row["problems_seen"] - first.row["problems_seen"]) / max(1e-9, last.at_s - first.at_s)
