"""How does a flow learn from problems that stream past?

The loop of Flow-DPO (arXiv 2410.22304, section 2) on one screen. A batch of problems is played with the current
adapters and graded; the trunks' verdicts are progressive validation, since nothing was learned from these problems
yet; what they teach goes to the learner, and the engine speaks with the new adapters from then on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flow_dpo.core.engine import Engine
from flow_dpo.core.metrics import ProgressiveValidation, tree_metrics
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.rollouts import Speaker
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Problem
from flow_dpo.learner.learner import Learner
from flow_dpo.models.render import Renderer
from flow_dpo.verify.grader import GradingSettings, Verifies, finder, grade, starter

Row = dict[str, Any]


class Recorder(Protocol):
    """Whoever keeps what a run did: the run folder, a progress bar, a test's list."""

    def record(self, row: Row, trees: Sequence[Tree], examples: Sequence[Example]) -> None:
        """Keep one batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Players:
    """The running parts that a loop plays and grades with."""

    engine: Engine
    renderer: Renderer
    verifier: Verifies
    grading: GradingSettings


def learn(
    recipe: Recipe,
    problems: Iterable[Problem],
    players: Players,
    learner: Learner,
    recorders: Sequence[Recorder],
    *,
    seed: int,
    explore_ahead: int,
    progress: ProgressiveValidation,
) -> None:
    """Play, grade, learn and record, `explore_ahead` problems at a time, until the problems end."""
    finds = finder(players.verifier, players.renderer, players.grading)
    begins = starter(players.verifier, players.renderer)
    speaker = Speaker(players.engine, players.renderer, finds, begins=begins)
    speaker.refresh(learner.adapters)
    for batch in batched(problems, explore_ahead):
        started = time.perf_counter()
        trees = recipe.explore(recipe.flow, speaker, batch, seed=seed)
        played = time.perf_counter()
        grade(trees, players.verifier, players.renderer, players.grading)
        for tree in trees:
            progress.see(reward(tree))
        examples = recipe.credit(trees)
        graded = time.perf_counter()
        row = progress.row() | {"policy_version": learner.version} | tree_metrics(trees, examples, recipe.flow.roles)
        row |= learner.update(recipe.objective, examples)
        speaker.refresh(learner.adapters)
        row |= play_metrics(trees, players.engine)
        row |= {"play/seconds": played - started, "grade/seconds": graded - played}
        row |= {"learn/seconds": time.perf_counter() - graded}
        for recorder in recorders:
            recorder.record(row, trees, examples)


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


def play_metrics(trees: Sequence[Tree], engine: Engine) -> Row:
    """Tokens that the plays hold, shared ones counted once, and what the engine says of its work since last asked."""
    trunks = [sum(len(node.completion.token_ids) for node in tree.trunk_nodes()) for tree in trees]
    tokens = sum(len(node.completion.token_ids) for tree in trees for node in tree.nodes)
    row: Row = {"play/tokens": tokens, "play/trunk_tokens": sum(trunks) / max(len(trunks), 1)}
    return row | {f"play/{name}": value for name, value in engine.take_stats().items()}
