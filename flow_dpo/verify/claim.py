r"""Claim grammar: the value that one sentence claims as the answer, as it is written.

One value is chosen by its place in the sentence, and extended by what changes it: a sign or comparison in words before
it ("minus", "at least"), an alternative beside it ("42 or 41"), a unit or magnitude after it ("5 million").
Explanations are left out. `equivalence` decides which values are equal.

    "7, so Tom has 7 left."               -> "7"
    "$180 + $300 = $480"                  -> "$480"
    "minus 5 degrees"                     -> "minus 5 degrees"
    "$42$ (or $41$)"                      -> "42, 41"    two values are a list, equal only to a list
    "not 42", "42 is wrong"               -> None

Invariant: what is read is one sentence, of a bounded length (`sentences`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.verify.canonical import CONDITION, VULGAR
from flow_dpo.verify.closed_form import closed_form
from flow_dpo.verify.doubt import claims_nothing, denied, may_deny
from flow_dpo.verify.equivalence import MAX_CHARS, for_algebra, same
from flow_dpo.verify.expressions import Item, formula_alone, items_of
from flow_dpo.verify.grammar import (
    ARITHMETIC,
    ASSIGNED,
    CHANGED,
    CONCLUDES,
    DOUBT,
    EXPLAINS,
    FRONTS,
    GIVES_UP,
    HEDGES,
    LABEL,
    LEAD,
    NO_NAMES,
    NO_ROLE,
    OPERATES,
    PERHAPS,
    PREFIX,
    RESULT,
    SHARED,
    SPELLED,
    STOP,
    THEN,
    TIMES,
    VERBS,
    WHICH,
)
from flow_dpo.verify.words import COUNTS, SHORT_SCALES, is_unit, same_measure

_MARKS = re.compile(  # formatting: Markdown, a few tags, calculator annotations; also text that is struck out
    r"~~[^~\n]{1,200}~~|<<[^<>\n]{1,100}>>|[`\u200b\ufe0f]|</?(?:b|strong|i|em|u|code|span|p|br|div|mark|answer) ?/?>"
    r"|(?<![\w)}$*])\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?![\w({$\\*])|(?<![\w)}])_{1,3}(?=\w)|(?<=\w)_{1,3}(?![\w{\\])"
)
_MARKING = frozenset("*`~<_\u200b\ufe0f")
_BULLET = re.compile(r"[ \t]{0,8}(?:[-*\u2022>+][ \t]+|#{1,6}[ \t]+)")
_PLAIN = re.compile(r"[\s*_]{0,9}(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)[\s*_]{0,9}\.?[\s*_]{0,9}")


def claim(sentence: str, *, stated: bool, opens_line: bool = False) -> str | None:
    """The value that a sentence claims, as it is written; None if it claims none, or denies it.

    "" if it is a question, a task or a first step, so an earlier claim is not the last word either. `stated`: the
    sentence follows "the answer is", so it can mean its first value or a name; otherwise the last value is meant.
    `opens_line`: the sentence begins its line, so a dash at its start is a bullet; elsewhere ("the answer is - 12") it
    is a sign.
    """
    if opens_line and (bullet := _BULLET.match(sentence)):
        sentence = sentence[bullet.end() :]
    plain = _PLAIN.fullmatch(sentence) if stated else None
    if plain:
        return plain[1]
    if stated and (alone := formula_alone(sentence)):
        return alone
    if not _MARKING.isdisjoint(sentence):
        sentence = _MARKS.sub("", sentence)
    if stated and re.match(r"\W{0,3}(?:yes|no|none|true|false)\b(?!\s\w+\s\d)", sentence, re.IGNORECASE):
        return _name(sentence)
    if not stated and claims_nothing(sentence):
        return ""
    items = items_of(sentence)
    if not any(item.kind == "value" for item in items):
        items = _with_words(sentence, items, stated)
    places = [at for at, item in enumerate(items) if item.kind == "value"]
    denies = may_deny(sentence)
    if not places or (not stated and (denies or "nable" in sentence) and GIVES_UP.search(sentence)):
        return _name(sentence) if stated else None
    read = _Sentence(sentence, items, places, stated, denies)
    at = read.chosen()
    return None if at is None else read.grown(at)


def _with_words(sentence: str, items: list[Item], stated: bool) -> list[Item]:
    """The items, with number words such as "twenty-five" as values."""
    for found in SPELLED.finditer(sentence):
        if found[0].lower() != "one" or stated:
            before = [item for item in items if item.end <= found.start()]
            after = [item for item in items if item.start >= found.end()]
            items = [*before, Item("value", found[0], found.start(), found.end()), *after]
    return items


def _name(sentence: str) -> str | None:
    """The name in a sentence without numbers: "Evelyn", "yes", "(C)"; None if there is none."""
    letters = re.match(
        r"\W{0,4}?(?:([A-Z](?:(?:, | and |, and )[A-Z]\b)+)|(\([A-J]\)(?:(?:,? (?:and|or|&) |, ?| ?/ ?)\([A-J]\))+))",
        sentence,
    )
    if letters:
        return letters[1] or letters[2]
    text = re.split(
        r"[,;]|\s[(\u2014\u2013-]|\b(?:because|since|as|which|where)\b|[.!?](?:\s|$)",
        sentence.strip(' \t\r"\u201c\u201d'),
    )[0]
    text = re.sub(
        r"^(?:(?:definitely|clearly|simply|just|that|option|choice)\s)+", "", text.strip(), flags=re.IGNORECASE
    )
    text = text.strip(" \t\r\"'\u201c\u201d.:")
    words = text.split()
    named = 0 < len(words) <= 6 and any(char.isalnum() for char in text) and words[0].lower() not in NO_NAMES
    return text if named else None


def alike(one: str, other: str) -> bool:
    """Whether two expressions have the same value, as "1/2" and "0.5", or "x+1" and "1+x"; never if one is too long."""
    if max(len(one), len(other)) > MAX_CHARS:
        return False
    if same(one, other) is True:
        return True
    here, there = (closed_form(for_algebra(each)) for each in (one, other))
    return here is not None and there is not None and here.same(there) is not False


def listed(values: Sequence[str], word: str | None) -> str:
    """Several values as a list. Conditions keep the word, "or" or "and", that joins the last of them."""
    unique = list(dict.fromkeys(values))
    joint = f" {word} " if word and all(map(CONDITION.search, unique)) else ", "
    return joint.join(unique)


def offered(values: Sequence[str]) -> str:
    """The answer that several values give: the first if the others only repeat it, otherwise their list."""
    unique = list(dict.fromkeys(values))
    if 1 < len(unique) <= 8 and all(alike(unique[0], other) for other in unique[1:]):
        return unique[0]
    return listed(unique, "or")


@dataclass(frozen=True)
class _Sentence:
    text: str
    items: list[Item]
    places: list[int]
    """The indices of the values among the items."""
    stated: bool
    denies: bool
    """Whether the sentence has a word that can deny a value."""

    def chosen(self) -> int | None:
        """The index of the value that is meant; None if every value is denied."""
        first = self.places[0]
        if self.stated and not any(item.text in (",", ";") for item in self.items[:first]):
            words = [item.word for item in self.items[:first] if item.word]
            if len(words) <= 1 or PREFIX.search(" ".join(words) + " ") or set(words) <= LEAD:
                return None if self.denied(first) else self.worked_out(first)
        # 1. Leave out explanations of the value, and brackets after it.
        kept: list[int] = []
        depth, verbs, results = 0, [-1], self.results() if len(self.places) > 1 else set[int]()
        for at, item in enumerate(self.items):
            depth += (item.text == "(") - (item.text == ")" and depth > 0)
            if item.kind == "value" and not (depth and kept) and not self.denied(at):
                kept.append(at)
                verbs += [at - 1] if item.worked else []
            remark = item.word in EXPLAINS or (item.word == "which" and not self.restates(item))
            if kept and remark and not self.concludes(at):
                break
            if item.word in VERBS or item.text in ("=", ":") or (kept and at + 1 in results):
                verbs.append(at)
        kept = [at for at in kept if not _NUMERIC.isdisjoint(self.items[at].text)] or kept
        kept = [at for at in kept if not (self.is_rate(at) or self.is_bound(at))] or kept
        # 2. Take the first value after the last verb or equals sign, with those that belong to it.
        verb = next((verb for verb in reversed(verbs) if kept and verb < kept[-1]), -1)
        behind = [at for at in kept if at > verb]
        if verb < 0:
            return [*kept[-1:], None][0]
        chosen = behind[0]
        for other in behind[1:]:
            between = self.items[chosen + 1 : other]
            counted = not self.stated and len(between) <= 4 and any(item.word == "and" for item in between)
            counted = counted and not any(item.kind == "value" for item in between)
            chosen = other if counted or self.link(chosen, other) else chosen  # "3 boys and 4 girls": the last
        return chosen

    def results(self) -> set[int]:
        """The indices of the items that follow words that introduce a result."""
        ends = [found.end() for found in RESULT.finditer(self.text)]
        return {next((at for at, item in enumerate(self.items) if item.start >= end), -1) for end in ends}

    def denied(self, at: int) -> bool:
        return self.denies and denied(self.text, self.items[at].start, self.items[at].end)

    def worked_out(self, at: int) -> int:
        """The index of the result of a calculation with words in it, "3 boxes * 4 = 12"; `at` itself without one."""
        for place, item in enumerate(self.items[at + 1 :], start=at + 1):
            if item.kind == "mark" or item.text == "(" or item.word in EXPLAINS | CONCLUDES | {"which", "and", "or"}:
                break
            if item.kind == "value" and (item.worked or self.items[place - 1].text == "="):
                return place
        return at

    def concludes(self, at: int) -> bool:
        """Whether a conclusion still follows: "since there are 6 of them, then each has 4"."""
        return any(item.worked or item.text == "=" or item.word in CONCLUDES for item in self.items[at + 1 :])

    def restates(self, which: Item) -> bool:
        """Whether "which is 7" restates the value, rather than remarking on it."""
        behind = self.text[which.end : which.end + 80]
        return bool(
            re.search(r"\b(?:to get|giving|to give|we get|leaving)\b[^.]*\d", behind)
            or re.match(
                r" (?:means|leaves(?! (?:an? )?remainder\b)|brings|results in|amounts to|adds up to"
                r"|(?:is|makes|gives|comes to) (?:\w+ )?a (?:grand )?total)\b[^.]*\d",
                behind,
            )
            or (
                re.match(
                    r" (?:is|are|equals?|gives|makes|comes (?:out )?to|simplifies to|totals)\b[^A-Za-z]{0,3}", behind
                )
                and not re.search(
                    r"\b(?:more|less|fewer|greater|times|than|odd|even|prime|divisible|multiple|factor|of)\b", behind
                )
            )
        )

    def grown(self, at: int) -> str | None:
        """The chosen value, extended by what changes it."""
        # 1. Neighbours: "3, 4 and 5", "42 or 41", "5 hours and 30 minutes", "42 less than 50".
        items, places = self.items, self.places
        first = last = places.index(at)
        links: list[str] = []
        while last + 1 < len(places):
            link = self.link(places[last], places[last + 1])
            if (
                not link
                or (link == "whole" and self.is_rate(places[last + 1]))
                or (link == "list" and self.is_remark(places[last + 1]))
            ):
                break
            links.append(link)
            last += 1
        while first and not (self.stated and first == 0):
            link = self.link(places[first - 1], places[first])
            assigned = all(ASSIGNED.fullmatch(items[place].text) for place in places[first - 1 : first + 1])
            if not link or (items[places[first]].worked and not assigned):
                break
            links.insert(0, link)
            first -= 1
        # 2. Words before and after it.
        start = items[places[first]].start
        before = self.text[max(0, start - 40) : start]
        front = ""
        last_words = before.lower().rstrip("$*\\( ").rsplit(maxsplit=2)[-2:]
        if not FRONTS.isdisjoint(last_words) or before.rstrip(" :")[-1:] == ")":
            if PERHAPS.search(before):
                return None
            if NO_ROLE.search(before):
                return None
            prefix = None if items[at].worked else PREFIX.search(before.replace("$", ""))
            front = prefix[0] if prefix else ""
        plus = re.match(r"\+(?!\S)|\+\.?$", self.text[items[places[last]].end :])
        if front.lower().startswith("between") or plus:  # "12+"
            return None
        # 3. The parts of one value as they are written; several values as a list.
        values, begin = [], first
        for which in range(first, last + 1):
            if which == last or links[which - first] != "whole":
                whole = self.text[items[places[begin]].start : items[places[which]].end].replace("$", "")
                start = items[places[begin]].start
                label = LABEL.search(self.text[max(0, start - 12) : start]) if begin > first else None
                whole, one = (f"{label[0] if label else ''}{each}" for each in (whole, items[places[which]].text))
                changed = CHANGED.match(self.text, items[places[which]].end)
                tail = changed[0] if changed and not items[places[which]].worked else self.tail(places[which])
                values.append((whole if which > begin else one) + tail)
                begin = which + 1
        # 4. A second value ("12 for adults, 8 for children"), or what a conclusion makes of this one.
        if self.stated and first == last:
            end = items[places[last]].end
            shared, then = SHARED.match(self.text, end), THEN.search(self.text, end)
            later = shared[2] if shared else claim(self.text[then.end() :], stated=False) if then else None
            if later:
                return offered([front + values[0], later])
        word = "and" if len(values) > 1 and self.items[places[last] - 1].word == "and" else None
        return (front + (offered(values) if "offer" in links else listed(values, word))).strip()

    def is_rate(self, at: int) -> bool:
        """Whether a value only qualifies: "$500 each", "every 3 weeks", "over the 2 months", "the 10th term"."""
        item, after = self.items[at], self.items[at + 1].word if at + 1 < len(self.items) else ""
        then = self.items[at + 2].word if at + 2 < len(self.items) else ""
        if (
            after == "each"
            or item.text[-2:] in ("st", "nd", "rd", "th")
            or (after in TIMES and then == "ago" and not item.worked)
        ):
            return True
        before = [each.word for each in self.items[max(0, at - 3) : at]]
        while len(before) > 1 and before[-1] in WHICH:
            before.pop()
        timed = before[-1:] and before[-1] in ("for", "in", "over", "within", "during", "after", "throughout")
        return bool(timed and after in TIMES) or before[-1:] in (["every"], ["per"])

    def is_bound(self, at: int) -> bool:
        """Whether a value is an end of a range, as 1 and 60 in "17 primes between 1 and 60"."""
        before = [item.word if item.kind != "value" else "#" for item in self.items[max(0, at - 3) : at]]
        return before[-1:] == ["between"] or before == ["between", "#", "and"]

    def link(self, at: int, other: int) -> str:
        """How two values belong together (`_link`); two measures only if they are of the same kind."""
        found, first = _link(self.items[at + 1 : other]), self.items[at + 1].word if at + 1 < other else ""
        after = self.items[other + 1].word if other + 1 < len(self.items) else ""
        return "" if found == "whole" and is_unit(first) and not same_measure(first, after) else found

    def is_remark(self, place: int) -> bool:
        """Whether a value after a comma begins a remark, as in "7, 3 more than before"."""
        after = self.items[place + 1].word if place + 1 < len(self.items) else ""
        return self.items[place - 1].text == "," and after not in ("", "and", "or")

    def tail(self, place: int) -> str:
        """The unit or magnitude after a value: up to four words that are no explanation."""
        words: list[str] = []
        end, priced = self.items[place].end, self.items[place].text[:1] in ("$", "\\", "€", "£", "₹")
        for item in self.items[place + 1 :]:
            measured = bool(words) and is_unit(words[-1])
            rate = item.word == "per" or (measured and item.text == "/" and item.start == end)
            name = item.word.isalpha() and (len(item.word) > 2 or is_unit(item.text)) and item.word not in STOP
            name = name and (item.word not in COUNTS or bool(OPERATES.fullmatch(" ".join(words))))
            bare = item.text.rstrip("0123456789^{}⁻¹²³")
            unit = (
                (is_unit(bare) and (item.word != "in" or self.text[item.end :].strip(" .*$") == ""))
                or item.word.replace(".", "") in ("am", "pm")
                or words[-1:] in (["/"], ["per"])
                or (not words and item.word in SHORT_SCALES and (priced or item.word in ("mn", "bn")))
            )
            counted = name and not (self.items[place].worked and "=" in self.items[place].text)
            if item.word in ("below", "under") and re.match(r" \w", self.text[item.end : item.end + 2]):
                break  # "12 feet below the surface"
            if not rate and (self.text[end : item.start].strip() or len(words) > 3 or not (counted or unit)):
                break
            words.append(item.text.lower())
            end = item.end
        if words and words[0] in ("percent", "pct"):
            return "%"
        return f" {self.text[self.items[place].end : end].strip()}" if words else ""


_NUMERIC = frozenset("0123456789π∞√\\" + VULGAR)


def _link(between: Sequence[Item]) -> str:
    """How two values belong together: "list", "offer" (alternatives), "whole" (parts of one value), or "" (not)."""
    if not between:
        return "list"
    marks = {item.text for item in between if not item.word}
    words = [item.word for item in between if len(item.word) > 1 or (item.word and ")" not in marks)]
    if words and set(words) <= HEDGES and set(words) & DOUBT:
        return "" if words[:2] == ["or", "else"] else "offer"
    if " ".join(words[-3:]).removeprefix("it ") in ("might be", "may be", "could be", "might also be"):
        return "offer"
    if marks - set(',;()/&*"\u2013\u2014'):
        return ""
    if not words:
        return "list" if marks & set(",;&") and not marks & set("()") else ""
    if words[-1] == "or" and len(words) <= 3:
        return "offer"
    if words == ["and"]:
        return "list"
    if marks:
        return ""
    if OPERATES.fullmatch(" ".join(words)):
        return "whole"
    measured = is_unit(words[0]) and words[1:] in ([], ["and"])
    return "whole" if measured or set(words) <= ARITHMETIC else ""
