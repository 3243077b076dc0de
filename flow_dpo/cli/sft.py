"""`flow-dpo sft`: fine-tune a model on traces, with TRL.

flow-dpo sft --traces runs/traces --output_dir runs/sft
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError
from flow_dpo.models.settings import ModelSettings
from flow_dpo.runs import run_folder
from flow_dpo.runs.adapters import trace_pass
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.live import Live
from flow_dpo.runs.resolve import Given, Sections, command_line, resolve, typed_command
from flow_dpo.runs.settings import named_settings
from flow_dpo.runs.starting_adapters import starting_shape
from flow_dpo.runs.writable import check_writable
from flow_dpo.traces.settings import PAPER_LORA, SftSettings, SftTrainingSettings
from flow_dpo.traces.trace import HEADER, read_traces


def parse_sft(argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of `flow-dpo sft`, and those kept only for a later evaluation. The traces' settings are defaults."""
    made: dict[str, Any] = {}

    def of_traces(given: Given) -> tuple[dict[str, Any], str]:
        source = given.text("sft.traces")
        if not source:
            return {}, ""
        file = read_traces(Path(source))
        made.update(file.header.get("settings", {}))
        names = ("recipe", "preset", "flow_source", "flow", "model")
        return _among(made, names), f"the settings in {file.path.with_name(HEADER)}"

    parsed = resolve(
        "flow-dpo sft", "Fine-tune a model on traces.", argv, _sections, brings=of_traces, doc=__doc__ or ""
    )
    return parsed, _among(made, ("explore_source", "explore", "data", "grading"))


def _among(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _sections(given: Given) -> Sections:
    defaults = named_settings(given)
    return {
        **defaults.names(),
        "flow": defaults.recipe.flow,
        "model": ModelSettings(),
        "lora": replace(PAPER_LORA, **starting_shape(given)),
        "training": SftTrainingSettings(),
        "sft": SftSettings(),
    }


def fine_tune(argv: Sequence[str]) -> int:
    """`flow-dpo sft`."""
    started, console = time.perf_counter(), Console()
    parsed, travelling = parse_sft(argv)
    from flow_dpo.models.load import load_model  # loads torch, once the arguments are parsed
    from flow_dpo.traces import sft

    sft.check_trl()
    settings: SftSettings = parsed["sft"]
    training: SftTrainingSettings = parsed["training"]
    if not settings.traces:
        raise ConfigError("expected a folder of traces, found none; name one with --traces (from flow-dpo generate)")
    path, file = Path(settings.output_dir), read_traces(Path(settings.traces))
    traces = sft.choose(file, settings)
    check_writable(path)
    run_folder.refuse_used(path)
    with run_folder.locked(path):
        with Live(console) as live:
            live.doing(f"loading {parsed['model'].model_name_or_path}")
            loaded = load_model(parsed["model"])
        rows = sft.examples(traces, file.header, trace_pass(parsed["flow"]), loaded)
        print_safe(console, f"{loaded.name}: {len(traces)} traces from {file.path}, writing to {path}")
        model, log = sft.fine_tune(rows, loaded, parsed["lora"], training, settings)
        facts = sft.summarise(traces, rows, training, log, started)
        sft.write(model, loaded, path, chat_template=parsed["model"].chat_template, merge=settings.merge)
        base = model.peft_config["default"].base_model_name_or_path or loaded.name
        card = sft.card(base, facts, file.header, path, merged=settings.merge)
        write_whole(path / "README.md", card)
        sft.record(path, {**parsed, **travelling}, {**facts, "command": command_line()}, log)
    words, learned = sft.loss_words(facts), facts["cost"]["tokens_learned"]
    print_safe(console, f"{words[0].upper()}{words[1:]}; {learned} tokens learned")
    print_safe(console, f"Next: {typed_command()} evaluate --mode single --adapter {shlex.quote(str(path))}")
    return 0
