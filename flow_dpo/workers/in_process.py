"""Rollout workers in this process: one engine, one renderer, one grader.

    workers = InProcessWorkers(backends)
    workers.refresh(learner.adapters)
    trees = workers.rollout(recipe.explore, recipe.flow, problems, seed=0)

Invariant: all state that a call needs comes with it or with the last `refresh`, so that another kind of worker may be
on another machine, and one that died may be called again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.protocols import Backends
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Adapter, Problem, Role


class InProcessWorkers:
    """The engine, renderer and grader of this process (`core.protocols.RolloutWorkers`)."""

    def __init__(self, backends: Backends) -> None:
        self._grader = backends.grader
        self._engine = backends.engine
        self._runner = RolloutRunner(backends.engine, backends.renderer, backends.grader)
        self._seconds = {"rollout/seconds": 0.0, "grade/seconds": 0.0}

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        """Sample with these adapters from now on."""
        self._runner.refresh(adapters)

    def rollout(self, explore: Explore, flow: Flow[Any], problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        """One graded tree a problem, in their order."""
        started = time.perf_counter()
        trees = explore(flow, self._runner, problems, seed=seed)
        sampled = time.perf_counter()
        self._grader.grade(trees)
        self._seconds["rollout/seconds"] += sampled - started
        self._seconds["grade/seconds"] += time.perf_counter() - sampled
        return trees

    def take_stats(self) -> dict[str, float]:
        """What the engine reports of its work since the last call, and the seconds of sampling and of grading."""
        stats = {f"rollout/{name}": value for name, value in self._engine.take_stats().items()} | self._seconds
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return stats
