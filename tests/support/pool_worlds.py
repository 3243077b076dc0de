"""A small world for rollout workers: an engine whose one weight an adapter's folder holds, and a learner that moves it.

What is sampled depends on the weight, so a batch that was sampled with another version than it should have been has
other trees. Workers over it can be told to dawdle, to die and to hang.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flow_dpo.core.answer_stop import AnswerStop
from flow_dpo.core.engine import Engine
from flow_dpo.core.loop import learn
from flow_dpo.core.objective import Objective
from flow_dpo.core.protocols import Backends, RolloutWorkers, Row
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Completion, Example, Problem, Request, Role, Sampling, TokenIds, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.presets import preset
from flow_dpo.workers.adapters import AdapterFolders
from flow_dpo.workers.in_process import InProcessWorkers
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.settings import WorkersSettings
from flow_dpo.workers.shard import Shard, ShardResult, WorkerLost, sample_shard
from tests.support.char_renderer import END, Letters
from tests.support.graders import FunctionGrader

FLOW = AnswerStop(chunk_tokens=3, max_chunks=2)
ROLES = FLOW.roles
GRADER = FunctionGrader(
    lambda items: [
        Verdict(status="correct" if sum(map(hash, solution.pieces)) % 2 else "wrong", answer="x")
        for _, solution in items
    ]
)


def problems(num: int) -> list[Problem]:
    return [Problem(id=f"p{index}", question=f"{index}?", gold="1") for index in range(num)]


class WeighedEngine(Engine):
    """Samples by one weight, which `refresh` reads from the adapters' folders, or from `weights` without one."""

    def __init__(self, weights: Mapping[Role, float] | None = None) -> None:
        self._weights, self._now = weights or {}, dict.fromkeys(ROLES, 0.5)
        self._engine = TabularEngine(self._probs, end_ids={END})
        self._num = 0

    def _probs(self, role: Role, prefix: TokenIds) -> Mapping[int, float]:
        weight = self._now[role]
        if role == "stop":
            return {ord("Y"): weight, ord("N"): 1 - weight}
        return {ord("a"): 0.8 * weight, ord("b"): 0.8 * (1 - weight), END: 0.2}

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        self._num += 1
        return self._engine.submit(request, sampling, seed=seed, excluded=excluded)

    def poll(self) -> list[tuple[int, Completion]]:
        return self._engine.poll()

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        for role, adapter in adapters.items():
            held = float((Path(adapter.path) / "weight").read_text()) if adapter.path else self._weights[role]
            self._now[role] = held
        self._engine.refresh(adapters)

    def take_stats(self) -> dict[str, float]:
        taken, self._num = self._num, 0
        return {"num_requests": taken}


@dataclass
class MovingLearner:
    """Every batch moves the weights by what was in it, if there was anything, and makes a version."""

    weights: dict[Role, float] = field(default_factory=lambda: dict.fromkeys(ROLES, 0.5))
    version: int = 0

    @property
    def adapters(self) -> Mapping[Role, Adapter]:
        return {role: Adapter(role=role, version=self.version) for role in ROLES}

    def save(self, role: Role, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weight").write_text(repr(self.weights[role]))

    def update(self, objective: Objective, examples: Sequence[Example]) -> Row:
        if examples:
            self.version += 1
            digest = sum(sum(c.token_ids) for e in examples for c in e.completions)
            for place, role in enumerate(ROLES):
                self.weights[role] = random.Random(f"{digest} {place} {self.version}").uniform(0.3, 0.7)
        return {}


@dataclass
class Fate:
    """What happens to a worker with a shard: "die", "hang" or nothing, after a while."""

    seed: int = 0
    deaths: int = 0
    """In all."""
    dawdle_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    log: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Batch and number of each shard that was begun."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def meet(self, shard: Shard) -> tuple[float, float | None]:
        """How long it takes, and after which share of the work it dies."""
        with self.lock:
            again = self.log.count((shard.batch, shard.number))
            self.log.append((shard.batch, shard.number))
            dies = self.deaths > 0 and again < 2 and self._random.random() < 0.5
            self.deaths -= dies
            return self._random.uniform(0, self.dawdle_s), self._random.random() if dies else None


class StandInWorker:
    """A worker in this process: an engine of its own, and a fate."""

    def __init__(self, name: str, fate: Fate) -> None:
        self.name, self.fate = name, fate
        self.given_up = threading.Event()
        self.num_restarts = 0
        self.closed = False
        self._start()

    def _start(self) -> None:
        self.engine = WeighedEngine()
        self.runner = RolloutRunner(self.engine, Letters(), GRADER)

    def sample(self, shard: Shard) -> ShardResult:
        self.given_up.clear()
        wait_s, dies = self.fate.meet(shard)
        if dies is not None:
            self.given_up.wait(wait_s * dies)
            raise WorkerLost("killed by signal 9")
        self.runner.refresh(shard.adapters)
        result = sample_shard(self.runner, GRADER, shard)
        if self.given_up.wait(wait_s):
            raise WorkerLost("given up")
        return ShardResult(
            trees=result.trees, sampling_s=result.sampling_s, grading_s=result.grading_s,
            stats=self.engine.take_stats(),
        )  # fmt: skip

    def restart(self) -> None:
        self.num_restarts += 1
        self._start()

    def abort(self) -> None:
        self.given_up.set()

    def close(self) -> None:
        self.closed = True


def pooled(
    learner: MovingLearner, folder: Path, fates: Sequence[Fate], *, shard: int = 2, worker: type = StandInWorker,
    **settings: float,
) -> PooledWorkers:  # fmt: skip
    """A pool over workers with these fates."""
    chosen = WorkersSettings(kind="servers", shard=shard, **settings)  # pyright: ignore[reportArgumentType]
    workers = [worker(f"stand-in {index}", fate) for index, fate in enumerate(fates)]
    return PooledWorkers(workers, AdapterFolders(learner.save, folder), chosen, backoff_s=0.001)


def here(learner: MovingLearner, *, shard: int = 2) -> InProcessWorkers:
    """The workers that all others are compared with."""
    engine = WeighedEngine(learner.weights)
    return InProcessWorkers(Backends(engine=engine, renderer=Letters(), grader=GRADER), shard=shard)


@dataclass
class Seen:
    """A callback that keeps what the loop reports."""

    trees: list[Tree] = field(default_factory=list[Tree])
    rows: list[Row] = field(default_factory=list[Row])

    def on_batch(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        assert {n.completion.policy_version for tree in trees for n in tree.nodes} <= {row["policy_version"]}
        self.trees += trees
        # What differs on purpose: who took how long, and what was done twice.
        own = ("seconds", "_s", "rollout/workers", "rollout/shards_replayed")
        self.rows.append({name: value for name, value in row.items() if not name.endswith(own)})


def run(learner: MovingLearner, workers: RolloutWorkers, *, lag: int, num: int = 28) -> Seen:
    """The whole loop on problems in batches of five, which shards of two do not divide."""
    seen = Seen()
    recipe: Recipe = preset("flow-dpo-paper", "seed").recipe
    learn(
        Recipe(flow=FLOW, explore=recipe.explore, credit=recipe.credit, objective=recipe.objective),
        problems(num), workers, learner, callbacks=[seen], seed=3, problems_per_batch=5, lag=lag,
    )  # fmt: skip
    return seen


def wait_for(done: threading.Event, *, at_most_s: float = 10.0) -> None:
    """Fail rather than hang."""
    assert done.wait(at_most_s)
    time.sleep(0)
