"""`flow-dpo evaluate`: measure a model, or a run's adapters, on a data set."""

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
from flow_dpo.runs import resolve, run_folder
from flow_dpo.runs.adapters import SpeakingSettings, load_adapters, played, settings_of
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.runtime import open_runtime
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
    result = _evaluate(runtime, parsed["flow"], parsed["explore"], parsed["speaking"], settings, parsed["overlap"])
    low, high = result["interval"]
    console = Console()
    accuracy = "nothing could be graded" if result["accuracy"] is None else f"accuracy {result['accuracy']:.1%}"
    print_safe(
        console,
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_draws']} "
        f"correct, {result['num_ungraded']} ungraded\nWritten to {settings.output_dir}",
    )
    return 0


def _evaluate(
    shop_settings: RuntimeSettings,
    flow: Flow[Any],
    explore: Explore,
    speaking: SpeakingSettings,
    settings: EvaluationSettings,
    trained_on: contamination.OverlapSettings,
) -> dict[str, Any]:
    folder = Path(settings.output_dir)
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} already holds an evaluation; name another with --output_dir")
    speaks = played(flow, settings.mode)
    with open_runtime(shop_settings, speaks, roles=flow.roles, seed=settings.seed) as runtime:
        adapters = load_adapters(runtime.policy, speaking)
        problems, found = contamination.check(runtime.fitting, trained_on)
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
            "command": resolve.command_line(),
            **run_folder.environment(),
        }
        write_predictions(folder, trees, result)
    return result
