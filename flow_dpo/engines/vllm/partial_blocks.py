"""KV connector for vLLM: a prompt's last, partial block is copied from another block instead of computed again.

vLLM itself loads it in its scheduler and in its workers, through its interface for KV connectors:

    {"kv_connector": "PartialBlocks", "kv_connector_module_path": "flow_dpo.engines.vllm.partial_blocks", ...}

The scheduler's side knows which tokens are in which block (`block_contents`), and reports those that continue the whole
blocks found by vLLM. The worker's side copies the block before the step computes anything. Blocks are copied whole:
what follows the shared tokens is overwritten, or masked until then, so their layout need not be known.

Invariant: a block is a source only until it is given to another request. Blocks that a step reassigns are written by
that step's forward, after all copies from them were read, so a source found during scheduling is valid. Models with
attention that is not full, or with several kinds of cache, are left to vLLM alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1 import (  # pyright: ignore
    KVConnectorBase_V1,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata  # pyright: ignore
from vllm.v1.kv_cache_interface import FullAttentionSpec  # pyright: ignore

from flow_dpo.engines.vllm.block_contents import BlockContents, Parent

WORTH_WAITING = 8
"""Number of tokens for which a request waits one step, if another request computes them in this step."""


@dataclass
class Copies(KVConnectorMetadata):  # pyright: ignore
    """The blocks that a step copies before it computes: sources, and destinations in the same order."""

    sources: list[int] = field(default_factory=list[int])
    destinations: list[int] = field(default_factory=list[int])


@dataclass(frozen=True)
class _Found:
    """Where a request that is being scheduled starts from."""

    num_whole: int
    """Number of whole blocks in vLLM's own cache."""
    source: int
    """The block that begins with the first tokens of the next one."""


class PartialBlocks(KVConnectorBase_V1, SupportsHMA):  # pyright: ignore
    """A prefix cache of single tokens, held in vLLM's own blocks."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        groups = kv_cache_config.kv_cache_groups
        # If new blocks are zeroed first, a source could be among them.
        plain = len(groups) == 1 and not kv_cache_config.needs_kv_cache_zeroing
        self._works = plain and type(groups[0].kv_cache_spec) is FullAttentionSpec
        self._block_tokens: int = groups[0].kv_cache_spec.block_size if groups else 1
        self._num_blocks: int = kv_cache_config.num_blocks
        self._contents, self._coming = BlockContents(), BlockContents()
        self._found: dict[str, _Found] = {}
        self._scheduled: list[tuple[Any, int, list[int]]] = []
        self._copies = Copies()
        self._pool: Any = None
        self._pinned: list[Any] = []
        self._caches: list[torch.Tensor] = []

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    # ---- in the scheduler -------------------------------------------------------------------------------------------

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        self._pool = gpu_block_pool

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Number of cached tokens in the first block that vLLM lacks; None if waiting for the next step finds more."""
        size = self._block_tokens
        num_whole, rest = divmod(num_computed_tokens, size)
        unusable = request.mm_features or request.prompt_embeds is not None or request.skip_reading_prefix_cache
        if not self._works or rest or unusable:
            return 0, False
        # At least one token must be computed, because the next token's distribution is needed.
        end = min(num_computed_tokens + size, request.num_tokens - 1)
        ids, parent = request.all_token_ids[num_computed_tokens:end], _parent(request, num_whole)
        source, num_tokens = self._contents.longest(parent, ids)
        if self._coming.longest(parent, ids)[1] >= num_tokens + WORTH_WAITING:
            return None, False
        self._found[request.request_id] = _Found(num_whole, source)
        return num_tokens, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        found = self._found.pop(request.request_id, None)
        if not self._works or found is None:
            return
        [ids] = blocks.get_block_ids()
        for block in ids[found.num_whole :]:
            self._contents.drop(block)
        if num_external_tokens:
            self._copies.sources.append(found.source)
            self._copies.destinations.append(ids[found.num_whole])
        self._put(self._coming, request, ids, request.num_tokens, first=found.num_whole)
        self._scheduled.append((request, found.num_whole, ids))

    def build_connector_meta(self, scheduler_output: Any) -> Copies:
        """The copies of this step. What this step computes can be copied from the next step on."""
        self._unpin()
        if self._works:
            for new_ids in scheduler_output.scheduled_cached_reqs.new_block_ids:
                for block in new_ids[0] if new_ids else ():
                    self._contents.drop(block)
            computed = {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
            for request, num_whole, ids in self._scheduled:
                if request.request_id in computed:
                    end = computed[request.request_id] + scheduler_output.num_scheduled_tokens[request.request_id]
                    self._put(self._contents, request, ids, end, first=num_whole)
        self._scheduled.clear()
        self._coming.clear()
        copies, self._copies = self._copies, Copies()
        return copies

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Keep what the request has computed. The token that it sampled last is not computed yet."""
        self._found.pop(request.request_id, None)
        end = min(request.num_computed_tokens, request.num_tokens - 1)
        if self._works and block_ids and end > 0:
            self._put(self._contents, request, block_ids, end, first=0)
            # vLLM reassigns a partly filled block first, since it cannot find it again: pin it until it is freed, and
            # release it after all others.
            if end % self._block_tokens and block_ids[-1] in self._contents:
                self._pinned.append(self._pool.blocks[block_ids[-1]])
                self._pool.touch(self._pinned[-1:])
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, None]:
        return self.request_finished(request, block_ids[0] if block_ids else [])

    def take_events(self) -> tuple[()]:
        """Called at the end of every update, when the blocks of all finished requests have been freed."""
        self._unpin()
        return ()

    def _unpin(self) -> None:
        if self._pinned:
            self._pool.unpin_blocks(self._pinned, lambda block: self._contents.drop(block.block_id))
            self._pinned.clear()

    def reset_cache(self) -> bool:
        self._contents.clear()
        return True

    def _put(self, contents: BlockContents, request: Any, block_ids: list[int], end: int, *, first: int) -> None:
        size = self._block_tokens
        for number in range(first, min(len(block_ids), -(-end // size))):
            ids = request.all_token_ids[number * size : min((number + 1) * size, end)]
            contents.put(block_ids[number], _parent(request, number), ids)

    # ---- in the workers ---------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        caches = {cache.data_ptr(): cache for cache in kv_caches.values()}
        for cache in caches.values() if self._works else ():
            if cache.shape[0] != self._num_blocks:
                raise ValueError(
                    f"expected a KV cache of {self._num_blocks} consecutive blocks, found the shape "
                    f"{tuple(cache.shape)}; use --engine.partial_blocks never"
                )
        self._caches = list(caches.values())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Copy this step's blocks. All sources are read before any destination is written."""
        copies = self._get_connector_metadata()
        assert isinstance(copies, Copies)
        if copies.sources:
            sources, destinations = torch.tensor(copies.sources), torch.tensor(copies.destinations)
            for cache in self._caches:
                cache[destinations.to(cache.device)] = cache[sources.to(cache.device)]

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Does nothing: there is nothing to wait for."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Does nothing: nothing is saved elsewhere."""

    def wait_for_save(self) -> None:
        """Does nothing: nothing is saved elsewhere."""


def _parent(request: Any, number: int) -> Parent:
    """Identifies what precedes this block of a request. vLLM's hashes include the adapter's name and path."""
    if number:
        return request.block_hashes[number - 1]
    adapter = request.lora_request
    start: Hashable = (adapter.lora_name, adapter.lora_path) if adapter else ""
    return start, request.cache_salt
