"""`flow-dpo report`: one page on runs, evaluations, traces, comparisons and judges' verdicts.

    flow-dpo report runs/train runs/untrained runs/single --output_dir runs/report
    flow-dpo report studies/recipes/comparison.json --output_dir studies/recipes
    flow-dpo report runs/train --view runs/view          with links to its trees, in a copy that `flow-dpo view` wrote

reads all sources that are named, and writes `report.html`, a single self-contained file.
Invariant: a source that is empty or broken is listed with its fault; if all are, nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from flow_dpo.core.errors import ConfigError, StorageError, expect
from flow_dpo.report.compose import compose
from flow_dpo.report.document import Report
from flow_dpo.report.html import render_page
from flow_dpo.report.sources import read_sources
from flow_dpo.report.view_links import ViewCopy
from flow_dpo.runs.callbacks.progress import print_safe
from flow_dpo.runs.files import write_whole
from flow_dpo.runs.live import Live
from flow_dpo.runs.resolve import command_line, resolve
from flow_dpo.runs.writable import check_writable

_WHAT = (
    "Write a report on the given runs, evaluations, traces, comparisons and judges' verdicts: "
    "flow-dpo report RUN_OR_COMPARISON... --output_dir OUT"
)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Settings of a report: its folder and its content."""

    output_dir: str = "runs/report"
    """The folder to write to. A report that is already there is overwritten."""
    view: str | None = None
    """A folder that flow-dpo view --export wrote. The report links to the problems in it."""

    def __post_init__(self) -> None:
        expect(self, "to name a folder", lambda value: bool(value.strip()), "output_dir")


def parse(argv: Sequence[str]) -> tuple[list[Path], ReportSettings]:
    """The sources and the settings. Raises `ConfigError` if no source is named."""
    parsed = resolve("flow-dpo report", _WHAT, argv, {"report": ReportSettings()}, others="sources", doc=__doc__ or "")
    if not parsed["sources"]:
        raise ConfigError(
            "expected a run, an evaluation, traces, a comparison or a judge's verdicts to report on, found none: "
            "flow-dpo report FOLDER..."
        )
    return [Path(source) for source in parsed["sources"]], parsed["report"]


def report(argv: Sequence[str]) -> int:
    """`flow-dpo report`."""
    paths, settings = parse(argv)
    folder = Path(settings.output_dir)
    check_writable(folder)
    view = None if settings.view is None else ViewCopy.read(Path(settings.view), beside=folder)
    console = Console()
    with Live(console) as live:
        live.doing(f"reading {len(paths)} sources")
        sources = read_sources(paths)
        live.doing("drawing the page")
        made = compose(sources, command=command_line(), view=view)
        write(made, folder)
    for finding in (*made.answers.learned, *made.answers.distrust):
        print_safe(console, finding)
    print_safe(console, f"Written to {folder / 'report.html'}")
    return 0


def write(made: Report, folder: Path) -> None:
    """Write report.html. Raises `StorageError` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "report.html", render_page(made))
    except OSError as error:
        raise StorageError(
            f"could not write the report to {folder}: {error}; free some space, or name another --output_dir"
        ) from error
