"""`flow-dpo sft`: fine-tune a model on traces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError
from flow_dpo.models.load import ModelSettings, load_model
from flow_dpo.runs import resolve, run_folder
from flow_dpo.runs.adapters import taught
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.settings import defaults_of, of_its_engine
from flow_dpo.traces import sft
from flow_dpo.traces.trace import HEADER, read_traces


def parse_sft(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of `flow-dpo sft`, and those that only travel on to evaluation; both from the traces' first."""
    source = resolve.peek(argv, "sft.traces", "")
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
        "training": sft.SftTrainingSettings(),
        "sft": sft.SftSettings(),
    }
    parsed = resolve.parse("flow-dpo sft", "Fine-tune a model on traces.", sections, argv, base=base, origin=origin)
    return parsed, {name: made[name] for name in ("explore", "data", "grading") if name in made}


def fine_tune(argv: Sequence[str]) -> int:
    """`flow-dpo sft`."""
    started, console = time.perf_counter(), Console()
    sft.check_trl()
    parsed, travelling = parse_sft(argv)
    settings: sft.SftSettings = parsed["sft"]
    training: sft.SftTrainingSettings = parsed["training"]
    if not settings.traces:
        raise ConfigError("expected a folder of traces, found none; name one with --traces (flow-dpo generate)")
    path, file = Path(settings.output_dir), read_traces(Path(settings.traces))
    traces = sft.choose(file, settings)
    run_folder.refuse_used(path)
    with run_folder.locked(path):
        loaded = load_model(parsed["model"])
        rows = sft.examples(traces, file.header, taught(parsed["flow"]), loaded)
        print_safe(console, f"{loaded.name}: {len(traces)} traces of {file.path}, writing to {path}")
        model, log = sft.fine_tune(rows, loaded, parsed["lora"], training, settings)
        facts = sft.summarise(traces, rows, training, log, started)
        sft.write(model, loaded, path, chat_template=parsed["model"].chat_template, merge=settings.merge)
        base = model.peft_config["default"].base_model_name_or_path or loaded.name
        card = sft.card(base, facts, file.header, path, merged=settings.merge)
        run_folder.write_whole(path / "README.md", card)
        sft.record(path, {**parsed, **travelling}, {**facts, "command": resolve.command_line()}, log)
    print_safe(
        console, f"Loss {facts['first_loss']} to {facts['last_loss']}; {facts['cost']['tokens_learned']} tokens learned"
    )
    print_safe(console, f"Next: flow-dpo evaluate --mode single --adapter {path}")
    return 0
