r"""Sentences: where one begins in a text and where it ends, past formulas and abbreviations.

    "It is $x. 5$ m. Then"     -> "It is $x. 5$ m."
    "7, i.e. seven. Or 8."     -> the whole of it: a second thought belongs to its sentence

Invariant: at most `MAX_SENTENCE` characters are read for one sentence.
"""

from __future__ import annotations

import re

from flow_dpo.verify.expressions import FORMULA, is_formula

MAX_SENTENCE = 2_000
"""The most characters of one sentence."""
_END = re.compile(
    rf"(?P<formula>{FORMULA})|(?P<end>"
    # a full stop, but not that of an abbreviation, nor one before a second thought
    r"(?<!\\)[.!?](?=[\s*_)\"\u201d]|$)(?!(?<=\d!) ?(?:\\(?:cdot|times|div)"
    r"|[-+/=] ?\d))(?<!\bapprox\.)(?<!\bi\.e\.)(?<!\be\.g\.)(?<!\b[RN][so]\.)"
    r"(?![\s*]+(?:[Oo]r|[Aa]lternatively|[Mm]aybe|[Pp]erhaps|[Pp]ossibly|(?:[Bb]ut i|I)t (?:could|might|may))\b)"
    r"|\n|\u3002|<\|)"
)


def sentence_at(text: str, start: int) -> tuple[str, int]:
    """The sentence that starts at a position, and the position after it."""
    stop = min(len(text), start + MAX_SENTENCE)
    for match in _END.finditer(text, start, stop):
        end = match.end()
        if match["formula"]:
            inner = None if is_formula(match[0]) else re.search(r"[.!?]\s|\n", match[0])
            closes = match[0].rstrip("$])\\ \n")[-1:] == "." and re.match(r"\s+[A-Z]", text[end : end + 9])
            if not inner and not closes:
                continue
            end = match.start() + inner.end() if inner else end
        return text[start:end], end
    return text[start:stop], stop
