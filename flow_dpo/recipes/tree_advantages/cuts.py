r"""Segments that begin at tokens of low probability, and rollouts from the states between them.

SPO-chain's exploration (arXiv 2505.23564, and the authors' code, AIFrameResearch/SPO at b9fc6a2,
`math_episode_generator_with_mc_advantages.py`): of the tokens sampled with a probability below 0.9, every fifth begins
a segment, and fresh completions are sampled from the state before each:

    token         a    b    c    d    e    f    g    h
    probability   .99  .8   .97  .5   .6   .99  .7   .85      cut_interval 3: cuts before b and g
    segments      a | b c d e f | g h                         probes from a and from a b c d e f

Invariant: a token of low probability is in a segment whose state was probed; the tokens before the first cut are all of
high probability, and their state is not probed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flow_dpo.core.errors import expect
from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem
from flow_dpo.recipes.step_rollouts import Branched, Step


@dataclass(frozen=True, kw_only=True)
class CutRollouts(TurnSampling):
    """Paths of a problem, and completions from every distinct state before a cut. The first path is the trunk."""

    num_rollouts: int = 8
    """Paths of a problem; SPO-chain's is 8."""
    num_completions: int = 9
    """Completions per state; SPO-chain's is 9."""
    cut_below: float = 0.9
    """A token of lower probability, at temperature 1, can begin a segment; SPO-chain's is 0.9."""
    cut_interval: int = 5
    """One in this many of those tokens begins a segment; SPO-chain's is 5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "above 0 and at most 1", lambda value: 0 < value <= 1, "cut_below")
        expect(self, "of 1 or more", lambda value: value >= 1, "cut_interval")

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        explored = [_Cut(self, flow, problem, runner, seed, self.num_completions) for problem in problems]
        runner.run([one.rollout(one.new_path(), probing=True) for one in explored for _ in range(self.num_rollouts)])
        return [one.tree() for one in explored]

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)


class _Cut(Branched):
    """Paths and probes of one problem."""

    turn_sampling: CutRollouts  # pyright: ignore[reportIncompatibleVariableOverride]

    def step_ends(self, completion: Completion) -> tuple[int, ...]:
        """The cuts, except one before the first token, which needs none."""
        unsure = [at for at, logprob in enumerate(completion.logprobs) if self._low(logprob)]
        return tuple(at for at in unsure[:: self.turn_sampling.cut_interval] if at)

    def probe(self, step: Step) -> RolloutSteps:
        """Start the probes of a state before a cut."""
        if self._low(step.completion.logprobs[0]):
            yield from super().probe(step)

    def _low(self, logprob: float) -> bool:
        return math.exp(logprob) < self.turn_sampling.cut_below
