"""How does vLLM play in this process?

vLLM's own engine, with the same questions as over HTTP (`vllm_asking`) and no server: requests join its running batch
when they are submitted, and `poll` steps it until one is answered. Every refresh loads the adapters from their folders
under new names and new ids, and drops the old ones: vLLM's prefix cache goes by an adapter's name and path, so a name
that is used again would speak from keys and values of the old weights. With `sync="merged"` a refresh loads the whole
model anew, its one role's adapter merged into it, and empties the cache.

    engine = VllmEngine(open_vllm(settings, model="Qwen/...", ...), speech, context_tokens=2048, folder_of=store)

Invariant: a completion is spoken by the adapter in force when it was submitted. vllm is imported by `open_vllm` alone.
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

from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.core.types import Adapter, Completion, Request, Role, Sampling, TokenIds
from flow_dpo.engines.request_checks import check_idle, check_request, check_words
from flow_dpo.engines.settings import VllmSettings
from flow_dpo.engines.vllm.requests import Answering, Ask, ModelFacts, Reply, answer, check_sampling

_INSTALL = "make setup-vllm makes an environment with it in .venv-vllm, or install this package with its extra [vllm]"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks for which vLLM makes room."""


_NUMBERS = itertools.count(1)
"""Of adapters and questions: never used twice in this process, whichever engine asks."""


@dataclass(slots=True)
class _Asked:
    ticket: int
    questions: Answering
    voice: Any
    """vLLM's `LoRARequest`; None for the base model."""


def check_installed() -> None:
    """Raise `ConfigError` where there is no vLLM, without importing it."""
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
    """vLLM's engine on this model. Raises `ConfigError` where vLLM is not installed or refuses."""
    check_installed()
    try:
        from vllm import EngineArgs, LLMEngine  # pyright: ignore
    except ImportError as error:
        raise ConfigError(f"--engine vllm needs vLLM, which cannot be imported here ({error}); {_INSTALL}") from error
    if rank > RANKS[-1]:
        raise ConfigError(f"expected lora_r of {RANKS[-1]} at most, which is what vLLM serves, found {rank}")
    wanted: dict[str, Any] = {
        "model": model, "revision": revision, "trust_remote_code": trust_remote_code, "dtype": dtype,
        "max_model_len": context_tokens, "skip_tokenizer_init": True,
        "enable_prefix_caching": True, "max_logprobs": -1, "logprobs_mode": "raw_logprobs", "generation_config": "vllm",
        "max_num_seqs": settings.max_batch_size, "kv_cache_memory_bytes": int(settings.kv_budget_gib * 2**30),
        "enforce_eager": on_cpu or not settings.compiled, "disable_log_stats": True, "seed": 0,
        # The keys and values have their own bound; this one only asks that so much of a GPU is free beside the learner.
        "gpu_memory_utilization": 0.1,
    }  # fmt: skip
    if on_cpu:
        # vLLM 0.32 cannot go on drawing by a request's seed on a CPU where it read the prompt in parts.
        wanted["enable_chunked_prefill"] = False
    if settings.sync == "adapters":
        wanted |= {"enable_lora": True, "max_loras": num_roles, "max_cpu_loras": 2 * num_roles}
        wanted["max_lora_rank"] = next(one for one in RANKS if one >= rank)
    if settings.block_tokens:
        wanted["block_size"] = settings.block_tokens
    try:
        return LLMEngine.from_engine_args(EngineArgs(**{**wanted, **settings.engine_args}))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"vLLM could not be started with {model}: {error}; its own words are above. A context window of "
            f"{context_tokens} tokens may need more than --engine.kv_budget_gib {settings.kv_budget_gib:g}, or be cut "
            'by --engine.engine_args {"max_model_len": N}'
        ) from error


class VllmEngine(Engine):
    """vLLM's engine behind the seam."""

    def __init__(
        self,
        vllm: Any,
        speech: ModelFacts,
        *,
        context_tokens: int,
        folder_of: Callable[[Adapter], Path],
        merged_into: Path | None = None,
    ) -> None:
        """`folder_of` finds an adapter's folder; with `merged_into`, the base's own, it finds a whole model's that
        has the adapter in its weights, and these are what a refresh loads."""
        self._vllm, self._speech, self._folder_of, self._base = vllm, speech, folder_of, merged_into
        self._context_tokens = context_tokens
        self._asked: dict[str, _Asked] = {}
        """What is under way, by the id of the question that vLLM works on."""
        self._finished: list[tuple[int, Completion]] = []
        self._failures: deque[EngineError] = deque()
        self._voices: dict[Role, Any] = {}
        self._adapters: dict[Role, Adapter] = {}
        self._num_tickets = 0
        self._stats: dict[str, float] = {}

    def submit(self, request: Request, sampling: Sampling, *, seed: int, excluded: TokenIds = ()) -> int:
        check_request(request, sampling, context_tokens=self._context_tokens)
        check_sampling(sampling)
        check_words(request, excluded, num_words=self._speech.num_words)
        adapter = self._adapters.get(request.role)
        questions = answer(
            request,
            sampling,
            seed=seed,
            excluded=tuple(excluded),
            speech=self._speech,
            policy_version=adapter.version if adapter else 0,
        )
        self._num_tickets += 1
        self._go_on(_Asked(self._num_tickets, questions, self._voices.get(request.role)), None)
        return self._num_tickets

    def poll(self) -> list[tuple[int, Completion]]:
        while self._asked and not self._finished and not self._failures:
            with _Told("step"):
                answers = self._vllm.step()
            for said in answers:
                if said.finished:
                    self._hear(said)
        if self._finished:
            finished, self._finished = self._finished, []
            return finished
        if self._failures:
            raise self._failures.popleft()
        return []

    def refresh(self, adapters: Mapping[Role, Adapter]) -> None:
        check_idle(len(self._asked) + len(self._finished) + len(self._failures))
        if dict(adapters) == self._adapters:
            return
        began = time.perf_counter()
        if self._base is None:
            old = self._voices
            self._voices = {role: self._loaded(adapter) for role, adapter in adapters.items()}
            with _Told("forget an adapter"):
                for voice in old.values():
                    self._vllm.remove_lora(voice.lora_int_id)
        else:
            self._reload([self._folder_of(adapter) for adapter in adapters.values()] or [self._base])
        self._adapters = dict(adapters)
        self._count(refresh_s=time.perf_counter() - began)

    def hear(self, ask: Ask) -> Reply:
        """What the base model says to one question, while nothing else is under way."""
        check_idle(len(self._asked) + len(self._finished) + len(self._failures))
        heard: list[Reply] = []

        def question() -> Answering:
            heard.append((yield ask))
            return Completion(token_ids=(), logprobs=(), sampled_logprobs=(), finish_reason="stop", policy_version=0)

        self._go_on(_Asked(0, question(), None), None)
        self.poll()
        return heard[0]

    def take_stats(self) -> dict[str, float]:
        names = ("num_requests", "sampled_tokens", "prefilled_tokens", "reused_tokens", "refresh_s")
        stats, self._stats = self._stats, {}
        return {name: stats.get(name, 0.0) for name in names}

    def close(self) -> None:
        """End vLLM's own processes and free its memory."""
        self._vllm.engine_core.shutdown()

    def _loaded(self, adapter: Adapter) -> Any:
        from vllm.lora.request import LoRARequest  # pyright: ignore

        number, folder = next(_NUMBERS), self._folder_of(adapter).resolve()
        name = f"{adapter.role}-v{adapter.version}-{number}"
        voice = LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))
        with _Told(f"load the adapter {folder}"):
            self._vllm.add_lora(voice)
        return voice

    def _reload(self, folders: list[Path]) -> None:
        """Let vLLM speak with the weights of another folder, and forget what was computed with the old ones."""
        if len(folders) != 1:
            raise EngineError(f"expected one role's weights, found {len(folders)}")
        with _Told(f"load the weights in {folders[0]}"):
            self._vllm.collective_rpc("reload_weights", kwargs={"weights_path": str(folders[0].resolve())})
            forgotten = self._vllm.reset_prefix_cache()
        if not forgotten:
            raise EngineError("expected vLLM to forget keys and values of the old weights, and it did not")

    def _go_on(self, asked: _Asked, heard: Reply | None) -> None:
        """Put the next question of a completion to vLLM, or take the completion."""
        try:
            ask = next(asked.questions) if heard is None else asked.questions.send(heard)
        except StopIteration as done:
            self._finished.append((asked.ticket, done.value))
        except EngineError as error:
            self._failures.append(error)
        else:
            self._put(asked, ask)

    def _put(self, asked: _Asked, ask: Ask) -> None:
        from vllm import SamplingParams, TokensPrompt  # pyright: ignore
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore

        name = str(next(_NUMBERS))
        params = SamplingParams(**ask.params, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = TokensPrompt(prompt_token_ids=list(ask.prompt_ids))
        with _Told("take a request"):
            self._vllm.add_request(name, prompt, params, lora_request=asked.voice)
        self._asked[name] = asked

    def _hear(self, said: Any) -> None:
        """Read one of vLLM's answers."""
        asked = self._asked.pop(said.request_id)
        [out] = said.outputs
        ids = tuple(out.token_ids)
        told = tuple({token: one.logprob for token, one in position.items()} for position in out.logprobs or ())
        if len(told) != len(ids) or not ids:
            raise EngineError(f"expected log-probabilities of every token from vLLM, found {len(told)} of {len(ids)}")
        values = tuple(position[token] for position, token in zip(told, ids, strict=True))
        cached = said.num_cached_tokens or 0
        self._count(
            num_requests=1,
            sampled_tokens=len(ids),
            prefilled_tokens=len(said.prompt_token_ids) - cached,
            reused_tokens=cached,
        )
        self._go_on(asked, Reply(ids, values, told))

    def _count(self, **work: float) -> None:
        for name, value in work.items():
            self._stats[name] = self._stats.get(name, 0.0) + value


class _Told:
    """vLLM's errors, most of which are plain exceptions of its other process, told as ours."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise EngineError(f"vLLM could not {self._what}: {error!r:.500}; its own words are above") from error
