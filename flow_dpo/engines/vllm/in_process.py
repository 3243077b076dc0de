"""vLLM in this process: vLLM's own engine with LoRA adapters that change at every refresh.

The requests are the same as over HTTP (`requests`), without a server: they join vLLM's running batch when they are
submitted, and `poll` steps it until one is finished. Every refresh loads the adapters from their folders under new
names and new ids, and drops the old ones: vLLM's prefix cache is keyed by an adapter's name and path, so reusing a name
would sample from keys and values of the old weights. With `sync="merged"`, a refresh loads the whole model with its one
role's adapter merged in, and empties the cache.

    engine = VllmEngine(open_vllm(settings, model="Qwen/...", ...), facts, context_tokens=2048, folder_of=store)

Invariant: a completion is sampled with the adapter in force when it was submitted. Only `open_vllm` imports vllm.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.request_checks import check_idle, check_request, check_vocabulary
from flow_dpo.engines.settings import VllmSettings, kv_bytes
from flow_dpo.engines.vllm.requests import (
    CompletionSteps,
    ModelFacts,
    Reply,
    VllmRequest,
    check_sampling,
    completion_steps,
)
from flow_dpo.engines.vllm.topk_logprobs import TopLogprobs

_INSTALL = "make setup-vllm makes an environment with it in .venv-vllm, or install this package with its extra [vllm]"
PARTIAL_BLOCKS = {
    "kv_connector": "PartialBlocks",
    "kv_connector_module_path": "flow_dpo.engines.vllm.partial_blocks",
    "kv_role": "kv_consumer",
}
"""vLLM's `--kv-transfer-config` for reusing parts of blocks."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The LoRA ranks that vLLM supports."""


_NUMBERS = itertools.count(1)
"""Ids of adapters and vLLM requests, never used twice in this process by any engine."""


@dataclass(slots=True)
class _Pending:
    """A completion under way."""

    ticket: int
    steps: CompletionSteps
    adapter_request: Any
    """vLLM's `LoRARequest`; None for the base model."""


def check_installed() -> None:
    """Raise `ConfigError` if vLLM is not installed, without importing it."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"--engine vllm needs vLLM, which is not installed here; {_INSTALL}")


def open_vllm(
    settings: VllmSettings,
    *,
    model: str,
    dtype: str,
    on_cpu: bool,
    context_tokens: int,
    num_roles: int,
    rank: int,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Start vLLM's engine with this model. Raises `ConfigError` if vLLM is not installed or does not start."""
    check_installed()
    try:
        from vllm import EngineArgs, LLMEngine  # pyright: ignore
        from vllm.config import KVTransferConfig  # pyright: ignore
    except ImportError as error:
        raise ConfigError(f"--engine vllm needs vLLM, which cannot be imported here ({error}); {_INSTALL}") from error
    if rank > RANKS[-1]:
        raise ConfigError(f"expected lora_r of at most {RANKS[-1]}, vLLM's limit, found {rank}")
    engine_args: dict[str, Any] = {
        "model": model, "revision": revision, "trust_remote_code": trust_remote_code, "dtype": dtype,
        "max_model_len": context_tokens, "skip_tokenizer_init": True,
        "enable_prefix_caching": True, "max_logprobs": -1, "logprobs_mode": "raw_logprobs", "generation_config": "vllm",
        "max_num_seqs": settings.max_batch_size, "kv_cache_memory_bytes": kv_bytes(settings.kv_budget_gib),
        "enforce_eager": on_cpu or not settings.compiled, "disable_log_stats": True, "seed": 0,
        # The KV cache has its own limit; this one only requires that much free GPU memory beside the learner's.
        "gpu_memory_utilization": 0.1,
    }  # fmt: skip
    if on_cpu:
        # On a CPU, vLLM 0.32 loses a request's seed when it prefills the prompt in chunks.
        engine_args["enable_chunked_prefill"] = False
    if settings.sync == "adapters":
        engine_args |= {"enable_lora": True, "max_loras": num_roles, "max_cpu_loras": 2 * num_roles}
        engine_args["max_lora_rank"] = next(one for one in RANKS if one >= rank)
    if settings.block_tokens:
        engine_args["block_size"] = settings.block_tokens
    if settings.partial_blocks == "always" or (settings.partial_blocks == "auto" and on_cpu):
        engine_args["kv_transfer_config"] = KVTransferConfig(**PARTIAL_BLOCKS)
    try:
        return LLMEngine.from_engine_args(EngineArgs(**{**engine_args, **settings.engine_args}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"vLLM could not be started with {model}: {error}; its own log is above. A context window of "
            f"{context_tokens} tokens may not fit --engine.kv_budget_gib {settings.kv_budget_gib}: raise it, or cut "
            'the window by --engine.engine_args {"max_model_len": N}'
        ) from error


class VllmEngine(Engine):
    """vLLM's engine as an `Engine`."""

    def __init__(
        self,
        vllm: Any,
        facts: ModelFacts,
        *,
        context_tokens: int,
        folder_of: Callable[[Adapter], Path],
        merged_into: Path | None = None,
    ) -> None:
        """`folder_of` returns an adapter's folder. With `merged_into`, the base model's own folder, it returns the
        folder of a whole model with the adapter merged in, which a refresh loads."""
        self._vllm, self._facts, self._folder_of, self._base = vllm, facts, folder_of, merged_into
        self._context_tokens = context_tokens
        self._pending: dict[str, _Pending] = {}
        """Completions under way by the id of the vLLM request that each waits for."""
        self._finished: list[tuple[int, Completion]] = []
        self._failures: deque[EngineError] = deque()
        self._lora_requests: dict[Role, Any] = {}
        self._adapters: dict[Role, Adapter] = {}
        self._num_tickets = 0
        self._stats: dict[str, float] = {}

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        check_sampling(sampling)
        check_vocabulary(request, excluded, vocab_size=self._facts.vocab_size)
        adapter = self._adapters.get(request.role)
        steps = completion_steps(
            request,
            sampling,
            seed=seed,
            excluded=tuple(excluded),
            facts=self._facts,
            policy_version=adapter.version if adapter else 0,
        )
        self._num_tickets += 1
        self._advance(_Pending(self._num_tickets, steps, self._lora_requests.get(request.role)), None)
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        while self._pending and not self._finished and not self._failures:
            with _VllmErrors("step"):
                outputs = self._vllm.step()
            for output in outputs:
                if output.finished:
                    self._read_output(output)
        if self._finished:
            finished, self._finished = self._finished, []
            return finished
        if self._failures:
            raise self._failures.popleft()
        return []

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(len(self._pending) + len(self._finished) + len(self._failures))
        if dict(adapters) == self._adapters:
            return
        started = time.perf_counter()
        if self._base is None:
            previous = self._lora_requests
            self._lora_requests = {role: self._load_lora(adapter) for role, adapter in adapters.items()}
            with _VllmErrors("drop an adapter"):
                for adapter_request in previous.values():
                    self._vllm.remove_lora(adapter_request.lora_int_id)
        else:
            self._reload([self._folder_of(adapter) for adapter in adapters.values()] or [self._base])
        self._adapters = dict(adapters)
        self._count(refresh_s=time.perf_counter() - started)

    def sample_base(self, vllm_request: VllmRequest) -> Reply:
        """The base model's reply to one request, while nothing else is under way."""
        check_idle(len(self._pending) + len(self._finished) + len(self._failures))
        replies: list[Reply] = []

        def single_step() -> CompletionSteps:
            replies.append((yield vllm_request))
            return Completion(token_ids=(), logprobs=(), sampled_logprobs=(), finish_reason="stop", policy_version=0)

        self._advance(_Pending(0, single_step(), None), None)
        self.poll()
        return replies[0]

    def take_stats(self) -> dict[str, float]:
        names = ("num_requests", "sampled_tokens", "prefilled_tokens", "reused_tokens", "refresh_s")
        stats, self._stats = self._stats, {}
        return {name: stats.get(name, 0.0) for name in names}

    def close(self) -> None:
        """End vLLM's own processes and free its memory."""
        self._vllm.engine_core.shutdown()

    def _load_lora(self, adapter: Adapter) -> Any:
        from vllm.lora.request import LoRARequest  # pyright: ignore

        number, folder = next(_NUMBERS), self._folder_of(adapter).resolve()
        name = f"{adapter.role}-v{adapter.version}-{number}"
        adapter_request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))
        with _VllmErrors(f"load the adapter {folder}"):
            self._vllm.add_lora(adapter_request)
        return adapter_request

    def _reload(self, folders: list[Path]) -> None:
        """Load the weights in another folder into vLLM, and empty the prefix cache."""
        if len(folders) != 1:
            raise EngineError(f"expected one role's weights, found {len(folders)}")
        with _VllmErrors(f"load the weights in {folders[0]}"):
            self._vllm.collective_rpc("reload_weights", kwargs={"weights_path": str(folders[0].resolve())})
            was_reset = self._vllm.reset_prefix_cache(reset_connector=True)
        if not was_reset:
            raise EngineError("expected vLLM to empty its prefix cache after new weights, found that it did not")

    def _advance(self, pending: _Pending, reply: Reply | None) -> None:
        """Send a completion's next vLLM request, or collect the completion."""
        try:
            vllm_request = next(pending.steps) if reply is None else pending.steps.send(reply)
        except StopIteration as stop:
            self._finished.append((pending.ticket, stop.value))
        except EngineError as error:
            self._failures.append(error)
        else:
            self._send(pending, vllm_request)

    def _send(self, pending: _Pending, vllm_request: VllmRequest) -> None:
        from vllm import SamplingParams, TokensPrompt  # pyright: ignore
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore

        name = str(next(_NUMBERS))
        # Flat: log-probabilities as plain lists, without an object for each.
        params = SamplingParams(
            **vllm_request.params, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, flat_logprobs=True
        )
        prompt = TokensPrompt(prompt_token_ids=list(vllm_request.prompt_ids))
        with _VllmErrors("take a request"):
            self._vllm.add_request(name, prompt, params, lora_request=pending.adapter_request)
        self._pending[name] = pending

    def _read_output(self, output: Any) -> None:
        """Read one finished output of vLLM, and continue its completion."""
        pending = self._pending.pop(output.request_id)
        [out] = output.outputs
        ids = tuple(out.token_ids)
        flat = out.logprobs
        if not ids or len(flat) != len(ids):
            raise EngineError(f"expected log-probabilities of {len(ids)} tokens from vLLM, found {len(flat)}")
        # One row for each position: the sampled token, then the most probable ones, or all.
        shape = (len(ids), len(flat.token_ids) // len(ids))
        token_ids, logprobs = np.array(flat.token_ids).reshape(shape), np.array(flat.logprobs).reshape(shape)
        first = 1 if shape[1] > 1 else 0
        values, top_logprobs = logprobs[:, 0].tolist(), TopLogprobs(token_ids[:, first:], logprobs[:, first:])
        cached = output.num_cached_tokens or 0
        self._count(
            num_requests=1,
            sampled_tokens=len(ids),
            prefilled_tokens=len(output.prompt_token_ids) - cached,
            reused_tokens=cached,
        )
        self._advance(pending, Reply(ids, tuple(values), top_logprobs))

    def _count(self, **work: float) -> None:
        for name, value in work.items():
            self._stats[name] = self._stats.get(name, 0.0) + value


class _VllmErrors:
    """Turns vLLM's errors, which are mostly plain exceptions from its other process, into `EngineError`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise EngineError(f"vLLM could not {self._what}: {error!r:.500}; its own log is above") from error
