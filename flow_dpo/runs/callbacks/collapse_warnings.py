"""Callbacks that warn when learning degenerates: Stop collapses to one answer, or chosen completions become unlikely.

Nothing is broken in these cases, so no error is raised. Invariant: each warns once, and names the settings that help.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Pair

log = logging.getLogger("flow_dpo")

_COLLAPSED = 0.04
"""If the share of Stop pairs that prefer Yes is closer to 0 or 1 than this, Stop learns one word for everything."""
_RECENT = 200
"""Number of recent Stop pairs that are considered."""
_HELPS = (
    "credit.balance", "credit.tag_weights", "credit.pairs.balance", "credit.pairs.tag_weights", "credit.pairs.roles",
    "flow.on_refused_end",
)  # fmt: skip
"""Settings that help a choosing role whose pairs are all alike; a recipe has some of them."""
_FALLEN = -1.0
"""Mean log-ratio of chosen completions, in nats, below which they have fallen."""
_GROWN = 0.5
"""Mean margin above which it has grown."""


def collapsed(prefers_first: Sequence[bool | float], least: int = 40) -> float | None:
    """The share of a choosing role's recent pairs that prefer the first choice, if nearly all or nearly none do; None
    otherwise, and for fewer than `least` pairs."""
    recent = prefers_first[-_RECENT:]
    rate = sum(recent) / max(len(recent), 1)
    return rate if len(recent) >= least and not _COLLAPSED < rate < 1 - _COLLAPSED else None


def fallen(rows: Sequence[Mapping[str, Any]], role: str, num_rows: int = 4) -> tuple[float, float] | None:
    """Mean log-ratio of chosen completions against the reference and mean margin over the role's last `num_rows` rows,
    in nats, if the first has fallen although the second has grown; None otherwise."""
    ratios, margins = (
        [row[f"learn/{role}/{name}"] for row in rows if f"learn/{role}/chosen_ratio" in row][-num_rows:]
        for name in ("chosen_ratio", "margin")
    )
    if len(ratios) < num_rows:
        return None
    ratio, margin = sum(ratios) / num_rows, sum(margins) / num_rows
    return (ratio, margin) if ratio < _FALLEN and margin > _GROWN else None


class StopCollapseWarning:
    """A callback that warns once when Stop's pairs nearly all prefer one word: Stop is collapsing."""

    def __init__(self, recipe: Recipe, least_pairs: int = 40) -> None:
        """`recipe` determines which settings the warning names."""
        self._helps = [f"--{name}" for name in _HELPS if _has(recipe, name)]
        self._counts: dict[str, list[float]] = {}
        self._least = least_pairs
        self._warned = False

    def on_batch(self, row: dict[str, Any], trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Count one batch's pairs of choosing roles."""
        for example in examples:
            if isinstance(example, Pair) and example.request.choices:
                self._counts.setdefault(example.request.role, []).append(float(example.chosen.choice == 0))
        for role, recent in self._counts.items():
            del recent[:-_RECENT]
            rate = collapsed(recent, self._least)
            if rate is not None and not self._warned:
                self._warned = True
                log.warning(
                    "%.0f %% of the last %d %s pairs prefer the first choice, which pulls the role towards one word "
                    "for everything; it now takes the first in %.0f %% of its turns.%s",
                    100 * rate, len(recent), role, 100 * row.get(f"{role}/yes_rate", rate), self._advice(),
                )  # fmt: skip

    def _advice(self) -> str:
        return f" If that gets close to 0 or 100, see {', '.join(self._helps)}" if self._helps else ""


def _has(recipe: Recipe, name: str) -> bool:
    """Whether the recipe has a setting of this name."""
    found: object = recipe
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


class ChosenLikelihoodWarning:
    """A callback that warns once when a role's chosen completions become less likely although its margin grows.

    DPO rewards only a difference, which can grow while both sides fall (Pal et al., arXiv 2402.13228).
    """

    def __init__(self, recipe: Recipe, num_rows: int = 4) -> None:
        """Uses means over a role's last `num_rows` rows. `recipe` determines which settings the warning names."""
        self._num_rows = num_rows
        self._holds = "--objective.sft_weight keeps them up, and " if _has(recipe, "objective.sft_weight") else ""
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._warned = False

    def on_batch(self, row: dict[str, Any], trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Look at one batch's updates."""
        for name in row:
            if not (name.startswith("learn/") and name.endswith("/chosen_ratio")):
                continue
            role = name.split("/")[1]
            recent = self._rows.setdefault(role, [])
            recent.append(row)
            del recent[: -self._num_rows]
            found = fallen(recent, role, self._num_rows)
            if found is not None and not self._warned:
                ratio, margin = found
                self._warned = True
                log.warning(
                    "%s: chosen completions have become less likely than under the reference (by %.1f nats) while the "
                    "margin grew to %.1f; %s--learner.reference.kind snapshot with --learner.reference.every moves the "
                    "reference along",
                    role, -ratio, margin, self._holds,
                )  # fmt: skip
