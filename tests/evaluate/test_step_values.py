"""Are values of states compared with completions that the estimates did not see, and is the comparison right?"""

from __future__ import annotations

import math

import pytest

from benchmarks.step_values import State, compared, others, table
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Request, Verdict
from flow_dpo.recipes.vineppo.credit import state_values
from flow_dpo.recipes.vineppo.explore import StepRollouts
from tests.core.test_explore import explore
from tests.recipes.test_vineppo import ONE_PASS, graded_trees


def probes(tree: Tree) -> dict[Request, list[tuple[int, ...]]]:
    """What was said from each state, completion by completion."""
    found: dict[Request, list[tuple[int, ...]]] = {}
    for rollout in tree.rollouts:
        if rollout.probe:
            node = tree.nodes[rollout.start]
            found.setdefault(node.request, []).append(node.completion.token_ids)
    return found


def test_more_completions_leave_the_first_ones_as_they_are() -> None:
    few = explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=1, num_completions=3), num=100)
    many = explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=1, num_completions=8), num=100)
    for one, other in zip(few, many, strict=True):
        assert probes(one) == {request: said[:3] for request, said in probes(other).items()}


def test_the_truth_is_of_the_completions_behind_the_first() -> None:
    tree = graded_trees(explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=1, num_completions=6), num=1))[0]
    by_state: dict[Request, list[int]] = {}
    for rollout in tree.rollouts:
        if rollout.probe:
            by_state.setdefault(tree.nodes[rollout.start].request, []).append(rollout.id)
    request, ids = next(iter(by_state.items()))
    for index, rollout in enumerate(ids):
        tree.grade(rollout, "", Verdict(status="correct" if index < 2 or index == 5 else "wrong"))
    assert state_values(tree)[request] == 3 / 6
    assert others(tree, 2)[request] == 1 / 4
    tree.grade(ids[3], "", Verdict(status="ungraded"))
    assert others(tree, 2)[request] == 1 / 3


def test_the_comparison_by_hand() -> None:
    states = [
        State(problem="p", estimate=1.0, truth=0.5),
        State(problem="p", estimate=0.0, truth=0.25),
        State(problem="q", estimate=0.5, truth=0.5),
    ]
    found = compared(states, 2, 100)
    assert found["bias"] == pytest.approx(0.25 / 3)
    assert found["mean_absolute_error"] == pytest.approx(0.25)
    assert found["root_mean_squared_error"] == pytest.approx(math.sqrt((0.25 + 0.0625) / 3))
    variance = (0.25 + 0.1875 + 0.25) / 3 * 100 / 99
    assert found["root_mean_squared_error_by_chance"] == pytest.approx(math.sqrt(variance * (1 / 2 + 1 / 100)))
    # Resampled by problem: both p, p and q, or both q; bias 0.125, 0.0833 or 0.
    assert (found["bias_low"], found["bias_high"]) == (0.0, 0.125)
    # Deviations 0.5 -0.5 0 and 1/12 -1/6 1/12.
    assert found["correlation"] == pytest.approx((0.5 / 12 + 0.5 / 6) / math.sqrt(0.5 * (2 / 144 + 1 / 36)))


def test_estimates_that_are_all_alike_have_no_correlation() -> None:
    states = [State(problem=name, estimate=1.0, truth=0.5 + i / 10) for i, name in enumerate("pq")]
    found = compared(states, 4, 10)
    assert found["correlation"] is None
    row = {"name": "a", "num_states": 2, "num_problems": 2, "num_truth": 10, "mean_truth": 0.55}
    assert table({**row, "completions": {4: found}}).splitlines()[-1].endswith("| none |")


def test_unbiased_estimates_err_as_chance_has_them_err() -> None:
    """Of a small world: the root mean squared error of 1,500 problems' states is chance's own, within 5 %.

    Its standard error is 1.3 %, so that another seed would fail once in 8,000 times; a truth that shared one completion
    with the estimate would be 5.5 % too close, one that shared all four of them 20 %.
    """
    few = graded_trees(explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=1, num_completions=4), num=1500))
    many = graded_trees(explore(flow=ONE_PASS, settings=StepRollouts(num_rollouts=1, num_completions=20), num=1500))
    states = [
        State(problem=tree.problem.id, estimate=state_values(tree)[request], truth=truth)
        for tree, other in zip(few, many, strict=True)
        for request, truth in others(other, 4).items()
    ]
    found = compared(states, 4, 16)
    assert found["root_mean_squared_error"] == pytest.approx(found["root_mean_squared_error_by_chance"], rel=0.05)
    assert found["bias_low"] < 0 < found["bias_high"]
