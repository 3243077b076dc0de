"""The state of a trainer's run, read from its folder, under the names of transformers.

    state_of(Path("runs/a"), None).log_history[-1]["eval_accuracy"]

Invariant: the state has nothing that is not in the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flow_dpo.evaluate.during import read_evaluations
from flow_dpo.runs.records import read_metrics


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of a run, under the names of `transformers.TrainerState`."""

    global_step: int = 0
    """Updates so far: the version of the learner."""
    max_steps: int = -1
    """Updates after which the run ends; -1 for no limit."""
    log_history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The rows of metrics.jsonl, and those of evaluations.jsonl as "eval_...", each with its "step"."""


def state_of(folder: Path, max_steps: int | None) -> TrainState:
    """The state of the run in `folder`; `max_steps` is its limit of updates."""
    path = folder / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    history = [{**row, "step": int(row["learn/version"] + row["learn/updates"])} for row in rows]
    by_version: dict[int, dict[str, Any]] = {}
    for row in read_evaluations(folder):
        summary = {name: value for name, value in row.items() if name not in ("version", "name", "problems_seen")}
        by_version.setdefault(row["version"], {})[row["name"]] = summary
    evaluated = [{**prefixed(found, "eval"), "step": version} for version, found in by_version.items()]
    steps = max_steps if max_steps and max_steps > 0 else -1
    return TrainState(
        global_step=history[-1]["step"] if history else 0,
        max_steps=steps,
        log_history=sorted([*history, *evaluated], key=lambda row: row["step"]),
    )


def prefixed(summaries: Mapping[str, Mapping[str, Any]], prefix: str) -> dict[str, Any]:
    """Summaries as one mapping: "eval_accuracy" for the flow, "eval_single_accuracy" for the single pass."""
    names = {"flow": prefix, "single": f"{prefix}_single"}
    return {f"{names[kind]}_{name}": value for kind, found in summaries.items() for name, value in found.items()}
