"""The KV cache's budget in bytes, if it is left to the device, and the context window that it can hold.

A run plans the budget together with the learner's memory (`runs.memory`). Without a run, as in evaluation, an engine
takes a share of the free memory:

    budgeted(LocalSettings(), model)        kv_budget_gib 6.0 on a CPU with 24 GiB, half of the free memory on a GPU
    window_within(settings, model, 131072)  21840, with a warning: 8 GiB of Phi-3-mini's keys and values, in bf16

vLLM does not start with a context window that its cache cannot hold, so the window is cut instead, and problems that do
not fit are left out as usual. Invariant: a budget or window that the user gave is never changed.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from flow_dpo.engines.settings import USUAL_KV_GIB, LocalSettings, VllmSettings, kv_bytes

log = logging.getLogger("flow_dpo")
_SHARE = 0.5
"""Share of a GPU's free memory."""
HOST_SHARE = 4
"""On a CPU, the local engine takes at most one part in so many of the machine's memory, and fills it gradually."""
_BLOCK = 16
"""A window is cut to a multiple of so many tokens, the block size of vLLM's caches."""

_Settings = TypeVar("_Settings", LocalSettings, VllmSettings)


def budgeted(settings: _Settings, model: PreTrainedModel, *, free: int | None = None) -> _Settings:
    """The settings with a number for the budget. `free`, in bytes, replaces the GPU's own answer."""
    if settings.kv_budget_gib != "auto":
        return settings
    device = model.device
    if device.type != "cuda" and free is None:
        # Memory that is not taken by the weights, or by the copies of them that matrix products read.
        left = host_memory() - 2 * sum(weight.nbytes for weight in model.parameters())
        found = min(host_memory() / HOST_SHARE, left / 2) / 2**30 if isinstance(settings, LocalSettings) else 0.0
        return replace(settings, kv_budget_gib=max(USUAL_KV_GIB, round(found, 1)))
    free = torch.cuda.mem_get_info(device)[0] if free is None else free
    if isinstance(settings, VllmSettings):  # vLLM loads its own copy of the weights
        free -= sum(weight.nbytes for weight in model.parameters())
    return replace(settings, kv_budget_gib=max(1.0, round(_SHARE * free / 2**30, 1)))


def of_one_worker(memory: int) -> float:
    """The budget in GiB of each of several workers that share a machine's memory, given in bytes. It does not depend on
    their number, because the budget decides which rows are admitted."""
    return min(USUAL_KV_GIB, round(memory / 16 / 2**30, 3))


def host_memory() -> int:
    """Total memory in bytes of the machine, or of the container that this process is in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    texts = [file.read_text(encoding="ascii").strip() for file in _limits() if file.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdigit())])


def _limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The Linux control-group files that can limit this process's memory, of versions 1 and 2: those of the visible
    root, and those of the process's own group, which is below the root outside of a container."""
    files = [root / "memory.max", root / "memory/memory.limit_in_bytes"]
    for line in own.read_text(encoding="utf-8").splitlines() if own.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            files.append(root / group.lstrip("/") / "memory.max")
        elif "memory" in controllers.split(","):
            files.append(root / "memory" / group.lstrip("/") / "memory.limit_in_bytes")
    return files


def window_within(settings: VllmSettings, model: PreTrainedModel, context_tokens: int) -> int:
    """The context window, cut to what the budget holds; unchanged if `engine_args` have a `max_model_len`."""
    budget = kv_bytes(settings.kv_budget_gib)
    if model.device.type == "cpu" and (own := os.environ.get("VLLM_CPU_KVCACHE_SPACE", "")).isdigit():
        budget = int(own) * 2**30  # vLLM uses it instead of any other budget
    held = budget // token_bytes(model) // _BLOCK * _BLOCK
    if held >= context_tokens or "max_model_len" in settings.engine_args:
        return context_tokens
    log.warning(
        "the context window is cut from %d to %d tokens, which is what %.3g GiB of keys and values can hold; a larger "
        "--engine.kv_budget_gib allows a longer one",
        context_tokens, held, budget / 2**30,
    )  # fmt: skip
    return held


def token_bytes(model: PreTrainedModel) -> int:
    """Bytes of one token's keys and values in all layers, by the config; an upper bound if attention windows slide."""
    config = model.config.get_text_config()
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    if rank := getattr(config, "kv_lora_rank", None):  # one latent vector for all heads
        return layers * (rank + getattr(config, "qk_rope_head_dim", 0)) * model.dtype.itemsize
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return layers * 2 * (getattr(config, "num_key_value_heads", None) or heads) * size * model.dtype.itemsize
