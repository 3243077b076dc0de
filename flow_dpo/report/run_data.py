"""A run's trees and pairs, counted for its report: trunk nodes, judged candidates, and one tree to draw.

Every trunk node, with whether it gave a pair; every candidate that a choosing role (Stop) judged on the trunk, with the
candidate's own verdict; and one tree to be drawn. A candidate's verdict needs no second grading: where Yes was chosen,
in the trunk or in the alternative to its No, the rollout ended there, and its verdict is the candidate's.

    A0 -- No1 -- A2 -- Yes3     candidate at 3: the trunk's verdict
           \\
            Yes4                candidate at 1: the verdict of the rollout that ends at 4

Invariant: only trees that the run's metrics know of are counted; what an interrupted batch left behind is not. All
candidates of the trunk are counted, whatever was chosen there, save those at which Yes was never chosen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.evaluate import CandidateKind, candidate_kind
from flow_dpo.runs.records import PairRow, ScoredRow, iter_rows
from flow_dpo.runs.tree_rows import NodeRow, TreeRow

MAX_DRAWN_NODES = 60
"""A tree of more nodes is drawn only where it is requested by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A node that could have given a pair."""

    index: int
    """Which problem of the stream, from 0."""
    role: str
    depth: int
    gave_example: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCandidate:
    """A candidate on the trunk, its kind by its own verdict, and the choice of a choosing role there."""

    index: int
    role: str
    kind: CandidateKind
    chose_yes: bool
    log_odds: float
    """Of Yes, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePair:
    """A choosing role's pair: was the candidate finished, and which choice did the pair prefer?"""

    index: int
    role: str
    finished: bool
    prefers_yes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSeen:
    """One row of pairs.jsonl or scored.jsonl, without its texts."""

    role: str
    depth: int
    node: int
    rejected: int | None
    """The other side; None for a single scored completion."""
    tags: tuple[str, ...]
    advantage: float | None


@dataclass(kw_only=True)
class RunCounts:
    """Counts over all trees of a run."""

    rewards: list[float | None] = field(default_factory=list[float | None])
    """The trunk's reward of each problem, None where it could not be graded, or has no answer."""
    unanswered: set[int] = field(default_factory=set[int])
    """Problems, from 0, whose trunk stopped with a value: there is no answer that could be right."""
    nodes: list[NodeSeen] = field(default_factory=list[NodeSeen])
    candidates: list[JudgedCandidate] = field(default_factory=list[JudgedCandidate])
    choice_pairs: list[ChoicePair] = field(default_factory=list[ChoicePair])
    num_unjudged: int = 0
    """Trunk nodes of choosing roles at which Yes was never chosen, so that the candidate's verdict is not known."""
    num_examples: Counter[str] = field(default_factory=Counter[str])
    """Pairs, or scored completions, by role."""
    pairs: bool = False
    """The run learns from pairs."""
    singles: bool = False
    """The run learns from single completions, alone or beside pairs."""
    drawn: tuple[TreeRow, list[ExampleSeen]] | None = None
    """One tree, as trees.jsonl has it, and the examples that it gave."""


def count_run(run: Path, num_seen: int, wanted: str | None = None) -> RunCounts:
    """Counts over the first `num_seen` trees of a run, and one tree to draw: `wanted` where given, else a rich one.

    Raises `DataError` naming file and line of what is broken.
    """
    counts = RunCounts()
    examples = _read_examples(run, counts)
    best = -1.0
    for line, tree in iter_rows(run / "trees.jsonl", TreeRow) if num_seen or wanted is not None else ():
        if line > num_seen:
            break
        name = tree.problem.id
        mine = examples.get(name, [])
        for one in mine:
            if max(one.node, one.rejected or 0) >= len(tree.nodes):
                place = f"{run / 'trees.jsonl'}, line {line}"
                raise DataError(f"{place}: pairs of {name!r} name a node that the tree has not; is it another run's?")
        _count(counts, line - 1, tree, mine)
        score = 1e9 if name == wanted else _informativeness(tree, mine) if wanted is None else -1.0
        if score > best:
            best, counts.drawn = score, (tree, mine)
    if wanted is not None and counts.drawn is None:
        raise DataError(f"expected a tree of the problem {wanted!r} in {run / 'trees.jsonl'}, found none of that id")
    return counts


def _read_examples(run: Path, counts: RunCounts) -> dict[str, list[ExampleSeen]]:
    examples: dict[str, list[ExampleSeen]] = {}
    for name, kind in (("pairs.jsonl", PairRow), ("scored.jsonl", ScoredRow)):
        for _, row in iter_rows(run / name, kind) if (run / name).exists() else ():
            counts.singles |= isinstance(row, ScoredRow)
            counts.pairs |= isinstance(row, PairRow)
            one = ExampleSeen(
                role=row.role,
                depth=row.depth,
                node=row.node,
                rejected=row.rejected_node if isinstance(row, PairRow) else None,
                tags=row.tags,
                advantage=row.advantage if isinstance(row, ScoredRow) else None,
            )
            examples.setdefault(row.problem_id, []).append(one)
    return examples


def _count(counts: RunCounts, index: int, tree: TreeRow, mine: list[ExampleSeen]) -> None:
    verdict = tree.rollouts[0].verdict
    counts.rewards.append(None if verdict is None else verdict.right)
    if verdict is None:
        counts.unanswered.add(index)
    sides = {id for one in mine for id in (one.node, one.rejected) if id is not None}
    # Where a pair was made the trunk has a completion too, even where the pair is of two alternatives to it.
    places = {tree.nodes[one.node].parent for one in mine if one.rejected is not None}
    counts.num_examples.update(one.role for one in mine)
    for node in tree.nodes:
        trunk = node.rollout == 0
        # A scored completion may stand anywhere.
        if trunk or counts.singles:
            gave_example = node.id in sides or (trunk and node.parent in places)
            counts.nodes.append(NodeSeen(index=index, role=node.role, depth=node.depth, gave_example=gave_example))
        if trunk and len(node.choice_logprobs) == 2:
            candidate = _candidate(index, tree, node)
            counts.num_unjudged += candidate is None
            counts.candidates += [] if candidate is None else [candidate]
    for one in mine:
        choice = tree.nodes[one.node].choice
        if one.rejected is not None and choice is not None:
            pair = ChoicePair(index=index, role=one.role, finished="finished" in one.tags, prefers_yes=choice == 0)
            counts.choice_pairs.append(pair)


def _candidate(index: int, tree: TreeRow, node: NodeRow) -> JudgedCandidate | None:
    """The candidate at a trunk node with the choice there; None where its verdict is not known or not given."""
    for sibling in tree.nodes:
        if sibling.parent != node.parent or sibling.role != node.role or sibling.choice != 0:
            continue
        rollout = tree.rollouts[sibling.rollout]
        kind = candidate_kind(rollout.status, ended=rollout.ended)
        if rollout.leaf == sibling.id and kind is not None:
            yes, no = node.choice_logprobs
            return JudgedCandidate(
                index=index, role=node.role, kind=kind, chose_yes=node.choice == 0, log_odds=yes - no
            )
    return None


def _informativeness(tree: TreeRow, mine: list[ExampleSeen]) -> float:
    """How much a tree shows to a reader: pairs of every role, right and wrong rollouts, and not too much of it all."""
    if len(tree.nodes) > MAX_DRAWN_NODES:
        return -0.5
    roles = {node.role for node in tree.nodes}
    statuses = {rollout.status for rollout in tree.rollouts}
    paired = len({one.role for one in mine}) / max(len(roles), 1)
    return 4 * paired + len(statuses) + min(len(tree.nodes), 18) / 18 - max(len(tree.nodes) - 24, 0) / 24
