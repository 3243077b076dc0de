"""What a step checker says of a solution: its lines, each with its fault, and whether the whole is sound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLine:
    """One line of a solution."""

    text: str
    fault: str = ""
    """What is wrong with it; "" where nothing is, or where nothing could be checked."""
    given_up: bool = False
    """It belongs to an attempt that was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSolution:
    """Result of a step checker on one solution."""

    lines: tuple[CheckedLine, ...]
    sound: bool | None
    """Every step is right, and nothing is missing; None where no step could be checked."""
