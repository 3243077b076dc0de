"""How does the role that says what a state is worth learn to say it?

From ends alone. At every state of which it spoke and from which a play went on to an end, its first word is to be as
likely as plays from there were right, and its second as likely as they were wrong:

    Value at a state from which three plays ended, two of them right    ->    Yes with advantage 2/3, No with 1/3

which under `Likelihood` is the cross-entropy against that share. The paper of Critical Plan Step Learning trains a
value head instead (arXiv 2409.08642).

Invariant: what was said of a state is never a target, so that a value is not learned from itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from flow_dpo.credit.value_pairs import ValuePairs, node_values
from flow_dpo.flows.plan_solve import VALUE
from flow_dpo.tree import Node, Tree
from flow_dpo.types import Completion, Example, Scored


@dataclass(frozen=True, kw_only=True)
class ValuesThenPairs:
    """What the values should have been, and behind them pairs of siblings by value."""

    valued_by: str = VALUE
    """The role that speaks of states, by a choice of two words."""
    pairs: ValuePairs = field(default_factory=ValuePairs)

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All that the role should have said, then all pairs."""
        return [*(example for tree in trees for example in self._of_tree(tree)), *self.pairs(trees)]

    def _of_tree(self, tree: Tree) -> list[Scored]:
        ends = node_values(tree, ends_only=True)
        spoke = [node for node in tree.nodes if node.role == self.valued_by and node.id in ends]
        return [example for node in spoke for example in _words(tree, node, (ends[node.id] + 1) / 2)]


def _words(tree: Tree, node: Node, share: float) -> list[Scored]:
    """Both words, each with the share of plays for which it would have been right; one that never was is left out."""
    return [
        Scored(
            request=node.request,
            completion=_word(node, choice),
            advantage=advantage,
            problem_id=tree.problem.id,
            node=node.id,
            depth=node.depth,
            tags=node.tags,
        )
        for choice, advantage in enumerate((share, 1 - share))
        if advantage > 0
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
