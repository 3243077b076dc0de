r"""Exact value of a formula: sums, products, fractions, powers, roots, pi and small factorials.

The one arithmetic reader: `equivalence` compares answers by it, `evaluate.step_validity` checks equations with it. The
value is an exact `Fraction` where it is rational and a float where a root or pi makes it irrational.

    closed_form("\\frac{1}{2}+1")    Fraction(3, 2)
    closed_form("2\\sqrt{3}")         3.4641016151377544
    closed_form("9^9^9")              None    larger than this file computes
    closed_form("x+1")                None    not a number

Invariant: every intermediate value is bounded before it is computed (1,500 bits, or 1e15), so are depth and length, and
nothing is evaluated as code.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

Value = Fraction | float
"""Exact where it is rational."""

MAX_CHARS = 200
MAX_DEPTH = 40
MAX_BITS = 1_500

_VARIABLES = frozenset("abcdfghjklmnopqrstuvwxyzABCDFGHJKLMNOPQRSTUVWXYZ")
"""e and i may be the constants."""
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|.)", re.DOTALL | re.ASCII)
_DIGITS = frozenset("0123456789.")
_CLOSING = {"(": ")", "{": "}"}


def closed_form(text: str, *, at_point: bool = False) -> Value | None:
    """The number that a canonical string stands for, or None where it is none or too large to look at.

    With `at_point`, variables are allowed and stand for fixed positive numbers: two expressions of different value
    there are different. (Equal values prove nothing.)
    """
    if len(text) > MAX_CHARS:
        return None
    reader = _Reader(text, at_point)
    try:
        value = reader.sum()
    except (_NotClosedForm, OverflowError):
        return None
    return None if reader.tokens else value


class _NotClosedForm(ValueError):
    """The text is not a number in closed form, or one too large to look at."""


class _Reader:
    """A recursive descent over one canonical string. Numbers are bounded before they are computed."""

    def __init__(self, text: str, at_point: bool) -> None:
        self.tokens = _TOKEN.findall(text)[::-1]
        """What is left to read, the next one last."""
        self.at_point = at_point
        self.depth = 0

    def take(self, *wanted: str) -> str:
        """The next token where it is one of these; "" where it is another."""
        return self.tokens.pop() if self.tokens and self.tokens[-1] in wanted else ""

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NotClosedForm
        value = self.product()
        while sign := self.take("+", "-"):
            value = _bounded(value + self.product() if sign == "+" else value - self.product())
        self.depth -= 1
        return value

    def product(self) -> Value:
        value = self.signed()
        while self.tokens:
            token = self.tokens[-1]
            if self.take("*", "/"):
                value = _bounded(value * self.signed()) if token == "*" else _divide(value, self.signed())
            elif token in ("\\sqrt", "\\pi", "(") or self.is_variable(token):
                value = _bounded(value * self.power())  # "2\sqrt{3}", "2x"; two numerals are not a product
            else:
                break
        return value

    def signed(self) -> Value:
        sign = 1
        while token := self.take("+", "-"):
            sign = -sign if token == "-" else sign
        return sign * self.power()

    def power(self) -> Value:
        base = self.atom()
        if self.take("!"):
            if not isinstance(base, Fraction) or base.denominator != 1 or not 0 <= base <= 20:
                raise _NotClosedForm
            base = Fraction(math.factorial(int(base)))
        if not self.take("^"):
            return base
        sign = -1 if self.take("-") else 1
        return _power(base, sign * self.atom())

    def atom(self) -> Value:
        token = self.tokens.pop() if self.tokens else ""
        if token[:1] in _DIGITS and token != ".":
            return Fraction(token)
        if token in _CLOSING:
            value = self.sum()
            if not self.take(_CLOSING[token]):
                raise _NotClosedForm
            return value
        if token == "\\frac":
            return _divide(self.braced(), self.braced())
        if token == "\\sqrt":
            return _power(self.braced(), Fraction(1, 2))
        if token == "\\pi":
            return math.pi
        if self.is_variable(token):
            return 1 + Fraction(ord(token.lower()) * 37 % 101, 101)  # upper and lower case alike: algebra decides
        raise _NotClosedForm

    def braced(self) -> Value:
        if not self.tokens or self.tokens[-1] != "{":
            raise _NotClosedForm
        return self.atom()

    def is_variable(self, token: str) -> bool:
        return self.at_point and token in _VARIABLES


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction):
        too_large = max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS
    else:
        too_large = not math.isfinite(value) or abs(value) > 1e15
    if too_large:
        raise _NotClosedForm
    return value


def _divide(top: Value, bottom: Value) -> Value:
    if bottom == 0:
        raise _NotClosedForm
    return _bounded(top / bottom)


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size * abs(exponent) > MAX_BITS or (base == 0 and exponent <= 0):
            raise _NotClosedForm
        return base ** int(exponent)
    if isinstance(base, Fraction) and base >= 0 and exponent == Fraction(1, 2):
        top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
        if top * top == base.numerator and bottom * bottom == base.denominator:
            return Fraction(top, bottom)
    if base <= 0 or abs(exponent) > 100 or base > 1e9:
        raise _NotClosedForm
    return _bounded(float(base) ** float(exponent))
