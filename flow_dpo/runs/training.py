"""One training run, from its settings to its folder, and its resumption after an interruption.

    lock the folder   write its settings   compare with what is resumed   load   restore the last checkpoint, if any
    learn   publish

    result = run(settings, Console(), GivenObjects(callbacks=[my_callback]))

Invariant: a resumed run's records, adapters and optimizers are bit for bit those of an uninterrupted run with the same
settings on the same machine. Whatever could make them differ (settings, code, versions, device, data) is compared
before the model is loaded and before anything is sampled or written (`resumption`).
"""

from __future__ import annotations

import logging
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError, FlowDpoError, StorageError
from flow_dpo.core.loop import InFlight, learn
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.protocols import Callback, Learns
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.types import Role
from flow_dpo.data.problems import load
from flow_dpo.engines.settings import seeds_fact
from flow_dpo.learner.learner import Learner
from flow_dpo.models import flex_attention
from flow_dpo.models.context_window import fitting_problems
from flow_dpo.models.load import device_of, dtype_of
from flow_dpo.models.prompt_preview import prompt_facts
from flow_dpo.ranks.group import Ranks
from flow_dpo.runs import following, memory, notices, replay, resumption, run_folder
from flow_dpo.runs.callbacks import progress
from flow_dpo.runs.callbacks.budget import BudgetCallback
from flow_dpo.runs.callbacks.collapse_warnings import ChosenLikelihoodWarning, StopCollapseWarning
from flow_dpo.runs.callbacks.lifecycle import Lifecycle, RunInfo
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.callbacks.run_keeper import RunKeeper
from flow_dpo.runs.checkpoint import Checkpoints
from flow_dpo.runs.given_objects import GivenObjects
from flow_dpo.runs.journal import FILE as SAMPLED
from flow_dpo.runs.journal import JournalWorkers
from flow_dpo.runs.kept_workers import run_workers
from flow_dpo.runs.live import Live, MeteredLearner
from flow_dpo.runs.records import read_metrics
from flow_dpo.runs.resolve import code_flags, command_line, typed_command
from flow_dpo.runs.runtime import Runtime, open_runtime
from flow_dpo.runs.settings import TrainSettings
from flow_dpo.runs.starting_adapters import starting_checksums
from flow_dpo.runs.timeline import Timeline
from flow_dpo.trackers.tracking import Tracking
from flow_dpo.workers.grading import grades_by_rewards, reward_files

log = logging.getLogger("flow_dpo")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of a training run."""

    path: Path
    """The run folder."""
    adapters: Mapping[Role, Path]
    """Each role's newest adapter, a folder in PEFT's layout."""
    progressive: ProgressiveValidation
    """Accuracy on each problem before it was learned from."""


def run(settings: TrainSettings, console: Console, given: GivenObjects | None = None) -> TrainResult:
    """Train with these settings, write the run folder, and print a summary at the end."""
    given = GivenObjects() if given is None else given
    path = Path(settings.run.output_dir)
    resumption.check(settings, given, path)
    settings, memory_line = memory.planned(resumption.at_its_date(settings, path))
    print_safe(console, memory_line)
    notices.warn_of_lag(settings)
    with (
        following.leading(settings, kept_versions=settings.run.lag, engine=given.engine) as ranks,
        run_folder.locked(path),
        Live(console) as live,
        _begun(path, settings, given, console) as folder,
        _opened(path, settings, given, live) as (runtime, differences),
    ):
        learner, learns = _learner(settings, runtime, ranks)
        validation, under_way = _restore(folder, settings, given, runtime, learner, differences)
        seen = validation.num_seen
        workers, journal = run_workers(runtime, live, settings)
        budget = BudgetCallback(
            tokens=settings.run.budget.budget_tokens,
            verdicts=settings.run.budget.budget_verdicts,
            updates=settings.run.budget.budget_updates,
            rows=read_metrics(path / "metrics.jsonl"),
        )
        in_flight = deque[InFlight]()
        keeper = RunKeeper(folder, runtime.renderer, learner, validation, settings.run, in_flight, journal)
        timeline = Timeline(path)
        going_on = f", continuing after {seen}" if seen else ""
        where = f"{runtime.loaded.name}: {len(runtime.fitting)} problems{going_on}, writing to {path}"
        print_safe(console, f"{where}; {runtime.policy.targets.describe()}")
        notices.say_cost(settings, runtime, console)
        bar = progress.ProgressBar(live, len(runtime.fitting), seen, settings.learner, settings.runtime.workers)
        lifecycle = _lifecycle(settings, given, runtime, seen)
        workers = timeline.workers(workers)
        with lifecycle.running(partial(_info, path, settings, given, runtime, validation, seen > 0)):
            folder.begun = True
            with _keeping(journal, keeper, live, console, path, given):
                left, place = runtime.fitting[seen:], str(path / "checkpoints")
                seed = settings.run.seed
                in_flight += replay.submit_again(
                    under_way, settings.recipe, left, workers, learner, seed=seed, place=place
                )
                left = left[sum(len(batch.problems) for batch in in_flight) :]
                learn(
                    settings.recipe,
                    lifecycle.until_stopped(budget.until_spent(left)),
                    workers,
                    timeline.learner(MeteredLearner(learns, live.meter)),
                    callbacks=[timeline, keeper, budget, bar, *_default_callbacks(settings.recipe), lifecycle],
                    seed=seed,
                    problems_per_batch=settings.run.problems_per_batch,
                    lag=settings.run.lag,
                    in_flight=in_flight,
                    progress=validation,
                )
                keeper.checkpoint()
            live.doing("writing adapters and the picture")
            keeper.finish()
    return _summarise(settings, console, given, folder, validation)


def _lifecycle(settings: TrainSettings, given: GivenObjects, runtime: Runtime, seen: int) -> Lifecycle:
    """The callbacks that were passed, and the trackers; those that need what is loaded come last."""
    tracking = settings.run.tracking
    reports = [Tracking(tracking, given.report)] if tracking.trackers else []
    found = Lifecycle([*given.callbacks, *reports], window=settings.run.window, seen=seen)
    found.join(watcher(settings.recipe, runtime, found.evaluated) for watcher in given.watchers)
    return found


def _info(
    path: Path,
    settings: TrainSettings,
    given: GivenObjects,
    runtime: Runtime,
    validation: ProgressiveValidation,
    resumed: bool,
) -> RunInfo:
    """The run as its callbacks see it, at this moment."""
    return RunInfo(
        path=path,
        settings=run_folder.plain(given.sections(settings)),
        facts=run_folder.read_facts(path),
        resumed=resumed,
        problems_seen=validation.num_seen,
        num_problems=len(runtime.fitting),
        model=runtime.policy.model,
        tokenizer=runtime.renderer.tokenizer,
    )


@contextmanager
def _keeping(
    journal: JournalWorkers | None, keeper: RunKeeper, live: Live, console: Console, path: Path, given: GivenObjects
) -> Iterator[None]:
    """A context that keeps what was sampled and learned after an interruption or an error."""
    try:
        yield
    except (KeyboardInterrupt, Exception) as error:
        # What was sampled is kept first, since it is nowhere else, and then what was learned, unless the disk is
        # what failed. After a second Ctrl-C the user is still shown how to resume.
        try:
            if not isinstance(error, StorageError):
                live.doing("saving what was done")
                if journal is not None:
                    _keep_batch(journal, console, path)
                keeper.finish()
        except (FlowDpoError, OSError, RuntimeError, ValueError) as failed:
            if isinstance(error, KeyboardInterrupt | FlowDpoError):
                raise
            print_safe(console, f"could not save what was done: {failed}")  # nothing hides an error that is not ours
        finally:
            _say_how_to_go_on(console, path, given)
        raise


def _summarise(
    settings: TrainSettings,
    console: Console,
    given: GivenObjects,
    folder: run_folder.RunFolder,
    validation: ProgressiveValidation,
) -> TrainResult:
    """Print the results of a run that is at its end."""
    path, adapters = folder.path, folder.latest_adapters()
    rows = read_metrics(path / "metrics.jsonl")
    missing = progress.learned(rows, settings.recipe.flow.roles, settings.learner)
    console.print(progress.summary_table(validation))
    print_safe(console, f"\nPicture:  {path / 'progressive.png'}")
    if missing.startswith("nothing"):
        print_safe(console, f"Adapters: as at the start, since {missing}")
    else:
        print_safe(console, f"Adapters: {', '.join(str(adapter) for adapter in adapters.values())}")
    if missing and not missing.startswith("nothing"):
        print_safe(console, f"          but {missing}")
    one_file = given.problems is not None or Path(settings.runtime.data.dataset_name).expanduser().is_file()
    data = "--dataset_name NAME" if one_file else "--dataset_split test"
    code = "".join(f" {shlex.quote(flag)}" for flag in code_flags(settings.sections()))
    print_safe(
        console, f"Next:     {typed_command()} evaluate --run {shlex.quote(str(path))} {data} --max_problems 500{code}"
    )
    return TrainResult(path=path, adapters=adapters, progressive=validation)


def _keep_batch(journal: JournalWorkers, console: Console, path: Path) -> None:
    """Write what the interrupted batch had sampled, and print what can be done with it."""
    try:
        num, whole = journal.keep()
    except OSError as error:
        print_safe(console, f"What was sampled but not yet learned from could not be kept: {error}")
        return
    if num:
        use = (
            "the resumed run uses them"
            if whole
            else (
                "--resume --reuse_sampled continues from all of them: the same tokens, with log-probabilities that can "
                "differ in their last digits; --resume alone samples the batch again, to the same bytes"
            )
        )
        file = path / SAMPLED
        print_safe(console, f"Kept {num:,} turns that were sampled but not yet learned from, in {file}: {use}")


def _say_how_to_go_on(console: Console, path: Path, given: GivenObjects) -> None:
    command = f"{typed_command()} train --output_dir {shlex.quote(str(path))} --resume"
    call = "the same call of train with resume=True (for a trainer: resume_from_checkpoint=True)"
    print_safe(console, f"Resume with: {call if given.problems or given.record() else command}")


def _learner(settings: TrainSettings, runtime: Runtime, ranks: Ranks | None) -> tuple[Learner, Learns]:
    """The run's learner at the start, and what the loop is given: the same, or the objective's wrapper around it."""
    learner = runtime.learner(settings.learner, kept_versions=settings.run.lag, ranks=ranks)
    before: Callable[[Learner], Learns] | None = getattr(settings.recipe.objective, "learns", None)
    learns = learner if before is None else before(learner)
    if learns is not learner and settings.run.lag:
        raise ConfigError(
            f"expected run.lag 0, found {settings.run.lag}: this objective learns each batch from the run's first "
            "adapters, so no batch can be sampled ahead by the adapters of another; leave out --lag"
        )
    return learner, learns


def _default_callbacks(recipe: Recipe) -> list[Callback]:
    """The callbacks of every run, besides the run folder, the budget and the progress bar."""
    return [StopCollapseWarning(recipe), ChosenLikelihoodWarning(recipe)]


@contextmanager
def _begun(
    path: Path, settings: TrainSettings, given: GivenObjects, console: Console
) -> Iterator[run_folder.RunFolder]:
    """The folder, with its settings in it before anything is loaded: whatever ends the process, the run can be resumed.

    If a new run is refused before it samples, the folder is cleared again.
    """
    if settings.run.resume:
        folder = run_folder.RunFolder(path, begun=True)
    else:
        folder = run_folder.RunFolder.create(path, given.sections(settings), _named_facts(settings, given))
    try:
        yield folder
    except FlowDpoError:
        if not folder.begun:
            folder.clear()
        raise
    except KeyboardInterrupt:
        if not folder.begun:
            _say_how_to_go_on(console, path, given)
        raise


def _named_facts(settings: TrainSettings, given: GivenObjects) -> dict[str, Any]:
    """The facts for run.json that are known before anything is loaded."""
    facts = {
        "command": command_line(),
        **settings.code(),
        "starting_adapters": starting_checksums(settings.runtime.lora, settings.recipe.flow.roles),
    }
    rewards = reward_files(settings.runtime.grading)
    facts |= {"reward_files": rewards} if rewards else {}
    return facts | ({"given": given.record()} if given.record() else {})


@contextmanager
def _opened(
    path: Path, settings: TrainSettings, given: GivenObjects, live: Live
) -> Iterator[tuple[Runtime, dict[str, Any]]]:
    """Everything loaded, and the allowed differences from the run that is resumed, if one is.

    The comparison needs only the problems and the device's name, so it is made before the model is loaded.
    """
    live.doing(f"reading the problems of {settings.runtime.data.dataset_name}")
    by_rewards = grades_by_rewards(settings.runtime.grading, given.grader)
    problems = given.problems
    problems = load(settings.runtime.data, columns=by_rewards) if problems is None else problems
    differences = dict[str, Any]()
    if settings.run.resume:
        facts = {
            "device": str(device_of(settings.runtime.model)),
            "dtype": dtype_of(settings.runtime.model),
            "data_fingerprint": problems.fingerprint,
            **settings.code(),
            "starting_adapters": starting_checksums(settings.runtime.lora, settings.recipe.flow.roles),
            "reward_files": reward_files(settings.runtime.grading) or None,
            "given": given.record() or None,
        }
        differences = resumption.compare(path, settings, given, facts, problems.problems)
    with open_runtime(
        settings.runtime,
        settings.recipe.flow,
        seed=settings.run.seed,
        engine=given.engine if callable(given.engine) else None,
        grader=given.grader,
        problems=problems,
        served=path / "served",
        doing=live.doing,
    ) as runtime:
        besides = getattr(settings.recipe.explore, "besides", None)
        if besides is not None:
            runtime.fitting = fitting_problems(
                settings.recipe.flow, runtime.renderer, runtime.fitting, runtime.context_tokens, besides=besides
            )
        yield runtime, differences


def _restore(
    folder: run_folder.RunFolder,
    settings: TrainSettings,
    given: GivenObjects,
    runtime: Runtime,
    learner: Learner,
    differences: Mapping[str, Any],
) -> tuple[ProgressiveValidation, Sequence[Mapping[str, Any]]]:
    """Progressive validation, and the batches that were in flight (`replay`): empty for a new run; for a resumed one as
    in its last checkpoint, to which the learner and the records are restored, too."""
    facts = {
        "model": runtime.loaded.name,
        "device": str(runtime.policy.model.device),
        "dtype": dtype_of(settings.runtime.model),
        **seeds_fact(settings.runtime.engine, on_gpu=runtime.policy.model.device.type != "cpu"),
        "adapter_share": round(runtime.policy.targets.share, 4),
        "shared_prefixes": learner.way[0],
        "num_problems": len(runtime.fitting),
        "num_skipped_rows": runtime.problems.skipped,
        "data_fingerprint": runtime.problems.fingerprint,
        "prompts": prompt_facts(settings.recipe.flow, runtime.renderer, runtime.problems.problems),
    }
    facts |= {"flex_attention": flex_attention.found} if flex_attention.found else {}
    if runtime.renderer.template.reads_clock:
        settings = resumption.dated(settings, runtime.renderer.template.date)
    found = Checkpoints(folder.path).newest() if settings.run.resume else None
    if found is None:  # not started, or interrupted before anything was committed
        folder.empty(given.sections(settings))
        folder.note(facts)
        validation, in_flight = ProgressiveValidation(window=settings.run.window), []
    else:
        checkpoint, loop = found
        folder.reopen(loop["sizes"])
        learner.load(checkpoint / "learner")
        validation = ProgressiveValidation.from_state(loop["progressive"])
        in_flight = loop.get("in_flight", [])
    if differences:
        folder.note({"resumed_with": {"problems_seen": validation.num_seen, "differences": differences}})
    return validation, in_flight
