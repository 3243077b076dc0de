"""How are a report's numbers drawn?

Each function draws lines and points that it is given, and returns an `<svg>` element (`svg.themed`). Example:

    draw("yield", [Panel(y="nodes with a pair (%)", lines=[Series(label="answer", x=[16, 48], y=[40.0, 35.0])])], ...)

Invariant: nothing is computed here, and text is never read as markup or mathematics. Missing values leave a gap.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flow_dpo.core.errors import visible
from flow_dpo.report import svg_theme

_WIDTH = 5.0
"""Inches. Narrow, so that words are still read where the figure fills a phone's width."""
_STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 12, "font.family": "DejaVu Sans",
    "axes.labelsize": 12, "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11,
    "text.color": svg_theme.INK, "axes.labelcolor": svg_theme.INK,
    "xtick.color": svg_theme.INK, "ytick.color": svg_theme.INK,
    "axes.edgecolor": svg_theme.GRID, "grid.color": svg_theme.GRID, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5,
}  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", "-", "--")


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


def draw(name: str, panels: Sequence[Panel], *, x: str, alt: str, height: float = 2.7, whole: bool = False) -> str:
    """Panels one above the other over the same x, whose name is given with its unit; `whole` keeps x to integers."""
    with _figure(name, len(panels), height) as (figure, axes):
        for panel, axis in zip(panels, axes, strict=True):
            _draw_panel(axis, panel, named=axis is axes[-1])
            if whole:
                axis.xaxis.get_major_locator().set_params(integer=True)
        axes[-1].set_xlabel(x)
        drawn = _saved(figure)
    return svg_theme.themed(drawn, visible(alt))


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One arm's difference, with a thick interval and, where there is one, a thin one."""

    label: str
    mean: float
    low: float | None
    high: float | None
    outer: tuple[float, float] | None = None


def forest(name: str, effects: Sequence[Effect], *, x: str, alt: str) -> str:
    """A forest plot: an arm a row, the first on top, a line at no difference."""
    with _figure(name, 1, 0.9 + 0.42 * len(effects)) as (figure, axes):
        axis = axes[0]
        axis.axvline(0, color=svg_theme.INK, linewidth=1)
        for row, effect in enumerate(reversed(effects)):
            apart = effect.low is not None and effect.high is not None and (effect.low > 0 or effect.high < 0)
            colour = svg_theme.BLUE if apart and effect.mean > 0 else svg_theme.RED if apart else svg_theme.GREY
            if effect.outer is not None:
                axis.plot(effect.outer, [row, row], color=colour, linewidth=1)
            if effect.low is not None and effect.high is not None:
                axis.plot([effect.low, effect.high], [row, row], color=colour, linewidth=4, solid_capstyle="butt")
            axis.plot([effect.mean], [row], "o" if apart else "D", color=colour, markersize=7)
        axis.set_yticks(range(len(effects)), [_label(effect.label, 24) for effect in reversed(effects)])
        axis.set_ylim(-0.6, len(effects) - 0.4)
        axis.grid(False, axis="y")
        axis.set_xlabel(x)
        drawn = _saved(figure)
    return svg_theme.themed(drawn, visible(alt))


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A node of a tree's shape."""

    x: float
    y: float
    role: int
    """Which role spoke, as an index into the roles."""
    parent: tuple[float, float] | None
    preferred: str = ""


def shape(
    name: str, dots: Sequence[Dot], roles: Sequence[str], ends: Sequence[tuple[float, float, str]], alt: str
) -> str:
    """A tree's shape: a play a row, a turn a column; `ends` are the verdicts, right of each play's leaf."""
    rows = 1 + max((dot.y for dot in dots), default=0)
    with _figure(name, 1, 1.3 + 0.24 * rows) as (figure, axes):
        axis = axes[0]
        for dot in dots:
            if dot.parent is not None:
                (px, py), bend = dot.parent, dot.x - 0.5
                axis.plot([px, bend, dot.x], [py, dot.y, dot.y], color=svg_theme.GREY, linewidth=1, zorder=1)
        for index, role in enumerate(roles):
            mine = [dot for dot in dots if dot.role == index]
            style = {
                "marker": _MARKERS[index % 6],
                "color": svg_theme.SERIES[index % 6],
                "linestyle": "none",
                "zorder": 2,
            }
            axis.plot([d.x for d in mine], [d.y for d in mine], label=_label(role, 20), markersize=6, **style)
        for side, sign in (("chosen", "+"), ("rejected", "\u2212")):
            for dot in dots:
                if dot.preferred == side:
                    axis.annotate(sign, (dot.x, dot.y), (0, 4), textcoords="offset points", ha="center", fontsize=11)
        for x, y, status in ends:
            colour = {"correct": svg_theme.GREEN, "wrong": svg_theme.RED}.get(status, svg_theme.GREY)
            axis.annotate(status, (x, y), (8, 0), textcoords="offset points", va="center", color=colour, fontsize=10)
        axis.set_ylim(rows - 0.4, -0.7)
        axis.set_xlim(-0.6, max((dot.x for dot in dots), default=0) + 1.6)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_yticks([])
        axis.grid(False, axis="y")
        axis.set_xlabel("depth (turns played before)")
        axis.set_ylabel("plays")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        drawn = _saved(figure)
    return svg_theme.themed(drawn, visible(alt))


def _draw_panel(axis: Any, panel: Panel, *, named: bool) -> None:
    """`named`: the x axis of this panel bears the name, so that the legend stands further below."""
    if panel.reference is not None:
        axis.axhline(panel.reference, color=svg_theme.GREY, linewidth=1)
    for index, line in enumerate(panel.lines):
        colour, y = svg_theme.SERIES[index % 6], _gaps(line.y)
        style = {
            "color": colour,
            "linestyle": _DASHES[index % 6],
            "marker": _MARKERS[index % 6] if panel.marked else "",
        }
        axis.plot(line.x, y, label=_label(line.label, 44), **style)
        if line.low:
            axis.fill_between(
                line.x,
                _gaps(line.low),
                _gaps(line.high),
                color=colour,
                alpha=0.18 if len(panel.lines) < 3 else 0.1,
                linewidth=0,
            )
    for index, level in enumerate(panel.levels, start=len(panel.lines)):
        colour = svg_theme.SERIES[index % 6]
        axis.axhline(level.value, color=colour, linestyle=(0, (1, 1.2)), label=_label(level.label, 44))
        axis.axhspan(level.low, level.high, color=colour, alpha=0.12, linewidth=0)
    axis.set_ylabel(panel.y)
    axis.set_ylim(*panel.bounds)
    if panel.title:
        axis.set_title(_label(panel.title, 60), fontsize=12, loc="left", pad=8)
    shown = len(panel.lines) + len(panel.levels)
    if shown > 1 or (shown == 1 and panel.lines and panel.lines[0].label):
        columns = 1 if panel.levels or _wide(panel) else 2
        axis.legend(loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=3.4 if named else 1.9, ncols=columns)


def _wide(panel: Panel) -> bool:
    return max((len(line.label) for line in panel.lines), default=0) > 16


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _label(text: str, most: int) -> str:
    """A name that neither leaves the figure nor reorders it; one that begins with "_" would be hidden otherwise."""
    line = " ".join(text.split())
    # Names often differ at their ends alone.
    head = most // 2
    shown = visible(line if len(line) <= most else f"{line[:head]}\u2026{line[head + 1 - most :]}")
    return f" {shown}" if shown.startswith("_") else shown


@contextmanager
def _figure(name: str, num_panels: int, height: float) -> Iterator[tuple[Any, list[Any]]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Only the width of such a letter is guessed: the reader's own fonts draw it.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure, axes = pyplot.subplots(
            num_panels, 1, figsize=(_WIDTH, height * num_panels), squeeze=False, layout="constrained"
        )
        try:
            yield figure, list(axes[:, 0])
        finally:
            pyplot.close(figure)


def _saved(figure: Any) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
