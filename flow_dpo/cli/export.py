"""`flow-dpo export`: traces, pairs or labelled steps for other trainers; an evaluation as an Inspect AI log.

flow-dpo export --source runs/traces --format messages
flow-dpo export --source runs/vineppo --format steps
flow-dpo export --source runs/evaluation --format inspect
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flow_dpo.evaluate import inspect_log
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import resolve
from flow_dpo.traces.export import ExportSettings
from flow_dpo.traces.export import export as write_export

_WHAT = (
    "Write traces, or a run's pairs or labelled steps, in the formats that other trainers read, or an evaluation as an "
    "Inspect AI log."
)


def parse_export(argv: Sequence[str]) -> ExportSettings:
    """The settings of `flow-dpo export`."""
    return resolve("flow-dpo export", _WHAT, argv, {"export": ExportSettings()}, doc=__doc__ or "")["export"]


def export(argv: Sequence[str]) -> int:
    """`flow-dpo export`."""
    settings = parse_export(argv)
    source = Path(settings.source)
    if settings.format == "inspect" or (settings.format == "auto" and inspect_log.is_evaluation(source)):
        path, num_samples = inspect_log.export(source, Path(settings.output_dir))
        print_safe(Console(), f"{num_samples} samples written to {path}")
        return 0
    folder, num_rows = write_export(settings)
    print_safe(Console(), f"{num_rows} rows written to {folder}")
    return 0
