"""Does a tree remember who said what, and in which play?"""

from __future__ import annotations

import pytest

from flow_dpo.core.tree import Tree
from flow_dpo.core.types import Solution
from tests.support.tree_builders import problem, two_chunk_tree


def test_numbering_follows_the_drawing() -> None:
    tree = two_chunk_tree()
    assert [(node.id, node.parent, node.rollout, node.depth, node.role) for node in tree.nodes] == [
        (0, None, 0, 0, "answer"),
        (1, 0, 0, 1, "stop"),
        (2, 1, 0, 2, "answer"),
        (3, 2, 0, 3, "stop"),
        (4, None, 1, 0, "answer"),
        (5, 4, 1, 1, "stop"),
        (6, 0, 2, 1, "stop"),
        (7, 1, 3, 2, "answer"),
        (8, 7, 3, 3, "stop"),
        (9, 2, 4, 3, "stop"),
        (10, 9, 4, 4, "answer"),
    ]


def test_siblings_paths_and_starting_rollouts() -> None:
    tree = two_chunk_tree()
    assert [node.id for node in tree.children(None)] == [0, 4]
    assert [node.id for node in tree.children(0)] == [1, 6]
    assert [node.id for node in tree.children(2)] == [3, 9]
    assert [node.id for node in tree.path(8)] == [0, 1, 7, 8]
    # A reward belongs to the rollout that *starts* at a node: the trunk passes node 2 but does not start there.
    assert [(rollout.start, rollout.leaf) for rollout in tree.rollouts] == [(0, 3), (4, 5), (6, 6), (7, 8), (9, 10)]


def test_paths_repeat_the_prompts_tokens() -> None:
    """What stands on the path of an Answer node is what its prompt holds behind the first prompt."""
    tree = two_chunk_tree()
    for node in tree.nodes:
        if node.role == "answer":
            said = [t for n in tree.path(node.id)[:-1] if n.role == "answer" for t in n.completion.content_ids]
            assert node.request.prompt_ids == (1, *said)


def test_an_empty_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one completion"):
        Tree(problem=problem()).add_rollout(None, [], Solution(pieces=(), ended=False))
