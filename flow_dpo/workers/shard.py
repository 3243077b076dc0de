"""Shard: a few problems of a batch that are sampled beside one another, with all that their trees depend on.

A batch is cut by number, never by how many workers there are, so that any number of workers, any order of finishing and
any failure give the same trees to the bit. With shards of two problems:

    batch 0: p0 p1 | p2 p3 | p4        shard 0, 1 and 2; shard 1 is [p2, p3] whoever samples it, and however often

Invariant: a shard's trees are a function of the shard alone. Every kind of worker samples by `sample_shard`, after a
refresh of its engine, for what an engine has cached would carry rounding from one shard into the next.
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
"""The version of completions in a tree that were not sampled as they stand there."""


class WorkerLost(Exception):
    """A worker has ended, cannot be reached, or was given up: what it worked on is to be sampled again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Problems that one worker samples and grades, and all that their trees depend on. Can be pickled."""

    batch: int
    """Which of the batches that were submitted."""
    number: int
    """Which of the batch's shards."""
    explore: Explore
    flow: Flow[Any]
    problems: Sequence[Problem]
    seed: int
    adapters: Mapping[Role, Adapter]
    """The adapters that sample, each with the folder that holds its weights for as long as the shard is under way."""

    @property
    def version(self) -> int:
        """Of the policy that samples."""
        return max((adapter.version for adapter in self.adapters.values()), default=0)

    @property
    def names(self) -> str:
        """The problems' ids, for people."""
        ids = [problem.id for problem in self.problems]
        return ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What a worker returns of a shard."""

    trees: list[Tree]
    """One graded tree a problem, in their order."""
    sampling_s: float
    grading_s: float
    stats: Mapping[str, float] = field(default_factory=dict[str, float])
    """The engine's counts and seconds."""


class Outcome:
    """Holds whatever its block raises, for whoever is to deal with it, such as another thread."""

    error: BaseException | None = None

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        self.error = error
        return True


class Worker(Protocol):
    """Samples one shard at a time, wherever it is. A pool has a thread for each worker, which calls all but `abort`."""

    @property
    def name(self) -> str:
        """Where it is, for people: "http://gpu7:8000", "the Ray actor 3 on 10.0.0.7"."""
        ...

    def sample(self, shard: Shard) -> ShardResult:
        """Sample and grade a shard. Raises `WorkerLost` where the worker is gone; any other error is the work's own."""
        ...

    def restart(self) -> None:
        """Bring a lost worker back. Raises `WorkerLost` where it is not there yet."""
        ...

    def abort(self) -> None:
        """From another thread: let `sample` or `restart`, if one is under way, end in `WorkerLost` soon."""
        ...

    def close(self) -> None:
        """Release what the worker holds."""
        ...


def sample_shard(runner: RolloutRunner, grader: Grader, shard: Shard) -> ShardResult:
    """Sample the shard's problems beside one another and grade their trees."""
    if isinstance(grader, RewardGrader):
        grader.start(shard.version)
    started = time.perf_counter()
    with uncollected():
        trees = shard.explore(shard.flow, runner, shard.problems, seed=shard.seed)
    sampled = time.perf_counter()
    grader.grade(trees)
    return ShardResult(trees=trees, sampling_s=sampled - started, grading_s=time.perf_counter() - sampled)


def sample_and_continue(runner: RolloutRunner, grader: Grader, shard: Shard) -> ShardResult:
    """The same by a worker that continues where a flow or a grader raises: what is under way is sampled to its end
    first, or it would be in the way of the next shard, whose error would stand in the place of this one. An engine that
    failed is left alone."""
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
    """A context without automatic collections of reference cycles: rollouts make many objects and hardly a cycle, and
    one collection walks through all that torch and transformers consist of, which takes as long as ten forwards of a
    small model."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_result(shard: Shard, result: ShardResult, worker: str) -> None:
    """Raise `EngineError` where a worker returned trees of other problems or of another policy version."""
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
