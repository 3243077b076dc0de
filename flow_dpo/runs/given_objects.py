"""Python arguments as settings: names and values go through the command line's resolver, objects are used as they are.

    given = GivenObjects(grader=PatternGrader, problems=my_problems)
    train_settings({"learner.learning_rate": 1e-3, "beta": 0.5}, given, recipe="flow-dpo")

Invariant: an unknown name is refused with the nearest one, as on the command line; an object, which settings cannot
express, is named in the record, so that a run is never mistaken for another.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import Callback
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.types import Problem
from flow_dpo.data.problems import GIVEN, DataSettings, ProblemSet, fingerprint
from flow_dpo.data.rows import problems_from
from flow_dpo.engines.settings import EngineSettings, kind_of
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.presets import RECIPES, default_preset, default_recipe
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import run_settings
from flow_dpo.runs.published import is_published, local_run, names_a_run
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.runtime import EngineOpener, GraderSource, Runtime
from flow_dpo.runs.settings import TrainSettings, named_settings
from flow_dpo.verify.grader import GradingSettings
from flow_dpo.verify.rewards import RewardFunctions
from flow_dpo.workers.grading import grades_by_rewards

log = logging.getLogger("flow_dpo")
OBJECT = GIVEN
"""How records name something that was passed as an object and has no name of its own."""
HANDED_OVER = "handed over"
"""How records name problems that were passed from Python and have no source in common."""
Watcher = Callable[[Recipe, Runtime, Callable[[str, Mapping[str, Any], int], None]], Callback]
"""Makes a callback of the recipe, the open runtime, and a function that calls every callback's `on_evaluation`."""
_PARTS = ("flow", "explore", "credit", "objective")


@dataclass(frozen=True, kw_only=True)
class GivenObjects:
    """Objects that a caller passes instead of what settings would make."""

    callbacks: Sequence[Callback] = ()
    """In addition to the run's own."""
    watchers: Sequence[Watcher] = ()
    """Make callbacks once everything is loaded, such as one that evaluates while the run is under way."""
    report: Callable[[Path], Sequence[Path]] | None = None
    """Writes a report on the run at its end and returns its files, which are sent to the run's trackers."""
    grader: GraderSource | None = None
    engine: str | EngineSettings | EngineOpener | None = None
    problems: ProblemSet | None = None
    recipe: Recipe | None = None
    flow: Flow[Any] | None = None

    def __post_init__(self) -> None:
        known = {
            "flow": (("roles", "start", "turn", "advance"), "; pass a recipe, and its flow, as recipe="),
            "grader": (("check_texts",), ", or a class that is called with the renderer"),
            "callbacks": (("__iter__",), ": a list of callbacks"),
        }
        for name, (parts, hint) in known.items():
            value = getattr(self, name)
            missing = [part for part in parts if not hasattr(value, part)]
            fits = name == "grader" and (callable(value) or isinstance(value, RewardFunctions))
            if value is not None and missing and not fits:
                raise ConfigError(f"expected {name} to have {', '.join(missing)}{hint}; found {value!r:.80}")

    def record(self) -> dict[str, str]:
        """The objects that no setting describes, by their kind: "grader": "__main__:PatternGrader"."""
        found = {"grader": self.grader, "engine": self.engine if callable(self.engine) else None}
        names = {name: _described(value) for name, value in found.items() if value is not None}
        return names | ({"grader": self.grader.describe()} if isinstance(self.grader, RewardFunctions) else {})

    def dataset(self, data: DataSettings) -> str:
        """The data set as records name it: its name and split. For problems that were passed: the source that they
        have in common, or `HANDED_OVER` if they have none, as rows."""
        if self.problems is None:
            return f"{data.dataset_name}/{data.dataset_split}"
        return source_of(self.problems)

    def as_they_are(self) -> Collection[str]:
        """The parts of the recipe that settings do not change."""
        return _PARTS if self.recipe is not None else ("flow",) if self.flow is not None else ()

    def sections(self, settings: TrainSettings) -> dict[str, Any]:
        """Content of config.yaml: the settings, in which an object is named by where it is defined."""
        found = {name: recordable(value) for name, value in settings.sections().items()}
        return found | {"engine_kind": OBJECT, "engine": {}} if callable(self.engine) else found


class ChosenProblems(ProblemSet):
    """Problems that were already chosen and shuffled, by the settings that are passed with them."""

    __slots__ = ()


def source_of(problems: Iterable[Problem]) -> str:
    """The data set and split that all problems come from; `HANDED_OVER` if they come from several, or from none."""
    found = {problem.source for problem in problems}
    one = found.pop() if len(found) == 1 else ""
    return HANDED_OVER if not one or one.startswith(f"{GIVEN}/") else one


def graded_as_given(given: GivenObjects | None, run: str | None, grading: GradingSettings) -> GivenObjects:
    """`given`, or no objects if it is None. Warns if the run was graded by an object that is not passed again: no
    folder holds it, so the verifier grades instead."""
    given = GivenObjects() if given is None else given
    known = run_folder.read_facts(Path(run)).get("given") or {} if run else {}
    if "grader" in known and given.grader is None and not (grading.grader or grading.rewards):
        log.warning(
            "%s was graded by %s, which was passed from Python and is in no folder: here the verifier grades instead. "
            "Pass grader= or reward_funcs= from Python, or name a file with --grader or --reward",
            run, known["grader"],
        )  # fmt: skip
    return given


def grader_of(
    grader: GraderSource | None, reward_funcs: Any, reward_weights: Sequence[float] | None
) -> GraderSource | None:
    """The grader that was passed, or one made of the reward functions. Raises `ConfigError` if both are given."""
    if reward_funcs is None:
        if reward_weights is not None:
            raise ConfigError("expected reward_funcs with reward_weights, found none")
        return grader
    if grader is not None:
        raise ConfigError("expected reward_funcs or a grader, found both; leave one out")
    return RewardFunctions.of(reward_funcs, reward_weights)


Rows = str | Sequence[Problem] | ProblemSet | Iterable[Mapping[str, Any]]
"""A data set: its name, problems, or rows with columns, as a `datasets.Dataset` has them."""


def problem_set(data: Rows | None, settings: DataSettings, *, columns: bool = False) -> ProblemSet | None:
    """The problems if they are objects; None if a data set is named. Rows are read as the settings say (`data.rows`),
    and rows and lists of problems are chosen and shuffled; a `ProblemSet` was chosen when it was made, and only its
    first `max_problems` are used.

    Raises `ConfigError` for anything else, for two problems with one id, and for a `ProblemSet` with settings that
    would choose from it again; `DataError` as `problems_from` does.
    """
    if data is None or isinstance(data, str):
        return None
    again = settings.skip_problems or settings.shuffle_seed is not None
    if isinstance(data, ProblemSet) and again and not isinstance(data, ChosenProblems):
        raise ConfigError(
            "expected rows or a list of problems with skip_problems and shuffle_seed, found a ProblemSet, which was "
            "chosen when it was made; give these settings to load_problems, or pass list(problems)"
        )
    if not (isinstance(data, ProblemSet) or _are_problems(data)):
        return problems_from(data, settings, columns=columns)
    repeated = [id for id, count in Counter(each.id for each in cast("Iterable[Problem]", data)).items() if count > 1]
    if repeated:
        raise ConfigError(f"expected every problem to have its own id, found {repeated[0]!r} more than once")
    if not isinstance(data, ProblemSet):
        return problems_from(data, settings, columns=True)  # the caller's own, with a gold answer or without
    chosen = data.problems[: settings.max_problems]
    return ProblemSet(problems=chosen, fingerprint=fingerprint(chosen))


def handed_over(given: GivenObjects, data: Rows | None, sections: Mapping[str, Any]) -> GivenObjects:
    """`given` with the problems of `data`, read as a command's settings say. Raises as `problem_set` does."""
    columns = grades_by_rewards(sections["grading"], given.grader)
    return replace(given, problems=problem_set(data, sections["data"], columns=columns))


def _are_problems(data: Any) -> bool:
    return isinstance(data, list | tuple) and all(isinstance(each, Problem) for each in data)  # pyright: ignore


def train_settings(
    settings: Mapping[str, Any], given: GivenObjects, *, recipe: str | None = None, resumed: Path | None = None
) -> TrainSettings:
    """The settings of a training run, on top of those of the run folder `resumed`, if there is one.

    `recipe` is a recipe's name, if it is not an object in `given`. Raises `ConfigError` for an unknown name, a value
    that does not fit, and a resumed run whose objects are not passed again.
    """
    values = _given_values(settings)
    base = {} if resumed is None else run_folder.resumed_settings(resumed)
    # 1. Objects replace what the folder says about them; if one is missing, it cannot be made from the folder.
    name = recipe if given.recipe is None else _name_of(given.recipe, _preset_of({**base, **values}))
    if isinstance(given.engine, str):
        values |= {"engine_kind": given.engine}
    elif given.engine is not None and not callable(given.engine):
        values |= {"engine_kind": kind_of(given.engine), "engine": run_folder.plain(given.engine)}
    began_with = base.get("recipe")
    stale = [*given.as_they_are(), *(["engine", "engine_kind"] if given.engine is not None else [])]
    stale += ["recipe"] if name is not None or given.flow is not None else []
    base = {key: value for key, value in base.items() if key not in stale}
    for key, argument in (("recipe", "recipe= or flow="), ("engine_kind", "engine=")):
        if resumed is not None and base.get(key) == OBJECT:
            given_then = run_folder.read_facts(resumed).get("given", {})
            raise ConfigError(
                f"expected the object that {resumed} was given {given_then or ''}, found no {argument}; pass it again"
            )
    if resumed is not None and name != OBJECT:
        allowed = values.get("run.allow") or values.get("allow")
        run_folder.refuse_other_recipe(resumed, began_with, name or values.get("recipe"), allowed)
    own = name == OBJECT or (name is None and given.flow is not None and not isinstance(given.flow, Attempts))
    values = ({"recipe": default_recipe(own_flow=True)} if own else {}) | values
    values |= {} if name in (None, OBJECT) else {"recipe": name}
    every: dict[str, Any] = {}

    # 2. The parts that settings can change, with the defaults of the named recipe and preset.
    def parts(words: Given) -> Sections:
        defaults = named_settings(words)
        whole, called = defaults.recipe if given.recipe is None else given.recipe, name or defaults.recipe_name
        if given.flow is not None:
            called = called if type(given.flow) is type(defaults.recipe.flow) else OBJECT
            whole = replace(whole, flow=given.flow)
        every.update(replace(defaults, recipe=whole, recipe_name=called).sections())
        return {key: value for key, value in every.items() if key not in given.as_they_are()}

    origin = "" if resumed is None else str(resumed / "config.yaml")
    found = resolve("flow_dpo.train", "", (), parts, values=values, brings=lambda _: (base, origin), trusted=True)
    return TrainSettings.from_sections({**every, **found, "recipe": every["recipe"]})


def sampling_settings(
    command: str, source: str, sections: Mapping[str, Any], settings: Mapping[str, Any], given: GivenObjects
) -> dict[str, Any]:
    """The settings of a command that samples and does not train: those of the run `source`, or the defaults for the
    model of that name. `sections` are the command's own groups; "data" can be among them.

    Raises `ConfigError` if a run from the hub names code that the settings do not ask for."""
    of_hub = is_published(source)
    run = local_run(source) if names_a_run(source) else None
    if run is None and not Path(source).exists() and (source.startswith((".", "/")) or source.count("/") > 1):
        raise ConfigError(f"expected a run folder or a model, found nothing at {source}")
    base = {} if run is None else run_settings(run, of_hub=of_hub)
    if given.recipe is not None or given.flow is not None:
        base = {name: value for name, value in base.items() if name not in ("recipe", *_PARTS)}
    elif base.get("recipe") == OBJECT and settings.get("recipe") is None:
        raise ConfigError(
            f"expected the flow that {source} was trained with, which was given as an object, found none; pass it "
            "again with flow="
        )
    values = {"model.model_name_or_path": source} if run is None else {}
    values |= {"engine_kind": given.engine} if isinstance(given.engine, str) else {}
    every: dict[str, Any] = {}

    def parts(words: Given) -> Sections:
        defaults = named_settings(words)
        recipe = defaults.recipe if given.recipe is None else given.recipe
        recipe = recipe if given.flow is None else replace(recipe, flow=given.flow)
        method = {"flow": recipe.flow, "explore": recipe.explore}
        every.update({**defaults.names(), **method, **defaults.runtime.sections(), **sections})
        return {name: value for name, value in every.items() if name not in given.as_they_are()}

    origin = "" if run is None else f"{source}/config.yaml"
    values |= _given_values(settings)
    # A caller knows the folder that it names; a run on the hub is a stranger's.
    found = resolve(command, "", (), parts, values=values, brings=lambda _: (base, origin), trusted=not of_hub)
    return {**every, **found}


def _given_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run_folder.plain(value) for name, value in settings.items() if value is not None}


def _preset_of(values: Mapping[str, Any]) -> str:
    """The preset in force."""
    model = values.get("model.model_name_or_path") or values.get("model", {}).get("model_name_or_path", "seed")
    return values.get("preset") or default_preset(model)


def _name_of(recipe: Recipe, preset: str) -> str:
    """The name of the recipe with parts of the same types, so that its settings describe them; otherwise "given"."""
    kinds = [type(getattr(recipe, part)) for part in _PARTS]
    for name, presets in RECIPES.items():
        if preset in presets and [type(getattr(presets[preset].recipe, part)) for part in _PARTS] == kinds:
            return name
    return OBJECT


def recordable(value: Any) -> Any:
    """Settings and objects in a form that YAML and JSON can hold: other objects are named by where they are defined."""
    if isinstance(value, Mapping):
        return {str(key): recordable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [recordable(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return recordable(run_folder.plain(value))
    return value if value is None or isinstance(value, str | int | float | bool) else _described(value)


def _described(value: Any) -> str:
    kind = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}:{kind.__qualname__}"
