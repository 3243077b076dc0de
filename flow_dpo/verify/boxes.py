r"""Boxes: the answer in the last \boxed or \fbox of a text, with alternatives or denials beside it.

    "so \boxed{6} and \boxed{8}."       -> "6, 8"      one sentence joins them
    "\boxed{28} or \boxed{28_9}"        -> "28_9"      two forms of one value
    "\boxed{5} hours", "\boxed{42}, or maybe 41"       -> "5 hours", "42, 41"
    "-\boxed{5}", "\boxed{5} million", "\boxed{5}^2"    -> "-5", "5 million", none: what touches a box is not dropped
    "I put it in \boxed{}: \boxed{7}"   -> "7"         a box that is only mentioned does not count

Invariant: the search starts at the end, and reads at most `MAX_BOX` characters of a box and `MAX_BOXES` boxes.
"""

from __future__ import annotations

import re

from flow_dpo.verify.canonical import SMALL
from flow_dpo.verify.claim import alike, claim, listed, offered
from flow_dpo.verify.doubt import WRONG, denied
from flow_dpo.verify.sentences import MAX_SENTENCE, sentence_at
from flow_dpo.verify.words import SCALE, is_unit

BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX_BODY = re.compile(r"[^\s$]{1,200}")
_JOINT_NOISE = re.compile(r"\\[()\[\],;:! ]|\\q?quad|\\text|\\mbox|[${}~\s]+")
_JOINT = re.compile(
    r"(?:[A-Za-z]{1,15} )?(?:,|;|,? ?\(?(?P<word>and|or)(?: maybe| perhaps| possibly| else| even)* ?)"
    r"(?: ?[A-Za-z]\w{0,3}(?: ?\([^()]{1,10}\))? ?=)?"
)
_MENTION = re.compile(r"\b(?:in|inside|within|using|with|into|a|the|use)\s+[`$\\(]{0,4}\Z")
_OR_ELSE = re.compile(
    r"[\s$)\]\\*]{0,8}[,(]?\s?(?=(?:or(?! else)|alternatively|but (?:it )?(?:could|might|may)|maybe|perhaps)\b)"
)
_BOX_TAIL = re.compile(
    r"[\s$*~]{0,4}(?:\\[)\] ,;]|\\text\{|\$|\s){0,4}"
    rf"(percent\b|\\?%|(?P<scale>(?i:{SCALE}|mn|bn)s?\b)|(?:square |cubic )?(?!in\b)"
    r"(?P<unit>[A-Za-z]{2,12})(?:(?: per |/)[a-z]{1,12})?(?![A-Za-z]))"
)
_EITHER = re.compile(r"\beither\s+([^.\n]{1,60}?)\s+or\s+[$\\(\[]{0,4}\Z", re.IGNORECASE)
_EITHER_WILL_DO = re.compile(r"[\s$.)\]\\]{0,8}\(?Either\b")
MAX_BOX = 20_000
"""The most characters of a box; a longer one counts as never closed."""
MAX_BOXES = 100
"""The most boxes that one sentence can join."""


def _find_box(text: str, start: int, end: int) -> int:
    last = text.rfind("\\boxed", start, end)
    return max(last, text.rfind("\\fbox", max(start, last), end))


def _box_span(text: str, start: int, stop: int) -> tuple[str, int] | None:
    """Contents and end of the box that starts at `start`; None if its brace is not closed before `stop`."""
    at = start + (6 if text.startswith("\\boxed", start) else 5)
    stop = min(stop, at + MAX_BOX)
    while at < stop and text[at].isspace():
        at += 1
    if not text.startswith("{", at):  # "\boxed 2": TeX boxes the next token
        token = _BOX_BODY.match(text, at, stop)
        return (token[0].rstrip(".,;:*`"), token.end()) if token else ("", at)
    close = text.find("}", at, stop)
    inside = text[at + 1 : close]
    if close >= 0 and "{" not in inside and "\\" not in inside:
        return inside.strip(), close + 1
    depth = 0
    for brace in BRACES.finditer(text, at, stop):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return text[at + 1 : brace.start()].strip(), brace.end()
    return None


def box_is_open(text: str) -> bool:
    start = _find_box(text, 0, len(text))
    return start >= 0 and _box_span(text, start, len(text)) is None


def last_box(text: str, *, joined: bool = True) -> str | None:
    r"""Contents of the last \boxed or \fbox; "" if it is empty, unclosed or an operand, None if there is no box.

    Boxes joined in one sentence are one answer: "\boxed{6} and \boxed{8}" is "6, 8", because a writer who boxes two
    numbers has not chosen the second. The last box alone counts if "or" joins two forms of one value ("\boxed{28} or
    \boxed{28_9}"), if the text says that either will do, or with `joined` off.
    """
    found = _boxes(text, len(text), joined=joined)
    return _with_neighbours(text, *found)[0] if found else None


def _boxes(text: str, stop: int, *, joined: bool = True) -> tuple[str, int, int] | None:
    """The joint contents of the last boxes before `stop`, and where they begin and end."""
    last = start = _find_box(text, 0, stop)
    if start < 0:
        return None
    span = _box_span(text, start, len(text))
    if span is None:
        return "", start, len(text)
    contents, end, word = [span[0]], span[1], None
    joined = joined and not _EITHER_WILL_DO.match(text, end)
    for _ in range(MAX_BOXES if joined else 0):
        before = _find_box(text, max(0, start - MAX_SENTENCE), start)
        span = _box_span(text, before, start) if before >= 0 else None
        if span is None or start - span[1] > 80:
            break
        between = " ".join(_JOINT_NOISE.sub(" ", text[span[1] : start]).split())
        joint = _JOINT.fullmatch(between)
        if not joint:
            break
        if span[0] != contents[-1] and not (joint["word"] == "or" and alike(span[0], contents[-1])):
            contents.append(span[0])
        start, word = before, word or joint["word"]
    return listed(contents[::-1], word), last if len(contents) == 1 else start, end


# ---- what touches a box ----------------------------------------------------------------------------------------------

_THIN = r"(?:\\[,;:! ]|[ ~]){0,3}"
_MINUS = re.compile(  # a sign: not a difference ("2-\boxed{3}"), a dash or a bullet ("- \boxed{3}")
    r"(?:(?:^|[\n=($\[:&,~\u2248]|\\[(\[!,;: ]|(?<=[=:&(,.;])\s{1,3}|(?<=[A-Za-z]{2})\s{1,3})[-\u2212]"
    r"|(?:[=:&(\u2248] ?|\$|\\[(\[] ?|\b(?:is|equals|be) )[-\u2212] )(?:\$|\\[(\[!,])?\Z"
)
_EITHER_SIGN = re.compile(r"(?:\\pm|\u00b1) ?(?:\$|\\[(\[!,])?\Z")
_NO_TERM = re.compile(r"\(?(?:\\(?:text|mbox|mathrm)|[A-Za-z]{2}|[A-J]\)?\Z)|[^=:]*[=:]|\\?[\[({][^\])}]*,")
"""The contents of a box before which a dash is no sign: a name, a choice, an equation, a time, a tuple."""
_INSIDE = re.compile(r"\\(?:[dtc]?frac ?\{(?:[^{}]{1,40}\} ?\{)?|sqrt ?(?:\[\w{1,3}\])? ?\{) ?\Z|[\d}] ?/ ?\Z")
_POWER_OF_TEN = re.compile(
    rf"{_THIN}(?:\\times|\\cdot|\u00d7|\*|[xX](?= )) ?10 ?(?:\^|\*\*) ?(?:\{{ ?[-+]?\d{{1,3}} ?\}}|-?\d{{1,3}})"
)
_MORE_DIGITS = re.compile(r"\$?(?:(?:,|\{,\})\d{3}(?!\d)){1,9}(?:\.\d{1,20})?|\.\d{1,20}")
_NO_TEXT = r"\\(?!text|mbox|mathrm)[a-z(]"
_CARRIES_ON = re.compile(
    rf"\d|{_THIN}(?:[{SMALL}]|(?:\^|\*\*) ?\{{? ?[-+]?(?:\d|[a-z](?![a-z])|\\frac)|\\sqrt|\\[dt]?frac ?\{{? ?\d"
    rf"|(?:\\times|\\cdot|\\div|\\pm|[*+\u00d7\u00f7\u00b7\u00b1]) ?(?:\d|\(\d|{_NO_TEXT}|[a-z](?![a-z]))"
    rf"|[-\u2212/] ?(?:\d|{_NO_TEXT}))"
)
_FORMULA_END = re.compile(r"\$|\\[)\]]|\n|\\end|[,;.](?:\s|\Z)")
_BELOW_ZERO = re.compile(
    r"(?:[\s$~\\^{}()\u00b0]|circ|text|mathrm|degrees?|[Cc]elsius|[Ff]ahrenheit|[CF]\b){0,16}below zero\b"
)


def _with_neighbours(text: str, content: str, start: int, end: int) -> tuple[str, int]:
    r"""The contents of a box with the sign, digits or power of ten that touch it, and the end of these.

    "-\boxed{5}" is -5, and "\boxed{5},000" is 5,000. "" if the box is an operand ("\boxed{5}^2",
    "\frac{\boxed{5}}{2}"), unless in an equation ("\boxed{5} \times 3 = 15"). A coefficient ("\boxed{19}x^3") or the
    last digits ("355\boxed{680}") can be what was asked for.
    """
    front, behind = text[max(0, start - 80) : start], text[end : end + 80]
    stop = _FORMULA_END.search(behind)
    if content and "=" not in behind[: stop.start() if stop else None]:
        more = (_POWER_OF_TEN.match(behind) or _MORE_DIGITS.match(behind)) if _BARE.fullmatch(content) else None
        if more:
            content, end = content + more[0].strip("$"), end + more.end()
        elif _INSIDE.search(front) or _CARRIES_ON.match(behind):
            return "", end
    negative = _MINUS.search(front) or (_BARE.fullmatch(content) and _BELOW_ZERO.match(behind))
    if content and negative and not _NO_TERM.match(content):
        content = f"-({content})" if re.search(r"[-+]", content) else f"-{content}"
    elif content and _EITHER_SIGN.search(front):
        content = f"\\pm {content}"
    return content, end


_ODD_FRONTS = ("not", "n't", "n\u2019t", "ither", "never", "rather", "instead", "\\ne", "≠", "nor ", "cept", "than")
_ONLY_SIGNS = re.compile(r"[\s.$*)\]}\\]{0,40}(?:end\{[a-z*]{1,12}\}[\s.$\]\\]{0,20})?\Z")
_DENIES = re.compile(rf"\b(?:is|are|was)\b[^.]{{0,12}}{WRONG}|^(?:\\text\{{)? ?not ?\}}? ?[\d\\]")
_BARE = re.compile(r"-?[\d.,]*\d")
_ODD_BOX = re.compile(r"\b(?:is|are|was|not)\b")
_TOUCHED = re.compile(r"(?:[-\u2212\u00b1/{]|\\pm)[\s$\\(\[!,]{0,5}\Z")


def boxed(text: str) -> tuple[str, int] | None:
    """The answer in the last boxes, with a unit or magnitude after them and an alternative beside them, and its end."""
    # 1. The common case: one box, only signs after it, and nothing in it or before it that denies it.
    last = _find_box(text, 0, len(text))
    if last < 0:
        return None
    span = _box_span(text, last, len(text))
    if span and span[0] and _ONLY_SIGNS.match(text, span[1]):
        front = text[max(0, last - 80) : last].lower()
        if (
            not any(odd in front for odd in _ODD_FRONTS)
            and not _ODD_BOX.search(span[0])
            and not _TOUCHED.search(front)
            and _find_box(text, max(0, last - MAX_SENTENCE), last) < 0
        ):
            return span
    found = _boxes(text, len(text))
    for _ in range(MAX_BOXES):  # "I put it in \boxed{}" mentions a box
        if not found or found[0].strip(".…? ") or not _MENTION.search(text[max(0, found[1] - 20) : found[1]]):
            break
        found = _boxes(text, found[1])
    if not found:
        return None
    content, start, end = found
    if not content:
        return "", end
    if denied(text, start, end) or _DENIES.search(content):
        return None
    content, end = _with_neighbours(text, content, start, end)
    if not content:
        return "", end
    behind = text[end : end + 200]
    tail, other = _BOX_TAIL.match(behind), _OR_ELSE.match(behind)
    measured = tail and _BARE.fullmatch(content) and (not tail["unit"] or is_unit(tail["unit"]))
    if tail and (tail["scale"] or measured):
        content += f" {tail[1]}"
    values = [content]
    other = other or (_OR_ELSE.match(behind, tail.end()) if tail else None)
    if other:
        second = claim("0, " + sentence_at(behind, other.end())[0], stated=True) or ""
        values += [second.removeprefix("0, ")] if second.startswith("0, ") else []
    either = _EITHER.search(text[max(0, start - 80) : start])
    if either and any(char.isdigit() for char in either[1]):
        values.insert(0, either[1].strip(" $"))
    return offered(values) if len(values) > 1 else content, end
