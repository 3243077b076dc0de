"""What does each command do?

Every function takes the words behind its command, and composes what `build` makes: settings first, then work, then
what a person wants to know at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo import config, runs, training
from flow_dpo.build import RunSettings, ShopSettings, TrainSettings, default_settings, workshop
from flow_dpo.custom import is_source
from flow_dpo.errors import ConfigError, DataError
from flow_dpo.evaluate import EvaluationSettings, write_predictions
from flow_dpo.evaluate import evaluate as measure
from flow_dpo.explore import Explore
from flow_dpo.flows.answer_stop import AnswerStop
from flow_dpo.flows.base import Flow
from flow_dpo.flows.single import Single
from flow_dpo.progress import say
from flow_dpo.recipes import default_preset
from flow_dpo.types import Adapter, Role


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
    base = _settings_to_resume(argv)
    model = config.peek(argv, "model.model_name_or_path", base.get("model", {}).get("model_name_or_path", "seed"))
    recipe = config.peek(argv, "recipe", base.get("recipe", "flow-dpo"))
    preset = config.peek(argv, "preset", base.get("preset", default_preset(model)))
    argv, source = _flow_source(argv, base)
    defaults = default_settings(recipe, preset, source)
    if "max_problems" in overrides:
        data = replace(defaults.shop.data, max_problems=overrides["max_problems"])
        defaults = replace(defaults, shop=replace(defaults.shop, data=data))
    parsed = config.parse(
        prog, "Learn from a stream of problems by Flow-DPO (arXiv 2410.22304).", defaults.sections(), argv, base=base
    )
    return TrainSettings.from_sections(parsed)


def _flow_source(argv: Sequence[str], base: Mapping[str, Any]) -> tuple[list[str], str]:
    """`--flow file.py:Name` as the setting that it is, and its value; "" where the flow is one of ours."""
    words: list[str] = []
    for word in argv:
        name, equals, value = word.partition("=")
        follows = bool(words) and words[-1] == "--flow"
        if follows and is_source(word):
            words[-1] = "--flow_source"
        words.append(f"--flow_source={value}" if name == "--flow" and equals and is_source(value) else word)
    return words, config.peek(words, "flow_source", str(base.get("flow_source", "")))


def _settings_to_resume(argv: Sequence[str]) -> dict[str, Any]:
    """What config.yaml of the run to be resumed says; nothing where none is."""
    wanted = any(word in ("--resume", "--run.resume") or word.endswith("resume=true") for word in argv)
    folder = Path(config.peek(argv, "run.output_dir", RunSettings().output_dir))
    return config.read_settings(folder / "config.yaml") if wanted and (folder / "config.yaml").exists() else {}


def evaluate(argv: Sequence[str]) -> int:
    """`flow-dpo evaluate`: with `--run`, that run's settings are the defaults."""
    run = config.peek(argv, "evaluation.run", "")
    base = _settings_of_run(Path(run)) if run else {}
    model = config.peek(argv, "model.model_name_or_path", base.get("model", {}).get("model_name_or_path", "seed"))
    recipe = config.peek(argv, "recipe", base.get("recipe", "flow-dpo"))
    argv, source = _flow_source(argv, base)
    defaults = default_settings(recipe, config.peek(argv, "preset", base.get("preset", default_preset(model))), source)
    shop = replace(defaults.shop, data=replace(defaults.shop.data, dataset_split="test"))
    sections = {
        "recipe": recipe,
        "preset": defaults.preset,
        "flow_source": source,
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **shop.sections(),
        "evaluation": EvaluationSettings(),
    }
    parsed = config.parse("flow-dpo evaluate", "Measure a model, or a run's adapters.", sections, argv, base=base)
    shop = ShopSettings(**{name: parsed[name] for name in shop.sections()})
    settings: EvaluationSettings = parsed["evaluation"]
    result = _evaluate(shop, parsed["flow"], parsed["explore"], settings)
    low, high = result["interval"]
    console = Console()
    accuracy = "nothing could be graded" if result["accuracy"] is None else f"accuracy {result['accuracy']:.1%}"
    say(
        console,
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_problems']} "
        f"correct, {result['num_ungraded']} ungraded\nWritten to {settings.output_dir}",
    )
    return 0


_OF_A_RUN = ("recipe", "preset", "flow_source", "flow", "explore", "model", "lora", "grading", "engine")


def _settings_of_run(run: Path) -> dict[str, Any]:
    """What an evaluation takes over from a run's config.yaml: all but what belongs to its problems and its learning."""
    if not (run / "config.yaml").exists():
        raise DataError(f"expected a run folder with a config.yaml, found none in {run}")
    found = config.read_settings(run / "config.yaml")
    kept = {name: found[name] for name in _OF_A_RUN if name in found}
    data = found.get("data", {})
    of_set = ("dataset_name", "dataset_config", "question_column", "answer_column")
    return kept | {"data": {name: data[name] for name in of_set if data.get(name) is not None}}


def _single(flow: Flow[Any]) -> Single:
    """The flow's Answer role alone, in one pass of as many tokens."""
    if isinstance(flow, Single):
        return flow
    if isinstance(flow, AnswerStop):
        return Single(max_tokens=flow.chunk_tokens * flow.max_chunks, prompts=flow.prompts)
    raise ConfigError(f"--mode single needs a flow with an Answer role, found {type(flow).__name__}")


def _evaluate(
    shop_settings: ShopSettings, flow: Flow[Any], explore: Explore, settings: EvaluationSettings
) -> dict[str, Any]:
    folder = Path(settings.output_dir)
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} already holds an evaluation; name another with --output_dir")
    latest = runs.latest_adapters(Path(settings.run)) if settings.run else {}
    played = _single(flow) if settings.mode == "single" else flow
    with workshop(shop_settings, played, roles=flow.roles, seed=settings.seed) as shop:
        adapters: dict[Role, Adapter] = {}
        for role, path in latest.items():
            if not settings.roles or role in settings.roles:
                shop.policy.load_adapter(role, path)
                adapters[role] = Adapter(role=role, version=0, path=str(path))
        trees, result = measure(played, explore, shop.fitting, shop.players, adapters, settings)
        result |= {
            "settings": runs.plain(settings),
            "model": shop.loaded.name,
            "adapters": {role: str(path) for role, path in latest.items()},
            "dataset": f"{shop_settings.data.dataset_name}/{shop_settings.data.dataset_split}",
            "data_fingerprint": shop.problems.fingerprint,
            "explore": runs.plain(explore),
        }
        write_predictions(folder, trees, result)
    return result


def verify(argv: Sequence[str]) -> int:
    """`flow-dpo verify FILE --output OUT`."""
    from flow_dpo.verify import verify_file

    words = list(argv)
    if len(words) != 3 or words[1] != "--output":
        raise ConfigError("expected: flow-dpo verify FILE --output OUT")
    print(json.dumps(verify_file(Path(words[0]), Path(words[2])), indent=2))
    return 0


def _free_folder(name: str) -> str:
    """`name`, or the first of `name`-2, `name`-3, ... that holds no run."""
    free, number = name, 1
    while (Path(free) / "config.yaml").exists():
        number += 1
        free = f"{name}-{number}"
    return free
