"""FlexAttention for packed rows on a CUDA device: block masks of tries, built without a mask of N squared.

In a packed row the key k is visible to the queries k <= q < subtree_end[k], which is one interval. So the ends of the
intervals tell which blocks of 128 queries and 128 keys see one another. For a row of 2,063 tokens:

    padded to 4,096 (2,048, 4,096, ...)      few sizes, each compiled once; a padding token sees only itself
    32 x 32 blocks                           most are hidden and never computed, others are fully visible
    the mask by tokens                       evaluated by the kernel only in blocks that are partly visible

`CudaLayout` compares FlexAttention with gathered paths (`models.tree_attention`), values and gradients, before it is
first used for a shape of heads. If it is wrong or does not run, paths are used from then on, with a warning that says
why; `found` keeps the reason for a run's records. Invariant: both give what a dense mask over the whole row gives.

Shapes: N tokens in the row, S of them after padding, B blocks, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flow_dpo.core.types import TokenIds
from flow_dpo.models.own_forward import FAULTS
from flow_dpo.models.packing import merge

if TYPE_CHECKING:
    from flow_dpo.models.tree_attention import PathLayout, TreeRow

BLOCK = 128
"""Number of queries and of keys in a block, as in FlexAttention's kernels."""
SMALLEST = 1024
"""Smallest size in tokens to which a row is padded; longer rows are padded to the next power of two. Padding is hidden
in whole blocks, which cost next to nothing."""
_MOST_COMPILED = 64
"""Maximum number of kernels that one process compiles: by size, with and without gradients, with and without a window.
Beyond it an error is raised, since torch would silently fall back to a dense mask."""
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference from paths that a check allows, as a share of the largest value."""

found: dict[str, str] = {}
"""For each shape of heads that this process has tried, why FlexAttention is not used; "" if it is used."""


class FlexLayout:
    """Attention by FlexAttention with a block mask, which skips the blocks in which nothing is visible."""

    def __init__(self, row: TreeRow, device: torch.device | str) -> None:
        self.size = max(SMALLEST, 1 << (row.num_tokens - 1).bit_length())
        self._device, self._padding = torch.device(device), self.size - row.num_tokens
        own = np.arange(row.num_tokens, self.size)
        self._positions_S = np.concatenate([row.positions_N, np.zeros_like(own)])
        self._subtree_end_S = np.concatenate([row.subtree_end_N, own + 1])
        self._on_device = [self._put(each) for each in (self._positions_S, self._subtree_end_S)]
        self._masks: dict[int | None, Any] = {}

    def attend(
        self,
        layer: int,
        query_1HND: torch.Tensor,
        key_1KND: torch.Tensor,
        value_1KND: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        del layer
        if window not in self._masks:  # once for all layers, and for policy and reference
            self._masks[window] = self.block_mask(window)
        padding = (0, 0, 0, self._padding)
        out_1HSD = _flex_attention()(
            *(torch.nn.functional.pad(each, padding) for each in (query_1HND, key_1KND, value_1KND)),
            block_mask=self._masks[window],
            scale=scaling,
            enable_gqa=query_1HND.shape[1] != key_1KND.shape[1],
        )
        return out_1HSD[:, :, : self.size - self._padding]

    def saving(self) -> AbstractContextManager[None]:
        return nullcontext()

    def visible(self, window: int | None) -> Callable[..., torch.Tensor]:
        """FlexAttention's mask function of (batch, head, query, key)."""
        positions, subtree_end = self._on_device

        def mask(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            del batch, head
            ancestor = (key <= query) & (query < subtree_end[key])
            return ancestor if window is None else ancestor & (positions[query] - positions[key] < window)

        return mask

    def block_mask(self, window: int | None) -> Any:
        """The partly visible blocks, in which the mask function is evaluated, and the fully visible ones."""
        from torch.nn.attention.flex_attention import BlockMask

        partly_BB, whole_BB = _blocks(self._positions_S, self._subtree_end_S, window)
        lists = [self._put(each) for blocks in (partly_BB, whole_BB) for each in _listed(blocks)]
        transposed = [self._put(each) for blocks in (partly_BB, whole_BB) for each in _listed(blocks.T)]
        names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
        parts: dict[str, Any] = dict(zip(names, lists, strict=True))
        parts |= dict(zip((name.replace("kv", "q") for name in names), transposed, strict=True))
        return BlockMask(
            seq_lengths=(self.size, self.size),
            **parts,
            BLOCK_SIZE=(BLOCK, BLOCK),
            mask_mod=self.visible(window),
        )

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _blocks(positions_S: np.ndarray, subtree_end_S: np.ndarray, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of queries see which blocks of keys partly, and which fully; both BB, query blocks first."""
    size, num = len(positions_S), len(positions_S) // BLOCK
    keys = np.arange(size)
    # 1. Query blocks that see some key of a block: those that meet a key's interval [k, subtree_end[k]).
    some_BB = _counted(keys // BLOCK, keys // BLOCK, (subtree_end_S - 1) // BLOCK + 1, num) > 0
    # 2. Query blocks whose queries all see all keys of a block: those inside the interval of each of its keys.
    whole_BB = _counted(keys // BLOCK, -(-keys // BLOCK), subtree_end_S // BLOCK, num) == BLOCK
    if window is not None:
        # 3. The smallest and the largest distance between a query and a key of two blocks.
        low_B, high_B = (extreme(positions_S.reshape(num, BLOCK), 1) for extreme in (np.min, np.max))
        some_BB &= low_B[:, None] - high_B < window
        whole_BB &= high_B[:, None] - low_B < window
    return some_BB & ~whole_BB, whole_BB


def _counted(key_block: np.ndarray, first: np.ndarray, end: np.ndarray, num: int) -> np.ndarray:
    """For each query block and key block, the number of keys with that query block in their [first, end), BB."""
    steps = np.zeros((num + 1, num), np.int64)
    end = np.maximum(first, end)
    np.add.at(steps, (first, key_block), 1)
    np.add.at(steps, (end, key_block), -1)
    return steps.cumsum(0)[:num]


def _listed(blocks_BB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of blocks in each row, 11B, and their columns in order, followed by the other columns, 11BB."""
    counts = blocks_BB.sum(1, dtype=np.int32)
    columns = np.argsort(~blocks_BB, axis=1, kind="stable").astype(np.int32)
    return counts[None, None], columns[None, None]


class CudaLayout:
    """FlexAttention for the shapes of heads for which it was found right, gathered paths for others."""

    def __init__(self, row: TreeRow, device: torch.device | str) -> None:
        self._row, self._device = row, torch.device(device)
        self._flex: FlexLayout | None = None
        self._paths: PathLayout | None = None

    def attend(
        self,
        layer: int,
        query_1HND: torch.Tensor,
        key_1KND: torch.Tensor,
        value_1KND: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        tensors = (query_1HND, key_1KND, value_1KND)
        if complaint_of(*tensors, window=window):
            return self._by_paths().attend(layer, *tensors, scaling=scaling, window=window)
        self._flex = self._flex or FlexLayout(self._row, self._device)
        return self._flex.attend(layer, *tensors, scaling=scaling, window=window)

    def saving(self) -> AbstractContextManager[None]:
        """A context for forwards: that of `PathLayout` if any paths are gathered."""
        return self._by_paths().saving() if any(found.values()) else nullcontext()

    def _by_paths(self) -> PathLayout:
        from flow_dpo.models.tree_attention import PathLayout

        self._paths = self._paths or PathLayout(self._row, self._device)
        return self._paths


def complaint_of(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int | None) -> str:
    """Why FlexAttention must not be used for such heads; "" if it is right. Tried once per process."""
    heads, kv_heads = query.shape[1], key.shape[1]
    name = f"{heads} heads over {kv_heads} of {key.shape[-1]} and {value.shape[-1]}, {query.dtype}, {query.device.type}"
    name += ", sliding window" if window is not None else ""
    if name not in found:
        try:
            found[name] = _check([each.shape for each in (query, key, value)], query.dtype, query.device, window)
        except torch.OutOfMemoryError:
            raise
        except _faults() as error:
            found[name] = f"{type(error).__name__}: {str(error) or 'no message'}"[:300]
        if found[name]:
            warnings.warn(
                f"FlexAttention is not used for {name}: {found[name]}. Keys are gathered along each path instead, "
                "which is exact but slower",
                stacklevel=2,
            )
    return found[name]


def _check(shapes: list[torch.Size], dtype: torch.dtype, device: torch.device, window: int | None) -> str:
    """How far values or gradients of a small row are off from those of gathered paths; "" if they are right."""
    from flow_dpo.models.tree_attention import PathLayout

    row = merge(_probe_sequences())
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(1, shape[1], row.num_tokens, shape[3], generator=generator) for shape in shapes]
    made = []
    with torch.inference_mode(False), torch.enable_grad():
        for layout in (FlexLayout(row, device), PathLayout(row, device)):
            leaves = [draw.to(device, dtype).requires_grad_() for draw in draws]
            # The kernel does not depend on the window's size: any that this row exceeds will do.
            out = layout.attend(0, *leaves, scaling=0.2, window=None if window is None else BLOCK)
            made.append(
                [out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves, materialize_grads=True)]
            )
    for what, flex, paths in zip(("values", "gradients of queries", "of keys", "of values"), *made, strict=True):
        off = float((flex - paths).abs().max() / paths.abs().max())
        if not off <= _TOLERANCE.get(dtype, 3e-2):
            return f"its {what} are {off:.2g} of their size away from those of gathered paths"
    return ""


def _probe_sequences() -> list[TokenIds]:
    """Two trees of several blocks: trunks of 300 tokens, with siblings after 100 and at the end."""
    trunks = [tuple(range(first, first + 300)) for first in (0, 1000)]
    ends = [(trunk[:100] + (5, 6) * 40, trunk + (7,) * 9, trunk + (8,) * 70) for trunk in trunks]
    return [sequence for tree in ends for sequence in tree]


def _faults() -> tuple[type[Exception], ...]:
    """What a kernel can raise if it does not compile or run here."""
    try:
        from triton.runtime.errors import TritonError  # pyright: ignore
    except ImportError:
        return FAULTS
    return (*FAULTS, TritonError)


@cache
def _flex_attention() -> Callable[..., torch.Tensor]:
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    # Static sizes: with dynamic ones torch specialises on lengths anyway, and compiles again and again.
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return config.patch(recompile_limit=_MOST_COMPILED)(compiled)
