"""Is every batch sampled by the version that the lag says, whatever is in flight, and learned from in order?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flow_dpo.core.answer_stop import ANSWER
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.loop import InFlight, learn, submit
from flow_dpo.core.metrics import ProgressiveValidation
from flow_dpo.core.protocols import Rollouts
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Problem
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.credit import AttemptCredit
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from tests.support import attempt_worlds as worlds

PROBLEMS = [Problem(id=f"p{i}", question="?", gold="1") for i in range(22)]
RECIPE = Recipe(
    flow=Attempts(chunk_tokens=2, max_chunks=2, max_attempts=3, threshold=0.6),
    explore=AttemptSiblings(),
    credit=AttemptCredit(),
    objective=DpoAndVerdicts(),
)


class Late:
    """Workers whose batches are done when they are asked for, and that remember what each was sampled with."""

    def __init__(self) -> None:
        self.version = -1
        self.submitted: list[tuple[list[str], int]] = []
        self.num_open = self.most_open = 0

    def refresh(self, adapters: Mapping[str, Adapter]) -> None:
        self.version = adapters[ANSWER].version

    def submit(self, explore: Any, flow: Any, problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        self.submitted.append(([problem.id for problem in problems], self.version))
        trees: list[Tree] = explore(flow, worlds.runner(), problems, seed=seed)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        return Opened(self, Rollouts(trees=trees, stats={"rollout/seconds": 1.0}))


class Opened(Future[Rollouts]):
    def __init__(self, workers: Late, found: Rollouts) -> None:
        super().__init__()
        self.workers, self.found = workers, found

    def result(self, timeout: float | None = None) -> Rollouts:
        self.workers.num_open -= 1
        return self.found


class Counts:
    """A learner that makes as many updates of each batch as it is told."""

    def __init__(self, updates: Sequence[int]) -> None:
        self.version, self.updates = 0, iter(updates)

    @property
    def adapters(self) -> dict[str, Adapter]:
        return {role: Adapter(role=role, version=self.version) for role in RECIPE.flow.roles}

    def update(self, objective: Any, examples: Any) -> dict[str, float]:
        self.version += next(self.updates)
        return {}


class Keeps:
    def __init__(self, in_flight: deque[InFlight]) -> None:
        self.in_flight, self.rows = in_flight, list[dict[str, Any]]()
        self.open: list[list[tuple[str, int]]] = []

    def on_batch(self, row: Any, trees: Sequence[Tree], examples: Any) -> None:
        self.rows.append(dict(row) | {"ids": [tree.problem.id for tree in trees]})
        self.open.append([(batch.problems[0].id, batch.version) for batch in self.in_flight])


UPDATES = (1, 0, 2, 1, 1, 3)  # of the batches of four problems; the last has two


@pytest.mark.parametrize("lag", [0, 1, 2, 3, 9])
def test_every_batch_is_sampled_by_the_version_that_the_lag_says(lag: int) -> None:
    workers, learner, in_flight = Late(), Counts(UPDATES), deque[InFlight]()
    keeps = Keeps(in_flight)
    learn(RECIPE, PROBLEMS, workers, learner, callbacks=[keeps], problems_per_batch=4, lag=lag, in_flight=in_flight)
    after = [sum(UPDATES[:done]) for done in range(len(UPDATES) + 1)]  # versions after so many batches
    expected = [after[max(0, batch - lag)] for batch in range(6)]
    assert [version for _, version in workers.submitted] == expected
    assert [ids for ids, _ in workers.submitted] == [[p.id for p in PROBLEMS[i : i + 4]] for i in range(0, 22, 4)]
    assert [row["policy_version"] for row in keeps.rows] == expected
    assert [row["learn/version"] for row in keeps.rows] == after[:-1]
    assert [row["ids"] for row in keeps.rows] == [ids for ids, _ in workers.submitted]
    assert [row["problems_seen"] for row in keeps.rows] == [4, 8, 12, 16, 20, 22]
    # What is in flight when a batch is reported: the next ones, as they were submitted.
    for batch, found in enumerate(keeps.open):
        assert found == [(PROBLEMS[4 * b].id, expected[b]) for b in range(batch + 1, min(batch + 1 + lag, 6))]
    assert workers.most_open == min(lag + 1, 6)
    assert not in_flight


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_loop_goes_on_with_what_was_in_flight(stop: int) -> None:
    """Stopped after some batches, with those in flight submitted again as they were: the same calls of the workers."""
    lag = 2
    whole = Late()
    learn(RECIPE, PROBLEMS, whole, Counts(UPDATES), problems_per_batch=4, lag=lag)

    class Enough(Exception):
        pass

    class Stops(Keeps):
        def on_batch(self, row: Any, trees: Sequence[Tree], examples: Any) -> None:
            super().on_batch(row, trees, examples)
            if len(self.rows) == stop:
                raise Enough

    first, learner, in_flight, progress = Late(), Counts(UPDATES), deque[InFlight](), ProgressiveValidation()
    with pytest.raises(Enough):
        learn(
            RECIPE, PROBLEMS, first, learner, callbacks=[Stops(in_flight)], problems_per_batch=4, lag=lag,
            in_flight=in_flight, progress=progress,
        )  # fmt: skip
    second, left = Late(), PROBLEMS[progress.num_seen :]
    again = deque[InFlight]()
    for batch in in_flight:
        second.version = batch.version
        again.append(submit(RECIPE, batch.problems, second, batch.version, batch.evidence, seed=0))
        left = left[len(batch.problems) :]
    learn(RECIPE, left, second, learner, problems_per_batch=4, lag=lag, in_flight=again, progress=progress)
    replayed = len(in_flight)
    assert first.submitted[len(first.submitted) - replayed :] == second.submitted[:replayed]
    assert first.submitted + second.submitted[replayed:] == whole.submitted


def test_examples_that_name_no_problem_of_their_batch_are_refused() -> None:
    """Before anything is learned from them."""
    learner = Counts([1])
    for name in ("", "another"):
        credit: Any = lambda _, name=name: [SimpleNamespace(problem_id=name)]  # noqa: E731
        with pytest.raises(
            ConfigError, match=rf"problem_id=tree\.problem\.id in the credit's examples, found \['{name}'\]"
        ):
            learn(replace(RECIPE, credit=credit), PROBLEMS[:8], Late(), learner, problems_per_batch=8)
    assert learner.version == 0
