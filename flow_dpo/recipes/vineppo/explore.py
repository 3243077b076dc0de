"""Monte-Carlo values of the states before each step of a path, from fresh completions.

VinePPO's exploration (arXiv 2410.01679, section 4): several paths per problem, and from every distinct state on them a
few completions that are sampled to the end only for their reward.

    8 paths of 3 steps, all states distinct but the question    ->    8 paths, and 9 probes from each of 17 states

Invariant: probes are independent of how the paths continued, so the mean of their rewards is an unbiased estimate of
the state's value under the policy that drew them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem
from flow_dpo.recipes.step_rollouts import Branched
from flow_dpo.recipes.vineppo import long_steps


@dataclass(frozen=True, kw_only=True)
class StepRollouts(TurnSampling):
    """Paths of a problem, and completions from every distinct state on them. The first path is the trunk."""

    num_rollouts: int = 8
    """Paths of a problem; VinePPO's is 8."""
    num_completions: int = 9
    """Completions per state; VinePPO's K is 9."""
    max_step_chars: int = 0
    """A step of more characters is cut at a mark near its middle, as the authors cut MATH solutions at 100; 0 cuts
    none, as they do on GSM8K."""

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        explored = [
            _Cut(self, flow, problem, runner, seed, self.num_completions, limit=self.max_step_chars)
            for problem in problems
        ]
        runner.run([one.rollout(one.new_path(), probing=True) for one in explored for _ in range(self.num_rollouts)])
        return [one.tree() for one in explored]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)


class _Cut(Branched):
    """Paths and probes of one problem, with long steps cut."""

    def __init__(self, *args: Any, limit: int) -> None:
        super().__init__(*args)
        self._limit = limit

    def step_ends(self, completion: Completion) -> tuple[int, ...]:
        ends, decode = super().step_ends(completion), lambda ids: self.runner.renderer.to_text((ids,))
        return long_steps.step_ends(ends, completion.content_ids, decode, self._limit) if self._limit else ends
