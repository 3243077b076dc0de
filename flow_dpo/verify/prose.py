r"""Gold answers that are prose: the single value that a solution or a sentence states, or none.

    "48/2 = 24\n48+24 = 72"             -> "72"        the last line of a solution
    "He has 72 clips."                  -> "72 clips"
    "5 apples", "All real numbers."     -> unchanged: a value, a name
    "x < 3 or\nx > 5"                   -> unchanged: one value on two lines
    "GCD is 6, LCM is 36", "1. 5\n2. 7" -> None        ambiguous

Invariant: an ambiguous text gives None, so nothing is graded by a guess; time is linear in the length of the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

from flow_dpo.verify.canonical import canonical
from flow_dpo.verify.claim import claim
from flow_dpo.verify.equivalence import MAX_CHARS, Answer, Group, Named, Quantity, Word, read
from flow_dpo.verify.expressions import items_of
from flow_dpo.verify.grammar import CONCLUDES, LEAD, PLACES, SPELLED, VERBS
from flow_dpo.verify.sentences import sentence_at

_SENTENCE_WORDS = VERBS | CONCLUDES | {"he", "she", "they", "it", "we", "there", "i", "you", "total", "altogether"}
MAX_NAME_WORDS = 12
"""A line with more words, and a number among them, is no name."""
MAX_SENTENCES = 500
"""A text with more sentences is no gold answer."""
_FENCE = re.compile(r"\$\$|\\\[|\\\]|```\w{0,10}")
_BULLET = re.compile(r"[-*•+][ \t]")
_LABEL = re.compile(r"[\W_]{0,3}(?:\(?\d{1,3}[.):](?!\d)|\(?[A-Za-z][.):]|(?!Total|Result|Sum)[A-Z]\w*(?: \w+){0,3}:)")
_LEFT_OPEN = re.compile(r"(?:[,;=+\-*/<>&]|\b(?:or|and|of|by)|\\(?:cup|cap|in|times|cdot|text\{ ?(?:or|and) ?\}))\s*\Z")
_CARRIES_ON = re.compile(r"[,;=+\-*/<>&)\]}]|(?:or|and|of|by)\b|\\(?:cup|cap|in|times|cdot|text\{ ?(?:or|and)\b)")
_CONDITION = re.compile(r"\\text|\\mid|\||\b(?:if|otherwise|such that|unless|for all)\b")
"""Marks a formula with words in it, such as a condition: its last value is not the answer."""
_CONCLUSION = re.compile(
    r"\b(?:so(?! far\b| that\b| many\b| much\b|-)|therefore|thus|hence|then|i\.e\.|for a total of|totall?ing)(?![a-z])",
    re.IGNORECASE,
)
_CLOSING = re.compile(r"\b(?:total|altogether|in all|left|remaining|remains?|combined|finally)\b", re.IGNORECASE)
_CALCULATED = re.compile(r"[\d)%A-Za-z}] ?(?:[-+*/\u00d7\u00f7x^]|\\times|\\cdot|\\div) ?\$?\\?[\d(.A-Za-z]")
_CLAIMS_MORE = re.compile(
    r"\b(?:yes|no|none|nothing|nobody|not|true|false|never|neither|nor|cannot|either|or|if|than|except|times|round(?:s|ed)|\w{2,6}n['\u2019]t)\b",
    re.IGNORECASE,
)
"""Words that show that a sentence says more, or less, than the number in it."""
_PART_OF_A_NAME = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+\d|\d(?:(?:st|nd|rd|th)\b|!)")


@lru_cache(maxsize=4_096)
def value_of_prose(gold: str) -> str | None:
    """The value of a gold text that is prose: several lines, or a sentence. None if it gives no value, or is ambiguous.

    A text that is not prose is returned unchanged: a value (also over several lines), a name, a title, a phrase without
    numbers. In prose the last sentence counts, if it states one value, all before it are sentences or calculations, and
    it concludes from them (`_concludes`).
    """
    lines = [line for line in map(str.strip, gold.splitlines()) if line and not _FENCE.fullmatch(line)]
    text = " ".join(lines)
    if " " not in text or ("\\begin{" in gold and not _has_words(text)):
        return gold
    if len(lines) > 1 and len({*lines}) == 1:
        return value_of_prose(lines[0])
    if _is_one_value(lines, text) if len(lines) > 1 else not _is_sentence(text):
        return gold
    sentences = [sentence for line in lines for sentence in _sentences(line)]
    if not sentences or len(sentences) > MAX_SENTENCES:
        return None
    *others, last = sentences
    if others and (
        _LABEL.match(last)
        or _BULLET.match(last)
        or not all(_worded(each) or _calculates(each) for each in others)
        or not _concludes(last, others)
        or not (_worded(last) or (_calculates(last) and all(map(_is_of_numbers, sentences))))
    ):
        return None
    return _only_value(last)


def _reading(text: str) -> Answer | None:
    """The answer that a text states (`equivalence.read`); None unless all of it can be read."""
    found = read(canonical(text)) if len(text) <= MAX_CHARS else None
    parts = found.parts if isinstance(found, Group) else (found.body,) if isinstance(found, Named) else ()
    return None if None in parts else found


def _is_one_value(lines: list[str], text: str) -> bool:
    """Whether a text of several lines is one value with line breaks, rather than prose or a list of values."""
    if (
        _has_verb(text)
        or _has_words(text)
        or all(map(_BULLET.match, lines))
        or sum(map(bool, map(_LABEL.match, lines))) > 1
    ):
        return False
    if any(map(_LEFT_OPEN.search, lines[:-1])) or any(map(_CARRIES_ON.match, lines[1:])):
        return True
    if any(sum(map(line.count, "([{")) != sum(map(line.count, ")]}")) for line in lines):
        return True
    whole = _reading(text)
    if whole is None or not all(map(_reading, lines)):
        return whole is not None and not all("=" in line for line in lines)
    measured = isinstance(whole, Quantity) and (whole.first is not None or all(line.isalpha() for line in lines[1:]))
    named = isinstance(whole, Word) and all(line[0].islower() for line in lines[1:]) and lines[0][0].isupper()
    return measured or named


def _is_sentence(text: str) -> bool:
    """Whether a line is a sentence with a number in it, rather than a value or a name."""
    if not (re.search(r"\d", text) or SPELLED.search(text)) or _reading(text) is not None:
        return False
    if len(text.split()) > MAX_NAME_WORDS and _has_words(text):
        return "\\" not in text or _has_verb(text)
    opens = re.match(r"[^\w\\]{0,3}(?:[A-Za-z][A-Za-z]|[AI] )", text)
    return bool(opens) and not _CONDITION.search(text) and _has_verb(text)


def _sentences(line: str) -> list[str]:
    found, at = list[str](), 0
    while at < len(line) and len(found) <= MAX_SENTENCES:
        sentence, end = sentence_at(line, at)
        found += [sentence.strip()] if sentence.strip() else []
        at = max(end, at + 1)
    return found


def _has_verb(text: str) -> bool:
    words = (word.strip(".,;:!()*_") for word in text.split())
    return not _SENTENCE_WORDS.isdisjoint(word.lower() for word in words if word != "i")


def _has_words(text: str) -> bool:
    """Whether a text has more words than a formula with a remark."""
    return len(re.findall(r"(?<!\\)(?<!\\begin\{)(?<!\\end\{)\b[a-z]{3,}\b", text)) > MAX_NAME_WORDS // 2


def _worded(text: str) -> bool:
    """Whether a text is a sentence, judged by its verb or its full stop."""
    words = [word for word in text.split() if word.isalpha() and word.islower()]
    return _has_verb(text) or (len(words) > 1 and text.endswith((".", "!", ":")))


def _calculates(text: str) -> bool:
    head, equals, _ = text.rpartition("=")
    return bool(equals) and bool(re.search(r"\d", head)) and bool(_CALCULATED.search(head))


def _concludes(last: str, others: list[str]) -> bool:
    """Whether a sentence gives the result of those before it, rather than one more value.

    It does if it says so ("so", "altogether"), uses a result of theirs, or is the only calculation.
    """
    if _CONCLUSION.search(last) or _CLOSING.search(last):
        return True
    results = {each.strip(".,") for other in others for each in re.findall(r"= ?\$?(\d[\d.,]*)", other)}
    used = {each.strip(".,") for each in re.findall(r"\d[\d.,]*", last.rpartition("=")[0] or last)}
    return bool(results & used) or (not results and _calculates(last))


def _is_of_numbers(text: str) -> bool:
    """Whether a calculation has only numbers. An equation with a variable could belong to a system."""
    return _worded(text) or not re.search(
        r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", re.sub(r"(?<=[\d)]) ?x ?(?=\$?[\d(])", "*", text)
    )


def _values(text: str) -> list[tuple[str, int]]:
    """The numbers and formulas of a text, with their positions."""
    found = [(item.text, item.start) for item in items_of(text) if item.kind == "value"]
    return found + [(each[0], each.start()) for each in SPELLED.finditer(text) if each[0].lower() != "one"]


def _only_value(sentence: str) -> str | None:
    """The only value of a sentence, of its conclusion or of the last side of its calculation; None if not just one."""
    clause = sentence
    for marker in _CONCLUSION.finditer(sentence):
        if _values(sentence[marker.end() :]):
            clause = sentence[marker.end() :].strip(" ,:")
    if _CLAIMS_MORE.search(clause) or _PART_OF_A_NAME.search(clause):
        return None
    values, (head, equals, tail) = _values(clause), clause.rpartition("=")
    if len(values) > 1 and equals and _calculates(clause) and not re.search(r"[,;](?!\d{3})|\band\b", head):
        shift = len(head) + 1
        values = [(text, at + shift) for text, at in _values(tail)]
    if len(values) != 1:
        return None
    before = re.sub(r"(?: the| these| those)*[ $*\\(]*\Z", "", clause[: values[0][1]]).split()[-1:]
    if before and not _calculates(clause):
        named = before[0][0].isupper() and before[0].isalpha() and before[0].lower() not in LEAD
        if named or before[0].lower() in PLACES:
            return None
    found = claim(clause, stated=False, opens_line=True)
    return found if found and _reading(found) is not None else None
