"""Which trackers a run reports to, and what they are called: settings, and the refusal of a package that is missing.

    flow-dpo train --report_to wandb,trackio --project arithmetic --run_name first

Invariant: nothing of a tracker is imported before it is asked for, and nothing is sent anywhere without that.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.plugins.load import installed, is_source

NAMES = ("trackio", "wandb", "tensorboard", "mlflow")
"""The built-in trackers; each is also the name of the package that it needs."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Settings of experiment trackers."""

    report_to: str = "none"
    """Trackers that get the run's metrics, separated by commas: trackio, wandb, tensorboard, mlflow, the name of an
    installed plug-in, or path/to/file.py:Name. Addresses and keys come from each one's own environment variables."""
    project: str = "flow-dpo"
    """What trackers group runs by; mlflow calls it the experiment."""
    run_name: str = ""
    """What the run is called there; the name of its folder where it is empty."""
    table_batches: int = 16
    """Batches between two tables of solutions with their verdicts; 0 sends none."""
    table_rows: int = 8
    """Solutions in a table."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "table_batches", "table_rows")
        expect(self, "to name a project", lambda value: bool(value.strip()), "project")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers one by one."""
        names = (name.strip() for name in self.report_to.split(","))
        return tuple(dict.fromkeys(name for name in names if name and name != "none"))


def check(settings: TrackingSettings) -> None:
    """Raise `ConfigError` for a tracker that does not exist, or whose package is missing."""
    for name in settings.trackers:
        if name in NAMES:
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"expected the package {name} for --report_to {name}, found none; pip install {name}, or in this "
                    "repository pip install -e '.[trackers]'"
                )
        elif not is_source(name) and name not in installed("tracker"):
            known = [*NAMES, "none", *installed("tracker")]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown tracker {name!r} in --report_to; there are {', '.join(known)}{hint}")
