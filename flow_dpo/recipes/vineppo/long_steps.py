r"""Cuts within long steps, as VinePPO's authors cut MATH solutions (their code calls it best effort).

A part longer than a limit (theirs: 100 characters) is halved at the mark nearest to its middle: first between words,
outside of formulas, with 40 characters on either side; if there is none, at an operator, with 20. So are the halves.

    "Since the two triangles are similar, the ratio of their sides is $\frac{3}{4} = \frac{x}{12}$, so that ..."
                                        ^ cut here

Invariant: cuts are increasing and lie within the part; only what is longer than the limit is cut.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from flow_dpo.core.types import TokenIds

_FORMULA = re.compile(
    r"\[asy\].*?\[/asy\]|\\begin\{([^}]*)\}.*?\\end\{\1\}|\\\(.*?\\\)|\\\[.*?\\\]|\$\$.*?\$\$|(?<!\\)\$.*?[^\\]\$",
    re.DOTALL,
)
# In the order in which they are tried; a cut comes after the mark.
_WORDS = [re.compile(mark) for mark in (r",", r"\sand\s", r":", r"\sto\s")]
_OPERATORS = [re.compile(mark) for mark in (r",\$", r",\\\)", r",\\\]", r"=", r"\\equiv", r"\+", r"\\cancelto")]
_LEAST_WORDS, _LEAST_OPERATORS = 40, 20


def cuts(text: str, begin: int, end: int, limit: int) -> list[int]:
    """The positions in the text at which its part from `begin` to `end` is cut."""
    formulas = [match.span() for match in _FORMULA.finditer(text)]

    def within(begin: int, end: int) -> Iterator[int]:
        if end - begin <= limit:
            return
        outside = lambda place: not any(a < place < b for a, b in formulas)  # noqa: E731
        place = _nearest(text, begin, end, _WORDS, _LEAST_WORDS, outside)
        if place is None:
            place = _nearest(text, begin, end, _OPERATORS, _LEAST_OPERATORS, lambda _: True)
        if place is not None:
            yield from within(begin, place)
            yield place
            yield from within(place, end)

    return list(within(begin, end))


def step_ends(
    ends: Sequence[int], token_ids: TokenIds, decode: Callable[[TokenIds], str], limit: int
) -> tuple[int, ...]:
    """The ends of steps, in tokens, including the cuts within long steps. A cut is after the token that contains it."""
    text, found = decode(token_ids), list[int]()
    for first, last in pairwise([0, *ends, len(token_ids)]):
        begin, end = len(decode(token_ids[:first])), len(decode(token_ids[:last]))
        for place in cuts(text, begin, end, limit):
            count = _tokens_to(place, token_ids, decode)
            if max(first, *found[-1:], 0) < count < last:
                found.append(count)
        found.append(last)
    return tuple(found[:-1])


def _nearest(
    text: str, begin: int, end: int, marks: Sequence[re.Pattern[str]], least: int, allowed: Callable[[int], bool]
) -> int | None:
    """The position after a mark, nearest to the middle, of the first kind that has one far enough from both ends."""
    for mark in marks:
        places = [match.end() for match in mark.finditer(text, begin, end) if allowed(match.end())]
        best = min(places, key=lambda place: abs(2 * place - begin - end), default=None)
        if best is not None and min(best - begin, end - best) >= least:
            return best
    return None


def _tokens_to(place: int, token_ids: TokenIds, decode: Callable[[TokenIds], str]) -> int:
    """The smallest number of first tokens whose text has at least this many characters."""
    return bisect_left(range(len(token_ids)), place, key=lambda count: len(decode(token_ids[:count])))
