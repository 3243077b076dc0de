"""Settings of a run: method, model, data, engine and learner, under the names that flags and config.yaml use.

    default_settings("grpo", "seed").sections()["objective"]       # ClippedPolicyGradient(...), the paper's values

Invariant: importing this module loads nothing heavy beyond what the recipes need.
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
"""Names of the settings that replace a part of the recipe with the user's own."""


@dataclass(frozen=True, kw_only=True)
class BudgetSettings:
    """Limits of a run, which ends when all that are set are reached, even if problems are left; and what it records."""

    budget_tokens: int = 0
    """Tokens after which a run ends: those sampled in rollouts plus those that the learner reads (prompts included,
    shared ones once). 0 sets no limit. Batches in flight (`lag`) are still learned from."""
    budget_verdicts: int = 0
    """Graded rollouts after which a run ends; 0 sets no limit."""
    budget_updates: int = 0
    """Updates of the adapters after which a run ends; 0 sets no limit."""
    records: TreeForm = "full"
    """How much of what is sampled trees.jsonl holds: "full" keeps everything; "no-probes" leaves out the rollouts that
    only value a state; "compact" also leaves out texts and log-probabilities, and keeps token ids and verdicts.
    Learning does not depend on it."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "budget_tokens", "budget_verdicts", "budget_updates")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a run's folder, batches, checkpoints, budget and resumption."""

    output_dir: str = "runs/train"
    seed: int = 0
    """The seed from which every random number of the run derives."""
    problems_per_batch: int = 16
    """Problems sampled with one policy version before the learner sees them (not stated in the paper). A higher number
    makes fuller batches and staler rollouts."""
    lag: int = 0
    """Batches that workers sample ahead of the one being learned from, so that sampling and learning overlap: batch b
    is sampled with exactly the adapters that were in force after batch b - 1 - lag. Workers in this process (`--workers
    here`) gain nothing from it. The paper has no lag."""
    window: int = 250
    """Number of last problems over which the windowed accuracy is computed."""
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    save_updates: int = 0
    """Save the adapters every time this many updates have passed, and at the end; 0 saves them only at the end."""
    checkpoint_batches: int = 1
    """Batches of `problems_per_batch` problems between two checkpoints. After an interruption the run repeats what it
    did since the last checkpoint, with the same result."""
    resume: bool = False
    """Resume the run in `output_dir` from its last checkpoint, or from its beginning if it has none yet.
    A folder without a run is refused. Settings that are not given are taken from the run."""
    reuse_sampled: bool = False
    """With `resume`: also use what the interrupted batch had sampled if it was not sampled to its end. Tokens are then
    those of an uninterrupted run, but log-probabilities can differ in their last digits. A batch that was sampled
    completely is used in any case."""
    allow: str = ""
    """What is allowed to differ from the run that is resumed, separated by commas: names of settings such as
    "learner.learning_rate", or "code", "versions", "device", "data", "prompts". The result is then no longer that of
    a single run."""
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
        """The groups of settings, by the names that flags and config.yaml use."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> RuntimeSettings:
        """The inverse of `sections`; other groups are ignored."""
        return cls(**{each.name: sections[each.name] for each in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class SpeakingSettings:
    """Adapters that the roles use; with neither a run nor an adapter they use the base model as it is."""

    run: str | None = None
    """A run folder, or the hub id of a pushed run ("me/name", "me/name@revision"): its newest adapters are used."""
    roles: tuple[str, ...] = ()
    """Roles that use the run's adapters; all roles if empty."""
    role_runs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Runs of the same base model whose adapters some roles use instead of the run's: {stop: runs/other}."""
    adapter: str | None = None
    """A folder with one adapter in PEFT's layout, such as `flow-dpo sft` writes; the Answer role uses it."""


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
    """ "path/to/file.py:Name" of the user's own flow, or the name of an installed one."""
    explore_source: str = ""
    """The same for an exploration that replaces the recipe's."""
    credit_source: str = ""
    """The same for a credit that replaces the recipe's."""
    objective_source: str = ""
    """The same for an objective that replaces the recipe's, or a name from `presets.OBJECTIVE_LINES`."""

    def sections(self) -> dict[str, Any]:
        """The groups of settings, by the names that flags and config.yaml use."""
        recipe = self.recipe
        method = {name: getattr(recipe, name) for name in ("flow", "explore", "credit", "objective")}
        return {**self.names(), **method, **self.runtime.sections(), "learner": self.learner, "run": self.run}

    def names(self) -> dict[str, str]:
        """The names from which the settings were made: recipe, preset, the user's own parts, and the kind of engine."""
        names = {"recipe": self.recipe_name, "preset": self.preset, "flow_source": self.flow_source}
        own = {name: getattr(self, name) for name in OWN_PARTS}
        names |= {name: source for name, source in own.items() if source}
        return names | {"engine_kind": engines.kind_of(self.runtime.engine)}

    def code(self) -> dict[str, Any]:
        """Code from outside the package, as run.json names it: a resumed run must use the same."""
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
    """The settings of a named recipe, preset and engine, with the user's own flow, exploration, credit and objective
    if these are named.

    Raises `ConfigError` for an unknown name.
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
    """The defaults of a command for the recipe, preset, model, flow and engine that were given."""
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
    """The defaults, by section, of a command that samples and does not train; the command adds its own sections."""
    defaults = named_settings(given)
    method = {"flow": defaults.recipe.flow, "explore": defaults.recipe.explore}
    return {**defaults.names(), **method, **defaults.runtime.sections(), "speaking": SpeakingSettings()}
