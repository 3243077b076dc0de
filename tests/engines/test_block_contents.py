"""Is what a block is said to hold what was computed in it, and is the best block found?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flow_dpo.engines.vllm.block_contents import BlockContents

IDS = st.lists(st.integers(0, 1), min_size=0, max_size=5).map(tuple)
PUT = st.tuples(st.just("put"), st.integers(0, 4), st.sampled_from("ab"), IDS)
DROP = st.tuples(st.just("drop"), st.integers(0, 4), st.just(""), st.just(()))


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(st.lists(PUT | DROP, max_size=30), st.sampled_from("ab"), IDS)
def test_what_is_found_was_computed_there(
    steps: list[tuple[str, int, str, tuple[int, ...]]], parent: str, ids: tuple[int, ...]
) -> None:
    contents, held = BlockContents(), dict[int, tuple[str, tuple[int, ...]]]()
    for what, block, before, computed in steps:
        if what == "put":
            contents.put(block, before, computed)
            held[block] = (before, computed)
        else:
            contents.drop(block)
            held.pop(block, None)
    block, num_tokens = contents.longest(parent, ids)
    if num_tokens:
        before, computed = held[block]
        assert before == parent
        assert computed[:num_tokens] == ids[:num_tokens]


@given(st.lists(st.tuples(st.sampled_from("ab"), IDS), max_size=12), st.sampled_from("ab"), IDS)
def test_no_block_holds_more(held: list[tuple[str, tuple[int, ...]]], parent: str, ids: tuple[int, ...]) -> None:
    """As long as none is dropped, what several hold is found in one of them."""
    contents = BlockContents()
    for block, (before, computed) in enumerate(held):
        contents.put(block, before, computed)
    most = max((_shared(computed, ids) for before, computed in held if before == parent), default=0)
    assert contents.longest(parent, ids)[1] == most


def test_nothing_is_found_after_clearing() -> None:
    contents = BlockContents()
    contents.put(3, "a", (1, 2))
    assert 3 in contents
    assert contents.longest("a", (1, 2, 3)) == (3, 2)
    contents.clear()
    assert contents.longest("a", (1, 2, 3)) == (0, 0)
