r"""Step validity: which lines of a solution state something false.

A right answer may follow from a wrong step. Each equation that a text states, "a + b = c" with + - * / and brackets,
is computed exactly, in fractions; nothing is ever evaluated as code.

    "She pays 3 * 1.5 = 4.5, and 10 - 4.5 = 6 are left.\nAnswer: 6"
    ->  Equation("3 * 1.5 = 4.5", holds=True)   Equation("10 - 4.5 = 6", holds=False)

Invariant: what cannot be read as arithmetic (letters, units inside, division by zero) is not an equation and is not
judged; a text without equations is neither valid nor invalid. A rounded result ("10 / 3 = 3.33") holds if it is the
exact one rounded to the digits that are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from flow_dpo.core.types import Problem
from flow_dpo.data.checked_steps import CheckedLine, CheckedSolution
from flow_dpo.data.datasets import checked_by_data_set
from flow_dpo.verify.closed_form import closed_form

MAX_CHARS = 200
"""Longer runs of numbers and signs are not read."""
_SIGNS = "-+*/\u00d7\u00f7\u00b7\u2212"
_INSIDE = rf"[{_SIGNS}\d.,()$ \t]"
# Only at the beginning of a run: from every place inside it, a million digits would be read two hundred times each.
_CHAIN = re.compile(rf"(?<!{_INSIDE}){_INSIDE}{{1,{MAX_CHARS}}}(?:={_INSIDE}{{1,{MAX_CHARS}}})+")
_COMPUTES = re.compile(rf"\d\s*\)*\s*[{_SIGNS}]")
_PLAIN = re.compile(r"[-+*/()\d.\s]+")
_NO_STEP = re.compile(r"(?:^|[-+*/(])\s*\+|[\d)]\s*\(|(?<!\d)\.|[\d.]{41}")
"""What `closed_form` would read but steps are not written with: "+3", "2(3)", ".5", and numbers of over 40 digits."""
_MARKER = re.compile(r"\s*[-+*]\s+(?=[\d($])")
"""Before an equation at the beginning of a line: a list's dash, or a sign."""
_NEAR = 16
"""Characters around a chain that tell whether it is a whole expression."""
_PART_OF_WORDS = re.compile(
    r"(?:(?:%|\d/\d|\b(?:percent|half|thirds?|quarters?|fourths?|fifths?))\s+of"
    r"|\b(?:twice|half|double|triple|thrice|times|plus|minus|less|over|by|per|percent|squared|cubed|root|[a-z])"
    r"|\\(?:times|cdot|div|pm|ast))\s*\$?\s*$",
    re.IGNORECASE,
)
"""Words before a number that make it a part of a larger expression."""
_GOES_ON = re.compile(r"[a-z](?![a-z])|\\(?:times|cdot|div|pm|ast|frac|d?frac|sqrt|pi)\b", re.IGNORECASE)
"""What continues a number behind it: a letter on its own, or an operation."""
_SPELLINGS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "$": " "})
_GROUPED = re.compile(r"(?<![\d.])(\d{1,3})((?:,\d{3})+)(?!\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """One statement of equality, as found in a text."""

    text: str
    holds: bool


def equations(text: str) -> list[Equation]:
    """The equations of a text, in order. A chain, "2 * 3 + 1 = 6 + 1 = 7", gives one per equals sign."""
    return [found for line in text.splitlines() for found in _line_equations(line)]


def checked_steps(problem: Problem, text: str) -> CheckedSolution:
    """A solution line by line, checked by its data set's step checker, or else by the equations it states."""
    found = checked_by_data_set(problem, text)
    if found is not None:
        return found
    lines: list[CheckedLine] = []
    held: list[bool] = []
    for line in text.splitlines():
        stated = equations(line)
        held += [equation.holds for equation in stated]
        untrue = "; ".join(equation.text for equation in stated if not equation.holds)
        lines.append(CheckedLine(text=line, fault=f"not true: {untrue}" if untrue else ""))
    return CheckedSolution(lines=tuple(lines), sound=all(held) if held else None)


def has_invalid_step(problem: Problem, text: str) -> bool | None:
    """Whether a solution has a wrong step; None if it states none that could be checked."""
    sound = checked_steps(problem, text).sound
    return None if sound is None else not sound


def invalid_rate(solutions: Iterable[tuple[Problem, str]]) -> dict[str, float | int | None]:
    """The share of solutions with a wrong step among those that could be checked, and the counts behind it."""
    found = [has_invalid_step(problem, text) for problem, text in solutions]
    checked = [invalid for invalid in found if invalid is not None]
    return {
        "num_solutions": len(found),
        "num_checked": len(checked),
        "num_invalid": sum(checked),
        "invalid_rate": sum(checked) / len(checked) if checked else None,
    }


def _line_equations(line: str) -> list[Equation]:
    """The equations of a line. A dash before the first of them can be a list's or a sign: it holds if either does."""
    listed = _MARKER.match(line)
    found = [one for sides in _chains(line[listed.end() :] if listed else line) for one in _chain_equations(sides)]
    if not listed or not found:
        return found
    signed = [one for sides in _chains(line) for one in _chain_equations(sides)]
    if len(signed) != len(found):
        return found
    return [replace(one, holds=one.holds or other.holds) for one, other in zip(found, signed, strict=True)]


def _chains(line: str) -> Iterator[list[str]]:
    """The sides of each chain of equations, without a first or last side that is only a part of an expression."""
    if "=" not in line:
        return
    for match in _CHAIN.finditer(line):
        if match.end() - match.start() > MAX_CHARS:
            continue
        before, after = line[: match.start()][-_NEAR:], line[match.end() :][:_NEAR]
        # Signs that these numbers are not the whole expression: a letter, a power, a percentage, a cut-off run.
        if re.match(r"[\^%=]|\\%", after) or re.match(_INSIDE, before[-1:]) or re.match(_INSIDE, after):
            continue
        if before[-1:] in ("^", "%", "=") or (re.search(r"[^\W\d]$|[_:}\\]$", before) and not match[0][0].isspace()):
            continue
        # "2x - 3 + 1 = 7": the beginning of the run belongs to the letter.
        if match[0].strip()[0] in _SIGNS and re.search(r"[\w})\]|!]$", before.rstrip()):
            continue
        sides = match[0].split("=")
        # "25% of 4 = 0.25 * 4 = 1", "twice 5 + 1 = 11": the first number belongs to the words.
        if _PART_OF_WORDS.search(before) or (re.search(r"[\w%]$", before.rstrip()) and not _COMPUTES.search(sides[0])):
            sides = sides[1:]
        # "8 - 2 = 3x", "2 * 6 = 4 \times 3": more follows the last number.
        if _GOES_ON.match(after) or (after[:1].isalpha() and not match[0][-1].isspace()):
            sides = sides[:-1]
        yield [side.strip() for side in sides]


def _chain_equations(sides: Sequence[str]) -> Iterator[Equation]:
    values = [value_of(side) for side in sides]
    for (left, one), (right, other) in pairwise(zip(sides, values, strict=True)):
        # A statement has to compute something: "x = 5" and "5 = 5" state no step.
        if one is None or other is None or not (_COMPUTES.search(left) or _COMPUTES.search(right)):
            continue
        yield Equation(text=f"{left} = {right.rstrip(' .,')}", holds=one == other or _rounded(one, right, other))


def _rounded(exact: Fraction, written: str, value: Fraction) -> bool:
    """Whether a decimal is the exact value rounded to the digits written: 3.33 for 10 / 3, but not 3.34."""
    plain = written.strip().rstrip(".,").replace("$", "").strip()
    if not re.fullmatch(r"-?\d+\.\d+", plain):
        return False
    unit = Fraction(1, 10 ** len(plain.partition(".")[2]))
    return abs(exact - value) <= unit / 2


def value_of(text: str) -> Fraction | None:
    """The exact value of a sum, product or quotient of numbers; None if the text is none of these, or too long."""
    joined = _GROUPED.sub(lambda match: match[0].replace(",", ""), text.translate(_SPELLINGS))
    plain = joined.strip().rstrip(".,").strip()
    if len(text) > MAX_CHARS or not _PLAIN.fullmatch(plain) or _NO_STEP.search(plain):
        return None
    found = closed_form(plain)
    return found.value if found and found.exact else None
