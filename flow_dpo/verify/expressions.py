r"""Expressions in prose: splits a sentence into tokens, and groups those that form one expression into one item.

    "so 64 + 67 = 131 apples"       so, value "131" (worked out), apples
    "$180 and (1, 2)"               value "$180", and, value "(1, 2)"      a dollar sign before digits is money
    "either $x = 3$ or 4!"          either, value "x = 3", or, value "4", !

Invariant: a sentence is read from left to right, at most `MAX_TOKENS` tokens ahead.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal, NamedTuple

from flow_dpo.verify.canonical import SMALL, VULGAR
from flow_dpo.verify.words import is_unit

FORMULA = (
    r"\$\$(?:[^$\\]|\\.){1,2000}\$\$|(?<!\\)\$(?:[^$\\\n]|\\.){1,2000}\$(?!\d)"
    r"|\\\[(?:[^\\]|\\[^\]]){1,2000}\\\]|\\\((?:[^\\]|\\[^)]){1,2000}\\\)"
)
"""A pattern for mathematics between delimiters. If `is_formula` is False for a match, the signs meant money."""
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(
    r"(?P<word>[ap]\.m\b\.?|[A-Z][a-z]?[₀-₉]+[A-Z]\w*|(?!(?:US|CA|AU)\\?\$|Rs\.? ?\d)"
    rf"(?:[^\W\d_{SMALL}]{{2,}}[^\W{SMALL}]*(?:['\u2019-][^\W\d_{SMALL}]+)*(?:\^\{{?\d\}}?|⁻?[¹²³](?![{SMALL}]))?"
    rf"|[^\W\d_{SMALL}][^\W{SMALL}]*))"
    rf"|(?P<formula>{FORMULA})"
    r"|(?P<decimal>\d*\.(?:\d*\\(?:overline|bar|dot) ?\{\d+\}|\d+\.\.\.)|\d{1,3}(?:(?:,\\!|\{,\}|\\,)\d{3})+(?!\d)"
    r"|(?<![\d.,])\d{1,3}(?: \d{3}){2,}(?![\d,.]\d))"
    rf"|(?P<number>(?:(?:US|CA|AU)?\\?\$ ?|[€£¥₹] ?|Rs\.? ?)?(?:{_DIGITS})(?::\d+)*[A-Za-z]*(?: ?\\?[%°])?)"
    r"|(?P<command>\\(?:[A-Za-z]+(?: ?\{[^{}]{0,60}\})?|.))"
    r"|(?P<operator><=|>=|!=|[-=]>|[\u2013\u2014](?= ?[$€£]?\d)|"
    rf"[-+*/^=<>≤≥≈≠\u00d7÷·±√∛π∞\u2212_%°&{SMALL}])"
    r"|(?P<bracket>[()\[\]{}])"
    r"|(?P<mark>\S)",
    re.DOTALL,
)
MAX_TOKENS = 200
"""The most tokens of one expression outside delimiters."""
_FUNCTIONS = frozenset(
    ["sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "mod", "max", "min"]
)
_NUMERALS = frozenset(["π", "∞", "pi", *VULGAR])
_APPLIED = re.compile(r"sin|cos|tan|cot|csc|log(?:_?\d{1,3})?|ln|sqrt|cbrt")
"""Functions whose argument needs no brackets: "ln 2", "2 sqrt 3". ("5 min 30 sec" is a time.)"""
_LOGGED = frozenset(
    ["to", "must", "can", "will", "should", "could", "would", "may", "might", "and", "they", "we", "he", "she"]
)
"""After these words "log" is a verb: "she has to log 5 hours"."""
_POSTFIX = frozenset("%°" + SMALL) | _NUMERALS
_RELATIONS = frozenset(["\\le", "\\leq", "\\ge", "\\geq", "\\ne", "\\neq", "\\lt", "\\gt", "\\in"])
_SIGNS = frozenset("-\u2212\u2013+±√∛<>≤≥≠") | {"<=", ">=", "!="} | _NUMERALS

_NO_PROSE = re.compile(
    r"\\[A-Za-z]+\s?(?:\{[^{}\\]{0,100}\})?|\b(?:sin|cos|tan|log|ln|exp|max|min|sqrt|pi|mod|and|or)\b"
)
_PROSE = re.compile(r"[A-Za-z][a-z]{2,}[^A-Za-z]+[A-Za-z][a-z]|\b[A-Za-z][a-z]+ |\b[A-Za-z][a-z]+[:.]")
_MONEY = re.compile(r"\$\d[\d.,]*\s.*\s\$", re.DOTALL)


class Item(NamedTuple):
    """A token of a sentence, or an expression made of several."""

    kind: Literal["formula", "number", "command", "word", "operator", "bracket", "mark", "value"]
    text: str
    """The text: a formula without its delimiters; for a worked-out calculation ("3 + 4 = 7"), the result."""
    start: int
    end: int
    """The position in the sentence, from `start` to `end`."""
    worked: bool = False
    """Whether it is a value with an equals sign in it."""
    word: str = ""
    """The word in lower case; "" for anything else."""


def is_formula(text: str) -> bool:
    """Whether a text between two dollar signs is mathematics, rather than words between two prices."""
    return not (_PROSE.search(_NO_PROSE.sub(" ", text)) or _MONEY.fullmatch(text))


_ONE_ROW = re.compile(  # an environment around one row
    r"(?:\$\$|\\\[)?\s*\\begin\{(?:align|equation|gather)(?:ed)?\*?\}([^{}]*(?:\{[^{}]*\}[^{}]*)*)"
    r"\\end\{(?:align|equation|gather)(?:ed)?\*?\}\s*(?:\$\$|\\\])?\.?"
)


def whole_text(text: str) -> str | None:
    """The text if it is a single expression or word, "x = 3" or "yes"; otherwise None."""
    body = text.strip().lstrip("=: ") if len(text) <= 4_000 else ""
    row = _ONE_ROW.fullmatch(body)
    body = row[1].replace("&", "").strip(" .\n") if row and "\\\\" not in row[1] else body
    if not 0 < len(body) <= 400 or "\n" in body:
        return None
    if body.isalpha():
        return body
    plain = _NO_PROSE.sub(" ", body)
    if re.search(
        r"[^\W\d_]{2}|[*`~!?#∴|>•→⇒\u2300-\u2bff\U0001f000-\U0001ffff]|^-\s|\$\d.*\$\d", plain
    ) or not re.search(r"[\d=+^\\$]", body):
        return None
    chain = [part.strip() for part in body.split(",")]  # "2x = 14, x = 7": the last part is the solution
    if len(chain) > 1 and all("=" in part for part in chain) and _SOLVED.fullmatch(chain[-1]):
        body = body if _SOLVED.fullmatch(chain[0]) else chain[-1]
    return None if body.count("$") % 2 else body


_NO_FORMULA = re.compile(r"[=?<>≈£€;\u3000-\uffff]|(?<!\\)[$!]|\d\s+\(|[A-Za-z]{2}")
_COMMAND = re.compile(
    r"\\(?:text|mbox|mathrm|textbf)\{[^{}]{0,200}\}|\\[A-Za-z]{1,40}"
    r"|(?<![A-Za-z])(?:arc)?(?:sin|cos|tan|cot|csc|log|ln|exp|sqrt|cbrt|pi)(?![A-Za-z]{2})"
)


def formula_alone(sentence: str) -> str | None:
    r"""The sentence, uncut, if it is a single formula without a word of prose: "p - q", "11,\! 111"; otherwise None."""
    text = sentence.strip(" \t\r*_`").removesuffix(".").rstrip(" *_`")
    if len(text) > 500 or not any(char.isalpha() or char == "\\" for char in text):
        return None
    balanced = all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}"))
    return text if balanced and not _NO_FORMULA.search(_COMMAND.sub(" ", text)) else None


_SOLVED = re.compile(r"\$?[A-Za-z] ?= ?[-\u2212]?[\d./]+\$?\.?")


def items_of(sentence: str) -> list[Item]:
    """The items of a sentence: its tokens, with those that form one expression as one item of kind "value"."""
    tokens, items, at = _tokens(sentence), [], 0
    while at < len(tokens):
        token = tokens[at]
        verb = token.text == "log" and items and items[-1].word in _LOGGED
        if (
            token.kind == "mark"
            or verb
            or (token.kind == "word" and len(token.text) > 1 and token.text[1].isalpha() and not _is_function(token))
        ):
            items.append(token)
            at += 1
            continue
        end = _end_of_value(tokens, at)
        items.append(_value(tokens[at:end]) if end > at else tokens[at])
        at = max(end, at + 1)
    return items


def _tokens(sentence: str) -> list[Item]:
    items: list[Item] = []
    matches = _TOKEN.finditer(sentence)
    while match := next(matches, None):
        kind, text, at = match.lastgroup or "mark", match[0], match.end()
        if kind == "word":
            items.append(Item("word", text, match.start(), at, False, text.lower()))
            continue
        if kind == "formula" and not is_formula(text):  # a price, or a stray sign: continue after the sign
            price = _TOKEN.match(sentence, match.start() + 1)
            is_price = price is not None and price.lastgroup == "number"
            kind, text, at = "mark", "$", match.start() + 1
            if price and is_price:
                kind, text, at = "number", f"${price[0]}", price.end()
            matches = _TOKEN.finditer(sentence, at)
        elif kind == "decimal":
            kind = "number"
        elif kind == "formula":
            width = 1 if text[0] == "$" != text[1] else 2
            text = text[width:-width].strip()
        if kind == "number" and text[0] in "RUCA":
            text = re.sub(r"^(?:[A-Z]{2}(?=\\?\$)|Rs\.? ?)", "", text)
        items.append(Item(kind, text, match.start(), at))  # pyright: ignore[reportArgumentType]
    return items


def _end_of_value(tokens: list[Item], start: int) -> int:
    """The end of the expression that starts at a token; `start` if there is none."""
    first = tokens[start]
    name = first.kind == "word" and not _is_function(first) and first.text[1:2] not in "_0123456789"
    if name or (first.kind == "operator" and first.text not in _SIGNS):
        return start
    depth, end, solid = 0, start, False
    for at in range(start, min(len(tokens), start + MAX_TOKENS)):
        token, after = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else None
        if not _continues(token, tokens[at - 1] if at > start else None, after, depth):
            break
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        solid = solid or token.kind in ("number", "formula", "command") or token.text in _NUMERALS | {"="}
        if not depth and (token.kind != "operator" or token.text in _POSTFIX) and token.text != ":":
            end = at + 1
    return end if solid else start


def _is_applied(token: Item) -> bool:
    return token.kind == "word" and _APPLIED.fullmatch(token.text) is not None


def _is_function(token: Item) -> bool:
    return token.kind == "word" and (token.text in _FUNCTIONS or _is_applied(token))


def _takes(function: Item, after: Item | None, *, joined: bool) -> bool:
    """Whether a function's name is followed by its argument: "ln 2", "2 sqrt(3)", but not "5 log cabins".

    `joined`: no operand is before the name, or the name follows one without a space."""
    if after is None or (not joined and not _is_applied(function)):
        return False
    if joined and after.kind not in ("operator", "mark"):
        return True
    letter = after.kind == "word" and len(after.text) == 1 and after.text not in "aAI"
    return letter or after.kind in ("number", "formula", "command") or after.text in ("(", "{", "^", "√", "∛", "π")


def _continues(token: Item, before: Item | None, after: Item | None, depth: int) -> bool:
    """Whether a token continues the expression before it; with `before` None, whether it can begin one."""
    glued = before is not None and before.end == token.start
    operand = before is not None and not (
        before.kind == "command"
        or _is_applied(before)
        or (before.kind == "operator" and before.text not in _POSTFIX)
        or before.text in ("(", "[", "{", ",", ";", ":", "|")
    )
    if token.kind in ("operator", "command"):
        return True
    if token.kind in ("number", "formula"):
        mixed = after is not None and after.text == "/" and before is not None and before.text.isdigit()
        crossed = before is not None and before.text in ("x", "X") and before.end < token.start  # "1.2 x 10^5"
        return not operand or mixed or crossed or (glued and token.kind == "number")
    if token.kind == "word":
        if _is_function(token):
            return token.text == "pi" or _takes(token, after, joined=not operand or glued)
        if len(token.text) > 1 and token.text[1] not in "_0123456789":
            return False
        times = token.text in ("x", "X") and operand and after is not None and after.kind in ("number", "formula")
        tied = after is not None and (
            (after.kind == "operator" and after.text != "&")
            or (after.kind == "command" and after.text in _RELATIONS)
            or (after.text == "(" and after.start == token.end)
        )
        return glued or tied or times or (before is not None and not operand)
    if token.text in ("(", "[", "{"):
        return not operand or glued
    if token.kind == "bracket":
        return depth > 0
    if depth and token.text in (",", ";", ":", "|"):
        return True
    binary = after is not None and (after.kind in ("operator", "command") or after.text in (")", "}"))
    ratio = after is not None and after.kind == "number" and after.start == token.end
    return operand and glued and ((token.text == "!" and binary) or (token.text == ":" and ratio))


_ARITHMETIC = re.compile(
    r"\\(?:times|cdot|div|[dt]?frac|sqrt|binom|left|right|pi|[$%,!()])|(?<=\d)x(?=[\d$])|(?<= )x(?= )"
)


def _value(tokens: list[Item]) -> Item:
    if len(tokens) == 1 and tokens[0].kind == "number":
        return tokens[0]._replace(kind="value")
    pieces = [tokens[0].text]
    for before, token in pairwise(tokens):
        pieces.append((" " if token.start > before.end else "") + token.text)
    text, start, end = "".join(pieces), tokens[0].start, tokens[-1].end
    sums, equals, result = text.rpartition("=")
    alone = len(tokens) == 1 and tokens[0].kind == "formula"
    # "64 + 67 = 131", "2x = 2*6 = 12": the result is what is claimed. In "2x = 12" the whole equation is.
    if not equals:
        return Item("value", text, start, end)
    bare = re.sub(r"(?<=\d)[A-Za-z]{2,4}\b", lambda unit: "" if is_unit(unit[0]) else unit[0], sums.rpartition("=")[2])
    named = re.search(r"[A-Za-z\\]", _ARITHMETIC.sub("", bare))
    if equals and not named and re.search(r"\d", result) and (not alone or text.count("=") > 1):
        text = result.strip()
        text = text[:-1] if text.endswith(")") and text.count(")") > text.count("(") else text
    return Item("value", text, start, end, worked=bool(equals))
