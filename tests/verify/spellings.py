"""Spellings of a rational number, for tests that compare numbers: the same value in many voices."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def words(number: int, *, joint: str = " ") -> str:
    """An English number word; `joint` stands after "hundred" ("one hundred and five")."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    for size, name in ((10**9, "billion"), (10**6, "million"), (1_000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = words(number % size, joint=joint) if number % size else ""
            between = joint if name == "hundred" else " "
            return f"{words(number // size, joint=joint)} {name}" + (f"{between}{rest}" if rest else "")
    raise AssertionError(number)


def repeating(value: Fraction) -> str | None:
    r"""A decimal such as "0.1\overline{6}", where its period is short."""
    digits, rest, seen = "", value - math.floor(value), dict[Fraction, int]()
    while rest and rest not in seen:
        if len(digits) > 12:
            return None
        seen[rest] = len(digits)
        rest *= 10
        digits += str(math.floor(rest))
        rest -= math.floor(rest)
    if not rest:
        return f"{math.floor(value)}.{digits or '0'}"
    return f"{math.floor(value)}.{digits[: seen[rest]]}\\overline{{{digits[seen[rest] :]}}}"


def spellings(value: Fraction, random: Random, *, algebra: bool = False) -> list[str]:
    """Texts that say a number; with `algebra`, such as only computer algebra reads."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    top, bottom = size.numerator, size.denominator
    many = random.randint(2, 9)
    if algebra:
        return [
            f"{sign}\\sqrt[3]{{\\frac{{{top**3}}}{{{bottom**3}}}}}",
            f"\\log_{{2}} 2^{{{sign}\\frac{{{top}}}{{{bottom}}}}}",
            f"{sign}\\frac{{{top}}}{{{bottom}}}(\\sin^2 {many}+\\cos^2 {many})",
            f"{sign}\\left|-\\frac{{{top}}}{{{bottom}}}\\right|",
            f"{sign}\\frac{{{top}}}{{{bottom}}} + \\lfloor \\frac{{1}}{{{many}}} \\rfloor",
        ]
    texts = [
        f"{sign}\\frac{{{top}}}{{{bottom}}}", f"{sign}{top}/{bottom}",
        f"$\\dfrac{{{sign}{many * top}}}{{{many * bottom}}}$", f"x = {sign}\\tfrac{{{top}}}{{{bottom}}}",
        f"{sign}{top} \\div {bottom}", f"({sign}{top})\\cdot\\frac1{{{bottom}}}",
        f"{value.numerator + many * bottom}/{bottom} - {many}", f"\\frac{{{sign}{top}}}{{{bottom}}} \\text{{ apples}}",
        f"{sign}\\sqrt{{\\frac{{{top**2}}}{{{bottom**2}}}}}", f"{sign}{top} \\times {bottom}^{{-1}}",
    ]  # fmt: skip
    decimal = repeating(size)
    if decimal:
        texts += [sign + decimal, f"{sign}{decimal} = x", f"{many} + {sign}{decimal} - {many}"]
    if bottom > 1 and size > 1:
        texts += [
            f"{sign}{top // bottom} {top % bottom}/{bottom}",
            f"{sign}{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}",
        ]
    if bottom == 1:
        minus = "minus " if sign else ""
        texts += [
            f"{value.numerator}", f"{value.numerator:,}", f"{value.numerator:,}".replace(",", "\\,"),
            f"${value.numerator:,}.00",
            f"{value.numerator:,}".replace(",", "{,}"), f"{minus}{words(top)}", f"{minus}{words(top, joint=' and ')}",
            f"{value.numerator}.0", f"{sign}{top / 1000:.3f}e3", f"{value.numerator}.", f"{sign}00{top}",
            f"\\text{{{minus}{top}}}",
        ]  # fmt: skip
        if top % 12 == 0 and top:
            texts.append(f"{minus}{words(top // 12)} dozen")
        if top % 1000 == 0 and top:
            texts.append(f"{sign}{top // 1000} thousand")
    return texts
