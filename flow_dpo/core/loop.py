"""The loop of Flow-DPO (arXiv 2410.22304, section 2) on one screen.

A batch of problems is sampled with the adapters in force and graded; the trunks' verdicts are progressive validation,
since nothing was learned from these problems yet; what their trees teach goes to the learner, and the workers sample
with the new adapters from then on.

With a lag, workers sample while the learner learns. Of batches 0, 1, 2, ... with `lag` 1:

    sampled   0 and 1 with the first adapters   2 with those that 0 made      3 with those that 1 made     ...
    learned                                     0 (1 is being sampled)        1 (2 is being sampled)       ...

Invariant: batch b is sampled with the adapters that stood after batch b - 1 - lag, exactly, whatever takes how long.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

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
    """Sample, grade, learn and report, `problems_per_batch` problems at a time, until the problems end.
    Every problem of a batch is sampled under one version of the adapters. Returns the progressive validation, which
    continues counting in `progress` where that is given. `in_flight` holds the batches that were submitted and not yet
    learned from, here and for callbacks; a run that continues passes those that it had.
    """
    progress = ProgressiveValidation() if progress is None else progress
    in_flight = deque[InFlight]() if in_flight is None else in_flight
    batches = batched(problems, problems_per_batch)
    workers.refresh(learner.adapters)
    while True:
        # 1. sample: a tree a problem, each rollout of it graded
        for batch in islice(batches, max(0, lag + 1 - len(in_flight))):
            in_flight.append(submit(recipe, batch, workers, learner.version, progress.evidence, seed=seed))
        if not in_flight:
            return progress
        begun, started = in_flight.popleft(), time.perf_counter()
        rollouts = begun.rollouts.result()
        trees, waited = rollouts.trees, time.perf_counter() - started
        # 2. validate: accuracy on each problem before anything was learned from it
        for tree in trees:
            progress.see(tree.trunk.verdict, begun.flow.evidence(tree))
        row: Row = progress.row() | {"policy_version": begun.version, "learn/version": learner.version, "run/lag": lag}
        row |= {f"flow/{name}": value for name, value in begun.flow.calibration().items()}
        # 3. credit: what the graded trees teach
        examples = recipe.credit(trees)
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
    """A batch that was submitted, and all that it depends on besides the problems and the seed."""

    problems: Sequence[Problem]
    version: int
    """Of the adapters that it is sampled with."""
    flow: Flow[Any]
    """As the evidence had it."""
    evidence: Sequence[Mapping[str, Any]]
    """By which the flow was calibrated."""
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
    """Begin a batch under the workers' adapters, which are of this version, and the flow as the evidence has it."""
    kept = list(evidence)
    flow = recipe.flow.calibrated(kept)
    rollouts = workers.submit(recipe.explore, flow, problems, seed=seed)
    return InFlight(problems=problems, version=version, flow=flow, evidence=kept, rollouts=rollouts)


def right(tree: Tree) -> float | None:
    """1.0 where the trunk is right, 0.0 where it is wrong, None where it could not be graded."""
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
    """Tokens that the rollouts hold, shared ones counted once, and what the workers report of their work."""
    trunks = [sum(len(node.completion.token_ids) for node in tree.trunk_nodes()) for tree in trees]
    tokens = sum(len(node.completion.token_ids) for tree in trees for node in tree.nodes)
    return {"rollout/tokens": tokens, "rollout/trunk_tokens": sum(trunks) / max(len(trunks), 1), **stats}
