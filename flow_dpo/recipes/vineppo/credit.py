"""Advantages of steps: the difference of the values of the states around them.

VinePPO's credit (arXiv 2410.01679, section 4). The value of a state is the mean reward of the probes from it; a step is
credited with the value after it minus the value before it. After the last step nothing can be done any more, so the
value there is 0 and the reward itself takes its place:

    values 0.5 -> 0.75 -> (end, reward 1)    advantages 0.25, 0.25

Invariant: the advantages of a path, before they are whitened, add up to its reward minus the value of the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.recipes.group_advantages import whitened
from flow_dpo.recipes.scored import scored_as_sampled
from flow_dpo.recipes.state_values import refuse_without_probes, state_values, step_advantages


@dataclass(frozen=True, kw_only=True)
class StepAdvantages:
    """Credits every step of every path with the difference of the values around it. Probes are not learned.

    A step next to a state without a graded probe, and the last step of an ungraded path, make no example.
    """

    whiten: bool = True
    """Subtract the mean of the advantages of all trees credited together and divide by their standard deviation, each
    step weighted by its tokens. Then even a step that changed nothing is learned: its score is the mean's opposite."""

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no problem can ever make an example."""
        refuse_without_probes(recipe)

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, path by path."""
        known = [(tree, state_values(tree)) for tree in trees]
        found = [
            (tree, node, advantage)
            for tree, values in known
            for path in tree.rollouts
            if not path.probe
            for node, advantage in step_advantages(tree, path, values)
        ]
        lengths = [float(len(node.completion.token_ids)) for _, node, _ in found]
        advantages = [advantage for _, _, advantage in found]
        if self.whiten:
            advantages = whitened(advantages, lengths)
        return [
            scored_as_sampled(tree, node, advantage)
            for (tree, node, _), advantage in zip(found, advantages, strict=True)
            if advantage != 0
        ]
