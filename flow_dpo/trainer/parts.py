"""A trainer's settings, sorted by use: the training run, sampling without a run, and reading held-out data.

    Parts.of({"beta": 0.5, "evaluation.greedy": False}, recipe)     .run {"objective.beta": 0.5}

Invariant: every setting has its full name, so one that was given by its short name is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from flow_dpo.core.recipe import Recipe
from flow_dpo.data.problems import CHOICE, DataSettings
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.runs.resolve import resolve
from flow_dpo.runs.setting_names import Names
from flow_dpo.runs.settings import default_settings
from flow_dpo.traces.settings import GenerateSettings
from flow_dpo.traces.trace import SelectionSettings

_AFTERWARDS = ("evaluation", "generate", "selection")
"""Groups of settings for what follows training."""
_SAMPLES = ("model", "lora", "grading", "engine", "engine_kind", "workers", "flow", "flow_source", "explore")
"""Groups of settings that sampling needs."""
_CHOICE = ("dataset_name", *CHOICE)
"""Data settings that choose the problems; the others say how rows are read."""


def of_data(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The data settings among these (which problems are chosen, how rows are read), without their group's name."""
    known = {each.name for each in fields(DataSettings)}
    named = {name.removeprefix("data."): value for name, value in settings.items()}
    return {name: value for name, value in named.items() if name in known}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A trainer's settings by their full names: for the run, and for what follows it."""

    run: Mapping[str, Any]
    afterwards: Mapping[str, Any]

    @classmethod
    def of(cls, settings: Mapping[str, Any], recipe: Recipe) -> Parts:
        """Sort the settings of a trainer with this recipe; they can have full or short names."""
        short = Names(replace(default_settings("flow-dpo", "seed"), recipe=recipe).sections()).short
        full = {short.get(name, name): value for name, value in settings.items()}
        after = {name: value for name, value in full.items() if name.partition(".")[0] in _AFTERWARDS}
        return cls(run={name: value for name, value in full.items() if name not in after}, afterwards=after)

    def group(self, *groups: str) -> dict[str, Any]:
        """The settings of these groups, for what follows training."""
        return {name: value for name, value in self.afterwards.items() if name.partition(".")[0] in groups}

    def evaluation(self) -> EvaluationSettings:
        """The settings of evaluations. Raises `ConfigError` for an unknown name or an invalid value among the settings
        for what follows training."""
        sections = {
            "evaluation": EvaluationSettings(),
            "generate": GenerateSettings(),
            "selection": SelectionSettings(),
        }
        return resolve("FlowDPOTrainer", "", (), sections, values=dict(self.afterwards))["evaluation"]

    def sampling(self) -> dict[str, Any]:
        """The settings that an evaluation needs while there is no run folder to take them from."""
        read = {f"data.{each.name}" for each in fields(DataSettings) if each.name not in _CHOICE}
        return {n: value for n, value in self.run.items() if n.partition(".")[0] in _SAMPLES or n in read}

    def data(self, **more: Any) -> DataSettings:
        """The settings of the training data."""
        known = {each.name for each in fields(DataSettings)}
        own = {n.removeprefix("data."): value for n, value in self.run.items() if n.startswith("data.")}
        return DataSettings(**{**{name: value for name, value in own.items() if name in known}, **more})

    def held_out(self, **more: Any) -> DataSettings:
        """The settings of held-out data: read in the same way, but from the test split, and all of it."""
        plain = {each.name: each.default for each in fields(DataSettings) if each.name in _CHOICE}
        return replace(self.data(), **{**plain, "dataset_split": "test", **more})
