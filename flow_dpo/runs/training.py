"""One training run, from its settings to its folder, and on again after an interruption.

    lock the folder   compare with what is resumed   load   begin, or go on from the last checkpoint   learn   publish

    result = train("seed", max_problems=64, output_dir="runs/seed", callbacks=[my_callback])

Invariant: a resumed run's records, adapters and optimizers are bit for bit those of an uninterrupted run with the same
settings on the same machine. Whatever could make them differ (settings, code, versions, device, data) is compared
before the model is loaded and anything is sampled or written, all of it at once, and refused unless the user allows it
by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError, FlowDpoError, StorageError
from flow_dpo.core.flow import Flow
from flow_dpo.core.loop import learn
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.plugins import fingerprint
from flow_dpo.core.protocols import Callback
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.types import Problem, Role
from flow_dpo.data.problems import ProblemSet, load
from flow_dpo.engines.settings import EngineSettings
from flow_dpo.learner.learner import Learner
from flow_dpo.models.load import device_of, dtype_of
from flow_dpo.runs import run_folder
from flow_dpo.runs.callbacks import progress
from flow_dpo.runs.callbacks.budget import BudgetCallback
from flow_dpo.runs.callbacks.collapse_warnings import ChosenLikelihoodWarning, StopCollapseWarning
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.callbacks.run_keeper import RunKeeper
from flow_dpo.runs.checkpoint import Checkpoints
from flow_dpo.runs.given_objects import OBJECT, GivenObjects, problem_set, train_settings
from flow_dpo.runs.records import read_metrics
from flow_dpo.runs.resolve import command_line, read_settings, refuse_unknown
from flow_dpo.runs.runtime import EngineOpener, GraderSource, Runtime, open_runtime
from flow_dpo.runs.settings import TrainSettings

_RUN_ONLY = frozenset(f"run.{name}" for name in ("output_dir", "resume", "allow", "save_updates", "checkpoint_batches"))
"""Settings that change no result."""
_FACTS = ("code", "recipe_file", "flow_file", "versions", "device", "dtype", "data_fingerprint", "given")
"""What besides the settings a result depends on, as run.json names it."""
_OTHER_CAUSES = tuple(name.removesuffix("_fingerprint") for name in _FACTS)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of a training run."""

    path: Path
    """The run folder."""
    adapters: Mapping[Role, Path]
    """Each role's newest adapter, a folder in PEFT's layout."""
    progressive: ProgressiveValidation
    """Accuracy on each problem before it was learned from."""


def train(
    model: str = "seed",
    dataset: str | Sequence[Problem] | ProblemSet = "seed",
    *,
    recipe: str | Recipe = "flow-dpo",
    preset: str | None = None,
    output_dir: str | Path = "runs/train",
    flow: Flow[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    grader: GraderSource | None = None,
    engine: str | EngineSettings | EngineOpener | None = None,
    max_problems: int | None = None,
    resume: bool = False,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> TrainResult:
    """Train a model's adapters on a stream of problems, as `flow-dpo train` does, into the same run folder.

    `model` and `dataset` are folders, hub ids or "seed"; a data set may also be a list of problems. `recipe` and
    `engine` are names or objects, `flow`, `callbacks` and `grader` (or its class, which is handed the renderer) objects
    that are used as they are. `settings` holds any other setting by its name on the command line, such as
    {"learner.learning_rate": 1e-3}; a short name is a keyword as well: `train(beta=0.5)`. Raises `ConfigError` for a
    name that does not exist.
    """
    given = GivenObjects(
        callbacks=callbacks,
        grader=grader,
        engine=engine,
        problems=problem_set(dataset, max_problems),
        recipe=recipe if isinstance(recipe, Recipe) else None,
        flow=flow,
    )
    values = {
        "model.model_name_or_path": model,
        "data.dataset_name": dataset if isinstance(dataset, str) else OBJECT,
        "data.max_problems": max_problems,
        "run.output_dir": str(output_dir),
        "run.resume": resume,
        **(settings or {}),
        **more,
    }
    name = recipe if isinstance(recipe, str) else ""
    resolved = train_settings(model, recipe=name, preset=preset, settings=values, given=given)
    return run(resolved, Console(quiet=quiet), given)


def run(settings: TrainSettings, console: Console, given: GivenObjects | None = None) -> TrainResult:
    """Train with these settings, write the run folder, and print a summary at the end."""
    given = GivenObjects() if given is None else given
    path = Path(settings.run.output_dir)
    for callback in given.callbacks:
        if not callable(getattr(callback, "on_batch", None)):
            raise ConfigError(f"expected callbacks with on_batch(row, trees, examples), found {callback!r:.80}")
    refuse_unknown(_allowed(settings), settings.sections(), _OTHER_CAUSES, flag="--allow")
    if not settings.run.resume:
        run_folder.refuse_used(path)
    with run_folder.locked(path), _opened(path, settings, given) as (runtime, differences):
        learner = runtime.learner(settings.learner)
        folder, validation = _open(path, settings, given, runtime, learner, differences)
        seen = validation.num_seen
        budget = BudgetCallback(
            tokens=settings.run.budget_tokens,
            verdicts=settings.run.budget_verdicts,
            updates=settings.run.budget_updates,
            rows=read_metrics(path / "metrics.jsonl"),
        )
        keeper = RunKeeper(folder, runtime.renderer, learner, validation, settings.run)
        going_on = f", going on after {seen}" if seen else ""
        reach = runtime.policy.targets.describe()
        print_safe(
            console, f"{runtime.loaded.name}: {len(runtime.fitting)} problems{going_on}, writing to {path}; {reach}"
        )
        try:
            with progress.ProgressBar(console, len(runtime.fitting), seen) as bar:
                learn(
                    settings.recipe,
                    budget.until_spent(runtime.fitting[seen:]),
                    runtime.workers,
                    learner,
                    callbacks=[keeper, budget, bar, *_default_callbacks(), *given.callbacks],
                    seed=settings.run.seed,
                    problems_per_batch=settings.run.problems_per_batch,
                    progress=validation,
                )
            keeper.checkpoint()
        except (KeyboardInterrupt, FlowDpoError) as error:
            # What was learned is kept and can be used, unless it is the disk that fails.
            if not isinstance(error, StorageError):
                keeper.finish()
            again = "the same call of train with resume=True" if given.problems or given.record() else ""
            print_safe(console, f"Go on with: {again or f'flow-dpo train --output_dir {path} --resume'}")
            raise
        keeper.finish()
    adapters = folder.latest_adapters()
    console.print(progress.summary_table(validation))
    print_safe(console, f"\nPicture:  {path / 'progressive.png'}")
    print_safe(console, f"Adapters: {', '.join(str(adapter) for adapter in adapters.values())}")
    data = "--dataset_split test" if given.problems is None else "--dataset_name NAME"
    print_safe(console, f"Next:     flow-dpo evaluate --run {path} {data} --max_problems 500")
    return TrainResult(path=path, adapters=adapters, progressive=validation)


def _default_callbacks() -> list[Callback]:
    """Callbacks of every run, besides the run folder, the budget and the progress bar."""
    return [StopCollapseWarning(), ChosenLikelihoodWarning()]


@contextmanager
def _opened(path: Path, settings: TrainSettings, given: GivenObjects) -> Iterator[tuple[Runtime, dict[str, Any]]]:
    """Everything loaded, and what is allowed to differ from the run that is resumed, if one is.

    The comparison needs the problems and the device's name: it is made before the model is loaded.
    """
    problems = load(settings.runtime.data) if given.problems is None else given.problems
    differences = dict[str, Any]()
    if settings.run.resume and (path / "config.yaml").exists():
        facts = {
            "device": str(device_of(settings.runtime.model)),
            "dtype": dtype_of(settings.runtime.model),
            "data_fingerprint": problems.fingerprint,
            "recipe_file": fingerprint(settings.recipe_name),
            "flow_file": fingerprint(settings.flow_source),
            "given": given.record() or None,
        }
        differences = _compare(path, settings, given, facts)
    with open_runtime(
        settings.runtime,
        settings.recipe.flow,
        seed=settings.run.seed,
        engine=given.engine if callable(given.engine) else None,
        grader=given.grader,
        problems=problems,
        served=path / "served",
    ) as runtime:
        yield runtime, differences


def _open(
    path: Path,
    settings: TrainSettings,
    given: GivenObjects,
    runtime: Runtime,
    learner: Learner,
    differences: Mapping[str, Any],
) -> tuple[run_folder.RunFolder, ProgressiveValidation]:
    """A new folder and empty counts; or those that are resumed, and the learner is as the last checkpoint has it."""
    facts = {
        "command": command_line(),
        "model": runtime.loaded.name,
        "device": str(runtime.policy.device),
        "dtype": dtype_of(settings.runtime.model),
        "adapter_share": round(runtime.policy.targets.share, 4),
        "num_problems": len(runtime.fitting),
        "num_skipped_rows": runtime.problems.skipped,
        "data_fingerprint": runtime.problems.fingerprint,
        "recipe_file": fingerprint(settings.recipe_name),
        "flow_file": fingerprint(settings.flow_source),
    }
    facts |= {"given": given.record()} if given.record() else {}
    found = Checkpoints(path).newest() if settings.run.resume else None
    if found is None:  # not started, or interrupted before anything was committed
        folder = run_folder.RunFolder.create(path, given.sections(settings), facts, over=settings.run.resume)
        return folder, ProgressiveValidation(window=settings.run.window)
    checkpoint, loop = found
    folder = run_folder.RunFolder.reopen(path, loop["sizes"])
    learner.load(checkpoint / "learner")
    validation = ProgressiveValidation.from_state(loop["progressive"])
    if differences:
        folder.note({"resumed_with": {"problems_seen": validation.num_seen, "differences": differences}})
    return folder, validation


def _compare(path: Path, settings: TrainSettings, given: GivenObjects, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Allowed differences from the run at `path`. Raises `ConfigError` for any other."""
    now = given.sections(settings)
    found = {
        name: values
        for name, values in run_folder.differences(
            {"engine_kind": "local"} | read_settings(path / "config.yaml"), now
        ).items()
        if name not in _RUN_ONLY
    }
    before, present = run_folder.read_facts(path), {**run_folder.environment(), **facts}
    for name in _FACTS if before else ():
        if before.get(name) != present[name]:
            found[name.removesuffix("_fingerprint")] = (before.get(name), present[name])
    allowed = _allowed(settings)
    refused = {name: values for name, values in found.items() if name not in allowed}
    if refused:
        lines = "".join(f"\n  {name}: {old} then, {new} now" for name, (old, new) in refused.items())
        raise ConfigError(
            f"{path} was started with other settings; to go on all the same, add "
            f"--allow {','.join([*allowed, *refused])}{lines}"
        )
    return {name: list(values) for name, values in found.items()}


def _allowed(settings: TrainSettings) -> list[str]:
    """The names in `--allow`, each once."""
    return list(dict.fromkeys(name.strip() for name in settings.run.allow.split(",") if name.strip()))
