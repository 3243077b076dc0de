"""Is a batch judged by the evidence of earlier batches alone, in one go and over a checkpoint?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from flow_dpo.core.loop import learn
from flow_dpo.core.metrics import NUM_EVIDENCE, ProgressiveValidation
from flow_dpo.core.protocols import Rollouts
from flow_dpo.core.recipe import Recipe
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Verdict
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.credit import AttemptCredit, attempt_verdicts
from flow_dpo.recipes.flow_dpo.explore import AttemptSiblings
from flow_dpo.recipes.flow_dpo.judgement import Judgement
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from tests.support import attempt_worlds as worlds
from tests.support.attempt_worlds import PROBLEMS


class Sampled:
    """Workers that sample from the table, and keep what they were asked; `turned` problems get the other verdict."""

    def __init__(self, turned: frozenset[str] = frozenset()) -> None:
        self.turned = turned
        self.batches: list[tuple[Attempts, list[Tree]]] = []

    def refresh(self, adapters: Any) -> None:
        """Nothing changes."""

    def submit(self, explore: Any, flow: Any, problems: Sequence[Problem], *, seed: int) -> Future[Rollouts]:
        trees: list[Tree] = explore(flow, worlds.runner(), problems, seed=seed)
        for tree in trees:
            for rollout in list(tree.rollouts):
                ids = worlds.flat(rollout.solution.pieces)
                right = rollout.solution.ended and worlds.status_of(ids, ended=True) == "correct"
                right = right != (tree.problem.id in self.turned) and rollout.solution.ended
                tree.grade(rollout.id, "", Verdict(status="correct" if right else "wrong"))
        self.batches.append((flow, trees))
        done = Future[Rollouts]()
        done.set_result(Rollouts(trees=trees))
        return done


class Still:
    """A learner that learns nothing."""

    version = 0

    @property
    def adapters(self) -> dict[str, Any]:
        return {}

    def update(self, objective: Any, examples: Any) -> dict[str, float]:
        return {}


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_batch(self, row: Any, trees: Any, examples: Any) -> None:
        self.rows.append(dict(row))


FLOW = Attempts(chunk_tokens=2, max_chunks=2, max_attempts=3, threshold=0.6)


def learned(
    flow: Attempts, turned: frozenset[str] = frozenset(), num: int = 60, progress: ProgressiveValidation | None = None
) -> tuple[Sampled, list[dict[str, Any]], ProgressiveValidation]:
    workers, rows = Sampled(turned), Rows()
    recipe = Recipe(flow=flow, explore=AttemptSiblings(), credit=AttemptCredit(), objective=DpoAndVerdicts())
    start = 0 if progress is None else progress.num_seen
    progress = learn(
        recipe, PROBLEMS[start:num], workers, Still(), callbacks=[rows], problems_per_batch=12, progress=progress
    )
    return workers, rows.rows, progress


def rows_of(tree: Tree) -> list[dict[str, Any]]:
    """The evidence of a tree, from what was sampled."""
    found: list[dict[str, Any]] = []
    rewards = [None if one is None else one.reward for one in attempt_verdicts(tree).values()]
    for at, (_, judge) in enumerate(worlds.written(tree.trunk_nodes())):
        if judge is None or rewards[at] is None:
            continue
        mine = [n for n in tree.trunk_nodes() if n.role == "answer" and n.tags[-1] == judge.tags[-1]]
        logprobs = [value for node in mine for value in node.completion.logprobs]
        before = None if at == 0 or rewards[at - 1] is None else rewards[at - 1] == 1.0
        yes, no = judge.completion.choice_logprobs
        found.append({
            "log_odds": pytest.approx(yes - no), "mean_logprob": pytest.approx(sum(logprobs) / len(logprobs)),
            "right": rewards[at] == 1.0, "after": before,
        })  # fmt: skip
    return found


def test_a_batch_is_judged_by_what_earlier_batches_taught() -> None:
    workers, rows, progress = learned(FLOW)
    earlier: list[dict[str, Any]] = []
    for (flow, trees), row in zip(workers.batches, rows, strict=True):
        assert flow == FLOW.calibrated(earlier)
        assert flow.calibration() == {name.removeprefix("flow/"): row[name] for name in row if name.startswith("flow/")}
        new = [one for tree in trees for one in FLOW.evidence(tree)]
        assert new == [one for tree in trees for one in rows_of(tree)]
        earlier += new
    assert workers.batches[0][0] is FLOW, "of the first batch nothing is known"
    assert workers.batches[-1][0].judgement != Judgement(), "and later there was enough"
    assert workers.batches[-1][0].threshold != FLOW.threshold
    assert list(progress.evidence) == earlier[-NUM_EVIDENCE:]
    assert {one["after"] for one in earlier} == {True, False, None}
    # Only the judgement and the threshold are set.
    last = workers.batches[-1][0]
    assert replace(last, judgement=FLOW.judgement, threshold=FLOW.threshold) == FLOW


def test_a_verdict_changes_no_attempt_of_its_own_batch() -> None:
    """Eleven verdicts of one batch are turned round: it is sampled alike, and only those after it are not."""
    turned = frozenset(problem.id for problem in PROBLEMS[24:35])
    before, rows, _ = learned(FLOW)
    after, others, _ = learned(FLOW, turned)
    for at in range(5):
        flows = before.batches[at][0], after.batches[at][0]
        sampled = [
            [[node.completion for node in tree.nodes] for tree in each.batches[at][1]] for each in (before, after)
        ]
        if at <= 2:
            assert flows[0] == flows[1]
            assert sampled[0] == sampled[1]
        else:
            assert flows[0] != flows[1]
    assert [row["progressive/accuracy"] for row in rows[:2]] == [row["progressive/accuracy"] for row in others[:2]]
    assert rows[2]["progressive/accuracy"] != others[2]["progressive/accuracy"]


@pytest.mark.parametrize("change", [{"calibrate": False}, {"threshold": None}], ids=str)
def test_a_flow_that_is_not_to_be_calibrated_keeps_its_settings(change: dict[str, Any]) -> None:
    flow = replace(FLOW, **change)
    workers, rows, _ = learned(flow, num=48)
    assert all(one is flow for one, _ in workers.batches)
    found = {name: value for name, value in rows[-1].items() if name.startswith("flow/")}
    expected = {"threshold": 0.6, "judgement.bias": 0.0, "judgement.stop": 1.0, "judgement.likelihood": 0.0}
    assert found == ({} if flow.threshold is None else {f"flow/{name}": value for name, value in expected.items()})


def test_evidence_goes_through_a_checkpoint_as_it_is() -> None:
    """Half a run, its counts as JSON and back, and the other half: the same flows, trees and rows as in one go."""
    whole, rows, progress = learned(FLOW)
    first, rows_before, half = learned(FLOW, num=36)
    state = json.loads(json.dumps(half.state(), allow_nan=False))
    restored = ProgressiveValidation.from_state(state)
    assert restored == half
    second, rows_after, again = learned(FLOW, progress=restored)
    assert again.state() == progress.state()
    assert [flow for flow, _ in (*first.batches, *second.batches)] == [flow for flow, _ in whole.batches]
    assert [trees for _, trees in (*first.batches, *second.batches)] == [trees for _, trees in whole.batches]
    timed = {"learn/seconds", "rollout/wait_seconds"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in (*rows_before, *rows_after)] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows
    ]


def test_counts_that_are_older_than_evidence_begin_to_gather_it() -> None:
    _, _, progress = learned(FLOW, num=24)
    state = progress.state()
    del state["evidence"]
    restored = ProgressiveValidation.from_state(state)
    assert (restored.num_seen, list(restored.evidence), restored.evidence.maxlen) == (24, [], NUM_EVIDENCE)


def test_only_the_latest_evidence_is_kept() -> None:
    progress = ProgressiveValidation()
    for at in range(NUM_EVIDENCE + 5):
        progress.see(None, [{"at": at}])
    assert [one["at"] for one in progress.evidence] == list(range(5, NUM_EVIDENCE + 5))
