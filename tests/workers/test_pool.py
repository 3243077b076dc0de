"""Are the trees of many workers those of one, whatever becomes of them, and does everything end that cannot go on?"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flow_dpo.core.errors import ConfigError, EngineError, FlowError, StorageError, WorkerError
from flow_dpo.core.explore import Siblings
from flow_dpo.core.protocols import Rollouts
from flow_dpo.core.types import Completion
from flow_dpo.workers.adapters import AdapterFolders
from flow_dpo.workers.pool import PooledWorkers
from flow_dpo.workers.shard import Shard, ShardResult, WorkerLost
from tests.support import pool_worlds
from tests.support.pool_worlds import FLOW, Fate, MovingLearner, StandInWorker, here, pooled, problems, run


@contextmanager
def opened(*fates: Fate, folder: Path, worker: type = StandInWorker, **settings: float) -> Iterator[PooledWorkers]:
    learner = MovingLearner()
    with closing(pooled(learner, folder, fates, worker=worker, **settings)) as pool:
        pool.refresh(learner.adapters)
        yield pool


def sampled(pool: PooledWorkers, num: int = 8, flow: Any = FLOW) -> Rollouts:
    return pool.submit(Siblings(), flow, problems(num), seed=3).result(timeout=20)


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("num", [1, 2, 3])
def test_any_number_of_workers_and_any_deaths_give_the_same_bytes(lag: int, num: int, tmp_path: Path) -> None:
    learner = MovingLearner()
    expected = run(learner, here(learner), lag=lag)
    assert learner.version >= 4
    assert expected.rows[-1]["policy_version"] == expected.rows[-1]["learn/version"] - min(lag, 5), "the lag is exact"
    for seed in range(4):
        learner, fate = MovingLearner(), Fate(seed=seed, deaths=5 * seed, dawdle_s=0.003)
        with closing(pooled(learner, tmp_path / str(seed), [fate] * num)) as pool:
            found = run(learner, pool, lag=lag)
            assert pool.progress.shards_replayed == 5 * seed - fate.deaths
            assert not seed or pool.progress.shards_replayed > 1
        assert found.trees == expected.trees
        assert found.rows == expected.rows
        assert not (tmp_path / str(seed)).exists()


def test_a_batch_has_the_weights_of_when_it_was_submitted(tmp_path: Path) -> None:
    """However long after that its shards are begun, and again after a death."""
    expected = []
    for step in range(3):
        learner = MovingLearner(weights={"answer": 0.3 + 0.2 * step, "stop": 0.5}, version=step)
        workers = here(learner)
        workers.refresh(learner.adapters)
        expected.append(workers.submit(Siblings(), FLOW, problems(6), seed=3).result().trees)
    assert expected[0] != expected[1]
    learner = MovingLearner()
    with closing(pooled(learner, tmp_path / "a", [Fate(deaths=3, dawdle_s=0.03)])) as pool:
        futures = []
        for step in range(3):
            learner.weights["answer"], learner.version = 0.3 + 0.2 * step, step
            pool.refresh(learner.adapters)
            futures.append(pool.submit(Siblings(), FLOW, problems(6), seed=3))
        assert len(list((tmp_path / "a").glob("answer/*"))) == 3
        assert [future.result(timeout=20).trees for future in futures] == expected
        assert len(list((tmp_path / "a").glob("answer/*"))) == 1, "what no shard needs any more is gone"
        pool.refresh(learner.adapters)
        assert len(list((tmp_path / "a").glob("answer/*"))) == 1, "equal weights are not written again"


def test_shards_come_in_the_order_of_batches_and_then_of_their_numbers(tmp_path: Path) -> None:
    fate = Fate(deaths=2, dawdle_s=0.002)
    with opened(fate, folder=tmp_path / "a") as pool:
        futures = [pool.submit(Siblings(), FLOW, problems(5), seed=seed) for seed in range(3)]
        [future.result(timeout=20) for future in futures]
    assert list(dict.fromkeys(fate.log)) == [(batch, number) for batch in range(3) for number in range(3)]
    assert fate.log == sorted(fate.log), "a shard that was lost comes before all others"


def test_what_is_reported(tmp_path: Path) -> None:
    with opened(Fate(deaths=1, dawdle_s=0.01), Fate(), folder=tmp_path / "a") as pool:
        found = sampled(pool)
        progress = pool.progress
    learner = MovingLearner()
    alone = here(learner)
    alone.refresh(learner.adapters)
    expected = alone.submit(Siblings(), FLOW, problems(8), seed=3).result()
    assert found.trees == expected.trees
    assert found.stats["rollout/num_requests"] == expected.stats["rollout/num_requests"] > 8
    assert set(found.stats) == {*expected.stats, "rollout/workers", "rollout/shards_replayed"}
    spans = [(span.lane, span.what) for span in found.spans]
    replayed = found.stats["rollout/shards_replayed"]
    assert spans.count(("worker 0", "sampling")) + spans.count(("worker 1", "sampling")) == 4 + replayed
    assert all(0 < span.end - span.start + 1e-9 < 20 for span in found.spans)
    tokens = sum(len(node.completion.token_ids) for tree in found.trees for node in tree.nodes)
    assert (progress.shards_done, progress.shards_queued, progress.shards_under_way) == (4, 0, 0)
    assert (progress.tokens, progress.num_workers) == (tokens, 2)


def test_a_batch_without_problems_is_done(tmp_path: Path) -> None:
    with opened(Fate(), folder=tmp_path / "a") as pool:
        assert sampled(pool, 0).trees == []


# ---- what does not pass ---------------------------------------------------------------------------------------------


class Poisoned(StandInWorker):
    """No worker survives p5."""

    def sample(self, shard: Shard) -> ShardResult:
        if "p5" in [problem.id for problem in shard.problems]:
            raise WorkerLost("killed for its memory")
        return super().sample(shard)


def test_a_shard_that_kills_every_worker_ends_the_run_and_is_named(tmp_path: Path) -> None:
    with opened(Fate(), Fate(), folder=tmp_path / "a", worker=Poisoned) as pool:
        with pytest.raises(WorkerError, match=r"p4, p5 .*3 workers lost .*stand-in .: killed for its memory"):
            sampled(pool)
        assert len(sampled(pool, 4).trees) == 4, "the workers are back"


class Absent(StandInWorker):
    """It dies, and does not come back."""

    def sample(self, shard: Shard) -> ShardResult:
        raise WorkerLost("connection refused")

    def restart(self) -> None:
        raise WorkerLost(f"{self.name} is switched off")


def test_the_lack_of_any_worker_ends_the_run_and_says_what_happened_to_each(tmp_path: Path) -> None:
    with opened(Fate(), Fate(), folder=tmp_path / "a", worker=Absent, patience_s=0.2) as pool:
        with pytest.raises(WorkerError, match=r"none for .*stand-in 0 is switched off; .*stand-in 1 is switched off"):
            sampled(pool)
        with pytest.raises(WorkerError, match="switched off"):
            sampled(pool)
        assert [name.partition(":")[0] for name in pool.progress.lost] == ["stand-in 0", "stand-in 1"]


class Other(StandInWorker):
    """It dies, and something else comes back in its place."""

    def sample(self, shard: Shard) -> ShardResult:
        raise WorkerLost("gone")

    def restart(self) -> None:
        raise ConfigError("other weights")


def test_a_worker_that_comes_back_as_another_ends_the_run(tmp_path: Path) -> None:
    with (
        opened(Fate(), folder=tmp_path / "a", worker=Other) as pool,
        pytest.raises(ConfigError, match="other weights"),
    ):
        sampled(pool)


class Slow(StandInWorker):
    """Its first shard takes for ever."""

    def sample(self, shard: Shard) -> ShardResult:
        if not self.num_restarts:
            self.given_up.wait(20)
            raise EngineError("the connection was closed")
        return super().sample(shard)


def test_a_worker_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with opened(Fate(), folder=tmp_path / "a", worker=Slow, deadline_s=0.1) as pool:
        assert sampled(pool).stats["rollout/shards_replayed"] == 1


class Deaf(StandInWorker):
    """It does not even give up."""

    taken: ClassVar[threading.Event]
    released: ClassVar[threading.Event]

    def sample(self, shard: Shard) -> ShardResult:
        if self.name.endswith("0"):
            self.taken.set()
            assert self.released.wait(60)
        assert self.taken.wait(60)  # the other does not take all there is before
        return super().sample(shard)


def test_a_worker_that_does_not_give_up_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flow_dpo.workers.pool._GRACE_S", 0.1)
    Deaf.taken, Deaf.released = threading.Event(), threading.Event()
    with opened(Fate(), Fate(), folder=tmp_path / "a", worker=Deaf, deadline_s=1) as pool:
        assert sampled(pool).stats["rollout/shards_replayed"] == 1
        assert pool.progress.num_alive == 1
        Deaf.released.set()


class Broken(type(FLOW)):
    """A flow of somebody who divides by zero."""

    def advance(self, state: Any, completion: Completion) -> Any:
        if state.problem.id in ("p3", "p6"):
            raise ZeroDivisionError(state.problem.id)
        if state.problem.id == "p7":
            raise FlowError(f"a rule is broken by {state.problem.id}")
        return super().advance(state, completion)


def test_an_error_of_the_work_is_raised_once_and_of_the_first_shard(tmp_path: Path) -> None:
    broken = Broken(chunk_tokens=3, max_chunks=2)
    for seed in range(5):
        fates = [Fate(seed=seed, dawdle_s=0.005) for _ in range(3)]
        with opened(*fates, folder=tmp_path / str(seed)) as pool:
            with pytest.raises(ZeroDivisionError, match="p3") as raised:
                sampled(pool, flow=broken)
            assert raised.value.__notes__ == ["while the problems p2, p3 were sampled"]
            assert sum(fate.log.count((0, 1)) for fate in fates) == 1
    with (
        opened(Fate(), folder=tmp_path / "a", shard=8) as pool,
        pytest.raises(FlowError, match=r"a rule is broken by p7 \(while the problems p7 were sampled"),
    ):
        pool.submit(Siblings(), broken, problems(8)[7:], seed=0).result(timeout=20)


class Stale(StandInWorker):
    """It does not refresh."""

    def sample(self, shard: Shard) -> ShardResult:
        result = super().sample(shard)
        for tree in result.trees:
            tree.nodes = [replace(n, completion=replace(n.completion, policy_version=7)) for n in tree.nodes]
        return result


class Confused(StandInWorker):
    """It samples other problems."""

    def sample(self, shard: Shard) -> ShardResult:
        return super().sample(replace(shard, problems=shard.problems[::-1]))


@pytest.mark.parametrize(
    ("worker", "message"),
    [(Stale, "policy version 0 from stand-in 0, found p0 sampled by version 7"), (Confused, "trees of")],
)
def test_trees_of_another_version_or_of_other_problems_are_refused(worker: type, message: str, tmp_path: Path) -> None:
    with opened(Fate(), folder=tmp_path / "a", worker=worker) as pool, pytest.raises(EngineError, match=message):
        sampled(pool)


class Odd(StandInWorker):
    """Its counts are none, which nobody expects."""

    def sample(self, shard: Shard) -> ShardResult:
        return replace(super().sample(shard), stats=None)


class Unstoppable(Slow):
    """What should end its shard fails."""

    def abort(self) -> None:
        super().abort()
        raise ConnectionError("the cluster is gone")


@pytest.mark.parametrize(("worker", "kind"), [(Odd, AttributeError), (Unstoppable, ConnectionError)])
def test_what_nobody_expects_ends_the_run_and_does_not_hang_it(
    worker: type, kind: type[Exception], tmp_path: Path
) -> None:
    learner = MovingLearner()
    pool = pooled(learner, tmp_path / "a", [Fate(), Fate()], worker=worker, deadline_s=0.1)
    pool.refresh(learner.adapters)
    with pytest.raises(kind):
        sampled(pool)
    with nullcontext() if worker is Odd else pytest.raises(kind):
        pool.close()
    assert all(lane.worker.closed for lane in pool._lanes), "each is closed, whatever becomes of the others"
    assert not (tmp_path / "a").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("worker", "watch"))]


class Crowded(StandInWorker):
    """It dies, and the memory of the one that died is not free at once."""

    def restart(self) -> None:
        super().restart()
        if self.num_restarts < 3:
            raise RuntimeError("CUDA out of memory")


def test_a_worker_that_finds_no_room_at_first_comes_back(tmp_path: Path) -> None:
    with opened(Fate(deaths=1, seed=1), folder=tmp_path / "a", worker=Crowded) as pool:
        assert sampled(pool).stats["rollout/shards_replayed"] == 1
        assert pool.progress.num_alive == 1


def test_adapters_that_cannot_be_written_end_the_run_and_those_of_a_killed_one_are_not_in_the_way(
    tmp_path: Path,
) -> None:
    learner = MovingLearner()
    for name in ("1", "1.tmp"):
        (tmp_path / "served" / "answer" / name).mkdir(parents=True)
        (tmp_path / "served" / "answer" / name / "weight").write_text("0.9")
    found = AdapterFolders(learner.save, tmp_path / "served").publish(learner.adapters)
    assert (Path(found["answer"].path) / "weight").read_text() == str(learner.weights["answer"])

    def full(role: str, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"could not write to .*served.*No space left .*resume"):
        AdapterFolders(full, tmp_path / "served").publish(learner.adapters)


# ---- the end --------------------------------------------------------------------------------------------------------


def test_an_interrupt_ends_the_wait_and_closing_ends_the_work(tmp_path: Path) -> None:
    fate = Fate(dawdle_s=1000)
    started = time.monotonic()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with opened(fate, fate, folder=tmp_path / "a") as pool, pytest.raises(KeyboardInterrupt):
        sampled(pool)
    assert time.monotonic() - started < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("worker", "watch"))]
    with pytest.raises(WorkerError, match="closed"):
        sampled(pool)


def test_closing_ends_workers_that_are_being_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    with opened(Fate(), folder=tmp_path / "a", worker=Absent) as pool:
        future = pool.submit(Siblings(), FLOW, problems(4), seed=3)
        while not pool.progress.lost:
            time.sleep(0.01)
    assert future.cancelled()
    assert time.monotonic() - started < 5


def test_the_stand_in_world_depends_on_its_weights() -> None:
    """Otherwise nothing above could fail."""
    found = []
    for weight in (0.3, 0.7):
        learner = MovingLearner(weights=dict.fromkeys(pool_worlds.ROLES, weight))
        workers = here(learner)
        workers.refresh(learner.adapters)
        found.append(workers.submit(Siblings(), FLOW, problems(4), seed=3).result().trees)
    assert found[0] != found[1]
