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
from flow_dpo.recipes.cpl.flow import PlanSolve, PlanSolvePrompts, WorkedPlan
from flow_dpo.recipes.cpl.mcts import Mcts
from tests.core.test_explore import ANSWER_PROMPT, END, PROBLEMS, Bare, fits, next_probs
from tests.recipes.test_rpo import finds
from tests.recipes.test_vineppo import graded_trees
from tests.support.graders import FunctionGrader
from tests.support.packed_builders import answer_pair
from tests.support.tree_builders import completion, graded, problem, request, valued

FLOW = PlanSolve(
    plan_tokens=2, max_plan_steps=2, max_tokens=2, long_plan="solve", prompts=PlanSolvePrompts(solve_user="")
)


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


def test_a_seventh_level_is_wrong_whatever_it_holds() -> None:
    """Two plan steps and a solution: after them a plan may only end."""
    flow = PlanSolve(max_plan_steps=2)
    state = flow.start(PROBLEMS[0])
    for ids in (5, 6):
        state = flow.advance(state, said(ids, 1))
        turn = flow.turn(state)
        assert turn is not None
        assert turn.role == "plan"
    ended = flow.advance(state, said(2, finish="stop"))
    turn = flow.turn(ended)
    assert turn is not None
    assert turn.role == "answer"
    assert flow.solution(flow.advance(ended, said(8, 2, finish="stop"))).ended
    for step in (said(7, 1), said(7, 2, finish="stop")):
        long = flow.advance(state, step)
        assert flow.turn(long) is None
        assert flow.solution(long) == Solution(pieces=(), ended=False)


def test_worked_examples_are_turns_before_the_question() -> None:
    shown = WorkedPlan(question="{plan}", plan="Plan 1: Add.", solution="1. 1 + 1 = 2\nAnswer: 2")
    flow = PlanSolve(prompts=PlanSolvePrompts(examples=(shown,), solve_user="Q {question} P {plan} S"))
    plan = flow.turn(flow.start(PROBLEMS[0]))
    assert plan is not None
    assert [m.role for m in plan.messages] == ["system", "user", "assistant", "user"]
    assert [m.content for m in plan.messages[1:]] == [("{plan}",), ("Plan 1: Add.",), (PROBLEMS[0].question,)]
    answer = flow.turn(flow.advance(flow.start(PROBLEMS[0]), said(5, 2, finish="stop")))
    assert answer is not None
    assert [m.content for m in answer.messages[1:]] == [
        ("Q {plan} P Plan 1: Add. S",), (shown.solution,), (f"Q {PROBLEMS[0].question} P ", (5,), " S"),
    ]  # fmt: skip


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


SETTINGS = Mcts(num_iterations=5, num_root_children=4)


def test_the_first_play_is_a_plain_draw_and_the_budget_is_kept() -> None:
    trees = explore(200, SETTINGS)
    for tree, group in zip(trees, explore(200, Group(num_rollouts=1)), strict=True):
        assert tree.trunk_nodes() == group.trunk_nodes()
        assert len(tree.rollouts) <= 4 + 4 * 3
        for node in tree.nodes:
            family = [one.completion.token_ids for one in tree.children(node.parent)]
            assert len(set(family)) == len(family) <= (4 if node.parent is None else 3)
        # A path holds the very tokens that its prompts hold.
        for node in tree.nodes:
            before = [t for one in tree.path(node.id)[:-1] for t in one.completion.content_ids]
            assert list(node.request.prompt_ids) == [ANSWER_PROMPT, *before]
    assert max(len(tree.rollouts) for tree in trees) > 6


def test_children_are_independent_draws_of_which_equal_ones_count_once() -> None:
    settings = Mcts(num_iterations=1, num_root_children=3)
    drawn = Counter(
        tuple(node.completion.token_ids for node in tree.children(None)) for tree in explore(3000, settings)
    )
    one = dict(lines((ANSWER_PROMPT,)))
    expected: Counter[tuple[TokenIds, ...]] = Counter()
    for triple in itertools.product(one, repeat=3):
        expected[tuple(dict.fromkeys(triple))] += math.prod(one[ids] for ids in triple)  # type: ignore[assignment]
    assert math.fsum(expected.values()) == pytest.approx(1)
    assert fits(drawn, dict(expected))  # type: ignore[arg-type]


def replay(tree: Tree, settings: Mcts) -> int:
    """Search the finished tree again from its rollouts alone, counting everything anew; the iterations that it took.

    Children that were drawn and never visited are in no tree: they did not score highest at any time.
    """
    rewards = {r.id: 2 * r.verdict.reward - 1 for r in tree.rollouts if r.verdict}  # type: ignore[operator]
    rewards |= {r.id: r.value for r in tree.rollouts if r.value is not None}
    paths = {r.id: [node.id for node in tree.path(r.leaf)] for r in tree.rollouts}
    probes = {node.id for node in tree.nodes if tree.rollout_of(node).probe}
    known, num_iterations, expanded = 0, 0, set[int | None]()

    def children(node: int | None) -> list[int]:
        return [child.id for child in tree.children(node) if child.id not in probes]

    def through(node: int | None) -> list[int]:
        return [i for i in range(known) if node is None or node in paths[i]]

    def closed(node: int | None) -> bool:
        if any(paths[i][-1] == node and tree.rollouts[i].value is None for i in range(known)):
            return True
        return (node in expanded or valued(node)) and all(closed(child) for child in children(node))

    def valued(node: int | None) -> bool:
        """What comes next is a value, which is there."""
        return any(tree.nodes[child].role == settings.valued_by and through(child) for child in children(node))

    def score(node: int | None, child: int) -> float:
        logprobs = tree.nodes[child].completion.logprobs
        prior = math.exp(sum(logprobs) / len(logprobs))
        found = [rewards[i] for i in through(child)]
        value = sum(found) / len(found) if found else 0.0
        return value + settings.puct * prior * math.sqrt(len(through(node))) / (1 + len(found))

    def origin(rollout: int) -> int | None:
        """The node at whose expansion it was made: a probe's is above its child."""
        start = tree.nodes[tree.rollouts[rollout].start].parent
        return tree.nodes[start].parent if start is not None and tree.rollouts[rollout].probe else start

    while num_iterations < settings.num_iterations and not (num_iterations and closed(None)):
        at: int | None = None
        while at in expanded or valued(at):
            ranked = {child: score(at, child) for child in children(at) if not closed(child)}
            ties = [child for child in ranked if ranked[child] > max(ranked.values()) - 1e-12]
            following = paths[known] if known < len(paths) else []
            at = next((child for child in ties if child in following), ties[0])
        num_iterations += 1
        # 1. A state that a role values, before it is expanded.
        if settings.valued_by and at is not None and tree.nodes[at].role != settings.valued_by:
            assert paths[known][-2] == at, "another state than the one that scores highest"
            at, known = paths[known][-1], known + 1
        # 2. The children that are new and have a value.
        expanded.add(at)
        while known < len(tree.rollouts) and tree.rollouts[known].value is None and origin(known) == at:
            known += 1
    assert known == len(tree.rollouts), "a play that this search would not have made"
    return num_iterations


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        Mcts(num_iterations=10, puct=0.2),
        Mcts(num_iterations=6, num_children=2, num_root_children=2),
        Mcts(num_iterations=5, num_rollouts=3),
    ],
    ids=["four at the root", "greedier", "two", "probes"],
)
def test_every_play_begins_where_brute_force_says(settings: Mcts) -> None:
    trees = graded_trees(explore(60, settings))
    iterations = {replay(tree, settings) for tree in trees}
    assert len(iterations) > 1, "some trees are exhausted"
    assert max(iterations) == settings.num_iterations


def test_a_new_child_is_valued_by_so_many_independent_draws() -> None:
    """Below each child that is no end, three rollouts, the second and third of which are plain draws from there."""
    settings = Mcts(num_iterations=1, num_root_children=2, num_rollouts=3)
    drawn: dict[TokenIds, Counter[TokenIds]] = {}
    for tree in explore(1500, settings):
        for child in tree.children(None):
            below = [node for node in tree.nodes if node.parent == child.id]
            assert len(below) in (0, 3)
            assert [tree.rollout_of(node).probe for node in below] in ([], [False, True, True])
            for node in below[1:]:
                drawn.setdefault(node.request.prompt_ids, Counter())[node.completion.token_ids] += 1
    assert len(drawn) > 2
    for prompt, counts in drawn.items():
        assert fits(counts, dict(lines(prompt))), prompt


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
    made = lambda **settings: [  # noqa: E731
        (p.request.role, p.chosen_node, p.rejected_node, pytest.approx(p.margin))
        for p in ValuePairs(**settings)([tree])
    ]
    # b is a whole solution, and is not compared with a and c, which are plan steps.
    assert made() == [("answer", 1, 6, 0.6), ("answer", 4, 7, 0.6)]
    assert made(solution_scale=1.0) == [("answer", 1, 6, 2.0), ("answer", 4, 7, 2.0)]
    assert made(solution_pairs="problem") == [("answer", 1, 6, 0.6)]
    every = [("answer", 1, 6, 0.6), ("answer", 5, 6, 0.6), ("answer", 4, 7, 0.6)]
    assert made(solution_pairs="all") == every
    # Had b been continued, it were a plan step.
    tree.add_rollout(2, [(request("answer", 1, 6), completion(16), ())], tree.trunk.solution)
    tree.rollouts[1] = replace(tree.rollouts[1], value=-1.0, verdict=None)
    tree.grade(6, "", Verdict(status="wrong"))
    assert made() == [("plan", 0, 2, 4 / 3), ("answer", 1, 6, 0.6), ("answer", 4, 7, 0.6)]  # c is at 0: neither
    assert made(threshold=0.5) == made()[1:]
    with pytest.raises(ConfigError, match="expected threshold of 0 or more and below 1"):
        ValuePairs(threshold=1.0)
    with pytest.raises(ConfigError, match="expected puct of 0 or more"):
        Mcts(puct=-1.0)
    with pytest.raises(ConfigError, match="solution_scale"):
        ValuePairs(solution_scale=0.0)


def test_what_has_no_solution_counts_and_is_in_no_pair() -> None:
    """b is a plan that is too long, z a solution without an answer: both are -1 above, and taught to nobody."""
    tree = drawn()
    tree.rollouts[1] = replace(tree.rollouts[1], solution=Solution(pieces=(), ended=False))
    tree.grade(4, "", Verdict(status="wrong", reason="no answer"))
    assert node_values(tree)[2] == node_values(tree)[6] == -1
    assert [(p.chosen_node, p.rejected_node) for p in ValuePairs()([tree])] == [(4, 7)]


def test_values_of_real_valued_rewards_by_hand() -> None:
    """Rewards 0.75, 0.25, 1, 0.5, 0 and none are the values 0.5, -0.5, 1, 0, -1 and none: a is at their mean -1/6."""
    tree = valued(drawn(), 0.75, 0.25, 1.0, 0.5, 0.0, None)
    assert node_values(tree) == pytest.approx({0: -1 / 6, 1: 0.5, 2: -0.5, 3: 1, 4: 1, 5: 0, 6: -1})
    pairs = ValuePairs(solution_scale=0.5)([tree])
    assert [(p.chosen_node, p.rejected_node, p.margin) for p in pairs] == [
        (3, 0, pytest.approx(7 / 6)), (1, 6, 0.75)
    ]  # fmt: skip
    assert [(p.chosen_node, p.rejected_node) for p in ValuePairs(threshold=0.4)([tree])] == [(1, 6)]


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
