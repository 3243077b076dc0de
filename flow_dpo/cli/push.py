"""`flow-dpo push`: push a run's adapters, merged models, traces and pairs to the hub.

flow-dpo push runs/gsm8k --repo_id me/gsm8k-flow
flow-dpo push runs/gsm8k --repo_id me/gsm8k-flow --what adapters,merged,traces,pairs --traces runs/traces
flow-dpo push runs/gsm8k --repo_id me/gsm8k-flow --dry_run      list what would be pushed
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flow_dpo.core.errors import ConfigError
from flow_dpo.hub.settings import PushSettings
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.resolve import resolve

_WHAT = "Push a run to the hub: adapters, merged models, traces and pairs, with their cards."
_EXAMPLE = PushSettings(repo_id="OWNER/NAME")


def parse_push(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of `flow-dpo push`, with the run folder under "runs"."""
    return resolve("flow-dpo push RUN", _WHAT, argv, {"push": _EXAMPLE}, others="runs")


def push(argv: Sequence[str]) -> int:
    """`flow-dpo push`."""
    parsed = parse_push(argv)
    runs, settings = parsed["runs"], parsed["push"]
    if len(runs) != 1:
        raise ConfigError(
            f"expected one run folder, found {', '.join(runs) or 'none'}; for example flow-dpo push runs/train "
            "--repo_id me/name"
        )
    if settings.repo_id == _EXAMPLE.repo_id:
        raise ConfigError(
            "expected a repository on the hub, found none; add --repo_id OWNER/NAME, or NAME for your own account"
        )
    from flow_dpo.hub.push import push as push_run

    console = Console()
    done = push_run(Path(runs[0]), settings, report=lambda text: print_safe(console, text))
    if done:
        seen = "public" if settings.public else "private"
        print_safe(console, f"{len(done)} {'repository' if len(done) == 1 else 'repositories'}, {seen}")
    return 0
