"""The loop's values as records: a tree, and the pairs or scored completions that credit made of it.

tree_row(tree, [renderer.to_text([node.completion.token_ids]) for node in tree.nodes])    a row of trees.jsonl
example_row(pair, tree, {"prompt": ..., "chosen": ..., "rejected": ...})                  a row of pairs.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Example, Pair, ScoredCompletion
from flow_dpo.runs.records import NodeRow, PairRow, RolloutRow, ScoredRow, TreeRow


def tree_row(tree: Tree, texts: Sequence[str]) -> TreeRow:
    """One line of trees.jsonl. `texts` holds each node's text, for people; the token ids are the truth."""
    nodes = [
        NodeRow(
            id=node.id,
            parent=node.parent,
            rollout=node.rollout,
            depth=node.depth,
            role=node.role,
            policy_version=node.completion.policy_version,
            token_ids=node.completion.token_ids,
            text=text,
            logprobs=tuple(round(value, 6) for value in node.completion.logprobs),
            finish_reason=node.completion.finish_reason,
            choice=node.completion.choice,
            choice_logprobs=tuple(round(value, 6) for value in node.completion.choice_logprobs),
            tags=node.tags,
        )
        for node, text in zip(tree.nodes, texts, strict=True)
    ]
    rollouts = [
        RolloutRow(
            id=rollout.id,
            start=rollout.start,
            leaf=rollout.leaf,
            ended=rollout.solution.ended,
            probe=rollout.probe,
            value=None if rollout.value is None else round(rollout.value, 6),
            text=rollout.text,
            verdict=rollout.verdict,
        )
        for rollout in tree.rollouts
    ]
    return TreeRow(
        problem=tree.problem,
        first_prompt_ids={node.role: node.request.prompt_ids for node in reversed(tree.nodes)},
        nodes=tuple(nodes),
        rollouts=tuple(rollouts),
        skipped=dict(tree.skipped),
    )


def example_row(example: Example, tree: Tree, texts: Mapping[str, str]) -> PairRow | ScoredRow:
    """One line of pairs.jsonl or scored.jsonl. `texts` holds the prompt and each completion, decoded."""
    return _pair_row(example, tree, texts) if isinstance(example, Pair) else _scored_row(example, tree, texts)


def _scored_row(scored: ScoredCompletion, tree: Tree, texts: Mapping[str, str]) -> ScoredRow:
    return ScoredRow(
        prompt=texts["prompt"],
        completion=texts["completion"],
        problem_id=scored.problem_id,
        role=scored.request.role,
        node=scored.node,
        depth=scored.depth,
        tags=scored.tags,
        advantage=scored.advantage,
        weight=scored.weight,
        verdict=tree.rollout_of(tree.nodes[scored.node]).verdict,
        policy_version=scored.completion.policy_version,
        prompt_ids=scored.request.prompt_ids,
        completion_ids=scored.completion.token_ids,
    )


def _pair_row(pair: Pair, tree: Tree, texts: Mapping[str, str]) -> PairRow:
    sides = (pair.chosen_node, pair.rejected_node)
    chosen_verdict, rejected_verdict = pair.verdicts or (tree.rollout_of(tree.nodes[side]).verdict for side in sides)
    return PairRow(
        prompt=texts["prompt"],
        chosen=texts["chosen"],
        rejected=texts["rejected"],
        problem_id=pair.problem_id,
        role=pair.request.role,
        node=pair.chosen_node,
        rejected_node=pair.rejected_node,
        depth=pair.depth,
        tags=pair.tags,
        margin=pair.margin,
        weight=pair.weight,
        chosen_verdict=chosen_verdict,
        rejected_verdict=rejected_verdict,
        policy_version=pair.chosen.policy_version,
        prompt_ids=pair.request.prompt_ids,
        chosen_ids=pair.chosen.token_ids,
        rejected_ids=pair.rejected.token_ids,
    )
