"""Which plays are worth saying again?

Credits for learning by imitation: they keep completions and give them all the same advantage, 1. `RightOnes` keeps what
verifiably ended right, the filter of rejection-sampling fine-tuning and expert iteration (STaR, arXiv 2203.14465; RFT,
arXiv 2308.01825; ReST-EM, arXiv 2312.06585). Of four plays of one problem:

    A0 "3+4=7"  right      kept
    A1 "3+4=8"  wrong
    A2 "3+4=7"  right      the same words again: never counted twice
    A3 "4+3=7"  right      kept where `max_per_problem` allows two

Invariant: what could not be graded is never kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from flow_dpo.errors import ConfigError
from flow_dpo.tree import Node, Rollout, Tree
from flow_dpo.types import Scored, TokenIds


@dataclass(frozen=True, kw_only=True)
class RightOnes:
    """Every completion on the way to a right answer, of the first distinct plays that reached one."""

    max_per_problem: int = 1
    """Plays kept of a problem, in the order of their rollouts; 0 keeps all. Cuts keep easy problems from drowning hard
    ones: ReST-EM keeps 10, STaR draws but one, RFT keeps every distinct one of 100."""

    def __post_init__(self) -> None:
        if self.max_per_problem < 0:
            raise ConfigError(f"max_per_problem must be 0 (all) or more, found {self.max_per_problem}")

    def __call__(self, trees: Sequence[Tree]) -> list[Scored]:
        """All examples of the trees, in the order of their plays; a node that two plays share is one example."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[Scored]:
        kept = list(islice(_distinct_right(tree), self.max_per_problem or None))
        nodes = dict.fromkeys(node.id for rollout in kept for node in tree.path(rollout.leaf))
        return [_said_again(tree, tree.nodes[id]) for id in nodes]


ELSEWHERE = -1
"""The policy version of a completion that is learned for another request than it was said to: its log-probabilities are
those of the other request, and are compared with none."""


@dataclass(frozen=True, kw_only=True)
class RightPaths:
    """The last completion of right plays, learned for the *trunk's* first request: the plain question (ReGenesis, arXiv
    2410.02108, section 3.2.1). What led to it, guidelines, structures and hints, is not learned.

    Plays with the tag "hinted" count only where no other play of the problem but the trunk is right.
    """

    max_per_problem: int = 5
    """Distinct paths of a problem at most, in the order in which they were played; 0 keeps all."""

    def __post_init__(self) -> None:
        if self.max_per_problem < 0:
            raise ConfigError(f"max_per_problem must be 0 (all) or more, found {self.max_per_problem}")

    def __call__(self, trees: Sequence[Tree]) -> list[Scored]:
        """All examples of the trees, tree by tree."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[Scored]:
        ends = [tree.nodes[rollout.leaf] for rollout in _distinct_right(tree) if rollout.id != tree.trunk.id]
        paths = {node.completion.token_ids: node for node in reversed([n for n in ends if "hinted" not in n.tags])}
        paths = paths or {node.completion.token_ids: node for node in reversed(ends)}
        kept = sorted(paths.values(), key=lambda node: node.id)[: self.max_per_problem or None]
        return [_said_elsewhere(tree, node, tree.nodes[0]) for node in kept]


TAUGHT = "taught"
"""Tag of the rollout in which an exploration lays down what a search has found best."""


@dataclass(frozen=True, kw_only=True)
class BestWay:
    """The way that a search found best, as the planner is to say it: why, and which (DOTS, arXiv 2410.03864).

    The "taught" rollout's first completion, an explanation in hindsight, is learned for the trunk's first request, in
    which the planner is asked; the second, the way's name, for its own. Nothing is learned of a problem whose graded
    plays are all right or all wrong, or of a best way of which the verifier found no play right.
    """

    keep_reasoning: bool = False
    """Also learn the first right play of the best way, turn by turn: the paper's internalised planner. Otherwise the
    planner alone is learned, and what solves stays as it was."""

    def __call__(self, trees: Sequence[Tree]) -> list[Scored]:
        """All examples of the trees, tree by tree."""
        return [example for tree in trees for example in self._of_tree(tree)]

    def _of_tree(self, tree: Tree) -> list[Scored]:
        *plays, last = tree.rollouts
        taught = tree.path(last.leaf)
        if TAUGHT not in taught[0].tags:
            return []
        searched = [rollout for rollout in plays if rollout.id != tree.trunk.id and rollout.verdict is not None]
        statuses = {rollout.id: rollout.verdict.status for rollout in searched if rollout.verdict is not None}
        of_the_way = [rollout for rollout in searched if taught[0].tags[1] in tree.nodes[rollout.start].tags]
        best = [rollout for rollout in of_the_way if statuses[rollout.id] == "correct"]
        if len(set(statuses.values()) - {"ungraded"}) < 2 or not best:
            return []
        why, which = taught
        said = [_said_elsewhere(tree, why, tree.nodes[0]), _said_again(tree, which)]
        if self.keep_reasoning:
            said += [_said_again(tree, node) for node in tree.path(best[0].leaf)]
        return said


def _distinct_right(tree: Tree) -> Iterator[Rollout]:
    """The rollouts that were found right, without those that say just what an earlier one said."""
    seen: set[tuple[TokenIds, ...]] = set()
    for rollout in tree.rollouts:
        if rollout.verdict is None or rollout.verdict.status != "correct":
            continue
        said = tuple(node.completion.token_ids for node in tree.path(rollout.leaf))
        if said not in seen:
            seen.add(said)
            yield rollout


def _said_again(tree: Tree, node: Node) -> Scored:
    """What a node says, for the request that it was said to."""
    return Scored(
        request=node.request,
        completion=node.completion,
        advantage=1.0,
        problem_id=tree.problem.id,
        node=node.id,
        depth=node.depth,
        tags=node.tags,
    )


def _said_elsewhere(tree: Tree, node: Node, asked: Node) -> Scored:
    """What a node says, for another node's request, at that node's depth."""
    elsewhere = replace(node.completion, policy_version=ELSEWHERE)
    return replace(_said_again(tree, node), request=asked.request, completion=elsewhere, depth=asked.depth)
