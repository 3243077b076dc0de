"""Figures that only a report has: a forest plot of a comparison's differences, the shape of one tree, a time line.

Line charts are in `runs.charts`, which a run's own picture shares. Invariant: nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.runs.charts import BLUE, CYCLE, GREEN, GREY, INK, MARKERS, ORANGE, PURPLE, RED, label, open_figure, to_svg


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One arm's difference, with a thick interval and, where there is one, a thin one."""

    label: str
    mean: float
    low: float | None
    high: float | None
    outer: tuple[float, float] | None = None


def draw_forest(name: str, effects: Sequence[Effect], *, x: str, alt: str) -> str:
    """A forest plot: an arm a row, the first on top, a line at no difference."""
    with open_figure(name, 1, 0.9 + 0.36 * len(effects)) as (figure, axes):
        axis = axes[0]
        axis.axvline(0, color=INK, linewidth=1)
        for row, effect in enumerate(reversed(effects)):
            apart = effect.low is not None and effect.high is not None and (effect.low > 0 or effect.high < 0)
            colour = BLUE if apart and effect.mean > 0 else RED if apart else GREY
            if effect.outer is not None:
                axis.plot(effect.outer, [row, row], color=colour, linewidth=1)
            if effect.low is not None and effect.high is not None:
                axis.plot([effect.low, effect.high], [row, row], color=colour, linewidth=4, solid_capstyle="butt")
            axis.plot([effect.mean], [row], "o" if apart else "D", color=colour, markersize=7)
        axis.set_yticks(range(len(effects)), [label(effect.label, 32) for effect in reversed(effects)])
        axis.set_ylim(-0.6, len(effects) - 0.4)
        axis.grid(False, axis="y")
        axis.set_xlabel(x)
        return to_svg(figure, alt)


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A node of a tree's shape."""

    x: float
    y: float
    role: int
    """Whose completion it is, as an index into the roles."""
    parent: tuple[float, float] | None
    preferred: str = ""


def draw_shape(
    name: str, dots: Sequence[Dot], roles: Sequence[str], ends: Sequence[tuple[float, float, str]], *, alt: str
) -> str:
    """A tree's shape: a rollout a row, a turn a column; `ends` are the verdicts, right of each rollout's leaf."""
    rows = 1 + max((dot.y for dot in dots), default=0)
    with open_figure(name, 1, 1.3 + 0.24 * rows) as (figure, axes):
        axis = axes[0]
        for dot in dots:
            if dot.parent is not None:
                (px, py), bend = dot.parent, dot.x - 0.5
                axis.plot([px, bend, dot.x], [py, dot.y, dot.y], color=GREY, linewidth=1, zorder=1)
        for index, role in enumerate(roles):
            mine = [(dot.x, dot.y) for dot in dots if dot.role == index]
            look = {"marker": MARKERS[index % 6], "color": CYCLE[index % 6], "linestyle": "none", "markersize": 6}
            axis.plot(*zip(*mine, strict=True), label=label(role, 20), zorder=2, **look)
        for dot in dots:
            sign = {"chosen": "+", "rejected": "\u2212"}.get(dot.preferred, "")
            axis.annotate(sign, (dot.x, dot.y), (0, 4), textcoords="offset points", ha="center", fontsize=11)
        for x, y, status in ends:
            colour = {"correct": GREEN, "wrong": RED}.get(status, GREY)
            axis.annotate(status, (x, y), (8, 0), textcoords="offset points", va="center", color=colour, fontsize=10)
        axis.set_ylim(rows - 0.4, -0.7)
        axis.set_xlim(-0.6, max((dot.x for dot in dots), default=0) + 1.6)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_yticks([])
        axis.grid(False, axis="y")
        axis.set_xlabel("depth (turns before)")
        axis.set_ylabel("rollouts")
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return to_svg(figure, alt)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a lane of a time line did from when to when, in the unit of the axis."""

    lane: int
    what: str
    start: float
    end: float
    text: str = ""
    """Stands below the bar where there is room."""


_BAR_COLOURS = {"sampling": BLUE, "learning": ORANGE, "grading": GREEN, "starting": PURPLE, "waiting": GREY}
_BAR_LETTER = 0.02
"""Share of the axis that a letter below a bar takes."""


def draw_lanes(name: str, lanes: Sequence[str], bars: Sequence[Bar], *, x: str, alt: str) -> str:
    """A time line: a lane a row, the first on top. What is waited is thin, all else fills its row."""
    with open_figure(name, 1, 1.5 + 0.34 * len(lanes)) as (figure, axes):
        axis = axes[0]
        end = max((bar.end for bar in bars), default=1.0)
        for what in dict.fromkeys([*_BAR_COLOURS, *(bar.what for bar in bars)]):
            mine = [bar for bar in bars if bar.what == what]
            height = 0.16 if what == "waiting" else 0.68
            for row in sorted({bar.lane for bar in mine}):
                spans = [(bar.start, bar.end - bar.start) for bar in mine if bar.lane == row]
                axis.broken_barh(
                    spans, (row - height / 2, height), facecolor=_BAR_COLOURS.get(what, RED), edgecolor="none"
                )
            if mine:
                axis.plot([], [], "s", color=_BAR_COLOURS.get(what, RED), markersize=8, label=label(what, 20))
        free = 0.0
        for bar in sorted(bars, key=lambda one: one.start):
            middle, half = (bar.start + bar.end) / 2, _BAR_LETTER * (len(bar.text) + 0.5) * end / 2
            if bar.text and middle - half >= free:
                axis.text(middle, bar.lane + 0.6, bar.text, ha="center", va="center", fontsize=10)
                free = middle + half
        axis.set_yticks(range(len(lanes)), [label(lane, 16) for lane in lanes])
        axis.set_ylim(len(lanes) - 0.1, -0.6)
        axis.set_xlim(0, end)
        axis.grid(False, axis="y")
        axis.set_xlabel(x)
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, columnspacing=1.0, handletextpad=0.2)
        return to_svg(figure, alt)
