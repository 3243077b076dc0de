r"""Value of a formula: sums, products, fractions, powers, roots, pi, factorials, and variables at one fixed point.

The only reader of arithmetic: `equivalence` compares answers with it, `evaluate.step_validity` checks equations. A
rational number is exact. Roots have 200 digits, pi about 110, and a variable stands for a fixed number. So two values
that differ are different, but two inexact ones that agree prove nothing: computer algebra decides.

    closed_form("\\frac{1}{2}+1")     Formula(3/2, exact=True)
    closed_form("2\\sqrt{3}")         Formula(3.4641..., exact=False)
    closed_form("9^9^9"), closed_form("\\sin 1")    None, None    too large to compute here; not supported

Invariant: every intermediate value is bounded (40,000 bits; powers before they are computed), as are depth and length.
Nothing is evaluated as code.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 200
MAX_DEPTH = 40
MAX_BITS = 40_000
"""For comparison, 2004! has 19,000 bits."""
DIGITS = 200
"""Digits of a square root."""
MAX_RADICAND_BITS = 200
"""Larger radicands are refused, so that no cancellation uses up all digits of the root."""

PI = Fraction(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651"
)
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|[A-Za-z](?:_(?:\{\w{1,9}\}|\w))?|\S", re.ASCII)
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|(?i:sin|cos|tan|cot|sec|csc|log|exp|ln|mod|max|min|gcd|lcm|and|or|not))(?![A-Za-z])"
)
_VARIABLE = re.compile(r"[A-Za-z](?:_.+)?|\\(?:alpha|beta|gamma|theta|lambda|mu|omega|phi|rho|sigma|tau)")
_CLOSING = {"(": ")", "{": "}", "[": "]"}


class Formula(NamedTuple):
    """A value: an exact rational number, or an approximation, or the value of an expression at one fixed point."""

    value: Fraction
    exact: bool
    variables: bool = False

    def same(self, other: Formula, scale: Fraction = Fraction(1)) -> bool | None:
        """Whether this is `scale` times the other; None if the available digits cannot tell."""
        a, b = self.value, other.value * scale
        if self.exact and other.exact:
            return a == b
        return None if abs(a - b) * 10**50 <= max(abs(a), abs(b)) else False


def closed_form(text: str) -> Formula | None:
    """The value of a canonical string, or None if it is no supported formula, or too large."""
    if len(text) > MAX_CHARS or _WORD.search(text):
        return None
    reader = _Reader(_TOKEN.findall(text)[::-1])
    try:
        value = reader.sum()
    except _NotClosedForm:
        return None
    return None if reader.tokens else Formula(value, reader.exact, reader.variables)


class _NotClosedForm(ValueError):
    """The text is no supported formula, or too large."""


class _Reader:
    """A recursive-descent parser over the tokens of one canonical string."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        """The tokens still to be read, with the next one last."""
        self.depth, self.exact, self.variables = 0, True, False

    def next_is(self, *wanted: str) -> bool:
        return bool(self.tokens) and self.tokens[-1] in wanted

    def take(self, *wanted: str) -> str:
        """Consume and return the next token if it is one of these; otherwise return ""."""
        return self.tokens.pop() if self.next_is(*wanted) else ""

    def sum(self) -> Fraction:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _NotClosedForm
        value = self.product()
        while sign := self.take("+", "-"):
            value = _bounded(value + self.product() if sign == "+" else value - self.product())
        self.depth -= 1
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while self.tokens:
            if token := self.take("*", "/"):
                value = _bounded(value * self.signed()) if token == "*" else _divide(value, self.signed())
            elif self.next_is("\\sqrt", "\\frac", "\\pi", "(", "{") or _VARIABLE.fullmatch(self.tokens[-1]):
                value = _bounded(value * self.power())  # "2\sqrt{3}", "2x"; two numerals are not a product
            else:
                break
        return value

    def signed(self) -> Fraction:
        sign = 1
        while token := self.take("+", "-"):
            sign = -sign if token == "-" else sign
        return sign * self.power()

    def power(self) -> Fraction:
        base = self.atom()
        while self.take("!"):
            if not self.exact or base.denominator != 1 or not 0 <= base <= 3_000:
                raise _NotClosedForm
            base = Fraction(math.factorial(int(base)))
        if not self.take("^"):
            return base
        sign = -1 if self.take("-") else 1
        exponent = sign * self.atom(mixed=False)
        if self.next_is("^") or exponent.denominator > 2 or _bits(base) * abs(exponent) > MAX_BITS:
            raise _NotClosedForm
        if base == 0 and exponent <= 0:
            raise _NotClosedForm
        whole = base ** int(exponent.numerator)
        return whole if exponent.denominator == 1 else self.root(whole)

    def atom(self, *, mixed: bool = True) -> Fraction:
        token = self.tokens.pop() if self.tokens else ""
        if token[:1].isdecimal() or (token[:1] == "." and token != "."):
            if len(token) > MAX_CHARS:
                raise _NotClosedForm
            value = Fraction(token)
            if mixed and token.isdecimal() and self.next_is("\\frac"):  # "1\frac{1}{2}" is 3/2
                part = self.atom()
                return value + part if 0 < part < 1 and not self.variables else value * part
            return value
        if token in _CLOSING:
            value = self.sum()
            if not self.take(_CLOSING[token]):
                raise _NotClosedForm
            return value
        if token == "\\frac":
            top = self.argument()
            return _divide(top, self.argument())
        if token == "\\sqrt" and not self.next_is("["):
            return self.root(self.argument())
        if token == "\\pi":
            self.exact = False
            return PI
        if _VARIABLE.fullmatch(token) and token not in ("e", "i"):  # "e" and "i" can be the constants
            self.exact, self.variables = False, True
            return 1 + Fraction(int.from_bytes(re.sub(r"[{}]", "", token).encode()) % 99_991, 99_991)
        raise _NotClosedForm

    def argument(self) -> Fraction:
        r"""The argument of a command: a group, or one token; of a numeral only the first digit ("\frac12")."""
        if self.tokens and self.tokens[-1].isdecimal() and len(self.tokens[-1]) > 1:
            digits = self.tokens.pop()
            self.tokens += [digits[1:], digits[0]]
        return self.atom(mixed=False)

    def root(self, value: Fraction) -> Fraction:
        top, bottom = math.isqrt(max(value.numerator, 0)), math.isqrt(value.denominator)
        if value >= 0 and top * top == value.numerator and bottom * bottom == value.denominator:
            return Fraction(top, bottom)
        if value < 0 or (self.exact and _bits(value) > MAX_RADICAND_BITS):
            raise _NotClosedForm
        self.exact = False
        return Fraction(math.isqrt(value.numerator * 10 ** (2 * DIGITS) // value.denominator), 10**DIGITS)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise _NotClosedForm
    return value


def _divide(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise _NotClosedForm
    return _bounded(top / bottom)
