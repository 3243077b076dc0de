"""The loop of Flow-DPO (arXiv 2410.22304, section 2) on one screen.

A batch of problems is sampled with the adapters in force and graded. The trunks' verdicts are progressive validation,
since nothing has been learned from these problems yet. What the trees teach goes to the learner, and from then on the
workers sample with the new adapters.

With a lag, workers sample while the learner learns. Batches 0, 1, 2, ... with `lag` 1:

    sampled   0 and 1 with the first adapters   2 with those after batch 0    3 with those after batch 1   ...
    learned                                     0 (1 is being sampled)        1 (2 is being sampled)       ...

Invariant: batch b is sampled with exactly the adapters in force after batch b - 1 - lag, however long each step takes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.flow import Flow
from flow_dpo.core.metrics import ProgressiveValidation, tree_metrics
from flow_dpo.core.protocols import Callback, Learns, Rollouts, RolloutWorkers, Row
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem


def learn(
    recipe: Recipe,
    problems: Iterable[Problem],
    workers: RolloutWorkers,
    learner: Learns,
    *,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    problems_per_batch: int = 16,
    lag: int = 0,
    in_flight: deque[InFlight] | None = None,
    progress: ProgressiveValidation | None = None,
) -> ProgressiveValidation:
    """Sample, grade, learn and report, `problems_per_batch` problems at a time, until there are no more problems.
    Every problem of a batch is sampled with the same version of the adapters. Returns the progressive validation, which
    continues from `progress` if that is given. `in_flight` holds the batches that were submitted but not yet learned
    from, so that callbacks can read it; a resumed run passes the batches that it had in flight."""
    progress = ProgressiveValidation() if progress is None else progress
    in_flight = deque[InFlight]() if in_flight is None else in_flight
    batches = batched(problems, problems_per_batch)
    workers.refresh(learner.adapters)
    while True:
        # 1. sample: one tree per problem, every rollout graded
        for batch in islice(batches, max(0, lag + 1 - len(in_flight))):
            in_flight.append(submit(recipe, batch, workers, learner.version, progress.evidence, seed=seed))
        if not in_flight:
            return progress
        begun, started = in_flight.popleft(), time.perf_counter()
        rollouts = begun.rollouts.result()
        trees, waited = rollouts.trees, time.perf_counter() - started
        # 2. validate: accuracy on each problem before anything is learned from it
        for tree in trees:
            progress.see(tree.trunk.verdict, begun.flow.evidence(tree))
        row: Row = progress.row() | {"policy_version": begun.version, "learn/version": learner.version, "run/lag": lag}
        row |= {f"flow/{name}": value for name, value in begun.flow.calibration().items()}
        # 3. credit: what the graded trees teach
        examples = recipe.credit(trees)
        if stray := {one.problem_id for one in examples} - {tree.problem.id for tree in trees}:
            raise ConfigError(f"expected problem_id=tree.problem.id in the credit's examples, found {sorted(stray)}")
        row |= tree_metrics(trees, examples, recipe.flow.roles)
        # 4. learn, and sample with what was learned
        started = time.perf_counter()
        row |= learner.update(recipe.objective, examples)
        workers.refresh(learner.adapters)
        row |= {"learn/seconds": time.perf_counter() - started, "rollout/wait_seconds": waited}
        # 5. report
        row |= rollout_metrics(trees, rollouts.stats)
        for callback in callbacks:
            callback.on_batch(row, trees, examples)


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A submitted batch: its problems, and the adapters and the flow that it is sampled with."""

    problems: Sequence[Problem]
    version: int
    """Version of the adapters that it is sampled with."""
    flow: Flow[Any]
    """The flow as calibrated on `evidence`."""
    evidence: Sequence[Mapping[str, Any]]
    """The evidence on which the flow was calibrated."""
    rollouts: Future[Rollouts]


def submit(
    recipe: Recipe,
    problems: Sequence[Problem],
    workers: RolloutWorkers,
    version: int,
    evidence: Iterable[Mapping[str, Any]],
    *,
    seed: int,
) -> InFlight:
    """Start a batch with the workers' adapters, which have this version, and the flow calibrated on the evidence."""
    kept = list(evidence)
    flow = recipe.flow.calibrated(kept)
    rollouts = workers.submit(recipe.explore, flow, problems, seed=seed)
    return InFlight(problems=problems, version=version, flow=flow, evidence=kept, rollouts=rollouts)


def right(tree: Tree) -> float | None:
    """1.0 if the trunk is right, 0.0 if it is wrong, None if it could not be graded."""
    return None if tree.trunk.verdict is None else tree.trunk.verdict.right


def batched(problems: Iterable[Problem], size: int) -> Iterator[list[Problem]]:
    """The problems in lists of `size`, the last one shorter."""
    batch: list[Problem] = []
    for problem in problems:
        batch.append(problem)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def rollout_metrics(trees: Sequence[Tree], stats: Mapping[str, float]) -> Row:
    """Tokens in the rollouts, shared ones counted once (also if an engine has no counts), and the workers' own."""
    trunk = sum(len(node.completion.token_ids) for tree in trees for node in tree.trunk_nodes()) / max(len(trees), 1)
    tokens = sum(len(node.completion.token_ids) for tree in trees for node in tree.nodes)
    return {"rollout/tokens": tokens, "rollout/sampled_tokens": tokens, "rollout/trunk_tokens": trunk, **stats}
