"""A row of metrics under the names that transformers and TRL use for the same things.

    usual(row, rewards=[1.0, 0.0], num_problems=512)
    {"loss": 0.61, "learning_rate": 0.0005, "reward": 0.5, "epoch": 0.06, "rewards/margins": ..., ...}

Invariant: a mean over roles is weighted by the examples that each role learned from; unmeasured values are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_OF_ROLES = {
    "loss": ("loss", "verdict_loss", "likelihood_loss", "value_loss"),
    "grad_norm": ("grad_norm",),
    "learning_rate": ("learning_rate",),
    "rewards/margins": ("margin",),
    "rewards/accuracies": ("accuracy", "verdict_accuracy"),
    "logps/chosen": ("chosen_logprobs",),
    "logps/rejected": ("rejected_logprobs",),
}
"""The usual name, and our names in "learn/<role>/..." for it: the first that a role has is taken."""


def usual(row: Mapping[str, Any], *, rewards: Sequence[float], num_problems: int) -> dict[str, float]:
    """A row's metrics under the usual names; `rewards` are those of the batch's graded trunks."""
    roles: dict[str, dict[str, float]] = {}
    for name, value in row.items():
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == "learn" and value is not None:
            roles.setdefault(parts[1], {})[parts[2]] = float(value)
    found = dict[str, float]()
    for name, own in _OF_ROLES.items():
        weighted = [
            (measures[key], measures.get("pairs", 1.0) or 1.0)
            for measures in roles.values()
            if (key := next((each for each in own if each in measures), ""))
        ]
        if weighted:
            found[name] = sum(value * weight for value, weight in weighted) / sum(weight for _, weight in weighted)
    if rewards:
        found["reward"] = sum(rewards) / len(rewards)
    found["epoch"] = row["problems_seen"] / max(num_problems, 1)
    return found


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The row's metrics under our own names, without those that have no value."""
    return {name: value for name, value in row.items() if isinstance(value, (int, float))}
