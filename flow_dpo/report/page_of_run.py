"""The report on one run, written into its folder, which trackers attach at the end of the run.

    page_of_run(Path("runs/seed"))     # [Path("runs/seed/report.html")]

Invariant: the page is the same as that of `flow-dpo report RUN`, one self-contained file.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from flow_dpo.report.compose import compose
from flow_dpo.report.html import render_page
from flow_dpo.report.sources import read_sources
from flow_dpo.runs.files import write_whole


def page_of_run(path: Path) -> list[Path]:
    """Write report.html for the run at `path`. Raises `DataError` if the folder is not a run."""
    command = f"flow-dpo report {shlex.quote(str(path))}"
    write_whole(path / "report.html", render_page(compose(read_sources([path]), command=command)))
    return [path / "report.html"]
