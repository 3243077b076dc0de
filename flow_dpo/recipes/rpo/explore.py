"""Rollouts in search of a correct reference path, and fresh completions from each of its states.

Reasoning Paths Optimization's exploration (arXiv 2410.10858, section 3, and the authors' code,
DAMO-NLP-SG/reasoning-paths-optimization): several rollouts, the first right one of which is the reference path. From
the question, and from the end of every step of the path but the last, fresh completions are sampled to the end:

    rollouts 0 wrong, 1 right, 2 right    ->    rollout 1 is the reference; 3 steps: completions from 3 states

Invariant: if no rollout is right, nothing is branched; the reference does not depend on which rollout ended first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps, verify
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Status
from flow_dpo.recipes.step_rollouts import Branched, Path


@dataclass(frozen=True, kw_only=True)
class ReferencePath(TurnSampling):
    """Rollouts of a problem, and completions from every state on the first right one. The first of all is the trunk."""

    num_rollouts: int = 10
    """Rollouts in search of a right one; the authors' is 10."""
    num_completions: int = 10
    """Completions per state; the authors' is 10."""

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        explored = [_Searched(self, flow, problem, runner, seed, self.num_completions) for problem in problems]
        runner.run([one.search(one.new_path()) for one in explored for _ in range(self.num_rollouts)])
        return [one.tree() for one in explored]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)


class _Searched(Branched):
    """Rollouts of one problem; the one that ends last starts the completions from the reference path."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._found: dict[int, Status] = {}

    def search(self, path: Path) -> RolloutSteps:
        """Sample one path to its end; if it is the last to end, branch the first right path."""
        yield from self.rollout(path, probing=False)
        assert path.solution is not None
        verdict = yield from verify(self.problem, path.solution)
        self._found[path.index] = verdict.status
        if len(self._found) < len(self.paths):
            return
        right = [one for one in self.paths if self._found[one.index] == "correct"]
        for step in right[0].steps if right else ():
            yield from self.probe(step)
