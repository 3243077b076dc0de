"""Packed training rows: completions merged into tries, so a shared prefix is computed once.

Token sequences are merged into a trie, and the trie is laid out in one flat row: each token occurs once, at the
position of its depth, and attends to its ancestors and itself. Two siblings, and a prefix of the first one:

    sequences   a b c d e      a b c x y      a b c d
    row         a b c d e x y                 7 tokens instead of 14
    positions   0 1 2 3 4 3 4
    x sees      a b c x

Invariant: for every sequence, the row's tokens along its path are the sequence, at positions 0, 1, 2, ...; they attend
to one another as they would alone, and to nothing else. So packed results are those of separate forwards, in every
layer, for any decoder whose attention goes through `models.attention`. Sliding windows count positions, which are
depths.

Sequences in sorted order visit the trie depth first: all that is needed is the common prefix of each with the one
before it. The descendants of a token are then the tokens that follow it up to its `subtree_end`.

Shapes: N tokens in the row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flow_dpo.core.types import TokenIds


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Token sequences merged into one flat row."""

    token_ids_N: np.ndarray
    positions_N: np.ndarray
    subtree_end_N: np.ndarray
    """One past the last descendant of each token."""
    paths: tuple[np.ndarray, ...]
    """For each sequence, in the given order, the indices of its tokens in the row."""
    segments: tuple[tuple[int, np.ndarray], ...]
    """(first token, path to its last token) of each unbranched stretch that a sequence added."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_N)


def merge(sequences: Sequence[TokenIds]) -> PackedRow:
    """Lay the trie of these sequences out in one row."""
    # 1. Sorted order is depth-first order of the trie.
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    paths: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    total = sum(len(s) for s in sequences)
    token_ids_N, positions_N = np.empty(total, np.int64), np.empty(total, np.int64)
    subtree_end_N = np.empty(total, np.int64)
    segments: list[tuple[int, np.ndarray]] = []
    size, path, ids = 0, np.empty(0, np.int64), np.empty(0, np.int64)
    # 2. Each sequence adds the tokens after what it shares with the previous one; `path` holds its indices in the row.
    for index in order:
        next_ids = np.asarray(sequences[index], np.int64)
        shared = _num_shared(ids, next_ids)
        subtree_end_N[path[shared:]] = size  # the subtrees of the tokens not shared end here
        end = size + len(next_ids) - shared
        path = np.concatenate([path[:shared], np.arange(size, end)])
        if end > size:
            token_ids_N[size:end] = next_ids[shared:]
            positions_N[size:end] = np.arange(shared, len(next_ids))
            segments.append((size, path))
        paths[index], ids, size = path, next_ids, end
    subtree_end_N[path] = size
    return PackedRow(token_ids_N[:size], positions_N[:size], subtree_end_N[:size], tuple(paths), tuple(segments))


def _num_shared(left: np.ndarray, right: np.ndarray) -> int:
    """The length of the common prefix of two sequences."""
    size = min(len(left), len(right))
    differ = np.flatnonzero(left[:size] != right[:size])
    return int(differ[0]) if len(differ) else size


def merged_rows(
    items: Sequence[Sequence[TokenIds]], trees: Sequence[str | int], max_tokens: int
) -> list[tuple[list[int], int]]:
    """Distribute items, each the sequences that must be in one row, over rows of at most `max_tokens` merged tokens.
    Returns each row's item indices and its number of tokens. Items of one tree stay together if possible."""
    members: dict[str | int, list[int]] = {}
    for index, tree in enumerate(trees):
        members.setdefault(tree, []).append(index)
    groups = list(members.values())
    filled = fill_rows([[items[index] for index in group] for group in groups], max_tokens)
    rows = [[groups[group][item] for group, item in row] for row in filled]
    return [(row, merge([ids for index in row for ids in items[index]]).num_tokens) for row in rows]


def padded_rows(items: Sequence[Sequence[TokenIds]], max_tokens: int) -> list[tuple[list[int], int]]:
    """Distribute items over rows, similar lengths together, each row padded to its longest sequence. Returns each row's
    item indices and its number of tokens."""
    lengths = [max(map(len, item)) for item in items]
    rows: list[tuple[list[int], int]] = []
    for index in sorted(range(len(items)), key=lambda index: -lengths[index]):
        if rows:
            row, num_tokens = rows[-1]
            num_tokens += len(items[index]) * lengths[row[0]]
            if num_tokens <= max_tokens:
                rows[-1] = ([*row, index], num_tokens)
                continue
        rows.append(([index], len(items[index]) * lengths[index]))
    return rows


def fill_rows(groups: Sequence[Sequence[Sequence[TokenIds]]], max_tokens: int) -> list[list[tuple[int, int]]]:
    """Distribute items over rows of at most `max_tokens` merged tokens; each row lists its items as (group, item).

    An item is the sequences that must be in one row (a pair's two), a group the items that should be (a tree's).
    Groups with a common prefix become neighbours; a group that is too large for any row is cut between items, and an
    item that is too large by itself gets a row of its own.
    """
    rows: list[list[tuple[int, int]]] = []
    row = _Filling()
    sorted_groups = sorted(range(len(groups)), key=lambda g: min(s for item in groups[g] for s in item))
    for g in sorted_groups:
        group = groups[g]
        # 1. Neighbours in sorted order share most, so a cut repeats only one path.
        items = sorted(range(len(group)), key=lambda i: group[i][0])
        whole = [s for i in items for s in group[i]]
        # 2. A group that fits a row of its own, but not the rest of this one, starts a new row.
        if rows and row.cost(whole) + row.num_tokens > max_tokens and _Filling().cost(whole) <= max_tokens:
            rows.append([])
            row = _Filling()
        # 3. Items go into the current row while they fit.
        for i in items:
            if not rows or (row.num_tokens and row.cost(group[i]) + row.num_tokens > max_tokens):
                rows.append([])
                row = _Filling()
            row.add(group[i])
            rows[-1].append((g, i))
    return rows


class _Filling:
    """The sequences of a row that is being filled, and the number of tokens after merging."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._arrays: dict[TokenIds, np.ndarray] = {}
        self._sorted: list[TokenIds] = []

    def cost(self, sequences: Sequence[TokenIds]) -> int:
        """The number of tokens that these sequences would add."""
        trial = _Filling()
        trial.num_tokens, trial._arrays, trial._sorted = self.num_tokens, dict(self._arrays), list(self._sorted)
        trial.add(sequences)
        return trial.num_tokens - self.num_tokens

    def add(self, sequences: Sequence[TokenIds]) -> None:
        for ids in sequences:
            if ids in self._arrays:
                continue
            index = bisect_left(self._sorted, ids)
            array = np.asarray(ids, np.int64)
            neighbours = self._sorted[max(index - 1, 0) : index + 1]
            shared = max((_num_shared(self._arrays[other], array) for other in neighbours), default=0)
            self.num_tokens += len(ids) - shared
            self._sorted.insert(index, ids)
            self._arrays[ids] = array
