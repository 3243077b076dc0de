"""vLLM server engine: a running `vllm serve` over HTTP, with LoRA adapters that change while it runs.

Requests are sent as soon as they are submitted, `concurrency` at once, each in its own thread, and `poll` returns those
that are finished. A refresh loads every role's adapter under a name that was never used before, and unloads the old
adapters: vLLM's prefix cache is keyed by an adapter's name, so reusing a name would sample from keys and values of the
old weights.

    engine = VllmServerEngine(client, facts, base=base, context_tokens=512, folder_of=store)
    engine.refresh({"answer": Adapter(role="answer", version=3, path="runs/x/served/answer/3")})

Invariants: a completion is sampled with the adapter in force when it was submitted, or the run stops. If a server ends
and is restarted, no request is lost or answered twice, since each has one thread that retries until it has a reply.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.request_checks import check_idle, check_request, check_vocabulary
from flow_dpo.engines.vllm.client import Completed, ServedModel, Unknown, VllmClient
from flow_dpo.engines.vllm.requests import (
    CompletionSteps,
    ModelFacts,
    Reply,
    VllmRequest,
    check_sampling,
    completion_steps,
)

FolderOf = Callable[[Adapter], Path]
"""Returns an adapter's folder in PEFT's layout, and writes the adapter there if it is not there yet."""
_MAX_RELOADS = 20
"""How often one request can find its adapter gone before an error is raised."""


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """A role's adapter, as the server has it loaded."""

    name: str
    version: int
    folder: Path | None
    """None for the base model."""


@dataclass(slots=True)
class _Stats:
    """Counts and seconds since `take_stats` was last called."""

    num_requests: int = 0
    sampled_tokens: int = 0
    prefilled_tokens: int = 0
    reused_tokens: int = 0
    refresh_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class VllmServerEngine(Engine):
    """A vLLM server as an `Engine`."""

    def __init__(
        self,
        client: VllmClient,
        facts: ModelFacts,
        *,
        base: ServedModel,
        context_tokens: int,
        folder_of: FolderOf,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises if a restarted server gives other log-probabilities than the first one."""
        self._client, self._facts, self._base, self._folder_of, self._check = client, facts, base, folder_of, check
        self._context_tokens = context_tokens
        self._threads = ThreadPoolExecutor(client.settings.concurrency, thread_name_prefix="vllm")
        self._done: queue.SimpleQueue[tuple[int, Future[Completion]]] = queue.SimpleQueue()
        self._failures: deque[EngineError] = deque()
        self._under_way = 0
        self._num_tickets = 0
        self._served: dict[Role, ServedAdapter] = {}
        self._adapters: dict[Role, Adapter] = {}
        self._loading = threading.Lock()
        self._name_suffix = f"{os.getpid():x}{time.time_ns():x}"
        self._num_refreshes = 0
        self._stats = _Stats()

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        check_sampling(sampling)
        check_vocabulary(request, excluded, vocab_size=self._facts.vocab_size)
        adapter = self._served.get(request.role) or ServedAdapter(self._base.id, 0, None)
        steps = completion_steps(
            request, sampling, seed=seed, excluded=tuple(excluded), facts=self._facts, policy_version=adapter.version
        )
        self._num_tickets += 1
        self._under_way += 1
        ticket = self._num_tickets
        future = self._threads.submit(self._complete, steps, adapter)
        future.add_done_callback(lambda done: self._done.put((ticket, done)))
        return ticket

    def poll(self) -> list[tuple[int, Completion]]:
        finished: list[tuple[int, Completion]] = []
        while self._under_way and not (finished and self._done.empty()) and not self._failures:
            ticket, future = self._done.get()
            self._under_way -= 1
            error = future.exception()
            if isinstance(error, EngineError):
                self._failures.append(error)
            else:
                finished.append((ticket, future.result()))
        if not finished and self._failures:
            raise self._failures.popleft()
        return finished

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(self._under_way or len(self._failures))
        if dict(adapters) == self._adapters:
            return
        started = time.perf_counter()
        self._num_refreshes += 1
        served: dict[Role, ServedAdapter] = {}
        for role, adapter in adapters.items():
            name = f"{role}-v{adapter.version}-{self._name_suffix}-{self._num_refreshes}"
            folder = self._folder_of(adapter).resolve()
            with ExitStack() as on_error:
                on_error.callback(self._unload, served)
                self._client.load(name, folder)
                on_error.pop_all()
            served[role] = ServedAdapter(name, adapter.version, folder)
        previous, self._served, self._adapters = self._served, served, dict(adapters)
        self._unload(previous)
        self._stats.refresh_s += time.perf_counter() - started

    def take_stats(self) -> dict[str, float]:
        stats, self._stats = self._stats, _Stats()
        retries = self._client.take_num_retries()
        return {
            "num_requests": stats.num_requests, "sampled_tokens": stats.sampled_tokens,
            "prefilled_tokens": stats.prefilled_tokens, "reused_tokens": stats.reused_tokens,
            "refresh_s": stats.refresh_s, "num_retries": retries,
        }  # fmt: skip

    def close(self) -> None:
        """Give up the requests under way, and unload the adapters."""
        self._client.stop()
        self._threads.shutdown(cancel_futures=True)
        self._unload(self._served)
        self._served = {}

    def _unload(self, served: Mapping[Role, ServedAdapter]) -> None:
        for adapter in served.values():
            self._client.unload(adapter.name)

    def _complete(self, steps: CompletionSteps, adapter: ServedAdapter) -> Completion:
        """Send all vLLM requests of one completion, one after another."""
        try:
            vllm_request = next(steps)
            while True:
                vllm_request = steps.send(self._send(vllm_request, adapter))
        except StopIteration as done:
            return done.value

    def _send(self, vllm_request: VllmRequest, adapter: ServedAdapter) -> Reply:
        """Send one request. If the server has lost the adapter, load it again first."""
        for _ in range(_MAX_RELOADS):
            try:
                completed = self._client.complete(adapter.name, vllm_request)
            except Unknown:
                self._load_again(adapter)
                continue
            self._count(completed)
            return completed.reply
        raise EngineError(
            f"expected {self._client.url} to keep the adapter {adapter.name}, found it gone {_MAX_RELOADS} times; does "
            "another program unload adapters there?"
        )

    def _load_again(self, adapter: ServedAdapter) -> None:
        """Load the adapter into a restarted server. Raises `EngineError` or `ConfigError` if it serves another
        model."""
        with self._loading:
            served = self._client.models()
            if self._base not in served:
                raise EngineError(
                    f"expected {self._client.url} to serve {self._base.id} from {self._base.root} with "
                    f"{self._base.max_model_len} tokens as before, found "
                    f"{[(one.id, one.root, one.max_model_len) for one in served if not one.parent]}; start it as it was"
                )
            if adapter.folder is not None and not any(one.id == adapter.name for one in served):
                self._check()
                self._client.load(adapter.name, adapter.folder)

    def _count(self, completed: Completed) -> None:
        cached = completed.cached_tokens or 0
        with self._stats.lock:
            self._stats.num_requests += 1
            self._stats.sampled_tokens += len(completed.reply.token_ids)
            self._stats.prefilled_tokens += completed.prompt_tokens - cached
            self._stats.reused_tokens += cached
