"""Rollouts, and fresh completions from every state of those that ended wrong.

Step-DPO (arXiv 2406.18629) samples solutions, has the first wrong step of each wrong one found, and samples from the
state before it until some are right. Here completions from the states do both: they show from where a solution can no
longer be saved, and those from the state before that are the corrections.

    rollout 0 right, 1 wrong in 3 steps    ->    completions from the question and after steps 1 and 2 of rollout 1

Invariant: completions are cut into steps as solutions are, so a first step can be compared with the one it corrects; a
rollout that ended right, or could not be graded, has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps, verify
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem
from flow_dpo.recipes.step_rollouts import Branched, Path


@dataclass(frozen=True, kw_only=True)
class WrongRollouts(TurnSampling):
    """Rollouts of a problem, and completions from every state on the wrong ones. The first rollout is the trunk."""

    num_rollouts: int = 2
    """Rollouts of a problem; the authors' is 2."""
    num_completions: int = 20
    """Completions per state; the authors draw 20 from the one before the error."""

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        explored = [_Searched(self, flow, problem, runner, seed, self.num_completions) for problem in problems]
        runner.run([one.search(one.new_path()) for one in explored for _ in range(self.num_rollouts)])
        return [one.tree() for one in explored]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)


class _Searched(Branched):
    """Rollouts of one problem and their completions."""

    cut_probes = True

    def search(self, path: Path) -> RolloutSteps:
        """Sample one rollout to its end and, if it is wrong, completions from every state on it."""
        yield from self.rollout(path, probing=False)
        assert path.solution is not None
        verdict = yield from verify(self.problem, path.solution)
        for step in path.steps if verdict.status == "wrong" else ():
            yield from self.probe(step)
