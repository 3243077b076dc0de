"""Line charts over the problems seen, for reports and for a run's own picture (`progressive.png`).

    save_png(path, [Panel(y="accuracy (%)", lines=[Series(label="all so far", x=[16, 48], y=[40.0, 35.0])])], ...)

Invariant: text is never parsed as mathematics, missing values leave a gap, no legend hides a line, no axis clips one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import visible

COLOURS = {
    "ink": "#1c2024", "grid": "#d5d9de", "blue": "#1560ae", "orange": "#b35000", "green": "#1f7a34",
    "purple": "#7540a6", "red": "#b3261e", "grey": "#5c646d",
}  # fmt: skip
"""Colours for a light page, by name."""
_INK, _GRID, *_CYCLE = COLOURS.values()
_GREY = _CYCLE[-1]
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", "-", "--")
_STYLE = {
    "text.parse_math": False, "font.size": 12, "font.family": "DejaVu Sans",
    "axes.labelsize": 12, "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11,
    "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.edgecolor": _GRID, "grid.color": _GRID, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line over x, with its interval if there is one."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    y: str
    """Label of the y axis, with its unit."""
    lines: Sequence[Series] = ()
    title: str = ""
    bounds: tuple[float | None, float | None] = (None, None)
    reference: float | None = None
    """Where to draw a thin line for the neutral value, such as chance or zero."""
    marked: bool = True
    """Whether a PNG marks the points of a line."""


def save_png(path: Path, panels: Sequence[Panel], *, x: str, height: float) -> None:
    """Write a PNG on white with the panels one above the other. They share the x axis, of whole numbers; `x` is its
    label with the unit, and `height` the height of a panel in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = _STYLE
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Matplotlib only guesses the width of such a letter.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        # Without pyplot, whose backend is the user's: a notebook would show the figure.
        figure = Figure(figsize=(6.4, height * len(panels)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
        for panel, axis in zip(panels, axes, strict=True):
            _draw_panel(axis, panel, named=axis is axes[-1])
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[-1].set_xlabel(x)
        figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})


def accuracy_series(rows: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Progressive validation in per cent, from the rows of metrics.jsonl: the last window first, then all so far.

    A window about as long as the run adds nothing and is left out.
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


def _draw_panel(axis: Any, panel: Panel, *, named: bool) -> None:
    """`named`: this panel has the label of the x axis, so its legend is placed further down."""
    if panel.reference is not None:
        axis.axhline(panel.reference, color=_GREY, linewidth=1)
    # 1. Lines, each with its band. They are not clipped: a line on the axis, as of a role without pairs, stays whole.
    alpha = 0.18 if len(panel.lines) < 3 else 0.1
    for index, line in enumerate(panel.lines):
        look = {"color": _CYCLE[index % 6], "ls": _DASHES[index % 6], "clip_on": False, "zorder": 3}
        look["marker"] = _MARKERS[index % 6] if panel.marked else ""
        axis.plot(line.x, _gaps(line.y), label=_label(line.label, 44), **look)
        if line.low:
            axis.fill_between(
                line.x, _gaps(line.low), _gaps(line.high), color=_CYCLE[index % 6], alpha=alpha, linewidth=0
            )
    axis.set_ylabel(panel.y)
    axis.set_ylim(*panel.bounds)
    if panel.title:
        axis.set_title(_label(panel.title, 60), fontsize=12, loc="left", pad=8)
    # 2. The legend, below the axes so that it covers nothing.
    if any(line.label for line in panel.lines):
        longest = max(len(_label(line.label, 44)) for line in panel.lines)
        columns = max(1, min(3, int(400 / (45 + 6.2 * longest))))  # points: the axes' width, a marker, a letter
        axis.legend(loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=3.4 if named else 1.9, ncols=columns)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _label(text: str, most: int) -> str:
    """A name that fits and does not reorder the text around it; matplotlib would hide one that begins with "_"."""
    line = " ".join(text.split())
    # Names often differ only at their ends.
    head = most // 2
    shown = visible(line if len(line) <= most else f"{line[:head]}\u2026{line[head + 1 - most :]}")
    return f" {shown}" if shown.startswith("_") else shown
