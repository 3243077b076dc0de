"""What does each command do?

Every function takes the words behind its command, and composes what `build` makes: settings first, then work, then
what a person wants to know at the end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from flow_dpo import config, progress, runs
from flow_dpo.build import RunSettings, ShopSettings, TrainSettings, Workshop, default_settings, workshop
from flow_dpo.errors import ConfigError, DataError
from flow_dpo.evaluate import EvaluationSettings, write_predictions
from flow_dpo.evaluate import evaluate as measure
from flow_dpo.explore import Siblings
from flow_dpo.flows.answer_stop import AnswerStop
from flow_dpo.flows.single import Single
from flow_dpo.learner import Learner
from flow_dpo.measures import ProgressiveValidation
from flow_dpo.online import Row, learn
from flow_dpo.recipes import default_preset
from flow_dpo.render import Renderer
from flow_dpo.tree import Tree
from flow_dpo.types import Adapter, Pair, Role

log = logging.getLogger("flow_dpo")


def train(argv: Sequence[str]) -> int:
    """`flow-dpo train`."""
    settings = parse_train("flow-dpo train", argv, {})
    run_training(settings, Console())
    return 0


def quickstart(argv: Sequence[str]) -> int:
    """`flow-dpo quickstart`: training on the embedded seed with fewer problems, in a folder that is free."""
    given = parse_train("flow-dpo quickstart", argv, {"max_problems": _QUICKSTART_PROBLEMS})
    if given.run.output_dir == RunSettings().output_dir:
        given = replace(given, run=replace(given.run, output_dir=_free_folder("runs/quickstart")))
    run_training(given, Console())
    return 0


_QUICKSTART_PROBLEMS = 640


def parse_train(prog: str, argv: Sequence[str], overrides: dict[str, Any]) -> TrainSettings:
    """The settings of a training command, the preset's and the command's own defaults first."""
    model = config.peek(argv, "model.model_name_or_path", "seed")
    recipe = config.peek(argv, "recipe", "flow-dpo")
    preset = config.peek(argv, "preset", default_preset(model))
    defaults = default_settings(recipe, preset)
    if "max_problems" in overrides:
        data = replace(defaults.shop.data, max_problems=overrides["max_problems"])
        defaults = replace(defaults, shop=replace(defaults.shop, data=data))
    sections = {"recipe": recipe, "preset": preset, **defaults.sections()}
    parsed = config.parse(prog, "Learn from a stream of problems by Flow-DPO (arXiv 2410.22304).", sections, argv)
    del parsed["recipe"], parsed["preset"]
    return TrainSettings.from_sections(parsed)


def run_training(settings: TrainSettings, console: Console) -> runs.RunFolder:
    """Train as told, keep everything in the run folder, and say at the end what came of it."""
    runs.refuse_used(Path(settings.run.output_dir))
    recipe, seed = settings.recipe, settings.run.seed
    with workshop(settings.shop, recipe.flow, roles=recipe.flow.roles, seed=seed) as shop:
        learner = Learner(shop.policy, settings.learner)
        folder = runs.RunFolder.create(
            settings.run.output_dir,
            settings.sections(),
            {
                "command": config.command_line(),
                "model": shop.loaded.name,
                "device": str(shop.policy.device),
                "num_problems": len(shop.fitting),
                "num_skipped_rows": shop.problems.skipped,
                "data_fingerprint": shop.problems.fingerprint,
            },
        )
        validation = ProgressiveValidation(window=settings.run.window)
        _say(console, f"{shop.loaded.name}: {len(shop.fitting)} problems, writing to {folder.path}")
        keeper = RunKeeper(folder, shop, learner, settings.run.save_updates)
        try:
            with progress.ProgressBar(console, len(shop.fitting)) as bar:
                learn(
                    recipe,
                    shop.fitting,
                    shop.players,
                    learner,
                    [keeper, bar, progress.StopWatcher()],
                    seed=seed,
                    explore_ahead=settings.run.explore_ahead,
                    progress=validation,
                )
        finally:
            # An interrupted run keeps what it has learned, too.
            keeper.save_adapters()
            progress.plot(runs.read_jsonl(folder.path / "metrics.jsonl"), folder.path / "progressive.png")
    console.print(progress.summary_table(validation))
    _say(console, f"\nPicture:  {folder.path / 'progressive.png'}")
    _say(console, f"Adapters: {', '.join(str(path) for path in folder.latest_adapters().values())}")
    _say(console, f"Next:     flow-dpo evaluate --run {folder.path} --dataset_split test --max_problems 500")
    return folder


class RunKeeper:
    """A recorder that writes the run folder."""

    def __init__(self, folder: runs.RunFolder, shop: Workshop, learner: Learner, save_updates: int) -> None:
        self._folder, self._shop, self._learner = folder, shop, learner
        self._save_updates = save_updates
        self._saved = 0

    def record(self, row: Row, trees: Sequence[Tree], pairs: Sequence[Pair]) -> None:
        """Write one batch."""
        renderer = self._shop.loaded.renderer
        by_id = {tree.problem.id: tree for tree in trees}
        self._folder.record(
            row,
            [tree.to_json([renderer.to_text([node.completion.token_ids]) for node in tree.nodes]) for tree in trees],
            [runs.pair_row(pair, by_id[pair.problem_id], _pair_texts(renderer, pair)) for pair in pairs],
        )
        if self._save_updates and self._learner.version - self._saved >= self._save_updates:
            self.save_adapters()

    def save_adapters(self) -> None:
        """Write every role's adapter under the present version."""
        self._saved = self._learner.version
        for role in self._shop.policy.roles:
            self._shop.policy.save_adapter(role, self._folder.adapter_folder(role, self._saved))


def _pair_texts(renderer: Renderer, pair: Pair) -> dict[str, str]:
    decode = renderer.tokenizer.decode
    return {
        "prompt": str(decode(list(pair.request.prompt_ids), skip_special_tokens=False)),
        "chosen": str(decode(list(pair.chosen.token_ids), skip_special_tokens=False)),
        "rejected": str(decode(list(pair.rejected.token_ids), skip_special_tokens=False)),
    }


def evaluate(argv: Sequence[str]) -> int:
    """`flow-dpo evaluate`: with `--run`, that run's settings are the defaults."""
    run = config.peek(argv, "evaluation.run", "")
    base = _settings_of_run(Path(run)) if run else {}
    model = config.peek(argv, "model.model_name_or_path", base.get("model", {}).get("model_name_or_path", "seed"))
    defaults = default_settings("flow-dpo", config.peek(argv, "preset", default_preset(model)))
    shop = replace(defaults.shop, data=replace(defaults.shop.data, dataset_split="test"))
    sections = {
        "preset": "",
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
    _say(
        console,
        f"{accuracy} (95 % interval {low:.1%} to {high:.1%}): {result['num_correct']} of {result['num_problems']} "
        f"correct, {result['num_ungraded']} ungraded\nWritten to {settings.output_dir}",
    )
    return 0


def _settings_of_run(run: Path) -> dict[str, Any]:
    """What an evaluation takes over from a run's config.yaml: all but what belongs to its problems and its learning."""
    if not (run / "config.yaml").exists():
        raise DataError(f"expected a run folder with a config.yaml, found none in {run}")
    found = config.read_settings(run / "config.yaml")
    kept = {name: found[name] for name in ("flow", "explore", "model", "lora", "grading", "engine") if name in found}
    data = found.get("data", {})
    of_set = ("dataset_name", "dataset_config", "question_column", "answer_column")
    return kept | {"data": {name: data[name] for name in of_set if data.get(name) is not None}}


def _evaluate(
    shop_settings: ShopSettings, flow: AnswerStop, explore: Siblings, settings: EvaluationSettings
) -> dict[str, Any]:
    folder = Path(settings.output_dir)
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} already holds an evaluation; name another with --output_dir")
    latest = runs.latest_adapters(Path(settings.run)) if settings.run else {}
    played = flow
    if settings.mode == "single":
        played = Single(max_tokens=flow.chunk_tokens * flow.max_chunks, prompts=flow.prompts)
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
            "temperature": explore.temperature,
            "top_p": explore.top_p,
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


def _say(console: Console, text: str) -> None:
    """Print text that may hold anything, as it is."""
    console.print(Text(text), highlight=False, soft_wrap=True)
