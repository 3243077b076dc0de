"""The loop of Flow-DPO (arXiv 2410.22304, section 2) on one screen.

A batch of problems is sampled with the adapters in force and graded; the trunks' verdicts are progressive validation,
since nothing was learned from these problems yet; what their trees teach goes to the learner, and the workers sample
with the new adapters from then on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from flow_dpo.core.metrics import ProgressiveValidation, tree_metrics
from flow_dpo.core.protocols import Callback, Learns, RolloutWorkers, Row
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
    progress: ProgressiveValidation | None = None,
) -> ProgressiveValidation:
    """Sample, grade, learn and report, `problems_per_batch` problems at a time, until the problems end.

    Every problem of a batch is sampled under one version of the adapters. Returns the progressive validation, which
    goes on counting in `progress` where that is given.
    """
    progress = ProgressiveValidation() if progress is None else progress
    workers.refresh(learner.adapters)
    for batch in batched(problems, problems_per_batch):
        # 1. sample: a tree a problem, each rollout of it graded
        flow = recipe.flow.calibrated(progress.evidence)
        trees = workers.rollout(recipe.explore, flow, batch, seed=seed)
        # 2. validate: accuracy on each problem before anything was learned from it
        for tree in trees:
            progress.see(tree.trunk.verdict, flow.evidence(tree))
        row: Row = progress.row() | {"policy_version": learner.version}
        row |= {f"flow/{name}": value for name, value in flow.calibration().items()}
        # 3. credit: what the graded trees teach
        examples = recipe.credit(trees)
        row |= tree_metrics(trees, examples, recipe.flow.roles)
        # 4. learn, and sample with what was learned
        started = time.perf_counter()
        row |= learner.update(recipe.objective, examples)
        workers.refresh(learner.adapters)
        row |= {"learn/seconds": time.perf_counter() - started}
        # 5. report
        row |= rollout_metrics(trees, workers)
        for callback in callbacks:
            callback.on_batch(row, trees, examples)
    return progress


def reward(tree: Tree) -> float | None:
    """The trunk's reward, None where it could not be graded."""
    return None if tree.trunk.verdict is None else tree.trunk.verdict.reward


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


def rollout_metrics(trees: Sequence[Tree], workers: RolloutWorkers) -> Row:
    """Tokens that the rollouts hold, shared ones counted once, and what the workers report of their work since
    the last call."""
    trunks = [sum(len(node.completion.token_ids) for node in tree.trunk_nodes()) for tree in trees]
    tokens = sum(len(node.completion.token_ids) for tree in trees for node in tree.nodes)
    row: Row = {"rollout/tokens": tokens, "rollout/trunk_tokens": sum(trunks) / max(len(trunks), 1)}
    return row | dict(workers.take_stats())
