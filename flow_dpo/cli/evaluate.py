"""`flow-dpo evaluate`: measure a model, or a run's adapters, on a data set.

flow-dpo evaluate --run runs/train --dataset_split test --max_problems 500
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.evaluate.statistics import ungraded_words
from flow_dpo.runs.adapters import source_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.settings import RuntimeSettings, SpeakingSettings, named_settings


def evaluate(argv: Sequence[str]) -> int:
    """`flow-dpo evaluate`: with `--run` or `--adapter`, the settings that come with it are the defaults."""
    what = "Measure a model, or a run's adapters."
    parsed = resolve("flow-dpo evaluate", what, argv, _sections, brings=source_settings)
    settings: EvaluationSettings = parsed["evaluation"]
    from flow_dpo.evaluate.run import measure_run  # loads torch, once the arguments are parsed

    runtime = RuntimeSettings.from_sections(parsed)
    result = measure_run(runtime, parsed["flow"], parsed["explore"], parsed["speaking"], settings)
    low, high = result["interval"]
    console, ungraded = Console(), ungraded_words(result)
    accuracy = "no problem" if result["accuracy"] is None else f"accuracy {result['accuracy']:.1%}"
    print_safe(
        console,
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_draws']} "
        f"correct{f'; {ungraded}' if ungraded else ''}\nWritten to {settings.output_dir}",
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
