"""Do verdicts that take long stop nobody else's sampling, and are trees the same however fast anything answers?"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flow_dpo.core.explore import Explore
from flow_dpo.core.flow import Flow
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, Problem, Solution, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.cpl.mcts import Mcts
from flow_dpo.recipes.regenesis.explore import GuidelineRollouts
from flow_dpo.recipes.rpo.explore import ReferencePath
from flow_dpo.recipes.vineppo.explore import StepRollouts
from flow_dpo.verify.grader import AnswerGrader, GradingSettings
from flow_dpo.verify.verifier import Verifier
from tests.core.test_explore import END, PROBLEMS, Bare, next_probs
from tests.recipes.test_cpl import FLOW as PLANS
from tests.recipes.test_rpo import finds
from tests.recipes.test_vineppo import ONE_PASS, graded_trees
from tests.support.char_renderer import Letters, ids

Slow = Callable[[Solution], bool]


class Watched(TabularEngine):
    """Answers one request at a time, in an order of its own."""

    def __init__(self, order: int | None) -> None:
        super().__init__(next_probs, end_ids={END})
        self.order = None if order is None else random.Random(order)
        self.under_way: list[int] = []

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def poll(self) -> list[tuple[int, Completion]]:
        self.under_way.append(self.num_queued)
        if self.order is None:
            return super().poll()
        queued = list(self._queue)
        chosen = queued.pop(self.order.randrange(len(queued)))
        self._queue = deque(queued)
        return [(chosen.ticket, self._complete(chosen))]


class Late:
    """A grader that knows some verdicts at once, and others only when it is asked, which stops whoever asks."""

    def __init__(self, engine: Watched, slow: Slow) -> None:
        self.engine, self.slow = engine, slow
        self.begun: list[Solution] = []
        self.num_stopped: list[int] = []

    def begin(self, problem: Problem, solution: Solution) -> Verdict | None:
        self.begun.append(solution)
        return None if self.slow(solution) else finds([(problem, solution)])[0]

    def check(self, items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
        self.num_stopped.append(self.engine.num_queued)
        return finds(items)

    def check_texts(self, items: Sequence[tuple[Problem, str, bool]]) -> list[Verdict]:
        raise NotImplementedError

    def grade(self, trees: Sequence[Tree]) -> None:
        raise NotImplementedError


def explored(settings: Explore, flow: Flow[Any], slow: Slow, order: int | None, num: int) -> tuple[list[Tree], Late]:
    engine = Watched(order)
    grader = Late(engine, slow)
    return settings(flow, RolloutRunner(engine, Bare(), grader), PROBLEMS[:num], seed=3), grader


def some(solution: Solution) -> bool:
    return hash(solution) % 3 == 0


SEARCHES = {
    "search": (Mcts(num_iterations=7), PLANS),
    "search, four nodes at once": (Mcts(num_iterations=7, num_at_once=4), PLANS),
    "search, two rollouts a child": (Mcts(num_iterations=4, num_rollouts=2, num_at_once=2), PLANS),
    "reference path": (ReferencePath(num_rollouts=4, num_completions=2), ONE_PASS),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_trees_are_the_same_whatever_answers_when_and_no_verdict_stops_sampling(name: str) -> None:
    settings, flow = SEARCHES[name]
    at_once, grader = explored(settings, flow, lambda _: False, None, 30)
    assert grader.num_stopped == [], "what is known without waiting is never waited for"
    for slow, order in ((some, None), (some, 1), (some, 2), (lambda _: True, 3)):
        trees, grader = explored(settings, flow, slow, order, 30)
        assert trees == at_once
        assert grader.num_stopped, "some verdicts took long"
        assert set(grader.num_stopped) == {0}, "the grader was waited for with requests under way"


def test_rollouts_that_nothing_waits_for_are_begun_as_they_end() -> None:
    for settings in (StepRollouts(num_rollouts=3, num_completions=2), GuidelineRollouts(num_rollouts=2, num_hinted=0)):
        trees, grader = explored(settings, ONE_PASS, lambda _: False, 5, 10)
        ends = [rollout.solution for tree in trees for rollout in tree.rollouts]
        assert sorted(map(hash, grader.begun)) == sorted(map(hash, ends))


def test_a_verdict_that_needs_no_algebra_is_known_at_once_and_is_that_of_a_check() -> None:
    with Verifier() as verifier:
        for settings in (GradingSettings(), GradingSettings(unfinished="ungraded")):
            grader = AnswerGrader(verifier, Letters(), settings)
            asked = Problem(id="p", question="?", gold="x+1")
            for text, known in (("Answer: 7", True), ("I do not know", True), ("Answer: $1+x$", False)):
                solution = Solution(pieces=(ids(text),), ended=True)
                for _ in range(2):  # what was compared before is not known at once all the same: a resumed run has not
                    begun = grader.begin(asked, solution)
                    [verdict] = grader.check([(asked, solution)])
                    assert begun == (verdict if known else None), text
    assert verdict.status == "correct"


# ---- several nodes at once, against brute force ----------------------------------------------------------------------


def replay(tree: Tree, settings: Mcts) -> int:
    """Search the finished tree again from its rollouts alone, wave by wave; returns the most nodes of a wave."""
    rewards = {r.id: 2 * r.verdict.reward - 1 for r in tree.rollouts if r.verdict}  # type: ignore[operator]
    paths = {r.id: [node.id for node in tree.path(r.leaf)] for r in tree.rollouts}
    known, num_iterations, expanded, widest = 0, 0, set[int | None](), 0
    pending: list[tuple[int | None, int]] = []

    def children(node: int | None) -> list[int]:
        return sorted({n for i in range(known) for n in paths[i] if tree.nodes[n].parent == node})

    def closed(node: int | None) -> bool:
        if any(paths[i][-1] == node for i in range(known)):
            return True
        return node in expanded and all(closed(child) for child in children(node))

    def lost(node: int | None) -> int:
        """Rollouts below a node that were asked for and have not come."""
        return sum(num for at, num in pending if node is None or at == node
                   or (at is not None and node in [one.id for one in tree.path(at)]))  # fmt: skip

    def score(node: int | None, child: int) -> float:
        through = [i for i in range(known) if child in paths[i]]
        above = (known if node is None else sum(node in paths[i] for i in range(known))) + lost(node)
        logprobs = tree.nodes[child].completion.logprobs
        visits = len(through) + lost(child)
        value = (sum(rewards[i] for i in through) - lost(child)) / visits
        return value + settings.puct * math.exp(sum(logprobs) / len(logprobs)) * math.sqrt(above) / (1 + visits)

    while num_iterations < settings.num_iterations and not closed(None):
        wave = list[int | None]()
        while num_iterations < settings.num_iterations and not closed(None) and len(wave) < settings.num_at_once:
            at: int | None = None
            while at in expanded:
                at = max((child for child in children(at) if not closed(child)), key=lambda c, n=at: score(n, c))
            # Every node that is known has a rollout's next turn as a child; at the beginning nothing is known.
            num = settings.num_children - 1 if known else settings.num_root_children
            expanded.add(at)
            pending.append((at, num))
            wave.append(at)
            num_iterations += 1
        widest = max(widest, len(wave))
        begun = [tree.nodes[rollout.start].parent for rollout in tree.rollouts[known:]]
        mine = [parent for parent in begun if parent in wave]
        assert begun[: len(mine)] == mine, "a rollout that this search would not have made"
        assert [wave.index(parent) for parent in mine] == sorted(wave.index(parent) for parent in mine)
        known, pending = known + len(mine), []
    assert known == len(tree.rollouts)
    return widest


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_waves_begin_where_brute_force_says(at_once: int) -> None:
    settings = Mcts(num_iterations=10, num_root_children=3, num_at_once=at_once)
    trees = graded_trees(explored(settings, PLANS, lambda _: False, 7, 60)[0])
    assert max(replay(tree, settings) for tree in trees) == at_once
    assert max(len(tree.rollouts) for tree in trees) <= 3 + 9 * 2


def test_more_nodes_at_once_are_more_requests_under_way() -> None:
    under_way: list[float] = []
    for at_once in (1, 4):
        engine = Watched(None)
        Mcts(num_iterations=10, num_at_once=at_once)(PLANS, RolloutRunner(engine, Bare(), Late(engine, some)),
                                                   PROBLEMS[:8], seed=0)  # fmt: skip
        under_way.append(sum(engine.under_way) / len(engine.under_way))
    assert under_way[1] > 1.5 * under_way[0]
