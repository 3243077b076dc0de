"""Fields of a JSON row in a form that a page can draw: a wrong type costs the field, never the row.

    reader = Reader({"depth": "two", "logprobs": [-0.5, null]})
    reader.count("depth")       None, and the note "'depth': expected a whole number from 0, found 'two'"
    reader.numbers("logprobs")  [-0.5, None]

Strict reading is in `runs.records`; a page on a damaged, older or foreign file shows whatever is there. Invariant: the
output is JSON without NaN or infinities, and everything that was left out has a note.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_NOTES = 20


def finite(value: Any) -> float | None:
    """A finite number; None for anything else, including booleans."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of 400 digits
        return None


def whole(value: Any) -> int | None:
    """A whole number from 0; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def probability(logprob: Any) -> float | None:
    """exp of a log-probability, at most 1; 0 for minus infinity, which JSON readers accept."""
    if isinstance(logprob, float) and logprob == -math.inf:
        return 0.0
    known = finite(logprob)
    return None if known is None else math.exp(min(known, 0.0))


class Reader:
    """Reads the fields of one JSON object, and notes what could not be read."""

    def __init__(self, row: Mapping[str, Any], notes: list[str] | None = None, place: str = "") -> None:
        self.row = row
        self.notes = [] if notes is None else notes
        self._place = place

    def note(self, text: str) -> None:
        """Add a note; after twenty, a last one says that there are more."""
        if len(self.notes) < _MOST_NOTES:
            self.notes.append(f"{self._place}: {text}" if self._place else text)
        elif len(self.notes) == _MOST_NOTES:
            self.notes.append("more fields could not be read")

    def below(self, name: str, place: str = "") -> Reader:
        """A reader of the object in a field; of an empty one if there is none."""
        value = self.row.get(name)
        if value is not None and not isinstance(value, Mapping):
            self._wrong(name, "an object")
        return Reader(value if isinstance(value, Mapping) else {}, self.notes, place or f"{self._place} {name}".strip())

    def text(self, name: str) -> str:
        """A text; "" if there is none."""
        value = self.row.get(name)
        if value is None or isinstance(value, str):
            return value or ""
        self._wrong(name, "a text")
        return ""

    def text_or_none(self, name: str) -> str | None:
        """A text; None if there is none."""
        return self.text(name) if self.row.get(name) is not None else None

    def count(self, name: str) -> int | None:
        """A whole number from 0."""
        return self._one(name, whole, "a whole number from 0")

    def integer(self, name: str) -> int | None:
        """A whole number from -1, such as a version."""
        value = self.row.get(name)
        return -1 if value == -1 and not isinstance(value, bool | float) else self.count(name)

    def number(self, name: str) -> float | None:
        """A finite number."""
        return self._one(name, finite, "a finite number")

    def flag(self, name: str) -> bool:
        """True or false; false if there is none."""
        value = self.row.get(name)
        if value is not None and not isinstance(value, bool):
            self._wrong(name, "true or false")
        return value is True

    def texts(self, name: str) -> list[str]:
        """The texts of a list; anything else is left out."""
        found = self.items(name)
        if any(not isinstance(each, str) for each in found):
            self._wrong(name, "texts alone")
        return [each for each in found if isinstance(each, str)]

    def ids(self, name: str) -> list[int] | None:
        """A complete list of token ids; None if there is none, or if one is not a token id."""
        value = self.row.get(name)
        if value is None:
            return None
        ids = [whole(each) for each in self.items(name)]
        if not isinstance(value, list) or None in ids:
            self._wrong(name, "token ids")
            return None
        return [each for each in ids if each is not None]

    def numbers(self, name: str) -> list[float | None]:
        """The numbers of a list, with None for anything else, so positions are kept."""
        return [finite(each) for each in self.items(name)]

    def items(self, name: str) -> list[Any]:
        """A list as it is; empty if there is none."""
        value = self.row.get(name)
        if value is None or isinstance(value, list):
            return value or []
        self._wrong(name, "a list")
        return []

    def measures(self, name: str) -> dict[str, float]:
        """The finite numbers of an object, by name."""
        found = {each: finite(value) for each, value in self.below(name).row.items()}
        return {each: value for each, value in found.items() if value is not None}

    def _one(self, name: str, read: Any, words: str) -> Any:
        value = self.row.get(name)
        if value is None:
            return None
        found = read(value)
        if found is None:
            self._wrong(name, words)
        return found

    def _wrong(self, name: str, words: str) -> None:
        self.note(f"{name!r}: expected {words}, found {self.row.get(name)!r:.60}")


def pieces(text: str, lengths: Any, num_tokens: int) -> list[str] | None:
    """A text split by token; None if the lengths do not match it or its tokens."""
    if not isinstance(lengths, list) or len(lengths) != num_tokens:
        return None
    found: list[str] = []
    at = 0
    for each in lengths:
        length = whole(each)
        if length is None:
            return None
        found.append(text[at : at + length])
        at += length
    return found if at == len(text) else None


def verdict_view(reader: Reader) -> dict[str, Any]:
    """Status, answer, reason, reward and measures of the verdict in a row; status None if there is none."""
    given = reader.row.get("verdict")
    verdict = reader.below("verdict", "verdict")
    status = verdict.text("status")
    if status not in ("correct", "wrong", "ungraded"):
        if given is not None:
            reader.note(f"'verdict': expected correct, wrong or ungraded as its status, found {status!r:.40}")
        status = None
    return {
        "status": status,
        "answer": verdict.text_or_none("answer"),
        "reason": verdict.text("reason"),
        "reward": verdict.number("value"),
        "measures": verdict.measures("measures"),
    }


def objects(rows: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Those of the rows that are objects."""
    return [row for row in rows if isinstance(row, Mapping)]
