"""Is what verifiably ended right kept, each distinct play once, and nothing else?"""

from __future__ import annotations

import pytest

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Solution, Status
from flow_dpo.recipes.rejection_sampling.credit import CorrectRollouts
from tests.support.tree_builders import completion, graded, problem, request, two_chunk_tree


def group(*plays: tuple[int, Status]) -> Tree:
    """Independent plays of one problem, each a completion of one token."""
    tree = Tree(problem=problem())
    for token, _ in plays:
        tree.add_rollout(None, [(request("answer", 1), completion(token), ())], Solution(pieces=(), ended=True))
    statuses: list[Status] = [status for _, status in plays]
    return graded(tree, *statuses)


DRAWN = group((7, "correct"), (8, "wrong"), (7, "correct"), (9, "ungraded"), (5, "correct"), (6, "correct"))


def test_the_example_of_the_docstring() -> None:
    (kept,) = CorrectRollouts()([DRAWN])
    assert (kept.node, kept.completion.token_ids, kept.advantage, kept.problem_id) == (0, (7,), 1.0, "p1")


@pytest.mark.parametrize(("most", "nodes"), [(1, [0]), (2, [0, 4]), (3, [0, 4, 5]), (9, [0, 4, 5]), (0, [0, 4, 5])])
def test_distinct_right_plays_in_their_order_and_no_more_than_asked(most: int, nodes: list[int]) -> None:
    assert [e.node for e in CorrectRollouts(max_per_problem=most)([DRAWN])] == nodes


def test_the_limit_is_of_each_problem() -> None:
    assert [e.node for e in CorrectRollouts()([DRAWN, group((1, "wrong"), (2, "correct")), DRAWN])] == [0, 1, 0]


def test_what_is_wrong_ungraded_or_not_graded_teaches_nothing() -> None:
    ungraded = Tree(problem=problem())
    ungraded.add_rollout(None, [(request("answer", 1), completion(7), ())], Solution(pieces=(), ended=True))
    trees = [group((7, "wrong"), (8, "ungraded")), ungraded]
    assert CorrectRollouts(max_per_problem=0)(trees) == []


def test_every_turn_on_the_way_is_kept_and_a_shared_one_once() -> None:
    # Rollout 3 leaves the trunk at its third node: A0 S1 A7 S8. Rollout 4 at its last: A0 S1 A2 S9 A10.
    tree = two_chunk_tree("wrong", "wrong", "wrong", "correct", "correct")
    one, both = (CorrectRollouts(max_per_problem=most)([tree]) for most in (1, 2))
    assert [(e.node, e.depth, e.request.role) for e in one] == [
        (0, 0, "answer"), (1, 1, "stop"), (7, 2, "answer"), (8, 3, "stop"),
    ]  # fmt: skip
    assert [e.node for e in both] == [0, 1, 7, 8, 2, 9, 10]
    assert [e.tags for e in one] == [(), ("unfinished",), (), ("finished",)]


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_per_problem must be 0"):
        CorrectRollouts(max_per_problem=-1)
