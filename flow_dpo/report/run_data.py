"""What do a run's trees and pairs say, once they are counted?

Every trunk node, with whether it gave a pair; every candidate that a choosing role (Stop) judged on the trunk, with the
candidate's own verdict; and one tree to be drawn. A candidate's verdict needs no second grading: where Yes was said, in
the trunk or in the alternative to its No, the play ended there, and the play's verdict is the candidate's.

    A0 -- No1 -- A2 -- Yes3     candidate at 3: the trunk's verdict
           \\
            Yes4                candidate at 1: the verdict of the play that ends at 4

Invariant: only trees that the run's metrics know of are counted; what an interrupted batch left behind is not. All
candidates of the trunk are counted, whatever was said to them, save those to which Yes was never said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flow_dpo.core.errors import DataError
from flow_dpo.report import checks
from flow_dpo.runs import run_folder

Kind = Literal["unfinished", "wrong", "right"]
MAX_DRAWN_NODES = 60
"""A tree of more nodes is drawn only where it is asked for by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A node that could have given a pair."""

    index: int
    """Which problem of the stream, from 0."""
    role: str
    depth: int
    taught: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a choosing role thought of one candidate."""

    index: int
    role: str
    kind: Kind
    said_yes: bool
    log_odds: float
    """Of Yes, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePair:
    """A choosing role's pair: was the candidate finished, and which word did the pair prefer?"""

    index: int
    role: str
    finished: bool
    prefers_yes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """One row of pairs.jsonl or scored.jsonl, without its words."""

    role: str
    depth: int
    node: int
    rejected: int | None
    """The other side; None for a single scored completion."""
    tags: tuple[str, ...]
    advantage: float | None


@dataclass(kw_only=True)
class Plays:
    """Counts over all trees of a run."""

    rewards: list[float | None] = field(default_factory=list[float | None])
    """The trunk's reward of each problem, None where it could not be graded."""
    nodes: list[NodeSeen] = field(default_factory=list[NodeSeen])
    heard: list[Heard] = field(default_factory=list[Heard])
    choice_pairs: list[ChoicePair] = field(default_factory=list[ChoicePair])
    unheard: int = 0
    """Trunk nodes of choosing roles at which Yes was never said, so that the candidate's verdict is not known."""
    num_examples: Counter[str] = field(default_factory=Counter[str])
    """Pairs, or scored completions, by role."""
    singles: bool = False
    """The run learns from single completions, not from pairs."""
    drawn: tuple[dict[str, Any], list[Taught]] | None = None
    """One tree, as trees.jsonl has it, and what it taught."""


def read_plays(run: Path, num_seen: int, wanted: str | None = None) -> Plays:
    """Read the first `num_seen` trees of a run, and choose one to draw: `wanted` where given, else a telling one.

    Raises `DataError` naming file and line of what is broken.
    """
    plays = Plays()
    taught = _read_taught(run, plays)
    best = -1.0
    for line, tree in run_folder.iter_jsonl(run / "trees.jsonl"):
        if line > num_seen:
            break
        place = f"{run / 'trees.jsonl'}, line {line}"
        check_tree(tree, place)
        name = tree["problem"]["id"]
        mine = taught.get(name, [])
        for one in mine:
            if max(one.node, one.rejected or 0) >= len(tree["nodes"]):
                raise DataError(f"{place}: pairs of {name!r} name a node that the tree has not; is it another run's?")
        _count(plays, line - 1, tree, mine, place)
        score = 1e9 if name == wanted else _tells(tree, mine) if wanted is None else -1.0
        if score > best:
            best, plays.drawn = score, (tree, mine)
    if wanted is not None and plays.drawn is None:
        raise DataError(f"expected a tree of the problem {wanted!r} in {run / 'trees.jsonl'}, found none of that id")
    return plays


def _read_taught(run: Path, plays: Plays) -> dict[str, list[Taught]]:
    taught: dict[str, list[Taught]] = {}
    for name in ("pairs.jsonl", "scored.jsonl"):
        for line, row in run_folder.iter_jsonl(run / name) if (run / name).exists() else ():
            place, single = f"{run / name}, line {line}", name == "scored.jsonl"
            plays.singles |= single
            one = Taught(
                role=checks.text(row, "role", place),
                depth=checks.index(row, "depth", place, 1 << 31),
                node=checks.index(row, "node", place, 1 << 31),
                rejected=None if single else checks.index(row, "rejected_node", place, 1 << 31),
                tags=tuple(checks.strings(row, "tags", place)),
                advantage=checks.needed_number(row, "advantage", place) if single else None,
            )
            taught.setdefault(checks.text(row, "problem_id", place), []).append(one)
    return taught


def check_tree(tree: Mapping[str, Any], place: str) -> None:
    """Raise `DataError` where a row of trees.jsonl is no tree: its nodes and rollouts must name each other rightly."""
    problem = checks.mapping(tree, "problem", place)
    for name in ("id", "question", "gold"):
        checks.text(problem, name, f"{place}, problem")
    nodes, rollouts = checks.rows(tree, "nodes", place), checks.rows(tree, "rollouts", place)
    if not nodes or not rollouts:
        raise DataError(f"{place}: expected nodes and rollouts of a tree, found {len(nodes)} and {len(rollouts)}")
    for at, node in enumerate(nodes):
        where = f"{place}, node {at}"
        if node.get("id") != at:
            raise DataError(f"{where}: expected this id, found {node.get('id')!r}")
        if node.get("parent") is not None:
            checks.index(node, "parent", where, at)
        checks.index(node, "rollout", where, len(rollouts))
        checks.index(node, "depth", where, at + 1)
        checks.text(node, "role", where)
        checks.text(node, "text", where)
        for name in ("logprobs", "choice_logprobs"):
            if None in checks.numbers(node, name, where):
                raise DataError(f"{where}: expected numbers in {name}, found none among them")
        checks.strings(node, "tags", where)
        if len(node.get("choice_logprobs") or ()) == 2:
            checks.index(node, "choice", where, 2)
    for at, rollout in enumerate(rollouts):
        where = f"{place}, rollout {at}"
        for name in ("start", "leaf"):
            checks.index(rollout, name, where, len(nodes))
        status_of(rollout, where)


def status_of(rollout: Mapping[str, Any], place: str = "trees.jsonl") -> Literal["correct", "wrong", "ungraded"]:
    """The status of a rollout's verdict; "ungraded" where it has none."""
    verdict = checks.mapping(rollout, "verdict", place)
    status = verdict.get("status", "ungraded")
    if status not in ("correct", "wrong", "ungraded"):
        raise DataError(f"{place}: expected correct, wrong or ungraded as a verdict's status, found {status!r:.40}")
    return status


def _count(plays: Plays, index: int, tree: Mapping[str, Any], mine: list[Taught], place: str) -> None:
    status = status_of(tree["rollouts"][0], place)
    plays.rewards.append({"correct": 1.0, "wrong": 0.0}.get(status))
    sides = {id for one in mine for id in (one.node, one.rejected) if id is not None}
    # Where a pair was made the trunk spoke too, even where the pair is of two alternatives to it.
    places = {tree["nodes"][one.node]["parent"] for one in mine if one.rejected is not None}
    plays.num_examples.update(one.role for one in mine)
    for node in tree["nodes"]:
        trunk = node["rollout"] == 0
        # A scored completion may stand anywhere.
        if trunk or plays.singles:
            taught = node["id"] in sides or (trunk and node["parent"] in places)
            plays.nodes.append(NodeSeen(index=index, role=node["role"], depth=node["depth"], taught=taught))
        if trunk and len(node.get("choice_logprobs") or ()) == 2:
            heard = _heard(index, tree, node)
            plays.unheard += heard is None
            plays.heard += [] if heard is None else [heard]
    for one in mine:
        choice = tree["nodes"][one.node].get("choice")
        if one.rejected is not None and choice is not None:
            pair = ChoicePair(index=index, role=one.role, finished="finished" in one.tags, prefers_yes=choice == 0)
            plays.choice_pairs.append(pair)


def _heard(index: int, tree: Mapping[str, Any], node: Mapping[str, Any]) -> Heard | None:
    """What was thought of the candidate at a trunk node; None where its verdict is not known or not given."""
    for sibling in tree["nodes"]:
        if sibling["parent"] != node["parent"] or sibling["role"] != node["role"] or sibling.get("choice") != 0:
            continue
        rollout = tree["rollouts"][sibling["rollout"]]
        status = status_of(rollout)
        if rollout["leaf"] != sibling["id"] or status == "ungraded":
            continue
        kind: Kind = "right" if status == "correct" else "wrong" if rollout.get("ended") else "unfinished"
        yes, no = node["choice_logprobs"]
        said_yes = node["choice"] == 0
        return Heard(index=index, role=node["role"], kind=kind, said_yes=said_yes, log_odds=yes - no)
    return None


def _tells(tree: Mapping[str, Any], mine: list[Taught]) -> float:
    """How much a tree shows to a reader: pairs of every role, right and wrong plays, and not too much of it all."""
    if len(tree["nodes"]) > MAX_DRAWN_NODES:
        return -0.5
    roles = {node["role"] for node in tree["nodes"]}
    statuses = {status_of(rollout) for rollout in tree["rollouts"]}
    paired = len({one.role for one in mine}) / max(len(roles), 1)
    return 4 * paired + len(statuses) + min(len(tree["nodes"]), 18) / 18 - max(len(tree["nodes"]) - 24, 0) / 24
