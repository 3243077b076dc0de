r"""Step boundaries of a solution, in token ids.

A step ends with a sentence or a line, as in VinePPO (arXiv 2410.01679, section 4). The end is found in the text; the
sampled ids are cut after the first token whose text reaches it:

    "Buys 7: 12 + 7 = 19.\nAnswer: 19"    ->  one end, after the token that holds the line's end

Invariant: ends increase, none is at 0 or after the last token, and no step is blank. Nothing is encoded again.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from flow_dpo.core.types import Completion, TokenIds

# Punctuation that ends a sentence and is followed by a space (not the point of 3.5), or the end of a line. Spaces after
# it belong to the next sentence, since many tokens begin with one; the "1." that numbers a line does not end a step.
_END = re.compile(r"(?:(?<!^\d)(?<!\n\d)[.!?]+[\"')\]*]*(?:[ \t]*\n+|(?=[ \t]))|\n+)")
_LINE_END = re.compile(r"\S[^\n]*\n")

Decode = Callable[[TokenIds], str]


def step_ends(token_ids: TokenIds, decode: Decode) -> tuple[int, ...]:
    """Number of tokens up to the end of each step but the last. `token_ids` must not include the end token."""
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
    """Number of tokens up to the end of the first line that is not blank; None if that line does not end.

    The tokens up to there do not depend on what follows, so a completion that is cut there is a draw of one line.
    """
    found = _LINE_END.search(decode(token_ids))
    return None if found is None else _tokens_to(found.end(), token_ids, decode)


def stop_end(token_ids: TokenIds, decode: Decode, stop_strings: Sequence[str]) -> tuple[int, int] | None:
    """Number of tokens up to the end of the first stop string, and number before it; None if there is none. `decode`
    can put text in front, which counts only as the beginning of a stop string that the tokens complete."""
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
    """The completion in pieces, cut after these numbers of tokens; only the last piece keeps its finish reason."""
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
    """Two completions as one; the second continues the first."""
    return replace(
        rest,
        token_ids=first.token_ids + rest.token_ids,
        logprobs=first.logprobs + rest.logprobs,
        sampled_logprobs=first.sampled_logprobs + rest.sampled_logprobs,
    )


def _tokens_to(position: int, token_ids: TokenIds, decode: Decode) -> int:
    """Smallest number of leading tokens whose text has `position` characters; a binary search, since text grows."""
    return bisect_left(range(len(token_ids)), position, key=lambda n: len(decode(token_ids[:n])))
