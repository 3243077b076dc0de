"""What comparison.json holds of a team against its members: a part of `headers.Comparison`.

    {"differences": [{"one": "flow_itself", "other": "answer_votes", "rule": "majority", "test": "held_out/sampled",
                      "measure": "accuracy", "mean": 0.012, "seed_low": 0.004, "seed_high": 0.02, ...}], "votes": [...]}

Invariant: a number is a number or null wherever a table shows it.
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
    """Of votes: how the attempts are read, at the tokens of `one`."""
    test: str
    measure: Literal["accuracy", "area"]
    mean: float | None
    seed_low: float | None
    seed_high: float | None
    per_seed: tuple[float | None, ...]
    low: float | None = None
    """Over questions, where both sides answered the same ones."""
    high: float | None = None
    more: Mapping[str, Any] = others()


@dataclass(frozen=True, kw_only=True)
class TeamVotes:
    """Attempts by vote, at the tokens that the flow sampled a problem."""

    arm: str
    test: str
    """The flow's."""
    tokens: OverSeeds
    """The flow's, a problem."""
    attempts: OverSeeds
    """As many cost that; between whole numbers by linear interpolation in tokens."""
    num_clipped: float
    """Seeds whose flow sampled less than one attempt, or more than all: the nearest number of attempts is shown."""
    accuracies: Mapping[str, OverSeeds]
    """By rule (`evaluate.votes`)."""


@dataclass(frozen=True, kw_only=True)
class TeamDraws:
    """What k attempts come to, mean over seeds."""

    arm: str
    problems: str
    by_k: Mapping[str, Mapping[str, float | None]]
    """Tokens a problem, and the accuracy of each rule."""


@dataclass(frozen=True, kw_only=True)
class TeamStop:
    """A Stop on the fixed set of candidates."""

    arm: str
    right_over_wrong: OverSeeds
    finished_over_unfinished: OverSeeds
    brier: OverSeeds
    calibration_error: OverSeeds
    sets: tuple[str, ...]
    """SHA-256 of the candidates, one a seed."""


@dataclass(frozen=True, kw_only=True)
class TeamCurve:
    """Windowed progressive accuracy of a training by problems and sampled tokens."""

    training: str
    level: float
    """The accuracy that is to be reached."""
    problems: OverSeeds
    """Seen when a whole window first has it."""
    tokens: OverSeeds
    """Sampled until then."""
    points: tuple[tuple[tuple[float, float, float], ...], ...]
    """Of each seed: problems, tokens and accuracy of every batch with a whole window."""
    least_lead: OverSeeds | None = None
    """The least that this curve is above the other training's at the same sampled tokens."""


@dataclass(frozen=True, kw_only=True)
class TeamSummary:
    """The team against its members."""

    differences: tuple[TeamDifference, ...]
    votes: tuple[TeamVotes, ...]
    draws: tuple[TeamDraws, ...]
    stops: tuple[TeamStop, ...]
    curves: tuple[TeamCurve, ...]
