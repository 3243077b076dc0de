"""A run's trees and pairs, counted for its report: trunks, their nodes and judged candidates.

Counted are every trunk, with its verdict, whether it was cut off, and whether a right one has a wrong step; every trunk
node, with whether it gave a pair; and every candidate that a choosing role (Stop) judged on the trunk, with its own
verdict. No second grading is needed: where Yes was chosen, in the trunk or in the alternative to its No, the rollout
ended, and its verdict is the candidate's.

    A0 -- No1 -- A2 -- Yes3     candidate at 3: the trunk's verdict
           \\
            Yes4                candidate at 1: the verdict of the rollout that ends at 4

Invariant: only trees that the run's metrics cover are counted, not what an interrupted batch left behind. All
candidates of the trunk are counted, whatever was chosen there, except those at which Yes was never chosen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from flow_dpo.core.errors import DataError
from flow_dpo.evaluate.evaluate import CandidateKind, candidate_kind
from flow_dpo.evaluate.step_validity import has_invalid_step
from flow_dpo.runs.records import PairRow, ScoredRow, iter_rows
from flow_dpo.runs.tree_rows import NodeRow, TreeRow

_LONGEST_CHECKED = 20_000
"""Characters at the start of a solution whose steps are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A node that could have given an example."""

    index: int
    """The problem's place in the stream, from 0."""
    role: str
    depth: int
    gave_example: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCandidate:
    """A candidate on the trunk, its kind by its own verdict, and what a choosing role chose there."""

    index: int
    role: str
    kind: CandidateKind
    chose_yes: bool
    log_odds: float
    """Of Yes, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePair:
    """A choosing role's pair: was the candidate finished, and which choice does the pair prefer?"""

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
    """The other node of a pair; None for a single scored completion."""
    tags: tuple[str, ...]


@dataclass(kw_only=True)
class RunCounts:
    """Counts over all trees of a run."""

    rewards: list[float | None] = field(default_factory=list[float | None])
    """The trunk's reward for each problem; None if it could not be graded, or has no answer."""
    unanswered: set[int] = field(default_factory=set[int])
    """Problems, from 0, whose trunk ended with a value: it has no answer that could be right."""
    nodes: list[NodeSeen] = field(default_factory=list[NodeSeen])
    candidates: list[JudgedCandidate] = field(default_factory=list[JudgedCandidate])
    choice_pairs: list[ChoicePair] = field(default_factory=list[ChoicePair])
    num_unjudged: int = 0
    """Trunk nodes of choosing roles whose candidate has no known verdict: Yes was never chosen there, or not graded."""
    num_examples: Counter[str] = field(default_factory=Counter[str])
    """Pairs, or scored completions, by role."""
    pairs: bool = False
    """The run learns from pairs."""
    singles: bool = False
    """The run learns from single completions, alone or with pairs."""
    cut: set[int] = field(default_factory=set[int])
    """Problems, from 0, whose trunk did not end by itself."""
    wrong_step: dict[int, bool] = field(default_factory=dict[int, bool])
    """Whether a step is wrong, for problems (from 0) whose trunk is right and states steps that could be checked."""


def count_run(run: Path, num_seen: int) -> RunCounts:
    """Counts over the first `num_seen` trees of a run. Raises `DataError` with the file and line of a broken row."""
    counts = RunCounts()
    examples = _read_examples(run, counts)
    for line, tree in iter_rows(run / "trees.jsonl", TreeRow) if num_seen else ():
        if line > num_seen:
            break
        name = tree.problem.id
        mine = examples.get(name, [])
        known = [one for one in mine if max(one.node, one.rejected or 0) < len(tree.nodes)]
        if len(known) < len(mine) and not tree.num_left_out:
            place = f"{run / 'trees.jsonl'}, line {line}"
            raise DataError(f"{place}: pairs of {name!r} name a node that the tree lacks; are they from another run?")
        counts.num_examples.update(one.role for one in mine)
        _count_trunk(counts, line - 1, tree)
        _count(counts, line - 1, tree, known)
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
            )
            examples.setdefault(row.problem_id, []).append(one)
    return examples


def _count_trunk(counts: RunCounts, index: int, tree: TreeRow) -> None:
    trunk = tree.rollouts[0]
    counts.rewards.append(None if trunk.verdict is None else trunk.verdict.right)
    if trunk.verdict is None:
        counts.unanswered.add(index)
    elif not trunk.ended:
        counts.cut.add(index)
    wrong = has_invalid_step(tree.problem, trunk.text[:_LONGEST_CHECKED]) if trunk.status == "correct" else None
    if wrong is not None:
        counts.wrong_step[index] = wrong


def _count(counts: RunCounts, index: int, tree: TreeRow, mine: list[ExampleSeen]) -> None:
    sides = {id for one in mine for id in (one.node, one.rejected) if id is not None}
    # Where a pair was made, the trunk has a completion too, even if the pair is of two alternatives to it.
    places = {tree.nodes[one.node].parent for one in mine if one.rejected is not None}
    for node in tree.nodes:
        trunk = node.rollout == 0
        # A scored completion can be anywhere.
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
    """The candidate at a trunk node and the choice made there; None if its verdict is unknown or could not be given."""
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
