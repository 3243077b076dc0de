"""Layout of a report's drawings: the position of each line, tick and bar, in per cent of the drawing.

`templates/plots.html` draws them as SVG. Lines stretch with the page and text keeps its size, so one drawing fits a
phone and a wide column. Example:

    Scale.over([0.0, 0.93])     ticks at 0, 0.2, ... 1; `at(0.5)` is 50.0

Invariant: nothing is measured here, and an unknown value leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flow_dpo.report.document import Bar, Chart, Forest, Lanes
from flow_dpo.runs.charts import Panel, Series

_MARKED = 16
"""Most points of a line that are marked one by one."""
_LETTER = 1.6
"""Width of a digit below a bar on a phone, in per cent of the drawing's width."""
_MOST_ROWS, _FARTHEST = 0.8, 2.0
"""A forest's scale reaches twice as far as four fifths of its rows; a row beyond it has an arrow at the edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis: its bounds and its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(
        cls, values: Iterable[float], *, low: float | None = None, high: float | None = None, most: int = 5,
        whole: bool = False,
    ) -> Scale:  # fmt: skip
        """A scale over all finite values; bounds that are not given lie on ticks."""
        there = [value for value in values if math.isfinite(value)] or [0.0]
        least, greatest = min(there) if low is None else low, max(there) if high is None else high
        if greatest - least <= 1e-9 * max(abs(greatest), abs(least)):
            least, greatest = least - (0.5 if low is None else 0.0), least + 0.5
        rough = (greatest - least) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        step = max(step, 1.0) if whole else step
        first, last = math.floor(least / step + 1e-9), math.ceil(greatest / step - 1e-9)
        begin, end = first * step if low is None else low, last * step if high is None else high
        ticks = [tick * step for tick in range(first, last + 1)]
        inside = tuple(tick + 0.0 for tick in ticks if begin - 1e-9 * step <= tick <= end + 1e-9 * step)
        return cls(low=begin, high=end, ticks=inside)

    def at(self, value: float) -> float:
        """Per cent of the way from `low` to `high`, clamped to the scale."""
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)

    def marks(self, *, down: bool = False) -> list[tuple[float, str]]:
        """Position and text of each tick; with `down`, from the top."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(100 - self.at(tick) if down else self.at(tick), f"{tick:,.{digits}f}") for tick in self.ticks]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A line: its path and the band of its interval in a box of 100 by 100, and its marked points."""

    label: str
    path: str
    band: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """A panel with its layout."""

    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    lines: list[Drawn]
    reference: float | None


def lay_out_panel(panel: Panel, chart: Chart) -> Axes:
    """The layout of a panel; all panels of a chart share one x axis."""
    over = [value for one in chart.panels for line in one.lines for value in line.x]
    x = Scale.over(over, low=0.0, high=max(over, default=1.0), whole=True)
    values = [v for line in panel.lines for part in (line.y, line.low, line.high) for v in part if v is not None]
    values += [] if panel.reference is None else [panel.reference]
    y = Scale.over(values, low=panel.bounds[0], high=panel.bounds[1])
    return Axes(
        x=x.marks(),
        y=y.marks(down=True),
        lines=[_drawn(line, x, y) for line in panel.lines if any(value is not None for value in line.y)],
        reference=None if panel.reference is None else round(100 - y.at(panel.reference), 2),
    )


def _drawn(line: Series, x: Scale, y: Scale) -> Drawn:
    def place(at: int, values: Sequence[float | None]) -> tuple[float, float] | None:
        value = values[at]
        if value is None or not math.isfinite(value):
            return None
        return x.at(line.x[at]), round(100 - y.at(value), 2)

    points = [place(at, line.y) for at in range(len(line.x))]
    band = ""
    for run in _runs([place(at, line.low) for at in range(len(line.x))] if line.low else []):
        upper = [point for at in reversed(run) if (point := place(at, line.high)) is not None]
        lower = [point for at in run if (point := place(at, line.low)) is not None]
        band += _path([*lower, *upper]) + "Z"
    path = "".join(_path([point for at in run if (point := points[at]) is not None]) for run in _runs(points))
    there = [point for point in points if point is not None]
    return Drawn(label=line.label, path=path, band=band, points=tuple(there) if len(there) <= _MARKED else ())


def _runs(points: Sequence[object | None]) -> list[list[int]]:
    """Indices of the known points, one list per stretch without a gap."""
    found: list[list[int]] = []
    for at, point in enumerate(points):
        if point is not None:
            if at and points[at - 1] is not None:
                found[-1].append(at)
            else:
                found.append([at])
    return found


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestScale:
    """A forest's axis."""

    scale: Scale
    marks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        """Per cent of the width."""
        return self.scale.at(value)

    def beyond(self, value: float) -> int:
        """-1 or 1 for a value off the scale, to the left or to the right; otherwise 0."""
        return (value > self.scale.high + 1e-9) - (value < self.scale.low - 1e-9)


def lay_out_forest(forest: Forest) -> ForestScale:
    """One scale for all rows of a forest."""
    rows = [
        [value for value in (one.mean, *(one.inner or ()), *(one.outer or ())) if value is not None]
        for _, effects in forest.groups
        for one in effects
    ]
    values = [value for row in rows for value in row]
    if forest.reference is not None:
        reach = sorted(max((abs(value - forest.reference) for value in row), default=0.0) for row in rows)
        most = _FARTHEST * reach[math.ceil(_MOST_ROWS * (len(reach) - 1))]
        values = [min(max(value, forest.reference - most), forest.reference + most) for value in values]
        values.append(forest.reference)
    scale = Scale.over(values, most=4)
    return ForestScale(scale=scale, marks=scale.marks())


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneBars:
    """A lane's bars: what each shows, where it begins, and its width."""

    name: str
    bars: list[tuple[str, float, float]]
    texts: list[tuple[float, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLine:
    """A time line with its layout."""

    rows: list[LaneBars]
    marks: list[tuple[float, str]]
    kinds: list[str]


def lay_out_lanes(lanes: Lanes) -> TimeLine:
    """The position of each bar; of texts that would overlap, the first is shown."""
    end = max((bar.end for bar in lanes.bars), default=1.0)
    scale = Scale(low=0.0, high=end, ticks=Scale.over([0.0, end]).ticks)
    inside = Scale(low=0.0, high=end, ticks=tuple(tick for tick in scale.ticks if tick <= end))
    rows: list[LaneBars] = []
    for lane, name in enumerate(lanes.lanes):
        mine = sorted((bar for bar in lanes.bars if bar.lane == lane), key=lambda bar: bar.start)
        drawn = [(bar.what, scale.at(bar.start), round(scale.at(bar.end) - scale.at(bar.start), 2)) for bar in mine]
        rows.append(LaneBars(name=name, bars=drawn, texts=_apart(mine, scale)))
    return TimeLine(rows=rows, marks=inside.marks(), kinds=list(dict.fromkeys(bar.what for bar in lanes.bars)))


def _apart(bars: Sequence[Bar], scale: Scale) -> list[tuple[float, str]]:
    free, found = 0.0, list[tuple[float, str]]()
    for bar in bars:
        middle, half = scale.at((bar.start + bar.end) / 2), _LETTER * (len(bar.text) + 0.5)
        if bar.text and middle - half >= free and middle + half <= 100:
            found.append((middle, bar.text))
            free = middle + half
    return found
