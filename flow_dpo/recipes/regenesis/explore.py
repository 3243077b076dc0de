"""Rollouts by general guidelines, and with the accepted answer as a hint where none is right.

ReGenesis (arXiv 2410.02108, section 3.1): 25 guidelines singly and 20 drawn groups of them, each made into a path in
three turns (`flows.guidelines`); where none of a problem's paths is right, some more with the answer in the prompt. The
trunk is the plain flow, which reads no guideline: progressive validation, and the prompt that right paths are learned
for.

    rollout 0        plain question                       "... Answer: 5"
    rollout 1 ...    adapt, structure, path               45 of them, in an order drawn for the problem
    after            adapt, structure, path with a hint   only where none of those before is right

Invariant: every guideline and every group is tried at most once a problem without a hint, each equally likely where
`num_rollouts` is less than 45.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flow_dpo.core.errors import ConfigError, FlowError, expect
from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Turn
from flow_dpo.recipes.regenesis.flow import GUIDELINES, Guided, GuidedWords
from flow_dpo.recipes.single_rollout import Chain

NUM_GROUPS = 20
GROUP_SIZES = (2, 3)
"""Smallest and largest group. In the authors' code the model itself selects two or three for the question at hand."""


def advice(seed: int) -> tuple[tuple[str, ...], ...]:
    """The 25 guidelines singly, then 20 different groups of them: 45 ways to begin, the same for all problems."""
    rng = random.Random(derive(seed, "groups of guidelines"))
    groups: dict[tuple[int, ...], None] = {}
    while len(groups) < NUM_GROUPS:
        groups[tuple(sorted(rng.sample(range(len(GUIDELINES)), rng.randint(*GROUP_SIZES))))] = None
    return (*((one,) for one in GUIDELINES), *(tuple(GUIDELINES[i] for i in group) for group in groups))


@dataclass(frozen=True, kw_only=True)
class GuidelineRollouts(TurnSampling):
    """The plain flow once, then paths from guidelines, then hinted ones where nothing was right."""

    num_rollouts: int = 45
    """Guidelines and groups that are tried on a problem, of the 45 there are."""
    num_hinted: int = 5
    """Paths with a hint where none without is right; the authors' code samples its 20 groups."""
    plan_tokens: int = 256
    """Longest adapted advice and longest structure, in tokens; the authors' code allows 2,048."""
    words: GuidedWords = field(default_factory=GuidedWords)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 1 or more", lambda value: value >= 1, "plan_tokens")
        most = len(GUIDELINES) + NUM_GROUPS
        if not 0 < self.num_rollouts <= most or not 0 <= self.num_hinted <= most:
            raise ConfigError(
                f"expected num_rollouts from 1 and num_hinted from 0, each to {most}, found {self.num_rollouts} and "
                f"{self.num_hinted}"
            )

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        ways = advice(seed)
        trunks = [
            Chain(flow, problem, self, seed=derive(seed, problem.id, "trunk"), trunk=True) for problem in problems
        ]
        free = [self._chains(flow, problem, ways, seed, hinted=False) for problem in problems]
        runner.run([chain.rollout() for chain in [*trunks, *(one for chains in free for one in chains)]])
        hinted: list[list[Chain]] = [
            [] if any(chain.right for chain in chains) else self._chains(flow, problem, ways, seed, hinted=True)
            for problem, chains in zip(problems, free, strict=True)
        ]
        runner.run([chain.rollout() for chains in hinted for chain in chains])
        trees: list[Tree] = []
        for trunk, one, other in zip(trunks, free, hinted, strict=True):
            tree = Tree(problem=trunk.problem)
            for chain in [trunk, *one, *other]:
                chain.add_to(tree)
            trees.append(tree)
        return trees

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)

    def _chains(
        self, flow: Flow[Any], problem: Problem, ways: Sequence[tuple[str, ...]], seed: int, *, hinted: bool
    ) -> list[Chain]:
        """Rollouts in an order drawn for the problem, so that keeping the first few prefers no guideline."""
        start = derive(seed, problem.id, "hinted" if hinted else "guided")
        order = random.Random(start).sample(range(len(ways)), self.num_hinted if hinted else self.num_rollouts)
        plain = _plain_turn(flow, problem)
        return [
            Chain(
                Guided(
                    plain=plain, guidelines=ways[way], hinted=hinted, plan_tokens=self.plan_tokens, words=self.words
                ),
                problem,
                self,
                seed=derive(start, way),
                tags=(f"way {way}",),
                checked=not hinted,
            )
            for way in order
        ]


def _plain_turn(flow: Flow[Any], problem: Problem) -> Turn:
    """The only turn of a flow that answers at once. Raises `FlowError` for another kind of first turn."""
    turn = flow.turn(flow.start(problem))
    if turn is None or turn.choices or turn.continuation or not turn.messages or turn.role not in Guided.roles:
        raise FlowError(
            f"paths from guidelines are learned for a flow whose first turn is Answer's own, found {turn!r} of "
            f"{type(flow).__name__}; use flows.single"
        )
    return turn
