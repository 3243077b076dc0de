"""The report on one run, written into its folder: what trackers get attached at the end.

    page_of_run(Path("runs/seed"))     # [Path("runs/seed/report.html")]

Invariant: the page is that of `flow-dpo report RUN`, one file that needs nothing else.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from flow_dpo.report.compose import compose
from flow_dpo.report.html import render_page
from flow_dpo.report.sources import read_sources
from flow_dpo.runs.files import write_whole


def page_of_run(path: Path) -> list[Path]:
    """Write report.html of the run at `path`. Raises `DataError` for a folder that is none."""
    command = f"flow-dpo report {shlex.quote(str(path))}"
    write_whole(path / "report.html", render_page(compose(read_sources([path]), command=command)))
    return [path / "report.html"]
