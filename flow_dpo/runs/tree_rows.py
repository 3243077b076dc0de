"""Rows of trees.jsonl (all rollouts on one problem, with every node's prompt and the verdicts), and of tokens.jsonl.

A prompt is written as what it adds to an earlier node's, so that nothing is written twice:

    node 0  answer  prompt {"kept": 0, "token_ids": [2, 105, 52, ...]}     all of it
    node 1  stop    prompt {"kept": 0, "token_ids": [2, 108, 52, ...]}
    node 2  answer  prompt {"after": 0, "kept": 58}                        node 0's prompt and its completion

Invariant: nodes and rollouts refer to each other consistently, and a prompt refers only to earlier nodes; anything else
is a `DataError` (`records`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from flow_dpo.core.types import FinishReason, Problem, Role, TokenIds, Verdict
from flow_dpo.data.typed_json import Count, TokenIdList

TreeForm = Literal["full", "no-probes", "compact"]
"""How much of a tree its row holds (`tree_records.tree_row`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token's text: a row of tokens.jsonl, which has one for each token of a run's prompts and completions."""

    SCHEMA: ClassVar[str] = "token/1"
    id: Count
    text: str
    """The token as it stands inside a text; for a special token, its name."""
    special: bool = field(default=False, metadata={"sparse": True})
    """Whether it is a special token, which texts leave out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A node's prompt: the first tokens of an earlier node's prompt and completion, and what follows them."""

    after: Count | None = field(default=None, metadata={"sparse": True})
    """The earlier node; None if nothing is shared."""
    kept: Count = 0
    """Number of tokens taken from the beginning of that node's prompt and completion."""
    token_ids: TokenIdList = field(default=(), metadata={"sparse": True})
    """All tokens that follow those."""

    def __post_init__(self) -> None:
        if self.after is None and self.kept:
            raise ValueError(f"expected a node in 'after', found None with {self.kept} tokens kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """One completion of a tree; the columns of `core.tree.Node` and its completion."""

    id: Count
    parent: Count | None
    rollout: Count
    depth: Count
    role: Role
    policy_version: int
    """Version of the adapters that sampled it."""
    token_ids: TokenIdList
    finish_reason: FinishReason
    choice: Count | None
    choice_logprobs: tuple[float, ...]
    tags: tuple[str, ...]
    text: str = field(default="", metadata={"sparse": True})
    """The tokens decoded, for people, without special tokens; a compact row has it only if it does not follow from
    tokens.jsonl."""
    logprobs: tuple[float, ...] = field(default=(), metadata={"sparse": True})
    """In nats, to six decimals; a compact row has none (learned.jsonl has those of what was learned)."""
    prompt: PromptRow | None = field(default=None, metadata={"sparse": True})
    """None in older rows."""
    piece_lengths: tuple[Count, ...] = field(default=(), metadata={"sparse": True})
    """Characters of `text` that each token adds; empty if the text follows from the texts in tokens.jsonl."""

    def __post_init__(self) -> None:
        lengths = self.piece_lengths
        if lengths and (len(lengths) != len(self.token_ids) or sum(lengths) != len(self.text)):
            raise ValueError(
                f"expected a number for each of the {len(self.token_ids)} tokens in 'piece_lengths', which add up to "
                f"the text's {len(self.text)} characters, found {len(lengths)} that add up to {sum(lengths)}"
            )
        if len(self.choice_logprobs) == 2 and self.choice not in (0, 1):
            raise ValueError(f"expected 0 or 1 as the 'choice' between two words, found {self.choice!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """One rollout of a tree; the columns of `core.tree.Rollout`."""

    id: Count
    start: Count
    leaf: Count
    ended: bool
    """Whether Answer sampled its end token last."""
    probe: bool
    value: float | None
    text: str
    """"" in a compact row, except for the trunk: the nodes have the text."""
    verdict: Verdict | None

    @property
    def status(self) -> Literal["correct", "wrong", "ungraded"]:
        """The verdict's status; "ungraded" if there is no verdict."""
        return "ungraded" if self.verdict is None else self.verdict.status


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """All rollouts on one problem: a row of trees.jsonl."""

    SCHEMA: ClassVar[str] = "tree/2"
    OLDER: ClassVar[tuple[str, ...]] = ("tree/1",)
    problem: Problem
    nodes: tuple[NodeRow, ...]
    rollouts: tuple[RolloutRow, ...]
    skipped: Mapping[Role, Count]
    choices: Mapping[Role, tuple[str, ...]] = field(
        default_factory=dict[Role, tuple[str, ...]], metadata={"sparse": True}
    )
    """For each role that chooses, the words offered at its first choice."""
    first_prompt_ids: Mapping[Role, TokenIdList] = field(
        default_factory=dict[Role, TokenIdList], metadata={"sparse": True}
    )
    """The first prompts in older rows, which have no others."""
    num_left_out: Count | None = field(default=None, metadata={"sparse": True})
    """Number of last rollouts, all probes, that the row leaves out with their nodes; examples can name these nodes."""

    def __post_init__(self) -> None:
        """Check that nodes and rollouts refer to each other consistently."""
        if not self.nodes or not self.rollouts:
            raise ValueError(f"expected nodes and rollouts, found {len(self.nodes)} and {len(self.rollouts)}")
        for at, node in enumerate(self.nodes):
            _below(f"nodes {at}", parent=(node.parent or 0, max(at, 1)), rollout=(node.rollout, len(self.rollouts)))
            _below(f"nodes {at}", depth=(node.depth, at + 1))
            if node.id != at or (at == 0) > (node.parent is None):
                raise ValueError(f"nodes {at}: expected the id {at}, found {node.id} below {node.parent}")
        for at, rollout in enumerate(self.rollouts):
            _below(f"rollouts {at}", start=(rollout.start, len(self.nodes)), leaf=(rollout.leaf, len(self.nodes)))
            if rollout.id != at:
                raise ValueError(f"rollouts {at}: expected the id {at}, found {rollout.id}")
        self._check_prompts()

    def prompt_ids(self, node: int) -> TokenIds:
        """A node's whole prompt. Raises `ValueError` if this is an older row, without prompts."""
        parts: list[TokenIds] = []
        kept = None
        at: int | None = node
        # From the end to the beginning: what this node adds, then what is kept of the node before, and so on.
        while at is not None:
            prompt = self.nodes[at].prompt
            if prompt is None:
                raise ValueError(f"the prompt of node {at} was not recorded")
            own = prompt.token_ids if kept is None else (*prompt.token_ids, *self.nodes[at].token_ids)
            take = len(own) if kept is None else max(0, kept - prompt.kept)
            parts.append(tuple(own[:take]))
            kept = prompt.kept if kept is None else min(kept, prompt.kept)
            at = prompt.after if kept else None
        return tuple(id for part in reversed(parts) for id in part)

    def _check_prompts(self) -> None:
        """Check that each prompt refers to an earlier node, and keeps no more tokens than that has."""
        lengths: list[int] = []
        for at, node in enumerate(self.nodes):
            prompt = node.prompt
            if prompt is not None and prompt.after is not None:
                _below(f"nodes {at}, prompt", after=(prompt.after, at))
                _below(f"nodes {at}, prompt", kept=(prompt.kept, lengths[prompt.after] + 1))
            own = 0 if prompt is None else prompt.kept + len(prompt.token_ids)
            lengths.append(own + len(node.token_ids))


def _below(place: str, **values: tuple[int, int]) -> None:
    for name, (value, limit) in values.items():
        if value >= limit:
            raise ValueError(f"{place}: expected a whole number from 0 to {limit - 1} in {name!r}, found {value}")
