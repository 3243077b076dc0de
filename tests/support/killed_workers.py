"""Two workers with a process each: one of them is killed again and again, and nobody sees it in what is sampled."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from flow_dpo.core.explore import Siblings
from flow_dpo.core.types import Adapter
from flow_dpo.runs.runtime import Runtime
from flow_dpo.workers.pool import PooledWorkers
from tests.support.processes import process_state, wait_until
from tests.workers.test_actor import FLOW, SETTINGS, Broken


def sampled(runtime: Runtime, seed: int = 3) -> Any:
    runtime.workers.refresh({role: Adapter(role=role, version=2) for role in FLOW.roles})
    return runtime.workers.submit(SETTINGS.recipe.explore, FLOW, runtime.fitting, seed=seed)


def kill_and_compare(
    runtime: Runtime, expected: Any, *, points: int, apart_s: float, limit_s: float
) -> tuple[int, BaseException]:
    """Kill a worker while it is idle, or so many times `apart_s` into its first shard; the last one only stands still.
    What is sampled is `expected` each time. How many shards were sampled again, and the error of a broken flow, which
    is not the worker's."""
    pool = runtime.workers
    assert isinstance(pool, PooledWorkers)
    found = sampled(runtime).result(timeout=limit_s)
    assert found.trees == expected
    assert found.stats["rollout/workers"] == 2
    num_replayed = 0
    for point in range(points):
        worker: Any = pool._lanes[point % 2].worker
        pid = worker.pid
        future = sampled(runtime)
        wait_until(lambda future=future: future.done() or pool.progress.shards_under_way == 2)
        time.sleep(apart_s * point)
        os.kill(pid, signal.SIGKILL if point + 1 < points else signal.SIGSTOP)
        found = future.result(timeout=limit_s)
        assert found.trees == expected
        num_replayed += found.stats["rollout/shards_replayed"] + bring_back(runtime, expected, limit_s)
    broken = pool.submit(Siblings(), Broken(), runtime.fitting[:4], seed=0)
    with pytest.raises(ZeroDivisionError, match=f"in {runtime.fitting[0].id}") as raised:
        broken.result(timeout=limit_s)
    assert pool.progress.num_alive == 2
    return num_replayed, raised.value


def bring_back(runtime: Runtime, expected: Any, limit_s: float) -> int:
    """Wait until all workers are back, and sample if need be: that a worker was killed after its last shard is noticed
    by the next batch alone. How many shards were sampled again."""
    pool: Any = runtime.workers
    num_replayed = 0
    for _ in range(20):
        wait_until(lambda: pool.progress.num_alive == len(pool._lanes))
        if all(process_state(lane.worker.pid) not in ("", "Z", "T") for lane in pool._lanes):
            return num_replayed
        found = sampled(runtime).result(timeout=limit_s)
        assert found.trees == expected
        num_replayed += found.stats["rollout/shards_replayed"]
    raise AssertionError(f"workers that 20 batches did not notice to be dead: {pool.progress}")
