"""What does each command do?

Every function takes the words behind its command, and composes what `build` makes: settings first, then work, then
what a person wants to know at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo import config, overlap, runs, training
from flow_dpo.build import RunSettings, ShopSettings, TrainSettings, defaults_of, of_its_engine, workshop
from flow_dpo.errors import ConfigError
from flow_dpo.evaluate import EvaluationSettings, decoding, write_predictions
from flow_dpo.evaluate import evaluate as measure
from flow_dpo.explore import Explore
from flow_dpo.flows.base import Flow
from flow_dpo.progress import say
from flow_dpo.sources import SpeakingSettings, load_adapters, played, settings_of


def train(argv: Sequence[str]) -> int:
    """`flow-dpo train`."""
    settings = parse_train("flow-dpo train", argv, {})
    training.run(settings, Console())
    return 0


def quickstart(argv: Sequence[str]) -> int:
    """`flow-dpo quickstart`: training on the embedded seed with fewer problems, in a folder that is free."""
    given = parse_train("flow-dpo quickstart", argv, {"max_problems": _QUICKSTART_PROBLEMS})
    if given.run.output_dir == RunSettings().output_dir:
        given = replace(given, run=replace(given.run, output_dir=_free_folder("runs/quickstart")))
    training.run(given, Console())
    return 0


_QUICKSTART_PROBLEMS = 512


def parse_train(prog: str, argv: Sequence[str], overrides: dict[str, Any]) -> TrainSettings:
    """The settings of a training command, the preset's and the command's own defaults first.

    With `--resume` the settings of the run that is resumed come before the flags.
    """
    folder = Path(config.peek(argv, "run.output_dir", RunSettings().output_dir))
    base, origin = _settings_to_resume(argv, folder), str(folder / "config.yaml")
    argv, defaults = defaults_of(argv, base, origin=origin, trusted=True)  # one's own run goes on
    base = of_its_engine(base, defaults)
    if "max_problems" in overrides:
        data = replace(defaults.shop.data, max_problems=overrides["max_problems"])
        defaults = replace(defaults, shop=replace(defaults.shop, data=data))
    what = "Learn from a stream of problems by Flow-DPO (arXiv 2410.22304)."
    parsed = config.parse(prog, what, defaults.sections(), argv, base=base, origin=origin)
    return TrainSettings.from_sections(parsed)


def _settings_to_resume(argv: Sequence[str], folder: Path) -> dict[str, Any]:
    """What config.yaml of the run to be resumed says; nothing where none is."""
    wanted = any(word in ("--resume", "--run.resume") or word.endswith("resume=true") for word in argv)
    return config.read_settings(folder / "config.yaml") if wanted and (folder / "config.yaml").exists() else {}


def evaluate(argv: Sequence[str]) -> int:
    """`flow-dpo evaluate`: with `--run` or `--adapter`, the settings that come with it are the defaults."""
    base, origin = settings_of({name: config.peek(argv, f"speaking.{name}", "") for name in ("run", "adapter")})
    argv, defaults = defaults_of(argv, base, origin=origin)
    base = of_its_engine(base, defaults)
    shop = replace(defaults.shop, data=replace(defaults.shop.data, dataset_split="test"))
    sections = {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **shop.sections(),
        "speaking": SpeakingSettings(),
        "evaluation": EvaluationSettings(),
        "overlap": overlap.OverlapSettings(),
    }
    parsed = config.parse(
        "flow-dpo evaluate", "Measure a model, or a run's adapters.", sections, argv, base=base, origin=origin
    )
    shop = ShopSettings(**{name: parsed[name] for name in shop.sections()})
    settings: EvaluationSettings = parsed["evaluation"]
    result = _evaluate(shop, parsed["flow"], parsed["explore"], parsed["speaking"], settings, parsed["overlap"])
    low, high = result["interval"]
    console = Console()
    accuracy = "nothing could be graded" if result["accuracy"] is None else f"accuracy {result['accuracy']:.1%}"
    say(
        console,
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_draws']} "
        f"correct, {result['num_ungraded']} ungraded\nWritten to {settings.output_dir}",
    )
    return 0


def _evaluate(
    shop_settings: ShopSettings,
    flow: Flow[Any],
    explore: Explore,
    speaking: SpeakingSettings,
    settings: EvaluationSettings,
    trained_on: overlap.OverlapSettings,
) -> dict[str, Any]:
    folder = Path(settings.output_dir)
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} already holds an evaluation; name another with --output_dir")
    speaks = played(flow, settings.mode)
    with workshop(shop_settings, speaks, roles=flow.roles, seed=settings.seed) as shop:
        adapters = load_adapters(shop.policy, speaking)
        problems, found = overlap.check(shop.fitting, trained_on)
        trees, result = measure(speaks, explore, problems, shop.players, adapters, settings)
        result |= {
            "settings": runs.plain(settings) | runs.plain(speaking),
            "overlap": found,
            "model": shop.loaded.name,
            "adapters": {role: adapter.path for role, adapter in adapters.items()},
            "dataset": f"{shop_settings.data.dataset_name}/{shop_settings.data.dataset_split}",
            "data_fingerprint": shop.problems.fingerprint,
            "decoding": decoding(explore, settings),
            "played": runs.plain({"flow": speaks, "explore": explore, "grading": shop_settings.grading}),
            "command": config.command_line(),
            **runs.environment(),
        }
        write_predictions(folder, trees, result)
    return result


def _free_folder(name: str) -> str:
    """`name`, or the first of `name`-2, `name`-3, ... that holds no run."""
    free, number = name, 1
    while (Path(free) / "config.yaml").exists():
        number += 1
        free = f"{name}-{number}"
    return free
