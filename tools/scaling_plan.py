"""The model behind `tools.scaling_model`: what a run costs, how fast that goes, and the best use of some GPUs.

    simulate(guess(8, chunk_tokens=160, max_chunks=6), workers=2, lag=1).problems_an_hour

The loop is simulated batch by batch, as it runs (`core.loop`): shards wait in one queue for the next free worker, batch
b is submitted once batch b - 1 - lag has been learned from, and an update waits for the longest rank. Invariant:
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
"""Batches that are gone through, and those of them after which throughput is taken."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything that throughput depends on besides workers, ranks and lag."""

    problems: int = 16
    """Of a batch."""
    shard: int = 16
    """Problems of a shard; 0: all of a batch."""
    tokens: float = 0.0
    """Sampled of a problem."""
    steps: float = 0.0
    """Decoding steps of a shard that follow one another: chunks times their tokens."""
    step_s: float = 0.0
    """Seconds of a decoding step, whatever is in it."""
    token_s: float = 0.0
    """Seconds that a sampled token adds to it, with all that is read for it."""
    grade_s: float = 0.0
    """Seconds of grading a problem."""
    rows: float = 0.0
    """Packed rows of a batch that are learned from."""
    row_s: float = 0.0
    """Seconds of one, on one rank."""
    update_s: float = 0.0
    """Seconds of a batch in which ranks do not help: optimizer, checks, publishing adapters."""
    refresh_s: float = 0.0
    """Seconds in which a worker loads new adapters, once a shard at most."""
    batch_s: float = 0.0
    """Seconds of a batch beside learning: credit, records, checkpoint."""
    spread: float = 0.0
    """Of shards' times, as the standard deviation of their logarithm; 0: they are all alike."""

    def shard_s(self, problems: int) -> float:
        """Seconds of a shard of so many problems on one worker."""
        return self.steps * self.step_s + problems * (self.tokens * self.token_s + self.grade_s) + self.refresh_s

    def learn_s(self, ranks: int) -> float:
        """Seconds of learning from a batch: rows are whole, and the rank with the most of them is waited for."""
        return self.rows_of_longest(ranks) * self.row_s + self.update_s

    def rows_of_longest(self, ranks: int) -> float:
        """Rows of the rank with the most: a fraction is the mean of batches with one more and one less."""
        low = math.floor(self.rows)
        return math.ceil(low / ranks) + (self.rows - low) * (math.ceil((low + 1) / ranks) - math.ceil(low / ranks))


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """How it goes, once it goes steadily."""

    problems_an_hour: float
    workers_busy: float
    """Share of their time."""
    learner_busy: float


def simulate(costs: Costs, *, workers: int = 1, ranks: int = 1, lag: int = 0, here: bool = False) -> Throughput:
    """Go through batches as the loop does. `here`: one process that samples and learns by turns."""
    drawn = random.Random(0)
    size = costs.shard or costs.problems
    sizes = [min(size, costs.problems - at) for at in range(0, costs.problems, size)]
    free = [0.0] * workers
    in_flight = deque[float]()
    now = learned = sampled = 0.0
    begun, ended, marks = 0, 0, (0.0, 0.0, 0.0)
    while ended < NUM_BATCHES:
        # 1. submit: each shard goes to the worker that is free first
        while len(in_flight) < (1 if here else lag + 1) and begun < NUM_BATCHES:
            done = now
            for problems in sizes:
                took = costs.shard_s(problems) * math.exp(drawn.gauss(-(costs.spread**2) / 2, costs.spread))
                end = max(heapq.heappop(free), now) + took
                heapq.heappush(free, end)
                done, sampled = max(done, end), sampled + took
            in_flight.append(done)
            begun += 1
        # 2. wait for the oldest batch, learn from it, write it down
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


# ---- costs that are guessed ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What costs are guessed by: an H100 with 80 GB, unless something else is given."""

    bandwidth: float = 3.35e12
    """Bytes a second."""
    flops: float = 9.9e14
    """Of bf16, a second."""
    reached: float = 0.4
    """Share of either that is reached."""
    overhead_s: float = 0.004
    """Of a decoding step: adapters, drawing tokens, the scheduler."""
    memory: float = 80e9


def guess(
    size: float, *, chunk_tokens: int, max_chunks: int, problems: int = 16, shard: int = 16, gpu: Gpu | None = None
) -> Costs:
    """Costs on a GPU of a model of `size` billion parameters in bf16, with a tree of one alternative at each chunk."""
    gpu = Gpu() if gpu is None else gpu
    parameters, row_tokens = size * 1e9, 4096
    # The trunk's chunks, and from each of them an alternative to the end; chunks are two thirds full in the mean.
    tokens = 0.67 * chunk_tokens * (max_chunks + max_chunks * (max_chunks + 1) / 2)
    compute_s = 2 * parameters / (gpu.flops * gpu.reached)
    cards = gpus_of(size, gpu)
    return Costs(
        problems=problems,
        shard=shard,
        tokens=tokens,
        steps=chunk_tokens * (max_chunks + 1),
        step_s=2 * parameters / (gpu.bandwidth * 2 * gpu.reached * cards) + gpu.overhead_s,
        # As much is read as is written: prompts and prefixes that no cache holds any more.
        token_s=2 * compute_s / cards + 3e-5,
        grade_s=0.02,
        rows=problems * (0.6 * tokens + 200) / row_tokens,
        # A forward each of policy and reference, one more of checkpointing, and the gradient of activations.
        row_s=4 * compute_s * row_tokens,
        update_s=0.5,
        refresh_s=0.5,
        batch_s=0.5,
    )


def gpus_of(size: float, gpu: Gpu | None = None) -> int:
    """GPUs of one worker, a power of two: weights in bf16 and half as much again for keys and values."""
    needed = 2e9 * size * 1.5 / (Gpu() if gpu is None else gpu).memory
    return 2 ** max(0, math.ceil(math.log2(needed)))


# ---- what to spend GPUs on ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to spread a run over GPUs."""

    gpus: int
    workers: int
    ranks: int
    lag: int
    shard: int
    found: Throughput


def plans(costs: Costs, most: int, *, each: int = 1, lags: Sequence[int] = (0, 1, 2)) -> list[Plan]:
    """Ways to use up to `most` GPUs, the fewest first: `each` a worker, one a rank, ranks enough to hold the base,
    shards of the costs' problems or fewer. One GPU alone samples and learns by turns."""
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
    """The fastest way with so many GPUs; of those within a hundredth, the one with the fewest and the least lag."""
    able = [one for one in ways if one.gpus <= gpus]
    most = max((one.found.problems_an_hour for one in able), default=0.0)
    return next((one for one in able if one.found.problems_an_hour >= 0.99 * most), None)


def advise(costs: Costs, counts: Sequence[int], *, each: int = 1, lags: Sequence[int] = (0, 1, 2)) -> list[str]:
    """A table of the best use of each number of GPUs, where it saturates, and what the rest is good for."""
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
        f"\nOne run is at 90 % of its best with {enough.gpus} GPUs. A shard takes {serial:.1f} s however small it is, "
        f"learning from a batch {costs.learn_s(enough.ranks):.1f} s: more GPUs serve one run with larger batches alone."
    )
    # The way that makes most of each GPU is repeated: a seed or an arm each.
    economic = max(
        (one for one in ways if one.gpus <= enough.gpus), key=lambda one: one.found.problems_an_hour / one.gpus
    )
    for gpus in (count for count in counts if count > enough.gpus):
        sides = [(gpus // one.gpus, one) for one in (enough, economic) if gpus >= 2 * one.gpus]
        words = [f"{num} runs of {one.gpus} ({num * one.found.problems_an_hour:,.0f} problems/h)" for num, one in sides]
        if words:
            lines.append(f"{gpus} GPUs, side by side (seeds, arms): {' or '.join(dict.fromkeys(words))}.")
    return lines
