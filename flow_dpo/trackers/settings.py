"""Settings of experiment trackers, and the check that their packages are installed.

    flow-dpo train --report_to wandb,trackio --project arithmetic --run_name first

Invariant: no tracker is imported before it is requested, and nothing is sent anywhere without a request.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.plugins.load import installed, is_source

NAMES = ("trackio", "wandb", "tensorboard", "mlflow")
"""The built-in trackers; each is named like the package that it needs."""


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Settings of experiment trackers."""

    report_to: str = "none"
    """Trackers that receive the run's metrics, separated by commas: trackio, wandb, tensorboard, mlflow, the name of an
    installed plug-in, or path/to/file.py:Name. Each reads addresses and keys from its own environment variables."""
    project: str = "flow-dpo"
    """Name by which trackers group runs; in mlflow, the experiment."""
    run_name: str = ""
    """Name of the run in the trackers. Empty takes the name of the run folder."""
    table_batches: int = 16
    """Batches between two tables of solutions with their verdicts; 0 sends no tables."""
    table_rows: int = 8
    """Maximum number of solutions in a table."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "table_batches", "table_rows")
        expect(self, "to name a project", lambda value: bool(value.strip()), "project")

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names of the trackers, each once."""
        names = (name.strip() for name in self.report_to.split(","))
        return tuple(dict.fromkeys(name for name in names if name and name != "none"))


def check(settings: TrackingSettings) -> None:
    """Raise `ConfigError` for an unknown tracker, or one whose package is missing."""
    for name in settings.trackers:
        if name in NAMES:
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"expected the package {name} for --report_to {name}, found that it is not installed; install it "
                    f"with pip install {name}, or in this repository with pip install -e '.[trackers]'"
                )
        elif not is_source(name) and name not in installed("tracker"):
            known = [*NAMES, "none", *installed("tracker")]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown tracker {name!r} in --report_to; there are {', '.join(known)}{hint}")
