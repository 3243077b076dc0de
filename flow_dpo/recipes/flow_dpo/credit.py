"""Credits of attempts: Answer learns by pairs of attempts' own verdicts, Stop by every verdict.

An attempt's verdict is that of the rollout in which Stop accepted it. Of a tree of two attempts, the first wrong and
refused, with an alternative to its second chunk that came out right:

    Pair          answer at the second chunk: the alternative before the trunk's
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
from flow_dpo.core.types import Example, Pair, ScoredCompletion, TokenIds
from flow_dpo.recipes.flow_dpo.judgement import Evidence
from flow_dpo.recipes.scored import scored_word


@dataclass(frozen=True, kw_only=True)
class AttemptCredit:
    """Pairs of Answer's chunks by the verdicts of their own attempts, and Stop's words by the verdicts."""

    verdict_weight: float = 1.0
    """Weight of Stop's words; 0 leaves them out."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "verdict_weight")

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All examples of the trees, tree by tree: pairs, then words."""
        examples: list[Example] = []
        for tree in trees:
            examples += [*_attempt_pairs(tree), *verdict_words(tree, self.verdict_weight)]
        return examples


@dataclass(frozen=True, kw_only=True)
class OutcomePairsAndVerdicts:
    """Pairs by what siblings' rollouts came to, as in the paper, and Stop's words by verdicts beside them."""

    pairs: OutcomePairs = field(default_factory=OutcomePairs)
    """Which roles learn by pairs; `("answer",)` leaves Stop to its verdicts."""
    verdict_weight: float = 1.0
    """Weight of Stop's words; 0 leaves them out."""

    def __post_init__(self) -> None:
        expect(self, "of 0 or more", lambda value: value >= 0, "verdict_weight")

    def __call__(self, trees: Sequence[Tree]) -> list[Example]:
        """All examples of the trees: pairs, then words."""
        words = [word for tree in trees for word in verdict_words(tree, self.verdict_weight)]
        return [*self.pairs(trees), *words]


def verdict_words(tree: Tree, weight: float) -> list[ScoredCompletion]:
    """What Stop should have said of each candidate that a rollout of the tree ended with, once each."""
    if not weight:
        return []
    found: dict[TokenIds, ScoredCompletion] = {}
    for rollout in tree.rollouts:
        leaf = tree.nodes[rollout.leaf]
        reward = None if rollout.verdict is None else rollout.verdict.reward
        if reward is None or leaf.role != STOP or leaf.completion.choice != 0 or "finished" not in leaf.tags:
            continue
        word = scored_word(tree, leaf, 0 if reward else 1)
        found.setdefault(leaf.request.prompt_ids, replace(word, weight=weight))
    return list(found.values())


def _attempt_pairs(tree: Tree) -> Iterator[Pair]:
    """Each alternative against the trunk's chunk, where the two attempts differ in correctness."""
    rewards = attempt_rewards(tree)
    for node in tree.trunk_nodes():
        own = rewards[node.tags[-1]]
        if node.role == STOP or own is None:
            continue
        for other in tree.children(node.parent):
            reward = None if other.rollout == node.rollout else _own_reward(tree, other)
            # Independent draws may be equal; what was drawn as an alternative never is.
            if reward is None or reward == own or other.completion.token_ids == node.completion.token_ids:
                continue
            chosen, rejected = (node, other) if own else (other, node)
            yield Pair(
                request=node.request,
                chosen=chosen.completion,
                rejected=rejected.completion,
                margin=1.0,
                problem_id=tree.problem.id,
                chosen_node=chosen.id,
                rejected_node=rejected.id,
                depth=node.depth,
                tags=node.tags,
            )


def attempt_rewards(tree: Tree) -> dict[str, float | None]:
    """The reward of each of the trunk's attempts by its tag, in order; 0 where it was cut, None where ungraded."""
    rewards: dict[str, float | None] = {}
    for node in tree.trunk_nodes():
        if not node.tags:
            raise FlowError(
                f"AttemptCredit expects trees of the flow Attempts, found a turn of {node.role!r} of no attempt; "
                "credit other flows with OutcomePairsAndVerdicts"
            )
        rewards.setdefault(node.tags[-1], 0.0)
        if node.role == STOP:
            # None too where nothing tells: the trunk was sampled alone, so that a refused attempt has no verdict.
            accepted = [one for one in tree.children(node.parent) if one.completion.choice == 0]
            rewards[node.tags[-1]] = _own_reward(tree, accepted[0]) if accepted else None
    return rewards


def _own_reward(tree: Tree, node: Node) -> float | None:
    """The reward of the attempt in which a rollout starts at this node: 0 where it was cut, its verdict's where the
    rollout ended with it, accepted; None where the rollout went on to other attempts, so that its verdict is theirs."""
    rollout = tree.rollout_of(node)
    leaf = tree.nodes[rollout.leaf]
    if leaf.tags[-1] != node.tags[-1]:
        return None
    if leaf.role != STOP:
        return 0.0
    return None if leaf.completion.choice != 0 or rollout.verdict is None else rollout.verdict.reward


def attempt_evidence(tree: Tree) -> Iterator[Evidence]:
    """What was known of each judged attempt of the trunk that could be graded, and its verdict."""
    rewards, before = attempt_rewards(tree), None
    for tag, reward in rewards.items():
        nodes = [node for node in tree.trunk_nodes() if node.tags[-1] == tag]
        logprobs = [value for node in nodes if node.role != STOP for value in node.completion.logprobs]
        if nodes[-1].role == STOP and reward is not None:
            yes, no = nodes[-1].completion.choice_logprobs
            mean = math.fsum(logprobs) / len(logprobs)
            yield Evidence(log_odds=yes - no, mean_logprob=mean, right=reward == 1.0, after=before)
        before = None if reward is None else reward == 1.0
