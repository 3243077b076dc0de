"""`flow-dpo export`: traces, or a run's pairs, for other trainers.

flow-dpo export --source runs/traces --format messages
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import resolve
from flow_dpo.traces.export import ExportSettings
from flow_dpo.traces.export import export as write_export

_WHAT = "Write traces, or a run's pairs, in the formats that other trainers read."


def parse_export(argv: Sequence[str]) -> ExportSettings:
    """The settings of `flow-dpo export`."""
    return resolve("flow-dpo export", _WHAT, argv, {"export": ExportSettings()}, doc=__doc__ or "")["export"]


def export(argv: Sequence[str]) -> int:
    """`flow-dpo export`."""
    folder, num_rows = write_export(parse_export(argv))
    print_safe(Console(), f"{num_rows} rows written to {folder}")
    return 0
