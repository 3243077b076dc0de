"""What comparison.json holds about a team and its members: a part of `headers.Comparison`.

    {"differences": [{"one": "flow_itself", "other": "answer_votes", "rule": "majority", "test": "held_out/sampled",
                      "measure": "accuracy", "mean": 0.012, "seed_low": 0.004, "seed_high": 0.02, ...}], "votes": [...]}

Invariant: wherever a table shows a number, the field is a number or null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flow_dpo.data.typed_json import others


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """A mean over seeds of training, with its 95 % t-interval."""

    mean: float | None
    low: float | None
    high: float | None
    per_seed: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class TeamDifference:
    """One arm minus another, seed by seed."""

    one: str
    other: str
    rule: str | None
    """For votes: the rule by which attempts are combined, at the tokens of `one`; "greedy" for one greedy pass."""
    test: str
    measure: Literal["accuracy", "area"]
    mean: float | None
    seed_low: float | None
    seed_high: float | None
    seed_p: float | None = None
    """Of the method, over seeds and questions; None if only each seed's value is known."""
    p_holm: float | None = None
    """Corrected for all differences of the comparison on this test."""
    per_seed: tuple[float | None, ...]
    low: float | None = None
    """Over questions, if both sides answered the same ones."""
    high: float | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class TeamVotes:
    """Attempts by vote, at the tokens per problem that the flow sampled."""

    arm: str
    test: str
    """The flow's test."""
    tokens: OverSeeds
    """The flow's tokens per problem."""
    attempts: OverSeeds
    """Number of attempts that cost as much, linearly interpolated in tokens between whole numbers."""
    num_clipped: float
    """Seeds whose flow sampled less than one attempt, or more than all; they get the nearest number of attempts."""
    accuracies: Mapping[str, OverSeeds]
    """By rule (`evaluate.votes`)."""


@dataclass(frozen=True, kw_only=True)
class TeamDraws:
    """What k attempts give, as a mean over seeds."""

    arm: str
    problems: str
    by_k: Mapping[str, Mapping[str, float | None]]
    """Tokens per problem, and the accuracy of each rule."""


@dataclass(frozen=True, kw_only=True)
class TeamStop:
    """A Stop on the fixed set of candidates."""

    arm: str
    right_over_wrong: OverSeeds
    finished_over_unfinished: OverSeeds
    brier: OverSeeds
    calibration_error: OverSeeds
    sets: tuple[str, ...]
    """SHA-256 of the candidates, one per seed."""


@dataclass(frozen=True, kw_only=True)
class TeamCurve:
    """Windowed progressive accuracy of a training, over problems and sampled tokens."""

    training: str
    level: float
    """The accuracy to reach."""
    problems: OverSeeds
    """Problems seen when a whole window first reaches it."""
    tokens: OverSeeds
    """Tokens sampled until then."""
    points: tuple[tuple[tuple[float, float, float], ...], ...]
    """For each seed: problems, tokens and accuracy of every batch with a whole window."""
    least_lead: OverSeeds | None = None
    """The smallest lead of this curve over the other training's at equal sampled tokens."""


@dataclass(frozen=True, kw_only=True)
class TeamSummary:
    """The team against its members."""

    differences: tuple[TeamDifference, ...]
    votes: tuple[TeamVotes, ...]
    draws: tuple[TeamDraws, ...]
    stops: tuple[TeamStop, ...]
    curves: tuple[TeamCurve, ...]
