r"""Labelled choices of a multiple-choice question, as an answer writes them.

    "(B) 24", "\\text{(B) }24"          Choice("B", "24")
    "(B) or (C)", "(B) 24, (C) 25"      several choices
    "(B) or"                            undecided: an alternative that was not read

Invariant: time is linear in the length of the text, apart from blanks.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_CHOICE = re.compile(r"\s*(?:\\text(?:bf)?\{)?\(?([A-J])\)\s*\}?[\s\\:~]*(?=[^\s}])(.+)", re.DOTALL)
_JOINS = r"[\s\\~${}]*(?:(?:text\{\s*)?(?:or|and|if|but)\b|[,;/&])"
_UNDECIDED = re.compile(rf"(?:{_JOINS})+[\s\\~${{}}.]*")
_SEVERAL = re.compile(rf"{_JOINS}|.*(?:(?<![A-Za-z])\([A-J]\)|(?<=\s)[A-J]\)\s)", re.DOTALL)


class Choice(NamedTuple):
    """A label and what follows it."""

    label: str
    text: str

    @property
    def undecided(self) -> bool:
        """Whether only words that join follow the label."""
        return _UNDECIDED.fullmatch(self.text) is not None

    @property
    def several(self) -> bool:
        """Whether another choice, or a condition, follows the label."""
        return _SEVERAL.match(self.text) is not None


def read_choice(text: str) -> Choice | None:
    """The labelled choice that a text begins with, if something follows the label; else None."""
    found = _CHOICE.fullmatch(text)
    return Choice(found[1], found[2]) if found else None
