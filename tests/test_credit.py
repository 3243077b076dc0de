"""Which pairs does a graded tree give? Exactly these, on trees drawn by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from flow_dpo.credit import OutcomePairs
from flow_dpo.types import Pair
from tests.trees import completion, graded, request, two_chunk_tree


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
