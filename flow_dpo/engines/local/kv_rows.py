"""KV cache rows: the keys and values of the requests under way, one row a request.

They lie in a few large tensors, [planes, rows, K, C, D]: a plane is one layer's keys or one layer's values, planes of
one shape share a tensor, and a row holds one prompt and its completion, token after token. Attention reads all capacity
C of the first rows in memory order, without gathering: on a CPU, streaming through memory is two to three times as fast
as reading slices of it, so the capacity is kept tight and grown in small steps. Where memory is not scarce this happens
within memory that was taken once, one plane moving into the place that the one before it left. Invariant: every value
in a row is finite, so that a masked key adds exactly nothing.

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
"""Capacity is a multiple of this."""
_ROWS = 8
"""The least number of rows to reserve; more come by doubling. Rows beyond those under way are never read."""
_SPARE = 32
"""Tokens of capacity added beyond the present need, where rows may still grow as much."""
_GENEROUS = 64, 2
"""Where memory is not scarce: the least number of rows there is memory for, and of which multiple of the tokens that
they may grow to. What nobody has written to takes none on a CPU."""
_SCARCE = 4
"""Memory is scarce where that is more than one part in so many of the bytes that rows may take."""
_ALIGNMENT = 64
"""Bytes; a cache line."""


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

    def __init__(self, shapes: Shapes, *, most: int = 0) -> None:
        """`most`: tokens of all rows at their largest, for which memory is taken at once where it is not scarce."""
        self.shapes = shapes
        self._most = most
        self.num_rows = 0
        self.capacity = 0
        self.keys: dict[int, torch.Tensor] = {}
        """RKCD by attention call; views into the tensors below."""
        self.values: dict[int, torch.Tensor] = {}
        self._groups = shapes.groups()
        self._tensors: list[torch.Tensor] = []
        self._memory: list[torch.Tensor] = []
        """One flat tensor a group: a place for each plane and one more; or just what the planes take."""
        self._place = 0
        """Tokens of a plane that there is memory for; 0 where memory is scarce."""
        self._shifted = False
        """Whether the planes lie in the second place and those after it, and the first is free."""
        self._idle: list[torch.Tensor] = []
        """Memory of rows that were forgotten."""

    @property
    def num_bytes(self) -> int:
        return sum(memory.nbytes for memory in self._memory)

    @property
    def idle_bytes(self) -> int:
        """Of memory that forgotten rows left, which nothing may depend on."""
        return sum(memory.nbytes for memory in self._idle)

    def reserve(self, num_rows: int, needed: int, at_most: int, max_bytes: int) -> None:
        """Resize for `num_rows` rows of `needed` tokens, which may yet grow to `at_most`; frees what is too much where
        memory is scarce.

        Rows keep what they hold of the first `needed` tokens. `max_bytes` is exceeded only where that many rows of
        `at_most` tokens would exceed it.
        """
        # 1. Capacity: the need plus a reserve, unless the present one is already about that.
        capacity = _multiple(min(needed + _SPARE, at_most), _STEP)
        if needed <= self.capacity < capacity + _SPARE:
            capacity = self.capacity
        # 2. Rows: as many as the memory holds, and memory for more than are needed, where it is not scarce.
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
        # 3. Otherwise the next power of two, as far as the budget allows, and never fewer than are needed.
        affordable = max_bytes // (capacity * self.shapes.token_bytes)
        self._resize(max(num_rows, min(max(_ROWS, doubled, self.num_rows), affordable)), capacity, kept, 0)

    def release(self) -> None:
        """Free all memory."""
        self._resize(0, 0, (0, 0), 0)

    def empty(self) -> None:
        """Forget all rows. Memory is kept for rows that are to be as large, which saves a kernel's making it again."""
        self._idle = self._memory if self._place else []
        self._tensors, self._memory = [], []
        self.keys, self.values = {}, {}
        self.num_rows = self.capacity = self._place = 0
        self._shifted = False

    def drop_idle(self) -> None:
        """Free what forgotten rows left."""
        self._idle = []

    def load(self, row: int, segments: Sequence[Segment], end: int) -> None:
        """Write cached keys and values of the first `end` tokens into a row."""
        # In one call, which takes a third of what a copy for each of many short segments does.
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
        """Copy the first tokens of each source row, as many as it holds, over its target row."""
        for tensor in self._tensors:
            for target, source, length in zip(targets, sources, lengths, strict=True):
                tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def _num_bytes_of(self, place: int) -> int:
        """Bytes of memory with a place of so many tokens for each plane and one more."""
        return sum(
            (len(planes) + 1) * place * heads * size * self.shapes.dtype.itemsize
            for (heads, size), planes in self._groups.items()
        )

    def _resize(self, num_rows: int, capacity: int, kept: tuple[int, int], place: int) -> None:
        """Lay the planes out for rows of this capacity, with the first rows and of these the first tokens, as many as
        `kept` says. `place` is the number of tokens of a plane to have memory for; 0: just those of the rows."""
        if (num_rows, capacity, place) == (self.num_rows, self.capacity, self._place):
            return
        # 1. In other memory, or in the same: moved by one place, unless every row stays where it is.
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
            # 2. A plane moves into a place that is free by now. Old memory is freed before that of the next group.
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
        """Memory without what is not finite: that of forgotten rows where it has this very size."""
        if self._idle and self._idle[group].numel() == size:
            return self._idle[group]
        if self.shapes.device.type != "cpu":
            return torch.zeros(size, dtype=self.shapes.dtype, device=self.shapes.device)
        # numpy asks the system for zeros, and pages that nobody writes to take no memory; torch would write to all.
        num_bytes = size * self.shapes.dtype.itemsize
        memory = torch.from_numpy(np.zeros(num_bytes + _ALIGNMENT, np.uint8))
        skipped = -memory.data_ptr() % _ALIGNMENT
        return memory[skipped : skipped + num_bytes].view(self.shapes.dtype)

    @staticmethod
    def num_bytes_of(shapes: Shapes, num_rows: int, tokens: int) -> int:
        """Bytes of `num_rows` rows that may grow to `tokens` tokens."""
        return num_rows * _multiple(tokens, _STEP) * shapes.token_bytes


def _multiple(number: int, unit: int) -> int:
    return -(-number // unit) * unit
