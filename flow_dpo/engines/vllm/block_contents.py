"""Prefix cache of single tokens on top of vLLM's cache of whole blocks: which block has how much of a new prompt.

vLLM reuses a prompt's whole blocks and computes the rest, up to a block less one token for every request. The rest can
be cached as well: in the last block of an earlier request, or in a block that differs only after some tokens. With
blocks of 4 tokens, and block 7 computed for [1 2 3 4 | 5 6]:

    contents.put(7, (key, 1), (5, 6))
    contents.longest((key, 1), (5, 6, 9))     # (7, 2): block 7 has two tokens of the new request's second block

A block is found by everything before it (`Parent`), so its tokens have the same keys and values in both requests.
Invariant: a block that is returned has not been given to another request since it was computed (`drop`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Parent = Hashable
"""Identifies what precedes a block: a hash of all its tokens, and of the adapter that computed them."""


class BlockContents:
    """The tokens whose keys and values each block holds, by what precedes the block."""

    def __init__(self) -> None:
        self._parents: dict[int, Parent] = {}
        self._blocks: dict[Parent, dict[int, tuple[int, ...]]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._parents

    def put(self, block: int, parent: Parent, ids: Sequence[int]) -> None:
        """From now on the block holds the keys and values of these tokens, after `parent`."""
        self.drop(block)
        if not ids:
            return
        siblings, ids = self._blocks.setdefault(parent, {}), tuple(ids)
        # Tokens that another block holds as well are found there; blocks whose tokens this one holds are dropped.
        if any(other[: len(ids)] == ids for other in siblings.values()):
            return
        for covered in [other for other, held in siblings.items() if ids[: len(held)] == held]:
            self.drop(covered)
        self._blocks.setdefault(parent, {})[block] = ids
        self._parents[block] = parent

    def drop(self, block: int) -> None:
        """Forget the block: it is given to a request that will write other tokens into it."""
        parent = self._parents.pop(block, None)
        if parent is None:
            return
        siblings = self._blocks[parent]
        del siblings[block]
        if not siblings:
            del self._blocks[parent]

    def clear(self) -> None:
        """Forget all blocks: nothing computed so far is valid any more."""
        self._parents.clear()
        self._blocks.clear()

    def longest(self, parent: Parent, ids: Sequence[int]) -> tuple[int, int]:
        """The block that shares the most tokens after `parent`, and how many; 0 tokens if none does."""
        best, most = 0, 0
        for block, held in self._blocks.get(parent, {}).items():
            shared = next((at for at, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), None)
            shared = min(len(held), len(ids)) if shared is None else shared
            if shared > most:
                best, most = block, shared
        return best, most
