"""Figures that only a report has: a forest plot of a comparison's differences, and the shape of one tree.

Line charts are in `runs.charts`, which a run's own picture shares. Invariant: nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.runs.charts import BLUE, CYCLE, GREEN, GREY, INK, MARKERS, RED, label, open_figure, to_svg


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
