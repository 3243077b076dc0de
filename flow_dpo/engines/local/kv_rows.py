"""KV cache rows: the keys and values of the requests under way, one row for each request.

They are in a few large tensors, [planes, rows, K, C, D]: a plane is one layer's keys or one layer's values, planes of
one shape share a tensor, and a row holds one prompt and its completion, token after token. Attention reads the full
capacity C of the first rows in memory order, without gathering: on a CPU, streaming through memory is two to three
times as fast as reading slices of it. The capacity is therefore kept tight and grows in small steps. If memory is not
scarce, it grows within memory allocated once: each plane moves into the place that the previous one left. Invariant:
every value in a row is finite, so a masked key adds exactly nothing.

    rows.reserve(64, needed=128, at_most=160, max_bytes=1 << 30); rows.load(3, segments, end=40); rows.move([3], [63])

Shapes: K key-value heads, C capacity in tokens, D head size, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flow_dpo.engines.local.prefix_cache import Planes, Segment

_STEP = 16
"""The capacity is a multiple of this."""
_ROWS = 8
"""Minimum number of rows to reserve; more are added by doubling. Rows beyond those under way are never read."""
_SPARE = 32
"""Tokens of capacity added beyond the current need, if rows can still grow that much."""
_GENEROUS = 64, 2
"""If memory is not scarce: the minimum number of rows to have memory for, and the factor on the tokens that they can
grow to. On a CPU, memory that was never written to costs nothing."""
_SCARCE = 4
"""Memory is scarce if this memory exceeds one part in so many of the bytes that rows may take."""
_ALIGNMENT = 64
"""In bytes: a cache line."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model's keys and values: (key-value heads, key size, value size) by attention call of a forward.

    In nearly every model, a call is a layer. A model whose layers attend twice, or that runs its layers repeatedly, has
    separate keys and values for every call.
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

    def __init__(self, shapes: Shapes, *, most: int = 0) -> None:
        """`most`: tokens of all rows at their largest, for which memory is allocated at once if it is not scarce."""
        self.shapes = shapes
        self._most = most
        self.num_rows = 0
        self.capacity = 0
        self.keys: dict[int, torch.Tensor] = {}
        """RKCD by attention call; views into `_tensors`."""
        self.values: dict[int, torch.Tensor] = {}
        self._groups = shapes.groups()
        self._tensors: list[torch.Tensor] = []
        self._memory: list[torch.Tensor] = []
        """One flat tensor for each group, with a place for each plane and one more; or just the planes' size."""
        self._place = 0
        """Tokens of a plane that memory is allocated for; 0 if memory is scarce."""
        self._shifted = False
        """Whether the planes are in the second place and those after it, and the first place is free."""
        self._idle: list[torch.Tensor] = []
        """Memory of forgotten rows, kept for reuse."""

    @property
    def num_bytes(self) -> int:
        return sum(memory.nbytes for memory in self._memory)

    @property
    def idle_bytes(self) -> int:
        """Bytes of memory that forgotten rows left. Nothing may depend on this number."""
        return sum(memory.nbytes for memory in self._idle)

    def reserve(self, num_rows: int, needed: int, at_most: int, max_bytes: int) -> None:
        """Resize for `num_rows` rows of `needed` tokens, which can later grow to `at_most`. Frees excess memory if
        memory is scarce.

        Rows keep their first `needed` tokens. `max_bytes` is exceeded only if that many rows of `at_most` tokens would
        exceed it.
        """
        # 1. Capacity: the need plus a reserve, unless the current one is about that already.
        capacity = _multiple(min(needed + _SPARE, at_most), _STEP)
        if needed <= self.capacity < capacity + _SPARE:
            capacity = self.capacity
        # 2. If memory is not scarce: memory for more rows than are needed, and as many rows as fit.
        doubled = 1 << (num_rows - 1).bit_length()
        place = self._place
        if num_rows * capacity > place:
            place = max(_GENEROUS[0], doubled) * _GENEROUS[1] * _multiple(at_most, _STEP)
            if self._num_bytes_of(max(place, self._most)) * _SCARCE <= max_bytes:
                place = max(place, self._most)
        kept = min(num_rows, self.num_rows), min(needed, self.capacity)
        if self._num_bytes_of(place) * _SCARCE <= max_bytes:
            self._resize(place // capacity, capacity, kept, place)
            return
        # 3. Otherwise the next power of two, as far as the budget allows, but never fewer than are needed.
        affordable = max_bytes // (capacity * self.shapes.token_bytes)
        self._resize(max(num_rows, min(max(_ROWS, doubled, self.num_rows), affordable)), capacity, kept, 0)

    def release(self) -> None:
        """Free all memory."""
        self._resize(0, 0, (0, 0), 0)

    def empty(self) -> None:
        """Forget all rows. Memory is kept for rows of the same size, so the kernel need not allocate it again."""
        self._idle = self._memory if self._place else []
        self._tensors, self._memory = [], []
        self.keys, self.values = {}, {}
        self.num_rows = self.capacity = self._place = 0
        self._shifted = False

    def drop_idle(self) -> None:
        """Free what forgotten rows left."""
        self._idle = []

    def load(self, row: int, segments: Sequence[Segment], end: int) -> None:
        """Write the cached keys and values of the first `end` tokens into a row."""
        # One call takes a third of the time of a copy for each of many short segments.
        known = [segment.planes for segment in segments if segment.begin < end]
        if not known:
            return
        cut = end - segments[len(known) - 1].begin
        known[-1] = tuple(plane[..., :cut, :] for plane in known[-1])
        for tensor, planes in zip(self._tensors, zip(*known, strict=True), strict=True):
            torch.cat(planes, -2, out=tensor[:, row, :, : min(end, segments[-1].end)])

    def copy(self, row: int, begin: int, end: int) -> Planes:
        """Copies of the keys and values of a row's tokens [begin, end), one tensor a group: [planes, K, tokens, D]."""
        return tuple(tensor[:, row, :, begin:end].clone() for tensor in self._tensors)

    def move(self, targets: Sequence[int], sources: Sequence[int], lengths: Sequence[int]) -> None:
        """Copy the first tokens of each source row over its target row; `lengths` says how many."""
        for tensor in self._tensors:
            for target, source, length in zip(targets, sources, lengths, strict=True):
                tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def _num_bytes_of(self, place: int) -> int:
        """Bytes of memory with a place of so many tokens for each plane, and one more per group."""
        return sum(
            (len(planes) + 1) * place * heads * size * self.shapes.dtype.itemsize
            for (heads, size), planes in self._groups.items()
        )

    def _resize(self, num_rows: int, capacity: int, kept: tuple[int, int], place: int) -> None:
        """Lay the planes out for rows of this capacity. `kept` is the number of rows, and of first tokens of each, to
        keep. `place` is the number of tokens of a plane to have memory for; 0 means only those of the rows."""
        if (num_rows, capacity, place) == (self.num_rows, self.capacity, self._place):
            return
        # 1. In new memory, or in the same, moved by one place unless every row stays where it is.
        here = place == self._place > 0
        moves = not here or capacity != self.capacity
        shifted = here and moves != self._shifted
        rows, tokens = kept if moves else (0, 0)
        old, self._tensors = self._tensors, []
        for index, ((heads, size), planes) in enumerate(self._groups.items()):
            shape = (len(planes), num_rows, heads, capacity, size)
            stride = (place or num_rows * capacity) * heads * size
            memory = self._memory[index] if here else self._new_memory(index, stride * (len(planes) + (place > 0)))
            new = memory.as_strided(
                shape,
                (stride, heads * capacity * size, capacity * size, size, 1),
                memory.storage_offset() + stride * shifted,
            )
            # 2. A plane moves into a place that is free by now. Old memory is freed before the next group's is taken.
            for plane in range(len(planes))[:: -1 if shifted else 1] if rows and tokens else ():
                new[plane, :rows, :, :tokens] = old[index][plane, :rows, :, :tokens]
            if not here:
                self._memory[index : index + 1] = [memory]
                old[index : index + 1] = [new[:0]]
            self._tensors.append(new)
            for plane, (call, kind) in zip(new, planes, strict=True):
                (self.keys if kind == "key" else self.values)[call] = plane
        self._idle = []
        self.num_rows, self.capacity, self._place, self._shifted = num_rows, capacity, place, shifted

    def _new_memory(self, group: int, size: int) -> torch.Tensor:
        """Memory with finite values only: that of forgotten rows if it has exactly this size, otherwise zeros."""
        if self._idle and self._idle[group].numel() == size:
            return self._idle[group]
        if self.shapes.device.type != "cpu":
            return torch.zeros(size, dtype=self.shapes.dtype, device=self.shapes.device)
        # numpy asks the system for zeros, and pages that are never written to take no memory; torch would write to all.
        num_bytes = size * self.shapes.dtype.itemsize
        memory = torch.from_numpy(np.zeros(num_bytes + _ALIGNMENT, np.uint8))
        skipped = -memory.data_ptr() % _ALIGNMENT
        return memory[skipped : skipped + num_bytes].view(self.shapes.dtype)

    @staticmethod
    def num_bytes_of(shapes: Shapes, num_rows: int, tokens: int) -> int:
        """Bytes of `num_rows` rows that can grow to `tokens` tokens."""
        return num_rows * _multiple(tokens, _STEP) * shapes.token_bytes


def _multiple(number: int, unit: int) -> int:
    return -(-number // unit) * unit
