r"""Extraction of a solution's final answer from its text.

Two decisions, each a setting of `AnswerRule`. *Where* an answer may stand: by default only on the last line, and only
where that line is closed (a newline follows it, or the solution ended with its end token), so that an answer that was
cut or abandoned never counts. *How* it is found there, in this order: the last box, then what follows the last
"answer is", "Answer:" or "####", then the last number (the whole formula or sum that holds it, never a part of it).

    "2 + 3 = 5\nAnswer: 15\n"         -> "15"     closed by its newline
    "2 + 3 = 5\nAnswer: 1"            -> None     open: the next chunk may make it "15"
    "Answer: 15\nWait, let me check"  -> None     the last line is another one, and open
    "So \[ x = \boxed{\frac12} \]."   -> \frac12  where `ended`

Invariant: linear in the length of the text, whatever the text. No pattern here can backtrack over more than a fixed
number of characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Extractor = Literal["box", "answer_is", "number"]


@dataclass(frozen=True, kw_only=True)
class AnswerRule:
    """Rule for the answer of a solution that counts."""

    which: Literal["closed_last_line", "last_line", "anywhere"] = "closed_last_line"
    """`closed_last_line`: only an answer on the last line that is not blank, and only when that line is finished.
    `last_line`: the same, finished or not. `anywhere`: the last answer of the whole text."""
    extractors: tuple[Extractor, ...] = ("box", "answer_is", "number")
    """What counts as an answer there; the first that finds something decides."""


NO_ANSWER = "no answer"
"""The reason of a verdict on a solution that gives no answer to read."""


def extract_answer(text: str, *, ended: bool, rule: AnswerRule) -> str | None:
    """The final answer of a solution as it was written, or None where it gives none.

    A box that is empty or was never closed is no answer, and neither is anything beside it.
    """
    text = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    place = text if rule.which == "anywhere" else _last_line(text)
    if rule.which == "closed_last_line" and not (ended or _is_closed(text)):
        return None
    for extractor in rule.extractors:
        if extractor == "box":
            if _box_is_open(text):
                return None
            found = last_box(place)
            if found is not None:
                return found or None
        elif extractor == "answer_is":
            found = after_answer_is(place)
            if found:
                return found
        elif ended or rule.which != "closed_last_line":
            # A bare number counts only where the solution has ended: on a line that is merely closed it is a step.
            found = last_number(place)
            if found:
                return found
    return None


def gold_answer(gold: str) -> str:
    r"""The answer inside a gold field, which may be dressed: "$9$", "\boxed{9}", "The answer is 9". "" where empty."""
    box = last_box(gold)
    return (after_answer_is(gold) or gold).strip() if box is None else box


# ---- where ----------------------------------------------------------------------------------------------------------

_ORNAMENT = re.compile(r"[\s`*_\-=~]*\Z")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def _is_closed(text: str) -> bool:
    """Does a newline follow the last line, outside any box or display that is still open?"""
    body = text.rstrip()
    if "\n" not in text[len(body) :]:
        return False
    return not (body.rfind("\\[") > body.rfind("\\]") or body.count("$$") % 2 or _box_is_open(body))


def _last_line(text: str) -> str:
    r"""The last line with content; where it closes a display or a brace, from the line that opened it.

    "Hence\n\[\n x = 14\n\]\n" gives "\[\n x = 14\n\]", not "\]".
    """
    body = text.rstrip()
    start = body.rfind("\n") + 1
    while start and _ORNAMENT.match(body, start):  # "```", "---", "**": ornaments that close nothing
        body = body[:start].rstrip()
        start = body.rfind("\n") + 1
    for _ in range(4):  # a brace in an environment in a display
        opener = _opener(body, start)
        if opener >= start:
            break
        start = body.rfind("\n", 0, opener) + 1
    return body[start:]


def _opener(body: str, start: int) -> int:
    """Position of the earliest opening of a display, environment or brace closed at or after `start`; else `start`."""
    line, openers = body[start:], [start]
    close = line.find("\\]")
    if close >= 0 and "\\[" not in line[:close]:
        openers.append(body.rfind("\\[", 0, start))
    if line.count("$$") % 2:
        openers.append(body.rfind("$$", 0, start))
    end = re.search(r"\\end\{(\w{1,20}\*?)\}", line)
    if end and f"\\begin{{{end[1]}}}" not in line[: end.start()]:
        openers.append(body.rfind(f"\\begin{{{end[1]}}}", 0, start))
    stack: list[int] = []
    if "}" in line:
        for brace in _BRACES.finditer(body):
            if brace[0] == "{":
                stack.append(brace.start())
            elif brace[0] == "}" and stack:
                opened = stack.pop()
                if brace.start() >= start:
                    openers.append(opened)
    return min(opener for opener in openers if opener >= 0)  # -1 where nothing opens it


# ---- the last box ---------------------------------------------------------------------------------------------------

_BOX_BODY = re.compile(r"[^\s$]+")
_JOINT_NOISE = re.compile(r"\\[()\[\],;:! ]|\\q?quad|\\text|\\mbox|[${}~\s]+")
_JOINT = re.compile(r"(?:[A-Za-z]{1,15} )?(?:,|;|,? ?(?:and|or) ?)(?: ?[A-Za-z]\w{0,3} ?=)?")


def _find_box(text: str, end: int) -> int:
    return max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))


def _box_span(text: str, start: int) -> tuple[str, int] | None:
    """Contents and end of the box that starts at `start`; None where its brace is never closed."""
    at = start + (6 if text.startswith("\\boxed", start) else 5)
    while at < len(text) and text[at].isspace():
        at += 1
    if not text.startswith("{", at):  # "\boxed 2": TeX boxes the next token
        token = _BOX_BODY.match(text, at)
        return (token[0].rstrip(".,;:*"), token.end()) if token else ("", at)
    depth = 0
    for brace in _BRACES.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return text[at + 1 : brace.start()].strip(), brace.end()
    return None


def _box_is_open(text: str) -> bool:
    start = _find_box(text, len(text))
    return start >= 0 and _box_span(text, start) is None


def last_box(text: str, *, joined: bool = True) -> str | None:
    r"""Contents of the last \boxed or \fbox; "" where it is empty or unclosed, None where there is no box.

    Boxes that one sentence joins are one answer, "\boxed{6} and \boxed{8}" is "6, 8": a model that boxes two numbers
    has not chosen the second. Not so with `joined` off, which is how MATH defines its gold answers.
    """
    start = _find_box(text, len(text))
    if start < 0:
        return None
    span = _box_span(text, start)
    if span is None:
        return ""
    contents = [span[0]]
    while joined:
        before = _find_box(text, start)
        span = _box_span(text[:start], before) if before >= 0 else None
        if span is None or start - span[1] > 80:
            break
        between = " ".join(_JOINT_NOISE.sub(" ", text[span[1] : start]).split())
        if not _JOINT.fullmatch(between):
            break
        contents.append(span[0])
        start = before
    unique = list(dict.fromkeys(reversed(contents)))
    return ", ".join(unique)


# ---- "the answer is" ------------------------------------------------------------------------------------------------

_MARKER = re.compile(
    r"(?:\banswers?\b[^.\n:=$\\]{0,60}?(?:\b(?:is|are|be)\b|[:=])|####|^[ \t]{0,8}A:)(?!\s{0,8}not\b)",
    re.IGNORECASE | re.MULTILINE,
)
_LEAD = re.compile(
    r"(?:[\s:=*_>#]|(?:therefore|thus|simply|just|equal to|approximately|about|is|are)\b)*", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"\.(?!\d)(?:\s|\*|\)|\Z)|[\n?]|<\||\b(?:because|since|which|where|as)\b|\.\Z")
_FORMULA = re.compile(
    r"\$\$(?P<display>(?:[^$\\]|\\.){1,2000})\$\$"
    r"|\$(?P<inline>(?:[^$\\\n]|\\.){1,2000})\$"
    r"|\\\[(?P<bracket>(?:[^\\]|\\[^\]]){1,2000})\\\]"
    r"|\\\((?P<paren>(?:[^\\]|\\[^)]){1,2000})\\\)",
    re.DOTALL,
)
_NEXT_FORMULA = re.compile(r"\s*(?:,|;|,?\s*(?:and|or))\s*(?=[$\\])")
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b|pct\b)", re.IGNORECASE)


def after_answer_is(text: str) -> str | None:
    """The text that the last "answer is", "Answer:", "####" or "A:" introduces, up to the end of its sentence."""
    found = None
    for marker in _MARKER.finditer(text):
        found = marker
    if found is None:
        return None
    start = _skip(_LEAD, text, found.end())
    formula = _FORMULA.match(text, start)
    if formula:
        return _formulas(text, formula)
    rest = text[start : start + 2000]
    end = _SENTENCE_END.search(rest)
    claim = rest[: end.start() if end else len(rest)].strip(' \t\r*_`"$')
    if claim[:1] in "+-.$£€¥([{\\√π∞\u2212" or claim[:1].isdigit() or "=" in claim.split(",")[0]:
        return claim
    # A sentence: "The largest $n$ is 34". Without any number it may be a name: "Evelyn".
    return last_number(claim) or claim


def _formulas(text: str, formula: re.Match[str]) -> str:
    """The contents of a formula and of those that "," or "and" join to it, with a percent sign that follows."""
    parts: list[str] = []
    at: re.Match[str] | None = formula
    end = formula.end()
    while at:
        parts.append(next(group for group in at.groups() if group is not None).strip())
        end = at.end()
        joint = _NEXT_FORMULA.match(text, end)
        at = _FORMULA.match(text, joint.end()) if joint else None
    return ", ".join(parts) + ("%" if _PERCENT.match(text, end) else "")


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at, at + 200)
    return match.end() if match else at


# ---- the last number ------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"(?<![A-Za-z0-9_.])(?:[0-9]|\.[0-9])")
_PROSE = re.compile(r"\\[A-Za-z]+\s*(?:\{[^{}\\]{0,100}\})?|\b(?:sin|cos|tan|log|ln|exp|max|min|sqrt|pi|mod|and|or)\b")
_WORD = re.compile(r"[A-Za-z][a-z]{2,}[^A-Za-z]+[A-Za-z][a-z]|\b[A-Za-z][a-z]+ |\b[A-Za-z][a-z]+[:.]")
_DELIMITER = re.compile(r"[\s=≈<>|]")
_OPERATORS = frozenset("+-*/^\u00d7÷\u2212·")


def _is_prose(text: str) -> bool:
    return bool(_WORD.search(_PROSE.sub(" ", text)))


def last_number(text: str) -> str | None:
    """The last number of a text, with the formula, sum or power that it is part of; or the text, if it is one formula.

    A text without any number may still hold a formula ("$x + y$"); then that is meant.
    """
    body = text.strip()
    if 0 < len(body) <= 400 and "\n" not in body and (body.isalpha() or (not _is_prose(body) and _mathematical(body))):
        return body
    last = None
    for number in _NUMBER.finditer(body):
        last = number
    position = last.start() if last else -1
    start = max(0, position - 4000)
    formula = None
    for candidate in _FORMULA.finditer(body, start if last else max(0, len(body) - 4000)):
        if (not last or candidate.start() <= position < candidate.end()) and not _is_prose(candidate[0]):
            formula = candidate
    if formula:
        return next(group for group in formula.groups() if group is not None).strip() + (
            "%" if _PERCENT.match(body, formula.end()) else ""
        )
    return _sum_around(body, position) if last else None


def _mathematical(body: str) -> bool:
    return any(mark in body for mark in "0123456789=+^\\$")


def _sum_around(body: str, position: int) -> str:
    """The token at `position`, cut at "=", with the operands that operators join to it: "3 + 2", "1 1/2", "10^3"."""
    start = max(body.rfind(mark, 0, position) for mark in " \t\n\r\u00a0=≈<>:|") + 1
    stop = _DELIMITER.search(body, position)
    end = stop.start() if stop else len(body)
    token = body[start:end]
    percent = _PERCENT.match(body, end)
    before = body[max(0, start - 200) : start].split() if body[start - 1 : start].isspace() else []
    while len(before) >= 2 and before[-1] in _OPERATORS and re.fullmatch(r"[(.\d]\S*\d|\d", before[-2], re.ASCII):
        token = f"{before[-2]} {before[-1]} {token}"
        before = before[:-2]
    if before and before[-1].isdigit() and re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}[.,;]?", token):
        token = f"{before[-1]} {token}"
    return token.strip("*_`\"'.,;:!?$£€¥~").strip() + ("%" if percent and "%" not in token else "")
