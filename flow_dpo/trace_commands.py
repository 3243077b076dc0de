"""What do the commands do that carry a trained flow on: to traces, to files for others, to a fine-tuned model?

Like `commands`: every function takes the words behind its command, settings first, then work, then what a person wants
to know at the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo import config, runs, sft
from flow_dpo.build import ShopSettings, defaults_of, of_its_engine, workshop
from flow_dpo.errors import ConfigError, DataError
from flow_dpo.export import ExportSettings
from flow_dpo.export import export as write_export
from flow_dpo.generate import GenerateSettings
from flow_dpo.generate import generate as play
from flow_dpo.models import ModelSettings, load_model
from flow_dpo.progress import say
from flow_dpo.sources import SpeakingSettings, load_adapters, played, settings_of, taught
from flow_dpo.traces import HEADER, OF_THE_DATA, SelectionSettings, TraceFolder, read_traces, refuse_used
from flow_dpo.types import Problem


def parse_generate(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo generate`: with `--run` or `--adapter`, what comes with it comes first."""
    base, origin = settings_of({name: config.peek(argv, f"speaking.{name}", "") for name in ("run", "adapter")})
    argv, defaults = defaults_of(argv, base, origin=origin)
    base = of_its_engine(base, defaults)
    sections = {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "explore": defaults.recipe.explore,
        **defaults.shop.sections(),
        "speaking": SpeakingSettings(),
        "generate": GenerateSettings(),
        "selection": SelectionSettings(),
    }
    what = "Write verified traces of a trained flow, an untrained flow, or a single model."
    return config.parse("flow-dpo generate", what, sections, argv, base=base, origin=origin)


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
            "selection": selection.rule() if settings.mode != "ground_truth" else OF_THE_DATA,
            "settings": runs.plain(parsed),
            "command": config.command_line(),
            "model": shop.loaded.name,
            "tokenizer": shop.loaded.renderer.fingerprint(),
            "adapters": {role: adapter.path for role, adapter in adapters.items()},
            "dataset": f"{shop_settings.data.dataset_name}/{shop_settings.data.dataset_split}",
            "data_fingerprint": shop.problems.fingerprint,
            **runs.environment(),
        }
        problems = _only_of(shop.fitting, settings.problems_of)
        folder = TraceFolder(path, header | {"num_problems": len(problems)})
        for traces, tally in play(
            speaks, taught(flow), parsed["explore"], problems, shop.players, adapters, settings, selection
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


def parse_export(argv: Sequence[str]) -> ExportSettings:
    """The settings of `flow-dpo export`."""
    what = "Write traces, or a run's pairs, in the formats that other trainers read."
    return config.parse("flow-dpo export", what, {"export": ExportSettings()}, argv)["export"]


def export(argv: Sequence[str]) -> int:
    """`flow-dpo export`."""
    folder, num_rows = write_export(parse_export(argv))
    say(Console(), f"{num_rows} rows written to {folder}")
    return 0


def parse_sft(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of `flow-dpo sft`, and those that only travel on to evaluation; both from the traces' first."""
    source = config.peek(argv, "sft.traces", "")
    file = read_traces(Path(source)) if source else None
    made: dict[str, Any] = file.header.get("settings", {}) if file else {}
    origin = f"the settings in {file.path.with_name(HEADER)}" if file else ""
    base = {name: made[name] for name in ("recipe", "preset", "flow_source", "flow", "model") if name in made}
    argv, defaults = defaults_of(argv, base, origin=origin)
    base = of_its_engine(base, defaults)
    sections = {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "model": ModelSettings(),
        "lora": sft.PAPER_LORA,
        "training": sft.SftTraining(),
        "sft": sft.SftSettings(),
    }
    parsed = config.parse("flow-dpo sft", "Fine-tune a model on traces.", sections, argv, base=base, origin=origin)
    return parsed, {name: made[name] for name in ("explore", "data", "grading") if name in made}


def fine_tune(argv: Sequence[str]) -> int:
    """`flow-dpo sft`."""
    started, console = time.perf_counter(), Console()
    sft.check_trl()
    parsed, travelling = parse_sft(argv)
    settings: sft.SftSettings = parsed["sft"]
    training: sft.SftTraining = parsed["training"]
    if not settings.traces:
        raise ConfigError("expected a folder of traces, found none; name one with --traces (flow-dpo generate)")
    path, file = Path(settings.output_dir), read_traces(Path(settings.traces))
    traces = sft.choose(file, settings)
    runs.refuse_used(path)
    with runs.locked(path):
        loaded = load_model(parsed["model"])
        rows = sft.examples(traces, file.header, taught(parsed["flow"]), loaded)
        say(console, f"{loaded.name}: {len(traces)} traces of {file.path}, writing to {path}")
        model, log = sft.fine_tune(rows, loaded, parsed["lora"], training, settings)
        facts = sft.summarise(traces, rows, training, log, started)
        sft.write(model, loaded, path, chat_template=parsed["model"].chat_template, merge=settings.merge)
        base = model.peft_config["default"].base_model_name_or_path or loaded.name
        card = sft.card(base, facts, file.header, path, merged=settings.merge)
        runs.write_whole(path / "README.md", card)
        sft.record(path, {**parsed, **travelling}, {**facts, "command": config.command_line()}, log)
    say(
        console, f"Loss {facts['first_loss']} to {facts['last_loss']}; {facts['cost']['tokens_learned']} tokens learned"
    )
    say(console, f"Next: flow-dpo evaluate --mode single --adapter {path}")
    return 0


def _shop(parsed: Mapping[str, Any]) -> ShopSettings:
    return ShopSettings(**{name: parsed[name] for name in ShopSettings().sections()})
