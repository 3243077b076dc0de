"""Provenance of a comparison: commands, code versions, test sets and contamination, read from the folders of its jobs.

    combine([seed0, seed1], rates)["made_by"]     [{"num_pieces": 41, "commit": "1f0c...", ...}, {"num_pieces": 2, ...}]

Contamination is the number of test questions that some arm learned from. Invariant: everything is read from the files
of the jobs; jobs that were run by different code are listed separately.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.evaluate import contamination
from flow_dpo.evaluate.compare.arms import Outcome
from flow_dpo.evaluate.compare.jobs import DONE
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.runs import headers, run_folder
from flow_dpo.runs.records import DoneJob, Prediction, read_rows

_RECORDS = {"run.json": headers.RunFacts, "traces.json": headers.TracesHeader, "summary.json": EvaluationSummary}
"""The files in which trainings, traces and evaluations record how they were made."""
_LEARNED = ("trees.jsonl", "traces.jsonl")
_RATES = "rates/*/seed*"
"""The folders of the jobs that chose learning rates."""
_CODE = ("commit", "code", "versions", "python", "platform")


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A problem set that the arms were tested on."""

    __test__ = False  # pytest would collect a class of this name

    dataset: str
    num_problems: int
    learned: tuple[str, ...]
    """Ids of its questions that some arm learned from, compared as text (`evaluate.contamination`)."""


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """How the pieces of one seed were made."""

    commands: tuple[str, ...]
    pieces: tuple[Mapping[str, Any], ...]
    """Each combination of code and versions once, with the number of pieces of work that it made."""
    test_sets: Mapping[str, TestSet]


def of_seed(path: Path, folder: str, outcomes: Sequence[Outcome]) -> MadeBy:
    """The provenance of one seed, whose jobs are in this folder of the comparison at `path`."""
    tests: dict[str, Path] = {}
    for outcome in outcomes:
        own = {test.partition("/")[0]: where for test, where in outcome.evaluations.items()}
        tests = {**outcome.votes, **own} | tests
    given = {work.folder for one in outcomes for work in one.works if not work.folder.is_relative_to(path)}
    files = [file for name in _LEARNED for file in (path / folder).glob(f"**/{name}")]
    files = [file for file in (*files, *(where / "trees.jsonl" for where in given)) if file.stat().st_size]
    learned = set[str]().union(*(contamination.questions_of(file) for file in files))
    return MadeBy(
        commands=_commands(path, folder),
        pieces=tuple(_pieces(path, folder)),
        test_sets={name: _test_set(where, learned) for name, where in tests.items()},
    )


def added(known: MadeBy, new: MadeBy) -> MadeBy:
    """The provenance of a seed to which arms were added. If the folders of the earlier arms still exist, the second
    covers everything but tests that none of the new arms has."""
    if set(known.commands) <= set(new.commands):
        return replace(new, test_sets={**known.test_sets, **new.test_sets})
    learned = {name: test.learned for name, test in known.test_sets.items()}
    both = {
        name: replace(test, learned=tuple(dict.fromkeys((*learned.get(name, ()), *test.learned))))
        for name, test in new.test_sets.items()
    }
    return MadeBy(
        commands=tuple(dict.fromkeys((*known.commands, *new.commands))),
        pieces=(*known.pieces, *new.pieces),
        test_sets={**known.test_sets, **both},
    )


def combine(path: Path, seeds: Sequence[MadeBy]) -> dict[str, Any]:
    """The provenance of a comparison's seeds, and of the jobs at `path` that chose its rates."""
    pieces = [piece for one in seeds for piece in one.pieces] + _pieces(path, _RATES)
    counts: Counter[str] = Counter()
    for piece in pieces:
        code = {name: value for name, value in piece.items() if name != "num_pieces"}
        counts[json.dumps(code, sort_keys=True)] += piece["num_pieces"]
    sets: dict[str, list[TestSet]] = {}
    for name, each in ((name, each) for one in seeds for name, each in one.test_sets.items()):
        sets.setdefault(name, []).append(each)
    return {
        "test_sets": {
            name: {
                "dataset": each[0].dataset,
                "num_problems": each[0].num_problems,
                "num_learned": len({id for one in each for id in one.learned}),
            }
            for name, each in sets.items()
        },
        "commands": [command for one in seeds for command in one.commands] + list(_commands(path, _RATES)),
        "made_by": [{"num_pieces": num, **json.loads(text)} for text, num in counts.most_common()],
        **run_folder.environment(),
    }


def refuse_learned_since(path: Path, run: Path) -> None:
    """Raise `ConfigError` if evaluations or traces of the comparison at `path` were made with other adapters of a run
    than its newest: it has learned since, and one table would mix two policies."""
    now = {str(folder.resolve()) for folder in run_folder.latest_adapters(run).values()}
    for name in ("summary.json", "traces.json"):
        for file in sorted(path.glob(f"seed*/**/{name}")):
            then = [Path(each) for each in (headers.read_header(file, _RECORDS[name]).get("adapters") or {}).values()]
            other = [str(each) for each in then if each.resolve().is_relative_to(run.resolve())]
            if any(str(Path(each).resolve()) not in now for each in other):
                raise ConfigError(
                    f"{file.parent} was made with {', '.join(other)}, and {run} has learned since: found "
                    f"{', '.join(sorted(now))}; name another folder with --compare.output_dir"
                )


def _commands(path: Path, folders: str) -> tuple[str, ...]:
    files = sorted(path.glob(f"{folders}/{DONE}"))
    return tuple(f"flow-dpo {shlex.join(row.words)}" for file in files for row in read_rows(file, DoneJob))


def _pieces(path: Path, folders: str) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    for name, kind in _RECORDS.items():
        for file in path.glob(f"{folders}/**/{name}"):
            found = headers.read_header(file, kind)
            counts[json.dumps({key: found.get(key) for key in _CODE}, sort_keys=True)] += 1
    return [{"num_pieces": num, **json.loads(text)} for text, num in counts.most_common()]


def _test_set(folder: Path, learned: set[str]) -> TestSet:
    summary = headers.read_header(folder / "summary.json", EvaluationSummary)
    questions = {row.id: row.question for row in read_rows(folder / "predictions.jsonl", Prediction)}
    return TestSet(
        dataset=summary["dataset"],
        num_problems=summary["num_problems"],
        learned=tuple(id for id, text in questions.items() if contamination.normalised(text) in learned),
    )
