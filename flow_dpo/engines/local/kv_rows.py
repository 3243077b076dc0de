"""KV cache rows: the keys and values of the requests under way, one row a request.

They lie in a few large tensors, [planes, rows, K, C, D]: a plane is one layer's keys or one layer's values, planes of
one shape share a tensor, and a row holds one prompt and its completion, token after token. Attention reads all capacity
C of the first rows in memory order, without gathering: on a CPU, streaming through memory is three times as fast as
reading slices of it, so the capacity is kept tight and grown in small steps. Invariant: every value in a row is finite,
so that a masked key adds exactly nothing.

    rows.reserve(64, needed=128, at_most=160, max_bytes=1 << 30); rows.load(3, segments, end=40); rows.move([3], [63])

Shapes: K key-value heads, C capacity in tokens, D head size, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from flow_dpo.engines.local.prefix_cache import Planes, Segment

_STEP = 16
"""Capacity is a multiple of this."""
_ROWS = 8
"""The least number of rows to reserve; more come by doubling. Rows beyond those under way are never read."""
_SPARE = 64
"""Tokens of capacity added beyond the present need, where rows may still grow as much."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model's keys and values: (key-value heads, key size, value size) by attention call of a forward.

    A call is a layer in nearly every model; one whose layers attend twice, or that runs its layers again and again, has
    keys of their own for every call.
    """

    calls: Mapping[int, tuple[int, int, int]]
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return sum(heads * (key + value) for heads, key, value in self.calls.values()) * self.dtype.itemsize

    def groups(self) -> dict[tuple[int, int], list[tuple[int, str]]]:
        """The planes of each shape (heads, size), each as its call and "key" or "value"."""
        groups: dict[tuple[int, int], list[tuple[int, str]]] = {}
        for kind, index in (("key", 1), ("value", 2)):
            for call, sizes in self.calls.items():
                groups.setdefault((sizes[0], sizes[index]), []).append((call, kind))
        return groups


class KvRows:
    """KV cache of `num_rows` rows of `capacity` tokens each."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.num_rows = 0
        self.capacity = 0
        self.keys: dict[int, torch.Tensor] = {}
        """RKCD by attention call; views into the tensors below."""
        self.values: dict[int, torch.Tensor] = {}
        self._groups = shapes.groups()
        self._tensors: list[torch.Tensor] = []

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.capacity * self.shapes.token_bytes

    def reserve(self, num_rows: int, needed: int, at_most: int, max_bytes: int) -> None:
        """Resize for `num_rows` rows of `needed` tokens, which may yet grow to `at_most`; frees what is too much.

        Rows keep what they hold of the first `needed` tokens. `max_bytes` is exceeded only where that many rows of
        `at_most` tokens would exceed it.
        """
        # 1. Capacity: the need plus a reserve, unless the present one is already about that.
        capacity = _multiple(min(needed + _SPARE, at_most), _STEP)
        if needed <= self.capacity < capacity + _SPARE:
            capacity = self.capacity
        # 2. Rows: the next power of two, as far as the budget allows, and never fewer than are needed.
        affordable = max_bytes // (capacity * self.shapes.token_bytes)
        doubled = max(_ROWS, 1 << (num_rows - 1).bit_length())
        num_rows = max(num_rows, min(max(doubled, self.num_rows), affordable))
        if (num_rows, capacity) != (self.num_rows, self.capacity):
            self._resize(num_rows, capacity)

    def release(self) -> None:
        """Free all memory."""
        self._resize(0, 0)

    def load(self, row: int, segments: Sequence[Segment], end: int) -> None:
        """Write cached keys and values of the first `end` tokens into a row."""
        for segment in segments:
            stop = min(segment.end, end)
            for tensor, plane in zip(self._tensors, segment.planes, strict=True):
                tensor[:, row, :, segment.begin : stop] = plane[..., : stop - segment.begin, :]

    def copy(self, row: int, begin: int, end: int) -> Planes:
        """Copies of the keys and values of a row's tokens [begin, end), one tensor a group: [planes, K, tokens, D]."""
        return tuple(tensor[:, row, :, begin:end].clone() for tensor in self._tensors)

    def move(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy each source row over its target row."""
        for tensor in self._tensors:
            for target, source in zip(targets, sources, strict=True):
                tensor[:, target] = tensor[:, source]

    def _resize(self, num_rows: int, capacity: int) -> None:
        rows, tokens = min(num_rows, self.num_rows), min(capacity, self.capacity)
        old, self._tensors = self._tensors, []
        for index, ((heads, size), planes) in enumerate(self._groups.items()):
            shape = (len(planes), num_rows, heads, capacity, size)
            new = torch.zeros(shape, dtype=self.shapes.dtype, device=self.shapes.device)
            if rows and tokens:
                new[:, :rows, :, :tokens] = old[index][:, :rows, :, :tokens]
                old[index] = new[:0]  # frees the old tensor before the next one is made
            self._tensors.append(new)
            for plane, (call, kind) in zip(new, planes, strict=True):
                (self.keys if kind == "key" else self.values)[call] = plane
        self.num_rows, self.capacity = num_rows, capacity

    @staticmethod
    def num_bytes_of(shapes: Shapes, num_rows: int, tokens: int) -> int:
        """Bytes of `num_rows` rows that may grow to `tokens` tokens."""
        return num_rows * _multiple(tokens, _STEP) * shapes.token_bytes


def _multiple(number: int, unit: int) -> int:
    return -(-number // unit) * unit
