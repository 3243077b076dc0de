"""How does a running `vllm serve` play, with adapters that change while it runs?

Requests are sent as soon as they are submitted, `concurrency` of them at once, each by a thread of its own, and `poll`
hands over whichever is answered first. At a refresh every role's adapter is loaded under a name that was never used
before, and the old ones are unloaded: vLLM's prefix cache goes by an adapter's name, so a name that is used again would
speak from keys and values of the old weights.

    engine = VllmServerEngine(client, speech, context_tokens=512, folder_of=lambda adapter: Path(adapter.path))
    engine.refresh({"answer": Adapter(role="answer", version=3, path="runs/x/served/answer/3")})

Invariants: a completion is answered by the adapter in force when it was submitted, or the run stops; a server that ends
and is started again costs no request and answers none twice, since each has one thread that asks until it is answered.
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
from flow_dpo.engines.request_checks import check_idle, check_request, check_words
from flow_dpo.engines.vllm.client import Completed, ServedModel, Unknown, VllmClient
from flow_dpo.engines.vllm.requests import Answering, Ask, ModelFacts, Reply, answer, check_sampling

FolderOf = Callable[[Adapter], Path]
"""Where an adapter lies in PEFT's layout, written there if it is not yet."""
_MOST_REVIVALS = 20
"""Times that one request finds its adapter gone before that is called a fault."""


@dataclass(frozen=True, slots=True)
class Voice:
    """What the server is to speak with for a role."""

    name: str
    version: int
    folder: Path | None
    """None for the base model."""


@dataclass(slots=True)
class _Work:
    """What was done since last asked."""

    num_requests: int = 0
    sampled_tokens: int = 0
    prefilled_tokens: int = 0
    reused_tokens: int = 0
    refresh_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class VllmServerEngine(Engine):
    """vLLM behind an address."""

    def __init__(
        self,
        client: VllmClient,
        speech: ModelFacts,
        *,
        base: ServedModel,
        context_tokens: int,
        folder_of: FolderOf,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises where a server that was started anew speaks otherwise than the first did."""
        self._client, self._speech, self._base, self._folder_of, self._check = client, speech, base, folder_of, check
        self._context_tokens = context_tokens
        self._threads = ThreadPoolExecutor(client.settings.concurrency, thread_name_prefix="vllm")
        self._done: queue.SimpleQueue[tuple[int, Future[Completion]]] = queue.SimpleQueue()
        self._failures: deque[EngineError] = deque()
        self._under_way = 0
        self._num_tickets = 0
        self._voices: dict[Role, Voice] = {}
        self._adapters: dict[Role, Adapter] = {}
        self._reviving = threading.Lock()
        self._names = f"{os.getpid():x}{time.time_ns():x}"
        self._num_refreshes = 0
        self._work = _Work()

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        check_sampling(sampling)
        check_words(request, excluded, num_words=self._speech.num_words)
        voice = self._voices.get(request.role) or Voice(self._base.id, 0, None)
        questions = answer(
            request, sampling, seed=seed, excluded=tuple(excluded), speech=self._speech, policy_version=voice.version
        )
        self._num_tickets += 1
        self._under_way += 1
        ticket = self._num_tickets
        future = self._threads.submit(self._play, questions, voice)
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
        began = time.perf_counter()
        self._num_refreshes += 1
        voices: dict[Role, Voice] = {}
        for role, adapter in adapters.items():
            name = f"{role}-v{adapter.version}-{self._names}-{self._num_refreshes}"
            folder = self._folder_of(adapter).resolve()
            with ExitStack() as undone:
                undone.callback(self._forget, voices)
                self._client.load(name, folder)
                undone.pop_all()
            voices[role] = Voice(name, adapter.version, folder)
        old, self._voices, self._adapters = self._voices, voices, dict(adapters)
        self._forget(old)
        self._work.refresh_s += time.perf_counter() - began

    def take_stats(self) -> dict[str, float]:
        work, self._work = self._work, _Work()
        retries = self._client.take_num_retries()
        return {
            "num_requests": work.num_requests, "sampled_tokens": work.sampled_tokens,
            "prefilled_tokens": work.prefilled_tokens, "reused_tokens": work.reused_tokens,
            "refresh_s": work.refresh_s, "num_retries": retries,
        }  # fmt: skip

    def close(self) -> None:
        """Give up what is under way, and leave the server as it was found."""
        self._client.stop()
        self._threads.shutdown(cancel_futures=True)
        self._forget(self._voices)
        self._voices = {}

    def _forget(self, voices: Mapping[Role, Voice]) -> None:
        for voice in voices.values():
            self._client.unload(voice.name)

    def _play(self, questions: Answering, voice: Voice) -> Completion:
        """Ask all questions of one completion, one after the other."""
        try:
            ask = next(questions)
            while True:
                ask = questions.send(self._hear(ask, voice))
        except StopIteration as done:
            return done.value

    def _hear(self, ask: Ask, voice: Voice) -> Reply:
        for _ in range(_MOST_REVIVALS):
            try:
                completed = self._client.complete(voice.name, ask)
            except Unknown:
                self._revive(voice)
                continue
            self._count(completed)
            return completed.heard
        raise EngineError(
            f"expected {self._client.url} to keep the adapter {voice.name}, found it gone {_MOST_REVIVALS} times; does "
            "somebody else unload adapters there?"
        )

    def _revive(self, voice: Voice) -> None:
        """Load the adapter again into a server that was started anew. Raises `EngineError` or `ConfigError` where it is
        another one."""
        with self._reviving:
            served = self._client.models()
            if self._base not in served:
                raise EngineError(
                    f"expected {self._client.url} to serve {self._base.id} from {self._base.root} with "
                    f"{self._base.max_model_len} tokens still, found "
                    f"{[(one.id, one.root, one.max_model_len) for one in served if not one.parent]}; start it as it was"
                )
            if voice.folder is not None and not any(one.id == voice.name for one in served):
                self._check()
                self._client.load(voice.name, voice.folder)

    def _count(self, completed: Completed) -> None:
        cached = completed.cached_tokens or 0
        with self._work.lock:
            self._work.num_requests += 1
            self._work.sampled_tokens += len(completed.heard.token_ids)
            self._work.prefilled_tokens += completed.prompt_tokens - cached
            self._work.reused_tokens += cached
