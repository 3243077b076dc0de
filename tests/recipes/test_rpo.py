"""Reasoning Paths Optimization: what is visited, which pairs that gives, and the loss by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from flow_dpo.core.errors import ConfigError, FlowError
from flow_dpo.core.explore import Group
from flow_dpo.core.rollouts import RolloutRunner
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Problem, Solution, TokenIds, Verdict
from flow_dpo.engines.scripted import TabularEngine
from flow_dpo.recipes.rpo.credit import BranchPairs
from flow_dpo.recipes.rpo.explore import ReferencePath
from flow_dpo.recipes.rpo.objective import OddsRatio
from flow_dpo.recipes.single import Single
from tests.core.test_explore import ANSWER_PROMPT, END, PROBLEMS, Bare, chunks, fits, next_probs
from tests.recipes.test_vineppo import LENGTH, ONE_PASS, boundaries, graded_trees, right, said
from tests.support.graders import FunctionGrader
from tests.support.packed_builders import answer_pair
from tests.support.tree_builders import completion, graded, problem, request, valued


def finds(items: Sequence[tuple[Problem, Solution]]) -> list[Verdict]:
    """The made-up truth of `test_vine`."""
    return [
        Verdict(status="correct" if right(tuple(t for p in s.pieces if not isinstance(p, str) for t in p)) else "wrong")
        for _, s in items
    ]


def explore(num: int, settings: ReferencePath | Group, flow: Single = ONE_PASS, first: int = 0) -> list[Tree]:
    runner = RolloutRunner(TabularEngine(next_probs, end_ids={END}), Bare(), FunctionGrader(finds))
    return settings(flow, runner, PROBLEMS[first : first + num], seed=0)


SETTINGS = ReferencePath(num_rollouts=4, num_completions=3)


def test_the_first_right_play_is_branched_at_every_state_and_no_other() -> None:
    without = 0
    for tree in explore(300, SETTINGS):
        plays = [r.id for r in tree.rollouts if not r.probe]
        assert plays == [0, 1, 2, 3]
        reference = next((said(tree, i) for i in plays if right(said(tree, i))), None)
        probed = Counter(tree.nodes[r.start].request.prompt_ids[1:] for r in tree.rollouts if r.probe)
        states = [] if reference is None else [reference[:at] for at in boundaries(reference)]
        assert probed == dict.fromkeys(states, 3)
        without += reference is None
    # Nobody right in four independent plays, by enumeration.
    wrong = sum(p for ids, p in chunks((ANSWER_PROMPT,), LENGTH) if not right(ids)) ** 4
    assert abs(without - 300 * wrong) < 5 * math.sqrt(300 * wrong * (1 - wrong))


def test_completions_follow_the_flow_from_their_prefix() -> None:
    drawn: dict[TokenIds, Counter[TokenIds]] = {}
    for tree in explore(2000, SETTINGS):
        for rollout in tree.rollouts:
            if rollout.probe:
                node = tree.nodes[rollout.start]
                drawn.setdefault(node.request.prompt_ids, Counter())[node.completion.token_ids] += 1
    assert len(drawn) > 4
    for prompt, counts in drawn.items():
        assert fits(counts, dict(chunks(prompt, LENGTH - len(prompt) + 1))), prompt


def test_plays_are_those_of_a_group_and_batches_change_nothing() -> None:
    together = explore(30, SETTINGS)
    for tree, group in zip(together, explore(30, Group(num_rollouts=4)), strict=True):
        assert [said(tree, i) for i in range(4)] == [said(group, i) for i in range(4)]
    assert together == [explore(1, SETTINGS, first=i)[0] for i in range(30)]


def test_a_speaker_without_a_verifier_is_refused() -> None:
    with pytest.raises(FlowError, match="give the RolloutRunner a grader"):
        SETTINGS(ONE_PASS, RolloutRunner(TabularEngine(next_probs, end_ids={END}), Bare()), PROBLEMS[:1], seed=0)


def test_alone_is_one_play() -> None:
    assert ReferencePath(top_p=0.9).alone(greedy=False) == Group(num_rollouts=1, top_p=0.9)


# ---- credit ---------------------------------------------------------------------------------------------------------


def drawn() -> Tree:
    """A reference path 5 6 | 7 8. From the question: 9 right, 3 wrong. Behind 5 6: 4 right, 4 again, 1 and 2 wrong."""
    tree = Tree(problem=problem())
    end = Solution(pieces=((5,),), ended=True)
    q = request("answer", 1)
    behind = request("answer", 1, 5, 6)
    whole = (q.max_tokens, behind.max_tokens)
    assert whole == (3, 3)
    behind = type(behind)(role="answer", prompt_ids=(1, 5, 6), max_tokens=1)
    tree.add_rollout(None, [(q, completion(5, 6), ()), (behind, completion(7), ())], end)
    for ids in (9, 3):
        tree.add_rollout(None, [(q, completion(ids), ())], end, probe=True)
    for ids in (4, 4, 1, 2):
        tree.add_rollout(0, [(behind, completion(ids), ())], end, probe=True)
    return graded(tree, "correct", "correct", "wrong", "correct", "correct", "wrong", "wrong")


def test_all_combinations_at_every_state() -> None:
    pairs = BranchPairs(by_problem=False)([drawn()])
    assert [(p.request.prompt_ids, p.chosen.token_ids, p.rejected.token_ids) for p in pairs] == [
        ((1,), (9,), (3,)),
        ((1,), (5, 6, 4), (5, 6, 1)),
        ((1,), (5, 6, 4), (5, 6, 2)),
    ]
    assert [(p.chosen_node, p.rejected_node) for p in pairs] == [(2, 3), (4, 6), (4, 7)]
    assert {p.weight for p in pairs} == {1.0}


def test_problems_weigh_alike_and_keep_so_many() -> None:
    one = drawn()
    few = graded(drawn(), "correct", "correct", "wrong", *["wrong"] * 4)  # one pair
    # As much as a problem of 8 pairs, whatever else is in the batch; without a cut, as the mean problem.
    pairs = BranchPairs()([one, few])
    assert [p.weight for p in pairs] == pytest.approx([8 / 3, 8 / 3, 8 / 3, 8.0])
    assert [p.weight for p in BranchPairs()([few])] == [8.0]
    assert [p.weight for p in BranchPairs(max_pairs=0)([one, few])] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    kept = BranchPairs(max_pairs=2, by_problem=False)([one])
    assert len(kept) == 2
    assert kept == BranchPairs(max_pairs=2, by_problem=False)([one])
    every = BranchPairs(by_problem=False)([one])
    chances = Counter(
        every.index(pair)
        for seed in range(300)
        for pair in BranchPairs(max_pairs=1, pairs_seed=seed, by_problem=False)([one])
    )
    assert all(60 < chances[i] < 140 for i in range(3))


def test_long_pairs_are_left_out_before_some_are_drawn() -> None:
    """Prompt 1 and a completion: of two tokens for the pair at the question, of four behind 5 6."""
    kept = BranchPairs(max_pair_tokens=4, max_pairs=1)([drawn()])
    assert [(p.chosen.token_ids, p.weight) for p in kept] == [((9,), 1.0)]
    assert len(BranchPairs(max_pair_tokens=5)([drawn()])) == 3
    assert BranchPairs(max_pair_tokens=2)([drawn()]) == []


def test_real_valued_probes_pair_by_their_difference() -> None:
    """From the question: 9 at 0.5, 3 at 0.5, a tie. Behind 5 6: 4 at 0.75, 4 again at 0.25, 1 at 0.5, 2 without one.
    The same completion of two rewards is no pair with itself."""
    tree = valued(drawn(), 0.0, 0.5, 0.5, 0.75, 0.25, 0.5, None)
    pairs = BranchPairs(by_problem=False)([tree])
    assert [(p.chosen.token_ids, p.rejected.token_ids, p.margin) for p in pairs] == [
        ((5, 6, 4), (5, 6, 1), 0.25),
        ((5, 6, 1), (5, 6, 4), 0.25),
    ]
    assert BranchPairs(min_margin=0.25)([tree])
    assert BranchPairs(min_margin=0.3)([tree]) == []


def test_ungraded_probes_make_no_pair() -> None:
    tree = drawn()
    tree.grade(1, "", Verdict(status="ungraded"))
    assert [p.chosen.token_ids for p in BranchPairs()([tree])] == [(5, 6, 4)] * 2
    assert BranchPairs()([]) == []


def test_pairs_of_real_exploration_share_the_prefix_and_differ_behind_it() -> None:
    trees = graded_trees(explore(200, SETTINGS))
    pairs = BranchPairs(max_pairs=0)(trees)
    assert len(pairs) > 100
    for pair in pairs:
        assert pair.request.prompt_ids == (ANSWER_PROMPT,)
        assert (right(pair.chosen.token_ids), right(pair.rejected.token_ids)) == (1.0, 0.0)


# ---- objective ------------------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    pair = answer_pair((5,), (6, 7, 8), (6, 9), weight=2.0)
    policy = [[torch.tensor([-0.2, -0.1, -0.3], requires_grad=True), torch.tensor([-0.2, -1.0], requires_grad=True)]]
    loss = OddsRatio(exploration_weight=0.3)([pair], policy, [])
    # Behind the common 6: means -0.2 and -1.0.
    odds = [m - math.log(1 - math.exp(m)) for m in (-0.2, -1.0)]
    margin = odds[0] - odds[1]
    below = 1 / (1 + math.exp(margin))
    assert loss.total.item() == pytest.approx(2 * (0.2 - 0.3 * math.log(1 - below)), rel=1e-5)
    assert float(loss.measures["margin"]) == pytest.approx(margin, rel=1e-5)
    assert float(loss.measures["path_loss"]) == pytest.approx(0.2)
    # d margin / d m = 1 / (1 - e^m); d -log sigmoid(h) / d h = -sigmoid(-h).
    chosen, rejected = torch.autograd.grad(loss.total, policy[0])
    slope = [0.3 * below / (1 - math.exp(m)) for m in (-0.2, -1.0)]
    third = -2 / 3
    assert chosen.tolist() == pytest.approx([third, third - slope[0], third - slope[0]], rel=1e-4)
    assert rejected.tolist() == pytest.approx([0.0, 2 * slope[1]], rel=1e-4)


def test_certainties_and_settings() -> None:
    sure = [[torch.zeros(2, requires_grad=True), torch.full((2,), -3.0)]]
    loss = OddsRatio()([answer_pair((5,), (6, 7), (8, 9))], sure, [])
    assert math.isfinite(loss.total.item())
    assert torch.isfinite(torch.autograd.grad(loss.total, sure[0][0])[0]).all()
    assert not OddsRatio().needs_reference
    with pytest.raises(ConfigError, match="exploration_weight"):
        OddsRatio(exploration_weight=-0.1)
