"""What the comparison of a team with its members needs from one seed: votes for every number of attempts, the measures
of a Stop, and the learning curves of its trainings.

    of_arm(outcome).votes["held_out"]     [{"attempts": 1, "tokens": 50.0, "majority": 0.60, ...}, {"attempts": 2, ...}]

Invariant: all of it is read from the arm's folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.compare.arms import Outcome
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.evaluate.votes import RULES, Attempted, at_k
from flow_dpo.runs.headers import read_header
from flow_dpo.runs.records import Prediction, read_metrics, read_rows

ByK = tuple[Mapping[str, float], ...]
"""For 1, 2, 3, ... attempts: tokens per problem, and the accuracy of each rule."""
Curve = tuple[tuple[float, float, float], ...]
"""Problems, sampled tokens and windowed accuracy, for the batches with a whole window."""
TRAININGS = ("flow", "paper_flow")
"""Trainings whose learning curves are kept."""
_OF_STOP = ("right_over_wrong", "finished_over_unfinished")


@dataclass(frozen=True, kw_only=True)
class TeamResult:
    """Results of one arm under one seed."""

    tokens: Mapping[str, float] = field(default_factory=dict[str, float])
    """Sampled for one answer, per problem, by test."""
    votes: Mapping[str, ByK] = field(default_factory=dict[str, ByK])
    """By problem set."""
    stop: Mapping[str, Any] | None = None
    """Areas, Brier score, calibration error and the candidates' hash, for a Stop on the fixed set."""
    curves: Mapping[str, Curve] = field(default_factory=dict[str, Curve])
    """By training."""


def of_arm(outcome: Outcome) -> TeamResult:
    """The team's part of one arm's outcome."""
    return TeamResult(
        tokens={test: _tokens_of(folder) for test, folder in outcome.evaluations.items()},
        votes={problems: by_k(folder) for problems, folder in outcome.votes.items()},
        stop=None if outcome.stop is None else _stop(outcome.stop),
        curves={work.name: learning_curve(work.folder) for work in outcome.works if work.name in TRAININGS},
    )


def by_k(evaluation: Path) -> ByK:
    """What k attempts give, for every k from 1, from an evaluation with `--draws`."""
    attempts: dict[str, list[Attempted]] = {}
    for row in read_rows(evaluation / "predictions.jsonl", Prediction):
        verdict = row.verdict or Verdict(status="ungraded")
        attempts.setdefault(row.id, []).append(Attempted(verdict=verdict, yes=row.yes, tokens=row.tokens))
    drawn = list(attempts.values())
    most = min(map(len, drawn), default=0)
    found: list[dict[str, float]] = []
    for k in range(1, most + 1):
        at = at_k(drawn, k)
        rules = {name: at[name]["accuracy"] for name in ("one_attempt", *RULES)}
        found.append({"attempts": float(k), "tokens": at["tokens"], **rules})
    return tuple(found)


def learning_curve(run: Path) -> Curve:
    """The windowed accuracy of a run, from the first batch with a whole window: as full as any of the run's."""
    rows = read_metrics(run / "metrics.jsonl")
    sizes = [row.get("progressive/window_problems") or 0 for row in rows]
    whole = max(sizes, default=0)
    found: list[tuple[float, float, float]] = []
    tokens = 0.0
    for row, size in zip(rows, sizes, strict=True):
        tokens += row["rollout/sampled_tokens"]
        if size >= whole:
            found.append((row["problems_seen"], tokens, row["progressive/window_accuracy"]))
    return tuple(found)


def _tokens_of(evaluation: Path) -> float:
    return fmean(row.tokens for row in read_rows(evaluation / "predictions.jsonl", Prediction))


def _stop(evaluation: Path) -> dict[str, Any]:
    found = read_header(evaluation / "summary.json", EvaluationSummary)["candidates"]
    areas = {area: found[area]["area"] for area in _OF_STOP}
    return {**areas, **{name: found[name] for name in ("brier", "calibration_error", "sha256")}}
