"""Does the store give back what was put in, and does a wave compute nothing twice?"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.types import TokenIds
from flow_dpo.engines.local.kv_rows import KvRows, Shapes
from flow_dpo.engines.local.prefill_sharing import plan_prefill
from flow_dpo.engines.local.prefix_cache import Planes, PrefixCache, Segment

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=12)
"""Three words only, so that prompts share much."""


def planes_of(tokens: TokenIds, begin: int, end: int) -> Planes:
    """A stand-in for keys and values: a number for each token that depends on all tokens up to it."""
    values = [float(hash(tokens[: at + 1]) % 10_007) for at in range(begin, end)]
    return (torch.tensor(values)[None, None, :, None], -torch.tensor(values)[None, None, :, None].repeat(2, 1, 1, 3))


def insert(store: PrefixCache, tokens: TokenIds, role: str = "answer") -> None:
    store.insert(role, tokens, lambda begin, end: planes_of(tokens, begin, end))


def known(segments: list[Segment]) -> int:
    assert [one.begin for one in segments] == [0, *(one.end for one in segments)][: len(segments)]
    return segments[-1].end if segments else 0


def shared(one: TokenIds, other: TokenIds) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@settings(deadline=None)
@given(stored=PROMPTS, asked=PROMPTS)
def test_the_longest_known_prefix_is_found_with_its_own_values(stored: list[TokenIds], asked: list[TokenIds]) -> None:
    store = PrefixCache(1 << 30)
    for tokens in stored:
        insert(store, tokens)
    for tokens in asked:
        segments = store.find("answer", tokens)
        assert known(segments) == max(shared(tokens, other) for other in stored)
        for segment in segments:
            for plane, expected in zip(segment.planes, planes_of(tokens, segment.begin, segment.end), strict=True):
                assert torch.equal(plane, expected)
        assert store.find("stop", tokens) == []
    distinct = {tokens[: at + 1] for tokens in stored for at in range(len(tokens))}
    assert store.num_bytes == len(distinct) * planes_of((1,), 0, 1)[0].nbytes * 7
    store.clear()
    assert (store.num_bytes, store.find("answer", asked[0])) == (0, [])


@settings(deadline=None)
@given(prompts=PROMPTS, more=PROMPTS, budget=st.integers(0, 40))
def test_a_walk_from_a_known_place_stores_what_one_from_the_root_does(
    prompts: list[TokenIds], more: list[TokenIds], budget: int
) -> None:
    """Also where that place was split or evicted since."""
    stores = [PrefixCache(1 << 30), PrefixCache(1 << 30)]
    places = [(tokens, stores[0].search("answer", tokens)[1]) for tokens in prompts]
    for tokens, place in places:
        stores[0].insert("answer", tokens, lambda b, e, t=tokens: planes_of(t, b, e), place)
        insert(stores[1], tokens)
    places = [(tokens, stores[0].search("answer", tokens)[1]) for tokens in prompts]
    for tokens in more:
        for store in stores:
            insert(store, tokens)
    assert stores[0].num_bytes == stores[1].num_bytes
    stores[0].set_budget(budget * 28)
    stores[0].set_budget(1 << 30)
    for (tokens, place), end in zip(places, more, strict=False):
        whole = tokens + end
        stores[0].insert("answer", whole, lambda b, e, t=whole: planes_of(t, b, e), place)
        segments = stores[0].find("answer", whole)
        assert known(segments) == len(whole)
        for segment in segments:
            for plane, expected in zip(segment.planes, planes_of(whole, segment.begin, segment.end), strict=True):
                assert torch.equal(plane, expected)


def test_what_is_cleared_or_evicted_is_freed_at_once() -> None:
    """Not when the garbage collector next happens by: a node and its parent refer to each other."""
    store = PrefixCache(1 << 30)
    gc.collect()
    gc.disable()
    try:
        for tokens in ((1, 5, 6), (1, 5, 7, 8), (1, 9), (2,)):
            insert(store, tokens)
        held = [weakref.ref(one.planes[0]) for one in store.find("answer", (1, 5, 6))]
        assert held
        assert all(ref() is not None for ref in held)
        store.set_budget(2 * 28)
        assert sum(ref() is not None for ref in held) <= 2
        store.clear()
        assert not any(ref() is not None for ref in held)
    finally:
        gc.enable()


@settings(deadline=None)
@given(stored=PROMPTS, budget=st.integers(0, 40))
def test_the_budget_is_kept_and_what_remains_is_right(stored: list[TokenIds], budget: int) -> None:
    token_bytes = 4 * 7
    store = PrefixCache(budget * token_bytes)
    for tokens in stored:
        insert(store, tokens)
        assert store.num_bytes <= budget * token_bytes
    for tokens in stored:
        for segment in store.find("answer", tokens):
            assert torch.equal(segment.planes[0], planes_of(tokens, segment.begin, segment.end)[0])
    store.set_budget(0)
    assert store.num_bytes == 0
    assert store.find("answer", stored[0]) == []


def test_the_least_recently_used_leaf_goes_first() -> None:
    store = PrefixCache(6 * 28)
    insert(store, (1, 5, 6))
    insert(store, (1, 7))
    insert(store, (2, 8))
    assert known(store.find("answer", (1, 5, 6))) == 3
    insert(store, (3,))
    assert known(store.find("answer", (1, 7))) == 1
    assert known(store.find("answer", (1, 5, 6))) == 3
    assert known(store.find("answer", (2, 8))) == 2
    assert store.evicted_tokens == 1


def test_a_node_that_was_a_leaf_twice_is_evicted_once() -> None:
    """Its stale place in the queue of leaves must neither collide with the new one nor count its bytes twice."""
    store = PrefixCache(2 * 28)
    for last in range(5, 30):
        insert(store, (1,))
        insert(store, (1, last))
        insert(store, (1, last, 2))
        insert(store, (2 + last % 2,))
    assert 0 <= store.num_bytes <= 2 * 28
    store.set_budget(0)
    assert store.num_bytes == 0


@settings(deadline=None)
@given(prompts=PROMPTS, stored=PROMPTS)
def test_a_wave_covers_every_token_and_computes_none_twice(prompts: list[TokenIds], stored: list[TokenIds]) -> None:
    known_tokens = [max(min(shared(prompt, other), len(prompt) - 1) for other in stored) for prompt in prompts]
    readings = plan_prefill(prompts, known_tokens)
    computed: dict[TokenIds, int] = {}
    for index, (prompt, reading) in enumerate(zip(prompts, readings, strict=True)):
        for at in range(reading.start, len(prompt)):
            assert at == len(prompt) - 1 or prompt[: at + 1] not in computed, "computed twice"
            computed.setdefault(prompt[: at + 1], index)
        copied = [at for copy in reading.copies for at in range(copy.begin, copy.end)]
        assert copied == list(range(known_tokens[index], reading.start))
        for copy in reading.copies:
            assert prompts[copy.source][: copy.end] == prompt[: copy.end]
            assert readings[copy.source].start <= copy.begin < copy.end <= len(prompts[copy.source])


@pytest.mark.parametrize("max_bytes", [1 << 30, 1 << 10], ids=["roomy", "scarce"])
def test_rows_keep_what_they_hold_while_they_grow_and_shrink(max_bytes: int) -> None:
    rows = KvRows(Shapes({0: (2, 3, 3), 1: (2, 3, 5)}, torch.float32, torch.device("cpu")))
    rows.reserve(2, 10, 10, max_bytes)
    for layer in (0, 1):
        rows.keys[layer][:] = torch.randn_like(rows.keys[layer])
        rows.values[layer][:] = torch.randn_like(rows.values[layer])
    before = [rows.keys[0][1, :, :10].clone(), rows.values[1][1, :, :10].clone()]
    for num_rows, needed, at_most in ((9, 10, 30), (9, 200, 200), (20, 10, 12)):
        rows.reserve(num_rows, needed, at_most, max_bytes)
        assert rows.num_rows >= num_rows
        assert rows.capacity >= needed
        assert torch.equal(rows.keys[0][1, :, :10], before[0])
        assert torch.equal(rows.values[1][1, :, :10], before[1])
        held = sum(t.nbytes for t in (*rows.keys.values(), *rows.values.values()))
        assert held <= rows.num_bytes <= (held if max_bytes < 1 << 20 else max_bytes / 4)
    assert rows.capacity == 16
    kept = rows.copy(1, 2, 10)
    rows.load(0, [Segment(0, 8, kept)], 5)
    rows.move([2], [0], [5])
    assert torch.equal(rows.keys[0][2, :, :5], before[0][:, 2:7])
    assert torch.equal(rows.values[1][2, :, :5], before[1][:, 2:7])
    rows.release()
    assert rows.num_bytes == 0


@pytest.mark.parametrize("end", [0, 2, 3, 5, 8, 9, 20])
def test_segments_are_loaded_in_one_call_as_one_by_one(end: int) -> None:
    """Also where the row ends within one, or before the last."""
    rows = KvRows(Shapes({0: (2, 4, 4), 1: (2, 4, 6)}, torch.float32, torch.device("cpu")))
    rows.reserve(3, 16, 16, 1 << 30)
    bounds = [(0, 3), (3, 4), (4, 9)]
    generator = torch.Generator().manual_seed(0)
    planes = [
        tuple(torch.randn(tensor[:, 0, :, b:e].shape, generator=generator) for tensor in rows._tensors)
        for b, e in bounds
    ]
    expected = [tensor.clone() for tensor in rows._tensors]
    for (b, e), known in zip(bounds, planes, strict=True):
        for tensor, plane in zip(expected, known, strict=True):
            tensor[:, 1, :, b : min(e, end)] = plane[..., : max(0, min(e, end) - b), :]
    rows.load(1, [Segment(b, e, known) for (b, e), known in zip(bounds, planes, strict=True)], end)
    assert all(map(torch.equal, rows._tensors, expected))
