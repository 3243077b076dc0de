"""Formatting of a report's numbers: shares, intervals, differences, p-values.

    0.4063           ->  "40.6 %"              a share
    (0.255, 0.577)   ->  "25.5 to 57.7 %"      its interval
    0.116            ->  "+11.6"               a difference, in percentage points
    1e-7             ->  "< 0.0001"            a p-value
    None             ->  "-"                   unknown, which is not zero

Invariant: the same number is written in the same way everywhere in a report.
"""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"
"""Shown if a value is unknown or does not exist."""


def share(value: float | None) -> str:
    """A share in per cent, with one decimal."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def interval(bounds: Sequence[float | None] | None) -> str:
    """The bounds of a share, in per cent."""
    if bounds is None or len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return NOTHING
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"


def points(value: float | None) -> str:
    """A difference of two shares, in percentage points, with its sign."""
    return NOTHING if value is None else f"{100 * value:+.1f}"


def points_interval(low: float | None, high: float | None) -> str:
    """The bounds of a difference, in percentage points."""
    return NOTHING if low is None or high is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def p_value(value: float | None) -> str:
    """A p-value with two digits; a small one as a bound."""
    if value is None:
        return NOTHING
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return NOTHING if value is None else f"{value:,.0f}"


def counts(values: Sequence[float | None] | None) -> str:
    """The numbers of several seeds: one number if all are equal, otherwise each."""
    there = [value for value in values or () if value is not None]
    if not there:
        return NOTHING
    if len(set(there)) == 1:
        return count(there[0])
    return ", ".join(count(value) for value in values or ())


def seconds(value: float | None) -> str:
    """A duration: seconds below two minutes, minutes below two hours, hours above."""
    if value is None:
        return NOTHING
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number that is neither a share nor a count."""
    return NOTHING if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def band(value: float | None, bounds: Sequence[float | None] | None) -> str:
    """A number with two decimals, and its interval."""
    if value is None:
        return NOTHING
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return f"{value:.2f}"
    return f"{value:.2f} ({bounds[0]:.2f} to {bounds[1]:.2f})"


def short(text: str, most: int = 48) -> str:
    """A name on one line, cut if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "\u2026"
