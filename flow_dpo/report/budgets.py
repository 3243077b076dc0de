"""Whether a run ended because its budget was spent; it is complete then, though problems are left.

    is_spent({"run": {"budget": {"budget_updates": 3}}}, {"tokens": 900, "verdicts": 40, "updates": 3})     # True

Invariant: a budget means what it means in `runs.callbacks.budget`: a run ends when everything it names is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow_dpo.runs.callbacks.budget import is_empty


def limits(settings: Mapping[str, Any]) -> dict[str, float]:
    """The limits that a run's config.yaml sets, by kind ("tokens", "verdicts", "updates"); settings of another shape
    set none."""
    run = settings.get("run")
    budget = run.get("budget") if isinstance(run, Mapping) else None
    named = budget if isinstance(budget, Mapping) else {}
    found = {name: named.get(f"budget_{name}") for name in ("tokens", "verdicts", "updates")}
    return {
        name: limit
        for name, limit in found.items()
        if isinstance(limit, (int, float)) and not isinstance(limit, bool) and limit > 0
    }


def is_spent(settings: Mapping[str, Any], spent: Mapping[str, float]) -> bool:
    """Whether the run has spent everything that its budget names; False if it names nothing."""
    return is_empty(limits(settings), spent)
