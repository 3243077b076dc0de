"""The result of a step checker: a solution's lines, each with its fault, and whether the whole solution is sound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLine:
    """One line of a solution."""

    text: str
    fault: str = ""
    """What is wrong with the line; "" if nothing is, or if nothing could be checked."""
    given_up: bool = False
    """Whether the line belongs to an attempt that the solution abandoned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSolution:
    """The result of a step checker on one solution."""

    lines: tuple[CheckedLine, ...]
    sound: bool | None
    """Whether every step is right and nothing is missing; None if no step could be checked."""
