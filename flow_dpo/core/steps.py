r"""Step boundaries of a solution, in token ids.

A step ends with a sentence or a line, as VinePPO has it (arXiv 2410.01679, section 4). Where that is follows from the
text; what is cut are the sampled ids, after the first token whose text extends so far:

    "Buys 7: 12 + 7 = 19.\nAnswer: 19"    ->  one end, after the token that holds the line's end

Invariant: ends are increasing, none lies at 0 nor after the last token, and no step is blank. Nothing is encoded again.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from flow_dpo.core.types import Completion, TokenIds

# A mark that ends a sentence and is followed by space (so not the point of 3.5), or the end of a line. Spaces after it
# are left to the next sentence, for many tokens begin with one; the "1." that numbers a line is none.
_END = re.compile(r"(?:(?<!^\d)(?<!\n\d)[.!?]+[\"')\]*]*(?:[ \t]*\n+|(?=[ \t]))|\n+)")
_LINE_END = re.compile(r"\S[^\n]*\n")

Decode = Callable[[TokenIds], str]


def step_ends(token_ids: TokenIds, decode: Decode) -> tuple[int, ...]:
    """The number of tokens up to the end of each step but the last. `token_ids` are without the end token."""
    text = decode(token_ids)
    ends: list[int] = []
    begun = 0
    for mark in _END.finditer(text):
        end = _tokens_to(mark.end(), token_ids, decode)
        length = len(decode(token_ids[:end]))
        if text[begun:length].strip() and text[length:].strip():
            ends.append(end)
            begun = length
    return tuple(ends)


def line_end(token_ids: TokenIds, decode: Decode) -> int | None:
    """The number of tokens to the end of the first line that is not blank; None where it does not end.

    The tokens up to there do not depend on what follows, so that a completion cut there is a draw of one line.
    """
    found = _LINE_END.search(decode(token_ids))
    return None if found is None else _tokens_to(found.end(), token_ids, decode)


def stop_end(token_ids: TokenIds, decode: Decode, stop_strings: Sequence[str]) -> tuple[int, int] | None:
    """How many first tokens hold one of the strings, and how many stand before it; None where there is none. `decode`
    may write text in front, which counts only as the beginning of a string that the tokens complete."""
    begun = len(decode(()))

    def found(count: int) -> list[int]:
        text = decode(token_ids[:count])
        return [at for one in stop_strings if (at := text.find(one, max(0, begun - len(one) + 1))) >= 0]

    counts = range(len(token_ids))
    end = bisect_left(counts, True, key=lambda count: bool(found(count)))
    before = decode(token_ids[:end])[: min(found(end), default=0)]
    kept = bisect_left(counts, True, key=lambda count: decode(token_ids[:count]).startswith(before))
    return (end, kept) if found(end) else None


def split(completion: Completion, ends: Sequence[int]) -> list[Completion]:
    """The completion in pieces, cut after so many tokens; the last piece alone keeps how it finished."""
    cuts = [0, *ends, len(completion.token_ids)]
    return [
        replace(
            completion,
            token_ids=completion.token_ids[begin:end],
            logprobs=completion.logprobs[begin:end],
            sampled_logprobs=completion.sampled_logprobs[begin:end],
            finish_reason=completion.finish_reason if end == cuts[-1] else "length",
        )
        for begin, end in pairwise(cuts)
    ]


def join(first: Completion, rest: Completion) -> Completion:
    """Two completions, of which the second continues the first, as one."""
    return replace(
        rest,
        token_ids=first.token_ids + rest.token_ids,
        logprobs=first.logprobs + rest.logprobs,
        sampled_logprobs=first.sampled_logprobs + rest.sampled_logprobs,
    )


def _tokens_to(position: int, token_ids: TokenIds, decode: Decode) -> int:
    """The least number of first tokens whose text has so many characters. Text grows with tokens: a binary search."""
    return bisect_left(range(len(token_ids)), position, key=lambda n: len(decode(token_ids[:n])))
