"""Scored completions of a tree's nodes, for credits that learn what was right or better than expected.

    scored_as_sampled(tree, node)          the node's completion, for the request that it was sampled for
    scored_word(tree, stop_node, 1)        "No" in place of what Stop sampled there
    scored_for(tree, node, tree.nodes[0])  the completion for another node's request

Invariant: a completion that was sampled for another request, or by another model, has the policy version `ELSEWHERE`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flow_dpo.core.tree import Node, Rollout, Tree
from flow_dpo.core.types import ScoredCompletion, TokenIds

ELSEWHERE = -1
"""The policy version of a completion that is learned for another request than its own: its log-probabilities belong to
its own request, and are not compared with anything."""


def distinct_correct(tree: Tree) -> Iterator[Rollout]:
    """The rollouts graded correct, without those that repeat an earlier one's tokens."""
    seen: set[tuple[TokenIds, ...]] = set()
    for rollout in tree.rollouts:
        if rollout.verdict is None or rollout.verdict.status != "correct":
            continue
        tokens = tuple(node.completion.token_ids for node in tree.path(rollout.leaf))
        if tokens not in seen:
            seen.add(tokens)
            yield rollout


def scored_as_sampled(tree: Tree, node: Node, advantage: float = 1.0, weight: float = 1.0) -> ScoredCompletion:
    """A node's completion, scored for the request that it was sampled for."""
    return ScoredCompletion(
        request=node.request,
        completion=node.completion,
        advantage=advantage,
        weight=weight,
        problem_id=tree.problem.id,
        node=node.id,
        depth=node.depth,
        tags=node.tags,
    )


def scored_for(tree: Tree, node: Node, target: Node) -> ScoredCompletion:
    """A node's completion, scored for another node's request and at that node's depth."""
    elsewhere = replace(node.completion, policy_version=ELSEWHERE)
    return replace(scored_as_sampled(tree, node), request=target.request, completion=elsewhere, depth=target.depth)


def scored_word(tree: Tree, node: Node, choice: int) -> ScoredCompletion:
    """A choosing node's completion as if it had taken this choice, the right one. The sampled choice keeps the
    log-probability that it was sampled with; for another one the unscaled log-probability stands in."""
    sampled, scored = node.completion, scored_as_sampled(tree, node)
    if choice == sampled.choice:
        return scored
    logprob = (sampled.choice_logprobs[choice],)
    word = replace(
        sampled,
        token_ids=(node.request.choices[choice],),
        logprobs=logprob,
        sampled_logprobs=logprob,
        choice=choice,
    )
    return replace(scored, completion=word)
