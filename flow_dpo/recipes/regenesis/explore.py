"""Rollouts from general guidelines, and with the accepted answer as a hint if none of those can be learned from.

ReGenesis (arXiv 2410.02108, section 3.1): 25 single guidelines and 20 drawn groups of them are each made into a path in
three turns (`regenesis.flow`). Of the paths that end right, those that reason are kept (`regenesis.kept`). If no path
of a problem is kept, some more are sampled with the answer in the prompts. The trunk is the plain flow, which reads no
guideline: it gives progressive validation, and the prompt that paths are learned for.

    rollout 0        plain question                       "... Answer: 5"
    rollout 1 ...    adapt, structure, path               45 of them, in an order drawn for the problem
    after            adapt, structure, path with a hint   from groups, only if none of those before is kept

Invariants: without a hint every guideline and every group is tried at most once per problem, each equally likely if
`num_rollouts` is less than 45. A problem without an accepted answer, graded by a reward alone, has no
prompt that would name one: neither a hinted path nor the self-check.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flow_dpo.core.errors import ConfigError, FlowError, expect
from flow_dpo.core.explore import Group, TurnSampling, single_rollout
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner, RolloutSteps, SampleRequest, sample
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Turn
from flow_dpo.recipes.regenesis.flow import GUIDELINES, Checked, Guided, GuidedWords, self_check_turn
from flow_dpo.recipes.regenesis.kept import PathFilter, kept_from, kept_tag
from flow_dpo.recipes.single_rollout import Chain

NUM_GROUPS = 20
PATH = 2
"""The index of the path among a rollout's turns."""
GROUP_SIZES = (2, 3)
"""Smallest and largest group. In the authors' code the model itself selects two or three for the question."""


def advice(seed: int) -> tuple[tuple[str, ...], ...]:
    """The 25 single guidelines, then 20 different groups of them: 45 ways to begin, the same for all problems."""
    rng = random.Random(derive(seed, "groups of guidelines"))
    groups: dict[tuple[int, ...], None] = {}
    while len(groups) < NUM_GROUPS:
        groups[tuple(sorted(rng.sample(range(len(GUIDELINES)), rng.randint(*GROUP_SIZES))))] = None
    return (*((one,) for one in GUIDELINES), *(tuple(GUIDELINES[i] for i in group) for group in groups))


@dataclass(frozen=True, kw_only=True)
class GuidelineRollouts(TurnSampling):
    """The plain flow once, then paths from guidelines, then hinted ones if none of those was kept."""

    num_rollouts: int = 45
    """How many of the 45 guidelines and groups are tried per problem."""
    num_hinted: int = 5
    """Paths with a hint if none without is kept, each from one of the 20 groups; the authors' code has one of each."""
    plan_tokens: int = 256
    """Longest adapted advice and longest structure, in tokens; the authors' code allows 2,048."""
    words: GuidedWords = field(default_factory=GuidedWords)
    keep: PathFilter = field(default_factory=PathFilter)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self, "of 1 or more", lambda value: value >= 1, "plan_tokens")
        most = len(GUIDELINES) + NUM_GROUPS
        if not 0 < self.num_rollouts <= most or not 0 <= self.num_hinted <= NUM_GROUPS:
            raise ConfigError(
                f"expected num_rollouts from 1 to {most} and num_hinted from 0 to {NUM_GROUPS}, found "
                f"{self.num_rollouts} and {self.num_hinted}"
            )

    def __call__(self, flow: Flow[Any], runner: RolloutRunner, problems: Sequence[Problem], *, seed: int) -> list[Tree]:
        ways = advice(seed)
        trunks = [
            Chain(flow, problem, self, seed=derive(seed, problem.id, "trunk"), trunk=True) for problem in problems
        ]
        runs = [self._chains(flow, problem, ways, seed, hinted=False) for problem in problems]
        runner.run([chain.rollout() for chain in [*trunks, *(one for chains in runs for one in chains)]])
        again = [at for at, kept in enumerate(self._mark_kept(flow, runner, runs)) if not kept and problems[at].gold]
        hinted = [self._chains(flow, problems[at], ways, seed, hinted=True) for at in again]
        runner.run([chain.rollout() for chains in hinted for chain in chains])
        self._mark_kept(flow, runner, hinted)
        more = dict(zip(again, hinted, strict=True))
        trees: list[Tree] = []
        for at, (trunk, chains) in enumerate(zip(trunks, runs, strict=True)):
            tree = Tree(problem=trunk.problem)
            for chain in [trunk, *chains, *more.get(at, ())]:
                chain.add_to(tree)
            trees.append(tree)
        return trees

    def alone(self, *, greedy: bool) -> Group:
        return single_rollout(self, greedy=greedy)

    def besides(self, flow: Flow[Any], problem: Problem) -> Iterator[Flow[Any]]:
        """What is sampled on a problem besides the plain flow, at its longest (`models.context_window`)."""
        kind = Checked if self.keep.self_check and problem.gold else Guided
        yield kind(
            plain=_plain_turn(flow, problem),
            guidelines=tuple(sorted(GUIDELINES, key=len)[-max(GROUP_SIZES) :]),
            hinted=bool(problem.gold and self.num_hinted),
            plan_tokens=self.plan_tokens,
            words=self.words,
        )

    def _mark_kept(self, flow: Flow[Any], runner: RolloutRunner, runs: Sequence[Sequence[Chain]]) -> list[bool]:
        """Tag the right paths that are kept, if the model agrees when it is asked. Returns for each problem whether any
        path is kept."""
        render, to_text = runner.renderer.render, runner.renderer.to_text
        found: list[list[tuple[Chain, int]]] = []
        for chains in runs:
            right = [chain for chain in chains if chain.right]
            starts = [kept_from(chain.turns[PATH][1], self.keep, lambda ids: to_text((ids,))) for chain in right]
            found.append([(one, start) for one, start in zip(right, starts, strict=True) if start is not None])
        agreed: dict[Chain, bool] = {chain: True for chains in found for chain, _ in chains}
        if self.keep.self_check:
            runner.run([self._ask(chain, agreed) for chain in agreed if chain.problem.gold])
        for chain, start in [one for chains in found for one in chains if agreed[one[0]]]:
            opening: tuple[int, ...] = ()
            if self.keep.numbered_steps:
                plain = _plain_turn(flow, chain.problem)
                whole = render(replace(plain, continuation=(self.keep.opening,))).prompt_ids
                opening = whole[len(render(plain).prompt_ids) :]
            request, completion, tags = chain.turns[PATH]
            chain.turns[PATH] = (request, completion, (*tags, kept_tag(start, opening)))
        return [any(agreed[chain] for chain, _ in chains) for chains in found]

    def _ask(self, chain: Chain, agreed: dict[Chain, bool]) -> RolloutSteps:
        """Ask the model whether the path is right. The answer is a further turn of the rollout."""
        turn = self_check_turn(self.words, chain.problem, chain.turns[PATH][1].content_ids)
        sampling = self.for_turn(turn, trunk=False)
        sampled = yield from sample(SampleRequest(turn=turn, sampling=sampling, seed=derive(chain.seed, "check")))
        chain.turns.append((sampled.request, sampled.completion, ("check",)))
        agreed[chain] = sampled.completion.choice == 0

    def _chains(
        self, flow: Flow[Any], problem: Problem, ways: Sequence[tuple[str, ...]], seed: int, *, hinted: bool
    ) -> list[Chain]:
        """Rollouts in an order drawn for the problem, so keeping the first few favours no guideline."""
        start = derive(seed, problem.id, "hinted" if hinted else "guided")
        # Only groups, which come last, have a hint (the authors' truth_convert_reason.py).
        tried = range(len(GUIDELINES) if hinted else 0, len(ways))
        order = random.Random(start).sample(tried, self.num_hinted if hinted else self.num_rollouts)
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
                checked=True,
            )
            for way in order
        ]


def _plain_turn(flow: Flow[Any], problem: Problem) -> Turn:
    """The first turn of a flow that answers at once. Raises `FlowError` for another kind of first turn."""
    turn = flow.turn(flow.start(problem))
    if turn is None or turn.choices or turn.continuation or not turn.messages or turn.role not in Guided.roles:
        raise FlowError(
            f"paths from guidelines are learned for a flow whose first turn is Answer's own, found {turn!r} of "
            f"{type(flow).__name__}; use the flow Single"
        )
    return turn
