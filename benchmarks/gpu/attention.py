"""Attention part: FlexAttention with a block mask against SDPA with a dense one, on rows of random trees.

    attention(context)      # figures: differences over what rounding explains, and times of forward and backward

Values and gradients are compared in float32 to 1e-5 (of the largest number), and in bf16 by how far each is from
float32. Times are of one layer's forward and backward with the heads of a 0.5B and an 8B model. Creating a mask is
timed separately, because a model creates it once for all layers. A rehearsal has no kernel. There SDPA replaces it,
with the dense form of the same block mask, so layout, mask, shapes and calls are the same.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import measuring
from benchmarks.gpu.measure import Context
from benchmarks.measuring import Figure
from benchmarks.workloads import Shape, tree_pairs
from flow_dpo.models import flex_attention
from flow_dpo.models.drift_causes import inputs
from flow_dpo.models.flex_attention import FlexLayout
from flow_dpo.models.packing import PackedRow, merge
from flow_dpo.models.tree_attention import PathLayout

HEADS = {"0.5b": (14, 2, 64), "8b": (32, 8, 128)}
"""Query heads, key heads and head size."""
TINY_HEADS = {"tiny": (4, 2, 16)}
TOLERANCE = 1e-5
WINDOW, TINY_WINDOW = 64, 4
"""Sliding windows: the number of positions that a token sees."""
ROW_TOKENS, TREE = 4096, Shape(150, 60, 6)
TINY_ROW_TOKENS, TINY_TREE = 120, Shape(8, 5, 3)
Attends = Callable[[Sequence[torch.Tensor], int | None], torch.Tensor]


def attention(context: Context) -> None:
    """Compare in half precision first, which runs use, then in float32. Each figure is saved as it is found."""
    heads = TINY_HEADS if context.rehearse else HEADS
    row = tree_row(TINY_ROW_TOKENS if context.rehearse else ROW_TOKENS, TINY_TREE if context.rehearse else TREE)
    with stand_in(context.rehearse):
        for name, shape in heads.items():
            context.keep([checked(name, shape, row), rounded(name, shape, row, None)])
            context.keep(times(name, shape, row, repeats=1 if context.rehearse else 10))
        for name, shape in heads.items():
            context.keep([exact(name, shape, row, None)])
        name, shape = next(iter(heads.items()))
        window = TINY_WINDOW if context.rehearse else WINDOW
        context.keep([rounded(name, shape, row, window), exact(name, shape, row, window)])


def tree_row(num_tokens: int, shape: Shape) -> PackedRow:
    """A row of whole trees of both roles, with at most `num_tokens` tokens."""
    rng, sequences = random.Random(0), list[Any]()
    row = merge([(1,)])
    while True:
        pairs = tree_pairs(rng, "p", shape, vocabulary=1000)
        sequences += [inputs((pair.request, each)) for pair in pairs for each in pair.completions]
        longer = merge(sequences)
        if longer.num_tokens > num_tokens:
            return row
        row = longer


def visible(row: PackedRow, window: int | None, device: torch.device) -> torch.Tensor:
    """The dense mask: which tokens each token sees."""
    positions, ends = (torch.from_numpy(a).to(device) for a in (row.positions_N, row.subtree_end_N))
    at = torch.arange(row.num_tokens, device=device)
    seen = (at[None] <= at[:, None]) & (at[:, None] < ends[None])
    return seen if window is None else seen & (positions[:, None] - positions[None] < window)


def ways(row: PackedRow, device: torch.device) -> Mapping[str, Attends]:
    """The ways to attend, each with its layout already built."""
    masks = {window: visible(row, window, device) for window in (None, WINDOW, TINY_WINDOW)}
    flex, paths = FlexLayout(row, device), PathLayout(row, device)

    def dense(tensors: Sequence[torch.Tensor], window: int | None) -> torch.Tensor:
        query, key, value = tensors
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=masks[window], scale=query.shape[-1] ** -0.5, enable_gqa=True
        )

    def by(layout: Any) -> Attends:
        return lambda tensors, window: layout.attend(0, *tensors, scaling=tensors[0].shape[-1] ** -0.5, window=window)

    return {"flex": by(flex), "dense": dense, "paths": by(paths)}


def checked(name: str, shape: tuple[int, int, int], row: PackedRow) -> Figure:
    """Whether the package's own check, which a run makes too, allows FlexAttention."""
    tensors, _, _ = made(shape, row)
    complaint = flex_attention.complaint_of(*(tensor.to(torch.bfloat16) for tensor in tensors), window=None)
    name = f"{place(name, row, None)}: Flex passes the check before its use"
    return Figure(name=name, ratio=float(not complaint), reach=">= 1", details={"complaint": complaint})


def exact(name: str, shape: tuple[int, int, int], row: PackedRow, window: int | None) -> Figure:
    """The difference of FlexAttention's values and gradients from SDPA's in float32, over the allowed one."""
    tensors, weights, attends = made(shape, row)
    gaps = gaps_of("flex", tensors, weights, attends, window)
    name = f"{place(name, row, window)}: Flex and SDPA in float32, difference over {TOLERANCE:g}"
    details = {"values_then_gradients": gaps}
    return Figure(name=name, ratio=max(gaps) / TOLERANCE, reach="<= 1", details=details)


def rounded(name: str, shape: tuple[int, int, int], row: PackedRow, window: int | None) -> Figure:
    """The error of FlexAttention in bf16 against float32, over that of SDPA."""
    tensors, weights, attends = made(shape, row)
    errors = {way: gaps_of(way, tensors, weights, attends, window, torch.bfloat16) for way in ("flex", "dense")}
    name = f"{place(name, row, window)}: error of Flex in bf16 over SDPA's"
    return Figure(name=name, ratio=max(errors["flex"]) / max(errors["dense"]), reach="<= 1.5", details=errors)


def gaps_of(
    way: str,
    tensors: Sequence[torch.Tensor],
    weights: torch.Tensor,
    attends: Mapping[str, Attends],
    window: int | None,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """Differences of values and gradients from those of SDPA's math backend in float32."""
    with sdpa_kernel(SDPBackend.MATH):
        truth = results(attends["dense"], tensors, weights, window)
    cast = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    return [distance(a, b) for a, b in zip(results(attends[way], cast, weights, window), truth, strict=True)]


def made(shape: tuple[int, int, int], row: PackedRow) -> tuple[list[torch.Tensor], torch.Tensor, Mapping[str, Attends]]:
    """Query, key and value; the weights of the output; and the ways to attend."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return *random_tensors(shape, row.num_tokens, device), ways(row, device)


def place(name: str, row: PackedRow, window: int | None) -> str:
    """The beginning of a figure's name: what it measures."""
    return f"attention, heads of {name}, {row.num_tokens} tokens" + (f", window {window}" if window else "")


def times(name: str, shape: tuple[int, int, int], row: PackedRow, *, repeats: int) -> list[Figure]:
    """Median times of one layer's forward and backward in bf16; the ways take turns."""
    tensors, weights, attends = made(shape, row)
    device = weights.device
    tensors = [tensor.detach().to(torch.bfloat16).requires_grad_() for tensor in tensors]
    seconds: dict[str, list[float]] = {way: [] for way in attends}
    masks: list[float] = []
    for turn in range(repeats + 1):  # the first turn compiles and is not counted
        for way, attend in attends.items():
            started = measuring.clock()
            results(attend, tensors, weights, None)
            if turn:
                seconds[way].append(measuring.clock() - started)
        started = measuring.clock()
        with torch.no_grad():
            FlexLayout(row, device).attend(0, *tensors, scaling=1.0, window=None)
        masks.append(measuring.clock() - started)
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    details = {"seconds": medians, "mask_and_one_forward_s": statistics.median(masks)}
    where = f"{place(name, row, None)}, forward and backward"
    ratios = {
        f"{where}: SDPA's time over Flex's": (medians["dense"] / medians["flex"], ">= 1"),
        f"{where}: gathered paths' time over Flex's": (medians["paths"] / medians["flex"], ">= 1"),
        f"{where}: a new mask with one forward, over both passes": (statistics.median(masks) / medians["flex"], ""),
    }
    return [
        Figure(name=name, ratio=ratio, reach=reach, details=details if reach else {})
        for name, (ratio, reach) in ratios.items()
    ]


def random_tensors(
    shape: tuple[int, int, int], num_tokens: int, device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Query, key and value in float32, and the weights of the output in the sum that is differentiated."""
    query_heads, key_heads, size = shape
    generator = torch.Generator().manual_seed(0)
    made = [
        torch.randn(1, heads, num_tokens, size, generator=generator).to(device)
        for heads in (query_heads, key_heads, key_heads, query_heads)
    ]
    return [tensor.requires_grad_() for tensor in made[:3]], made[3]


def results(
    attend: Attends, tensors: Sequence[torch.Tensor], weights: torch.Tensor, window: int | None
) -> list[torch.Tensor]:
    """The output and the gradients of its weighted sum."""
    out = attend(tensors, window)
    gradients = torch.autograd.grad((out.float() * weights).sum(), tensors)
    return [out.detach(), *gradients]


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference as a share of the largest exact number, or of 1 if all are smaller."""
    return ((found.float() - exact).abs().max() / exact.abs().max().clamp_min(1)).item()


@contextmanager
def stand_in(wanted: bool) -> Any:
    """In a rehearsal, replace the kernel by SDPA with the block mask's function."""
    if not wanted:
        yield
        return

    def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, block_mask: Any, scale: float, **_: Any):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen_by_kernel(block_mask, query.shape[2]), scale=scale, enable_gqa=True
        )

    with patch.object(flex_attention, "_flex_attention", lambda: dense):
        yield


def seen_by_kernel(block_mask: Any, size: int) -> torch.Tensor:
    """The dense mask that the kernel computes: whole blocks entirely, other blocks by the mask function."""
    rows, columns = block_mask.BLOCK_SIZE
    at = torch.arange(size)
    seen = torch.zeros(size, size, dtype=torch.bool)
    partly = (block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.mask_mod(0, 0, at[:, None], at[None]))
    whole = (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, torch.ones(size, size, dtype=torch.bool))
    for counts, indices, visible_there in (partly, whole):
        for row, count in enumerate(counts[0, 0].tolist() if counts is not None else ()):
            for column in indices[0, 0, row, :count].tolist():
                block = slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns)
                seen[block] |= visible_there[block]
    return seen
