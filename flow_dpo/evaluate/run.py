"""An evaluation of a run folder, a named model or an open runtime: load, sample, grade, count, write.

    evaluate_flow("runs/seed", max_problems=200)["accuracy"]          the run's newest adapters
    evaluate_flow("Qwen/Qwen2.5-0.5B-Instruct", "openai/gsm8k", dataset_config="main")      the base, untrained
    evaluate_flow(runtime, load_problems("seed", split="test"))       the adapters in memory

On the command line, `flow-dpo evaluate` is `measure_run` with its flags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.answer_stop import ANSWER
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Explore, Siblings
from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import RolloutWorkers
from flow_dpo.core.types import Adapter, Problem, Role
from flow_dpo.data.problems import DataSettings, load
from flow_dpo.engines.settings import EngineSettings
from flow_dpo.evaluate import candidates, contamination
from flow_dpo.evaluate.evaluate import (
    EvaluationSettings,
    decoding,
    evaluate,
    own_judgement,
    predictions,
    summary_of,
    write_predictions,
)
from flow_dpo.evaluate.teacher_forced import teacher_forced
from flow_dpo.models.context_window import fitting_problems
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import load_adapters, one_attempt, sampled_flow
from flow_dpo.runs.given_objects import (
    GivenObjects,
    Rows,
    graded_as_given,
    grader_of,
    handed_over,
    problem_set,
    recordable,
    sampling_settings,
)
from flow_dpo.runs.kept_workers import kept_workers
from flow_dpo.runs.live import Live
from flow_dpo.runs.published import names_a_run
from flow_dpo.runs.records import Prediction
from flow_dpo.runs.resolve import command_line, nearest, resolve
from flow_dpo.runs.runtime import EngineOpener, GraderSource, Runtime, open_runtime
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings
from flow_dpo.runs.writable import check_writable
from flow_dpo.verify.reward_grader import RewardGrader


def evaluate_flow(
    source: str | Path | Runtime,
    dataset: Rows | None = None,
    *,
    output_dir: str | Path | None = None,
    flow: Flow[Any] | None = None,
    grader: GraderSource | None = None,
    reward_funcs: Any = None,
    reward_weights: Sequence[float] | None = None,
    engine: str | EngineSettings | EngineOpener | None = None,
    max_problems: int | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Sample and grade rollouts of problems without learning; returns the summary that `flow-dpo evaluate` writes.

    `source` is a run folder, a model's name, or a runtime, which may have learned something. For a run, `dataset`
    defaults to the test split of the data set that it was trained on; for a runtime, to the problems that it was opened
    with. Any setting of the command can be given by name: `evaluate_flow(run, greedy=False, num_samples=8)`; for a
    runtime, those of the evaluation and of the data. Files are only written to an `output_dir`, which a runtime does
    not take.

    Raises `ConfigError` for a setting that has no meaning for the source, `DataError` for an unusable data set.
    """
    overrides = {**(settings or {}), **more}
    grader = grader_of(grader, reward_funcs, reward_weights)
    given = GivenObjects(grader=grader, engine=engine, flow=flow)
    if isinstance(source, Runtime):
        own = {"output_dir": output_dir, "max_problems": max_problems}
        own = {name: value for name, value in own.items() if value is not None}
        return _measure_open(source, given, {**own, **overrides}, dataset)
    data = dataset if isinstance(dataset, str) else None
    overrides = {
        "data.dataset_split": "test",
        "data.dataset_name": data,
        "data.max_problems": max_problems,
        **overrides,
    }
    sections = {"evaluation": EvaluationSettings()}
    found = sampling_settings("flow_dpo.evaluate_flow", str(source), sections, overrides, given)
    given = handed_over(given, dataset, found)
    chosen = found["evaluation"] if output_dir is None else replace(found["evaluation"], output_dir=str(output_dir))
    run = str(source) if names_a_run(str(source)) else None
    return measure_run(
        RuntimeSettings.from_sections(found),
        found["flow"],
        found["explore"],
        SpeakingSettings(run=run),
        chosen,
        given,
        write=output_dir is not None,
    )


def measure_run(
    runtime_settings: RuntimeSettings,
    flow: Flow[Any],
    explore: Explore,
    speaking: SpeakingSettings,
    settings: EvaluationSettings,
    given: GivenObjects | None = None,
    *,
    write: bool = True,
    console: Console | None = None,
) -> dict[str, Any]:
    """Load everything, evaluate, write predictions and summary, and show progress on a console.

    What was sampled is written batch by batch, and the same command resumes. Before anything is loaded, raises
    `ConfigError` for a folder that is in use or cannot be written to.
    """
    given = graded_as_given(given, speaking.run, runtime_settings.grading)
    console = Console(quiet=True) if console is None else console
    folder = Path(settings.output_dir)
    if write:
        check_writable(folder)
        run_folder.refuse_others(folder, own="summary.json")
    if write and (folder / "summary.json").exists():
        raise ConfigError(f"{folder} already holds an evaluation; name another with --output_dir")
    work = _work(flow, settings)
    problems = given.problems
    if work.fixed is not None:
        problems = work.fixed.problems()
        if runtime_settings.data.max_problems is not None or given.problems is not None:
            raise ConfigError("a fixed set of candidates is judged whole; leave out its problems (--max_problems)")
    with (
        run_folder.locked(folder) if write else nullcontext(),
        Live(console) as live,
        open_runtime(
            runtime_settings, work.flow, roles=flow.roles, seed=settings.seed, engine=given.engine, grader=given.grader,
            problems=problems, doing=live.doing,
        ) as runtime,
    ):  # fmt: skip
        adapters = load_adapters(runtime.policy, speaking)
        fitting, found = contamination.check(runtime.fitting, settings.trained_on, exclude=settings.exclude_overlap)
        work.check(runtime)
        live.begin(len(fitting) * settings.num_rollouts, work.unit(settings))
        facts = recordable({"settings": settings, "flow": work.flow, "explore": explore})
        facts |= {"model": recordable(runtime_settings.model), "engine": type(runtime_settings.engine).__name__}
        facts |= {"int8": True} if getattr(runtime_settings.engine, "int8", False) else {}
        with kept_workers(folder if write else None, facts, runtime, adapters, live, console) as (workers, _):
            rows, result = work.measure(explore, fitting, workers, runtime, adapters, settings)
            result |= {
                "settings": run_folder.plain(settings) | run_folder.plain(speaking),
                "overlap": found,
                "adapters": {role: adapter.path for role, adapter in adapters.items()},
                **work.played(flow, explore, runtime_settings),
                **_facts(runtime, runtime_settings, given, work.fixed),
            }
            if write:
                write_predictions(folder, rows, result)
    return result


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What an evaluation samples: rollouts of a flow, or Stop's choices on a fixed set of candidates."""

    flow: Flow[Any]
    fixed: candidates.FixedSet | None = None
    attempt: Attempts | None = None
    """One attempt of the flow whose Stop judges the fixed set."""

    def check(self, runtime: Runtime) -> None:
        """Refuse candidates that are not in this model's tokens or do not fit its context window."""
        if self.fixed is not None:
            candidates.check_fits(self.fixed, runtime.renderer.fingerprint(), runtime.loaded.name, runtime.fitting)

    def unit(self, settings: EvaluationSettings) -> str:
        """What progress counts."""
        return "candidates" if self.fixed is not None else "rollouts" if settings.num_rollouts > 1 else "problems"

    def measure(
        self,
        explore: Explore,
        problems: Sequence[Problem],
        workers: RolloutWorkers,
        runtime: Runtime,
        adapters: Mapping[Role, Adapter],
        settings: EvaluationSettings,
    ) -> tuple[list[Prediction], dict[str, Any]]:
        """The rows of predictions.jsonl, and what was measured."""
        settings = replace(settings, batch_problems=runtime.problems_under_way(settings.batch_problems))
        if self.fixed is not None and isinstance(self.flow, candidates.Judging):
            judgement = None if self.attempt is None else own_judgement(self.attempt)
            means = answer_logprobs(self.fixed, self.attempt, runtime) if judgement and self.attempt else None
            rows, found = candidates.judge(
                self.fixed, self.flow, workers, adapters, settings.batch_problems, judgement, means
            )
            return rows, summary_of((row.problem, row.verdict) for row in rows) | {"candidates": found}
        trees, result = evaluate(
            self.flow, explore, problems, workers, runtime.renderer, runtime.backends.grader, adapters, settings
        )
        how = {"decoding": decoding(self.flow, explore, trees, settings)}
        return predictions(trees, draws=bool(settings.draws)), result | how

    def played(self, flow: Flow[Any], explore: Explore, runtime_settings: RuntimeSettings) -> dict[str, Any]:
        """How it was sampled, for the record; for a fixed set, the prompts that Stop got."""
        sampled = {"flow": one_attempt(flow) if self.fixed is not None else self.flow, "explore": explore}
        return {"played": recordable({**sampled, "grading": runtime_settings.grading})}


def _work(flow: Flow[Any], settings: EvaluationSettings) -> _Work:
    """What to sample: the flow, its Answer role in one pass, single attempts that Stop judges, or Stop's choices on a
    fixed set."""
    if settings.candidates:
        fixed = candidates.read(settings.candidates)
        attempt = one_attempt(flow)
        judging = candidates.Judging(candidates=fixed.token_ids(), prompts=attempt.prompts)
        return _Work(flow=judging, fixed=fixed, attempt=attempt)
    return _Work(flow=one_attempt(flow) if settings.draws else sampled_flow(flow, settings.mode))


def answer_logprobs(fixed: candidates.FixedSet, attempt: Attempts, runtime: Runtime) -> dict[str, float]:
    """The mean log-probability of each candidate under Answer, computed as the learner computes it."""
    closing = runtime.renderer.closing_ids(runtime.loaded.end_ids)
    end_id = closing[-1] if closing else min(runtime.loaded.end_ids)
    return candidates.answer_logprobs(
        fixed, attempt, runtime.renderer.render, end_id, lambda asked: teacher_forced(runtime.policy, ANSWER, asked)
    )


def _facts(
    runtime: Runtime, settings: RuntimeSettings, given: GivenObjects, fixed: candidates.FixedSet | None
) -> dict[str, Any]:
    """What the summary says about the model, the data and the command."""
    facts = {
        "model": runtime.loaded.name,
        "tokenizer": runtime.renderer.fingerprint(),
        "dataset": given.dataset(settings.data) if fixed is None else fixed.header.get("dataset"),
        "data_fingerprint": runtime.problems.fingerprint,
        "command": command_line(),
        **run_folder.environment(),
    }
    facts |= {"int8": True} if getattr(settings.engine, "int8", False) else {}
    facts |= {"handed_over": True} if given.problems is not None else {}
    return facts | ({"given": given.record()} if given.record() else {})


def _measure_open(
    runtime: Runtime, given: GivenObjects, overrides: Mapping[str, Any], dataset: Rows | None = None
) -> dict[str, Any]:
    """Evaluate with the model and the adapters of an open runtime."""
    if given.grader is not None or given.engine is not None:
        raise ConfigError("an open runtime already has an engine and a grader; pass them to open_runtime instead")
    recipe = runtime.recipe
    flow = given.flow or (recipe.flow if recipe is not None else None)
    if flow is None:
        raise ConfigError("expected a flow, as the runtime was opened without one; add flow=...")
    settings, data = _settings_of_open(overrides, dataset)
    work = _work(flow, settings)
    if work.fixed is not None:
        if dataset is not None or _of_data(overrides):
            raise ConfigError("a fixed set of candidates is judged whole; leave out the data set and its settings")
        problems, named = list(work.fixed.problems()), work.fixed.header.get("dataset")
        candidates.check_fits(work.fixed, runtime.renderer.fingerprint(), runtime.loaded.name, problems)
    else:
        problems, named = _problems_of_open(runtime, dataset, data)
        problems = fitting_problems(work.flow, runtime.renderer, problems, runtime.context_tokens)
    problems, found = contamination.check(problems, settings.trained_on, exclude=settings.exclude_overlap)
    _, result = work.measure(
        recipe.explore if recipe is not None else Siblings(),
        problems,
        runtime.workers,
        runtime,
        runtime.adapters_in_force,
        settings,
    )
    return result | {"dataset": named, "overlap": found}


_OF_OPEN = DataSettings(dataset_split="test")


def _settings_of_open(overrides: Mapping[str, Any], dataset: Rows | None) -> tuple[EvaluationSettings, DataSettings]:
    """What to measure with an open runtime, and on which problems. Raises `ConfigError` for settings it cannot use."""
    sections = {"evaluation": EvaluationSettings(), "data": _OF_OPEN}
    known = [field.name for section in sections.values() for field in fields(section)]
    for name in overrides:
        if name.rpartition(".")[2] not in known or name.rpartition(".")[0] not in ("", *sections):
            raise ConfigError(f"unknown setting {name} of an open runtime; {nearest(name, known).replace('--', '')}")
    values = {name: run_folder.plain(value) for name, value in overrides.items() if value is not None}
    parsed = resolve("flow_dpo.evaluate_flow", "", (), sections, values=values)
    settings, data = parsed["evaluation"], parsed["data"]
    if {"output_dir", "evaluation.output_dir"} & values.keys():
        raise ConfigError(
            f"expected no output_dir with an open runtime, found {settings.output_dir}: what it has learned is in no "
            "folder that a record could name; evaluate a run folder, or keep the summary that is returned"
        )
    chosen = _of_data(values)
    if "dataset_name" in chosen:
        raise ConfigError("expected the data set as an argument: evaluate_flow(runtime, NAME); found dataset_name")
    if dataset is None and (read := sorted(chosen - {"max_problems", "skip_problems", "shuffle_seed"})):
        raise ConfigError(
            f"expected a data set to read with {', '.join(read)}, found none; name a data set, or leave these settings "
            "out"
        )
    return settings, data


def _of_data(overrides: Mapping[str, Any]) -> set[str]:
    """The data settings that were given, by their short names."""
    given = {name.rpartition(".")[2] for name, value in overrides.items() if value is not None}
    return given & {field.name for field in fields(DataSettings)}


def _problems_of_open(runtime: Runtime, dataset: Rows | None, data: DataSettings) -> tuple[list[Problem], str]:
    """The problems to measure, from the data set or from the open runtime, and the name of their set."""
    if dataset is None and not runtime.fitting:
        raise ConfigError("expected a data set, as the runtime was opened without problems; name one, or pass problems")
    columns = isinstance(runtime.backends.grader, RewardGrader)
    if isinstance(dataset, str):
        data = replace(data, dataset_name=dataset)
        return list(load(data, columns=columns)), GivenObjects().dataset(data)
    chosen = problem_set(runtime.fitting if dataset is None else dataset, data, columns=columns)
    given = GivenObjects(problems=chosen)
    return list(chosen or ()), given.dataset(data)
