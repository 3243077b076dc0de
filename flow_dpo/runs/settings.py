"""Settings of a run: of its method, model, data, engine and learner, by the names that flags and config.yaml use.

    default_settings("grpo", "seed").sections()["objective"]       # ClippedPolicyGradient(...), the paper's values

Invariant: nothing heavy is imported beyond what the recipes are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from flow_dpo.core.errors import expect
from flow_dpo.core.recipe import Recipe
from flow_dpo.data.problems import DataSettings
from flow_dpo.engines import settings as engines
from flow_dpo.engines.settings import EngineSettings, LocalSettings
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from flow_dpo.models.settings import ModelSettings
from flow_dpo.plugins.load import fingerprint, load_flow, load_part
from flow_dpo.recipes import presets
from flow_dpo.runs.resolve import Given
from flow_dpo.runs.starting_adapters import starting_shape
from flow_dpo.runs.tree_rows import TreeForm
from flow_dpo.trackers.settings import TrackingSettings
from flow_dpo.verify.grader import GradingSettings
from flow_dpo.workers.settings import WorkersSettings

OWN_PARTS = ("explore_source", "credit_source", "objective_source")
"""Names of the settings that put a part of the user's own in the place of the recipe's."""


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """What a run may spend: it ends, though problems are left, when all that is given is spent. And what it writes."""

    budget_tokens: int = 0
    """Tokens sampled in rollouts and tokens that the learner reads (prompts included, shared ones once), after which a
    run ends; 0 sets none. Batches in flight (`lag`) are still learned from."""
    budget_verdicts: int = 0
    """Rollouts that were graded, after which it ends; 0 sets none."""
    budget_updates: int = 0
    """Updates of the adapters after which it ends; 0 sets none."""
    records: TreeForm = "full"
    """How much of what is sampled trees.jsonl holds: all of it; "no-probes", without the rollouts that only value a
    state; "compact", token ids and verdicts without these, texts and log-probabilities. Nothing that is learned depends
    on it."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "budget_tokens", "budget_verdicts", "budget_updates")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a run's folder, batches, checkpoints, budget and resumption."""

    output_dir: str = "runs/train"
    seed: int = 0
    """Every random number of the run derives from it."""
    problems_per_batch: int = 16
    """Problems sampled under one policy version before the learner sees them (not stated in the paper). More of them
    make fuller batches and staler rollouts."""
    lag: int = 0
    """Batches that workers sample ahead of the one that is learned from, so that both work at once: batch b is sampled
    with the adapters that stood after batch b - 1 - lag, exactly. In this process (`--workers here`) nothing is gained
    by it. The paper has none."""
    window: int = 250
    """Problems in the windowed accuracy."""
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    save_updates: int = 0
    """Adapters are saved whenever this many updates have passed, besides at the end; 0 saves them at the end only."""
    checkpoint_batches: int = 1
    """Batches of `problems_per_batch` problems between two checkpoints. What was done since the last one is done again
    after an interruption, with the same result."""
    resume: bool = False
    """Resume the run in `output_dir` where its last checkpoint stands, or from its beginning where it has none yet.
    A folder without a run is refused. Settings that are not given are the run's own."""
    reuse_sampled: bool = False
    """With `resume`: use what the interrupted batch had sampled, too, where it was not sampled to its end. Tokens are
    those of an uninterrupted run, log-probabilities but for their last digits. A batch that had been sampled whole is
    used in any case."""
    allow: str = ""
    """What may differ from the run that is resumed, separated by commas: names of settings such as
    "learner.learning_rate", or "code", "versions", "device", "data", "prompts". The result is then not that of one
    run."""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)

    def __post_init__(self) -> None:
        expect(self, "of 1 or more", lambda value: value >= 1, "problems_per_batch", "window", "checkpoint_batches")
        expect(self, "of 0 or more", lambda value: value >= 0, "save_updates", "lag")
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """Settings of every command that samples, besides those of the flow."""

    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    data: DataSettings = field(default_factory=DataSettings)
    grading: GradingSettings = field(default_factory=GradingSettings)
    engine: EngineSettings = field(default_factory=LocalSettings)
    workers: WorkersSettings = field(default_factory=WorkersSettings)

    def sections(self) -> dict[str, Any]:
        """The settings by the names that flags and config.yaml use."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> RuntimeSettings:
        """The inverse of `sections`, among others."""
        return cls(**{each.name: sections[each.name] for each in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class SpeakingSettings:
    """Adapters that the roles use; the base model without adapters where neither is given."""

    run: str | None = None
    """A run folder, or the hub id of a run that was pushed ("me/name", "me/name@revision"), whose newest adapters are
    used."""
    roles: tuple[str, ...] = ()
    """Roles that use the run's adapters; all where empty."""
    role_runs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Runs of the same base whose adapters single roles use in place of the run's: {stop: runs/other}."""
    adapter: str | None = None
    """A folder with one adapter in PEFT's layout, such as `flow-dpo sft` writes: the Answer role uses it."""


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
    """ "path/to/file.py:Name" where the flow is the user's own, or the name of an installed one."""
    explore_source: str = ""
    """The same of an exploration in the place of the recipe's."""
    credit_source: str = ""
    """The same of a credit in the place of the recipe's."""
    objective_source: str = ""
    """The same of an objective in the place of the recipe's, or a name of `presets.OBJECTIVE_LINES`."""

    def sections(self) -> dict[str, Any]:
        """The settings by the names that flags and config.yaml use."""
        recipe = self.recipe
        method = {name: getattr(recipe, name) for name in ("flow", "explore", "credit", "objective")}
        return {**self.names(), **method, **self.runtime.sections(), "learner": self.learner, "run": self.run}

    def names(self) -> dict[str, str]:
        """Names that the settings were made from: recipe, preset, the user's own flow, and the kind of engine."""
        names = {"recipe": self.recipe_name, "preset": self.preset, "flow_source": self.flow_source}
        own = {name: getattr(self, name) for name in OWN_PARTS}
        names |= {name: source for name, source in own.items() if source}
        return names | {"engine_kind": engines.kind_of(self.runtime.engine)}

    def code(self) -> dict[str, Any]:
        """Code from elsewhere, as run.json names it: a resumed run must share it."""
        engine = engines.kind_of(self.runtime.engine)
        found = {
            "explore": fingerprint(self.explore_source, "explore"),
            "credit": fingerprint(self.credit_source, "credit"),
            "objective": None
            if self.objective_source in presets.OBJECTIVE_LINES
            else fingerprint(self.objective_source, "objective"),
            "grader": fingerprint(self.runtime.grading.grader, "grader"),
            "schema": fingerprint(self.runtime.data.schema, "schema"),
            "engine": None if engine in engines.BUILT_IN else fingerprint(engine, "engine"),
        }
        used = {kind: each for kind, each in found.items() if each is not None}
        recipe = None if self.recipe_name in presets.RECIPES else fingerprint(self.recipe_name, "recipe")
        files = {"recipe_file": recipe, "flow_file": fingerprint(self.flow_source, "flow")}
        return files | ({"plugins": used} if used else {})

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> TrainSettings:
        """The inverse of `sections`."""
        return cls(
            recipe=Recipe(**{name: sections[name] for name in ("flow", "explore", "credit", "objective")}),
            runtime=RuntimeSettings.from_sections(sections),
            learner=sections["learner"],
            run=sections["run"],
            recipe_name=sections["recipe"],
            preset=sections["preset"],
            flow_source=sections["flow_source"],
            **{name: sections.get(name, "") for name in OWN_PARTS},
        )


def default_settings(
    recipe: str,
    preset: str,
    flow_source: str = "",
    engine: str = "local",
    *,
    explore_source: str = "",
    credit_source: str = "",
    objective_source: str = "",
) -> TrainSettings:
    """The settings of a named recipe, preset and engine, with a flow, an exploration, a credit and an objective of the
    user's own where such are named.

    Raises `ConfigError` for a name that is none.
    """
    values = presets.preset(recipe, preset, flow=load_flow(flow_source) if flow_source else None)
    own = {"explore": load_part(explore_source, "explore")} if explore_source else {}
    own |= {"credit": load_part(credit_source, "credit")} if credit_source else {}
    if objective_source in presets.OBJECTIVE_LINES:
        replaced = None if credit_source else values.recipe.objective
        own |= {"objective": presets.pair_objective(objective_source, replaced, recipe=recipe)}
    elif objective_source:
        own |= {"objective": load_part(objective_source, "objective")}
    return TrainSettings(
        flow_source=flow_source,
        explore_source=explore_source,
        credit_source=credit_source,
        objective_source=objective_source,
        recipe=replace(values.recipe, **own),
        runtime=RuntimeSettings(lora=values.lora, engine=engines.default_settings(engine)),
        learner=values.learner,
        run=RunSettings(problems_per_batch=values.problems_per_batch),
        recipe_name=recipe,
        preset=preset,
    )


def named_settings(given: Given) -> TrainSettings:
    """The defaults of a command, by what was given of recipe, preset, model, flow and engine."""
    model = given.text("model.model_name_or_path", ModelSettings().model_name_or_path)
    default = presets.default_recipe(own_flow=bool(given.text("flow_source")))
    recipe = given.choice("recipe", presets.recipe_names(), default, source=True)
    found = default_settings(
        recipe,
        given.choice("preset", presets.preset_names(recipe), presets.default_preset(model)),
        given.text("flow_source"),
        given.choice("engine_kind", engines.engine_names(), given.implied_engine or "local"),
        **{name: given.text(name) for name in OWN_PARTS},
    )
    if shape := starting_shape(given):
        # DPO's reference is the policy that training begins with.
        runtime = replace(found.runtime, lora=replace(found.runtime.lora, **shape))
        reference = replace(found.learner.reference, kind="snapshot")
        found = replace(found, runtime=runtime, learner=replace(found.learner, reference=reference))
    return found


def sampling_sections(given: Given) -> dict[str, Any]:
    """The defaults of a command that samples and does not train, by section; its own come on top."""
    defaults = named_settings(given)
    method = {"flow": defaults.recipe.flow, "explore": defaults.recipe.explore}
    return {**defaults.names(), **method, **defaults.runtime.sections(), "speaking": SpeakingSettings()}
