"""Is a row the trie of its sequences, and does each of its tokens see its path alone?"""

from __future__ import annotations

import random
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.types import Pair, TokenIds
from flow_dpo.learner.logprobs import inputs
from flow_dpo.models import tree_attention
from flow_dpo.models.packing import PackedRow, fill_rows, merge
from flow_dpo.models.tree_attention import PathLayout
from tests.support.packed_builders import answer_pair

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=40).map(tuple), min_size=1, max_size=8
)  # three words, so that sequences share beginnings by chance


def prefixes(sequences: list[TokenIds]) -> set[TokenIds]:
    return {s[: i + 1] for s in sequences for i in range(len(s))}


def visible(row: PackedRow, window: int | None = None) -> torch.Tensor:
    """By brute force: which tokens lie on the path of which."""
    seen = torch.zeros(row.num_tokens, row.num_tokens, dtype=torch.bool)
    for path in row.paths:
        for i, token in enumerate(path):
            first = 0 if window is None else max(0, i - window + 1)
            seen[token, path[first : i + 1]] = True
    return seen


def test_the_example_of_the_docstring() -> None:
    a, b, c, d, e, x, y = range(1, 8)
    row = merge([(a, b, c, d, e), (a, b, c, x, y), (a, b, c, d)])
    assert row.token_ids_N.tolist() == [a, b, c, d, e, x, y]
    assert row.positions_N.tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert row.subtree_end_N.tolist() == [7, 7, 7, 5, 5, 7, 7]
    assert [p.tolist() for p in row.paths] == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6], [0, 1, 2, 3]]


@given(SEQUENCES)
@settings(max_examples=300, deadline=None)
def test_a_row_is_the_trie(sequences: list[TokenIds]) -> None:
    row = merge(sequences)
    assert row.num_tokens == len(prefixes(sequences))
    for sequence, path in zip(sequences, row.paths, strict=True):
        assert tuple(row.token_ids_N[path].tolist()) == sequence
        assert row.positions_N[path].tolist() == list(range(len(sequence)))
    seen = visible(row)
    ends = [int(torch.nonzero(seen[:, k]).max()) + 1 for k in range(row.num_tokens)]
    assert row.subtree_end_N.tolist() == ends
    assert all(int(seen[:, k].sum()) == end - k for k, end in enumerate(ends)), "descendants follow without a gap"


def test_a_graph_that_nobody_goes_back_through_is_freed() -> None:
    """Operations that keep their own output would hold it for ever, were it handed back as it is."""
    layout = PathLayout(merge([(1, 2, 3)]))
    with layout.saving():
        out = torch.ones(3, requires_grad=True).exp()
    held = weakref.ref(out)
    del out
    assert held() is None


@given(SEQUENCES, st.sampled_from((None, 1, 3)))
@settings(max_examples=100, deadline=None)
def test_layouts_attend_as_a_dense_mask_does(sequences: list[TokenIds], window: int | None) -> None:
    row = merge(sequences)
    generator = torch.Generator().manual_seed(row.num_tokens)
    query, key, value = (
        torch.randn(1, heads, row.num_tokens, 4, generator=generator, requires_grad=True) for heads in (4, 2, 2)
    )
    seen = visible(row, window)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=seen, scale=0.7
    )
    found = PathLayout(row).attend(0, query, key, value, scaling=0.7, window=window)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    direction = torch.randn(wanted.shape, generator=generator)
    gradients = [torch.autograd.grad((out * direction).sum(), (query, key, value)) for out in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [127, 128, 129, 400])
def test_long_stretches_are_cut_into_pieces(length: int) -> None:
    trunk = tuple(range(length))
    row = merge([trunk, (*trunk[: length // 2], 999, 998)])
    size = (1, 2, row.num_tokens, 8)
    query, key, value = (torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible(row), scale=1.0)
    found = PathLayout(row).attend(0, query, key, value, scaling=1.0, window=None)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
def test_the_backward_pass_gathers_again_what_was_not_kept(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradients of the way that keeps everything, to the bit."""
    rng = random.Random(3)
    trunk = tuple(rng.randrange(9) for _ in range(30))
    row = merge([trunk + tuple(rng.randrange(9) for _ in range(20)) for _ in range(4)])
    gathers: list[int] = []
    gather = tree_attention._gather
    monkeypatch.setattr(tree_attention, "_gather", lambda *words: gathers.append(1) or gather(*words))

    def gradients(*, saving: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        # Behind a projection, as in a model: what is gathered from is no leaf.
        leaves = [torch.randn(1, num, row.num_tokens, 8, requires_grad=True) for num in (4, heads, heads)]
        layout = PathLayout(row)
        with layout.saving() if saving else nullcontext():
            out = layout.attend(0, *(2 * leaf for leaf in leaves), scaling=0.3, window=None)
        before = len(gathers)
        found = list(torch.autograd.grad(out.square().sum(), leaves))
        assert len(gathers) - before == (before if saving else 0)
        gathers.clear()
        return found

    for kept, again in zip(gradients(saving=False), gradients(saving=True), strict=True):
        assert torch.equal(kept, again)


ITEMS = st.lists(
    st.lists(
        st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12).map(tuple), min_size=1, max_size=2),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)


@given(ITEMS, st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_rows_hold_every_item_once_and_no_more_than_they_may(
    groups: list[list[list[TokenIds]]], max_tokens: int
) -> None:
    rows = fill_rows(groups, max_tokens)
    assert sorted(place for row in rows for place in row) == [
        (g, i) for g, group in enumerate(groups) for i in range(len(group))
    ]
    for row in rows:
        tokens = len(prefixes([s for g, i in row for s in groups[g][i]]))
        assert tokens <= max_tokens or len(row) == 1
    for g, group in enumerate(groups):
        if len(prefixes([s for item in group for s in item])) <= max_tokens:
            assert len({at for at, row in enumerate(rows) for place in row if place[0] == g}) == 1, "a tree was torn"


def test_trees_with_a_common_beginning_are_neighbours() -> None:
    shared, other = (1,) * 10, (2,) * 10
    groups = [[[(*start, 3 + i, 3 + i)]] for i, start in enumerate((shared, other, shared, other))]
    assert fill_rows(groups, 14) == [[(0, 0), (2, 0)], [(1, 0), (3, 0)]]


def chain(num_nodes: int, prompt: int, chunk: int) -> list[Pair]:
    draw = iter(range(1, 10**6))
    ids = lambda count: tuple(next(draw) for _ in range(count))  # noqa: E731
    question, trunk, pairs = ids(prompt), (), []
    for _ in range(num_nodes):
        mine, other = ids(chunk), ids(chunk)
        pairs.append(answer_pair(question + trunk, mine, other))
        trunk += mine
    return pairs


@pytest.mark.parametrize("num_nodes", [2, 4, 8, 16])
def test_tokens_grow_with_the_tree_and_not_with_its_square(num_nodes: int) -> None:
    prompt, chunk = 150, 160
    sequences = [inputs((p.request, c)) for p in chain(num_nodes, prompt, chunk) for c in p.completions]
    # Each chunk once; the last token of a leaf is a label and no input.
    assert merge(sequences).num_tokens == prompt + 2 * num_nodes * chunk - num_nodes - 1
    unshared = sum(2 * (prompt + node * chunk + chunk - 1) for node in range(num_nodes))
    assert sum(map(len, sequences)) == unshared


def test_the_figure_that_this_exists_for() -> None:
    sequences = [inputs((p.request, c)) for p in chain(6, 150, 160) for c in p.completions]
    assert (sum(map(len, sequences)), merge(sequences).num_tokens) == (8508, 2063)
    assert np.isclose(8508 / 2063, 4.12, atol=0.01)
