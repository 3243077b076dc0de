r"""The canonical spelling of an answer: answers that differ only in spelling get the same text.

    canonical("$1,\\!200.00$"), canonical("1\\,200")      "1200.00", "1200"
    canonical("\\dfrac12\\text{ cm}")                    "\\frac{1}{2} cm"
    canonical("minus five"), canonical("0.\\overline{3}")  "-5", "(1/3)"
    canonical("x = \\pm 2")                               "x=2,x=-2"
    canonical("2√12"), canonical("sqrt(3)")               "2\\sqrt{12}", "\\sqrt{3}"

Invariant: text separated by a space is never joined ("1 1/2" is not "11/2"), and no word that changes a value is lost.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

from flow_dpo.verify.words import SCALE, SHORT_SCALES, is_unit, spelled

VULGAR = "\u00bc\u00bd\u00be\u2150\u2151\u2152\u2153\u2154\u2155\u2156\u2157\u2158\u2159\u215a\u215b\u215c\u215d\u215e"
"""Characters that are fractions: "½", "⅓"."""
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋"
SMALL = VULGAR + _RAISED + _LOWERED
"""Characters that belong to the number or letter before them: fractions, and what is above or below the line."""
_RUNS = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")


def _fraction(char: str) -> str:
    top, bottom = unicodedata.normalize("NFKC", char).split("\u2044")
    return f"\\frac{{{top}}}{{{bottom}}}"


_UNICODE = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2013\u2014", "-"),  # minus sign and dashes
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **dict.fromkeys("\u2061\u200b\ufeff\x00", ""),
        "\u017f": "s", "\u0131": "i", "\u0130": "I", "\u212a": "K",  # these match s, i and k if case is ignored
        "\u00d7": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "√": "\\surd ", "∛": "\\cbrt ",
        "∞": "\\infty ", "≤": "\\le ",
        "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "°": "^\\circ ", "\u2044": "/",
        **{each: _fraction(each) for each in VULGAR},
        "±": "\\pm ", "\u222a": "\\cup ", "∈": "\\in ", "∅": "\\emptyset ", "¢": " cents",
        "€": " EUR ", "£": " GBP ", "¥": " JPY ", "₹": " INR ",
    }
)  # fmt: skip
_ALIASES = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "leq": "\\le", "leqslant": "\\le", "geq": "\\ge",
    "geqslant": "\\ge", "neq": "\\ne", "lt": "<", "gt": ">", "cdot": "*", "times": "*", "div": "/", "colon": ":",
    "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "dots": "\\ldots", "varnothing": "\\emptyset",
    "langle": "(", "rangle": ")", "dbinom": "\\binom", "tbinom": "\\binom",
    **dict.fromkeys(["left", "right", "displaystyle", "textstyle", "big", "Big", "bigl", "bigr", "limits", "rm"], ""),
    **dict.fromkeys(["quad", "qquad"], " "),
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+|.)\s*", re.DOTALL)
_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}")
_SEPARATOR = re.compile(r"(?:[,;\s]*\b(?:and|or)\b[,;\s]*|\s*;\s*|(?:\s*,\s*){1,4})")
CONDITION = re.compile(r"[<>\u2264\u2265\u2260]|\\(?:[lg]e(?:q|qslant)?|neq?|[lg]t)(?![A-Za-z])")
"""The sign of an inequality."""
_SPACE = re.compile(r"(?<![A-Za-z0-9%)}]) | (?![A-Za-z0-9.])")
_DEGREES = r"\^\s*(?:\\circ|\{\s*\\circ\s*\})"
_MONEY = {"EUR": "eur", "GBP": "gbp", "JPY": "jpy", "INR": "inr"}
_PRICE = re.compile(
    r"(?:\\?\$|\b(EUR|GBP|JPY|INR|USD)\b) ?([-+]?(?:\d[\d,]*)?\.?\d+)"
    rf"((?: (?i:{SCALE})s?\b)+| ?(?:[kKMB]|MM|[mb]n|mil)\b|[mb]\b)?([A-Za-z](?![A-Za-z]))?"
    r"|(\d) ?(?:\\?\$|(EUR|GBP|JPY|INR)\b)"
)
_GAPPED = re.compile(r"(?<![\d.,\\])(\d{1,3})((?:(?:\\[,;:! ]|~|\{,\}|,\\!| )\s?\d{3})+)(?![\d/])")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_REPEATING = re.compile(
    r"(\d{0,50})\.(\d{0,50}?)(?:\\(?:overline|bar|dot)\s*(?:\{(\d{1,50})\}|(\d))|\((\d{1,50})\)|(\d)\6{2,50}(?:\.\.\.|\\l?dots))"
)
_MIXED = re.compile(r"(?<![\d./])(\d{1,9}) (\d{1,9}/\d{1,9})(?![\d/])")
_TYPED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?![\w.])", r"\1*10^{\2}"),
        (r"!=", r"\\ne "), (r"<=", r"\\le "), (r">=", r"\\ge "), (r"\*\*", "^"),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (
            r"(?<![\\A-Za-z])(?:(?<!\d)(?<!\d )sec|(?:arc)?(?:sin|cos|tan)h?|cot|csc|log|ln|exp)"
            r"(?= ?[({\d^_\\]| [A-Za-z]\b|x\b)",
            r"\\\g<0> ",
        ),
        (r"(?<![\\A-Za-z])(?:infinity|infty|inf)(?![A-Za-z])", r"\\infty "),
        (r"(?<=\d)\^?\{? ?(?:st|nd|rd|th)\b ?\}?", ""), (r"(?<=\d) ?[xX] ?(?=10\^)", "*"),
        (r"(?i)\b(?:the set of )?all real(?:s| numbers)\b", r"\\mathbb{R}"), (r"^([A-Za-z]) (?:is|equals) ", r"\1="),
        (r"(?<=\d) ?\bmin$", " minutes"), (r"(?<=\d) ?\bsec$", " seconds"),  # after a number these are not functions
        (r"(\w)\)? ?(?:in )?\bbase ?\{?(\w+)\}?", r"\1_{\2}"),
    )
)  # fmt: skip
_ROOT = re.compile(r"(?<![\\A-Za-z])(sqrt|cbrt)(?![A-Za-z])|\\(surd|cbrt|sqrt)(?![A-Za-z])")
_RADICAND = re.compile(r" ?(\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])|\\pi\b)")
_FRACTION = re.compile(r" ?(\\frac ?(?:\{[^{}]{1,50}\}|\d) ?(?:\{[^{}]{1,50}\}|\d))")
MAX_ROOTS = 50
"""The most roots of one text that are rewritten; later ones stay unchanged."""
_INDEX = re.compile(r"_(?:\{[^{}]*\}|\w)|(?<=[A-Za-z])\([^()]*\)")


@lru_cache(maxsize=4_096)
def canonical(text: str) -> str:
    """The canonical spelling of an answer. Text separated by a space is never joined: "1 1/2" is not "11/2"."""
    text = _RUNS.sub(_small, text).translate(_UNICODE)
    # 1. Thousands ("1,\!000", "1\,000"), prices ("$5", but "$5$" is a formula between delimiters), escapes.
    if any(not re.match(r"\$ ?[-+]?\.?\d", text[found.start() :]) for found in re.finditer(r"(?<!\\)\$", text)):
        text = re.sub(r"(?<!\\)\$", "", text)
    text = _GAPPED.sub(lambda found: found[1] + re.sub(r"\D", "", found[2]), text)
    text = re.sub(rf"\\(?:text|mbox|mathrm)\{{ ?((?i:{SCALE}|mn|bn)s?) ?\}}", r" \1 ", text)
    text = _PRICE.sub(_price, text).replace("$", "")
    if "matrix" not in text and "array" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # one backslash too many: "\\frac"
    text = re.sub(r"(?<!\\)(?:\\\\)*\\[()\[\]]", lambda match: "\\\\" * (match[0].count("\\") // 2), text)
    # 2. Numerals: repeating decimals, degrees inside sin and cos.
    text = _REPEATING.sub(_repeated, re.sub(r"\\!\s*", "", text.replace("{,}", ",")))
    if re.search(r"(?:sin|cos|tan|cot|sec|csc)\b", text):
        text = re.sub(rf"(\d+(?:\.\d+)?)\s*{_DEGREES}", r"(\1*\\pi/180)", text)
    text = re.sub(_DEGREES, " degrees ", text)
    # 3. Wrappers, commands, and commands typed without a backslash.
    text = _WRAPPED.sub(lambda match: f" {match[1]} ", _WRAPPED.sub(lambda match: f" {match[1]} ", text))
    text = " ".join(_COMMAND.sub(_command, text).replace("~", " ").split())
    text = _rooted(text.strip('*_`" ').rstrip(" .,;:"))
    for pattern, replacement in _TYPED:
        text = pattern.sub(replacement, text)
    text, approximately, decimal = text.partition("\\approx")
    if approximately and (not text or is_name(text.strip())):
        text = f"{text}={decimal}".removeprefix(
            "="
        ).strip()  # "x \approx 3.14" is x = 3.14; in "1/3 \approx 0.33" the left side is the value
    # 4. Words.
    if re.search(r"(?<!\\)\b[A-Za-z]{2}", text):
        text = spelled(text)
    text = _MIXED.sub(r"(\1+\2)", text)
    # 5. Separators. "81, 256" is a list, "81,256" a number; in brackets it is a list unless other commas have spaces.
    if ", " in text or text[:1] not in ("(", "[", "{", "\\"):
        text = _GROUPED.sub(lambda found: found[0].replace(",", ""), text)
    text = _listed(" ".join(text.split())).strip().strip(",")
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", _SPACE.sub("", text))
    text = re.sub(r"(\\frac|\\sqrt) ?(\\[A-Za-z]+|\w) ?", r"\1{\2}", text)  # "\\frac12"
    text = re.sub(r"(\\frac\{[^{}]{1,50}\}) ?(\\[A-Za-z]+|\w)", r"\1{\2}", text)
    text = re.sub(r" usd(?=[-+*/=]\d)", "", text)
    text = re.sub(r"(?<=[\d)}]) ?\\frac\{ ?([a-z]{1,5}) ?\}\{ ?([a-z]{1,5}) ?\}$", _rate, text)
    if "\\pm" in text and "," not in text and "\\mp" not in text:
        text = ",".join(re.sub(r"\\pm ?", sign, text).replace("=+", "=").removeprefix("+") for sign in "+-")
    return text.rstrip(".").strip()


def _listed(text: str) -> str:
    r"""The text with "," between the parts of a list. Between conditions "or" and "and" stay: "x<2\lor x>5"."""
    found = list(_SEPARATOR.finditer(text))
    words = [each[0].strip(" ,;") for each in found]
    if not {"and", "or"} & {*words} or not CONDITION.search(text):
        return _SEPARATOR.sub(",", text)
    # "x<1, 2<x<3, or x>4": a comma means the word that follows. A comma in brackets separates no conditions.
    depth, at, parts, joints = 0, 0, [""], list[str]()
    for each, word in zip(found, words, strict=True):
        piece = text[at : each.start()]
        depth += sum(map(piece.count, "([{")) - sum(map(piece.count, ")]}"))
        parts[-1] += piece
        at = each.end()
        if depth:
            parts[-1] += ","
        else:
            parts, joints = [*parts, ""], [*joints, word]
    parts[-1] += text[at:]
    if not all(CONDITION.search(part) or "=" in part for part in parts) or len({*joints} - {"", ";"}) != 1:
        return _SEPARATOR.sub(",", text)
    return ("\\lor " if "or" in joints else "\\land ").join(parts)


def _rooted(text: str) -> str:
    r"""The text with every radicand in braces: "√12", "sqrt 12" and "\sqrt(12)" as \sqrt{12}, "∛8" as \sqrt[3]{8}.

    For `\sqrt12`, as in TeX, only the first digit is the radicand; after "√" or a typed "sqrt" the whole numeral is.
    """
    found = list(_ROOT.finditer(text))[:MAX_ROOTS]
    for root in reversed(found):  # from the last, so a root inside another's brackets is rewritten first
        name, start = root[1] or root[2], root.end()
        begin = start + (text[start : start + 1] == " ")
        radicand, end = None, start
        if text[begin : begin + 1] == "(" and (close := _closing(text, begin)) > 0:
            radicand, end = text[begin + 1 : close], close + 1
        elif (root[1] or name != "sqrt") and (numeral := _RADICAND.match(text, start)):
            radicand, end = numeral[1].replace(",", ""), numeral.end()
        elif fraction := _FRACTION.match(text, start):
            radicand, end = fraction[1], fraction.end()
        index = "[3]" if name == "cbrt" else ""
        body = f"\\sqrt{index}" + (" " if radicand is None else f"{{{radicand}}}")
        text = text[: root.start()] + body + text[end:].removeprefix(" " if radicand is None else "")
    return text


def _closing(text: str, start: int) -> int:
    """The position of the bracket that closes the one at `start`; -1 if there is none."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return -1


def _small(found: re.Match[str]) -> str:
    """Digits above or below the line as a power or an index: "⁻³" as ^{-3}, "₅" as _5."""
    plain = unicodedata.normalize("NFKC", found[0]).replace("\u2212", "-")
    return ("^" if found[0][0] in _RAISED else "_") + (plain if len(plain) == 1 else f"{{{plain}}}")


def _rate(found: re.Match[str]) -> str:
    """The unit of "10\\frac{m}{s}" as " m/s"; the text unchanged if it is no unit."""
    return f" {found[1]}/{found[2]}" if is_unit(found[1]) and is_unit(found[2]) else found[0]


def _price(found: re.Match[str]) -> str:
    """A price with its unit after it: "$5k" as "5 thousand usd"; "$5x" is a formula, "5x usd"."""
    scale = (found[3] or "").strip()
    scale = SHORT_SCALES.get(scale.lower(), scale)
    amount = f"{found[2] or found[5]}{' ' if scale else ''}{scale}{found[4] or ''}"
    return f"{amount} {_MONEY.get(found[1] or found[6] or '', 'usd')}"


def _repeated(found: re.Match[str]) -> str:
    r"""A repeating decimal as a fraction: "0.1\overline{6}" is 1/6."""
    whole, fixed, period = found[1] or "0", found[2], found[3] or found[4] or found[5] or found[6]
    repeated = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    value = Fraction(int(whole + fixed), 10 ** len(fixed)) + repeated
    return f"({value.numerator}/{value.denominator})"


def _command(match: re.Match[str]) -> str:
    name = match[1]
    if name.isalpha():
        spelling = _ALIASES.get(name, f"\\{name}")
        return spelling + " " if spelling[-1:].isalpha() else spelling
    return {" ": " ", ",": " ", ";": " ", ":": " ", "%": "%", "#": "#", "&": "&", "_": "_"}.get(name, f"\\{name}")


def is_name(side: str) -> bool:
    """Whether a side of "=" is a name: letters, with numerals only in an index or argument, no sign and no root."""
    if side.startswith("-") or "\\sqrt" in side:
        return False
    bare = re.sub(r"\\[A-Za-z]+", lambda found: "0" if found[0] in ("\\infty", "\\pi") else "a", _INDEX.sub("", side))
    return bool(re.search("[A-Za-z]", bare)) and not re.search(r"[\d<>^!,]|\\[a-z]", bare)
