"""Shard: a few problems of a batch that are sampled together, with everything that their trees depend on.

A batch is cut by a number of problems, never by the number of workers, so any number of workers, any order of finishing
and any failure give the same trees to the bit. With shards of two problems:

    batch 0: p0 p1 | p2 p3 | p4        shard 0, 1 and 2; shard 1 is [p2, p3] for any worker, at any attempt

Invariant: a shard's trees are a function of the shard alone. Every kind of worker samples with `sample_shard`, after a
refresh of its engine, whose cache would otherwise carry rounding from one shard into the next.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from flow_dpo.core.errors import EngineError
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.grader import Grader
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Problem, Role
from flow_dpo.verify.reward_grader import RewardGrader

_NOT_SAMPLED = -1
"""The version of completions in a tree that were not sampled as such."""


class WorkerLost(Exception):
    """A worker has ended, cannot be reached, or was given up. Its shard must be sampled again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Problems that one worker samples and grades, with everything that their trees depend on. Can be pickled."""

    batch: int
    """Number of the batch, in order of submission."""
    number: int
    """Number of the shard in its batch."""
    explore: Explore
    flow: Flow[Any]
    problems: Sequence[Problem]
    seed: int
    adapters: Mapping[Role, Adapter]
    """The adapters to sample with. Each has a folder with its weights for as long as the shard is under way."""

    @property
    def version(self) -> int:
        """Version of the policy to sample from."""
        return max((adapter.version for adapter in self.adapters.values()), default=0)

    @property
    def names(self) -> str:
        """The problems' ids, for messages."""
        ids = [problem.id for problem in self.problems]
        return ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What a worker returns for a shard."""

    trees: list[Tree]
    """One graded tree for each problem, in their order."""
    sampling_s: float
    grading_s: float
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    """The engine's counts and seconds."""


class Outcome:
    """A context manager that keeps the error raised in its block, to be handled later or in another thread."""

    error: BaseException | None = None

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        self.error = error
        return True


class Worker(Protocol):
    """Samples one shard at a time, wherever it runs. A pool calls all methods but `abort` from a thread per worker."""

    @property
    def name(self) -> str:
        """Name and place of the worker, for messages: "http://gpu7:8000", "Ray worker 3 (pid 4711)"."""
        ...

    def sample(self, shard: Shard) -> ShardResult:
        """Sample and grade a shard. Raises `WorkerLost` if the worker is gone; any other error is the work's own."""
        ...

    def restart(self) -> None:
        """Bring a lost worker back. Raises `WorkerLost` if it is not ready yet."""
        ...

    def abort(self) -> None:
        """Called from another thread: make a `sample` or `restart` that is under way end in `WorkerLost` soon."""
        ...

    def close(self) -> None:
        """Release what the worker holds."""
        ...


def sample_shard(runner: RolloutRunner, grader: Grader, shard: Shard) -> ShardResult:
    """Sample the shard's problems together and grade their trees."""
    if isinstance(grader, RewardGrader):
        grader.start(shard.version)
    started = time.perf_counter()
    with uncollected():
        trees = shard.explore(shard.flow, runner, shard.problems, seed=shard.seed)
    sampled = time.perf_counter()
    grader.grade(trees)
    return ShardResult(trees=trees, sampling_s=sampled - started, grading_s=time.perf_counter() - sampled)


def sample_and_continue(runner: RolloutRunner, grader: Grader, shard: Shard) -> ShardResult:
    """The same for a worker that continues after an error of a flow or a grader: requests under way are sampled to the
    end first. Otherwise they would disturb the next shard, and its error would hide this one. An engine that failed is
    left alone."""
    outcome, rest = Outcome(), Outcome()
    with outcome:
        return sample_shard(runner, grader, shard)
    assert outcome.error is not None
    with rest:
        while not isinstance(outcome.error, EngineError) and runner.engine.poll():
            pass
    raise outcome.error


@contextmanager
def uncollected() -> Iterator[None]:
    """A context without automatic garbage collection. Rollouts create many objects and hardly any cycles, and one
    collection walks through all objects of torch and transformers, which takes as long as ten forwards of a small
    model."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_result(shard: Shard, result: ShardResult, worker: str) -> None:
    """Raise `EngineError` if a worker returned trees of other problems or of another policy version."""
    asked, found = [problem.id for problem in shard.problems], [tree.problem.id for tree in result.trees]
    if asked != found:
        raise EngineError(f"expected the trees of {asked} from {worker}, found those of {found}")
    for tree in result.trees:
        versions = {node.completion.policy_version for node in tree.nodes} - {shard.version, _NOT_SAMPLED}
        if versions:
            raise EngineError(
                f"expected a tree of policy version {shard.version} from {worker}, found {tree.problem.id} sampled by "
                f"version {min(versions)}: it holds stale adapters"
            )
