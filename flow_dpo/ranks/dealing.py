"""Rows dealt to the ranks of a process group, whose results all ranks get in the same order.

For 5 rows, the longest first, on 2 ranks:

    round 1   rank 0 computes row 0, rank 1 row 1      both get the results of 0, then 1
    round 2   rank 0 computes row 2, rank 1 row 3      both get the results of 2, then 3
    round 3   rank 0 computes row 4                    both get it

Invariants: every rank sees the same results in the same order, so sums have the same bits at any number of ranks; a row
that fails, fails on all ranks, with the error of the first that failed.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from flow_dpo.learner.deal import RowResult
from flow_dpo.learner.gradients import NonFinite
from flow_dpo.ranks.group import Caught, LostRank, Ranks, portable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What is sent about a row before its gradient."""

    error: bytes | None
    result: RowResult | None
    """The row's result, without its tensors."""
    logprobs: tuple[list[np.ndarray], list[np.ndarray]]
    """Log-probabilities of the row's completions, under policy and reference."""
    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    seconds: float
    """Seconds from the row's beginning to its end."""


class Dealt:
    """A `Deal` over a process group: every rank calls it with the same rows."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self.aligned = False
        """Whether a rank without a row computes another's, because the model is sharded over the ranks."""
        self.begin()

    def begin(self) -> None:
        """Reset the counts."""
        self._rows, self._tokens, self._seconds = ([0.0] * self._ranks.num for _ in range(3))
        self._waited = 0.0

    def measures(self) -> dict[str, float]:
        """Since `begin`: rows, tokens and seconds of each rank, and how long this one waited for others."""
        by_rank = {
            f"{rank}/{name}": values[rank]
            for rank in range(self._ranks.num)
            for name, values in (("rows", self._rows), ("tokens", self._tokens), ("seconds", self._seconds))
        }
        return {"num": self._ranks.num, **by_rank, "wait_seconds": self._waited}

    def __call__(self, num_rows: int, compute: Callable[[int], RowResult]) -> Iterator[RowResult]:
        """The results of all rows. Raises the error of the first row of a round that failed, and `LostRank` if a rank
        failed by itself, outside its rows."""
        for start in range(0, num_rows, self._ranks.num):
            # 1. Every rank computes its row.
            place = start + self._ranks.rank
            own, caught, began = None, Caught(), time.perf_counter()
            with caught:
                if place < num_rows:
                    own = compute(place)
                elif self.aligned:
                    compute(start)
            if self.aligned and caught.error is not None and not isinstance(caught.error, NonFinite):
                self._ranks.fail(caught.error)  # the others are still in the layers, where they wait for this rank
            done = time.perf_counter()
            # 2. The results without gradients, or the errors.
            heads: list[Any] = self._ranks.gather(self._head(own, caught.error, done - began))
            for rank, head in enumerate(heads):
                if not isinstance(head, _Head):  # an error ended its update already (`learner`)
                    error = pickle.loads(head[0])
                    raise LostRank(f"rank {rank} failed by itself: {type(error).__name__}: {error}") from error
                if head.error is not None:
                    raise caught.error if rank == self._ranks.rank and caught.error else pickle.loads(head.error)
            # 3. The gradients, in order.
            for rank, head in enumerate(heads[: num_rows - start]):
                assert head.result is not None
                self._count(rank, head)
                pieces = self._pieces(rank, head, own)
                policy, reference = ([torch.from_numpy(each) for each in side] for side in head.logprobs)
                self._waited += time.perf_counter() - done
                yield replace(head.result, pieces=pieces, policy=policy, reference=reference)
                done = time.perf_counter()

    def _count(self, rank: int, head: _Head) -> None:
        assert head.result is not None
        self._rows[rank] += 1
        self._tokens[rank] += head.result.tokens
        self._seconds[rank] += head.seconds

    def _head(self, own: RowResult | None, error: Exception | None, seconds: float) -> _Head:
        pieces = () if own is None else own.pieces
        return _Head(
            error=None if error is None else portable(error, self._ranks.rank),
            result=None if own is None else replace(own, pieces=(), policy=[], reference=[]),
            logprobs=([], []) if own is None else ([p.numpy() for p in own.policy], [r.numpy() for r in own.reference]),
            shapes=[piece.shape for piece in pieces],
            dtypes=[piece.dtype for piece in pieces],
            seconds=seconds,
        )

    def _pieces(self, rank: int, head: _Head, own: RowResult | None) -> tuple[torch.Tensor, ...]:
        """The gradient of rank `rank`, sent as one message of bytes; empty if the rows have none."""
        if not head.shapes:
            return ()
        sizes = [shape.numel() * dtype.itemsize for shape, dtype in zip(head.shapes, head.dtypes, strict=True)]
        if rank == self._ranks.rank:
            assert own is not None
            self._ranks.send(torch.cat([_bytes(piece) for piece in own.pieces]), rank)
            return own.pieces
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
        self._ranks.send(flat, rank)
        parts: Sequence[torch.Tensor] = flat.split(sizes)
        return tuple(
            # A copy, since a view of another type must begin at a multiple of that type's size.
            part.clone().view(dtype).view(shape)
            for part, dtype, shape in zip(parts, head.dtypes, head.shapes, strict=True)
        )


def _bytes(piece: torch.Tensor) -> torch.Tensor:
    return piece.detach().contiguous().reshape(-1).view(torch.uint8)
