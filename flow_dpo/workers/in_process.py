"""Rollout workers in this process: one engine, one renderer, one grader.

    workers = InProcessWorkers(backends)
    workers.refresh(learner.adapters)
    trees = workers.submit(recipe.explore, recipe.flow, problems, seed=0).result().trees

Invariant: all state that a call needs comes with it or with the last `refresh`, so another kind of worker can be on
another machine, and one that died can be called again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.loop import batched
from flow_dpo.core.protocols import Backends, Rollouts, Span
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Problem, Role
from flow_dpo.workers.shard import Shard, sample_shard


class InProcessWorkers:
    """The engine, renderer and grader of this process (`core.protocols.RolloutWorkers`).

    A batch is sampled when it is submitted, with the adapters that are in force then: with a single process, nothing
    would be gained by waiting.
    """

    def __init__(self, backends: Backends, *, shard: int = 0) -> None:
        """`shard`: problems of a batch that are sampled together, as by several workers; 0 means all."""
        self._grader = backends.grader
        self._engine = backends.engine
        self._runner = RolloutRunner(backends.engine, backends.renderer, backends.grader)
        self._shard = shard
        self._adapters: Mapping[Role, Adapter] = {}
        self._sampled = False
        """Whether anything was sampled since the last refresh."""
        self._num_batches = 0

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on."""
        self._adapters = dict(adapters)
        self._runner.refresh(adapters)
        self._sampled = False

    def submit(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        """Sample and grade the batch now."""
        seconds = {"rollout/seconds": 0.0, "grade/seconds": 0.0}
        trees: list[Tree] = []
        spans: list[Span] = []
        for number, part in enumerate(batched(problems, self._shard or max(len(problems), 1))):
            # An engine's cache would carry rounding from one shard into the next, and a replay would differ.
            if self._sampled:
                self._runner.refresh(self._adapters)
            self._sampled = True
            shard = Shard(
                batch=self._num_batches, number=number, explore=explore, flow=flow, problems=part, seed=seed,
                adapters=self._adapters,
            )  # fmt: skip
            result = sample_shard(self._runner, self._grader, shard)
            seconds["rollout/seconds"] += result.sampling_s
            seconds["grade/seconds"] += result.grading_s
            trees += result.trees
            end = time.time()
            between = end - result.grading_s
            spans.append(Span(lane="here", what="sampling", start=between - result.sampling_s, end=between))
            spans.append(Span(lane="here", what="grading", start=between, end=end))
        self._num_batches += 1
        stats = {f"rollout/{name}": value for name, value in self._engine.take_stats().items()}
        done = Future[Rollouts]()
        done.set_result(Rollouts(trees=trees, stats=stats | seconds, spans=spans))
        return done
