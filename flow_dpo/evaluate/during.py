"""Evaluation during a run: the flow, and a single pass of its Answer role, at versions of the learner.

    Evaluator(plan, recipe, runtime, notify)     a callback of the run: one row per measurement in evaluations.jsonl

    {"version": 12, "problems_seen": 96, "name": "flow", "accuracy": 0.61, "interval": [...], "num_problems": 200, ...}
    {"version": 12, "problems_seen": 96, "name": "single", "accuracy": 0.58, ...}

Invariant: evaluation does not change the run's own bytes. It samples with the adapters that are in force anyway, after
a batch was learned from, and takes nothing from the run's seeds, counts or budget. A resumed run has the rows of an
uninterrupted one: rows of versions later than its checkpoint are cut off and measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import ConfigError, DataError, StorageError
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import Row
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Example, Problem, Role
from flow_dpo.data.problems import DataSettings, load
from flow_dpo.evaluate.evaluate import EvaluationSettings, evaluate
from flow_dpo.evaluate.while_training import WhileTrainingSettings
from flow_dpo.models.context_window import fitting_problems
from flow_dpo.recipes.single import Single
from flow_dpo.runs.adapters import has_one_pass, one_pass
from flow_dpo.runs.callbacks.lifecycle import RunInfo
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.given_objects import Watcher
from flow_dpo.runs.records import read_metrics
from flow_dpo.runs.run_folder import plain
from flow_dpo.runs.runtime import Runtime
from flow_dpo.verify.grader import GradingSettings
from flow_dpo.workers.grading import reward_functions

FILE = "evaluations.jsonl"
Notify = Callable[[str, Mapping[str, Any], int], None]
"""Called with "eval", the flow's summary (the single pass's values in it are prefixed: "single_accuracy"), and the
learner's version."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is measured during a run, and when."""

    problems: Sequence[Problem]
    every: int = 0
    """Updates between two evaluations, which take place at the end of a batch; 0 evaluates only at the end."""
    at_start: bool = False
    """Also evaluate before anything was learned."""
    delay: int = 0
    """No evaluation before this many updates."""
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        if self.every < 0 or self.delay < 0:
            raise ConfigError(f"expected every and delay of 0 or more, found {self.every} and {self.delay}")
        refuse_unmeasured(self.settings)


def refuse_unmeasured(settings: EvaluationSettings) -> None:
    """Raise `ConfigError` for settings that `measure` does not use: it measures the flow and a single pass, and writes
    no folder."""
    defaults = EvaluationSettings()
    for name in ("draws", "candidates", "mode", "output_dir"):
        value = getattr(settings, name)
        if value != getattr(defaults, name):
            raise ConfigError(
                f"expected an evaluation of the flow and of a single pass, without a folder of its own, found "
                f"evaluation.{name}={value!r:.80}; leave it out, or measure with evaluate_flow({name}=...)"
            )


def watchers(data: DataSettings, settings: WhileTrainingSettings, grading: GradingSettings) -> tuple[Watcher, ...]:
    """What evaluates a run on a held-out split of its own data set; empty if that is not wanted. If `grading` names
    reward functions, the problems keep their columns, like those that are trained on.

    Raises `DataError` if there is no such split, `ConfigError` if it lacks columns that the functions need.
    """
    if not settings.eval_steps:
        return ()
    held_out = replace(
        data, dataset_split=settings.eval_split, max_problems=settings.eval_problems, skip_problems=0, shuffle_seed=None
    )
    rewards = reward_functions(grading, None)
    problems = load(held_out, columns=rewards is not None).problems
    if rewards is not None:
        rewards.check_columns(problems[0])
    plan = EvaluationPlan(problems=problems, every=settings.eval_steps)
    return (partial(Evaluator, plan),)


def measure(
    runtime: Runtime,
    flow: Flow[Any],
    explore: Explore,
    problems: Sequence[Problem],
    adapters: Mapping[Role, Adapter],
    settings: EvaluationSettings,
) -> dict[str, dict[str, Any]]:
    """The summaries of the flow ("flow") and, if it has one, of a single pass of its Answer role ("single")."""
    settings = replace(settings, batch_problems=runtime.problems_under_way(settings.batch_problems))
    flows = {"flow": flow}
    if has_one_pass(flow) and not isinstance(flow, Single):
        flows["single"] = one_pass(flow)
    found: dict[str, dict[str, Any]] = {}
    for name, sampled in flows.items():
        fitting = fitting_problems(sampled, runtime.renderer, problems, runtime.context_tokens)
        grader = runtime.backends.grader
        _, found[name] = evaluate(
            sampled, explore, fitting, runtime.workers, runtime.renderer, grader, adapters, settings
        )
    return found


class Evaluator:
    """The callback that evaluates during a run."""

    def __init__(self, plan: EvaluationPlan, recipe: Recipe, runtime: Runtime, notify: Notify) -> None:
        """`recipe` is the run's; `notify` is how its other callbacks are called."""
        self._plan, self._recipe, self._runtime, self._notify = plan, recipe, runtime, notify
        self._rows: list[dict[str, Any]] = []
        self._done = set[int]()
        self._last: Mapping[str, Any] = {}
        """The run's last row of metrics."""

    def on_run_begin(self, run: RunInfo) -> None:
        """Take over the folder: rows of later versions than the present one are dropped, and measured again."""
        self._path = run.path / FILE
        found = read_evaluations(run.path) if run.resumed else []
        self._rows = [row for row in found if row["version"] <= self._version]
        self._done = {row["version"] for row in self._rows}
        rows = read_metrics(run.path / "metrics.jsonl")
        self._last = rows[-1] if rows else {}
        if (self._plan.at_start and not self._version) or self._is_due:  # due if the run was interrupted during it
            self._measure()

    @property
    def _version(self) -> int:
        return max((adapter.version for adapter in self._runtime.adapters_in_force.values()), default=0)

    @property
    def _is_due(self) -> bool:
        every, version, before = self._plan.every, self._version, max(self._done, default=0)
        return bool(every) and version >= self._plan.delay and version // every > before // every

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Evaluate if enough updates have passed."""
        self._last = row
        if self._is_due:
            self._measure()

    def on_run_end(self, run: RunInfo, error: BaseException | None) -> None:
        """Evaluate at the end, if the plan says so and the run did not fail."""
        if error is None and not self._plan.every and self._version >= self._plan.delay:
            self._measure()

    def _measure(self) -> None:
        """Sample, grade, write and report one evaluation of the version in force."""
        version, plan = self._version, self._plan
        if version in self._done:
            return
        flow = calibrated_as(self._recipe.flow, self._last)
        adapters = self._runtime.adapters_in_force
        found = measure(self._runtime, flow, self._recipe.explore, plan.problems, adapters, plan.settings)
        # What the engine has cached would carry rounding into the run's next batch.
        self._runtime.workers.refresh(adapters)
        at = {"version": version, "problems_seen": self._last.get("problems_seen", 0)}
        self._rows += [{**at, "name": name, **plain(summary)} for name, summary in found.items()]
        self._done.add(version)
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        try:
            write_whole(self._path, text)
        except OSError as error:
            raise StorageError(f"could not write {self._path}: {error}; free some space, and resume") from error
        single = {f"single_{name}": value for name, value in found.get("single", {}).items()}
        self._notify("eval", {**found["flow"], **single}, version)


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's evaluations.jsonl; empty if there is none. Raises `DataError` for a broken row."""
    path, rows = folder / FILE, list[dict[str, Any]]()
    if not path.exists():
        return rows
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"expected JSON in line {number} of {path}: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("version"), int):
            raise DataError(f"expected a row with its version in line {number} of {path}, found {line[:80]!r}")
        rows.append(row)
    return rows


def calibrated_as(flow: Flow[Any], row: Mapping[str, Any]) -> Flow[Any]:
    """The flow with the calibration that a row of metrics records, which `evaluate --run` also takes from there."""
    found: Any = flow
    for name, value in row.items():
        if name.startswith("flow/"):
            found = _with(found, name.removeprefix("flow/").split("."), value)
    return found


def _with(value: Any, parts: Sequence[str], leaf: Any) -> Any:
    if not parts:
        return leaf
    assert is_dataclass(value)
    assert not isinstance(value, type)
    return replace(value, **{parts[0]: _with(getattr(value, parts[0]), parts[1:], leaf)})
