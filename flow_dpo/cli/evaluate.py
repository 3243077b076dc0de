"""`flow-dpo evaluate`: measure a model, or a run's adapters, on a data set.

flow-dpo evaluate --run runs/train --dataset_split test --max_problems 500
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.evaluate import contamination
from flow_dpo.evaluate.evaluate import EvaluationSettings, decoding, write_predictions
from flow_dpo.evaluate.evaluate import evaluate as measure
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import load_adapters, played, settings_of
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given, Sections, command_line, resolve
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings, named_settings


def evaluate(argv: Sequence[str]) -> int:
    """`flow-dpo evaluate`: with `--run` or `--adapter`, the settings that come with it are the defaults."""
    what = "Measure a model, or a run's adapters."
    parsed = resolve("flow-dpo evaluate", what, argv, _sections, brings=settings_of)
    settings: EvaluationSettings = parsed["evaluation"]
    result = _evaluate(
        RuntimeSettings.from_sections(parsed), parsed["flow"], parsed["explore"], parsed["speaking"], settings
    )
    low, high = result["interval"]
    console = Console()
    accuracy = "nothing could be graded" if result["accuracy"] is None else f"accuracy {result['accuracy']:.1%}"
    print_safe(
        console,
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_draws']} "
        f"correct, {result['num_ungraded']} ungraded\nWritten to {settings.output_dir}",
    )
    return 0


def _sections(given: Given) -> Sections:
    defaults = named_settings(given)
    runtime = replace(defaults.runtime, data=replace(defaults.runtime.data, dataset_split="test"))
    return {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **runtime.sections(),
        "speaking": SpeakingSettings(),
        "evaluation": EvaluationSettings(),
    }


def _evaluate(
    shop_settings: RuntimeSettings,
    flow: Flow[Any],
    explore: Explore,
    speaking: SpeakingSettings,
    settings: EvaluationSettings,
) -> dict[str, Any]:
    from flow_dpo.runs.runtime import open_runtime  # loads torch, once the words are understood

    folder = Path(settings.output_dir)
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} already holds an evaluation; name another with --output_dir")
    speaks = played(flow, settings.mode)
    with open_runtime(shop_settings, speaks, roles=flow.roles, seed=settings.seed) as runtime:
        adapters = load_adapters(runtime.policy, speaking)
        problems, found = contamination.check(runtime.fitting, settings.trained_on, exclude=settings.exclude_overlap)
        trees, result = measure(
            speaks,
            explore,
            problems,
            runtime.workers,
            runtime.loaded.renderer,
            runtime.backends.grader,
            adapters,
            settings,
        )
        result |= {
            "settings": run_folder.plain(settings) | run_folder.plain(speaking),
            "overlap": found,
            "model": runtime.loaded.name,
            "adapters": {role: adapter.path for role, adapter in adapters.items()},
            "dataset": f"{shop_settings.data.dataset_name}/{shop_settings.data.dataset_split}",
            "data_fingerprint": runtime.problems.fingerprint,
            "decoding": decoding(explore, settings),
            "played": run_folder.plain({"flow": speaks, "explore": explore, "grading": shop_settings.grading}),
            "command": command_line(),
            **run_folder.environment(),
        }
        write_predictions(folder, trees, result)
    return result
