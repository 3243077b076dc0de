"""The callback that writes timeline.jsonl: who sampled, graded, learned and waited, from when to when (`runs.spans`).

    timeline = Timeline(folder.path)
    learn(recipe, problems, timeline.workers(workers), timeline.learner(learner), callbacks=[timeline, keeper])

Workers return their spans with their rollouts; the learner's spans are measured around its updates. The callback comes
before the one that writes checkpoints, so that the file sizes in a checkpoint cover whole batches. Invariant: rollouts,
updates and metrics are the same without it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from flow_dpo.core.errors import StorageError
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.objective import Objective
from flow_dpo.core.protocols import Learns, Rollouts, RolloutWorkers, Row, Span
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Example, Problem, Role
from flow_dpo.runs.files import iter_jsonl
from flow_dpo.runs.records import append_rows
from flow_dpo.runs.spans import FILE, LEARNER, WAITING, SpanRow

_BATCHES = "metrics.jsonl"
_SHORTEST_S = 0.01
"""A shorter wait does not count: the batch was already there."""


class Timeline:
    """The spans of a run: wrappers that collect them, and a callback that writes them after each batch."""

    def __init__(self, run: Path) -> None:
        """`run` is the run's folder; its batches so far are counted."""
        self._path = run / FILE
        self._batch = sum(1 for _ in iter_jsonl(run / _BATCHES)) if (run / _BATCHES).exists() else 0
        self._futures: list[Future[Rollouts]] = []
        self._learned: list[Span] = []
        self._ended = 0.0

    def workers(self, workers: RolloutWorkers) -> RolloutWorkers:
        """The same workers, with their spans collected."""
        return _FollowedWorkers(workers, self._futures)

    def learner(self, learner: Learns) -> Learns:
        """The same learner, with its updates timed."""
        return _FollowedLearner(learner, self._learned)

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Write the spans of one batch. Raises `StorageError`."""
        spans = [*self._sampled(trees), *self._waited(row.get("rollout/wait_seconds", 0.0)), *self._learned]
        self._ended = max((span.end for span in self._learned), default=self._ended)
        self._learned.clear()
        rows = [_row(self._batch, span) for span in spans]
        try:
            append_rows(self._path, rows)
        except OSError as error:
            raise StorageError(
                f"could not write to {self._path}: {error}; everything up to the last checkpoint is whole: make room, "
                "and resume"
            ) from error
        self._batch += 1

    def _sampled(self, trees: Sequence[Tree]) -> Sequence[Span]:
        """The spans of the batch to which these trees belong."""
        for future in self._futures:
            if future.done() and not future.cancelled() and future.exception() is None:
                rollouts = future.result()
                if rollouts.trees is trees:
                    self._futures.remove(future)
                    return rollouts.spans
        return ()

    def _waited(self, seconds: float) -> list[Span]:
        """The learner's wait for the batch, which ended when its update began."""
        if not self._learned or seconds < _SHORTEST_S:
            return []
        end = self._learned[0].start
        return [Span(lane=LEARNER, what=WAITING, start=max(end - seconds, min(self._ended, end)), end=end)]


def _row(batch: int, span: Span) -> SpanRow:
    """A span, rounded to a tenth of a millisecond. If the clock was set back during it, its length is 0."""
    start = round(span.start, 4)
    return SpanRow(batch=batch, lane=span.lane, what=span.what, start=start, end=max(start, round(span.end, 4)))


class _FollowedWorkers:
    """Rollout workers whose batches are remembered until they are learned from (`core.protocols.RolloutWorkers`)."""

    def __init__(self, workers: RolloutWorkers, futures: list[Future[Rollouts]]) -> None:
        self._workers, self._futures = workers, futures

    def submit(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        """Begin a batch under the adapters in force."""
        future = self._workers.submit(explore, flow, problems, seed=seed)
        self._futures.append(future)
        return future

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on."""
        self._workers.refresh(adapters)


class _FollowedLearner:
    """A learner whose updates are timed (`core.protocols.Learns`)."""

    def __init__(self, learner: Learns, learned: list[Span]) -> None:
        self._learner, self._learned = learner, learned

    @property
    def adapters(self) -> Mapping[Role, Adapter]:
        """The adapters in force, one per role."""
        return self._learner.adapters

    @property
    def version(self) -> int:
        """Updates made so far."""
        return self._learner.version

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Take in the examples, make the updates for which there are enough, and return metrics."""
        start = time.time()
        row = self._learner.update(objective, examples)
        self._learned.append(Span(lane=LEARNER, what="learning", start=start, end=time.time()))
        return row
