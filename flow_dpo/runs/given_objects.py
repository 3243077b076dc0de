"""Python arguments as settings: names and values go through the command line's resolver, objects stay as they are.

    given = GivenObjects(grader=PatternGrader, problems=my_problems)
    train_settings({"learner.learning_rate": 1e-3, "beta": 0.5}, given, recipe="flow-dpo")

Invariant: a name that does not exist is refused with the nearest one, here as on the command line; what settings cannot
express (an object) is named in the record, so that a run is never taken for one that it is not.
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
"""What the record calls something that was handed over as an object and that no name stands for."""
HANDED_OVER = "handed over"
"""What the record calls problems that were handed over and are of no one source."""
Watcher = Callable[[Recipe, Runtime, Callable[[str, Mapping[str, Any], int], None]], Callback]
"""Called with the recipe in force, the open runtime, and what every callback's `on_evaluation` is called by."""
_PARTS = ("flow", "explore", "credit", "objective")


@dataclass(frozen=True, kw_only=True)
class GivenObjects:
    """Objects that a caller passes in place of what settings would make."""

    callbacks: Sequence[Callback] = ()
    """Besides the run's own."""
    watchers: Sequence[Watcher] = ()
    """What makes callbacks of what is loaded, once it is: an evaluation while the run is under way."""
    report: Callable[[Path], Sequence[Path]] | None = None
    """Writes a page on the run at its end and returns its files, for the trackers that it reports to."""
    grader: GraderSource | None = None
    engine: str | EngineSettings | EngineOpener | None = None
    problems: ProblemSet | None = None
    recipe: Recipe | None = None
    flow: Flow[Any] | None = None

    def __post_init__(self) -> None:
        known = {
            "flow": (("roles", "start", "turn", "advance"), "; a recipe's flow comes with recipe="),
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
        """The data set for a record: its name and split, or of problems that were handed over their own source, where
        they have one in common; `HANDED_OVER` otherwise, as of rows."""
        if self.problems is None:
            return f"{data.dataset_name}/{data.dataset_split}"
        return source_of(self.problems)

    def as_they_are(self) -> Collection[str]:
        """The parts of the recipe that settings do not touch."""
        return _PARTS if self.recipe is not None else ("flow",) if self.flow is not None else ()

    def sections(self, settings: TrainSettings) -> dict[str, Any]:
        """Content of config.yaml: the settings, with objects by where they are defined."""
        found = {name: recordable(value) for name, value in settings.sections().items()}
        return found | {"engine_kind": OBJECT, "engine": {}} if callable(self.engine) else found


class ChosenProblems(ProblemSet):
    """Problems that were chosen and shuffled already, by the settings that are handed over with them."""

    __slots__ = ()


def source_of(problems: Iterable[Problem]) -> str:
    """The data set and split that all problems are of; `HANDED_OVER` where they are of several, or of none."""
    found = {problem.source for problem in problems}
    one = found.pop() if len(found) == 1 else ""
    return HANDED_OVER if not one or one.startswith(f"{GIVEN}/") else one


def graded_as_given(given: GivenObjects | None, run: str | None, grading: GradingSettings) -> GivenObjects:
    """What was handed over, or nothing. Tells where a run was graded by an object that was not handed over again: no
    folder has it, and the verifier stands in its place."""
    given = GivenObjects() if given is None else given
    known = run_folder.read_facts(Path(run)).get("given") or {} if run else {}
    if "grader" in known and given.grader is None and not (grading.grader or grading.rewards):
        log.warning(
            "%s was graded by %s, which was handed over from Python and is in no folder: here the verifier grades. "
            "Pass grader= or reward_funcs= from Python, or name a file by --grader or --reward",
            run, known["grader"],
        )  # fmt: skip
    return given


def grader_of(
    grader: GraderSource | None, reward_funcs: Any, reward_weights: Sequence[float] | None
) -> GraderSource | None:
    """The grader that was handed over, or the one that reward functions are. Raises `ConfigError` for both."""
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
    """The problems where they are objects; None where a data set is named. Rows are read by the settings
    (`data.rows`), and rows and lists of problems are chosen and shuffled by them; of a `ProblemSet`, which was chosen
    when it was made, at most `max_problems` are taken.

    Raises `ConfigError` for what is neither, for two problems of one id, and for a `ProblemSet` that is to be chosen
    from again; `DataError` as `problems_from`.
    """
    if data is None or isinstance(data, str):
        return None
    again = settings.skip_problems or settings.shuffle_seed is not None
    if isinstance(data, ProblemSet) and again and not isinstance(data, ChosenProblems):
        raise ConfigError(
            "expected rows or a list of problems with skip_problems and shuffle_seed, found a ProblemSet, which was "
            "chosen when it was made; give them to load_problems, or pass list(problems)"
        )
    if not (isinstance(data, ProblemSet) or _are_problems(data)):
        return problems_from(data, settings, columns=columns)
    repeated = [id for id, count in Counter(each.id for each in cast("Iterable[Problem]", data)).items() if count > 1]
    if repeated:
        raise ConfigError(f"expected an id of its own for every problem, found {repeated[0]!r} more than once")
    if not isinstance(data, ProblemSet):
        return problems_from(data, settings, columns=True)  # the caller's own, with a gold answer or without
    chosen = data.problems[: settings.max_problems]
    return ProblemSet(problems=chosen, fingerprint=fingerprint(chosen))


def handed_over(given: GivenObjects, data: Rows | None, sections: Mapping[str, Any]) -> GivenObjects:
    """What was given, and the problems of `data` as a command's settings read them. Raises as `problem_set`."""
    columns = grades_by_rewards(sections["grading"], given.grader)
    return replace(given, problems=problem_set(data, sections["data"], columns=columns))


def _are_problems(data: Any) -> bool:
    return isinstance(data, list | tuple) and all(isinstance(each, Problem) for each in data)  # pyright: ignore


def train_settings(
    settings: Mapping[str, Any], given: GivenObjects, *, recipe: str | None = None, resumed: Path | None = None
) -> TrainSettings:
    """The settings of a training run, those of the run folder `resumed` first where one is resumed.

    `recipe` is a name, where it is not an object. Raises `ConfigError` for a name that is none, a value that does not
    fit, and a resumed run of objects that are not handed over again.
    """
    values = _given_values(settings)
    base = {} if resumed is None else run_folder.resumed_settings(resumed)
    # 1. Objects come before what the folder says of them; what it holds of an object that is missing cannot be made.
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
                f"expected what {resumed} was given as an object {given_then or ''}, found no {argument}; hand it over "
                "again"
            )
    if resumed is not None and name != OBJECT:
        allowed = values.get("run.allow") or values.get("allow")
        run_folder.refuse_other_recipe(resumed, began_with, name or values.get("recipe"), allowed)
    own = name == OBJECT or (name is None and given.flow is not None and not isinstance(given.flow, Attempts))
    values = ({"recipe": default_recipe(own_flow=True)} if own else {}) | values
    values |= {} if name in (None, OBJECT) else {"recipe": name}
    every: dict[str, Any] = {}

    # 2. The parts that settings can reach, with the defaults of what was named.
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
    """The settings of a command that samples and does not train: those of the run folder that `source` is, or the
    defaults of the model that it names. `sections` are the command's own groups; "data" may be among them.

    Raises `ConfigError` where a run of the hub names code that the settings do not ask for."""
    of_hub = is_published(source)
    run = local_run(source) if names_a_run(source) else None
    if run is None and not Path(source).exists() and (source.startswith((".", "/")) or source.count("/") > 1):
        raise ConfigError(f"expected a run folder or a model, found nothing at {source}")
    base = {} if run is None else run_settings(run, of_hub=of_hub)
    if given.recipe is not None or given.flow is not None:
        base = {name: value for name, value in base.items() if name not in ("recipe", *_PARTS)}
    elif base.get("recipe") == OBJECT and settings.get("recipe") is None:
        raise ConfigError(
            f"expected the flow that {source} was trained with, which it was given as an object, found none; hand it "
            "over again with flow="
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
    # A caller has seen the folder that it names; what the hub holds is a stranger's.
    found = resolve(command, "", (), parts, values=values, brings=lambda _: (base, origin), trusted=not of_hub)
    return {**every, **found}


def _given_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run_folder.plain(value) for name, value in settings.items() if value is not None}


def _preset_of(values: Mapping[str, Any]) -> str:
    """The preset in force."""
    model = values.get("model.model_name_or_path") or values.get("model", {}).get("model_name_or_path", "seed")
    return values.get("preset") or default_preset(model)


def _name_of(recipe: Recipe, preset: str) -> str:
    """The named recipe whose parts are of the same kinds, which its name and settings describe; otherwise "given"."""
    kinds = [type(getattr(recipe, part)) for part in _PARTS]
    for name, presets in RECIPES.items():
        if preset in presets and [type(getattr(presets[preset].recipe, part)) for part in _PARTS] == kinds:
            return name
    return OBJECT


def recordable(value: Any) -> Any:
    """Settings and objects as YAML and JSON can hold them: what they cannot is named by where it is defined."""
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
