"""Traces from a run folder or a model's name: load, sample, verify, write.

    generate_traces("runs/seed", output_dir="runs/traces", max_problems=200).traces[0].solution

The command `flow-dpo generate` parses its flags and calls `generate_run`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.flow import Flow
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.types import Adapter, Problem, Role
from flow_dpo.engines.settings import EngineSettings
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import is_trained, load_adapters, sampled_flow, trace_pass
from flow_dpo.runs.given_objects import (
    OBJECT,
    GivenObjects,
    Rows,
    graded_as_given,
    grader_of,
    handed_over,
    recordable,
    sampling_settings,
)
from flow_dpo.runs.kept_workers import kept_workers
from flow_dpo.runs.live import Live
from flow_dpo.runs.published import names_a_run
from flow_dpo.runs.resolve import command_line
from flow_dpo.runs.runtime import EngineOpener, GraderSource, Runtime, open_runtime
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings
from flow_dpo.runs.writable import check_writable
from flow_dpo.traces.generate import Tally, generate
from flow_dpo.traces.settings import GenerateSettings
from flow_dpo.traces.trace import (
    GROUND_TRUTH_RULE,
    SelectionSettings,
    TraceFile,
    TraceFolder,
    interrupted,
    read_traces,
    refuse_used,
)


def generate_traces(
    source: str | Path,
    dataset: Rows | None = None,
    *,
    output_dir: str | Path = "runs/traces",
    recipe: Recipe | None = None,
    flow: Flow[Any] | None = None,
    grader: GraderSource | None = None,
    reward_funcs: Any = None,
    reward_weights: Sequence[float] | None = None,
    engine: str | EngineSettings | EngineOpener | None = None,
    max_problems: int | None = None,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> TraceFile:
    """Sample verified solutions into `output_dir`, as `flow-dpo generate` does, and read them back.

    `source` is a run folder or a model's name. A run's newest adapters are sampled on the data set that they were
    trained on, unless another is given. `recipe` and `flow` are those of a run that was trained with such objects. Any
    setting of the command can be given by its name: `num_samples=4`.
    """
    grader = grader_of(grader, reward_funcs, reward_weights)
    given = GivenObjects(grader=grader, engine=engine, recipe=recipe, flow=flow)
    data = dataset if isinstance(dataset, str) else None
    values = {"data.dataset_name": data, "data.max_problems": max_problems, **(settings or {}), **more}
    sections = {"generate": GenerateSettings(), "selection": SelectionSettings()}
    found = sampling_settings("flow_dpo.generate_traces", str(source), sections, values, given)
    given = handed_over(given, dataset, found)
    if given.problems is not None:
        found["data"] = replace(found["data"], dataset_name=OBJECT)
    run = str(source) if names_a_run(str(source)) else None
    generate = replace(found["generate"], output_dir=str(output_dir))
    path = generate_run({**found, "speaking": SpeakingSettings(run=run), "generate": generate}, given)
    return read_traces(path)


def generate_run(
    parsed: Mapping[str, Any],
    given: GivenObjects | None = None,
    *,
    report: Callable[[str], None] = lambda _: None,
    console: Console | None = None,
) -> Path:
    """Load everything, sample, and write a folder of traces; `console` shows the progress.

    `parsed` holds the command's groups of settings. Traces are written batch by batch: after an interruption the same
    command continues. Raises `ConfigError`, before anything is loaded, if the folder is in use or not writable.
    """
    console = Console(quiet=True) if console is None else console
    settings: GenerateSettings = parsed["generate"]
    selection: SelectionSettings = parsed["selection"]
    flow, path = parsed["flow"], Path(settings.output_dir)
    runtime_settings = RuntimeSettings.from_sections(parsed)
    given = graded_as_given(given, parsed["speaking"].run, runtime_settings.grading)
    check_writable(path)
    refuse_used(path)
    run_folder.refuse_others(path, own="traces.json")
    sampled = sampled_flow(flow, settings.mode)
    with (
        run_folder.locked(path),
        Live(console) as live,
        open_runtime(
            runtime_settings, sampled, roles=flow.roles, seed=settings.seed, engine=given.engine, grader=given.grader,
            problems=given.problems, doing=live.doing,
        ) as runtime,
    ):  # fmt: skip
        adapters = load_adapters(runtime.policy, parsed["speaking"])
        header = _header(parsed, runtime, adapters, given.dataset(runtime_settings.data))
        problems = _only_of(runtime.fitting, settings.problems_of)
        batch, under_way = runtime.whole_shards(settings.batch_problems), runtime.problems_under_way(1)
        header |= {"num_problems": len(problems)}
        tally = before = _tally_so_far(path, header)
        if before.num_problems_sampled:
            report(f"continuing after {before.num_problems_sampled} problems and {before.traces} traces")
            header |= before.facts()
        live.begin(len(problems), "problems", before.num_problems_sampled)
        kept = kept_workers(path, recordable(parsed), runtime, adapters, live, console, counts=False)
        with kept as (workers, journal):
            folder = TraceFolder(path, header, num_traces=before.traces)
            for traces, tally in generate(
                sampled, trace_pass(flow), parsed["explore"], problems, workers, runtime.renderer,
                runtime.backends.grader, adapters, replace(settings, batch_problems=batch), selection, before,
                batches_at_once=-(-under_way // batch),
            ):  # fmt: skip
                folder.append(traces, tally.facts())
                if journal is not None:
                    journal.done()
                live.advance(tally.num_problems_sampled)
                report(str(tally))
            folder.note({"complete": True})
    if not tally.traces:
        raise DataError(
            f"expected at least one trace, found none on {len(problems)} problems: {tally.shortfall()}; the counts are "
            f"in {path}; {_ADVICE[settings.mode == 'ground_truth']}"
        )
    return path


_ADVICE = {
    False: "allow more draws (--num_samples), or use a model or adapters that solve some, or easier problems",
    True: "name a data set with worked solutions, or sample them with --mode single",
}


def _header(
    parsed: Mapping[str, Any], runtime: Runtime, adapters: Mapping[Role, Adapter], dataset: str
) -> dict[str, Any]:
    """What traces.json says about how the traces are made."""
    settings = parsed["generate"]
    return {
        "source": settings.source(trained=any(map(is_trained, adapters.values()))),
        "selection": parsed["selection"].rule() if settings.mode != "ground_truth" else GROUND_TRUTH_RULE,
        "settings": recordable(parsed),
        "command": command_line(),
        "model": runtime.loaded.name,
        "tokenizer": runtime.renderer.fingerprint(),
        "adapters": {role: adapter.path for role, adapter in adapters.items()},
        _DIGESTS: {role: _digest(adapter) for role, adapter in adapters.items()},
        "dataset": dataset,
        "data_fingerprint": runtime.problems.fingerprint,
        **run_folder.environment(),
    }


_DIGESTS = "adapters_sha256"


def _digest(adapter: Adapter) -> str:
    """SHA-256 of an adapter's files, in hexadecimal digits."""
    found = hashlib.sha256()
    for file in sorted(Path(adapter.path).glob("adapter_*")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _tally_so_far(path: Path, header: Mapping[str, Any]) -> Tally:
    """The counts of an interrupted folder of traces, with which the same command continues; zero for a new folder.

    Raises `ConfigError` if it was made differently, or by other adapters, as of a run that has learned since.
    """
    known = interrupted(path)
    if known is None:
        return Tally()
    now = json.loads(json.dumps(header))
    names = ("settings", "selection", "model", "tokenizer", "data_fingerprint", "num_problems", "versions", "code")
    found = run_folder.differences({name: known.get(name) for name in names}, {name: now[name] for name in names})
    differing = [
        name.removeprefix("settings.")
        for name in found
        if not name.startswith(("settings.generate.batch_problems", "settings.workers."))
    ]
    if differing:
        raise ConfigError(
            f"output_dir {path} holds interrupted traces that were made differently ({', '.join(differing)}); give "
            "the same command to continue with them, or name another folder with --output_dir"
        )
    # An older folder has no digests: its adapters are taken to be the files at the same path.
    if known.get("adapters", {}) != now["adapters"] or known.get(_DIGESTS, now[_DIGESTS]) != now[_DIGESTS]:
        then, found = (", ".join(each.get("adapters", {}).values()) or "none" for each in (known, now))
        raise ConfigError(
            f"output_dir {path} holds interrupted traces of the adapters {then}, found "
            f"{'other files there' if found == then else found}: the run has learned since; name another folder with "
            "--output_dir for traces of the adapters as they are now"
        )
    return Tally.of(known)


def _only_of(problems: Sequence[Problem], traces: str) -> list[Problem]:
    """The problems of these traces; all problems if no traces are named."""
    if not traces:
        return list(problems)
    ids = {trace.problem_id for trace in read_traces(Path(traces)).traces}
    kept = [problem for problem in problems if problem.id in ids]
    if len(kept) < len(ids):
        raise DataError(
            f"expected all {len(ids)} problems of {traces} in the data, found {len(kept)}; name the data set, split "
            "and order that the traces were drawn on"
        )
    return kept
