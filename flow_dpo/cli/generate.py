"""`flow-dpo generate`: verified traces of a trained flow, of an untrained one, or of a single model.

flow-dpo generate --run runs/train --output_dir runs/traces
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import DataError
from flow_dpo.core.types import Problem
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import load_adapters, played, settings_of, taught
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given, Sections, command_line, resolve
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings, named_settings
from flow_dpo.traces.settings import GenerateSettings
from flow_dpo.traces.trace import OF_THE_DATA, SelectionSettings, TraceFolder, read_traces, refuse_used


def parse_generate(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo generate`: with `--run` or `--adapter`, what comes with it comes first."""
    what = "Write verified traces of a trained flow, an untrained flow, or a single model."
    return resolve("flow-dpo generate", what, argv, _sections, brings=settings_of)


def _sections(given: Given) -> Sections:
    defaults = named_settings(given)
    return {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **defaults.runtime.sections(),
        "speaking": SpeakingSettings(),
        "generate": GenerateSettings(),
        "selection": SelectionSettings(),
    }


def generate(argv: Sequence[str]) -> int:
    """`flow-dpo generate`."""
    parsed = parse_generate(argv)
    from flow_dpo.runs.runtime import open_runtime  # loads torch, once the words are understood
    from flow_dpo.traces.generate import generate as play

    settings: GenerateSettings = parsed["generate"]
    selection: SelectionSettings = parsed["selection"]
    flow, path, console = parsed["flow"], Path(settings.output_dir), Console()
    shop_settings = RuntimeSettings.from_sections(parsed)
    refuse_used(path)
    speaks = played(flow, settings.mode)
    with run_folder.locked(path), open_runtime(shop_settings, speaks, roles=flow.roles, seed=settings.seed) as runtime:
        adapters = load_adapters(runtime.policy, parsed["speaking"])
        header = {
            "source": settings.source(trained=bool(adapters)),
            "selection": selection.rule() if settings.mode != "ground_truth" else OF_THE_DATA,
            "settings": run_folder.plain(parsed),
            "command": command_line(),
            "model": runtime.loaded.name,
            "tokenizer": runtime.loaded.renderer.fingerprint(),
            "adapters": {role: adapter.path for role, adapter in adapters.items()},
            "dataset": f"{shop_settings.data.dataset_name}/{shop_settings.data.dataset_split}",
            "data_fingerprint": runtime.problems.fingerprint,
            **run_folder.environment(),
        }
        problems = _only_of(runtime.fitting, settings.problems_of)
        folder = TraceFolder(path, header | {"num_problems": len(problems)})
        for traces, tally in play(
            speaks,
            taught(flow),
            parsed["explore"],
            problems,
            runtime.workers,
            runtime.loaded.renderer,
            runtime.backends.grader,
            adapters,
            settings,
            selection,
        ):
            folder.append(traces, tally.facts())
            print_safe(
                console,
                f"{tally.num_problems_sampled} problems: {tally.traces} traces on {tally.problems_solved}, from "
                f"{tally.draws} draws, {tally.tokens_sampled} tokens and {tally.verdicts_used} verdicts",
            )
        folder.note({"complete": True})
    print_safe(console, f"Written to {path}")
    return 0


def _only_of(problems: Sequence[Problem], traces: str) -> list[Problem]:
    """The problems that these traces are of; all where none are named."""
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
