r"""Monte-Carlo values of the states in a tree: from probes, or backed up from the leaves.

A probe is a rollout that is sampled only for the value of its first state; a state is identified by its request. In a
tree that branches instead, a node's value is the mean of its children's values, and a leaf's is its reward:

    probes from a state: right, wrong, wrong, right                  ->    value 1/2
    node a with children b (leaf, right) and c (leaves 0 1 0 1)      ->    b 1, c 1/2, a 3/4

Invariant: what was not graded enters no mean; a node without a graded rollout below it has no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Group, Siblings
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Node, Rollout, Tree
from flow_dpo.core.types import Request


def reward_of(rollout: Rollout) -> float | None:
    """A rollout's reward; None if it was not graded."""
    return None if rollout.verdict is None else rollout.verdict.reward


def refuse_without_probes(recipe: Recipe, least: int = 1, why: str = "a state gets its value from them") -> None:
    """Raise `ConfigError` for an exploration that samples fewer probes per state than its credit needs."""
    num = getattr(recipe.explore, "num_completions", least)
    if num < least:
        raise ConfigError(f"expected --explore.num_completions of {least} or more, found {num}: {why}")


def refuse_without_siblings(recipe: Recipe) -> None:
    """Raise `ConfigError` for so few rollouts per problem that no node can have a sibling to be paired with.
    Explorations other than `Siblings` and `Group` are not checked: what their fields mean is unknown."""
    explore = recipe.explore
    if isinstance(explore, Siblings):
        name, least, num = "num_alternatives", 1, explore.num_alternatives
    elif isinstance(explore, Group):
        name, least, num = "num_rollouts", 2, explore.num_rollouts
    else:
        return
    if num < least:
        raise ConfigError(
            f"expected --explore.{name} of {least} or more, found {num}: a pair needs two completions of one "
            "prompt, and a single rollout teaches nothing"
        )


def state_values(tree: Tree) -> dict[Request, float]:
    """The mean reward of the graded probes from each state. A state is identified by its request."""
    rewards: dict[Request, list[float]] = {}
    for rollout in tree.rollouts:
        reward = reward_of(rollout)
        if rollout.probe and reward is not None:
            rewards.setdefault(tree.nodes[rollout.start].request, []).append(reward)
    return {request: fmean(values) for request, values in rewards.items()}


def step_advantages(tree: Tree, path: Rollout, values: Mapping[Request, float]) -> list[tuple[Node, float]]:
    """The nodes of a path between two states of known value, each with the later value minus the earlier one. After the
    last node the path's reward stands for the value."""
    nodes = tree.nodes[path.start : path.leaf + 1]
    after = [*(values.get(node.request) for node in nodes[1:]), reward_of(path)]
    return [
        (node, later - values[node.request])
        for node, later in zip(nodes, after, strict=True)
        if later is not None and node.request in values
    ]


def backed_up_values(tree: Tree) -> dict[int, float]:
    """The value of each node by id: a leaf's is its rollout's reward, any other node's the mean of its children's."""
    values = {rollout.leaf: reward for rollout in tree.rollouts if (reward := reward_of(rollout)) is not None}
    children: dict[int, list[float]] = {}
    for node in reversed(tree.nodes):  # a child's id is greater than its parent's
        if node.id in children:
            values[node.id] = fmean(children[node.id])
        if node.id in values and node.parent is not None:
            children.setdefault(node.parent, []).append(values[node.id])
    return values
