"""Pairs of correct and wrong continuations at every state of the reference path.

Reasoning Paths Optimization's credit (arXiv 2410.10858, section 3): at every state on the reference path, every
distinct right completion is paired with every distinct wrong one. Chosen and rejected are whole turns, the common path
and what was sampled after it, so an objective sees the path too:

    path a b, probes after it: c (right), d (wrong), e (wrong)    ->    (a b c, a b d) and (a b c, a b e)

Invariant: the two completions of a pair begin alike, up to the state at least, and differ after it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flow_dpo.core.errors import expect
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.seeds import derive
from flow_dpo.core.steps import join
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Completion, Pair, Request
from flow_dpo.recipes.state_values import refuse_without_probes


@dataclass(frozen=True, kw_only=True)
class BranchPairs:
    """All pairs of a right and a wrong probe of one state; each problem keeps some of them."""

    max_pairs: int = 8
    """Pairs kept per problem, drawn at random from all of its states; the authors' is 8. 0 keeps all."""
    pairs_seed: int = 0
    """Seed of that draw."""
    min_margin: float = 0.0
    """Smallest difference of two rewards that makes a pair; the authors' are 1 and 0. Equal ones never make a pair."""
    max_pair_tokens: int = 0
    """A pair is left out if a side's prompt and completion have this many tokens or more; the authors' is 922, 0.9 of
    their cut-off of 1,024 (1,382 on MATH). 0 leaves out none."""
    by_problem: bool = True
    """Weight pairs so that each problem with any weighs as much as one that keeps `max_pairs` (if that is 0, the mean
    number of pairs). The authors draw one problem per step, so problems with many pairs are not favoured."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "max_pairs", "max_pair_tokens", "min_margin")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no state can ever have a right and a wrong probe."""
        refuse_without_probes(recipe, 2, "a pair needs two completions of one state")

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees, tree by tree, state by state."""
        found = [kept for tree in trees if (kept := self._kept(tree, _pairs(tree, self.min_margin)))]
        whole = self.max_pairs or sum(map(len, found)) / max(len(found), 1)
        return [
            replace(pair, weight=whole / len(pairs)) if self.by_problem else pair for pairs in found for pair in pairs
        ]

    def _kept(self, tree: Tree, pairs: list[Pair]) -> list[Pair]:
        if self.max_pair_tokens:
            pairs = [pair for pair in pairs if _num_tokens(pair) < self.max_pair_tokens]
        if not self.max_pairs or len(pairs) <= self.max_pairs:
            return pairs
        rng = random.Random(derive(self.pairs_seed, tree.problem.id, "pairs"))
        return [pairs[index] for index in sorted(rng.sample(range(len(pairs)), self.max_pairs))]


def _pairs(tree: Tree, min_margin: float) -> list[Pair]:
    """Every right-wrong combination at every state; equal completions with one reward count once."""
    states: dict[Request, dict[tuple[float, tuple[int, ...]], Node]] = {}
    for rollout in tree.rollouts:
        reward = None if rollout.verdict is None else rollout.verdict.reward
        if rollout.probe and reward is not None:
            node = tree.nodes[rollout.start]
            states.setdefault(node.request, {}).setdefault((reward, node.completion.token_ids), node)
    return [
        _pair(tree, good, bad, better - worse)
        for probes in states.values()
        for (better, chosen_ids), good in probes.items()
        for (worse, rejected_ids), bad in probes.items()
        if better > worse and better - worse >= min_margin and chosen_ids != rejected_ids
    ]


def _pair(tree: Tree, good: Node, bad: Node, margin: float) -> Pair:
    request, chosen = _turn(tree, good)
    return Pair(
        request=request,
        chosen=chosen,
        rejected=_turn(tree, bad)[1],
        margin=margin,
        problem_id=tree.problem.id,
        chosen_node=good.id,
        rejected_node=bad.id,
        depth=good.depth,
        tags=good.tags,
    )


def _num_tokens(pair: Pair) -> int:
    return len(pair.request.prompt_ids) + max(len(completion.token_ids) for completion in pair.completions)


def _turn(tree: Tree, node: Node) -> tuple[Request, Completion]:
    """The turn that a node ends: its request, and its whole completion in one piece."""
    request, completion = node.request, node.completion
    for before in reversed(tree.path(node.id)[:-1]):
        so_far = before.request.prompt_ids + before.completion.token_ids
        if before.role != request.role or request.choices or so_far != request.prompt_ids:
            break
        # A new turn that continues where one of the same role ended has its own limit of tokens.
        if before.request.max_tokens - len(before.completion.token_ids) != request.max_tokens:
            break
        request, completion = before.request, join(before.completion, completion)
    return request, completion
