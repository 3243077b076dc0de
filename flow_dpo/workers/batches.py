"""Batches of a worker pool: the shards that are queued, and the results of those that are done.

    batch.results = {0: ..., 2: ...}, batch.failures = {3: FlowError(...)}      shard 1 decides: not settled yet

Invariant: the outcome of a batch depends on its shards by number, never on the order in which they finish: their trees
in the order of the shards, or the error of the lowest shard that failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from flow_dpo.core import errors
from flow_dpo.core.errors import FlowDpoError
from flow_dpo.core.protocols import Rollouts, Span
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Role
from flow_dpo.workers.shard import Shard, ShardResult


@dataclass(slots=True, eq=False, kw_only=True)
class Batch:
    """A batch under way."""

    adapters: Mapping[Role, Adapter]
    future: Future[Rollouts] = field(default_factory=Future[Rollouts])
    num_shards: int = 0
    results: dict[int, ShardResult] = field(default_factory=dict[int, ShardResult])
    failures: dict[int, BaseException] = field(default_factory=dict[int, BaseException])
    spans: list[Span] = field(default_factory=list[Span])
    num_replayed: int = 0

    @property
    def first_failed(self) -> int:
        """The lowest shard that failed; past the last one if none did."""
        return min(self.failures, default=self.num_shards)

    @property
    def settled(self) -> bool:
        """Whether no shard that is still under way can change the outcome."""
        return all(number in self.results for number in range(self.first_failed))

    def trees(self) -> list[Tree]:
        """The trees of all shards, in their order."""
        return [tree for number in range(self.num_shards) for tree in self.results[number].trees]

    def stats(self) -> dict[str, float]:
        """Sums over the shards, and the number of times that one was sampled again."""
        stats: dict[str, float] = {}
        results = [self.results[number] for number in sorted(self.results)]
        for result in results:
            for name, value in result.stats.items():
                stats[f"rollout/{name}"] = stats.get(f"rollout/{name}", 0) + value
        return stats | {
            "rollout/seconds": sum(result.sampling_s for result in results),
            "grade/seconds": sum(result.grading_s for result in results),
            "rollout/shards_replayed": self.num_replayed,
        }


@dataclass(slots=True, eq=False, kw_only=True)
class Task:
    """A shard in the queue, or being sampled in a lane."""

    batch: Batch
    shard: Shard
    causes: list[str] = field(default_factory=list[str])
    """What happened to each worker lost over this shard."""

    def __lt__(self, other: Task) -> bool:
        return (self.shard.batch, self.shard.number) < (other.shard.batch, other.shard.number)


def named(error: BaseException, shard: Shard) -> BaseException:
    """The error with the names of the problems that were being sampled, in its message or as a note."""
    where = f"while the problems {shard.names} were sampled"
    if isinstance(error, FlowDpoError) and type(error).__module__ == errors.__name__:
        named: Callable[[str], FlowDpoError] = type(error)
        raised = named(f"{error} ({where})")
        raised.__cause__ = error
        return raised
    error.add_note(where)
    return error
