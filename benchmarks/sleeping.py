"""Rollout workers and a learner that sleep: the pool and the loop as they are, with costs that are known.

    run(workers=2, lag=1, problems=64, problems_per_batch=16, shard=4, sleep_s=0.005, learn_s=0.4)

Every request to the engine takes `sleep_s` and learning from a batch takes `learn_s`. Any other time is the pool's own,
and the throughput model (`tools.scaling_plan`) can be compared with a clock. Workers are threads of this process;
sleeping needs no processor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flow_dpo.core.loop import learn
from flow_dpo.core.objective import Objective
from flow_dpo.core.protocols import Callback, Row
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Example, Problem, Request, Role, TokenIds, Verdict
from flow_dpo.engines.scripted import ScriptedEngine
from flow_dpo.recipes.presets import preset
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.shard import Shard, ShardResult, WorkerLost, sample_shard
from tests.support.char_renderer import END, Letters
from tests.support.graders import FunctionGrader

_GRADER = FunctionGrader(
    lambda items: [Verdict(status="correct" if len(one.pieces) % 2 else "wrong", answer="1") for _, one in items]
)


class SleepingWorker:
    """A worker whose engine takes so long for a request (`workers.shard.Worker`)."""

    def __init__(self, name: str, sleep_s: float) -> None:
        self.name = name
        self._sleep_s, self._given_up = sleep_s, threading.Event()
        self._engine = ScriptedEngine(self._script, end_ids={END})
        self._runner = RolloutRunner(self._engine, Letters(), _GRADER)

    def _script(self, request: Request, seed: int, excluded: TokenIds) -> int | Sequence[int]:
        if self._given_up.wait(self._sleep_s):
            raise WorkerLost("given up")
        if request.choices:
            return seed % 2
        first = next(ord(letter) for letter in "abc" if ord(letter) not in excluded)
        return [first, ord("d"), END] if seed % 3 == 0 else [first] * request.max_tokens

    def sample(self, shard: Shard) -> ShardResult:
        """Sample and grade a shard."""
        self._runner.refresh(shard.adapters)
        return sample_shard(self._runner, _GRADER, shard)

    def restart(self) -> None:
        """Nothing was lost."""
        self._given_up.clear()

    def abort(self) -> None:
        """Give up at the next request."""
        self._given_up.set()

    def close(self) -> None:
        """There is nothing to release."""


class SleepingLearner:
    """A learner that takes so long for a batch (`core.protocols.Learns`)."""

    version = 0

    def __init__(self, roles: Sequence[Role], learn_s: float) -> None:
        self._learn_s = learn_s
        self.adapters: Mapping[Role, Adapter] = {role: Adapter(role=role, version=0) for role in roles}

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        """Sleep."""
        time.sleep(self._learn_s)
        return {}


class _Unchanged:
    """Adapters that no worker reads (`workers.pool.Publishes`)."""

    def publish(self, adapters: Mapping[Role, Adapter]) -> Mapping[Role, Adapter]:
        return adapters

    def keep(self, needed: Sequence[Mapping[Role, Adapter]]) -> None: ...

    def close(self) -> None: ...


class _Rows(Callback):
    """Keeps the rows of metrics, and when they came."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, Row]] = []

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        self.rows.append((time.perf_counter(), row))


def run(
    *, workers: int, lag: int, problems: int, problems_per_batch: int, shard: int, sleep_s: float, learn_s: float
) -> dict[str, Any]:
    """Seconds of the whole, and of sampling by all workers together; seconds a batch once it goes steadily; tokens."""
    recipe = preset("flow-dpo-paper", "seed").recipe
    stream = [Problem(id=f"p{index}", question=f"{index}?", gold="1") for index in range(problems)]
    pool = PooledWorkers(
        [SleepingWorker(f"worker {index}", sleep_s) for index in range(workers)],
        _Unchanged(),
        WorkersSettings(kind="servers", shard=shard),
    )
    seen, started = _Rows(), time.perf_counter()
    try:
        learn(
            replace(recipe, credit=lambda trees: []),
            stream,
            pool,
            SleepingLearner(recipe.flow.roles, learn_s),
            callbacks=[seen],
            problems_per_batch=problems_per_batch,
            lag=lag,
        )
    finally:
        pool.close()
    sampled = [float(row["rollout/seconds"] + row["grade/seconds"]) for _, row in seen.rows]
    # By the last half: a lag has filled by then.
    half = len(seen.rows) // 2
    steady = (seen.rows[-1][0] - seen.rows[half - 1][0]) / (len(seen.rows) - half) if half else float("nan")
    tokens = sum(int(row["rollout/tokens"]) for _, row in seen.rows)
    return {"seconds": seen.rows[-1][0] - started, "sampled_s": sum(sampled), "batch_s": steady, "tokens": tokens}
