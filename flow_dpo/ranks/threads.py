"""Rows computed by several threads of this process, whose results are returned in order.

For 5 rows, the longest first, in 2 threads: each thread takes the next row after finishing one; results of 0, 1, 2, ...
torch releases Python's lock while it computes, and a row's backward pass runs in the thread of its forward pass.

    Learner(policy, settings, deal=threads_of(policy))

Invariant: a row is computed as it would be alone, and rows are added up in one order, so no bit of an update depends on
the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import torch

from flow_dpo.learner.deal import Deal, RowResult, alone
from flow_dpo.learner.policy import Policy
from flow_dpo.models.fused_decoder import MOST_WEIGHTS
from flow_dpo.ranks.environment import usable_processors

_MOST = 8
"""Most threads: an update of a small model has few rows."""


class Threads:
    """A `Deal` over threads."""

    def __init__(self, num: int) -> None:
        self.num = num
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, num_rows: int, compute: Callable[[int], RowResult]) -> Iterator[RowResult]:
        """The results of all rows. Raises the error of the first row that failed, once no row is being computed."""
        if min(num_rows, self.num) < 2:
            yield from alone(num_rows, compute)
            return
        if self._pool is None:
            # Kernels of a row run in as many threads as they would alone.
            self._pool = ThreadPoolExecutor(self.num, "rows", torch.set_num_threads, (torch.get_num_threads(),))
        futures = [self._pool.submit(compute, place) for place in range(num_rows)]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def threads_of(policy: Policy, given: int = 0) -> Deal:
    """Threads for a small model on a CPU whose kernels have one: as many as cores, or `given` or OMP_NUM_THREADS at
    most. Otherwise this thread alone, and so with dropout, whose masks come from one generator."""
    model = policy.model
    if model.device.type != "cpu" or model.num_parameters() > MOST_WEIGHTS or torch.get_num_threads() != 1:
        return alone
    num = rows_at_once(given, policy.settings.lora_dropout)
    return Threads(num) if num > 1 else alone


def rows_at_once(given: int, dropout: float) -> int:
    """Most rows of a small model's update that are computed at once on a CPU."""
    cores = usable_processors()
    limits = [given or cores, cores, _MOST]
    if (environment := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        limits.append(int(environment))
    return 1 if dropout else min(limits)
