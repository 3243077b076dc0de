"""Do reward functions give the same rewards whoever calls them, and is code that is another on a worker refused?"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError, DataError
from flow_dpo.core.explore import Explore, Siblings
from flow_dpo.core.protocols import Backends
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.types import Problem
from flow_dpo.verify.grader import AnswerGrader, GradingSettings
from flow_dpo.verify.reward_grader import RewardGrader
from flow_dpo.verify.rewards import RewardFunctions
from flow_dpo.verify.verifier import Verifier
from flow_dpo.workers.actor import Expected, RolloutActor
from flow_dpo.workers.actor_worker import check_travels
from flow_dpo.workers.grading import check_reward_files, for_elsewhere, reward_files
from flow_dpo.workers.in_process import InProcessWorkers
from flow_dpo.workers.shard import Shard, ShardResult, WorkerLost, sample_shard
from tests.support.char_renderer import Letters
from tests.support.pool_worlds import FLOW, Fate, MovingLearner, StandInWorker, WeighedEngine, pooled, run
from tests.workers.test_actor import SETTINGS, setup_of

INSIDE: list[int] = []
"""One entry while a function is under way."""


def share_of_a(completions: list[str], trainer_state: Any, log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
    assert not INSIDE, "two calls at once"
    INSIDE.append(threading.get_ident())
    log_extra("length", [len(text) for text in completions])
    log_metric("step", trainer_state.global_step)
    INSIDE.pop()
    return [text.count("a") / (1 + len(text)) for text in completions]


def graded() -> RewardGrader:
    settings = GradingSettings(correct_from=0.4)
    functions = RewardFunctions.of([share_of_a, lambda completions: [float(len(text)) for text in completions]], [1, 0])
    return RewardGrader(functions, AnswerGrader(Verifier(), Letters(), settings), Letters(), settings)


class Rewarding(StandInWorker):
    """A worker with a grader of its own, as one in another process has."""

    def _start(self) -> None:
        self.engine: Engine = WeighedEngine()
        self.grader = graded()
        self.runner = RolloutRunner(self.engine, Letters(), self.grader)

    def sample(self, shard: Shard) -> ShardResult:
        _, dies = self.fate.meet(shard)
        if dies is not None:
            raise WorkerLost("killed by signal 9")
        self.runner.refresh(shard.adapters)
        return replace(sample_shard(self.runner, self.grader, shard), stats=self.engine.take_stats())


def test_two_workers_give_the_rewards_of_this_process_to_the_bit(tmp_path: Path) -> None:
    """Rewards, what functions measure, the version that they are told, and the means in the metrics."""
    learner = MovingLearner()
    backends = Backends(engine=WeighedEngine(learner.weights), renderer=Letters(), grader=graded())
    expected = run(learner, InProcessWorkers(backends, shard=2), lag=1)
    assert learner.version > 2
    learner = MovingLearner()
    with closing(pooled(learner, tmp_path / "a", [Fate(deaths=5), Fate()], worker=Rewarding)) as pool:
        found = run(learner, pool, lag=1)
    assert found.trees == expected.trees
    assert found.rows == expected.rows
    for row in found.rows:
        assert row["step"] == row["policy_version"]
        assert row["rewards/share_of_a/mean"] == row["reward"] > 0
        assert row["rewards/<lambda>/mean"] > 0
    verdicts = [rollout.verdict for tree in found.trees for rollout in tree.rollouts]
    assert all(verdict.extra["length"] == verdict.measures["rewards/<lambda>"] for verdict in verdicts if verdict)


@dataclass(frozen=True)
class Asking(Siblings):
    """An exploration that asks for verdicts while it samples."""

    def __call__(self, flow: Any, runner: Any, problems: Sequence[Problem], *, seed: int) -> Any:
        trees = super().__call__(flow, runner, problems, seed=seed)
        for tree in trees:
            runner.grader.check([(tree.problem, rollout.solution) for rollout in tree.rollouts])
        return trees


def test_what_is_asked_in_between_knows_the_version_too(tmp_path: Path) -> None:
    explore: Explore = Asking()
    learner = MovingLearner(version=3)
    steps: list[set[float]] = []
    backends = Backends(engine=WeighedEngine(learner.weights), renderer=Letters(), grader=graded())
    with closing(pooled(learner, tmp_path / "a", [Fate()], worker=Rewarding)) as pool:
        for workers in (InProcessWorkers(backends, shard=2), pool):
            workers.refresh(learner.adapters)
            problems = [Problem(id=f"p{n}", question="?", gold="") for n in range(3)]
            trees = workers.submit(explore, FLOW, problems, seed=3).result(timeout=20).trees
            verdicts = [rollout.verdict for tree in trees for rollout in tree.rollouts]
            steps.append({verdict.measures["step"] for verdict in verdicts if verdict})
    assert steps == [{3.0}, {3.0}]


def test_a_named_function_is_found_from_any_folder_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def short(completions):\n    return [1 / (1 + len(t)) for t in completions]\n")
    monkeypatch.chdir(tmp_path)
    there = for_elsewhere(GradingSettings(rewards=("mine.py:short", "answer")))
    assert there.rewards == (f"{tmp_path / 'mine.py'}:short", "answer")
    checksums = reward_files(there)
    monkeypatch.chdir("/")
    check_reward_files(there, checksums)
    setup = setup_of(SETTINGS.runtime, grading=there, reward_files=checksums)
    expected: Any = Expected  # refused before the model is loaded
    (tmp_path / "mine.py").write_text("def short(completions):\n    return [0.0 for t in completions]\n")
    with pytest.raises(ConfigError, match=r"code of the reward function .*mine.py:short on .* to be that of"):
        RolloutActor().open(setup, expected)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(ConfigError, match=r"mine.py on .*, found none; put it under the same path on every machine"):
        RolloutActor().open(setup, expected)


def test_a_function_that_cannot_travel_is_named() -> None:
    lock = threading.Lock()

    def locked(completions: list[str]) -> list[float]:
        with lock:
            return [0.0 for _ in completions]

    def dumps(value: Any) -> bytes:
        if value is locked:
            raise TypeError("cannot pickle '_thread.lock' object")
        return b""

    functions = RewardFunctions.of([share_of_a, locked])
    with pytest.raises(ConfigError, match=r"expected a reward function locked that can be sent .*_thread.lock"):
        check_travels(setup_of(SETTINGS.runtime, grader=functions), dumps, to="workers on Ray")
    check_travels(setup_of(SETTINGS.runtime, grader=RewardFunctions.of(share_of_a)), dumps, to="workers on Ray")


def test_a_failure_on_a_worker_ends_the_run_and_names_the_function(tmp_path: Path) -> None:
    class Failing(Rewarding):
        def _start(self) -> None:
            super()._start()
            settings = GradingSettings()
            answers = AnswerGrader(Verifier(), Letters(), settings)
            self.grader = RewardGrader(RewardFunctions.of(lambda completions: 1 / 0), answers, Letters(), settings)

    with (
        closing(pooled(MovingLearner(), tmp_path / "a", [Fate(), Fate()], worker=Failing)) as pool,
        pytest.raises(DataError, match=r"reward function <lambda> raised ZeroDivisionError.*problem 'p"),
    ):
        run(MovingLearner(), pool, lag=0)
