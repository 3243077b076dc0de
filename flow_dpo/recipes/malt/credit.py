"""Examples for every role, by the value of what the role wrote, backed up from the final answers.

MALT's credit (arXiv 2412.01928): in a full tree of turns a final answer's value is its reward, and any other turn's is
the mean of the turns right after it (section 4.2). A turn above a threshold is good, any other bad. Good turns are
learned by their likelihood, and each is preferred to every bad one that answered the same request (section 4.3):

    generate a       verify b  3 refinements, right right wrong    2/3, good
      5/9, good      verify c                 wrong wrong right    1/3, bad      b is preferred to c
                     verify d                 right right wrong    2/3, good     and d is

Invariant: a role's examples are its own turns; equal completions of one request are one, with the mean of their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from flow_dpo.core.errors import ConfigError, expect
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Example, Pair, Request, Role, TokenIds
from flow_dpo.recipes.scored import scored_as_sampled
from flow_dpo.recipes.state_values import backed_up_values


@dataclass(frozen=True, kw_only=True)
class ThresholdedValues:
    """Likelihood of good turns, and pairs of a good and a bad one."""

    threshold: float = 0.5
    """A turn whose value is above this is good, any other is bad; the paper's is 0.5."""
    sft_roles: tuple[Role, ...] = ("generate", "verify", "refine")
    """Roles that learn their good turns by likelihood."""
    pair_roles: tuple[Role, ...] = ("verify", "refine")
    """Roles that learn from pairs; in the paper the generating role is only fine-tuned, because pairs made it worse."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more and below 1", lambda value: 0 <= value < 1, "threshold")
        if not self.sft_roles and not self.pair_roles:
            raise ConfigError("expected a role in sft_roles or in pair_roles, found none: nothing would be learned")
        expect(self, "to be different roles", lambda value: len(set(value)) == len(value), "sft_roles", "pair_roles")

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All examples, tree by tree: scored completions, then pairs."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[Example]:
        values, families = backed_up_values(tree), dict[Request, dict[TokenIds, list[Node]]]()
        for id in sorted(values):
            node = tree.nodes[id]
            families.setdefault(node.request, {}).setdefault(node.completion.token_ids, []).append(node)
        scored, pairs = list[Example](), list[Example]()
        for request, family in families.items():
            known = [(nodes[0], fmean(values[node.id] for node in nodes)) for nodes in family.values()]
            good = [(node, value) for node, value in known if value > self.threshold]
            if request.role in self.sft_roles:
                scored += [scored_as_sampled(tree, node) for node, _ in good]
            if request.role in self.pair_roles:
                bad = [(node, value) for node, value in known if value <= self.threshold]
                pairs += [_pair(tree, better, worse, v - w) for better, v in good for worse, w in bad]
        return [*scored, *pairs]


def _pair(tree: Tree, good: Node, bad: Node, margin: float) -> Pair:
    return Pair(
        request=good.request,
        chosen=good.completion,
        rejected=bad.completion,
        margin=margin,
        problem_id=tree.problem.id,
        chosen_node=good.id,
        rejected_node=bad.id,
        depth=good.depth,
        tags=good.tags,
    )
