"""Is a row what its file promises? Raises `DataError` with the place where it is not.

    number(row, "accuracy", "runs/a/metrics.jsonl, line 3")     0.41, or None where the row has none
    -> runs/a/metrics.jsonl, line 3: expected a number in accuracy, found str ('high')

Invariant: what is absent or null is None; only what is there and wrong is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.core.errors import DataError

Row = Mapping[str, Any]


def number(row: Row, name: str, place: str) -> float | None:
    """A finite number."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _wrong(place, "a number", name, value)
    return value


def needed_number(row: Row, name: str, place: str) -> float:
    """A finite number that has to be there."""
    value = number(row, name, place)
    if value is None:
        raise _wrong(place, "a number", name, None)
    return value


def index(row: Row, name: str, place: str, below: int) -> int:
    """A whole number from 0 to `below` - 1."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise _wrong(place, f"a whole number from 0 to {below - 1}", name, value)
    return value


def text(row: Row, name: str, place: str) -> str:
    """Words that have to be there."""
    value = row.get(name)
    if not isinstance(value, str):
        raise _wrong(place, "text", name, value)
    return value


def words(row: Row, name: str, place: str) -> str:
    """Words, or "" where there are none."""
    return "" if row.get(name) is None else text(row, name, place)


def mapping(row: Row, name: str, place: str) -> dict[str, Any]:
    """Names and values, empty where there are none."""
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(place, "names and values", name, value)
    return value


def rows(row: Row, name: str, place: str) -> list[dict[str, Any]]:
    """A list of objects, empty where there is none."""
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong(place, "a list of objects", name, value)
    return value


def numbers(row: Row, name: str, place: str) -> tuple[float | None, ...]:
    """A list of numbers, some of them perhaps missing; empty where there is none."""
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _wrong(place, "a list of numbers", name, value)
    return tuple(number({name: item}, name, place) for item in value)


def interval(row: Row, name: str, place: str) -> tuple[float, float] | None:
    """Two numbers, low and high."""
    value = numbers(row, name, place)
    if not value:
        return None
    low, high = value if len(value) == 2 else (None, None)
    if low is None or high is None:
        raise _wrong(place, "two numbers", name, row.get(name))
    return low, high


def strings(row: Row, name: str, place: str) -> Sequence[str]:
    """A list of words, empty where there is none."""
    value = row.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(place, "a list of text", name, value)
    return value


def _wrong(place: str, expected: str, name: str, found: Any) -> DataError:
    what = "none" if found is None else f"{type(found).__name__} ({str(found)[:40]!r})"
    return DataError(f"{place}: expected {expected} in {name}, found {what}")
