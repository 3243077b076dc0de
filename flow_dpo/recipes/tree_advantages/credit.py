r"""Advantages of segments: from the values around them, against their siblings, or from all leaves below.

Three credits of trees whose rewards are 1 and 0. A tree has two segments a and b from the beginning; one child of a
ends right and the other wrong, and both children of b end wrong:

    values        a 1/2, b 0, the beginning 1/4
    siblings      a 1/2 - 1/4, b 0 - 1/4, a's children 1 - 1/2 and 0 - 1/2; b's tie
    leaves        rewards minus the mean of the other three: 1, -1/3, -1/3, -1/3; their means at a 1/3 and at b -1/3

Invariant: what was not graded, and what taught nothing, makes no example; probes are never learned.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.seeds import derive
from flow_dpo.core.tree import Node, Rollout, Tree
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.recipes.group_advantages import whitened
from flow_dpo.recipes.policy_gradient import num_learned
from flow_dpo.recipes.scored import scored_as_sampled
from flow_dpo.recipes.state_values import (
    backed_up_values,
    refuse_without_probes,
    reward_of,
    state_values,
    step_advantages,
)

_NONE = 1e-8
"""Differences of float sums that should be equal are below this."""
Found = tuple[Tree, Node, float]
"""A tree, and one of its nodes with its advantage."""


@dataclass(frozen=True, kw_only=True)
class SegmentAdvantages:
    """Credits every segment of every path with the difference of the values around it, like VinePPO's steps (SPO-chain,
    arXiv 2505.23564). Weights add up to the number of paths, so an objective that sums over a segment's tokens has the
    magnitude of one that sums over an answer's."""

    mask_above: float = 0.9
    """As `objective.mask_above`: tokens of at least this probability are not learned, and count in no mean."""
    whiten: bool = True
    """Subtract the mean of the advantages of all trees credited together and divide by their standard deviation,
    weighted by tokens."""

    def __post_init__(self) -> None:
        expect(self, "from 0 to 1", lambda value: 0 <= value <= 1, "mask_above")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no problem can make an example, or with two different masks."""
        _refuse_two_masks(self.mask_above, recipe)
        refuse_without_probes(recipe)

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, path by path."""
        known = [(tree, state_values(tree)) for tree in trees]
        paths = [(tree, path, values) for tree, values in known for path in tree.rollouts if not path.probe]
        found = [
            (tree, node, advantage)
            for tree, path, values in paths
            for node, advantage in step_advantages(tree, path, values)
        ]
        return _scored(found, mask_above=self.mask_above, whiten=self.whiten, total_weight=len(paths))


@dataclass(frozen=True, kw_only=True)
class SiblingAdvantages:
    """Credits every segment with its value minus the mean of its siblings' and its own. A node without siblings, such
    as the next turn after the last branching, has its predecessor's advantage. SPO-tree (arXiv 2505.23564) whitens
    these and weights them by tokens; TreeRPO (arXiv 2506.05183) divides them as GRPO does, group by group."""

    scale: Literal["none", "deviation", "binary"] = "none"
    """What advantages are divided by: "none", nothing; "deviation", the group's standard deviation; "binary", that of
    right and wrong at the group's mean, sqrt(mean (1 - mean)), which does not blow up small differences of values."""
    whiten: bool = True
    """Turn all advantages into standard scores, weighted by tokens, as for `SegmentAdvantages`."""
    by_tokens: bool = True
    """Weight segments by their learned tokens, mean 1: the mean loss is that over all tokens. If off, each weighs 1."""
    mask_above: float = 0.9
    """As `objective.mask_above`: tokens of at least this probability are not learned; 0 masks none."""
    max_per_problem: int = 32
    """Segments learned per problem, drawn at random; SPO-tree's is 32. 0 keeps all."""
    draw_seed: int = 0
    """Seed of that draw."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "max_per_problem")
        expect(self, "from 0 to 1", lambda value: 0 <= value <= 1, "mask_above")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no problem can make an example, or with two different masks."""
        _refuse_two_masks(self.mask_above, recipe)
        factors = getattr(recipe.explore, "branch_factors", None)
        if factors is not None and max(factors) < 2:
            raise ConfigError(f"expected a branch_factors entry of 2 or more, found {factors}: siblings are compared")

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, in the order of their nodes."""
        found = [one for tree in trees for one in self._kept(tree, self._of_tree(tree))]
        return _scored(
            found, mask_above=self.mask_above, whiten=self.whiten, total_weight=len(found) if self.by_tokens else None
        )

    def _of_tree(self, tree: Tree) -> list[Found]:
        values, groups = backed_up_values(tree), dict[int | None, list[int]]()
        for id in sorted(values):
            groups.setdefault(tree.nodes[id].parent, []).append(id)
        advantages: dict[int, float] = {}
        for parent, group in groups.items():  # a parent's group comes before its children's
            if len(group) == 1:
                advantages[group[0]] = advantages.get(parent, 0.0) if parent is not None else 0.0
                continue
            mean = fmean(values[id] for id in group)
            spread = self._scale([values[id] for id in group], mean)
            advantages |= {id: (values[id] - mean) / spread if spread > _NONE else 0.0 for id in group}
        return [(tree, tree.nodes[id], value) for id, value in sorted(advantages.items()) if abs(value) > _NONE]

    def _scale(self, values: Sequence[float], mean: float) -> float:
        if self.scale == "none":
            return 1.0
        return pstdev(values) if self.scale == "deviation" else math.sqrt(max(mean * (1 - mean), 0.0))

    def _kept(self, tree: Tree, found: list[Found]) -> list[Found]:
        if not self.max_per_problem or len(found) <= self.max_per_problem:
            return found
        rng = random.Random(derive(self.draw_seed, tree.problem.id, "segments"))
        return [found[index] for index in sorted(rng.sample(range(len(found)), self.max_per_problem))]


@dataclass(frozen=True, kw_only=True)
class LeafAdvantages:
    """TreeRL's credit (arXiv 2506.11902, as in the authors' code, THUDM/TreeRL at f0edbea, `tree_node.py` and
    `gather_paths` in `parallel_mcts.py`). A leaf's reward minus the mean of all others is averaged over the leaves
    below each node. Divided by the square root of the number of chosen leaves below it, this is the node's value v, and

        advantage = v + (v - v of its parent)        global, against the beginning, whose v is 0, and local

    Every chosen leaf is a sequence whose tokens count equally and add up to 1, so a node that several sequences share
    counts as often as there are sequences.
    """

    num_paths: int = 16
    """Leaves per problem whose paths are learned, a right one among them if there is any; TreeRL's is 16. 0 keeps all.
    Values are over all leaves."""
    draw_seed: int = 0
    """Seed of that draw."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "num_paths")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no problem can ever make an example."""
        explore = recipe.explore
        forks = [getattr(explore, name, 0) for name in ("fork_rounds", "num_forks", "num_completions")]
        if getattr(explore, "num_rollouts", 2) < 2 and not all(forks):
            raise ConfigError("expected --num_rollouts of 2 or more, found 1 without forks: leaves are compared")

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, in the order of their nodes. The mean weight is 1."""
        found = [one for tree in trees for one in self._of_tree(tree)]
        mean = math.fsum(weight for _, _, _, weight in found) / max(len(found), 1)
        return [scored_as_sampled(tree, node, advantage, weight / mean) for tree, node, advantage, weight in found]

    def _of_tree(self, tree: Tree) -> list[tuple[Tree, Node, float, float]]:
        leaves = [(one, reward) for one in tree.rollouts if not one.probe and (reward := reward_of(one)) is not None]
        rewards = [reward for _, reward in leaves]
        if len(set(rewards)) < 2:
            return []
        chosen, total = self._chosen(tree, [rollout for rollout, _ in leaves]), math.fsum(rewards)
        sums, below = dict[int, float](), dict[int, int]()
        num_chosen, shares = dict[int, int](), dict[int, float]()
        for rollout, reward in leaves:
            path = tree.path(rollout.leaf)
            length = sum(len(node.completion.token_ids) for node in path)
            for node in path:
                sums[node.id] = sums.get(node.id, 0.0) + reward - (total - reward) / (len(leaves) - 1)
                below[node.id] = below.get(node.id, 0) + 1
                if rollout.id in chosen:
                    num_chosen[node.id] = num_chosen.get(node.id, 0) + 1
                    shares[node.id] = shares.get(node.id, 0.0) + len(node.completion.token_ids) / length
        values = {id: sums[id] / below[id] / math.sqrt(num) for id, num in num_chosen.items()}
        local: dict[int | None, float] = {}
        for id in sorted(values):
            parent = tree.nodes[id].parent
            local[id] = values[id] - (0.0 if parent is None else values[parent])
            if abs(local[id]) < _NONE and parent is not None:
                local[id] = local[parent]  # as in the authors' code: what decided nothing has its parent's local term
        return [
            (tree, tree.nodes[id], values[id] + local[id], shares[id])
            for id in sorted(values)
            if abs(values[id] + local[id]) > _NONE
        ]

    def _chosen(self, tree: Tree, leaves: Sequence[Rollout]) -> set[int]:
        rng = random.Random(derive(self.draw_seed, tree.problem.id, "leaves"))
        drawn = rng.sample(leaves, len(leaves))
        right = [one for one in drawn if one.verdict is not None and one.verdict.right][:1]
        kept = right + [one for one in drawn if one not in right]
        return {one.id for one in kept[: self.num_paths or None]}


def _refuse_two_masks(mask_above: float, recipe: Recipe) -> None:
    found = getattr(recipe.objective, "mask_above", mask_above)
    if found != mask_above:
        raise ConfigError(
            f"expected one mask, found --credit.mask_above {mask_above} and --objective.mask_above {found}: the "
            "credit's weights and means must be of the tokens that the objective learns"
        )


def _scored(
    found: Iterable[Found], *, mask_above: float, whiten: bool, total_weight: float | None
) -> list[ScoredCompletion]:
    """Examples of the nodes with any learned token. Their weights are proportional to learned tokens and add up to
    `total_weight`; if that is None, each weighs 1."""
    counted = [
        (tree, node, advantage, float(num))
        for tree, node, advantage in found
        if (num := num_learned(node.completion, mask_above))
    ]
    lengths = [num for _, _, _, num in counted]
    advantages = [advantage for _, _, advantage, _ in counted]
    if whiten:
        advantages = whitened(advantages, lengths)
    unit = 0.0 if total_weight is None else total_weight / max(math.fsum(lengths), 1.0)
    return [
        scored_as_sampled(tree, node, advantage, num * unit if unit else 1.0)
        for (tree, node, _, num), advantage in zip(counted, advantages, strict=True)
        if advantage != 0
    ]
