"""A run's own figures for its cards: progressive accuracy, pairs, updates, and evaluations of its adapters.

    figures(Path("runs/gsm8k"), ["runs/gsm8k-test"]).accuracy      # Measure(value=0.71, low=0.69, high=0.73, num=2000)

Invariant: all figures on a card are about the adapters that are pushed: evaluations that measured them, and the batches
of the run that they learned from, not later ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.evaluate.headers import EvaluationSummary
from flow_dpo.hub.scrub import scrubbed_dataset
from flow_dpo.runs import headers, run_folder
from flow_dpo.runs.given_objects import HANDED_OVER
from flow_dpo.runs.records import read_metrics, rows_up_to


@dataclass(frozen=True, kw_only=True)
class Measure:
    """An accuracy between 0 and 1, its 95 % interval, and the number of problems."""

    value: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.value:.1%} (95 % interval {self.low:.1%} to {self.high:.1%}) on {self.num} problems"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One evaluation."""

    accuracy: Measure
    dataset: str
    """The name in summary.json: "openai/gsm8k/test"."""
    handed_over: bool
    """Whether the problems were passed from Python; then `dataset` is not a name that the hub knows."""
    mode: str
    decoding: str

    @property
    def words(self) -> str:
        """What was measured: the flow, or a single pass of its Answer role."""
        return "the flow" if self.mode == "flow" else "its Answer role in one pass"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The results of a run."""

    problems: int
    """Problems that these adapters have learned from."""
    updates: int
    """The version of the adapters."""
    pairs: Mapping[str, int] = field(default_factory=dict[str, int])
    """Preference pairs by role."""
    accuracy: Measure | None = None
    """Progressive accuracy: on each problem before it was learned from, over all problems."""
    windowed: Measure | None = None
    """The same over the last window of problems."""
    evaluations: Sequence[Evaluated] = ()


def figures(run: Path, evaluations: Sequence[str] = (), root: Path = Path()) -> Figures:
    """The figures of a run up to its newest adapters. Paths in evaluations are resolved here and against `root`.

    Raises `DataError` if the run has not learned anything yet, or if an evaluation cannot be read.
    """
    path = run / "metrics.jsonl"
    known = read_metrics(path) if path.exists() else []
    updates = max(int(folder.name) for folder in run_folder.latest_adapters(run).values())
    rows = rows_up_to(known, updates)  # in an unfinished run, later batches belong to later adapters
    if not rows or not updates:
        raise DataError(f"expected a run that has learned something, found no update in {path}; {_more(run, known)}")
    last = rows[-1]
    pairs: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("pairs/"):
                role = name.removeprefix("pairs/")
                pairs[role] = pairs.get(role, 0) + int(value)
    seen = int(last["problems_seen"])
    return Figures(
        problems=seen,
        updates=updates,
        pairs=pairs,
        accuracy=_measure(last, "progressive/accuracy", "progressive/low", "progressive/high", seen),
        windowed=_measure(
            last, "progressive/window_accuracy", "progressive/window_low", "progressive/window_high",
            int(last.get("progressive/window_problems") or 0),
        ),
        evaluations=[_evaluated(Path(folder), run, root) for folder in evaluations],
    )  # fmt: skip


def _more(run: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """What to do about a run without an update; resuming does not help once all its problems are used."""
    total, seen = run_folder.read_facts(run).get("num_problems"), int(rows[-1]["problems_seen"]) if rows else 0
    if isinstance(total, int) and seen >= total:
        return (
            f"its {seen} problems are used up: train again with more problems, or with a smaller "
            "--learner.examples_per_update (metrics.jsonl says how many pairs there were)"
        )
    return f"resume it first: flow-dpo train --output_dir {run} --resume"


def _measure(row: Mapping[str, Any], value: str, low: str, high: str, num: int) -> Measure | None:
    found = [row.get(name) for name in (value, low, high)]
    if any(one is None for one in found) or not num:
        return None
    return Measure(value=float(found[0]), low=float(found[1]), high=float(found[2]), num=num)  # pyright: ignore


def _named(summary: Mapping[str, Any]) -> str:
    """The data set as text."""
    name = str(summary.get("dataset") or "not known")
    return "problems that were passed from Python" if name == HANDED_OVER else name


def _evaluated(folder: Path, run: Path, root: Path) -> Evaluated:
    file = folder / "summary.json"
    if not file.is_file():
        raise DataError(f"expected an evaluation in {folder}, found no summary.json; make one with flow-dpo evaluate")
    found = headers.read_header(file, EvaluationSummary)
    ours = {role: path.resolve() for role, path in run_folder.latest_adapters(run).items()}
    measured = {role: Path(str(path)) for role, path in (found.get("adapters") or {}).items()}
    if not measured or any(
        ours.get(role) not in (path.resolve(), (root / path).resolve()) for role, path in measured.items()
    ):
        raise ConfigError(
            f"expected an evaluation of the newest adapters of {run} in {folder}, found one of "
            f"{', '.join(map(str, measured.values())) or 'the base model'}; leave it out of --evaluations"
        )
    if found.get("accuracy") is None or found.get("candidates"):
        raise DataError(f"expected an accuracy over problems in {file}, found none; leave it out of --evaluations")
    low, high = found["interval"]
    decoding = found.get("decoding") or {}
    greedy = decoding.get("greedy")
    drawn = f"sampled at temperature {decoding.get('temperature')}, {decoding.get('num_samples')} per problem"
    return Evaluated(
        accuracy=Measure(value=found["accuracy"], low=low, high=high, num=int(found["num_problems"])),
        dataset=scrubbed_dataset(_named(found), root),
        handed_over=bool(found.get("handed_over")),
        mode=str((found.get("settings") or {}).get("mode") or "flow"),
        decoding="greedy" if greedy else drawn,
    )
