"""Critical Plan Step Learning: the flow by hand, the search against brute force, pairs and margins by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.explore import Group, Siblings
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Completion, FinishReason, Solution, TokenIds, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.cpl.credit import ValuePairs, node_values
from flow_dpo.recipes.cpl.flow import PlanSolve, PlanSolvePrompts
from flow_dpo.recipes.cpl.mcts import Mcts
from tests.core.test_explore import ANSWER_PROMPT, END, PROBLEMS, Bare, fits, next_probs
from tests.recipes.test_rpo import finds
from tests.recipes.test_vineppo import graded_trees
from tests.support.graders import FunctionGrader
from tests.support.packed_builders import answer_pair
from tests.support.tree_builders import completion, graded, problem, request, valued

FLOW = PlanSolve(plan_tokens=2, max_plan_steps=2, max_tokens=2, prompts=PlanSolvePrompts(solve_user=""))


def said(*ids: int, finish: FinishReason = "length") -> Completion:
    zeros = (0.0,) * len(ids)
    return Completion(token_ids=ids, logprobs=zeros, sampled_logprobs=zeros, finish_reason=finish, policy_version=0)


# ---- the flow -------------------------------------------------------------------------------------------------------


def test_a_plan_and_then_a_solution_that_reads_it() -> None:
    flow = PlanSolve(
        plan_tokens=5, max_plan_steps=3, max_tokens=9, prompts=PlanSolvePrompts(solve_user="{plan}|{question}")
    )
    state = flow.start(replace(PROBLEMS[0], question="{plan}?"))
    turn = flow.turn(state)
    assert turn is not None
    assert (turn.role, turn.one_line, turn.max_tokens, turn.continuation) == ("plan", True, 5, ())
    state = flow.advance(state, said(5, 6))
    turn = flow.turn(state)
    assert turn is not None
    assert (turn.role, turn.continuation) == ("plan", ((5, 6),))
    state = flow.advance(state, said(7, 2, finish="stop"))
    turn = flow.turn(state)
    assert turn is not None
    assert (turn.role, turn.one_line, turn.max_tokens, turn.continuation) == ("answer", False, 9, ())
    assert turn.messages[1].content == ("", (5, 6), (7,), "|{plan}?")
    state = flow.advance(state, said(8, 2, finish="stop"))
    assert flow.turn(state) is None
    # The plan is not part of the solution: a number in it is no answer.
    assert flow.solution(state) == Solution(pieces=((8,),), ended=True)


def test_a_plan_that_begins_the_solution() -> None:
    state = FLOW.advance(FLOW.start(PROBLEMS[0]), said(5, 6))
    ended = FLOW.advance(state, said(7, 2, finish="stop"))
    assert FLOW.turn(ended) is None
    assert FLOW.solution(ended) == Solution(pieces=((5, 6), (7,)), ended=True)
    capped = FLOW.advance(state, said(7, 7))
    turn = FLOW.turn(capped)
    assert turn is not None
    assert (turn.role, turn.continuation) == ("answer", ((5, 6), (7, 7)))
    done = FLOW.advance(capped, said(4, 4))
    assert FLOW.solution(done) == Solution(pieces=((5, 6), (7, 7), (4, 4)), ended=False)


def test_plan_steps_end_with_their_line() -> None:
    """Token 1 is a line's end: nothing follows it in a plan step, and in a solution anything may."""
    trees = explore(300, Group(num_rollouts=1))
    steps = [node.completion for tree in trees for node in tree.nodes if node.role == "plan"]
    assert all(1 not in step.token_ids[:-1] for step in steps)
    assert any(step.token_ids == (1,) for step in steps)
    assert any(node.completion.token_ids[0] == 1 != len(node.completion.token_ids) for t in trees for node in t.nodes)
    drawn = Counter(tree.nodes[0].completion.token_ids for tree in explore(4000, Group(num_rollouts=1)))
    assert fits(drawn, dict(lines((ANSWER_PROMPT,))))


def test_alternatives_to_a_line_are_lines_drawn_to_differ() -> None:
    one = dict(lines((ANSWER_PROMPT,)))
    by_trunk: dict[TokenIds, Counter[TokenIds]] = {}
    for tree in explore(4000, Siblings()):
        trunk, other = tree.children(None)
        by_trunk.setdefault(trunk.completion.token_ids, Counter())[other.completion.token_ids] += 1
    assert set(by_trunk) == set(one)
    for said_first, others in by_trunk.items():
        left = 1 - one[said_first]
        assert fits(others, {ids: p / left for ids, p in one.items() if ids != said_first}), said_first


# ---- the search -----------------------------------------------------------------------------------------------------


def lines(prefix: TokenIds, left: int = 2) -> Iterator[tuple[TokenIds, float]]:
    """Every plan step with its probability."""
    for token, p in next_probs("plan", prefix).items():
        if token in (END, 1) or left == 1:
            yield (token,), p
        else:
            for rest, q in lines((*prefix, token), left - 1):
                yield (token, *rest), p * q


def explore(num: int, settings: Mcts | Group | Siblings, first: int = 0) -> list[Tree]:
    runner = RolloutRunner(TabularEngine(next_probs, end_ids={END}), Bare(), FunctionGrader(finds))
    return settings(FLOW, runner, PROBLEMS[first : first + num], seed=0)


SETTINGS = Mcts(num_rollouts=12)


def test_the_first_play_is_a_plain_draw_and_the_budget_is_kept() -> None:
    trees = explore(200, SETTINGS)
    for tree, group in zip(trees, explore(200, Group(num_rollouts=1)), strict=True):
        assert tree.trunk_nodes() == group.trunk_nodes()
        assert len(tree.rollouts) <= 12
        for node in tree.nodes:
            family = [one.completion.token_ids for one in tree.children(node.parent)]
            assert len(set(family)) == len(family) <= 3
        # A path holds the very tokens that its prompts hold.
        for node in tree.nodes:
            before = [t for one in tree.path(node.id)[:-1] for t in one.completion.content_ids]
            assert list(node.request.prompt_ids) == [ANSWER_PROMPT, *before]
    assert max(len(tree.rollouts) for tree in trees) > 6


def test_children_are_independent_draws_of_which_equal_ones_count_once() -> None:
    drawn = Counter(
        tuple(node.completion.token_ids for node in tree.children(None)) for tree in explore(3000, Mcts(num_rollouts=3))
    )
    one = dict(lines((ANSWER_PROMPT,)))
    expected: Counter[tuple[TokenIds, ...]] = Counter()
    for triple in itertools.product(one, repeat=3):
        expected[tuple(dict.fromkeys(triple))] += math.prod(one[ids] for ids in triple)  # type: ignore[assignment]
    assert math.fsum(expected.values()) == pytest.approx(1)
    assert fits(drawn, dict(expected))  # type: ignore[arg-type]


def replay(tree: Tree, settings: Mcts) -> None:
    """Search the finished tree again from its plays alone, counting everything anew."""
    rewards = {r.id: 2 * r.verdict.reward - 1 for r in tree.rollouts if r.verdict}  # type: ignore[operator]
    rewards |= {r.id: r.value for r in tree.rollouts if r.value is not None}
    paths = {r.id: [node.id for node in tree.path(r.leaf)] for r in tree.rollouts}
    known, expanded = 1, set[int | None]()

    def children(node: int | None) -> list[int]:
        return sorted({n for i in range(known) for n in paths[i] if tree.nodes[n].parent == node})

    def closed(node: int | None) -> bool:
        if any(paths[i][-1] == node and tree.rollouts[i].value is None for i in range(known)):
            return True
        return (node in expanded or spoken(node)) and all(closed(child) for child in children(node))

    def spoken(node: int | None) -> bool:
        """What is said next is a value, of which there is one."""
        return any(tree.nodes[child].role == settings.valued_by for child in children(node))

    def score(node: int | None, child: int) -> float:
        through = [i for i in range(known) if child in paths[i]]
        above = known if node is None else sum(node in paths[i] for i in range(known))
        logprobs = tree.nodes[child].completion.logprobs
        prior = math.exp(sum(logprobs) / len(logprobs))
        value = sum(rewards[i] for i in through) / len(through)
        return value + settings.puct * prior * math.sqrt(above) / (1 + len(through))

    while known < settings.num_rollouts and not closed(None):
        at: int | None = None
        while at in expanded or spoken(at):
            best = max((child for child in children(at) if not closed(child)), key=lambda c: score(at, c))
            at = best
        expanded.add(at)
        while known < len(tree.rollouts) and tree.nodes[tree.rollouts[known].start].parent == at:
            known += 1
    assert known == len(tree.rollouts), "a play that this search would not have made"


@pytest.mark.parametrize("settings", [SETTINGS, Mcts(num_rollouts=25, puct=0.2), Mcts(num_rollouts=9, num_children=2)])
def test_every_play_begins_where_brute_force_says(settings: Mcts) -> None:
    trees = graded_trees(explore(80, settings))
    for tree in trees:
        assert len(tree.rollouts) <= settings.num_rollouts
        replay(tree, settings)
    assert len({len(tree.rollouts) for tree in trees}) > 1


def test_the_same_seed_gives_the_same_trees_however_they_are_batched() -> None:
    together = explore(20, SETTINGS)
    assert together == [explore(1, SETTINGS, first=i)[0] for i in range(20)]


def test_alone_is_one_play() -> None:
    assert Mcts(top_p=0.9).alone(greedy=True) == Group(num_rollouts=1, top_p=0.9, greedy_trunk=True)


# ---- credit and objective -------------------------------------------------------------------------------------------


def drawn() -> Tree:
    """Children a (right, right, wrong), b (wrong) and c (right, wrong) of the question; below a: x right, y, z.

    a - x (play 0, right)   b (play 1, wrong)   c - u (play 2, right)   a - y (play 3, right)   a - z (play 4, wrong)
    c - v (play 5, wrong)
    """
    tree = Tree(problem=problem())
    end = Solution(pieces=((5,),), ended=True)
    q, a, c = request("plan", 1), request("answer", 1, 5), request("answer", 1, 7)
    tree.add_rollout(None, [(q, completion(5), ()), (a, completion(11), ())], end)
    tree.add_rollout(None, [(q, completion(6), ())], end)
    tree.add_rollout(None, [(q, completion(7), ()), (c, completion(12), ())], end)
    tree.add_rollout(0, [(a, completion(13), ())], end)
    tree.add_rollout(0, [(a, completion(14), ())], end)
    tree.add_rollout(3, [(c, completion(15), ())], end)
    return graded(tree, "correct", "wrong", "correct", "correct", "wrong", "wrong")


def test_values_are_means_over_plays_and_pairs_have_their_difference() -> None:
    tree = drawn()
    assert node_values(tree) == pytest.approx({0: 1 / 3, 1: 1, 2: -1, 3: 0, 4: 1, 5: 1, 6: -1, 7: -1})
    pairs = ValuePairs()([tree])
    assert [(p.request.role, p.chosen_node, p.rejected_node, p.margin) for p in pairs] == [
        ("plan", 0, 2, pytest.approx(4 / 3)),  # c is at 0: neither
        ("answer", 1, 6, 2.0),
        ("answer", 5, 6, 2.0),
        ("answer", 4, 7, 2.0),
    ]
    assert [p.chosen_node for p in ValuePairs(threshold=0.5)([tree])] == [1, 5, 4]
    tree.grade(1, "", Verdict(status="ungraded"))
    assert 2 not in node_values(tree)
    assert [p.request.role for p in ValuePairs()([tree])] == ["answer"] * 3


def test_values_of_real_valued_rewards_by_hand() -> None:
    """Rewards 0.75, 0.25, 1, 0.5, 0 and none are the values 0.5, -0.5, 1, 0, -1 and none: a is at their mean -1/6."""
    tree = valued(drawn(), 0.75, 0.25, 1.0, 0.5, 0.0, None)
    assert node_values(tree) == pytest.approx({0: -1 / 6, 1: 0.5, 2: -0.5, 3: 1, 4: 1, 5: 0, 6: -1})
    pairs = ValuePairs()([tree])
    assert [(p.chosen_node, p.rejected_node, p.margin) for p in pairs] == [
        (3, 0, pytest.approx(7 / 6)), (3, 2, 1.5), (1, 6, 1.5)
    ]  # fmt: skip
    assert [(p.chosen_node, p.rejected_node) for p in ValuePairs(threshold=0.4)([tree])] == [(3, 2), (1, 6)]


def test_step_apo_by_hand() -> None:
    pair = replace(answer_pair((5,), (6, 7), (8, 9)), margin=4 / 3)
    policy = [[torch.tensor([-0.2, -0.1], requires_grad=True), torch.tensor([-0.3, -1.0], requires_grad=True)]]
    reference = [[torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]
    loss = Dpo(beta=0.3, margin_weight=1.0)([pair], policy, reference)
    # Log-ratios 0.2 and -0.1: h = 0.3 * 0.3 - 4/3.
    h = 0.09 - 4 / 3
    below = 1 / (1 + math.exp(h))
    assert loss.total.item() == pytest.approx(-math.log(1 - below), rel=1e-6)
    assert float(loss.measures["margin"]) == pytest.approx(0.09)
    chosen, rejected = torch.autograd.grad(loss.total, policy[0])
    assert chosen.tolist() == pytest.approx([-0.3 * below] * 2)
    assert rejected.tolist() == pytest.approx([0.3 * below] * 2)
    with pytest.raises(ConfigError, match="margin_weight"):
        Dpo(margin_weight=-1.0)
