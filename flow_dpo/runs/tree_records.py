"""The loop's values as records: a tree, and the pairs or scored completions that credit made from it.

    tree_row(tree, TokenTexts(renderer.tokenizer))                              a row of trees.jsonl
    example_row(pair, tree, {"prompt": ..., "chosen": ..., "rejected": ...})    a row of pairs.jsonl
    learned_row(learned)                                                        a row of learned.jsonl

Invariant: a prompt is written as what it adds to an earlier node's, and can be put together again from the row alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from flow_dpo.core.tree import Node, Tree
from flow_dpo.core.types import Example, Pair, ScoredCompletion, TokenIds
from flow_dpo.runs.records import LearnedRow, PairRow, ScoredRow
from flow_dpo.runs.tree_rows import NodeRow, PromptRow, RolloutRow, TokenRow, TreeForm, TreeRow

if TYPE_CHECKING:
    from flow_dpo.learner.gradients import LearnedExample


class SplitsTexts(Protocol):
    """Decodes token ids: `models.token_texts.TokenTexts`."""

    def split(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Their text without special tokens, and the characters that each adds; () if `piece` already says so."""
        ...

    def piece(self, id: int) -> str:
        """A token's text as it stands inside a text; "" for a special token."""
        ...

    def name(self, id: int) -> str:
        """A special token's name; "" for any other."""
        ...


def tree_row(tree: Tree, texts: SplitsTexts, form: TreeForm = "full") -> TreeRow:
    """One line of trees.jsonl. The texts are for people; the token ids are the truth.

    In the other forms the probes at the end of a tree are left out; all ids stay the same. The compact form also leaves
    out log-probabilities, and texts that follow from the texts of the tokens.
    """
    size = len(tree.rollouts)
    while form != "full" and tree.rollouts[size - 1].probe:
        size -= 1
    kept = tree.nodes[: max(rollout.leaf for rollout in tree.rollouts[:size]) + 1]
    compact = form == "compact"
    split = [texts.split(node.completion.token_ids) for node in kept]
    nodes = [
        NodeRow(
            id=node.id,
            parent=node.parent,
            rollout=node.rollout,
            depth=node.depth,
            role=node.role,
            policy_version=node.completion.policy_version,
            token_ids=node.completion.token_ids,
            text=text if lengths or not compact else "",
            piece_lengths=lengths,
            prompt=_prompt_row(node, tree),
            logprobs=() if compact else tuple(round(value, 6) for value in node.completion.logprobs),
            finish_reason=node.completion.finish_reason,
            choice=node.completion.choice,
            choice_logprobs=tuple(round(value, 6) for value in node.completion.choice_logprobs),
            tags=node.tags,
        )
        for node, (text, lengths) in zip(kept, split, strict=True)
    ]
    rollouts = [
        RolloutRow(
            id=rollout.id,
            start=rollout.start,
            leaf=rollout.leaf,
            ended=rollout.solution.ended,
            probe=rollout.probe,
            value=None if rollout.value is None else round(rollout.value, 6),
            text=rollout.text if rollout.id == 0 or not compact else "",
            verdict=rollout.verdict,
        )
        for rollout in tree.rollouts[:size]
    ]
    return TreeRow(
        problem=tree.problem,
        nodes=tuple(nodes),
        rollouts=tuple(rollouts),
        skipped=dict(tree.skipped),
        num_left_out=len(tree.rollouts) - size or None,
        choices={
            node.role: tuple(map(texts.piece, node.request.choices))
            for node in reversed(tree.nodes)
            if node.request.choices
        },
    )


def token_rows(trees: Iterable[Tree], known: set[int], texts: SplitsTexts) -> list[TokenRow]:
    """Rows of tokens.jsonl, by id, for tokens that are not in `known` yet, to which they are added."""
    new = {id for tree in trees for node in tree.nodes for ids in _ids(node) for id in ids} - known
    known |= new
    return [TokenRow(id=id, text=texts.name(id) or texts.piece(id), special=bool(texts.name(id))) for id in sorted(new)]


def _ids(node: Node) -> tuple[TokenIds, TokenIds]:
    return node.request.prompt_ids, node.completion.token_ids


def _prompt_row(node: Node, tree: Tree) -> PromptRow:
    """The prompt as what it adds to that of the last node of its role on its path, or else of the first in the tree."""
    ids = node.request.prompt_ids
    near = tree.path(node.id)[-2::-1]
    others = [other for other in near if other.role == node.role] or [
        other for other in tree.nodes[: node.id] if other.role == node.role
    ][:1]
    after, kept = None, 0
    if others:
        prompt, completion = _ids(others[0])
        kept = _num_equal((*prompt, *completion), ids)
        after = others[0].id if kept else None
    return PromptRow(after=after, kept=kept, token_ids=ids[kept:])


def _num_equal(one: TokenIds, other: TokenIds) -> int:
    """Length of the common prefix of two sequences, in tokens."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def learned_row(learned: LearnedExample) -> LearnedRow:
    """One line of learned.jsonl."""
    example = learned.example
    pair = isinstance(example, Pair)
    return LearnedRow(
        version=learned.version,
        reference_version=learned.reference_version,
        role=example.request.role,
        problem_id=example.problem_id,
        node=example.chosen_node if pair else example.node,
        rejected_node=example.rejected_node if pair else None,
        policy=tuple(tuple(round(value, 4) for value in values) for values in learned.policy),
        reference=tuple(tuple(round(value, 4) for value in values) for values in learned.reference),
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
