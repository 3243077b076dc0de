"""Wrong steps of a solution as ranges in its text, and in the nodes that wrote it.

    "She loses 17: 46 - 17 = 39\nAnswer: 39"   ->   [{"from": 0, "to": 27, "why": "the result does not follow"}, ...]

Lines are checked by `evaluate.step_validity`: by the step checker of the problem's data set, or else by the equations
that they state. A node's text is located in the solution that it belongs to; an abandoned attempt is checked as a text
of its own; anything outside a solution (a plan beside it, a choice) is not checked.

Invariants: a range counts UTF-16 code units, like a page's strings; a text without a range is not claimed to be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from flow_dpo.core.types import Problem
from flow_dpo.evaluate.step_validity import checked_steps

_MOST_CHARS = 20_000
"""Longer solutions are not checked, since a page has to open quickly."""

Span = tuple[int, int, str]
"""Start, end (exclusive), and why it is wrong; in characters."""


def wrong_spans(problem: Problem, text: str) -> list[Span]:
    """The lines that state something false, in order."""
    if not text or len(text) > _MOST_CHARS:
        return []
    found: list[Span] = []
    at = 0
    for line in checked_steps(problem, text).lines:
        start = text.find(line.text, at)
        if start < 0 or not line.text:
            continue
        at = start + len(line.text)
        if line.fault and not line.given_up:
            found.append((start, at, line.fault))
    return found


def places_of_parts(text: str, parts: Sequence[str]) -> list[int | None]:
    """Where each part is in a text that was assembled from some of them, in order; None for a part that is not in it.

    `"ab\\ncd"` of `["xx", "ab", "cd", "yy"]` gives [None, 0, 3, None]. The parts that belong to it follow one another,
    at most a few characters of fixed text apart; of several ways, the one that covers most of the text is taken.
    """
    best: list[int | None] = [None] * len(parts)
    most = 0
    for last in range(len(parts) - 1, -1, -1):
        places = _backwards(text, parts[: last + 1])
        covered = sum(len(part) for part, place in zip(parts, places, strict=False) if place is not None)
        if covered > most:
            best, most = [*places, *[None] * (len(parts) - last - 1)], covered
        if most >= len(text.strip()):
            break
    return best


def _backwards(text: str, parts: Sequence[str]) -> list[int | None]:
    """The same for a text that ends with the last part."""
    places: list[int | None] = [None] * len(parts)
    limit = len(text)
    for at in range(len(parts) - 1, -1, -1):
        part = parts[at]
        start = text.rfind(part, 0, limit) if part.strip() else -1
        if start < 0 or limit - (start + len(part)) > _MOST_BETWEEN:
            if limit == len(text):
                return places
            continue
        places[at], limit = start, start
    return places


_MOST_BETWEEN = 200
"""Characters of fixed text between two parts, such as the text that reopens a refused answer."""


def faults(spans: Sequence[Span], text: str, start: int = 0) -> list[dict[str, Any]]:
    """Ranges in a piece of a solution, in the page's format; `start` is where the piece begins in the solution.

    If a line continues in the next piece, its range here has `"continues": True`, and its reason is shown only once.
    """
    units = partial(_code_units, text, text.isascii() or max(text) <= "\uffff")
    found: list[dict[str, Any]] = []
    for first, last, why in spans:
        here, there = max(first - start, 0), min(last - start, len(text))
        if here < there:
            found.append({"from": units(here), "to": units(there), "why": why})
            if last - start > len(text):
                found[-1]["continues"] = True
    return found


def _code_units(text: str, plain: bool, at: int) -> int:
    """A position in characters, converted to UTF-16 code units."""
    return at if plain else at + sum(char > "\uffff" for char in text[:at])
