r"""Equivalence of two final answers, as far as it can be decided without computer algebra.

Each answer is read separately: a number with its unit, a list, tuple or interval, a named value ("x = 3"), a numeral in
a base, a ratio or time, a name. Then the two readings are compared. `same(gold, answer)` is True or False if certain,
and None if computer algebra has to decide. The conventions are in the table of docs/verifier.md.

    same("1,000", "$1000.0")                     True           the same number
    same("18", "18 apples")                      True           a unit that one side leaves out is ignored
    same("36 m/s", "36 km/h")                    False          two measured units are converted
    same("x = 5", "5"), same("-5", "minus 5")    True, True
    same("81, 256", "(256, 81)")                 False          brackets keep their order
    same("x+1", "1+x"), same("4", "2x = 4")      None, None     computer algebra has to decide

Invariant: symmetric; two different rationals are the same only by the stated conventions for decimals, units and
percent signs; time is linear in the input's length; nothing is evaluated as code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from string import ascii_lowercase
from typing import NamedTuple

from flow_dpo.verify.canonical import canonical, is_name
from flow_dpo.verify.choices import Choice, read_choice
from flow_dpo.verify.closed_form import Formula, closed_form
from flow_dpo.verify.words import Unit, is_unit, unit

MAX_CHARS = 1_000
"""Longer answers are not compared, unless their texts are equal."""

_PLAIN = re.compile(r"-?\d{1,9}(?:\.\d{1,5})?", re.ASCII)


def for_algebra(text: str) -> str:
    """A text for computer algebra: its canonical spelling, without the unit that follows a formula."""
    text = canonical(text)
    head, tail = _without_unit(text)
    try:
        unit(tail)
    except ValueError:
        return text
    return head


# ---- reading ---------------------------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """A formula's value, its unit, whether it is a percentage, and its number of decimal places (0 if none)."""

    formula: Formula
    unit: Unit | None
    percent: bool
    decimals: int
    text: str
    first: Unit | None = None
    """For a sum of measures, the unit of its first part; a bare number can be in that unit too."""


class Group(NamedTuple):
    """Several answers. Kinds: "" for a bare list, "{}" for a set; "()", "[]", "(]" and "[)" are ordered."""

    kind: str
    parts: tuple[Answer | None, ...]


class Named(NamedTuple):
    """A value with a name: "x = 3"."""

    name: str
    body: Answer | None


class Ratio(NamedTuple):
    """A ratio, "11:21", or, if it looks like one, a time of day, "3:30 pm"."""

    parts: tuple[int, ...]
    clock: bool
    half: str


class Word(NamedTuple):
    """A name, a choice, an infinity, a numeral in a base."""

    text: str


Answer = Quantity | Group | Named | Ratio | Word

_FUNCTION = re.compile(r"(?:sin|cos|tan|cot|sec|csc|log|exp|mod|max|min|gcd|lcm|ln|det)")
_LITTLE = frozenset(["per", "of", "in", "at", "on", "by", "for", "is", "a", "an"])
_NAME = re.compile(
    rf"[A-Za-z][A-Za-z' .-]*[A-Za-z]|[-+]?\\infty|\\emptyset"
    rf"|(?!{_FUNCTION.pattern})[A-Za-z]{{3,12}} \d{{1,4}}"  # "June 20"
)
_NOTHING = re.compile(r"(?i)(?:there (?:is|are) )?no (?:real )?solutions?|none|(?:the )?empty set|\\\{\\\}")
_NUMERAL = re.compile(r"\(?(-?[0-9A-Za-z]{1,50})\)?_\{?(\d{1,2})\}?", re.ASCII)
_RATIO = re.compile(
    r"(\d{1,9}(?::\d{1,9})+)(?: ?([ap])\.?m\.?)?|(\d{1,2}) ?(?:([ap])\.?m\.?|o'? ?clock)", re.ASCII | re.IGNORECASE
)
_MEASURES = re.compile(r"(\d[\d./]* ?[A-Za-z]+) (\d[\d./]* ?[A-Za-z]+)")


@lru_cache(maxsize=4_096)
def read(text: str) -> Answer | None:
    """The answer that a canonical string states; None if this module cannot read it."""
    ratio, numeral = _RATIO.fullmatch(text), _NUMERAL.fullmatch(text)
    if ratio:
        parts = tuple(int(part) for part in (ratio[1] or f"{ratio[3]}:00").split(":"))
        half = (ratio[2] or ratio[4] or "").lower()
        clock = (
            len(parts) == 2 and parts[0] < 25 and parts[1] < 60 and (not ratio[1] or bool(half) or text[-3:-2] == ":")
        )
        return Ratio(parts, clock, half)
    if numeral and any(char.isdecimal() for char in numeral[1]):
        return Word(f"{numeral[1].lower()}_{numeral[2]}")
    if "\\lor" in text or "\\land" in text:
        return None  # conditions
    if _NOTHING.fullmatch(text):
        return Word("\\emptyset")
    inner = _unwrapped(text)
    if _NAME.fullmatch(inner or text):
        return Word((inner or text).removeprefix("+"))
    parts = _split(inner or text, ",")
    if len(parts) > 1:
        kind = "" if not inner else "{}" if text.startswith(("{", "\\{")) else text[0] + text[-1]
        if "|" in text or "\\mid" in text or ":" in text:
            return None  # a set defined by a condition
        return _group(kind, tuple(read(part) for part in parts))
    measures = _MEASURES.fullmatch(text)
    if measures:
        return _group("", (read(measures[1]), read(measures[2])))
    sides = _split(text, "=")
    if len(sides) > 1:
        return _read_equation(sides)
    if inner and ((text[0], text[-1]) == ("(", ")") or text.startswith("\\{")):
        return read(inner)
    return _read_quantity(text)


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside brackets; the whole text if brackets do not match."""
    depth, start, parts = 0, 0, list[str]()
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return [text]
        if char == separator and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()] if depth == 0 else [text]


def _unwrapped(text: str) -> str:
    """The content of the brackets around a whole text; "" if there are none."""
    start = 2 if text.startswith("\\{") else 1
    if text[:start] not in ("(", "[", "{", "\\{") or text[-1:] not in (")", "]", "}"):
        return ""
    inner = text[start : -2 if text.endswith("\\}") else -1]
    depth = 0
    for char in inner:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return ""
    return inner


def _group(kind: str, parts: tuple[Answer | None, ...]) -> Answer:
    """Several answers as a `Group`, or a sum of measures ("1 hour, 30 minutes") as one `Quantity`."""
    total, last, first = Fraction(0), None, None
    for part in parts:
        if kind or not isinstance(part, Quantity) or not part.unit or not part.formula.exact:
            return Group(kind, parts)
        if last and (part.unit.dimensions != last.dimensions or part.unit.size >= last.size):
            return Group(kind, parts)
        total, last, first = total + part.formula.value * part.unit.size, part.unit, first or part.unit
    return Quantity(Formula(total / last.size, True), last, False, 0, "", first) if last else Group(kind, parts)


def _read_equation(sides: list[str]) -> Answer | None:
    """A named or calculated value: "x = 3", "3 = x", "2 + 13 = 15"; None for anything else, such as "2x = 4"."""
    if is_name(sides[0]):
        return Named(sides[0], read(sides[-1]))
    if len(sides) == 2 and is_name(sides[1]):
        return Named(sides[1], read(sides[0]))
    calculated = [closed_form(side) for side in (*sides[:-1], _without_unit(sides[-1])[0])]
    return read(sides[-1]) if all(value and not value.variables for value in calculated) else None


def _without_unit(text: str) -> tuple[str, str]:
    """A formula, and the words after it, which name its unit."""
    for found in re.finditer(r"(?<![\\A-Za-z_])[A-Za-z]+", text):
        head, tail, word = text[: found.start()].rstrip(), text[found.start() :], found[0]
        spaced = len(head) < found.start()
        known = is_unit(word) or (spaced and word.lower() in _LITTLE)
        if not head or not (known or (spaced and len(word) > 2)) or (len(word) == 1 and not spaced):
            continue
        if _FUNCTION.fullmatch(word) is None and _UNIT_WORDS.fullmatch(tail) and head[-1] in _BEFORE_UNIT:
            return head, tail
    return text, ""


_UNIT_WORDS = re.compile(
    r"(?:(?<=[A-Za-z])(?<!and)(?<!or)(?<!root)(?<!choose)(?<!power)(?<!from)(?<!to)(?<!until)(?<!through)\d{1,3}"
    r"|\^ ?(?:\{ ?)?-?[1-9]|\bper \d+ |\b(?:in (?:19|20)\d\d|on day \d+)\b"
    r"|\(\d[\d.]* [A-Za-z][A-Za-z .]*\)|[A-Za-z .,'/{}()%-])*"
)
"""What can follow a formula as its unit. Digits are allowed as an exponent, in "per 10 eggs", in a name ("CO2"), in a
date and in a remark that counts ("5 apples (2 red)"), but not elsewhere: "42 maybe 43" is not 42."""
_BEFORE_UNIT = frozenset("0123456789)}!%abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _read_quantity(text: str) -> Quantity | None:
    head, tail = _without_unit(text)
    try:
        measure = unit(tail) if tail else None
    except ValueError:
        return None
    number = head.removesuffix("%").strip()
    formula, decimals = closed_form(number), re.fullmatch(r"[-+]?\d*\.(\d+)", number)
    return formula and Quantity(formula, measure, head != number, len(decimals[1]) if decimals else 0, number)


# ---- comparing -------------------------------------------------------------------------------------------------------


def same(gold: str, answer: str) -> bool | None:
    """Whether two answers are equal, if certain; None if computer algebra has to decide. Symmetric."""
    if gold.strip() == answer.strip():
        return True if gold.strip() else None
    if max(len(gold), len(answer)) > MAX_CHARS:
        return None
    if _PLAIN.fullmatch(gold) and _PLAIN.fullmatch(answer):
        return Fraction(gold) == Fraction(answer)
    choices = [read_choice(text) for text in (gold, answer)]
    several = [found.several for found in choices if found]
    if len({*several}) > 1 or any(found and found.undecided for found in choices):
        return False  # "(B) or (C)" is not "(B) 24"; "(B) or" is nothing
    if False in several:  # "(B) 24" is the choice B, and 24
        return _same_choice(choices[0] or gold, choices[1] or answer)
    ours, theirs = canonical(gold), canonical(answer)
    if not ours or not theirs:
        return None
    if (",\\ldots" in ours) != (",\\ldots" in theirs):
        return False
    alike = ours == theirs or (
        ours.replace(" ", "") == theirs.replace(" ", "") and not re.search(r"\d \d", ours + theirs)
    )
    found = True if alike else _compare(read(ours), read(theirs))
    if found is False and "," in gold and "," in answer:  # "81,256" can be a list without spaces
        lists = [read(canonical(re.sub(r",(?=\d{3}(?!\d))", ", ", text))) for text in (gold, answer)]
        found = all(isinstance(each, Group) for each in lists) and bool(_compare(*lists))
    if found is None:  # computer algebra ignores units
        units = [_unit_of(text) for text in (ours, theirs)]
        return False if None not in units and units[0] != units[1] else None
    return found


def _same_choice(gold: Choice | str, answer: Choice | str) -> bool | None:
    """Compare a labelled choice, "(B) 24", with a label, a value, or another labelled choice."""
    if isinstance(gold, Choice) and isinstance(answer, Choice):
        return gold.label == answer.label and same(gold.text, answer.text) is not False
    choice, text = (answer, gold) if isinstance(answer, Choice) else (gold, answer)
    assert isinstance(choice, Choice)
    assert isinstance(text, str)
    bare = text.strip(" ().$")
    return bare == choice.label if re.fullmatch("[A-J]", bare) else same(text, choice.text)


def _unit_of(text: str) -> Unit | None:
    """The unit after a formula of any kind; None if there is none."""
    try:
        return unit(_without_unit(text)[1])
    except ValueError:
        return None


def _compare(a: Answer | None, b: Answer | None) -> bool | None:
    if isinstance(a, Named) and isinstance(b, Named):
        names = [closed_form(each.name) for each in (a, b)]
        alike = a.name == b.name or (names[0] and names[1] and names[0].same(names[1]) is None)  # "x + y" and "y + x"
        # "x = y" is "y = x"
        return _compare(a.body, b.body) if alike else None if names[0] and names[1] else False
    if isinstance(a, Named) or isinstance(b, Named):
        return _compare(a.body if isinstance(a, Named) else a, b.body if isinstance(b, Named) else b)
    if a is None or b is None:
        return None
    if isinstance(a, Group) or isinstance(b, Group):
        return _compare_groups(*(each if isinstance(each, Group) else Group("1", (each,)) for each in (a, b)))
    if isinstance(a, Quantity) and isinstance(b, Quantity):
        return _compare_quantities(a, b)
    if isinstance(a, Ratio) and isinstance(b, Ratio):
        return _compare_ratios(a, b)
    if isinstance(a, Word) and isinstance(b, Word):
        # Lower-case letters in another order are a product of variables.
        product = a.text.islower() and a.text.isalpha() and len(a.text) < 4 and sorted(a.text) == sorted(b.text)
        return a.text.casefold() == b.text.casefold() or product
    return _compare_kinds(a, b) if isinstance(b, Quantity) else _compare_kinds(b, a)


def _compare_groups(a: Group, b: Group) -> bool | None:
    kinds = {a.kind, b.kind}
    if kinds == {""} and all(
        isinstance(each, Quantity) and re.fullmatch("[A-Z]", each.text) for each in a.parts + b.parts
    ):
        return a.parts == b.parts  # capital letters: the order counts
    if kinds <= {"", "{}", "1"}:  # neither order nor repetition counts
        pairs = [(one, others) for ours, others in ((a, b), (b, a)) for one in ours.parts]
        return _all([_any([_compare(one, other) for other in others.parts]) for one, others in pairs])
    # Brackets are ordered; a list without brackets equals a tuple in the same order.
    a, b = _by_name(a), _by_name(b)
    if len(a.parts) != len(b.parts) or (a.kind != b.kind and kinds not in ({"", "()"}, {"", "[]"})):
        return False
    return _all([_compare(one, other) for one, other in zip(a.parts, b.parts, strict=True)])


def _by_name(group: Group) -> Group:
    """The coordinates of a list in their order: "y=4,x=3" as "x=3,y=4"; any other group unchanged."""
    named = [part for part in group.parts if isinstance(part, Named)]
    named.sort(key=lambda part: "s" if part.name == "\\theta" else part.name)  # (r, theta)
    names = "".join(part.name for part in named)
    usual = (names in ascii_lowercase or names == "r\\theta") and len(named) == len(group.parts) and not group.kind
    return Group("", tuple(named)) if usual else group


def _any(found: Sequence[bool | None]) -> bool | None:
    return True if True in found else None if None in found else False


def _all(found: Sequence[bool | None]) -> bool | None:
    return False if False in found else None if None in found else True


def _compare_quantities(a: Quantity, b: Quantity) -> bool | None:
    """Compare quantities: a unit or percent sign that one side leaves out is ignored; two units are converted."""
    scale = Fraction(1)
    if a.unit and b.unit:
        if a.unit.dimensions != b.unit.dimensions:
            return False
        scale = b.unit.size / a.unit.size
    for joint, other in ((a, b), (b, a)):  # "3 hours and 30 minutes" is 210 and 3.5
        if joint.unit and joint.first and not other.unit and not other.percent:
            total = Fraction(joint.unit.size, joint.first.size) * joint.formula.value
            if _close(joint._replace(formula=Formula(total, True)), other, Fraction(1)):
                return True
    found = _close(a, b, scale)
    if found is None and scale != 1:
        return True  # "\\sqrt{2} m" and "100\\sqrt{2} cm" agree to 50 digits; computer algebra ignores units
    if found is not False or a.percent == b.percent:
        return found
    return _close(a, b, scale * (Fraction(1, 100) if b.percent else 100))


def _close(a: Quantity, b: Quantity, scale: Fraction) -> bool | None:
    """Whether the values are equal, or one is a decimal that rounds the other."""
    found = (a.text == b.text and scale == 1) or a.formula.same(b.formula, scale)
    long, short = sorted((a, b), key=lambda each: each.decimals, reverse=True)
    if found is not False or a.formula.variables or b.formula.variables or not long.decimals:
        return found
    decimal, value = a.formula.value, b.formula.value * scale
    if long is b:
        decimal, value = value, decimal
    difference = (abs(value) - abs(decimal)) * 10**long.decimals
    if decimal * value <= 0:
        return False
    if not short.decimals and "." not in short.text and not short.text.strip("+-").isdecimal():
        # Beside a fraction or a root: rounded or cut off at its last decimal place, at least the sixth.
        close = 2 * abs(difference) <= 1 or 0 <= difference < 1
        return close and long.decimals >= 6 and abs(decimal - value) * 10**5 <= abs(value)
    # A calculator's 119.69999999999999 is 119.7: the last of sixteen digits are rounding noise.
    digits = len(long.text.strip("-+0.").replace(".", ""))
    return digits >= 16 and short.decimals <= 8 and abs(decimal - value) * 10**14 <= abs(value)


def _compare_ratios(a: Ratio, b: Ratio) -> bool:
    if a.clock and b.clock:  # "3:30" is not "1:10"; "6:14" equals "3:7", because "3:7" is no time
        hours = [each.parts[0] % 12 + 12 * (each.half == "p") if each.half else each.parts[0] for each in (a, b)]
        left_out = not (a.half and b.half) and a.parts[0] == b.parts[0]
        return a.parts[1] == b.parts[1] and (hours[0] == hours[1] or left_out)
    if len(a.parts) != len(b.parts) or a.half or b.half or not all((*a.parts, *b.parts)):
        return a == b
    return len({Fraction(x, y) for x, y in zip(a.parts, b.parts, strict=True)}) == 1


def _compare_kinds(a: Answer, b: Answer) -> bool | None:
    """Compare a name, numeral, ratio or time with a number or formula, or with another of these kinds."""
    if not isinstance(b, Quantity):
        return False
    if isinstance(a, Ratio):
        value = Fraction(*a.parts) if len(a.parts) == 2 and all(a.parts) and not a.clock else None
        return b.formula.exact and b.formula.value in (value, a.parts[0] if a.clock and not a.parts[1] else None)
    assert isinstance(a, Word)
    if _NUMERAL.fullmatch(a.text):  # the base can be left out
        return a.text.rpartition("_")[0] == b.text.lower()
    formula = closed_form(a.text)
    return formula.same(b.formula) if formula else None if b.formula.variables else False
