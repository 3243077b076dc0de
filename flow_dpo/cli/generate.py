"""`flow-dpo generate`: write verified traces of a trained flow, an untrained flow, or a single model.

flow-dpo generate --run runs/train --output_dir runs/traces
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from flow_dpo.cli.loading import loading
from flow_dpo.runs.adapters import source_settings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import Given, Sections, resolve
from flow_dpo.runs.settings import sampling_sections
from flow_dpo.traces.settings import GenerateSettings
from flow_dpo.traces.trace import SelectionSettings


def parse_generate(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo generate`; those of `--run` or `--adapter` are the defaults."""
    what = "Write verified traces of a trained flow, an untrained flow, or a single model."
    return resolve("flow-dpo generate", what, argv, _sections, brings=source_settings, doc=__doc__ or "")


def _sections(given: Given) -> Sections:
    return sampling_sections(given) | {"generate": GenerateSettings(), "selection": SelectionSettings()}


def generate(argv: Sequence[str]) -> int:
    """`flow-dpo generate`."""
    parsed, console = parse_generate(argv), Console()
    with loading():
        from flow_dpo.traces.run import generate_run  # loads torch, once the arguments are parsed

    written = generate_run(parsed, report=lambda text: print_safe(console, text), console=console)
    print_safe(console, f"Written to {written}")
    return 0
