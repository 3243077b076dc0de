"""Provenance of a comparison: commands, code versions, test sets and contamination, read from its folders.

    collect(folder, outcomes)["made_by"]     [{"num_pieces": 41, "commit": "1f0c...", ...}, {"num_pieces": 2, ...}]

Contamination is the number of test questions that some arm learned from. Invariant: all of it is read from the files of
the jobs; jobs that other code ran than the rest are reported as such.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flow_dpo.evaluate import contamination
from flow_dpo.evaluate.compare.arms import Outcome
from flow_dpo.evaluate.compare.jobs import DONE
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.runs import headers, run_folder
from flow_dpo.runs.records import DoneJob, Prediction, read_rows

_RECORDS = {"run.json": headers.RunFacts, "traces.json": headers.TracesHeader, "summary.json": EvaluationSummary}
"""The files in which trainings, traces and evaluations record how they were made."""
_LEARNED = ("trees.jsonl", "traces.jsonl")
_SEEDS = ("seed*", "rates/*/seed*")
"""The folders of the jobs of a seed; and of those by which learning rates were chosen."""
_CODE = ("commit", "code", "versions", "python", "platform")


def collect(path: Path, made: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """The provenance of the comparison at `path`; `made` holds the outcomes of each arm, one a seed."""
    folders: dict[str, Path] = {}
    for outcome in (outcomes[0] for outcomes in made.values()):
        tests = {test.partition("/")[0]: folder for test, folder in outcome.evaluations.items()}
        folders = {**outcome.votes, **tests} | folders
    given = {work.folder for outcomes in made.values() for one in outcomes for work in one.works}
    outside = [folder for folder in given if not folder.is_relative_to(path)]
    files = [file for name in _LEARNED for file in path.glob(f"seed*/**/{name}")]
    files = [file for file in (*files, *(folder / "trees.jsonl" for folder in outside)) if file.stat().st_size]
    learned = set[str]().union(*(contamination.questions_of(file) for file in files))
    return {
        "test_sets": {name: _test_set(folder, learned) for name, folder in folders.items()},
        "commands": [
            f"flow-dpo {shlex.join(row.words)}"
            for folder in _SEEDS
            for done in sorted(path.glob(f"{folder}/{DONE}"))
            for row in read_rows(done, DoneJob)
        ],
        "made_by": made_by(path),
        **run_folder.environment(),
    }


def made_by(path: Path) -> list[dict[str, Any]]:
    """The code and versions of the pieces of work, each once, with how many it made."""
    counts: Counter[str] = Counter()
    for name, kind in _RECORDS.items():
        for file in (file for folder in _SEEDS for file in path.glob(f"{folder}/**/{name}")):
            found = headers.read_header(file, kind)
            counts[json.dumps({key: found.get(key) for key in _CODE}, sort_keys=True)] += 1
    return [{"num_pieces": num, **json.loads(text)} for text, num in counts.most_common()]


def _test_set(folder: Path, learned: set[str]) -> dict[str, Any]:
    """A problem set that the arms were tested on, and how many of its questions, compared as text, some arm
    learned from (`evaluate.contamination`)."""
    summary = headers.read_header(folder / "summary.json", EvaluationSummary)
    questions = {row.question for row in read_rows(folder / "predictions.jsonl", Prediction)}
    return {
        "dataset": summary["dataset"],
        "num_problems": summary["num_problems"],
        "num_learned": sum(contamination.normalised(question) in learned for question in questions),
    }
