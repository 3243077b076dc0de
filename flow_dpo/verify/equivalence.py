r"""Equivalence of two final answers, as far as it can be decided without computer algebra.

`same(gold, answer)` is True or False where it is certain and None where computer algebra has to look. Certain are
equal canonical strings, numbers in closed form (exact rationals; roots and pi in floating point), tuples and lists of
such numbers, and names. The conventions (units, percent signs, rounding) are in the table of docs/verifier.md.

    same("1,000", "$1000.0")            True     the same number
    same("\\frac{1}{2}", "0.5")         True
    same("18", "18 apples")             True     a unit is not part of the number
    same("5", "5.1")                    False
    same("x+1", "1+x")                  None     algebra has to look

Invariant: no input takes longer than its length; numbers are bounded before they are computed, and nothing is evaluated
as code.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from flow_dpo.verify.closed_form import Value, closed_form

MAX_CHARS = 1_000
"""Longer answers are not compared at all, unless their texts are equal."""

_UNICODE = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2014", "-"),  # minus sign and dashes
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **dict.fromkeys("\u2061\u200b\ufeff\x00", ""),
        "\u00d7": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "√": "\\sqrt ", "∞": "\\infty ", "≤": "\\le ",
        "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "°": "^\\circ ", "½": "\\frac{1}{2}", "²": "^2", "³": "^3",
    }
)  # fmt: skip
_ALIASES = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "leq": "\\le", "leqslant": "\\le", "geq": "\\ge",
    "geqslant": "\\ge", "neq": "\\ne", "lt": "<", "gt": ">", "cdot": "*", "times": "*", "div": "/", "colon": ":",
    "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "dots": "\\ldots",
    **dict.fromkeys(["left", "right", "displaystyle", "textstyle", "big", "Big", "bigl", "bigr", "limits", "rm"], ""),
    **dict.fromkeys(["quad", "qquad"], " "),
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+|.)\s*", re.DOTALL)
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}")
_WRAPPED_UNIT = re.compile(
    r"(\S)\s*\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|mbox)\s*\{(?!\s*(?:and|or)\b)"
    r"[A-Za-z .,'/-]{1,60}\}(?:\^\{?[23]\}?)?$"
)
_SEPARATOR = re.compile(r"(?:[,;\s]*\b(?:and|or)\b[,;\s]*|\s*;\s*|(?:\s*,\s*){1,4})")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})")
_PERCENT = re.compile(r"\s*\b(?:percentage|percent|pct)\b", re.IGNORECASE)
_SPACE = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9.])")


def tidy(text: str) -> str:
    r"""The same LaTeX on one line, without delimiters and without what only looks: what algebra is handed."""
    text = text.translate(_UNICODE)
    if "matrix" not in text and "array" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # an escape too many: "\\frac"
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!\s*)(?=\d{3}(?!\d))", "", text)  # thousands: "1,\!000", "1{,}000"
    text = re.sub(r"\\!\s*", "", text.replace("{,}", ","))
    text = re.sub(r"(?<!\\)(?:\\\\)*\\[()\[\]]|\\\$|\$", lambda match: "\\\\" * (match[0].count("\\") // 2), text)
    return " ".join(text.split()).strip().strip('*_`"').rstrip(" .,;:").strip()


def for_algebra(text: str) -> str:
    r"""A text as computer algebra gets it: tidy, and without the unit that follows a formula, "2x\text{ cm}^2"."""
    return _BARE_UNIT.sub(r"\1", _WRAPPED_UNIT.sub(r"\1", tidy(text))).strip()


def canonical(text: str) -> str:
    """One spelling for answers that differ in spelling alone. Never joins what a space parts: "1 1/2" is not "11/2"."""
    text = _WRAPPED.sub(lambda match: f" {match[1]} ", _WRAPPED.sub(lambda match: f" {match[1]} ", tidy(text)))
    text = _DEGREES.sub(" ", text)
    text = _COMMAND.sub(_command, text).replace("~", " ")
    text = _PERCENT.sub("%", text)
    for typed, command in (("!=", "\\ne "), ("<=", "\\le "), (">=", "\\ge "), ("**", "^")):
        text = text.replace(typed, command)
    text = _SEPARATOR.sub(",", " ".join(text.split())).strip().strip(",")
    text = re.sub(r"\\sqrt ?(\d)", r"\\sqrt{\1}", text)  # TeX takes one digit
    text = re.sub(r"\\frac ?(\d) ?(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac ?(\d) ?\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac ?\{[^{}]{1,50}\}) ?(\d)", r"\1{\2}", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return _SPACE.sub("", text).rstrip(".").strip()


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name.isalpha():
        spelled = _ALIASES.get(name, f"\\{name}")
        return spelled + " " if spelled[-1:].isalpha() else spelled
    return {" ": " ", ",": " ", ";": " ", ":": " ", "%": "%", "#": "#", "&": "&", "_": "_"}.get(name, f"\\{name}")


# ---- numbers --------------------------------------------------------------------------------------------------------

_UNITS = (
    "cm|mm|km|m|dm|ft|in|inch|inche|feet|foot|yd|yard|mile|mi|meter|metre|centimeter|centimetre|kilometer|kilometre|g|gm|"
    "kg|mg|gram|kilogram|lb|lbs|pound|ounce|oz|ton|s|sec|second|min|minute|h|hr|hour|day|week|month|year|yr|l|ml|liter|"
    "litre|gallon|degree|deg|dollar|cent|euro|rupee|mph|kmph|unit|square|sq|cubic|cu|people|person|point|usd"
)
_UNIT = re.compile(rf"\s*(?:{_UNITS})s?(?:/(?:{_UNITS}))?(?:\^?\{{?[23]\}}?)?(?![A-Za-z0-9^_])", re.IGNORECASE)
_BARE_UNIT = re.compile(rf"([\d}})])\s+(?:(?:{_UNITS})s?(?:\^\{{?[23]\}}?)?\s*){{1,3}}$", re.IGNORECASE)
_WORDS = re.compile(r" [A-Za-z](?:\^[23])?|(?: ?[A-Za-z][A-Za-z'.-]+,?)+(?:\^[23])?")
_NOT_UNITS = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|third|quarter|squared|cubed|times|plus|minus|more|"
    r"less|not|mod|over|per|pi|sin|cos|tan|log|ln|sqrt|k|bn|mn)\b",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?", re.ASCII)


class Number(NamedTuple):
    """A number in closed form, how many decimals it was written with, whether as a percentage, and its unit."""

    value: Value
    decimals: int
    percent: bool
    unit: str


def number(text: str) -> Number | None:
    """Read a canonical string as a number; None where it is none, or one too large to look at."""
    text = text.strip().removeprefix("USD").strip("€£¥₹ ")
    unit = ""
    match = _PLAIN.match(text)
    if match and match.end() and text[match.end() :]:
        rest = text[match.end() :]
        spaced = rest.startswith(" ") and _WORDS.fullmatch(rest.rstrip(". "))
        glued = len(rest) > 1 and _UNIT.fullmatch(rest)  # "5km"; "4m" may be a product
        if (spaced or glued) and not _NOT_UNITS.search(rest):
            text, unit = text[: match.end()], rest.strip(" .").lower()
    elif match is None or not match.end():
        tail = re.search(r"(?<=[})]) ?([A-Za-z]{2,15}|m|g)(?:\^[23])?$", text)
        if tail and not _NOT_UNITS.search(tail[1]):
            text, unit = text[: tail.start()], tail[1].lower()
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    mixed = re.fullmatch(r"([-+]?)(\d{1,9}) (\d{1,9})/(\d{1,9})", text, re.ASCII)
    if mixed:
        text = f"{mixed[1]}({mixed[2]}+{mixed[3]}/{mixed[4]})"
    plain = _PLAIN.fullmatch(text)
    if plain and any(char in "0123456789" for char in text):
        if len(text) > 400:
            return None
        decimals = len(text.partition(".")[2])
        return Number(Fraction(text.replace(",", "").rstrip(".")), decimals, percent, unit)
    value = closed_form(text)
    return None if value is None else Number(value, 0, percent, unit)


_MEASURES: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(size))
    for dimension, sizes in {
        "time": {"s sec second": 1, "min minute": 60, "h hr hour": 3_600, "day": 86_400, "week": 604_800},
        "length": {"mm millimeter": 1, "cm centimeter": 10, "dm": 100, "m meter metre": 1_000, "km kilometer": 10**6},
        "imperial length": {"in inch inche": 1, "ft foot feet": 12, "yd yard": 36, "mi mile": 63_360},
        "mass": {"mg": 1, "g gm gram": 1_000, "kg kilogram": 1_000_000},
        "volume": {"ml milliliter": 1, "l liter litre": 1_000},
        "money": {"cent": 1, "dollar usd": 100},
        "count of years": {"month": 1, "year yr": 12},
    }.items()
    for names, size in sizes.items()
    for name in names.split()
}
"""The dimension and size of each unit that is measured, in the singular; "apples" are not."""


def _measure(unit: str) -> tuple[str, Fraction] | None:
    return _MEASURES.get(unit) or _MEASURES.get(unit.removesuffix("s"))


def _close(gold: Number, answer: Number, scale: Fraction | int = 1) -> bool | None:
    """Equal values; where one was rounded, equal in every decimal that was written, at least six of them."""
    a, b = Fraction(gold.value), Fraction(answer.value) * scale
    if a == b:
        return True
    difference, size = abs(a - b), max(abs(a), abs(b))
    written = [each.decimals for each in (gold, answer) if each.decimals]
    if written and min(written) >= 6 and difference < Fraction(1, 10 ** min(written)) and difference * 10**5 <= size:
        return True
    inexact = isinstance(gold.value, float) or isinstance(answer.value, float)
    if (inexact or (written and max(written) > 9)) and difference * 10**12 <= size:
        return True  # floating point: ours, or the one that a calculator's 119.69999999999999 came from
    return None if inexact and difference * 10**9 <= size else False


def same_number(gold: Number, answer: Number) -> bool | None:
    """The conventions for one number: a unit or a percent sign that one side leaves out is not a difference."""
    ours, theirs = _measure(gold.unit), _measure(answer.unit)
    if ours and theirs and ours != theirs:  # "1 hour" is "60 minutes" and not "1 minute"
        return ours[0] == theirs[0] and _close(gold, answer, theirs[1] / ours[1])
    found = _close(gold, answer)
    if found is not False or gold.percent == answer.percent:
        return found
    return _close(gold, answer, Fraction(1, 100) if answer.percent else 100)


# ---- everything else ------------------------------------------------------------------------------------------------

_NAMED = re.compile(r"(?:[A-Za-z](?:_\w)?|\\[a-z]+) ?=([^=]+)")
_NAME = re.compile(r"[A-Za-z][A-Za-z' -]*")


def _elements(text: str) -> tuple[str, list[str]] | None:
    r"""The kind of brackets and the elements of "(1,2)", "[0,1)", "\{1,2\}" or "1,2"; None where there is no list."""
    kind, body = "", text
    if text[:2] == "\\{" and text[-2:] == "\\}":
        body = text[2:-2]
    elif text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        kind, body = text[0] + text[-1], text[1:-1]
    parts, depth, start = [], 0, 0
    for at, char in enumerate(body):
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return None
        if char == "," and depth == 0:
            parts.append(body[start:at])
            start = at + 1
    parts.append(body[start:])
    return (kind, parts) if depth == 0 and len(parts) > 1 else None


def _same_elements(gold: str, answer: str) -> bool | None:
    ours, theirs = _elements(gold), _elements(answer)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    golds, answers = [number(part) for part in ours[1]], [number(part) for part in theirs[1]]
    if None in golds or None in answers:
        return None
    sides = [each for each in golds if each], [each for each in answers if each]
    if not ours[0]:  # a bare list, or a set: neither order nor repetition counts
        sides = tuple(
            list({each.value: each for each in sorted(side, key=lambda n: n.value)}.values()) for side in sides
        )
    if len(sides[0]) != len(sides[1]):
        return False
    found = [same_number(a, b) for a, b in zip(*sides, strict=True)]
    return False if False in found else None if None in found else True


_NUMERAL = re.compile(r"([0-9A-Za-z]{1,50})_\{?(\d{1,2})\}?", re.ASCII)
_RATIO = re.compile(r"(\d{1,9}):(\d{1,9})", re.ASCII)


def _same_numeral(gold: str, answer: str) -> bool | None:
    """Numerals with a base, "204_5": digit for digit, in the base of the question. A base may be left out."""
    ours, theirs = _NUMERAL.fullmatch(gold), _NUMERAL.fullmatch(answer)
    if any(each and not any(char.isdigit() for char in each[1]) for each in (ours, theirs)):
        return None  # a variable with an index, "x_1"
    if ours and theirs:
        return ours.groups() == theirs.groups()
    written = ours or theirs
    if written is None or not written[1].isdigit():
        return None
    other = answer if ours else gold
    return other == written[1] if other.isdigit() else None


def _same_ratio(gold: str, answer: str) -> bool | None:
    """Ratios, "11:21", and times of day, "12:00"."""
    ours, theirs = _RATIO.fullmatch(gold), _RATIO.fullmatch(answer)
    if not (ours and theirs):
        return None
    a, b, c, d = (int(each) for each in (*ours.groups(), *theirs.groups()))
    return a * d == b * c if b and d else (a, b) == (c, d)


def _is_something_else(text: str) -> bool:
    """Certainly not one number: a name, something unbounded, a matrix, or a list of several different numbers."""
    if text.casefold() in ("yes", "no"):
        return True
    if "\\infty" in text or "\\cup" in text or ("matrix}" in text and ("\\\\" in text or "&" in text)):
        return True
    if _NAME.fullmatch(text) and len(text) > 4 and " " not in text:
        return True
    elements = _elements(text)
    values = [number(part) for part in elements[1]] if elements else []
    return len({each.value for each in values if each}) > 1


def _after_equals(text: str, other: str) -> str:
    r"""The last side of "x = 3" or "1 + 2 = 3" where the other answer has no "=": the value is what counts."""
    other_relation = re.search(r",|<|>|\\(?:ne|le|ge|approx)\b", text)
    if "=" in other or "=" not in text or other_relation:
        return text
    return text.rpartition("=")[2].strip()


def same(gold: str, answer: str) -> bool | None:
    """True or False where certain, None where algebra has to look."""
    # 1. Equal as they stand, or in one spelling.
    if gold.strip() == answer.strip():
        return True if gold.strip() else None
    if max(len(gold), len(answer)) > MAX_CHARS:
        return None
    ours, theirs = canonical(gold), canonical(answer)
    if ours and ours == theirs:
        return True
    named = _NAMED.fullmatch(ours)
    if named and "=" not in theirs:
        ours = named[1].strip()  # the gold names its variable: "x=3"
    theirs = _after_equals(theirs, ours)
    if ours and ours == theirs:
        return True
    # 2. Numbers, numerals in a base, ratios; and a number beside what cannot be one.
    a, b = number(ours), number(theirs)
    if a and b:
        return same_number(a, b)
    for compare in (_same_numeral, _same_ratio):
        found = compare(ours, theirs)
        if found is not None:
            return found
    if (a and _is_something_else(theirs)) or (b and _is_something_else(ours)):
        return False
    # 3. Names.
    left, right = ours.strip("()"), theirs.strip("()")
    if _NAME.fullmatch(left) and _NAME.fullmatch(right):
        return _same_name(left, right)
    # 4. Expressions that differ at one point, and lists of numbers.
    here, there = (closed_form(canonical(for_algebra(each)), at_point=True) for each in (gold, answer))
    if here is not None and there is not None and _differ(here, there):
        return False
    return _same_elements(ours, theirs)


def _same_name(gold: str, answer: str) -> bool | None:
    """Names are equal without case; letters in another order might be a product of variables."""
    left, right = gold.casefold(), answer.casefold()
    if left == right and len(left) > 1:
        return True
    if sorted(left) != sorted(right) and (max(len(left), len(right)) > 3 or {left, right} == {"yes", "no"}):
        return False
    return True if gold == answer else None


def _differ(here: Value, there: Value) -> bool:
    """Two values of expressions at one point; floats may have lost digits."""
    if isinstance(here, Fraction) and isinstance(there, Fraction):
        return here != there
    size = max(abs(here), abs(there))
    return size > 1e-6 and abs(Fraction(here) - Fraction(there)) > Fraction(size) / 10**6
