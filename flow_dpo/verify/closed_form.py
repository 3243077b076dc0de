r"""What number does a formula without variables stand for?

`closed_form` reads sums, products, fractions, powers, roots, pi and small factorials. The value is an exact `Fraction`
where it is rational and a float where a root or pi makes it irrational.

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
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|.)", re.DOTALL | re.ASCII)


def closed_form(text: str, *, at_point: bool = False) -> Value | None:
    """The number that a canonical string stands for, or None where it is none or too large to look at.

    With `at_point`, variables are allowed and stand for fixed positive numbers: two expressions of different value
    there are different. (Equal values prove nothing.)
    """
    if len(text) > MAX_CHARS:
        return None
    try:
        return _Reader(text, at_point).whole()
    except (_NotClosedForm, OverflowError):
        return None


class _NotClosedForm(ValueError):
    """The text is not a number in closed form, or one too large to look at."""


class _Reader:
    """A recursive descent over one canonical string. Numbers are bounded before they are computed."""

    def __init__(self, text: str, at_point: bool) -> None:
        self.at_point = at_point
        self.tokens = [match[1] for match in _TOKEN.finditer(text)]
        self.at = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise _NotClosedForm
        self.at += 1
        return token

    def whole(self) -> Value:
        value = self.sum()
        if self.peek():
            raise _NotClosedForm
        return value

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NotClosedForm
        value = self.product()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value = _bounded(value + sign * self.product())
        self.depth -= 1
        return value

    def product(self) -> Value:
        sign = 1
        while self.peek() in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        value = self.power()
        while True:
            token = self.peek()
            if token in ("*", "/"):
                self.take()
                factor = -self.power() if self.peek() == "-" and self.take() else self.power()
                value = _divide(value, factor) if token == "/" else _bounded(value * factor)
            elif token in ("\\sqrt", "\\pi", "(") or self.is_variable(token):
                # "2\sqrt{3}", "2x". Two numerals side by side are not a product.
                value = _bounded(value * self.power())
            else:
                return _bounded(sign * value)

    def power(self) -> Value:
        base = self.atom()
        if self.peek() == "!":
            self.take()
            if not isinstance(base, Fraction) or base.denominator != 1 or not 0 <= base <= 20:
                raise _NotClosedForm
            base = Fraction(math.factorial(int(base)))
        if self.peek() != "^":
            return base
        self.take()
        sign = -1 if self.peek() == "-" and self.take() else 1
        return _power(base, sign * self.atom())

    def atom(self) -> Value:
        token = self.take()
        if token[0] in "0123456789." and token != ".":
            return Fraction(token)
        if token in ("(", "{"):
            value = self.sum()
            self.take(")" if token == "(" else "}")
            return value
        if token == "\\frac":
            self.take("{")
            top = self.sum()
            self.take("}")
            self.take("{")
            bottom = self.sum()
            self.take("}")
            return _divide(top, bottom)
        if token == "\\sqrt":
            self.take("{")
            value = self.sum()
            self.take("}")
            return _power(value, Fraction(1, 2))
        if token == "\\pi":
            return math.pi
        if self.is_variable(token):
            return 1 + Fraction(ord(token.lower()) * 37 % 101, 101)  # upper and lower case alike: algebra decides
        raise _NotClosedForm

    def is_variable(self, token: str) -> bool:
        """e and i may be the constants."""
        return self.at_point and len(token) == 1 and token in _VARIABLES


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise _NotClosedForm
        return value
    if not math.isfinite(value) or abs(value) > 1e15:
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
