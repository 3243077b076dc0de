"""Advantages of steps: the difference of the values of the states around them.

VinePPO's credit (arXiv 2410.01679, section 4). The value of a state is the mean reward of the probes from it; a step is
credited with the value after it less the value before. After the last step nothing can be done any more, so the value
there is 0 and the reward itself takes its place:

    values 0.5 -> 0.75 -> (end, reward 1)    advantages 0.25, 0.25

Invariant: the advantages of a path, before they are whitened, add up to its reward less the value of the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from flow_dpo.core.tree import Node, Rollout, Tree
from flow_dpo.core.types import Request, ScoredCompletion
from flow_dpo.recipes.group_advantages import whitened


def state_values(tree: Tree) -> dict[Request, float]:
    """The mean reward of the graded probes that start in each state. A state is the request there."""
    rewards: dict[Request, list[float]] = {}
    for rollout in tree.rollouts:
        if rollout.probe and rollout.verdict is not None and rollout.verdict.reward is not None:
            rewards.setdefault(tree.nodes[rollout.start].request, []).append(rollout.verdict.reward)
    return {request: fmean(values) for request, values in rewards.items()}


@dataclass(frozen=True, kw_only=True)
class StepAdvantages:
    """Every step of every path with the difference of the values around it. The completions of probes are not learned.

    A step next to a state without a graded probe, and the last step of an ungraded path, make no example.
    """

    whiten: bool = True
    """Subtract the mean and divide by the standard deviation of the advantages of all trees handed over together, each
    step counted by its tokens. Whitened, a step that changed nothing moves too: by the mean's opposite."""

    def __call__(self, trees: Sequence[Tree]) -> list[ScoredCompletion]:
        """All examples of the trees, path by path."""
        known = [(tree, state_values(tree)) for tree in trees]
        found = [
            (tree, node, advantage)
            for tree, values in known
            for path in tree.rollouts
            if not path.probe
            for node, advantage in _of_path(tree, path, values)
        ]
        lengths = [float(len(node.completion.token_ids)) for _, node, _ in found]
        advantages = [advantage for _, _, advantage in found]
        if self.whiten:
            advantages = whitened(advantages, lengths)
        return [
            ScoredCompletion(
                request=node.request,
                completion=node.completion,
                advantage=advantage,
                problem_id=tree.problem.id,
                node=node.id,
                depth=node.depth,
                tags=node.tags,
            )
            for (tree, node, _), advantage in zip(found, advantages, strict=True)
            if advantage != 0
        ]


def _of_path(tree: Tree, path: Rollout, values: Mapping[Request, float]) -> list[tuple[Node, float]]:
    """The nodes of a path whose advantage is known, with it."""
    nodes = tree.nodes[path.start : path.leaf + 1]
    reward = None if path.verdict is None else path.verdict.reward
    after = [*(values.get(node.request) for node in nodes[1:]), reward]
    return [
        (node, later - values[node.request])
        for node, later in zip(nodes, after, strict=True)
        if later is not None and node.request in values
    ]
