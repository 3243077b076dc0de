"""Line charts over the problems seen, as SVG for a report and as PNG for a run's folder (`progressive.png`).

    draw("yield", [Panel(y="nodes with a pair (%)", lines=[Series(label="answer", x=[16, 48], y=[40.0, 35.0])])], ...)

Everything is drawn in the light colours of `COLOURS`. In an SVG each of them becomes the page's variable of that name,
so that a page shows the same drawing in light and in dark:

    <path style="fill: none; stroke: #1c2024"/>   ->   <path fill="none" stroke="var(--ink)"/>

Invariant: text is never read as markup or mathematics, missing values leave a gap, and an SVG holds no style sheet, no
`style` attribute and no address, so that a page may forbid all of them; its text stays text, which can be searched.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import visible

COLOURS = {
    "ink": "#1c2024", "grid": "#d5d9de", "blue": "#1560ae", "orange": "#b35000", "green": "#1f7a34",
    "purple": "#7540a6", "red": "#b3261e", "grey": "#5c646d",
}  # fmt: skip
"""Name: colour on a light page."""
INK, GRID, BLUE, ORANGE, GREEN, PURPLE, RED, GREY = COLOURS.values()
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", "-", "--")
_NAMES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}

_WIDTH = 6.4
"""Inches. Narrow, so that text can still be read where the figure fills a phone's width."""
_STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 12, "font.family": "DejaVu Sans",
    "axes.labelsize": 12, "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": GRID, "grid.color": GRID, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line over x, with its interval where there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True, kw_only=True)
class Level:
    """A value that has no x: a horizontal line with its interval."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    y: str
    """The axis' name, with its unit."""
    lines: Sequence[Series] = ()
    levels: Sequence[Level] = field(default=())
    title: str = ""
    bounds: tuple[float | None, float | None] = (None, None)
    reference: float | None = None
    """A thin line at a value that means "nothing": chance, or zero."""
    marked: bool = True
    """Points have markers."""


def draw(name: str, panels: Sequence[Panel], *, x: str, alt: str, height: float = 2.7) -> str:
    """An `<svg>` of panels one above the other over the same x, a whole number whose name is given with its unit.
    `alt` is the text for a reader who cannot see it."""
    with open_figure(name, len(panels), height) as (figure, axes):
        _draw_panels(axes, panels, x)
        return to_svg(figure, alt)


def save_png(path: Path, panels: Sequence[Panel], *, x: str, height: float) -> None:
    """The same as a PNG on white."""
    with open_figure(path.stem, len(panels), height) as (figure, axes):
        _draw_panels(axes, panels, x)
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def accuracy_series(rows: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Progressive validation in per cent, from the rows of metrics.jsonl: the last window first, then all so far.

    A window as long as the run shows nothing of its own and is left out.
    """
    last = rows[-1]
    window = last.get("progressive/window_problems")
    kinds = [("window_", f"last {window:.0f} problems")] if window and last["problems_seen"] > 1.2 * window else []
    seen = [row["problems_seen"] for row in rows]
    series: list[Series] = []
    for kind, label in [*kinds, ("", "all so far")]:
        y, low, high = (
            [100 * row[f"progressive/{kind}{name}"] for row in rows] for name in ("accuracy", "low", "high")
        )
        series.append(Series(label=label, x=seen, y=y, low=low, high=high))
    return series


def _draw_panels(axes: Sequence[Any], panels: Sequence[Panel], x: str) -> None:
    for panel, axis in zip(panels, axes, strict=True):
        _draw_panel(axis, panel, named=axis is axes[-1])
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel(x)


def _draw_panel(axis: Any, panel: Panel, *, named: bool) -> None:
    """`named`: the x axis of this panel bears the name, so that the legend stands further below."""
    if panel.reference is not None:
        axis.axhline(panel.reference, color=GREY, linewidth=1)
    # 1. Lines, each with its band.
    alpha = 0.18 if len(panel.lines) < 3 else 0.1
    for index, line in enumerate(panel.lines):
        colour, marker = CYCLE[index % 6], MARKERS[index % 6] if panel.marked else ""
        axis.plot(
            line.x, _gaps(line.y), label=label(line.label, 44), color=colour, marker=marker, ls=_DASHES[index % 6]
        )
        if line.low:
            axis.fill_between(line.x, _gaps(line.low), _gaps(line.high), color=colour, alpha=alpha, linewidth=0)
    # 2. Levels, dotted, in the colours that follow.
    for index, level in enumerate(panel.levels, start=len(panel.lines)):
        axis.axhline(level.value, color=CYCLE[index % 6], linestyle=(0, (1, 1.2)), label=label(level.label, 44))
        axis.axhspan(level.low, level.high, color=CYCLE[index % 6], alpha=0.12, linewidth=0)
    axis.set_ylabel(panel.y)
    axis.set_ylim(*panel.bounds)
    if panel.title:
        axis.set_title(label(panel.title, 60), fontsize=12, loc="left", pad=8)
    # 3. The legend below the axes, where it covers nothing.
    if len(panel.lines) + len(panel.levels) > 1 or any(line.label for line in panel.lines):
        longest = max(len(label(one.label, 44)) for one in (*panel.lines, *panel.levels))
        columns = max(1, min(3, int(400 / (45 + 6.2 * longest))))  # points: the axes' width, a marker, a letter
        axis.legend(loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=3.4 if named else 1.9, ncols=columns)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def label(text: str, most: int) -> str:
    """A name that neither leaves the figure nor reorders it; one that begins with "_" would be hidden otherwise."""
    line = " ".join(text.split())
    # Names often differ at their ends alone.
    head = most // 2
    shown = visible(line if len(line) <= most else f"{line[:head]}\u2026{line[head + 1 - most :]}")
    return f" {shown}" if shown.startswith("_") else shown


@contextmanager
def open_figure(name: str, num_panels: int, height: float) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of this name and its axes; `height` is a panel's, in inches. Names of one page must differ."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Only the width of such a letter is guessed: the reader's own fonts draw it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        # Without pyplot, whose backend is the user's: a notebook shows figures by it.
        figure = Figure(figsize=(_WIDTH, height * num_panels), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(num_panels, 1, squeeze=False)
        yield figure, list(axes[:, 0])


def to_svg(figure: Any, alt: str) -> str:
    """The `<svg>` element of a figure, its colours named by `COLOURS`, itself named for screen readers."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    drawn = re.sub(r"<(metadata|style)\b.*?</\1>", "", file.getvalue(), flags=re.DOTALL)
    start, box = drawn.index("<svg"), re.search(r'viewBox="([\d. ]+)"', drawn)
    body = drawn[drawn.index(">", start) + 1 :].rstrip()
    opening = f'<svg viewBox="{box[1] if box else "0 0 1 1"}" role="img" aria-label="{html.escape(visible(alt))}">'
    # Text between the tags has no "<" of its own: matplotlib escapes it, and what is changed here is tags alone.
    return opening + re.sub(r"<[^<>]+>", _plain_tag, body)


def _plain_tag(tag: re.Match[str]) -> str:
    """One tag without a style attribute, an address, or a group's id."""
    plain = re.sub(r' style="([^"]*)"', _attributes, tag[0]).replace("xlink:href", "href")
    plain = re.sub(r'^<g id="[^"]*"', "<g", plain)
    return re.sub("|".join(_NAMES), lambda colour: _NAMES[colour[0]], plain)


def _attributes(style: re.Match[str]) -> str:
    """A style's declarations as attributes; of a font its size and weight."""
    shown = ""
    for name, _, value in (part.strip().partition(":") for part in style[1].split(";") if part.strip()):
        if name == "font":
            size, bold = re.search(r"([\d.]+)px", value), re.search(r"\b(bold|700)\b", value)
            shown += f' font-size="{size[1]}"' if size else ""
            shown += ' font-weight="bold"' if bold else ""
        else:
            shown += f' {name}="{value.strip()}"'
    return shown
