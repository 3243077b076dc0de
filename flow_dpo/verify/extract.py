r"""Extraction of a solution's final answer from its text.

Two decisions, each a setting of `AnswerRule`. *Where* an answer counts: by default only on the last line, and only if
that line is closed (a newline follows it, or the solution ended with its end token), so an answer that was cut off or
abandoned never counts. *How* it is found there, in this order: the last box, then what follows the last "answer is",
"Answer:" or "####", then the last number (with the formula or calculation around it). `claim` reads what a sentence
claims; an answer that is taken back afterwards ("wait, that is wrong") does not count.

    "2 + 3 = 5\nAnswer: 15\n"         -> "15"     closed by its newline
    "2 + 3 = 5\nAnswer: 1"            -> None     open: the next chunk could make it "15"
    "Answer: 15\nWait, let me check"  -> None     the last line is another one, and open
    "So \[ x = \boxed{\frac12} \]."   -> \frac12  if `ended`

Invariant: time is linear in the length of any text: searches over all of it go in pieces from its end, and what is read
around a place has a bounded number of characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from flow_dpo.verify.boxes import BRACES, MAX_BOXES, box_is_open, boxed, last_box
from flow_dpo.verify.claim import claim
from flow_dpo.verify.doubt import breaks_off, claims_nothing, plans_on, supposes, taken_back
from flow_dpo.verify.expressions import whole_text
from flow_dpo.verify.prose import value_of_prose
from flow_dpo.verify.sentences import MAX_SENTENCE, sentence_at

Extractor = Literal["box", "answer_is", "number"]


@dataclass(frozen=True, kw_only=True)
class AnswerRule:
    """The rule for which answer of a solution counts."""

    which: Literal["closed_last_line", "last_line", "anywhere"] = "closed_last_line"
    """`closed_last_line`: only an answer on the last line that is not blank, and only if that line is finished.
    `last_line`: the same, finished or not. `anywhere`: the last answer of the whole text."""
    extractors: tuple[Extractor, ...] = ("box", "answer_is", "number")
    """What counts as an answer there, in order; the first extractor that finds something decides."""


NO_ANSWER = "no answer"
"""The reason in the verdict on a solution without a readable answer."""
MAX_ANSWER = 10_000
"""Longer answers are cut and end in "…", which ends no gold answer, so they equal nothing."""


def extract_answer(text: str, *, ended: bool, rule: AnswerRule) -> str | None:
    """The final answer of a solution as it was written, or None if it gives none, or takes it back.

    If the box is empty or was never closed, there is no answer, not even beside it. (A box that is only mentioned, as
    in "I put it in \\boxed{}", is not a box.)
    """
    text = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
    if "<think>" in text:
        return None  # the thought is still open: what it tries out is no answer
    if text[-20:].rstrip().endswith((">", "]")):
        text = text[:-80] + _END_TOKENS.sub("", text[-80:])
    place = text if rule.which == "anywhere" else _last_line(text, ended)
    if rule.which == "closed_last_line" and not (ended or _is_closed(text)):
        return None
    if "box" in rule.extractors and box_is_open(text):
        return None
    if breaks_off(place):
        return None
    start = 0
    for _ in range(4):  # if an answer is taken back, the text after it can hold another
        found = None
        for extractor in rule.extractors:
            # A bare number counts only if the solution has ended: on a line that is merely closed it is a step.
            if extractor == "number" and not ended and rule.which == "closed_last_line":
                continue
            found = _FINDERS[extractor](place[start:] if start else place)
            if found:
                break
        if found is None:
            return None
        answer, at = found
        if not answer:
            return None
        behind = taken_back(place, start + at, answer)
        if behind < 0:
            return answer if len(answer) <= MAX_ANSWER else answer[:1_000] + "…"
        start = behind
    return None


def gold_answer(gold: str) -> str:
    r"""The answer in a gold field: from "\boxed{9}", "The answer is 9" or a whole solution, else the field itself.

    "" if the field is empty, or is prose that gives no value, or several that could be meant (`prose`).
    """
    box = last_box(gold)
    return (after_answer_is(gold) or value_of_prose(gold) or "").strip() if box is None else box


_END_TOKENS = re.compile(r"(?:\s*(?:</s>|<\|\w{1,20}\|>|<(?:eos|pad|eot|end_of_turn)>|\[/INST\]))+\s*\Z")

# ---- where ----------------------------------------------------------------------------------------------------------

_ORNAMENT = re.compile(r"[\s`*_\-=~]*\Z")
_POLITE = (
    r"[\s*_(]{0,8}(?:(?:i )?hope|let me know|please let|feel free"
    r"|if you (?:have (?:any|more|further)|need (?:any|more)|want me|would like|[\u2019']d like)"
    r"|(?:i[\u2019']m )?happy to|thank|you[\u2019']re welcome|is there anything|good luck|great job"
    r"|need (?:any |more |some )?help|do you (?:have|want|need)|would you like|want (?:me|to)|any (?:other |more )?"
    r"questions|i[\u2019']m (?:always )?here|i am (?:always )?here|can i|shall i|may i"
    r"|have a (?:great|nice|good))\b"
)
_COURTESY = re.compile(rf"{_POLITE}[^\d\\\n]{{0,200}}\Z", re.IGNORECASE)
_COURTEOUS = re.compile(_POLITE, re.IGNORECASE)
_HEADING = re.compile(r"[\s#*_>|]{0,12}(?:the )?(?:final )?answers?(?: is)?[\s:=*_.-]{0,8}\Z", re.IGNORECASE)
MAX_LINE = 20_000
"""Characters at the end of a text that are searched for its last line; a display of several lines counts as one."""


def _is_closed(text: str) -> bool:
    """Whether a newline follows the last line, outside any box or display that is still open."""
    body = text.rstrip()
    if "\n" not in text[len(body) :]:
        return False
    return not (body.rfind("\\[") > body.rfind("\\]") or body.count("$$") % 2 or box_is_open(body))


def _last_line(text: str, ended: bool) -> str:
    r"""The last line with content; if it closes a display or a brace, everything from the line that opened it.

    "Hence\n\[\n x = 14\n\]\n" gives "\[\n x = 14\n\]", not "\]"; "Final answer:\n14\n" gives both lines.
    """
    body = text.rstrip()[-MAX_LINE:]
    start = body.rfind("\n") + 1
    # Skip ornaments ("```", "---", "**") and, if the text has ended, a closing courtesy.
    while start and (_ORNAMENT.match(body, start) or (ended and _COURTESY.match(body, start))):
        body = body[:start].rstrip()
        start = body.rfind("\n") + 1
    for _ in range(4):  # nested: a brace in an environment in a display
        opener = _opener(body, start)
        if opener >= start:
            break
        start = body.rfind("\n", 0, opener) + 1
    above = body[:start].rstrip()
    heading = above.rfind("\n") + 1
    return body[heading if _HEADING.match(above, heading) else start :]


def _opener(body: str, start: int) -> int:
    """The earliest opening of a display, environment or brace that is closed at or after `start`; else `start`."""
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
    if "}" in line and _closes_more(line):
        for brace in BRACES.finditer(body):
            if brace[0] == "{":
                stack.append(brace.start())
            elif brace[0] == "}" and stack:
                opened = stack.pop()
                if brace.start() >= start:
                    openers.append(opened)
    return min(opener for opener in openers if opener >= 0)  # -1: nothing opens it


def _closes_more(line: str) -> bool:
    """Whether a line closes a brace that it does not open."""
    depth = 0
    for brace in BRACES.finditer(line):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth < 0:
            return True
    return False


def _backwards(pattern: re.Pattern[str], text: str, piece: int = 4_096) -> Iterator[re.Match[str]]:
    """The matches of a pattern, from the last to the first; the pattern must match at most 200 characters."""
    end = len(text)
    while end > 0:
        begin = max(0, end - piece)
        found = [match for match in pattern.finditer(text, begin, min(len(text), end + 200)) if match.start() < end]
        yield from reversed(found)
        end = begin


# ---- "the answer is" ------------------------------------------------------------------------------------------------

_VERB = (
    r"(?:\b(?:is|are|be|was|equals|IS|(?:comes?|came)(?: out)? to)\b|[\u2019']s\b|[:=\uff1a]|\s[-\u2013\u2014→]{1,2}\s)"
)
_MARKER = re.compile(
    # One set of first characters lets the search skip from candidate to candidate; then what each can begin.
    r"[Aa<#Rr\u041e\u043e答정](?:(?<=\b[Aa])(?:"
    # "The answer to this is", "Answer:", "answer - ", "| Answer | 7 |"; "Ans 7"
    r"(?<!to [Aa])(?<!you [Aa])(?<!can [Aa])(?<!wrong [Aa])(?<!incorrect [Aa])(?:nswers?|NSWERS?)\b(?:"
    r"(?:(?![Aa]nswer)[^.\n:=$\\|\"\u201c]|[\"\u201c][^\"\u201d\n]{1,60}[\"\u201d]){0,60}?"
    rf"{_VERB}|\*{{0,2}} ?\|(?!\s{{0,4}}\n))|(?:ns|NS)\b ?[.:=-]{{0,2}}"
    # Only at the beginning of a line: "## Final answer", "Answer $7$", "A: 7"
    r"|(?P<line>nswer[ \t*_]{0,4}(?:\n|(?=[$\d]|\\[(\[]))|(?<=A)(?<![^\s*_>#]A):)"
    r"|ntwort[^.\n\d$\\]{0,20}?(?:ist|lautet|[:=]))"
    # "#### 7" (but "#### 1. First" is a heading), "<answer>7"
    r"|(?<=#)(?<!##)###(?=[ \t]{0,4}(?:[-+$€£(\[{\\.√π]|\d{1,20}(?![.):]\s+[A-Za-z*])|[^\s#]\S{0,20}\s{0,4}$))"
    r"|(?<=<)answer>"
    r"|(?<=[Rr\u041e\u043e答정])(?:éponse|espuesta|esposta|isposta|\u0442\u0432\u0435\u0442|[案え]|답)"
    r"[^.\n\d$\\答]{0,20}?(?:\b(?:es|est|è|é)\b|[:\uff1a=是为為は]))",
    re.MULTILINE,
)
_LEAD = re.compile(
    r"(?:[\s:=*_#|`~\"\u201c\u201d→⇒\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]|(?<=\n)(?:[-•+][ \t]|>)|(?<==)>)*"
)
_LINE_START = re.compile(r"(?:\A|\n)[ \t#*_>]{0,8}(?:[Tt]he )?(?:[Ff]inal )?\Z")
_BULLET = re.compile(r"\s{0,8}\n[ \t]{0,8}[-*•+][ \t]+")
MAX_MARKERS = 30


def after_answer_is(text: str) -> str | None:
    """The answer after the last "answer is", "Answer:", "####" or "A:", read up to the end of its sentence."""
    found = _stated(text)
    return found[0] if found else None


def _states(text: str, marker: re.Match[str]) -> bool:
    """Whether a marker introduces an answer: not negated or supposed, and at the start of its line if it must be."""
    if supposes(text, marker.start()):
        return False
    if "would" in marker[0] and claims_nothing(text[max(0, marker.start() - 120) : marker.end() + 120]):
        return False
    if not marker["line"]:
        return not re.search(r"not\b|n['\u2019]t\b|\b(?:never|might|may|perhaps|possibly)\b", marker[0])
    before = text[max(0, marker.start() - 30) : marker.start()]
    return bool(_LINE_START.search(before)) and (marker.start() <= 30 or "\n" in before)


_MARKER_SIGNS = (
    "nswer", "NSWER", "####", "ns", "NS", "A:", "ntwort", "éponse", "espuesta", "esposta", "isposta",
    "\u0442\u0432\u0435\u0442", "答", "답",
)  # fmt: skip
"""Every marker contains one of these."""
_ABBREVIATED = re.compile(r"\b[Aa](?:ns|NS)\b")


def _may_state(text: str) -> bool:
    """Whether the text can contain a marker: a cheap test before the search for one."""
    signs = [sign for sign in _MARKER_SIGNS if sign in text]
    return bool(signs) and (not set(signs) <= {"ns", "NS"} or _ABBREVIATED.search(text) is not None)


def _stated(text: str) -> tuple[str, int] | None:
    if not _may_state(text):
        return None
    markers = (found for found in _backwards(_MARKER, text) if _states(text, found))
    for marker in islice(markers, MAX_MARKERS):
        lead = _LEAD.match(text, marker.end(), marker.end() + 200)
        start = lead.end() if lead else marker.end()
        sentence, end = sentence_at(text, start)
        found = claim(sentence, stated=True, opens_line=_opens_line(text, start))
        if found is None:
            continue
        if lead and re.search(r"\n[ \t]*[-*•+][ \t]", lead[0]):  # a list of lines
            values = [found]
            while (bullet := _BULLET.match(text, end - (text[end - 1 : end] == "\n"))) and len(values) < MAX_BOXES:
                sentence, end = sentence_at(text, bullet.end())
                values.append(claim(sentence, stated=True) or "")
            found = ", ".join(filter(None, values))
        return found, start
    return None


# ---- the last number ------------------------------------------------------------------------------------------------

_TO_LAST_DIGIT = re.compile(r".*[0-9]", re.DOTALL)
_WORDED = re.compile(r"[$)\]]|[A-Za-z]{3}")


_CHECK = re.compile(
    r"(?:\n|[.!\u2713\u2705])[\s*_#>(-]{1,12}(?:(?:quick |sanity |double[- ])?checks?|verification"
    r"|verify(?:ing)?|proof|checking"
    r"|to (?:verify|check|confirm)|let(?:[\u2019']s| me| us) (?:double[- ]?check|verify|check|confirm)"
    r"|we can (?:verify|check|confirm))\b(?![^\n]{0,400}\b(?:so|therefore|thus|hence|then)\b)",
    re.IGNORECASE,
)


def _numbered(text: str) -> tuple[str, int] | None:
    """The last claimed value. If the text ends with a check of the result, the last one before the check."""
    end = text[-600:]
    checks = "heck" in end or "erif" in end or "roof" in end or "onfirm" in end
    check = _CHECK.search(text, max(0, len(text) - 600)) if checks else None
    if check and re.search(r"\d", text[max(0, check.start() - MAX_SENTENCE) : check.start()]):
        text = text[: check.start() + 1]
    return _last_number(text)


def _last_number(text: str) -> tuple[str, int] | None:
    whole = whole_text(text)
    if whole:
        return whole, len(text)
    digit = _TO_LAST_DIGIT.match(text)
    worded = None if digit else next(_backwards(_WORDED, text), None)
    if not digit and not worded:
        return None
    last = digit.end() - 1 if digit else worded.start() if worded else 0
    rest = text[last : last + 400]
    _, behind = sentence_at(rest, 0)
    tail = rest[behind:]
    if tail and tail.strip() and plans_on(tail) and not _COURTEOUS.match(tail):
        return "", len(text)
    # Of the sentences up to that one, take the last that claims a value: first on its line, then on earlier ones.
    most = max(0, last - MAX_SENTENCE)
    line = text.rfind("\n", most, last) + 1
    if line and not _SPANNING.search(text, line):
        found = _last_claim(text, line, last)
        if found is not None:
            return found
    return _last_claim(text, most, last)


def _opens_line(text: str, at: int) -> bool:
    """Whether a line begins at a place, apart from blanks."""
    before = text[max(0, at - 40) : at]
    return not before.rpartition("\n")[2].strip() and ("\n" in before or at <= 40)


_SPANNING = re.compile(r"\$\$|\\[\])]")
"""What can close a formula that begins on an earlier line."""


def _last_claim(text: str, begin: int, last: int) -> tuple[str, int] | None:
    sentences: list[tuple[str, int]] = []
    while begin <= last:
        sentence, end = sentence_at(text, begin)
        sentences.append((sentence, begin))
        begin = max(end, begin + 1)
    for sentence, at in reversed(sentences[-5:]):
        found = None
        if not _COURTEOUS.match(sentence):
            found = claim(sentence, stated=False, opens_line=_opens_line(text, at))
        if found is not None:
            return found, at
    return None


_FINDERS = {"box": boxed, "answer_is": _stated, "number": _numbered}
