"""The results of all arms under one seed, as one small file. A comparison is made from these files, without a model.

    OUT/seeds/seed0.json.gz
    {"schema": "seed/1", "seed": 0, "questions": {"held_out": ["seed/test/0", ...]},
     "arms": {"flow_itself": {"verdicts": {"held_out/greedy": ["1101?..."]}, "costs": {...}, ...}}, ...}

A verdict is one character per question, 1 right, 0 not right, ? ungraded, in one text per draw. Invariant: everything
that differs between seeds is here, so a seed can be added to a comparison whose other folders are gone.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.types import Problem
from flow_dpo.evaluate import step_validity
from flow_dpo.evaluate.compare import provenance, team_results
from flow_dpo.evaluate.compare.arms import Outcome
from flow_dpo.evaluate.compare.jobs import NUMBERS
from flow_dpo.evaluate.compare.verdicts import Draws, drawn_verdicts, rewards_of_draws
from flow_dpo.evaluate.statistics import Rewards
from flow_dpo.runs import run_folder
from flow_dpo.runs.records import Prediction, from_json, read_rows, to_json
from flow_dpo.traces.trace import Trace, read_traces

FOLDER = "seeds"
Checked = tuple[int, int]
"""The number of solutions whose steps could be checked, and of those with an invalid step."""


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """The results of one arm under one seed."""

    verdicts: Mapping[str, Draws]
    """By test: for each draw, one character per question."""
    costs: Mapping[str, float]
    """Costs of the arm's whole chain (`jobs.NUMBERS`)."""
    folders: Mapping[str, Any]
    """Where each piece is, relative to the comparison's folder."""
    steps: Mapping[str, Checked]
    """For its traces ("traces") and its right answers ("answers")."""
    num_traces: int | None = None
    """Traces that it was fine-tuned on; None for an arm that is not compiled."""
    num_problems: int | None = None
    """Problems with at least one of these traces."""
    problems_asked: int | None = None
    makeup: Mapping[str, Mapping[str, int]] | None = None
    """Traces by level and by subject."""
    team: team_results.TeamResult = field(default_factory=team_results.TeamResult)
    """What comparisons of a team with its members need as well."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """The content of the file."""

    SCHEMA: ClassVar[str] = "seed/1"
    seed: int
    questions: Mapping[str, tuple[str, ...]]
    """Ids by problem set."""
    arms: Mapping[str, ArmResult]
    failed: Mapping[str, str]
    """Why an arm could not be made, by its name."""
    made: provenance.MadeBy
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the comparison that it is a part of."""
    rates: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict[str, Mapping[str, float | None]])
    """By arm: the learning rate of each training that it used, None if it kept its preset's. They are unknown for an
    arm that is missing here; files from before 2026-11-30 have none."""

    def rewards(self, arm: str, test: str) -> Rewards:
        """The reward of each question, averaged over its draws. Raises `DataError` if the numbers of draws and
        questions do not match."""
        ids = self.questions.get(test.partition("/")[0], ())
        return rewards_of_draws(ids, self.arms[arm].verdicts[test], f"{arm} on {test}, seed {self.seed}")


def path_of(folder: Path, seed: int) -> Path:
    """The file of a seed in a comparison's folder."""
    return folder / FOLDER / f"seed{seed}.json.gz"


def write_seed(folder: Path, result: SeedResult) -> None:
    """Write the file; equal results give equal bytes."""
    path = path_of(folder, result.seed)
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(gzip.compress(json.dumps(to_json(result), separators=(",", ":")).encode(), mtime=0))
    beside.replace(path)


def read_seed(path: Path) -> SeedResult:
    """The content of the file. Raises `DataError` if it is not such a file."""
    try:
        found: Any = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"expected the results of a seed, found {path}, which cannot be read: {error}") from error
    return from_json(SeedResult, found, str(path))


def read_seeds(folder: Path) -> list[SeedResult]:
    """All results in a comparison's folder, by seed."""
    found = [read_seed(path) for path in (folder / FOLDER).glob("seed*.json.gz")]
    return sorted(found, key=lambda each: each.seed)


def collect(path: Path, seed: int, outcomes: Mapping[str, Outcome | str], primary: str) -> SeedResult:
    """The results of one seed of the comparison at `path`, from the folders of its arms. If an arm could not be made,
    its outcome is the reason. Right answers are checked step by step on the test `primary`.

    Raises `DataError` if two evaluations of a problem set asked different questions.
    """
    made = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Outcome)}
    questions: dict[str, tuple[str, ...]] = {}
    arms = {name: _arm(outcome, questions, primary, path) for name, outcome in made.items()}
    return SeedResult(
        seed=seed,
        questions=questions,
        arms=arms,
        failed={name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)},
        made=provenance.of_seed(path, f"seed{seed}", list(made.values())),
    )


def added(known: SeedResult, new: SeedResult) -> SeedResult:
    """A seed's results plus those of arms made since; an arm that was made again has its new result.

    Raises `ConfigError` if the two asked different questions.
    """
    for name, questions in known.questions.items():
        if new.questions.get(name, questions) != questions:
            raise ConfigError(
                f"expected the questions of {name} that the arms of seed {known.seed} answered before, found other "
                "ones; make the comparison in another folder (--compare.output_dir)"
            )
    arms = {**known.arms, **new.arms}
    failed = {name: why for name, why in {**known.failed, **new.failed}.items() if name not in arms}
    return replace(
        new,
        questions={**known.questions, **new.questions},
        arms=arms,
        failed=failed,
        made=provenance.added(known.made, new.made),
        rates={**known.rates, **new.rates},
    )


def _arm(outcome: Outcome, questions: dict[str, tuple[str, ...]], primary: str, path: Path) -> ArmResult:
    verdicts: dict[str, Draws] = {}
    for test, folder in outcome.evaluations.items():
        verdicts[test] = drawn_verdicts(folder, questions, test.partition("/")[0])
    file = read_traces(outcome.traces.folder) if outcome.traces else None
    num = run_folder.read_facts(outcome.sft.folder)["num_traces"] if outcome.sft else 0
    learned = file.traces[:num] if file and num else None
    right = [] if primary not in outcome.evaluations else _right_answers(outcome.evaluations[primary])
    return ArmResult(
        verdicts=verdicts,
        costs=_costs(outcome),
        folders=_folders(outcome, path),
        steps={
            "traces": checked_steps([(trace.problem, trace.solution) for trace in learned or ()]),
            "answers": checked_steps(right),
        },
        num_traces=None if learned is None else len(learned),
        num_problems=None if learned is None else len({trace.problem_id for trace in learned}),
        problems_asked=None if file is None else file.header["counts"].get("num_problems_sampled"),
        makeup=None if learned is None else _makeup(learned),
        team=team_results.of_arm(outcome),
    )


def rewards_of(evaluation: Path) -> Rewards:
    """The reward of each question of an evaluation, averaged over its draws; None if none could be graded."""
    questions: dict[str, tuple[str, ...]] = {}
    draws = drawn_verdicts(evaluation, questions, "own")
    return rewards_of_draws(questions["own"], draws, str(evaluation))


def mean_costs(each: Sequence[ArmResult]) -> dict[str, float]:
    """Mean costs of an arm over its seeds."""
    return {name: fmean(one.costs[name] for one in each) for name in NUMBERS}


def _costs(outcome: Outcome) -> dict[str, float]:
    """Costs of all works, each counted once."""
    works = {work.name: work for work in outcome.works}
    return {name: sum(work.costs[name] for work in works.values()) for name in NUMBERS}


def checked_steps(solutions: Sequence[tuple[Problem, str]]) -> Checked:
    """How many right solutions could be checked step by step, and how many of those have an invalid step."""
    judged = [
        invalid for problem, text in solutions if (invalid := step_validity.has_invalid_step(problem, text)) is not None
    ]
    return len(judged), sum(judged)


def _right_answers(evaluation: Path) -> list[tuple[Problem, str]]:
    rows = read_rows(evaluation / "predictions.jsonl", Prediction)
    return [(row.problem, row.solution) for row in rows if row.verdict and row.verdict.status == "correct"]


def _makeup(traces: Sequence[Trace]) -> dict[str, dict[str, int]]:
    """Which problems have a trace: counts of traces by level and by subject."""
    named = {column: [getattr(trace, column) for trace in traces] for column in ("level", "subject")}
    return {column: dict(sorted(Counter(filter(None, names)).items())) for column, names in named.items()}


def _folders(outcome: Outcome, folder: Path) -> dict[str, Any]:
    def of(path: Path | None) -> str | None:
        inside = path is not None and path.is_relative_to(folder)
        return None if path is None else path.relative_to(folder).as_posix() if inside else path.as_posix()

    trained = [work.folder for work in outcome.works if (work.folder / "trees.jsonl").exists()]
    return {
        "flow": of(trained[-1] if trained else None),
        "traces": of(outcome.traces.folder if outcome.traces else None),
        "sft": of(outcome.sft.folder if outcome.sft else None),
        "evaluations": {test: of(path) for test, path in outcome.evaluations.items()},
        "votes": {problems: of(path) for problems, path in outcome.votes.items()},
        "stop": of(outcome.stop),
    }
