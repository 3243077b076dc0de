"""Pairs of siblings ranked by their value in a search, optionally after completions to fine-tune on.

Critical Plan Step Learning's credit (arXiv 2409.08642; the authors' gen_data/gen_policy_model_round*_apo_data.py). The
value Q of a node is the mean of what the search added to it. Among the children of a node, plan steps make all pairs of
a value above 0 and one below it, with the difference as the margin. Solutions make one pair, the highest against the
lowest, and their values count 0.3:

    plan steps a (values 1, 1, -1), b (-1), c (1, -1)    Q 1/3, -1, 0    ->    Pair(a, b, margin=4/3)
    solutions x (1), y (1), z (-1)                       Q 1, 1, -1      ->    Pair(x, z, margin=0.6)

The paper proceeds in rounds: search with the current policy, fine-tune on what was right, then learn which steps were
better. With `fine_tune`, right rollouts come first, up to 4 per problem, and then the pairs.

A role that predicts the value of a state (`valued_by`) learns from the finished search. Of its two words the one that
should be likelier is scored, with the probability that it should have, (1 + |Q|) / 2, as the advantage:

    "q"    every state that was valued on the way to a solution: its Q (the authors' value head)
    "end"  every state on the trunk: 1 or -1, how the trunk ended

Invariants: nothing is visited twice in a tree, so values are means over its rollouts. A rollout without a solution (a
plan that is too long, a solution without an answer) counts -1 for the nodes above it, and is in no pair. Everything to
fine-tune on precedes the first pair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Literal

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Example, Pair, Role, ScoredCompletion
from flow_dpo.recipes.cpl.flow import VALUE, PlanSolve
from flow_dpo.recipes.scored import distinct_correct, scored_as_sampled, scored_word
from flow_dpo.verify.extract import NO_ANSWER


def node_values(tree: Tree) -> dict[int, float]:
    """The mean value of the rollouts through each node, by node id; nodes without such a rollout are left out.

    A rollout's value is its reward, as 1 or -1; if it stopped before its end, it is the value of the state where it
    stopped. Probes are rollouts, too.
    """
    found: dict[int, list[float]] = {}
    for rollout in tree.rollouts:
        reward = None if rollout.verdict is None else rollout.verdict.reward
        value = rollout.value if reward is None else 2 * reward - 1
        if value is not None:
            for node in tree.path(rollout.leaf):
                found.setdefault(node.id, []).append(value)
    return {node: fmean(values) for node, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class ValuePairs:
    """Pairs of siblings, one with a value above the threshold and one with a value below its negative."""

    threshold: float = 0.0
    """How far from 0 a value must be to be in a pair; the paper's is 0."""
    solution_pairs: Literal["plan", "problem", "all"] = "plan"
    """Which solutions are paired: "plan", one pair per plan (the authors' code); "problem", only the first pair of a
    problem; "all", every right solution with every wrong one."""
    solution_scale: float = 0.3
    """Factor of a solution's value in its margin; the authors' is 0.3, which makes a margin of 0.6."""
    fine_tune: bool = False
    """Put the completions of right rollouts first, to be fine-tuned on."""
    max_per_problem: int = 4
    """Right rollouts per problem that are fine-tuned on, drawn at random; the authors' is 4. 0 keeps all."""
    valued_by: Role = ""
    """The role of the flow that predicts the value of states by choosing between two words; empty for none."""
    value_targets: Literal["q", "end"] = "q"
    """What that role learns: "q", each state's value in the search; "end", how the trunk ended."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more and below 1", lambda value: 0 <= value < 1, "threshold")
        expect(self, "of 0 or more", lambda value: value >= 0, "max_per_problem")
        expect(self, "above 0 and at most 1", lambda value: 0 < value <= 1, "solution_scale")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for rounds without fine-tuning, and for a value role that writes instead of choosing."""
        if getattr(recipe.objective, "rounds", False) and not self.fine_tune:
            raise ConfigError(
                "expected --credit.fine_tune with --objective.rounds, found none: a round fine-tunes from the first "
                "adapters before its pairs are learned; add it, or leave out the rounds"
            )
        for by in filter(None, (getattr(recipe.explore, "valued_by", ""), self.valued_by)):
            if isinstance(recipe.flow, PlanSolve) and by != VALUE:  # of other flows it is unknown which role chooses
                raise ConfigError(
                    f"expected valued_by to name the role that chooses between two words, {VALUE!r}, found {by!r}, "
                    "which writes"
                )

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """The value role's targets, then what is fine-tuned on, then all pairs; each tree by tree."""
        values = [target for tree in trees for target in self._targets(tree)] if self.valued_by else []
        correct = [example for tree in trees for example in self._correct(tree)] if self.fine_tune else []
        return [*values, *correct, *(pair for tree in trees for pair in self._pairs(tree))]

    def _pairs(self, tree: Tree) -> list[Pair]:
        values, without = node_values(tree), _without_solution(tree)
        solutions = {rollout.leaf for rollout in tree.rollouts if rollout.value is None}
        families: dict[int | None, list[Node]] = {}
        for node in tree.nodes:
            if node.id in values and node.id not in without and not tree.rollout_of(node).probe:
                families.setdefault(node.parent, []).append(node)
        found: list[Pair] = []
        paired = False
        for family in families.values():
            # 1. Plan steps: a family holds either these or solutions.
            plans = [node for node in family if node.id not in solutions]
            found += self._all(tree, plans, values, scale=1.0)
            # 2. Solutions: one pair, the first with the highest value and the first with the lowest.
            ends = [node for node in family if node.id in solutions]
            if self.solution_pairs != "all" and ends:
                key = lambda node: values[node.id]  # noqa: E731
                ends = [] if paired and self.solution_pairs == "problem" else [max(ends, key=key), min(ends, key=key)]
            pairs = self._all(tree, ends, values, scale=self.solution_scale)
            paired = paired or bool(pairs)
            found += pairs
        return found

    def _all(self, tree: Tree, family: Sequence[Node], values: dict[int, float], *, scale: float) -> list[Pair]:
        """Every node above the threshold paired with every node below its negative."""
        return [
            Pair(
                request=good.request,
                chosen=good.completion,
                rejected=bad.completion,
                margin=scale * (values[good.id] - values[bad.id]),
                problem_id=tree.problem.id,
                chosen_node=good.id,
                rejected_node=bad.id,
                depth=good.depth,
                tags=good.tags,
            )
            for good, bad in product(family, family)
            if values[good.id] > self.threshold
            and values[bad.id] < -self.threshold
            and good.completion.token_ids != bad.completion.token_ids
        ]

    def _correct(self, tree: Tree) -> list[ScoredCompletion]:
        """The completions of right rollouts, without the value role's; a node that two share is one example."""
        kept = [rollout for rollout in distinct_correct(tree) if not rollout.probe]
        if self.max_per_problem and len(kept) > self.max_per_problem:
            rng = random.Random(derive(0, tree.problem.id, "fine_tune"))
            kept = [kept[i] for i in sorted(rng.sample(range(len(kept)), self.max_per_problem))]
        nodes = dict.fromkeys(node.id for rollout in kept for node in tree.path(rollout.leaf))
        return [scored_as_sampled(tree, tree.nodes[i]) for i in nodes if tree.nodes[i].role != self.valued_by]

    def _targets(self, tree: Tree) -> list[ScoredCompletion]:
        """The targets of the value role; with "end" none if the trunk could not be graded."""
        if self.value_targets == "end":
            right = None if tree.trunk.verdict is None else tree.trunk.verdict.right
            found = [] if right is None else [(node, 2 * right - 1) for node in tree.trunk_nodes()]
        else:
            values, without = node_values(tree), _without_solution(tree)
            solved = [
                rollout.leaf for rollout in tree.rollouts if rollout.value is None and rollout.leaf not in without
            ]
            on_the_way = dict.fromkeys(node.id for leaf in solved for node in tree.path(leaf))
            found = [(tree.nodes[i], values[i]) for i in on_the_way if i in values]
        return [
            replace(scored_word(tree, node, 0 if value >= 0 else 1), advantage=(1 + abs(value)) / 2)
            for node, value in found
            if node.role == self.valued_by
        ]


def _without_solution(tree: Tree) -> set[int]:
    """The leaves of rollouts that came to an end without an answer."""
    return {
        rollout.leaf
        for rollout in tree.rollouts
        if rollout.value is None
        and (not rollout.solution.pieces or (rollout.verdict is not None and rollout.verdict.reason == NO_ANSWER))
    }
