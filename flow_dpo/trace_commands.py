"""What do the commands do that carry a trained flow on: to traces, to files for others, to a fine-tuned model?

Like `commands`: every function takes the words behind its command, settings first, then work, then what a person wants
to know at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo import config, runs
from flow_dpo.build import ShopSettings, TrainSettings, default_settings, workshop
from flow_dpo.export import ExportSettings
from flow_dpo.export import export as write_export
from flow_dpo.generate import GenerateSettings
from flow_dpo.generate import generate as play
from flow_dpo.progress import say
from flow_dpo.recipes import default_preset
from flow_dpo.sources import SpeakingSettings, load_adapters, one_pass, played, settings_of
from flow_dpo.traces import SelectionSettings, TraceFolder, refuse_used


def parse_generate(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo generate`: with `--run` or `--adapter`, what comes with it comes first."""
    base = settings_of({name: config.peek(argv, f"speaking.{name}", "") for name in ("run", "adapter")})
    defaults = _defaults(argv, base)
    sections = {
        "preset": "",
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **defaults.shop.sections(),
        "speaking": SpeakingSettings(),
        "generate": GenerateSettings(),
        "selection": SelectionSettings(),
    }
    what = "Write verified traces of a trained flow, an untrained flow, or a single model."
    return config.parse("flow-dpo generate", what, sections, argv, base=base)


def generate(argv: Sequence[str]) -> int:
    """`flow-dpo generate`."""
    parsed = parse_generate(argv)
    settings: GenerateSettings = parsed["generate"]
    selection: SelectionSettings = parsed["selection"]
    flow, path, console = parsed["flow"], Path(settings.output_dir), Console()
    shop_settings = _shop(parsed)
    refuse_used(path)
    speaks = played(flow, settings.mode)
    with runs.locked(path), workshop(shop_settings, speaks, roles=flow.roles, seed=settings.seed) as shop:
        adapters = load_adapters(shop.policy, parsed["speaking"])
        header = {
            "source": settings.source(trained=bool(adapters)),
            "selection": selection.rule(),
            "settings": runs.plain(parsed),
            "command": config.command_line(),
            "model": shop.loaded.name,
            "tokenizer": shop.loaded.renderer.fingerprint(),
            "adapters": {role: adapter.path for role, adapter in adapters.items()},
            "dataset": f"{shop_settings.data.dataset_name}/{shop_settings.data.dataset_split}",
            "data_fingerprint": shop.problems.fingerprint,
            "num_problems": len(shop.fitting),
            **runs.environment(),
        }
        folder = TraceFolder(path, header)
        for traces, tally in play(
            speaks, one_pass(flow), parsed["explore"], shop.fitting, shop.players, adapters, settings, selection
        ):
            folder.append(traces, tally.facts())
            say(
                console,
                f"{tally.problems_played} problems: {tally.traces} traces on {tally.problems_solved}, from "
                f"{tally.draws} draws, {tally.tokens_played} tokens and {tally.verdicts_used} verdicts",
            )
        folder.note({"complete": True})
    say(console, f"Written to {path}")
    return 0


def parse_export(argv: Sequence[str]) -> ExportSettings:
    """The settings of `flow-dpo export`."""
    what = "Write traces, or a run's pairs, in the formats that other trainers read."
    return config.parse("flow-dpo export", what, {"export": ExportSettings()}, argv)["export"]


def export(argv: Sequence[str]) -> int:
    """`flow-dpo export`."""
    folder, num_rows = write_export(parse_export(argv))
    say(Console(), f"{num_rows} rows written to {folder}")
    return 0


def _defaults(argv: Sequence[str], base: Mapping[str, Any]) -> TrainSettings:
    """The preset's values, by the preset that is named or else the model's own."""
    model = config.peek(argv, "model.model_name_or_path", base.get("model", {}).get("model_name_or_path", "seed"))
    return default_settings("flow-dpo", config.peek(argv, "preset", default_preset(model)))


def _shop(parsed: Mapping[str, Any]) -> ShopSettings:
    return ShopSettings(**{name: parsed[name] for name in ShopSettings().sections()})
