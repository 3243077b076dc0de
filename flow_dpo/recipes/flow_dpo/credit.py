"""Credits for attempts: Answer learns from pairs ranked by their attempts' own verdicts, Stop from every verdict.

An attempt's verdict is that of the rollout in which Stop accepted it. For a tree of two attempts, the first of which is
wrong and refused, with an alternative to its second chunk that came out right:

    Pair          answer at the second chunk: the alternative is preferred to the trunk's
    scored words  stop "No" at the first attempt, "Yes" at the alternative and at the trunk's end

Invariant: an attempt that could not be graded makes no example; one that was cut is wrong, and Stop never saw it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from flow_dpo.core.answer_stop import STOP
from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.errors import FlowError, expect
from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Example, Pair, ScoredCompletion, TokenIds, Verdict
from flow_dpo.recipes.flow_dpo.judgement import Evidence
from flow_dpo.recipes.scored import scored_word

_CUT = Verdict(status="wrong", reason="the attempt was cut before its end")


@dataclass(frozen=True, kw_only=True)
class AttemptCredit:
    """Pairs of Answer's chunks, ranked by the rewards of their own attempts, and Stop's words from the verdicts."""

    min_margin: float = 0.0
    """Smallest difference of two rewards that makes a pair (not stated in the paper, whose rewards are 1 and 0). Equal
    rewards never make a pair."""
    verdict_weight: float = 1.0
    """Weight of Stop's scored words; 0 leaves them out."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "verdict_weight")

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All examples of the trees, tree by tree: pairs, then words."""
        examples: list[Example] = []
        for tree in trees:
            examples += [*_attempt_pairs(tree, self.min_margin), *verdict_words(tree, self.verdict_weight)]
        return examples


@dataclass(frozen=True, kw_only=True)
class OutcomePairsAndVerdicts:
    """Pairs of siblings ranked by their rollouts' outcomes, as in the paper, plus Stop's words from the verdicts."""

    pairs: OutcomePairs = field(default_factory=OutcomePairs)
    """How pairs are made; with `roles` `("answer",)` Stop learns only from its verdicts."""
    verdict_weight: float = 1.0
    """Weight of Stop's scored words; 0 leaves them out."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "verdict_weight")

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All examples of the trees: pairs, then words."""
        words = [word for tree in trees for word in verdict_words(tree, self.verdict_weight)]
        return [*self.pairs(trees), *words]


def verdict_words(tree: Tree, weight: float) -> list[ScoredCompletion]:
    """Stop's right word for each candidate that a rollout of the tree ended with, once each."""
    if not weight:
        return []
    found: dict[TokenIds, ScoredCompletion] = {}
    for rollout in tree.rollouts:
        leaf = tree.nodes[rollout.leaf]
        right = None if rollout.verdict is None else rollout.verdict.right
        if right is None or leaf.role != STOP or leaf.completion.choice != 0 or "finished" not in leaf.tags:
            continue
        word = scored_word(tree, leaf, 0 if right else 1)
        found.setdefault(leaf.request.prompt_ids, replace(word, weight=weight))
    return list(found.values())


def _attempt_pairs(tree: Tree, min_margin: float) -> Iterator[Pair]:
    """Each alternative paired with the trunk's chunk, if their attempts differ in reward."""
    verdicts = attempt_verdicts(tree)
    for node in tree.trunk_nodes():
        own = verdicts[node.tags[-1]]
        if node.role == STOP or own is None or own.reward is None:
            continue
        for other in tree.children(node.parent):
            verdict = None if other.rollout == node.rollout else _own_verdict(tree, other)
            # Independent draws can be equal; what was drawn as an alternative never is.
            if other.completion.token_ids == node.completion.token_ids or verdict is None:
                continue
            # If reward functions grade, an attempt that was cut has no reward to compare with theirs.
            if verdict.reward is None or (verdict.value is None) != (own.value is None):
                continue
            margin = own.reward - verdict.reward
            if margin == 0 or abs(margin) < min_margin:
                continue
            chosen, rejected = ((node, own), (other, verdict))[:: 1 if margin > 0 else -1]
            yield Pair(
                request=node.request,
                chosen=chosen[0].completion,
                rejected=rejected[0].completion,
                margin=abs(margin),
                problem_id=tree.problem.id,
                chosen_node=chosen[0].id,
                rejected_node=rejected[0].id,
                depth=node.depth,
                tags=node.tags,
                verdicts=(chosen[1], rejected[1]),
            )


def attempt_verdicts(tree: Tree) -> dict[str, Verdict | None]:
    """The verdict on each of the trunk's attempts, by tag and in order: wrong if it was cut, None if no rollout tells.
    If the trunk was sampled alone, a refused attempt has no verdict."""
    verdicts: dict[str, Verdict | None] = {}
    for node in tree.trunk_nodes():
        if not node.tags:
            raise FlowError(
                f"AttemptCredit expects trees of the flow Attempts, found a turn of {node.role!r} outside any attempt; "
                "credit other flows with OutcomePairsAndVerdicts"
            )
        verdicts.setdefault(node.tags[-1], _CUT)
        if node.role == STOP:
            accepted = [one for one in tree.children(node.parent) if one.completion.choice == 0]
            verdicts[node.tags[-1]] = _own_verdict(tree, accepted[0]) if accepted else None
    return verdicts


def _own_verdict(tree: Tree, node: Node) -> Verdict | None:
    """The verdict on the attempt in which a rollout starts at this node: wrong if it was cut; the rollout's, if the
    rollout ended with it, accepted; None if the rollout continued with other attempts, whose verdict it has."""
    rollout = tree.rollout_of(node)
    leaf = tree.nodes[rollout.leaf]
    if leaf.tags[-1] != node.tags[-1]:
        return None
    if leaf.role != STOP:
        return _CUT if rollout.verdict is None else replace(_CUT, value=rollout.verdict.value)
    return rollout.verdict if leaf.completion.choice == 0 else None


def attempt_evidence(tree: Tree) -> Iterator[Evidence]:
    """What was known of each judged attempt of the trunk that could be graded, with its verdict."""
    before: bool | None = None
    for tag, verdict in attempt_verdicts(tree).items():
        right = None if verdict is None else verdict.right
        nodes = [node for node in tree.trunk_nodes() if node.tags[-1] == tag]
        logprobs = [value for node in nodes if node.role != STOP for value in node.completion.logprobs]
        if nodes[-1].role == STOP and right is not None:
            yes, no = nodes[-1].completion.choice_logprobs
            mean = math.fsum(logprobs) / len(logprobs)
            yield Evidence(log_odds=yes - no, mean_logprob=mean, right=right == 1.0, after=before)
        before = None if right is None else right == 1.0
