"""How do settings become running parts?

The composition root: the one place that knows every concrete class. What can be refused is refused here, in the order
of its cost: names and folders, then data, then the model, then whether the prompts fit it, and only then does work
start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.plugins import is_source, load_flow
from flow_dpo.core.recipe import Recipe
from flow_dpo.data.problems import DataSettings
from flow_dpo.engines import factory
from flow_dpo.engines.factory import EngineSettings
from flow_dpo.engines.local.engine import LocalSettings
from flow_dpo.learner.learner import LearnerSettings
from flow_dpo.learner.policy import LoraSettings
from flow_dpo.models.load import ModelSettings
from flow_dpo.recipes import presets
from flow_dpo.runs import resolve
from flow_dpo.runs.callbacks.budget import BudgetSettings
from flow_dpo.verify.grader import GradingSettings


@dataclass(frozen=True, kw_only=True)
class SavingSettings:
    """When a run is written down besides its rows."""

    save_updates: int = 0
    """Adapters are saved whenever this many updates have passed, besides at the end; 0 saves them at the end only."""
    checkpoint_batches: int = 1
    """Batches of `problems_per_batch` problems between two checkpoints. What was done since the last one is done again
    after an interruption, with the same result."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where a run writes, and how its problems stream."""

    output_dir: str = "runs/train"
    seed: int = 0
    """Every random number of the run derives from it."""
    problems_per_batch: int = 16
    """Problems played under one policy version before the learner sees them (not stated in the paper). More of them
    make fuller batches and staler play."""
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    window: int = 250
    """Problems in the windowed accuracy."""
    saving: SavingSettings = field(default_factory=SavingSettings)
    resume: bool = False
    """Go on with the run in `output_dir` where its last checkpoint stands, or begin it where there is none. Settings
    that are not given are the run's own."""
    allow: str = ""
    """What may differ from the run that is resumed, separated by commas: names of settings such as
    "learner.learning_rate", or "code", "versions", "device", "data". The result is then not that of one run."""


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """What every command that plays needs to know besides the flow."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data: DataSettings = field(default_factory=DataSettings)
    grading: GradingSettings = field(default_factory=GradingSettings)
    engine: EngineSettings = field(default_factory=LocalSettings)

    def sections(self) -> dict[str, Any]:
        """The settings by the names that flags and config.yaml use."""
        return {name: getattr(self, name) for name in ("model", "lora", "data", "grading", "engine")}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """All settings of `flow-dpo train`."""

    recipe: Recipe
    runtime: RuntimeSettings
    learner: LearnerSettings
    run: RunSettings
    recipe_name: str
    preset: str
    flow_source: str = ""
    """ "path/to/file.py:Name" where the flow is the user's own."""

    def sections(self) -> dict[str, Any]:
        """The settings by the names that flags and config.yaml use."""
        recipe = self.recipe
        method = {name: getattr(recipe, name) for name in ("flow", "explore", "credit", "objective")}
        return {**self.names(), **method, **self.runtime.sections(), "learner": self.learner, "run": self.run}

    def names(self) -> dict[str, str]:
        """What the settings were made from: recipe, preset, the user's own flow, and the kind of engine."""
        names = {"recipe": self.recipe_name, "preset": self.preset, "flow_source": self.flow_source}
        return names | {"engine_kind": factory.kind_of(self.runtime.engine)}

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> TrainSettings:
        """The inverse of `sections`."""
        return cls(
            recipe=Recipe(**{name: sections[name] for name in ("flow", "explore", "credit", "objective")}),
            runtime=RuntimeSettings(**{name: sections[name] for name in RuntimeSettings().sections()}),
            learner=sections["learner"],
            run=sections["run"],
            recipe_name=sections["recipe"],
            preset=sections["preset"],
            flow_source=sections["flow_source"],
        )


def default_settings(recipe: str, preset: str, flow_source: str = "", engine: str = "local") -> TrainSettings:
    """The settings of a named recipe, preset and engine, with a flow of the user's own where one is named.

    Raises `ConfigError` for a name that is none.
    """
    values = presets.preset(recipe, preset, flow=load_flow(flow_source) if flow_source else None)
    return TrainSettings(
        flow_source=flow_source,
        recipe=values.recipe,
        runtime=RuntimeSettings(lora=values.lora, engine=factory.default_settings(engine)),
        learner=values.learner,
        run=RunSettings(problems_per_batch=values.problems_per_batch),
        recipe_name=recipe,
        preset=preset,
    )


RUNS_CODE = ("recipe", "flow_source", "flow.programs", "model.trust_remote_code")
"""Settings that let code run which is not this package's: a person asks for each, no folder does."""


def refuse_unasked(base: Mapping[str, Any], words: Sequence[str], origin: str) -> None:
    """Raise `ConfigError` where `base`, which comes from `origin`, would have code run that no word asks for."""
    said = {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}
    for name in RUNS_CODE:
        value: Any = base
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if name == "recipe" and not is_source(str(value)):
            continue  # one of the package's own, or of an installed plug-in
        if value and not said & {name, name.rpartition(".")[2]}:
            raise ConfigError(
                f"{origin} asks for {name} = {value!r:.200}, which runs code that is not this package's; where you "
                f"trust it, add --{name} {str(value).lower() if value is True else value}"
            )


def defaults_of(
    argv: Sequence[str], base: Mapping[str, Any], *, origin: str = "the run's config.yaml", trusted: bool = False
) -> tuple[list[str], TrainSettings]:
    """The defaults of a command by what it names of recipe, preset, model and flow, or else by what `base` does.

    Also returns the words, with `--flow file.py:Name` and `--engine NAME` as the settings that they are. Raises
    `ConfigError` naming `origin` where `base`, which comes from there, holds something else than a name, or would have
    code run without being `trusted` or asked for (`refuse_unasked`).
    """
    words: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        if words and words[-1] == "--flow" and is_source(word):
            words[-1] = "--flow_source"
        if words and words[-1] == "--engine":
            words[-1] = "--engine_kind"
        if name == "--flow" and equals and is_source(value):
            word = f"--flow_source={value}"
        words.append(f"--engine_kind={value}" if name == "--engine" and equals else word)
    if not trusted:
        refuse_unasked(base, words, origin)
    group = base.get("model", {})
    if not isinstance(group, Mapping):
        raise ConfigError(f"expected names and values under model in {origin}, found {group!r:.80}")

    def named(values: Mapping[str, Any], name: str, default: str) -> str:
        value = values.get(name, default)
        if not isinstance(value, str):
            raise ConfigError(f"expected a text under {name} in {origin}, found {value!r:.80}")
        return value

    model = resolve.peek(words, "model.model_name_or_path", named(group, "model_name_or_path", "seed"))
    recipe = resolve.peek(words, "recipe", named(base, "recipe", "flow-dpo"))
    preset = resolve.peek(words, "preset", named(base, "preset", presets.default_preset(model)))
    source = resolve.peek(words, "flow_source", named(base, "flow_source", ""))
    engine = resolve.peek(words, "engine", named(base, "engine_kind", "local"))
    engine = resolve.peek(words, "engine_kind", engine)
    return words, default_settings(recipe, preset, source, engine)


def of_its_engine(base: Mapping[str, Any], defaults: TrainSettings) -> dict[str, Any]:
    """What `base` holds, without settings of another engine than the one that was chosen."""
    chosen = defaults.names()["engine_kind"]
    others = base.get("engine_kind", "local") != chosen
    return {name: value for name, value in base.items() if not (others and name in ("engine", "engine_kind"))}
