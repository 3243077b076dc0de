"""How does the role that says what a state is worth learn to say it?

From the trunk's end alone: of every state that it spoke of on the trunk, it should have said its first word where the
trunk was right, and its second where it was wrong:

    plan  Value "Yes"  plan  Value "No"  answer, right    ->    Yes at both states, each with advantage 1

which under `Likelihood` is the cross-entropy against how plays from there end, since the trunk is a plain draw from the
flow. Other plays of a search were chosen by what was said, and most of them stop before their end: those that reach one
lean to short solutions. The paper of Critical Plan Step Learning trains a value head instead (arXiv 2409.08642).

Invariant: what was said of a state is never a target, so that a value is not learned from itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Completion, Example, Role, ScoredCompletion
from flow_dpo.recipes.cpl.value_pairs import ValuePairs


@dataclass(frozen=True, kw_only=True)
class ValuesThenPairs:
    """What the values should have been, and behind them pairs of siblings by value."""

    valued_by: Role = "value"
    """The role that speaks of states, by a choice of two words."""
    pairs: ValuePairs = field(default_factory=ValuePairs)

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All that the role should have said, then all pairs."""
        return [*(example for tree in trees for example in self._of_tree(tree)), *self.pairs(trees)]

    def _of_tree(self, tree: Tree) -> list[ScoredCompletion]:
        reward = None if tree.trunk.verdict is None else tree.trunk.verdict.reward
        if reward is None:
            return []
        return [
            ScoredCompletion(
                request=node.request,
                completion=_word(node, 0 if reward else 1),
                advantage=1.0,
                problem_id=tree.problem.id,
                node=node.id,
                depth=node.depth,
                tags=node.tags,
            )
            for node in tree.trunk_nodes()
            if node.role == self.valued_by
        ]


def _word(node: Node, choice: int) -> Completion:
    """The role's completion as if it had chosen this word. What was drawn keeps the log-probability that it was drawn
    with; of the other, the unscaled one stands in."""
    said = node.completion
    if choice == said.choice:
        return said
    logprob = (said.choice_logprobs[choice],)
    return replace(
        said,
        token_ids=(node.request.choices[choice],),
        logprobs=logprob,
        sampled_logprobs=logprob,
        choice=choice,
    )
