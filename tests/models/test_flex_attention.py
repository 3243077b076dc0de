"""Does FlexAttention compute what a dense mask does, from blocks that are visible, hidden or asked token by token?

Its kernels run on CUDA alone where there are gradients. Uncompiled it has the same inputs, and its arithmetic runs
anywhere; which blocks the kernels skip, and which they take whole, is read from the block mask. The tests marked `gpu`
are the same ones over the compiled kernels.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torchs
from torch.nn.functional import scaled_dot_product_attention

from flow_dpo.core.types import TokenIds
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs
from flow_dpo.models import flex_attention, tree_attention
from flow_dpo.models.drift_causes import inputs
from flow_dpo.models.flex_attention import BLOCK, CudaLayout, FlexLayout
from flow_dpo.models.packing import PackedRow, merge
from flow_dpo.models.tree_attention import PathLayout
from tests.learner.test_logprobs import assert_same_gradient, policy_of, spoken_of, with_gradient
from tests.models.test_packing import visible
from tests.support.packed_builders import pairs_of_tree

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
QUIET = pytest.mark.filterwarnings(
    "ignore:.*flex_attention called without torch.compile",
    r"ignore:The \.grad attribute of a Tensor that is not a leaf",
)
"""torch reads `.grad` of what it compiles, and hides its own warning where warnings are no errors."""


def trees(seed: int, *, num_trees: int, chunk_tokens: int) -> list[TokenIds]:
    """Both roles' sequences of several trees with a common beginning: a row of any odd length."""
    rng = random.Random(seed)
    return [
        inputs((pair.request, completion))
        for tree in range(num_trees)
        for pair in pairs_of_tree(rng, f"p{tree}", prompt_tokens=rng.randint(1, 30), chunk_tokens=chunk_tokens)
        for completion in pair.completions
    ]


def row_of(seed: int, *, num_trees: int = 3, chunk_tokens: int = 40) -> PackedRow:
    return merge(trees(seed, num_trees=num_trees, chunk_tokens=chunk_tokens))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention as it runs on a CPU, with gradients: torch refuses them there for want of a kernel alone."""
    monkeypatch.setattr(torchs, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex_attention, "_flex_attention", lambda: torchs.flex_attention)
    monkeypatch.setattr(flex_attention, "SMALLEST", BLOCK)
    monkeypatch.setattr(flex_attention, "found", {})


def computed_by_kernels(layout: FlexLayout, window: int | None) -> torch.Tensor:
    """What the kernels let a query see: all of a block that is whole, the mask function's word in one that is not."""
    mask = layout.block_mask(window)
    at = torch.arange(layout.size)
    by_token = layout.visible(window)(torch.tensor(0), torch.tensor(0), at[:, None], at[None, :])
    seen: dict[str, torch.Tensor] = {}
    for kind in ("", "full_"):
        for side in ("kv", "q"):
            counts, columns = (getattr(mask, f"{kind}{side}_{what}")[0, 0] for what in ("num_blocks", "indices"))
            blocks = torch.zeros(len(counts), len(counts), dtype=torch.bool)
            for place, (count, order) in enumerate(zip(counts.tolist(), columns, strict=True)):
                blocks[place, order[:count].long()] = True
            blocks = blocks.T if side == "q" else blocks
            known = seen.setdefault(kind, blocks)
            assert torch.equal(known, blocks), "the backward pass goes through the blocks of the forward"
    assert not (seen[""] & seen["full_"]).any()
    whole, partly = (seen[kind].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1) for kind in ("full_", ""))
    return whole | (partly & by_token)


@pytest.mark.parametrize("window", [None, 1, 128, 200])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_hide_and_show_what_a_dense_mask_does(seed: int, window: int | None) -> None:
    row = row_of(seed, num_trees=1 + seed, chunk_tokens=20 + 50 * seed)
    layout = FlexLayout(row, "cpu")
    found = computed_by_kernels(layout, window)
    num = row.num_tokens
    assert torch.equal(found[:num, :num], visible(row, window))
    assert not found[:num, num:].any()
    assert torch.equal(found[num:], torch.eye(layout.size, dtype=torch.bool)[num:]), "padding sees itself alone"


def test_most_blocks_of_a_long_row_are_hidden_and_many_are_whole() -> None:
    """A row of 4,096: fourteen solutions of 290 tokens to as many questions."""
    row = merge([tuple(range(1000 * tree, 1000 * tree + 290)) for tree in range(14)])
    mask = FlexLayout(row, "cpu").block_mask(None)
    partly, whole = int(mask.kv_num_blocks.sum()), int(mask.full_kv_num_blocks.sum())
    assert (partly + whole) / 32**2 < 0.1
    [trunk] = [FlexLayout(merge([tuple(range(2048))]), "cpu").block_mask(None)]
    assert int(trunk.kv_num_blocks.sum()) == 16, "of one long text the diagonal alone is asked token by token"
    assert int(trunk.full_kv_num_blocks.sum()) == 16 * 15 // 2


@QUIET
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(2, 2, None), (4, 1, 9), (6, 2, 150)])
def test_values_and_gradients_are_those_of_a_dense_mask(
    heads: int, kv_heads: int, window: int | None, device: str, request: pytest.FixtureRequest
) -> None:
    if device == "cpu":
        request.getfixturevalue("uncompiled")
    row = row_of(heads + (window or 0), num_trees=2, chunk_tokens=40)
    assert row.num_tokens % BLOCK
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, num, row.num_tokens, 16) for num in (heads, kv_heads, kv_heads)]
    leaves = [torch.randn(size, generator=generator).to(device).requires_grad_() for size in sizes]
    query, key, value = leaves
    repeated = [each.repeat_interleave(heads // kv_heads, 1) for each in (key, value)]
    seen = visible(row, window).to(device)
    wanted = scaled_dot_product_attention(query, *repeated, attn_mask=seen, scale=0.3)
    flex, paths = (
        layout.attend(0, *leaves, scaling=0.3, window=window)
        for layout in (FlexLayout(row, device), PathLayout(row, device))
    )
    direction = torch.randn(wanted.shape, generator=generator).to(device)
    tolerance = 1e-5 if device == "cpu" else 2e-3
    gradients = torch.autograd.grad((wanted * direction).sum(), leaves)
    for found in (flex, paths):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        theirs = torch.autograd.grad((found * direction).sum(), leaves)
        torch.testing.assert_close(theirs, gradients, rtol=tolerance, atol=tolerance)


@QUIET
@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_a_models_log_probabilities_and_gradients_are_the_same(
    kind: str, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through every layer, with grouped heads and a sliding window, the adapter's gradients included."""
    policy = policy_of(kind)
    spoken = spoken_of([pair for tree in range(2) for pair in pairs_of_tree(random.Random(tree), f"p{tree}")])
    wanted, wanted_gradient = with_gradient(policy, PlainLogprobs, spoken)
    monkeypatch.setattr(tree_attention, "PathLayout", CudaLayout)
    monkeypatch.setattr(flex_attention, "_check", lambda *shapes: "")
    found, gradient = with_gradient(policy, PackedLogprobs, spoken)
    assert len(flex_attention.found) == (2 if kind == "gemma3" else 1), "every shape of heads went through it"
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert_same_gradient(gradient, wanted_gradient)


def attended(layout: CudaLayout, row: PackedRow) -> torch.Tensor:
    query, key, value = (torch.ones(1, heads, row.num_tokens, 16) for heads in (4, 2, 2))
    return layout.attend(0, query, key, value.cumsum(2), scaling=0.3, window=None)


@QUIET
def test_it_is_compared_before_it_is_used_and_then_trusted(uncompiled: None) -> None:
    row = row_of(0)
    found = attended(CudaLayout(row, "cpu"), row)
    assert list(flex_attention.found.values()) == [""]
    query, key, value = (torch.ones(1, heads, row.num_tokens, 16) for heads in (4, 2, 2))
    wanted = PathLayout(row).attend(0, query, key, value.cumsum(2), scaling=0.3, window=None)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def breaks(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
    raise RuntimeError("no kernel for this head size")


def wrong(query: torch.Tensor, *others: torch.Tensor, **options: Any) -> torch.Tensor:
    return query * 2


@pytest.mark.parametrize(("kernel", "reason"), [(breaks, "no kernel for this head"), (wrong, "values are .* away")])
def test_what_fails_is_told_with_its_reason_and_paths_are_taken(
    kernel: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex_attention, "found", {})
    monkeypatch.setattr(flex_attention, "_flex_attention", lambda: kernel)
    row = row_of(0)
    with pytest.warns(UserWarning, match=f"FlexAttention is not used for 4 heads over 2 .*{reason}"):
        found = attended(CudaLayout(row, "cpu"), row)
    again = attended(CudaLayout(row, "cpu"), row)  # told once
    query, key, value = (torch.ones(1, heads, row.num_tokens, 16) for heads in (4, 2, 2))
    wanted = PathLayout(row).attend(0, query, key, value.cumsum(2), scaling=0.3, window=None)
    assert torch.equal(found, wanted)
    assert torch.equal(again, wanted)
    assert len(flex_attention.found) == 1


def test_rows_of_many_lengths_share_a_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would otherwise cost seconds, and after a few torch would compute a dense mask instead."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(torchs.flex_attention, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr(flex_attention, "_flex_attention", lambda: compiled)
    monkeypatch.setattr(flex_attention, "SMALLEST", BLOCK)
    sizes = set()
    for seed in range(5):
        row = row_of(seed, num_trees=1 + seed % 2, chunk_tokens=10 + 9 * seed)
        layout = FlexLayout(row, "cpu")
        sizes.add(layout.size)
        tensors = [torch.randn(1, heads, row.num_tokens, 16) for heads in (4, 2, 2)]
        for layer in range(2):
            layout.attend(layer, *tensors, scaling=0.3, window=None)
    assert len(sizes) == counter.frame_count > 1


@pytest.mark.slow
def test_the_compiled_kernel_of_a_cpu_skips_the_same_blocks() -> None:
    """Forward alone, which torch compiles for CPUs too: it goes by the blocks, as CUDA's does."""
    for seed, window in ((0, None), (1, 150)):
        row = row_of(seed, num_trees=3, chunk_tokens=120)
        query, key, value = (torch.randn(1, heads, row.num_tokens, 16) for heads in (4, 2, 2))
        found, wanted = (
            layout.attend(0, query, key, value, scaling=0.3, window=window)
            for layout in (FlexLayout(row, "cpu"), PathLayout(row))
        )
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
