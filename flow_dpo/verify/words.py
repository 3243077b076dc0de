r"""Number words and units: reads "half of forty-two" as a formula, and "miles per hour" as a unit of known size.

    spelled("minus five")              "-5"
    spelled("2 dozen"), spelled("two and a half million")     "2*12", "(2+(1/2))*10^6"
    unit("cm^2")                       Unit({"length": 2}, 1/10000)
    unit("apples per day")             Unit({"time": -1}, 1/86400)
    unit("apples"), unit("wrong")      None, ValueError

Invariant: the name of things that are counted is no unit and is not compared; a word that changes a value is computed
or refused (`ValueError`), never dropped.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from flow_dpo.verify.closed_form import PI

_SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_COUNTS = {word: at for at, word in enumerate(_SMALL)} | {word: 10 * at for at, word in enumerate(_TENS, start=2)}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
           "lakh": 10**5, "crore": 10**7}  # fmt: skip
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
          "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14,
          "fifteenth": 15, "sixteenth": 16, "seventeenth": 17, "eighteenth": 18, "nineteenth": 19, "twentieth": 20,
          "thirtieth": 30, "fortieth": 40, "fiftieth": 50, "sixtieth": 60, "seventieth": 70, "eightieth": 80,
          "ninetieth": 90, "hundredth": 100, "thousandth": 1000, "millionth": 10**6, "billionth": 10**9}  # fmt: skip
SHORT_SCALES = {"k": "thousand", "m": "million", "mm": "million", "mn": "million", "mil": "million", "b": "billion",
                "bn": "billion"}  # fmt: skip
"""Abbreviations of magnitudes after a price; elsewhere only "mn" and "bn" are unmistakable."""

COUNT, SCALE, _PART = "|".join(_COUNTS), "|".join(_SCALES), "|".join(_PARTS)
"""Number words as alternatives for regular expressions."""
COUNTS = frozenset(_COUNTS)
"""Number words up to "ninety" that are one word: "three", "forty"."""
_RUN = re.compile(
    rf"\b(?:an? (?=(?:{SCALE}|{_PART})s?\b))?(?P<words>(?:{COUNT}|{SCALE})s?"
    rf"(?:(?:[ -]|(?<=hundred) and |(?<=thousand) and )(?:{COUNT}|{SCALE})s?\b)*)?"
    rf"(?P<part>(?(words)[ -])(?:{_PART})s?)?\b",
    re.IGNORECASE,
)
_NUMBER = r"(?:\d+(?:\.\d+)?(?:/\d+)?|\(\d+/\d+\)|\([\d.]+\+\(\d+/\d+\)\))"
_DEGREES = r"(?: ?degrees?(?: ?(?:celsius|fahrenheit|[cf]))?)?"
_DIGIT_PART = "|".join(part for part in _PARTS if part not in ("half", "quarter"))
_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"^(?:the|exactly|only|just|about|around|approximately|roughly|(?:a )?total of)\b ", ""),
        (r"\b(?:plus or minus|plus-minus)\b|\+ ?(?:or |/) ?-", r"\\pm "),
        (rf"({_NUMBER}) and (\(\d+/\d+\))", r"(\1+\2)"),
        (r"(\([\d.]+\+\(\d+/\d+\)\)) (\d+)\b", r"\1*\2"),  # "two and a half million"
        (rf"\bhalf (?:of )?(?:an? )?({_NUMBER})", r"(1/2)*\1"),
        (r"\bhalf\b", "(1/2)"),
        (rf"(\(\d+/\d+\)) (?:of )?(?:an? |the )?({_NUMBER})", r"\1*\2"),
        (rf"\b(?:twice|double|2 times) (?:of )?({_NUMBER})", r"2*\1"),
        (rf"\b(?:thrice|triple) (?:of )?({_NUMBER})", r"3*\1"),
        (rf"({_NUMBER}) ?(?:%|percent\b) of ({_NUMBER})", r"\1/100*\2"),
        (r"\bsquare root of (\d+)", r"\\sqrt{\1}"),
        (rf"({_NUMBER}) (?:out of|in every) ({_NUMBER})", r"\1/\2"),
        (rf"({_NUMBER}) (?:more|greater) than ({_NUMBER})", r"(\2+\1)"),
        (rf"({_NUMBER}) (?:less|fewer) than ({_NUMBER})", r"(\2-\1)"),
        (rf"(?<![-\d./])({_NUMBER}{_DEGREES}) below (?:zero|0)\b", r"-\1"),
        (rf"({_NUMBER}{_DEGREES}) above (?:zero|0)\b", r"\1"),
        (r"\b(?:minus|negative) ?", "-"),
        (r" ?\bplus\b ?", "+"),
        (r" ?\b(?:times|multiplied by)\b ?", "*"),
        (r" ?\b(?:divided by|over)\b ?(?=[\d(x-z])", "/"),
        (r"(?<=[\d)]) squared\b", "^2"),
        (r"(?<=[\d)]) cubed\b", "^3"),
        (r"(?<=\d) point (?=\d)", "."),
        (r"(?<=\d) to (?=\d)", ":"),
        (r"\s*\b(?:percentage points?|percentage|per ?cent|pct)\b", "%"),
        (r"^(?:(?:strictly )?(?:more|greater|larger|bigger) than|over|above)\b", ">"),
        (r"^(?:(?:strictly )?(?:less|fewer|smaller) than|under|below)\b", "<"),
        (r"^(?:at least|no less than|no fewer than)\b", r"\\ge "),
        (r"^(?:at most|no more than|up to)\b", r"\\le "),
    )
)  # fmt: skip


def spelled(text: str) -> str:
    """The text with number words as numerals, and with signs for words such as "plus" and "half of"."""
    text = re.sub(r"(?<=\d) ([mMbB]n)\b", lambda found: f" {SHORT_SCALES[found[1].lower()]}", text)
    text = re.sub(
        rf"(?<=\d)((?:[ -](?:{SCALE})s?\b)+)",
        lambda found: "".join(f"*{_SCALES[word.lower().rstrip('s')]}" for word in re.findall("[A-Za-z]+", found[1])),
        text,
        flags=re.IGNORECASE,
    )
    text = re.sub(
        rf"(?<![\d./])(\d+)[ -]({_DIGIT_PART})s?\b", lambda found: f"({found[1]}/{_PARTS[found[2].lower()]})", text
    )
    text = _RUN.sub(_numeral, text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def _numeral(found: re.Match[str]) -> str:
    """A run of number words as a numeral, or as a fraction with the part after it ("two thirds"); else unchanged."""
    part = re.sub(r"[^a-z]", "", (found["part"] or "").lower())
    if not found["words"]:
        alone = part and (found[0].lower().startswith("a") or part == "half")
        return f"(1/{_PARTS.get(part) or _PARTS[part.rstrip('s')]})" if alone else found[0]
    total = current = 0
    for word in re.findall("[a-z]+", found["words"].lower().replace(" and ", " ")):
        word = word if word in _COUNTS else word.rstrip("s")
        if word in _COUNTS:
            count = _COUNTS[word]
            if current % (100 if count > 9 or current % 100 < 20 else 10):
                return found[0]  # "two three"
            current += count
        elif word == "hundred":
            current = (current or 1) * 100
        elif word == "dozen":
            total, current = 0, ((total + current) or 1) * 12
        elif word in _SCALES:
            total, current = total + (current or 1) * _SCALES[word], 0
        else:
            return found[0]  # "fives"
    if not part:
        return str(total + current)
    return f"({total + current}/{_PARTS.get(part) or _PARTS[part.rstrip('s')]})"


# ---- units -----------------------------------------------------------------------------------------------------------


class Unit(NamedTuple):
    """A unit: the power of each dimension, and its size in base units (metre, second, month, gram, dollar, ...)."""

    dimensions: tuple[tuple[str, int], ...]
    size: Fraction


_MEASURES: dict[str, tuple[str, int, Fraction]] = {
    name: (dimension, power, Fraction(size))
    for dimension, power, sizes in (
        ("length", 1, {"mm millimeter millimetre": "1/1000", "cm centimeter centimetre": "1/100", "dm": "1/10",
                       "m meter metre": 1, "km kilometer kilometre": 1000, "in inch": "127/5000",
                       "ft foot feet": "381/1250", "yd yard": "1143/1250", "mi mile": "201168/125"}),
        ("length", 2, {"hectare ha": 10_000, "acre": "316160658/78125"}),
        ("length", 3, {"ml mL milliliter millilitre cc": "1/1000000", "l L liter litre": "1/1000",
                       "gallon gal": "473176473/125000000000", "quart qt": "473176473/500000000000",
                       "pint pt": "473176473/1000000000000"}),
        ("time", 1, {"s sec second": 1, "min minute": 60, "h hr hour": 3_600, "day": 86_400, "week wk": 604_800}),
        ("calendar", 1, {"month": 1, "year yr": 12, "decade": 120, "century centurie": 1_200}),
        ("mass", 1, {"mg milligram": "1/1000", "g gm gram": 1, "kg kilogram kilo": 1000, "tonne": 10**6,
                     "oz ounce": "45359237/1600000", "lb pound": "45359237/100000", "ton": "45359237/50"}),
        ("dollars", 1, {"cent penny pennie": "1/100", "dollar usd": 1}),
        ("euros", 1, {"euro eur": 1}), ("sterling", 1, {"gbp": 1}), ("rupees", 1, {"rupee inr": 1}),
        ("yen", 1, {"yen jpy": 1}),
        ("angle", 1, {"degree deg": 1, "radian rad": 180 / PI}),
        ("celsius", 1, {"celsius": 1}), ("fahrenheit", 1, {"fahrenheit": 1}),
        ("power", 1, {"watt W": 1, "kilowatt kW": 1000}), ("energy", 1, {"joule J": 1, "kilojoule kJ": 1000}),
    )
    for names, size in sizes.items()
    for name in names.split()
}  # fmt: skip
"""The dimension, its power and the size of each unit, by its name in the singular."""
_ABBREVIATIONS = {"mph": "mile per hour", "kph": "km per hour", "kmh": "km per hour", "kmph": "km per hour"}
_CHANGES = frozenset([
    "not", "no", "wrong", "incorrect", "false", "less", "more", "fewer", "than", "plus", "minus", "mod", "modulo",
    "times", "over", "remainder", "r", "squared", "cubed", "to", "or", "half", "third", "quarter",
    "mil", "lac", "lacs", "factorial", "maybe", "perhaps", "possibly", "versus", "vs", "instead", "except", *_SCALES,
])  # fmt: skip
"""Words that change the value before them; if one is left after a number, the text is not read."""
_CHANGED = re.compile(
    r"\bshort of\b|\b(?:below|under)(?: (?:zero|freezing|par))?\W*$|\bin (?:debt|the red)\b"
    r"|\bat (?:the )?(?:very )?(?:most|least)\b|\bor so\b|\b(?:root|choose|power(?: of)?) [a-z]$"
    r"|\bsubtracted from\b|\badded to\b|\b(?:increased|decreased|reduced|multiplied|divided) (?:by|to)\b"
    r"|\b(?:taken from|raised (?:by|to)) [a-z]$"
)
"""Phrases that change the value before them."""
_REMARK = re.compile(r"\(\d[\d.]* [A-Za-z][A-Za-z .]*\)")
"""A remark in brackets that counts: "5 apples (2 red)"."""
_STERLING = frozenset(["pound", "penny", "pence", "pennie", "shilling"])
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "squared": 2, "cubed": 3}


def _measure(word: str) -> tuple[str, int, Fraction] | None:
    lower = word.lower() if len(word) > 1 else word  # "5 M" is not 5 metres
    for name in (word, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in _MEASURES:
            return _MEASURES[name]
    return None


def is_unit(word: str) -> bool:
    """Whether a word is the name of a unit, or of a power such as "square"."""
    return bool(_measure(word)) or word.lower() in (*_ABBREVIATIONS, *_POWERS)


def same_measure(one: str, other: str) -> bool:
    """Whether two words can name parts of one amount: "hours" and "minutes", "months" and "days"; not "pounds" and
    "years".
    """
    words = [word.lower().removesuffix("s") for word in (one, other)]
    if {*words} <= _STERLING or words in (["degree", "minute"], ["degree", "second"]):
        return True
    kinds = [found and found[:2] for found in (_measure(one), _measure(other))]
    return None not in kinds and (kinds[0] == kinds[1] or {*kinds} == {("time", 1), ("calendar", 1)})


def unit(text: str) -> Unit | None:
    """The unit that the words after a number name; None if they name things that are counted.

    Raises `ValueError` if one of the words changes the number.
    """
    if _CHANGED.search(text):
        raise ValueError(text)
    text = re.sub(r"^\s*(?:of )?an? ", "", text)
    text = re.sub(r"\b([mckd]?m|in|ft|yd|mi|s|sec|h|hr)([23])\b", r"\1^\2", text)  # "cm2"
    text = re.sub(r"\b[A-Z][A-Za-z]*\d[A-Za-z0-9]*", "things", text)  # "CO2"
    text = _REMARK.sub(lambda found: found[0] if _CHANGES & {*re.findall("[a-z]+", found[0].lower())} else "", text)
    text = re.sub(r"\bdegrees? (?:celsius|c)\b", "celsius", text, flags=re.IGNORECASE)
    text = re.sub(r"\bdegrees? (?:fahrenheit|f)\b", "fahrenheit", text, flags=re.IGNORECASE)
    text = re.sub(
        r"\b[a-z]{3,4}\b", lambda found: _ABBREVIATIONS.get(found[0].lower(), found[0]), text, flags=re.IGNORECASE
    )
    tokens = re.findall(r"[A-Za-z]+|\^\{?-?\d\}?|\d+|\S", text)
    dimensions: dict[str, int] = {}
    size, sign, power, reads = Fraction(1), 1, 1, True
    for at, token in enumerate(tokens):
        word, after = token.lower(), tokens[at + 1] if at + 1 < len(tokens) else ""
        measure = _measure(token)
        if word == "in" and after and not after.startswith(("^", "/")) and power == 1:
            measure = None  # "5 books in a box"
        if word in ("per", "/") or (
            word in ("a", "an", "each", "every") and at and (_measure(after) or ("",))[0] in ("time", "calendar")
        ):
            sign, reads = -1, True
        elif token.isdecimal() and sign < 0 and int(token) and (_measure(after) or after.lower() in _POWERS):
            size /= int(token)  # "12 liters per 100 km"; not for counted things, as in "37 dollars per 10 sandwiches"
        elif word in _POWERS and _measure(after):
            power = _POWERS[word]
        elif measure and reads:
            # a power after the unit, "cm^2" or "cm squared", times one before it, "square cm"
            exponent = re.fullmatch(r"\^\{?(-?\d)\}?", after)
            times = sign * power * (int(exponent[1]) if exponent else _POWERS.get(after.lower(), 1))
            dimensions[measure[0]] = dimensions.get(measure[0], 0) + times * measure[1]
            size *= measure[2] ** times
            power = 1
        elif token.startswith("^") or (word in _POWERS and at and _measure(tokens[at - 1])):
            continue
        elif word in _CHANGES:
            raise ValueError(text)
        else:
            reads = False
    found = tuple(sorted((name, times) for name, times in dimensions.items() if times))
    return Unit(found, size) if found else None
