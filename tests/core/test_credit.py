"""Which pairs does a graded tree give? Exactly these, on trees drawn by hand."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from flow_dpo.core.credit import OutcomePairs
from flow_dpo.core.metrics import ProgressiveValidation, tree_metrics
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Pair, Solution, Status, Verdict
from flow_dpo.recipes.group_advantages import GroupAdvantages
from tests.support.tree_builders import completion, graded, problem, request, two_chunk_tree


def drawn(pairs: list[Pair]) -> list[tuple[str, int, int, int]]:
    return [(pair.request.role, pair.depth, pair.chosen_node, pair.rejected_node) for pair in pairs]


def test_every_node_pairs_where_the_plays_differ() -> None:
    tree = two_chunk_tree("correct", "wrong", "wrong", "wrong", "wrong")
    assert drawn(OutcomePairs()([tree])) == [
        ("answer", 0, 0, 4),
        ("stop", 1, 1, 6),
        ("answer", 2, 2, 7),
        ("stop", 3, 3, 9),
    ]


@pytest.mark.parametrize(
    ("roles", "depths"), [(("answer",), [0, 2]), (("stop",), [1, 3]), (("answer", "stop"), [0, 1, 2, 3])]
)
def test_only_the_named_roles_learn(roles: tuple[str, ...], depths: list[int]) -> None:
    tree = two_chunk_tree("correct", "wrong", "wrong", "wrong", "wrong")
    assert [pair.depth for pair in OutcomePairs(roles=roles)([tree])] == depths


def test_the_better_sibling_is_chosen_even_against_the_trunk() -> None:
    tree = two_chunk_tree("wrong", "correct", "wrong", "wrong", "correct")
    pairs = OutcomePairs()([tree])
    assert drawn(pairs) == [("answer", 0, 4, 0), ("stop", 3, 9, 3)]
    assert pairs[0].chosen.token_ids == (5, 8)
    assert pairs[0].rejected.token_ids == (5, 6)
    assert pairs[0].request.prompt_ids == (1,)
    assert pairs[0].margin == 1.0
    assert pairs[1].tags == ("finished",)


def test_ties_and_ungraded_plays_make_no_pair() -> None:
    """Over all 3^5 gradings of the drawing: a pair at a node exactly where one play is correct and the other wrong."""
    for statuses in itertools.product(("correct", "wrong", "ungraded"), repeat=5):
        tree = two_chunk_tree(*statuses)
        expected = sum({statuses[0], other} == {"correct", "wrong"} for other in statuses[1:])
        pairs = OutcomePairs()([tree])
        assert len(pairs) == expected, statuses
        for pair in pairs:
            assert tree.rollouts[tree.nodes[pair.chosen_node].rollout].verdict.status == "correct"  # type: ignore[union-attr]
            assert tree.rollouts[tree.nodes[pair.rejected_node].rollout].verdict.status == "wrong"  # type: ignore[union-attr]


def test_several_alternatives_pair_with_the_trunk_and_each_other() -> None:
    tree = two_chunk_tree()
    tree.add_rollout(None, [(request("answer", 1), completion(3, 3), ())], tree.trunk.solution)
    graded(tree, "correct", "wrong", "correct", "correct", "correct", "correct")
    assert drawn(OutcomePairs()([tree])) == [("answer", 0, 0, 4), ("answer", 0, 11, 4)]


def test_identical_siblings_are_no_pair() -> None:
    tree = two_chunk_tree("correct", "wrong", "correct", "correct", "correct")
    tree.nodes[4] = replace(tree.nodes[4], completion=tree.nodes[0].completion)
    assert OutcomePairs()([tree]) == []


def test_a_tie_cannot_be_built() -> None:
    pair = OutcomePairs()([two_chunk_tree("correct", "wrong", "wrong", "wrong", "wrong")])[0]
    with pytest.raises(ValueError, match="margin above 0"):
        replace(pair, margin=0.0)
    with pytest.raises(ValueError, match="two different completions"):
        replace(pair, rejected=pair.chosen)


def test_tags_weigh_and_balance() -> None:
    trees = [two_chunk_tree("correct", "wrong", "wrong", "wrong", "wrong")]
    trees.append(two_chunk_tree("correct", "correct", "wrong", "correct", "correct"))
    left = OutcomePairs(tag_weights={"unfinished": 0.0})(trees)
    assert left == [pair for pair in OutcomePairs()(trees) if "unfinished" not in pair.tags] != OutcomePairs()(trees)
    weighted = OutcomePairs(tag_weights={"unfinished": 0.5})(trees)
    assert [(pair.request.role, pair.weight) for pair in weighted] == [
        ("answer", 1.0), ("stop", 0.5), ("answer", 1.0), ("stop", 1.0), ("stop", 0.5),
    ]  # fmt: skip
    # Two unfinished and one finished Stop pair: each kind gets half of the three.
    balanced = OutcomePairs(balance=True)(trees)
    assert [(pair.tags, pair.weight) for pair in balanced if pair.request.role == "stop"] == [
        (("unfinished",), 0.75), (("finished",), 1.5), (("unfinished",), 0.75),
    ]  # fmt: skip
    assert [pair.weight for pair in balanced if pair.request.role == "answer"] == [1.0, 1.0]


# ---- groups ---------------------------------------------------------------------------------------------------------


def group(*statuses: Status) -> Tree:
    """Independent plays of one completion each; the first two say the same."""
    tree = Tree(problem=problem())
    for index in range(len(statuses)):
        said = (request("answer", 1), completion(5, max(index, 1)), ())
        tree.add_rollout(None, [said], Solution(pieces=((5, index),), ended=True))
    return graded(tree, *statuses)


def test_advantages_are_standard_scores_within_the_group() -> None:
    examples = GroupAdvantages()([group("correct", "wrong", "wrong", "wrong")])
    # Mean 1/4, standard deviation sqrt(3)/4.
    assert [e.advantage for e in examples] == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert [(e.node, e.completion.token_ids) for e in examples] == [(0, (5, 1)), (1, (5, 1)), (2, (5, 2)), (3, (5, 3))]
    unscaled = GroupAdvantages(scale=False)([group("correct", "wrong", "wrong", "wrong")])
    assert [e.advantage for e in unscaled] == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_groups_without_variance_teach_nothing_and_are_counted() -> None:
    trees = [
        group("correct", "correct"),
        group("wrong", "ungraded", "wrong"),
        group("ungraded"),
        group("correct", "wrong"),
    ]
    examples = GroupAdvantages()(trees)
    assert len(examples) == 2
    row = tree_metrics(trees, examples, ["answer"])
    assert (row["tied_trees"], row["scored/answer"], row["pairs/answer"]) == (3, 2, 0)
    # The third has nothing to be compared with.
    assert (row["nodes/answer"], row["ties/answer"], row["ungraded/answer"]) == (4, 2, 0)


def test_ties_are_counted_off_the_trees() -> None:
    trees = [group("wrong", "ungraded"), group("ungraded", "ungraded"), group("wrong", "wrong"), group("wrong")]
    row = tree_metrics([*trees, group("wrong", "wrong", "correct")], [], ["answer"])
    assert (row["nodes/answer"], row["ties/answer"], row["ungraded/answer"]) == (5, 1, 2)


def test_ungraded_plays_enter_neither_mean_nor_examples() -> None:
    examples = GroupAdvantages()([group("correct", "ungraded", "wrong")])
    assert [(e.node, e.advantage) for e in examples] == [(0, 1.0), (2, -1.0)]


def test_every_turn_of_a_play_has_its_advantage() -> None:
    examples = GroupAdvantages()([two_chunk_tree("correct", "wrong", "wrong", "wrong", "wrong")])
    assert [e.node for e in examples] == list(range(11))
    assert {e.advantage for e in examples[:4]} == {2.0}
    assert {e.advantage for e in examples[4:]} == {-0.5}


def test_two_independent_plays_pair_unless_they_say_the_same() -> None:
    assert len(OutcomePairs()([group("correct", "wrong")])) == 0
    assert drawn(OutcomePairs()([group("correct", "correct", "wrong")])) == [("answer", 0, 0, 2), ("answer", 0, 1, 2)]


def rewarded(tree: Tree, *values: float | None) -> Tree:
    for rollout, value in enumerate(values):
        status: Status = "ungraded" if value is None else "correct" if value >= 1 else "wrong"
        tree.grade(rollout, "", Verdict(status=status, value=value))
    return tree


def test_real_valued_rewards_pair_by_their_difference() -> None:
    """Rewards 0.75, 0.25, 0.75, None, 2.0 of the five rollouts: the flip at S1 ties, the alternative to A2 is
    ungraded."""
    tree = rewarded(two_chunk_tree(), 0.75, 0.25, 0.75, None, 2.0)
    pairs = OutcomePairs()([tree])
    assert drawn(pairs) == [("answer", 0, 0, 4), ("stop", 3, 9, 3)]
    assert [pair.margin for pair in pairs] == [0.5, 1.25]
    assert [pair.margin for pair in OutcomePairs(min_margin=0.5)([tree])] == [0.5, 1.25]
    assert [pair.margin for pair in OutcomePairs(min_margin=0.6)([tree])] == [1.25]


def test_real_valued_rewards_are_measured_and_accuracy_is_by_status() -> None:
    tree = rewarded(two_chunk_tree(), 0.75, 0.25, 0.75, None, 2.0)
    row = tree_metrics([tree], [], ("answer",))
    assert row["reward"] == (0.75 + 0.25 + 0.75 + 2.0) / 4
    assert row["reward_std"] == pytest.approx((sum((x - 0.9375) ** 2 for x in (0.75, 0.25, 0.75, 2.0)) / 3) ** 0.5)
    assert "reward" not in tree_metrics([graded(two_chunk_tree(), "correct")], [], ("answer",))
    progress = ProgressiveValidation()
    for value in (0.75, 2.0):
        progress.see(Verdict(status="correct" if value >= 1 else "wrong", value=value))
    assert (progress.row()["progressive/accuracy"], progress.row()["progressive/reward"]) == (0.5, 1.375)
    assert ProgressiveValidation.from_state(json.loads(json.dumps(progress.state()))) == progress
    assert "values" not in ProgressiveValidation().state()


def test_group_advantages_of_real_valued_rewards() -> None:
    """Rewards 0, 0.5, 1: mean 0.5, deviation sqrt(1/6); the middle one teaches nothing, and equal ones but for
    rounding are a tie."""
    tree = rewarded(two_chunk_tree(), 0.0, 0.5, 1.0, None, None)
    found = {example.node: example.advantage for example in GroupAdvantages()([tree])}
    assert {round(value, 6) for value in found.values()} == {round(-(1.5**0.5), 6), round(1.5**0.5, 6)}
    assert not GroupAdvantages()([rewarded(two_chunk_tree(), 0.1 + 0.2, 0.3, None, None, None)])
