"""A search that asks what a state is worth: the flow by hand, the search against brute force, what the role learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.errors import FlowError
from flow_dpo.core.explore import Group
from flow_dpo.core.metrics import tree_metrics
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import ScoredCompletion, Solution, TokenIds, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.cpl.credit import ValuePairs, node_values
from flow_dpo.recipes.cpl.flow import PlanSolve, PlanSolvePrompts
from flow_dpo.recipes.cpl.mcts import Mcts
from flow_dpo.recipes.cpl.objective import StepApo
from flow_dpo.runs.files import read_jsonl
from tests.core.test_explore import END, NO, PROBLEMS, YES, Bare, next_probs
from tests.recipes.test_cpl import replay, said
from tests.recipes.test_rpo import finds
from tests.recipes.test_vineppo import graded_trees
from tests.support.graders import FunctionGrader
from tests.support.tree_builders import completion, problem, request

PROMPTS = PlanSolvePrompts(solve_user="", value_user="{plan}")
FLOW = PlanSolve(value_role=True, plan_tokens=2, max_plan_steps=3, max_tokens=2, long_plan="solve", prompts=PROMPTS)
VALUED = ("--flow.value_role", "--explore.valued_by", "value", "--credit.valued_by", "value")
SETTINGS = Mcts(num_iterations=8, valued_by="value")


def words(role: str, prefix: TokenIds) -> dict[int, float]:
    if role == "value":
        return {YES: 0.8, NO: 0.2} if sum(prefix) % 2 else {YES: 0.35, NO: 0.65}
    return next_probs(role, prefix)


def explore(num: int, settings: Mcts | Group = SETTINGS, flow: PlanSolve = FLOW) -> list[Tree]:
    runner = RolloutRunner(TabularEngine(words, end_ids={END}), Bare(), FunctionGrader(finds))
    return settings(flow, runner, PROBLEMS[:num], seed=0)


# ---- the flow -------------------------------------------------------------------------------------------------------


def test_a_value_is_said_after_every_plan_step_and_changes_nothing() -> None:
    flow = PlanSolve(value_role=True, max_plan_steps=2, prompts=PlanSolvePrompts(value_user="{question}|{plan}|"))
    yes = replace(said(90, finish="choice"), choice=0)
    roles: list[str] = []
    state = flow.start(replace(PROBLEMS[0], question="{plan}?"))
    for one in (said(5, 6), yes, said(7, 2, finish="stop"), replace(yes, choice=1), said(8, 2, finish="stop")):
        turn = flow.turn(state)
        assert turn is not None
        roles.append(turn.role)
        if turn.role == "value":
            assert turn.choices == ("Yes", "No")
        state = flow.advance(state, one)
        if roles == ["plan", "value", "plan"]:
            asked = flow.turn(state)
            assert asked is not None
            assert asked.messages[1].content == ("{plan}?|", (5, 6), (7,), "|")
    assert roles == ["plan", "value", "plan", "value", "answer"]
    assert flow.turn(state) is None
    assert flow.solution(state) == Solution(pieces=((8,),), ended=True)
    # Without the values it is the plain flow.
    plain = PlanSolve(max_plan_steps=2)
    before = plain.start(PROBLEMS[0])
    for one in (said(5, 6), said(7, 2, finish="stop"), said(8, 2, finish="stop")):
        before = plain.advance(before, one)
    assert plain.solution(before) == flow.solution(state)


def test_a_plan_that_is_the_whole_solution_is_not_valued() -> None:
    ended = FLOW.advance(FLOW.start(PROBLEMS[0]), said(5, 2, finish="stop"))
    assert FLOW.turn(ended) is None


# ---- the search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, num_iterations=18, num_root_children=3, puct=0.3)])
def test_every_play_begins_where_brute_force_says(settings: Mcts) -> None:
    trees = graded_trees(explore(120, settings))
    assert max(replay(tree, settings) for tree in trees) == settings.num_iterations
    assert len({len(tree.rollouts) for tree in trees}) > 1


def test_plays_but_the_trunk_stop_with_a_value_and_hold_what_was_said() -> None:
    stopped = 0
    for tree, plain in zip(explore(200), explore(200, Group(num_rollouts=1)), strict=True):
        assert tree.trunk_nodes() == plain.trunk_nodes()
        assert tree.trunk.value is None
        for rollout in tree.rollouts[1:]:
            leaf, path = tree.nodes[rollout.leaf], tree.path(rollout.leaf)
            values = [node for node in path if node.role == "value" and node.rollout == rollout.id]
            if rollout.value is None:
                assert leaf.role == "answer" or leaf.completion.finish_reason == "stop"
                assert not values
            else:
                assert values == [leaf]
                assert not rollout.solution.ended
                likely = words("value", leaf.request.prompt_ids)[YES]
                assert rollout.value == pytest.approx(2 * likely - 1)
                stopped += 1
        # Of values there is one to a state, whatever it says.
        assert all(len(tree.children(node.parent)) == 1 for node in tree.nodes if node.role == "value")
    assert stopped > 200


def test_a_role_that_is_not_there_is_refused() -> None:
    with pytest.raises(FlowError, match=r"valued_by expects a role of PlanSolve, one of \['plan', 'answer'\], found"):
        explore(1, flow=PlanSolve())


# ---- what it teaches ------------------------------------------------------------------------------------------------


def valued() -> Tree:
    """a - V(.6) - x right (trunk), y wrong, z right; b - W, where it stopped at -0.4; c - U, at 0.2, then d wrong."""
    tree = Tree(problem=problem())
    end, begun = Solution(pieces=((5,),), ended=True), Solution(pieces=((6,),), ended=False)
    q, ask = request("plan", 1), replace(request("stop", 2), role="value")
    value = completion(YES, choice=0)
    other = replace(completion(NO, choice=1), choice_logprobs=(math.log(0.3), math.log(0.7)))
    a = request("answer", 1, 5)
    tree.add_rollout(None, [(q, completion(5), ()), (ask, value, ()), (a, completion(11), ())], end)
    tree.add_rollout(1, [(a, completion(12), ())], end)
    tree.add_rollout(1, [(a, completion(13), ())], end)
    tree.add_rollout(None, [(q, completion(6), ()), (ask, other, ())], begun, value=-0.4)
    tree.add_rollout(None, [(q, completion(7), ()), (ask, other, ())], begun, value=0.2)
    tree.add_rollout(8, [(request("answer", 1, 7), completion(14), ())], end)
    for rollout, right in ((0, True), (1, False), (2, True), (5, False)):
        tree.grade(rollout, "", Verdict(status="correct" if right else "wrong"))
    return tree


def test_pairs_weigh_what_was_said_of_a_state_and_targets_ends_alone() -> None:
    tree = valued()
    third = 1 / 3
    assert node_values(tree) == pytest.approx(
        {0: third, 1: third, 2: 1, 3: -1, 4: 1, 5: -0.4, 6: -0.4, 7: -0.4, 8: -0.4, 9: -1}
    )
    pairs = ValuePairs(solution_pairs="all", solution_scale=1.0)([tree])
    assert [(p.chosen_node, p.rejected_node, p.margin) for p in pairs][:2] == [
        (0, 5, pytest.approx(third + 0.4)),
        (0, 7, pytest.approx(third + 0.4)),
    ]
    # Of every state on the way to a solution, V and U, the word that its Q leans to, and how likely it should be.
    targets = [e for e in ValuePairs(valued_by="value")([tree]) if isinstance(e, ScoredCompletion)]
    assert [(t.node, t.completion.choice, t.advantage) for t in targets] == [
        (1, 0, pytest.approx((1 + third) / 2)),
        (8, 1, pytest.approx((1 + 0.4) / 2)),
    ]
    # By how the trunk ended: of V alone. W and U are not on the trunk.
    ends = ValuePairs(valued_by="value", value_targets="end")
    targets = [e for e in ends([tree]) if isinstance(e, ScoredCompletion)]
    assert ends([tree])[len(targets) :] == ValuePairs()([tree])
    assert [(t.node, t.completion, t.advantage) for t in targets] == [(1, tree.nodes[1].completion, 1.0)]
    assert [p.request.role for p in ValuePairs(valued_by="nobody")([tree])] == [
        p.request.role for p in ValuePairs()([tree])
    ]
    # What the role says is imitated by nobody.
    roles = [e.request.role for e in ValuePairs(fine_tune=True, valued_by="value")([tree])]
    assert roles == ["value", "value", "plan", "answer", "answer", *["plan", "plan", "answer"]]


def test_a_wrong_trunk_should_have_been_doubted() -> None:
    tree = valued()
    tree.grade(0, "", Verdict(status="wrong"))
    ends = ValuePairs(valued_by="value", value_targets="end")
    [target] = [t for t in ends([tree]) if isinstance(t, ScoredCompletion)]
    assert (target.node, target.completion.token_ids, target.completion.choice) == (1, (NO,), 1)
    assert target.completion.logprobs == (-0.9,)
    tree.grade(0, "", Verdict(status="ungraded"))
    assert not any(isinstance(t, ScoredCompletion) for t in ends([tree]))


@pytest.mark.parametrize(("value", "choice"), [(0.5, 0), (-0.5, 1)])
def test_a_value_is_a_tanh_and_its_loss_a_squared_error(value: float, choice: int) -> None:
    """Logits 0.9 and 0.3 of Yes and No: the value is tanh(0.3). By either word the loss is (tanh(0.3) - Q)^2."""
    asked = replace(request("stop", 2), role="value")
    word = ScoredCompletion(
        request=asked, completion=completion((YES, NO)[choice], choice=choice), advantage=(1 + abs(value)) / 2
    )
    logits = torch.tensor([0.9, 0.3], requires_grad=True)
    logprob = logits.log_softmax(-1)[choice : choice + 1]
    loss = StepApo()([word], [[logprob]], [()])
    tanh = math.tanh(0.3)
    assert loss.total.item() == pytest.approx((tanh - value) ** 2, rel=1e-5)
    assert float(loss.measures["value_loss"]) == pytest.approx((tanh - value) ** 2, rel=1e-5)
    # d tanh(d / 2) / d d = (1 - tanh^2) / 2, d the difference of the logits.
    slope = 2 * (tanh - value) * (1 - tanh**2) / 2
    assert torch.autograd.grad(loss.total, logits)[0].tolist() == pytest.approx([slope, -slope], rel=1e-4)
    # Or by cross-entropy.
    entropy = StepApo(value_loss="entropy")([replace(word, advantage=1.0)], [[logprob]], [()])
    assert entropy.total.item() == pytest.approx(-logprob.item(), rel=1e-6)


def test_a_role_that_writes_values_nothing() -> None:
    with pytest.raises(FlowError, match="a role of PlanSolve that chooses a word, found 'plan', which writes"):
        explore(1, replace(SETTINGS, valued_by="plan"))


def test_values_become_truer_on_the_seed(tmp_path: Path) -> None:
    """After some updates, what is said of states from which plays ended is nearer to how they ended."""
    flags = ["--recipe", "cpl", *VALUED, "--max_problems", "32", "--problems_per_batch", "8",
             "--num_iterations", "6", "--examples_per_update", "16"]  # fmt: skip
    assert train.train([*flags, "--output_dir", str(tmp_path / "run")]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    losses = [row["learn/value/value_loss"] for row in rows]
    assert losses[-1] < losses[0]
    trees = read_jsonl(tmp_path / "run" / "trees.jsonl")
    plays = [play for tree in trees for play in tree["rollouts"]]
    assert {play["verdict"] is None for play in plays if play["value"] is not None} == {True}
    assert {play["verdict"] is None for play in plays if play["value"] is None} == {False}
    assert any(play["value"] is not None for play in plays)


def test_a_batch_counts_what_was_graded_and_what_stopped() -> None:
    tree = valued()
    # Both figures of a batch: plays that were graded, and ties among those and the values.
    metrics = tree_metrics([tree], ValuePairs(valued_by="value")([tree]), FLOW.roles)
    assert (metrics["num_rollouts"], metrics["num_verdicts"], metrics["tied_trees"]) == (6, 4, 0)
    assert metrics["ungraded/plan"] == 0
