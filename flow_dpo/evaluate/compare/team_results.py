"""What the comparison of a team with its members needs from one seed: votes for every number of attempts, the measures
of a Stop, and the learning curves of its trainings.

    of_arm(outcome).votes["held_out"]     [{"attempts": 1, "tokens": 50.0, "majority": 0.60, ...}, {"attempts": 2, ...}]

Invariant: all of it is read from the arm's folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from flow_dpo.core.types import Verdict
from flow_dpo.evaluate.compare.arms import Outcome
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.evaluate.votes import RULES, Attempted, Attempts, at_k, groups
from flow_dpo.runs.callbacks.budget import spent
from flow_dpo.runs.headers import read_header
from flow_dpo.runs.records import Prediction, read_metrics, read_rows

ByK = tuple[Mapping[str, float], ...]
"""For 1, 2, 3, ... attempts: tokens per problem, and the accuracy of each rule."""
Curve = tuple[tuple[float, float, float], ...]
"""Problems, sampled tokens and windowed accuracy, for the batches with a whole window."""
TRAININGS = ("flow", "paper_flow")
"""Trainings whose learning curves are kept."""
COMPARED = ("majority", "weighted_majority", "best")
"""Rules that the flow is compared with."""
_METRICS = "metrics.jsonl"
_OF_STOP = ("right_over_wrong", "finished_over_unfinished")


@dataclass(frozen=True, kw_only=True)
class TeamResult:
    """Results of one arm under one seed."""

    tokens: Mapping[str, float] = field(default_factory=dict[str, float])
    """Sampled for one answer, per problem, by test."""
    cut: Mapping[str, float] = field(default_factory=dict[str, float])
    """The share of solutions that Answer did not end itself, by test. Older files have none."""
    yes: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """How often the flow's Stop said Yes, by test and kind of candidate: unfinished, wrong, right. Older
    files have none."""
    votes: Mapping[str, ByK] = field(default_factory=dict[str, ByK])
    """By problem set."""
    voted: Mapping[str, Mapping[str, Mapping[str, tuple[float, ...]]]] = field(
        default_factory=dict[str, Mapping[str, Mapping[str, tuple[float, ...]]]]
    )
    """By problem set, rule of `COMPARED` and problem: its accuracy with 1, 2, 3, ... attempts. Files from before
    2026-11-30 have none."""
    stop: Mapping[str, Any] | None = None
    """Areas, Brier score, calibration error and the candidates' hash, for a Stop on the fixed set."""
    curves: Mapping[str, Curve] = field(default_factory=dict[str, Curve])
    """By training."""
    learned: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """By training: how many problems it tried, its updates, and the pairs of each role. Older files have none."""


def of_arm(outcome: Outcome) -> TeamResult:
    """The team's part of one arm's outcome."""
    drawn = {problems: attempts_of(folder) for problems, folder in outcome.votes.items()}
    sampled = {test: _tokens_and_cut(folder) for test, folder in outcome.evaluations.items()}
    return TeamResult(
        tokens={test: tokens for test, (tokens, _) in sampled.items()},
        cut={test: cut for test, (_, cut) in sampled.items()},
        yes={test: yes for test, folder in outcome.evaluations.items() if (yes := _yes_rates(folder))},
        votes={problems: by_k(each) for problems, each in drawn.items()},
        voted={problems: voted(each) for problems, each in drawn.items()},
        stop=None if outcome.stop is None else _stop(outcome.stop),
        curves={work.name: learning_curve(work.folder) for work in outcome.works if work.name in TRAININGS},
        learned={work.name: learned(work.folder) for work in outcome.works if (work.folder / "trees.jsonl").exists()},
    )


def attempts_of(evaluation: Path) -> dict[str, list[Attempted]]:
    """By problem, its attempts, from an evaluation with `--draws`."""
    attempts: dict[str, list[Attempted]] = {}
    for row in read_rows(evaluation / "predictions.jsonl", Prediction):
        verdict = row.verdict or Verdict(status="ungraded")
        attempts.setdefault(row.id, []).append(Attempted(verdict=verdict, yes=row.yes, tokens=row.tokens))
    return attempts


def _ks(attempts: Mapping[str, Attempts]) -> range:
    return range(1, 1 + min(map(len, attempts.values()), default=0))


def voted(attempts: Mapping[str, Attempts]) -> dict[str, dict[str, tuple[float, ...]]]:
    """By rule of `COMPARED` and problem, the accuracy of k attempts, for every k from 1."""
    return {
        name: {
            id: tuple(round(fmean(map(RULES[name], groups(drawn, k))), 9) for k in _ks(attempts))
            for id, drawn in attempts.items()
        }
        for name in COMPARED
    }


def by_k(attempts: Mapping[str, Attempts]) -> ByK:
    """What k attempts at each problem give, for every k from 1."""
    drawn = list(attempts.values())
    found: list[dict[str, float]] = []
    for k in _ks(attempts):
        at = at_k(drawn, k)
        rules = {name: at[name]["accuracy"] for name in ("one_attempt", *RULES)}
        found.append({"attempts": float(k), "tokens": at["tokens"], **rules})
    return tuple(found)


def learning_curve(run: Path) -> Curve:
    """The windowed accuracy of a run, from the first batch with a whole window: as full as any of the run's."""
    rows = read_metrics(run / _METRICS)
    sizes = [row.get("progressive/window_problems") or 0 for row in rows]
    whole = max(sizes, default=0)
    found: list[tuple[float, float, float]] = []
    tokens = 0.0
    for row, size in zip(rows, sizes, strict=True):
        tokens += row["rollout/sampled_tokens"]
        if size >= whole:
            found.append((row["problems_seen"], tokens, row["progressive/window_accuracy"]))
    return tuple(found)


def learned(run: Path) -> dict[str, float]:
    """What a run learned from: problems, updates, and pairs by role."""
    rows = read_metrics(run / _METRICS)
    if not rows:
        return {}
    pairs = Counter[str]()
    for row in rows:
        for name, number in row.items():
            place, _, rest = name.partition("/")
            if place == "learn" and rest.endswith("/pairs"):
                pairs[rest.removesuffix("/pairs")] += int(number)
    return {"problems": rows[-1]["problems_seen"], "updates": spent(rows)["updates"], **pairs}


def _tokens_and_cut(evaluation: Path) -> tuple[float, float]:
    rows = list(read_rows(evaluation / "predictions.jsonl", Prediction))
    return fmean(row.tokens for row in rows), fmean(not row.ended for row in rows)


def _yes_rates(evaluation: Path) -> dict[str, float]:
    found = read_header(evaluation / "summary.json", EvaluationSummary).get("stop") or {}
    return {kind: rate for kind, rate in found.get("yes_rate", {}).items() if rate is not None}


def _stop(evaluation: Path) -> dict[str, Any]:
    found = read_header(evaluation / "summary.json", EvaluationSummary)["candidates"]
    areas = {area: found[area]["area"] for area in _OF_STOP}
    return {**areas, **{name: found[name] for name in ("brier", "calibration_error", "sha256")}}
