"""Tokens that a model must read for what a flow asked of it: the demand of the trees' structure, in tokens.

The requests of each role form a trie of token prefixes. Every prefix must go through the model once, since its keys and
values are needed. Tokens that a completion drew and continued from go through it as they are written. All others must
be read, and they are the demand: each role's instructions and questions, what the other role wrote, the words that
close a question, and the last token of a chunk that another continues. With prompts of 3 tokens and chunks of 2:

    answer (1 2 3) -> 4 5      answer (1 2 3 4 5) -> 6 7      stop (1 9 4 5 8) -> Yes
    demanded: 1 2 3, the 5 that no step went on from, and Stop's own 1 9 4 5 8:  9 tokens to read for 4 written

Invariant: no order of requests and no cache can read less without reading a prefix of one role for another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flow_dpo.core.types import TokenIds


@dataclass(frozen=True)
class Asked:
    """A request, and the tokens that were sampled for it."""

    role: str
    prompt_ids: TokenIds
    written: TokenIds


def demanded_tokens(requests: Sequence[Asked]) -> int:
    """Tokens that must be read, at least, to sample all these completions."""
    prompted, continued = set[int](), set[int]()
    for request in requests:
        prefixes = list(_prefixes(request.role, (*request.prompt_ids, *request.written[:-1])))
        prompted.update(prefixes[: len(request.prompt_ids)])
        continued.update(prefixes[len(request.prompt_ids) :])
    return len(prompted - continued)


def reusable_tokens(requests: Sequence[Asked], block: int) -> int:
    """Prompt tokens that a cache of such blocks can hold before they are requested, in the order of the replies."""
    known: set[int] = set()
    total = 0
    for request in requests:
        prefixes = list(_prefixes(request.role, (*request.prompt_ids, *request.written[:-1])))
        room = (len(request.prompt_ids) - 1) // block * block
        at = block
        while at <= room and prefixes[at - 1] in known:
            at += block
        total += at - block
        known.update(prefixes)
    return total


def _prefixes(role: str, ids: TokenIds) -> Iterator[int]:
    """A number for every prefix, by role."""
    chain = hash(role)
    for token in ids:
        chain = hash((chain, token))
        yield chain
