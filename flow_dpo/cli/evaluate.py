"""`flow-dpo evaluate`: measure a model, or a run's adapters, on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from flow_dpo.evaluate import contamination
from flow_dpo.evaluate.evaluate import EvaluationSettings
from flow_dpo.evaluate.run import measure_run
from flow_dpo.runs import resolve
from flow_dpo.runs.adapters import SpeakingSettings, settings_of
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.settings import RuntimeSettings, defaults_of, of_its_engine


def evaluate(argv: Sequence[str]) -> int:
    """`flow-dpo evaluate`: with `--run` or `--adapter`, the settings that come with it are the defaults."""
    base, origin = settings_of({name: resolve.peek(argv, f"speaking.{name}", "") for name in ("run", "adapter")})
    argv, defaults = defaults_of(argv, base, origin=origin)
    base = of_its_engine(base, defaults)
    runtime = replace(defaults.runtime, data=replace(defaults.runtime.data, dataset_split="test"))
    sections = {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **runtime.sections(),
        "speaking": SpeakingSettings(),
        "evaluation": EvaluationSettings(),
        "overlap": contamination.OverlapSettings(),
    }
    parsed = resolve.parse(
        "flow-dpo evaluate", "Measure a model, or a run's adapters.", sections, argv, base=base, origin=origin
    )
    runtime = RuntimeSettings(**{name: parsed[name] for name in runtime.sections()})
    settings: EvaluationSettings = parsed["evaluation"]
    result = measure_run(runtime, parsed["flow"], parsed["explore"], parsed["speaking"], settings, parsed["overlap"])
    low, high = result["interval"]
    console = Console()
    accuracy = "nothing could be graded" if result["accuracy"] is None else f"accuracy {result['accuracy']:.1%}"
    print_safe(
        console,
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_draws']} "
        f"correct, {result['num_ungraded']} ungraded\nWritten to {settings.output_dir}",
    )
    return 0
