"""The model behind `tools.scaling_model`: a run's costs, its throughput, and the best use of a number of GPUs.

    simulate(guess(8, chunk_tokens=160, max_chunks=6), workers=2, lag=1).problems_an_hour

The loop is simulated batch by batch, as it runs (`core.loop`): shards wait in one queue for the next free worker, batch
b is submitted once batch b - 1 - lag has been learned from, and an update waits for the slowest rank. Invariant:
nothing is measured here, and the same costs give the same numbers.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

NUM_BATCHES, SETTLED = 60, 20
"""Batches that are simulated, and how many of them pass before throughput is taken."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything that throughput depends on besides workers, ranks and lag."""

    problems: int = 16
    """Problems per batch."""
    shard: int = 16
    """Problems per shard; 0 puts the whole batch into one shard."""
    tokens: float = 0.0
    """Sampled tokens per problem."""
    steps: float = 0.0
    """Consecutive decoding steps per shard: chunks times tokens per chunk."""
    step_s: float = 0.0
    """Seconds per decoding step, regardless of its size."""
    token_s: float = 0.0
    """Seconds that a sampled token adds to its step, including all that is read for it."""
    grade_s: float = 0.0
    """Seconds of grading per problem."""
    rows: float = 0.0
    """Packed rows per batch that are learned from."""
    row_s: float = 0.0
    """Seconds per packed row, on one rank."""
    update_s: float = 0.0
    """Seconds per batch that ranks do not reduce: optimizer, checks, publishing adapters."""
    refresh_s: float = 0.0
    """Seconds in which a worker loads new adapters, at most once per shard."""
    batch_s: float = 0.0
    """Seconds per batch outside learning: credit, records, checkpoint."""
    spread: float = 0.0
    """The spread of shards' times: the standard deviation of their logarithm; 0 makes all alike."""

    def shard_s(self, problems: int) -> float:
        """Seconds of a shard of this many problems on one worker."""
        return self.steps * self.step_s + problems * (self.tokens * self.token_s + self.grade_s) + self.refresh_s

    def learn_s(self, ranks: int) -> float:
        """Seconds of learning from a batch. Rows are not split, and all ranks wait for the one with the most rows."""
        return self.rows_of_longest(ranks) * self.row_s + self.update_s

    def rows_of_longest(self, ranks: int) -> float:
        """Rows of the rank with the most rows. A fractional `rows` is an average of batches with whole numbers."""
        low = math.floor(self.rows)
        return math.ceil(low / ranks) + (self.rows - low) * (math.ceil((low + 1) / ranks) - math.ceil(low / ranks))


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The throughput in the steady state."""

    problems_an_hour: float
    workers_busy: float
    """The share of time in which workers are busy."""
    learner_busy: float


def simulate(costs: Costs, *, workers: int = 1, ranks: int = 1, lag: int = 0, here: bool = False) -> Throughput:
    """Simulate batches as the loop runs them. `here`: a single process alternates between sampling and learning."""
    drawn = random.Random(0)
    size = costs.shard or costs.problems
    sizes = [min(size, costs.problems - at) for at in range(0, costs.problems, size)]
    free = [0.0] * workers
    in_flight = deque[float]()
    now = learned = sampled = 0.0
    begun, ended, marks = 0, 0, (0.0, 0.0, 0.0)
    while ended < NUM_BATCHES:
        # 1. Submit: each shard goes to the first free worker.
        while len(in_flight) < (1 if here else lag + 1) and begun < NUM_BATCHES:
            done = now
            for problems in sizes:
                took = costs.shard_s(problems) * math.exp(drawn.gauss(-(costs.spread**2) / 2, costs.spread))
                end = max(heapq.heappop(free), now) + took
                heapq.heappush(free, end)
                done, sampled = max(done, end), sampled + took
            in_flight.append(done)
            begun += 1
        # 2. Wait for the oldest batch, learn from it, record it.
        now = max(now, in_flight.popleft()) + costs.learn_s(ranks)
        learned += costs.learn_s(ranks)
        now += costs.batch_s
        ended += 1
        if ended == SETTLED:
            marks = now, sampled, learned
    seconds = now - marks[0]
    return Throughput(
        problems_an_hour=3600 * costs.problems * (NUM_BATCHES - SETTLED) / seconds,
        workers_busy=min(1.0, (sampled - marks[1]) / (workers * seconds)),
        learner_busy=(learned - marks[2]) / seconds,
    )


# ---- guessed costs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU for which costs are guessed; by default an H100 with 80 GB."""

    bandwidth: float = 3.35e12
    """Memory bandwidth, in bytes per second."""
    flops: float = 9.9e14
    """bf16 operations per second."""
    reached: float = 0.4
    """The share of these operations that is reached; of the bandwidth, twice this share."""
    overhead_s: float = 0.004
    """Further seconds per decoding step: adapters, drawing tokens, the scheduler."""
    memory: float = 80e9


def guess(
    size: float, *, chunk_tokens: int, max_chunks: int, problems: int = 16, shard: int = 16, gpu: Gpu | None = None
) -> Costs:
    """Guessed costs of a model with `size` billion parameters in bf16, for trees with one alternative per chunk."""
    gpu = Gpu() if gpu is None else gpu
    parameters, row_tokens = size * 1e9, 4096
    # The trunk's chunks, and from each an alternative to the end. On average a chunk is two thirds full.
    tokens = 0.67 * chunk_tokens * (max_chunks + max_chunks * (max_chunks + 1) / 2)
    compute_s = 2 * parameters / (gpu.flops * gpu.reached)
    cards = gpus_of(size, gpu)
    return Costs(
        problems=problems,
        shard=shard,
        tokens=tokens,
        steps=chunk_tokens * (max_chunks + 1),
        step_s=2 * parameters / (gpu.bandwidth * 2 * gpu.reached * cards) + gpu.overhead_s,
        # One token is read for each token written: prompts and prefixes that are no longer cached.
        token_s=2 * compute_s / cards + 3e-5,
        grade_s=0.02,
        rows=problems * (0.6 * tokens + 200) / row_tokens,
        # Four forwards' worth: policy, reference, one more for checkpointing, and the gradient of activations.
        row_s=4 * compute_s * row_tokens,
        update_s=0.5,
        refresh_s=0.5,
        batch_s=0.5,
    )


def gpus_of(size: float, gpu: Gpu | None = None) -> int:
    """GPUs per worker, a power of two: room for the weights in bf16, and half as much again for the KV cache."""
    needed = 2e9 * size * 1.5 / (Gpu() if gpu is None else gpu).memory
    return 2 ** max(0, math.ceil(math.log2(needed)))


# ---- the best use of GPUs ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to distribute a run over GPUs."""

    gpus: int
    workers: int
    ranks: int
    lag: int
    shard: int
    found: Throughput


def plans(costs: Costs, most: int, *, each: int = 1, lags: Sequence[int] = (0, 1, 2)) -> list[Plan]:
    """Ways to use up to `most` GPUs, the fewest first: `each` GPUs per worker, one per rank, enough ranks to hold the
    base, and shards of the given size or smaller. A single GPU alternates between sampling and learning."""
    made: list[Plan] = []
    if each == 1:
        alone = simulate(replace(costs, shard=0), here=True)
        made.append(Plan(gpus=1, workers=1, ranks=1, lag=0, shard=0, found=alone))
    whole = costs.shard or costs.problems
    for shard in sorted({whole, max(1, whole // 2), max(1, whole // 4)}, reverse=True):
        cut = replace(costs, shard=shard)
        useful = math.ceil(costs.problems / shard) * (max(lags) + 1)
        for workers in sorted({min(useful, count) for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)}):
            for ranks in {
                max(each, count) for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if count <= max(each, costs.rows)
            }:
                for lag in lags if workers * each + ranks <= most else ():
                    found = simulate(cut, workers=workers, ranks=ranks, lag=lag)
                    gpus = workers * each + ranks
                    made.append(Plan(gpus=gpus, workers=workers, ranks=ranks, lag=lag, shard=shard, found=found))
    return sorted(made, key=lambda one: (one.gpus, one.lag, -one.shard))


def best(ways: Sequence[Plan], gpus: int) -> Plan | None:
    """The fastest way with at most this many GPUs; of ways within 1 %, the one with the fewest GPUs, then least lag."""
    able = [one for one in ways if one.gpus <= gpus]
    most = max((one.found.problems_an_hour for one in able), default=0.0)
    return next((one for one in able if one.found.problems_an_hour >= 0.99 * most), None)


def advise(costs: Costs, counts: Sequence[int], *, each: int = 1, lags: Sequence[int] = (0, 1, 2)) -> list[str]:
    """A table of the best use of each number of GPUs, where it saturates, and how to use further GPUs."""
    ways = plans(costs, max(counts), each=each, lags=lags)
    found = [(gpus, one) for gpus in counts if (one := best(ways, gpus)) is not None]
    if not found:
        return [f"one run needs {2 * each} GPUs or more"]
    lines = ["| GPUs | used | workers | ranks | lag | shard | problems/h | workers busy | learner busy |"]
    lines.append("|---:" * 9 + "|")
    lines += [
        f"| {gpus} | {one.gpus} | {one.workers} | {one.ranks} | {one.lag} | {one.shard or costs.problems} | "
        f"{one.found.problems_an_hour:,.0f} | {one.found.workers_busy:.0%} | {one.found.learner_busy:.0%} |"
        for gpus, one in found
    ]
    most = found[-1][1].found.problems_an_hour
    enough = next(one for one in ways if one.found.problems_an_hour >= 0.9 * most)
    serial = costs.steps * costs.step_s + costs.refresh_s
    lines.append(
        f"\nOne run reaches 90 % of its best with {enough.gpus} GPUs. Even a small shard takes {serial:.1f} s, and "
        f"learning from a batch {costs.learn_s(enough.ranks):.1f} s: more GPUs help one run only with larger batches."
    )
    # Beyond that, repeat the way with the most throughput per GPU, with one seed or arm in each run.
    economic = max(
        (one for one in ways if one.gpus <= enough.gpus), key=lambda one: one.found.problems_an_hour / one.gpus
    )
    for gpus in (count for count in counts if count > enough.gpus):
        sides = [(gpus // one.gpus, one) for one in (enough, economic) if gpus >= 2 * one.gpus]
        words = [f"{num} runs of {one.gpus} ({num * one.found.problems_an_hour:,.0f} problems/h)" for num, one in sides]
        if words:
            lines.append(f"{gpus} GPUs, runs in parallel (seeds, arms): {' or '.join(dict.fromkeys(words))}.")
    return lines
