"""Worker pool: lanes take shards from one queue, each drives one worker, and shards of lost workers are replayed.

    pool = PooledWorkers([worker, another], publish, WorkersSettings(kind="servers", shard=4))
    pool.refresh(learner.adapters)
    future = pool.submit(explore, flow, problems, seed=0)      # shards 0, 1, ... of the batch are under way now
    future.result().trees                                       # the problems' trees, in their order

    worker 0   shard 0 ------------ | shard 2 ---- lost, starts again ........ | shard 4 ----
    worker 1   shard 1 ---- | shard 3 ------ | shard 2, sampled again -------- |

Invariants: the trees are those that a single worker would return, to the bit, whichever workers are lost. An error of
the work itself (a flow, a grader, an engine that refuses a request) is never retried; a batch raises the error of its
lowest failed shard. Nothing waits without a limit: a shard has a deadline, a shard that has lost `tries` workers ends
the run and names its problems, and `patience_s` without any worker ends it too.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from flow_dpo.core.errors import FlowDpoError, WorkerError
from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.loop import batched
from flow_dpo.core.protocols import Rollouts, Span
from flow_dpo.core.types import Adapter, Problem, Role
from flow_dpo.workers.batches import Batch, Task, named
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.shard import Outcome, Shard, ShardResult, Worker, WorkerLost, check_result

_logger = logging.getLogger(__name__)
_LONGEST_WAIT_S = 30.0
"""Seconds between two attempts to bring a worker back, at most."""
_GRACE_S = 30.0
"""Seconds for a worker to give up after it was told to; then it is abandoned for good."""
_PARTING_S = 10.0
"""Seconds to wait for the threads at the end, all together."""


class Publishes(Protocol):
    """Keeps adapters where workers find them (`workers.adapters.AdapterFolders`)."""

    def publish(self, adapters: Mapping[Role, Adapter]) -> Mapping[Role, Adapter]:
        """Write the adapters' current weights to folders that nothing changes later; returns the adapters with them."""
        ...

    def keep(self, needed: Sequence[Mapping[Role, Adapter]]) -> None:
        """Delete everything published, except these adapters and the last published ones."""
        ...

    def close(self) -> None:
        """Delete everything published."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Counts since the pool was opened, for display."""

    shards_done: int
    shards_under_way: int
    shards_queued: int
    shards_replayed: int
    tokens: int
    """Tokens of the shards that are done."""
    num_alive: int
    """Number of workers that sample or are ready to."""
    num_workers: int
    lost: tuple[str, ...] = ()
    """What happened to the workers that are lost, by name."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Lane:
    label: str
    worker: Worker
    state: Literal["ready", "starting", "gone"] = "ready"
    task: Task | None = None
    until: float = 0.0
    """The task's deadline."""
    aborted: bool = False
    why: str = ""
    """What last happened to its worker."""
    thread: threading.Thread | None = None


class PooledWorkers:
    """Workers elsewhere (`core.protocols.RolloutWorkers`). They are running already; each gets a thread of this
    process."""

    def __init__(
        self, workers: Sequence[Worker], published: Publishes, settings: WorkersSettings, *, backoff_s: float = 1.0
    ) -> None:
        """`backoff_s`: seconds before the second attempt to bring a worker back; doubles with each further attempt."""
        self._settings, self._backoff_s = settings, backoff_s
        self._published = published
        self._adapters: Mapping[Role, Adapter] = {}
        self._changed = threading.Condition()
        """Guards all attributes below."""
        self._queue: list[Task] = []
        self._batches: list[Batch] = []
        self._num_batches = self._num_done = self._num_replayed = self._num_tokens = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._alive_at = time.monotonic()
        self._restarts: list[Span] = []
        self._lanes = [_Lane(label=f"worker {index}", worker=worker) for index, worker in enumerate(workers)]
        for lane in self._lanes:
            lane.thread = threading.Thread(target=self._run, args=(lane,), name=lane.label, daemon=True)
            lane.thread.start()
        self._watcher = threading.Thread(target=self._watch, name="watch over workers", daemon=True)
        self._watcher.start()

    # ---- called by the loop -------------------------------------------------------------------------------------

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample all batches submitted from now on with these adapters and their current weights."""
        with self._changed:  # nothing may delete what is being written
            self._adapters = self._published.publish(adapters)
            self._drop_unneeded()

    def submit(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        """Queue the shards of a batch with the adapters in force. Errors are raised by the future."""
        size = self._settings.problems_of_shard or max(len(problems), 1)
        with self._changed:
            batch = Batch(adapters=self._adapters)
            if self._failure is not None or self._closed:
                batch.future.set_exception(self._failure or WorkerError("the workers were closed; open them again"))
                return batch.future
            tasks = [
                Task(
                    batch=batch,
                    shard=Shard(
                        batch=self._num_batches, number=number, explore=explore, flow=flow, problems=tuple(part),
                        seed=seed, adapters=self._adapters,
                    ),
                )
                for number, part in enumerate(batched(problems, size))
            ]  # fmt: skip
            batch.num_shards = len(tasks)
            self._num_batches += 1
            self._batches.append(batch)
            for task in tasks:
                heapq.heappush(self._queue, task)
            self._changed.notify_all()
        self._settle(batch)  # needed if there are no problems
        return batch.future

    @property
    def progress(self) -> Progress:
        """The current state of the work."""
        with self._changed:
            return Progress(
                shards_done=self._num_done,
                shards_under_way=sum(lane.task is not None for lane in self._lanes),
                shards_queued=len(self._queue),
                shards_replayed=self._num_replayed,
                tokens=self._num_tokens,
                num_alive=self._num_alive,
                num_workers=len(self._lanes),
                lost=tuple(f"{lane.worker.name}: {lane.why}" for lane in self._lanes if lane.state != "ready"),
            )

    def close(self) -> None:
        """Give up the work under way, and release the workers."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            for batch in self._batches:
                batch.future.cancel()
            self._changed.notify_all()
            busy = [lane for lane in self._lanes if lane.task is not None or lane.state != "ready"]
        with ExitStack() as stack:  # callbacks run last to first, each whatever the others raise
            stack.callback(self._published.close)
            for lane in self._lanes:
                stack.callback(lane.worker.close)
            stack.callback(self._join)
            for lane in busy:
                stack.callback(lane.worker.abort)

    def _join(self) -> None:
        end = time.monotonic() + _PARTING_S
        for thread in [self._watcher, *(lane.thread for lane in self._lanes)]:
            if thread is not None:
                thread.join(max(0.0, end - time.monotonic()))

    # ---- a lane -------------------------------------------------------------------------------------------------

    def _run(self, lane: _Lane) -> None:
        """A lane thread's main function. An unexpected error ends all batches, which would otherwise wait for ever."""
        with (outcome := Outcome()):
            self._sample(lane)
        if outcome.error is not None:
            self._fail(outcome.error)

    def _sample(self, lane: _Lane) -> None:
        """Sample one shard after another, until the pool is closed or the lane is given up."""
        while (task := self._take(lane)) is not None:
            began, result, outcome = time.time(), None, Outcome()
            with outcome:
                result = lane.worker.sample(task.shard)
                check_result(task.shard, result, lane.worker.name)
            if not self._returned(lane, task, result, outcome.error, began):
                return
            self._settle(task.batch)
            if lane.state == "starting" and not self._revive(lane):
                return

    def _take(self, lane: _Lane) -> Task | None:
        """The first shard of the queue, waiting for one if necessary; None when the pool is closed."""
        with self._changed:
            while not self._closed:
                while self._queue:
                    task = heapq.heappop(self._queue)
                    if task.batch.future.done() or task.shard.number > task.batch.first_failed:
                        continue  # no longer needed
                    lane.task, lane.aborted = task, False
                    lane.until = time.monotonic() + self._settings.deadline_s
                    return task
                self._changed.wait()
        return None

    def _returned(
        self, lane: _Lane, task: Task, result: ShardResult | None, error: BaseException | None, began: float
    ) -> bool:
        """Record the outcome of a shard; returns False if the lane must end."""
        with self._changed:
            if lane.task is not task:  # given up long ago
                return False
            lane.task = None
            end = time.time()
            between = max(began, end - (0.0 if result is None else result.grading_s))
            task.batch.spans.append(Span(lane=lane.label, what="sampling", start=began, end=between))
            if result is not None:
                task.batch.spans.append(Span(lane=lane.label, what="grading", start=between, end=end))
            late = lane.aborted and not self._closed
            if self._closed:
                return False
            if result is not None and error is None:
                task.batch.results[task.shard.number] = result
                self._num_done += 1
                self._num_tokens += sum(len(node.completion.token_ids) for tree in result.trees for node in tree.nodes)
            elif isinstance(error, WorkerLost) or late:
                limit = f"no result within {self._settings.deadline_s:g} s (--workers.deadline_s)"
                self._lost(lane, task, limit if late else str(error))
            else:
                assert error is not None
                task.batch.failures[task.shard.number] = named(error, task.shard)
        return True

    def _lost(self, lane: _Lane, task: Task, why: str) -> None:
        """The lane's worker is lost: queue its shard again, for the first free worker."""
        lane.state, lane.why = "starting", why
        task.causes.append(f"{lane.worker.name}: {why}")
        _logger.warning("%s was lost, its shard is sampled again: %s", lane.worker.name, why)
        if len(task.causes) >= self._settings.tries:
            causes = "; ".join(task.causes)
            task.batch.failures[task.shard.number] = WorkerError(
                f"expected the problems {task.shard.names} to be sampled, found {len(task.causes)} workers lost over "
                f"them ({causes}); is one of them too long or too large for a worker? What was learned so far is kept: "
                "find the cause and resume, or raise --workers.tries"
            )
        else:
            task.batch.num_replayed += 1
            self._num_replayed += 1
            heapq.heappush(self._queue, task)
        self._changed.notify_all()

    def _revive(self, lane: _Lane) -> bool:
        """Bring the lane's worker back, with as many attempts as it takes; False if the pool ends before."""
        wait_s = self._backoff_s
        while not self._closed:
            began, outcome = time.time(), Outcome()
            with outcome:
                lane.worker.restart()
            with self._changed:
                self._restarts.append(Span(lane=lane.label, what="starting", start=began, end=time.time()))
                if self._closed:
                    return False
                if outcome.error is None:
                    lane.state, self._alive_at = "ready", time.monotonic()
                    return True
                lane.why = str(outcome.error)
                if not isinstance(outcome.error, FlowDpoError):  # lost again, or its memory is not free yet
                    _logger.warning("%s is not back yet: %s", lane.worker.name, outcome.error)
                    self._changed.wait_for(lambda: self._closed, timeout=wait_s)
                    wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                    continue
                lane.state = "gone"
            self._fail(outcome.error)
            return False
        return False

    # ---- batches ------------------------------------------------------------------------------------------------

    def _settle(self, batch: Batch) -> None:
        """Resolve the batch's future, once every shard that matters is done."""
        with self._changed:
            if batch.future.done() or not batch.settled or batch not in self._batches:
                return
            found = batch.failures.get(batch.first_failed)
            if found is None:
                spans = sorted([*batch.spans, *self._restarts], key=lambda span: span.start)
                stats = batch.stats() | {"rollout/workers": self._num_alive}
                found, self._restarts = Rollouts(trees=batch.trees(), stats=stats, spans=spans), []
            self._batches.remove(batch)
            self._drop_unneeded()
        if isinstance(found, Rollouts):
            batch.future.set_result(found)
        else:
            batch.future.set_exception(found)

    def _drop_unneeded(self) -> None:
        """Delete the adapters that no batch needs any more."""
        under_way = [lane.task.batch for lane in self._lanes if lane.task is not None]
        self._published.keep([self._adapters, *(batch.adapters for batch in [*self._batches, *under_way])])

    def _fail(self, error: BaseException) -> None:
        """End all batches, and all future ones, with this error."""
        with self._changed:
            if self._closed or self._failure is not None:
                return
            self._failure = error
            batches, self._batches = self._batches, []
            self._queue.clear()
        for batch in batches:
            if not batch.future.done():
                batch.future.set_exception(error)

    # ---- limits -------------------------------------------------------------------------------------------------

    @property
    def _num_alive(self) -> int:
        return sum(lane.state == "ready" for lane in self._lanes)

    def _watch(self) -> None:
        """The watcher thread's main function. If it fails, all batches end, since nothing else enforces limits."""
        with (outcome := Outcome()):
            self._limit()
        if outcome.error is not None:
            self._fail(outcome.error)

    def _limit(self) -> None:
        """Enforce the limits on a shard, on a worker that does not give up, and on the time without any worker."""
        tick_s = max(0.01, min(1.0, self._settings.deadline_s / 4, self._settings.patience_s / 4))
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, timeout=tick_s):
                    return
                late, stuck, alone_s = self._overdue(time.monotonic())
            for lane in late:
                lane.worker.abort()
            for batch in stuck:
                self._settle(batch)
            if alone_s > self._settings.patience_s:
                happened = "; ".join(f"{lane.worker.name}: {lane.why}" for lane in self._lanes)
                self._fail(
                    WorkerError(
                        f"expected a live worker, found none for {alone_s:.0f} s (--workers.patience_s): "
                        f"{happened}. What was learned so far is kept: check the workers, and resume"
                    )
                )

    def _overdue(self, now: float) -> tuple[list[_Lane], list[Batch], float]:
        """Lanes past their deadline, batches with a shard whose lane does not give up, and seconds without a worker."""
        late: list[_Lane] = []
        stuck: list[Batch] = []
        for lane in self._lanes:
            task = lane.task
            if task is not None and now > lane.until + _GRACE_S:
                lane.task = None
                self._lost(lane, task, f"no result within {self._settings.deadline_s:g} s, and it did not stop")
                lane.state = "gone"
                stuck.append(task.batch)
            elif task is not None and now > lane.until and not lane.aborted:
                lane.aborted = True
                late.append(lane)
        if self._num_alive or not self._batches:
            self._alive_at = now
        return late, stuck, now - self._alive_at
