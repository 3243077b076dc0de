"""Pairs at the first wrong step of a solution.

Step-DPO's credit (arXiv 2406.18629, section 3), with completions in place of the judge that finds the error. A step is
right as long as any completion from the state after it ends right (Math-Shepherd's hard estimate, arXiv 2312.08935),
and the first step that is not right is rejected. Chosen is the first step of every completion that ended right, from
the state before the error:

    states    q (3 of 4 right)    q s1 (1 of 4)    q s1 s2 (0 of 4)
    rollout   s1                  s2               s3, wrong              s2 is rejected; chosen: one completion's step

Invariant: chosen and rejected are single, different steps of the same request; the state before them led to a right
answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flow_dpo.core.errors import expect
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Node, Rollout, Tree
from flow_dpo.core.types import Pair, Request, TokenIds
from flow_dpo.recipes.state_values import refuse_without_probes, reward_of, state_values


@dataclass(frozen=True, kw_only=True)
class FirstErrorPairs:
    """The wrong step paired with every distinct right first step from the state before the error."""

    threshold: float = 0.0
    """A state is right if its value exceeds this; 0 asks for one right completion."""
    max_per_error: int = 0
    """Pairs per error, the earliest completions first; 0 keeps all, as the authors do."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more and below 1", lambda value: 0 <= value < 1, "threshold")
        expect(self, "of 0 or more", lambda value: value >= 0, "max_per_error")

    def refuse(self, recipe: Recipe, problems_per_batch: int) -> None:
        """Raise `ConfigError` for a recipe under which no state would have a value."""
        refuse_without_probes(recipe)

    def __call__(self, trees: Sequence[Tree]) -> list[Pair]:
        """All pairs of the trees, rollout by rollout."""
        return [pair for tree in trees for pair in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> Iterator[Pair]:
        seen: set[tuple[Request, TokenIds, TokenIds]] = set()
        for path in tree.rollouts:
            error = None if path.probe else first_error(tree, path, self.threshold)
            if error is None:
                continue
            wrong, lost = tree.nodes[error], reward_of(path) or 0.0
            found = 0
            for node, reward in _corrections(tree, wrong, max(self.threshold, lost)):
                key = (wrong.request, node.completion.token_ids, wrong.completion.token_ids)
                if key in seen or (self.max_per_error and found >= self.max_per_error):
                    continue
                seen.add(key)
                found += 1
                yield Pair(
                    request=wrong.request,
                    chosen=node.completion,
                    rejected=wrong.completion,
                    margin=reward - lost,
                    problem_id=tree.problem.id,
                    chosen_node=node.id,
                    rejected_node=wrong.id,
                    depth=wrong.depth,
                    tags=wrong.tags,
                )


def first_error(tree: Tree, path: Rollout, threshold: float = 0.0) -> int | None:
    """The node of a path's first step that leads from a right state to one that is not; None if there is no such step,
    or a value before it is not known."""
    values, reward = state_values(tree), reward_of(path)
    nodes = tree.nodes[path.start : path.leaf + 1]
    for node, after in zip(nodes, [*(values.get(one.request) for one in nodes[1:]), reward], strict=True):
        before = values.get(node.request)
        if before is None or before <= threshold or after is None:
            return None
        if after <= threshold:
            return node.id
    return None


def _corrections(tree: Tree, wrong: Node, above: float) -> Iterator[tuple[Node, float]]:
    """First steps, other than the wrong one, of the completions from the same state with a reward above `above`."""
    for rollout in tree.rollouts:
        node, reward = tree.nodes[rollout.start], reward_of(rollout)
        other = rollout.probe and node.request == wrong.request
        other = other and node.completion.token_ids != wrong.completion.token_ids
        if other and reward is not None and reward > above:
            yield node, reward
