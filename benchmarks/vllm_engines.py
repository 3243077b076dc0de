"""Engines over vLLM for the benchmarks, and the upper bound of what their prefix cache could hold.

    with engine_of(settings, "http", loaded, preset) as (engine, ask_all): ...

The engine is the one that commands build; `ask_all` bypasses it and asks the same vLLM.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from benchmarks.tree_demand import Asked
from benchmarks.vllm_server import BLOCK, Server, serving
from flow_dpo.core.types import TokenIds
from flow_dpo.engines.vllm.in_process import PARTIAL_BLOCKS


def window(settings: argparse.Namespace) -> int:
    """Tokens of the context window of vLLM: the whole of the seed's, and enough for a model's problems."""
    return 512 if settings.model_name_or_path == "seed" else 1024


@dataclass(frozen=True)
class OneShot:
    """A plain request to vLLM: so many tokens after this prompt, whatever they are."""

    role: str
    prompt_ids: TokenIds
    num_tokens: int


AskAll = Callable[[Any, Sequence[OneShot]], tuple[int, int]]
"""Sends all of them to the engine's vLLM; returns how many tokens came, and how many prompt tokens no cache held."""


@contextmanager
def engine_of(
    settings: argparse.Namespace,
    kind: str,
    loaded: Any,
    preset: Any,
    *,
    sync: Literal["adapters", "merged"] = "adapters",
    roles: Sequence[str] = (),
) -> Iterator[tuple[Any, AskAll]]:
    """Our engine, and a way around it to plain vLLM. Its policy is `engine.policy`."""
    from flow_dpo.engines.factory import AdapterStore, open_engine
    from flow_dpo.engines.settings import VllmServerSettings
    from flow_dpo.engines.vllm.in_process import VllmSettings
    from flow_dpo.learner.policy import Policy

    roles = roles or preset.recipe.flow.roles
    with tempfile.TemporaryDirectory() as folder:
        if kind == "process":
            settings_of_engine: Any = VllmSettings(
                max_batch_size=settings.batch_size,
                block_tokens=BLOCK,
                sync=sync,
                partial_blocks=getattr(settings, "partial_blocks", "always"),
                engine_args={"max_model_len": window(settings)},
            )
            served, ask_all = nullcontext(), _ask_in_process
        else:
            served, ask_all = served_to(settings), _ask_over_http
        with served as server:
            url = server.url if server else ""
            if url:
                settings_of_engine = VllmServerSettings(base_url=url, concurrency=settings.batch_size)
            with open_engine(settings_of_engine, loaded, num_roles=len(roles)) as builder:
                policy = Policy(loaded.model, roles, preset.lora)
                engine: Any = builder.build(policy, AdapterStore(policy, Path(folder) / "served"))
                engine.refresh(versions(roles, 0))
                engine.url, engine.batch_size, engine.policy = url, settings.batch_size, policy
                try:
                    yield engine, ask_all
                finally:
                    engine.close()


def versions(roles: Sequence[str], version: int) -> dict[str, Any]:
    from flow_dpo.core.types import Adapter

    return {role: Adapter(role=role, version=version) for role in roles}


def forget(engine: Any, roles: Sequence[str]) -> None:
    """The same adapters under new names: nothing that was computed so far is known to the prefix cache."""
    engine.refresh({})
    engine.refresh(versions(roles, 0))


@contextmanager
def recorded_requests() -> Iterator[list[Asked]]:
    """Every request that our engines over vLLM make to it, in the order of the replies."""
    from flow_dpo.engines.vllm import in_process
    from flow_dpo.engines.vllm import requests as vllm_requests
    from flow_dpo.engines.vllm import server as vllm_server

    recorded: list[Asked] = []

    def answer(request: Any, *words: Any, **more: Any) -> Any:
        questions = vllm_requests.completion_steps(request, *words, **more)
        try:
            ask = next(questions)
            while True:
                reply = yield ask
                recorded.append(Asked(request.role, ask.prompt_ids, reply.token_ids))
                ask = questions.send(reply)
        except StopIteration as done:
            return done.value

    with patch.object(in_process, "completion_steps", answer), patch.object(vllm_server, "completion_steps", answer):
        yield recorded


def recorded_completions(engine: Any) -> tuple[list[Asked], list[Asked]]:
    """The engine's requests and completions from now on: texts, and choices."""
    texts, choices = list[Asked](), list[Asked]()
    poll, submit, requests = engine.poll, engine.submit, dict[int, Any]()

    def submitted(request: Any, sampling: Any, **more: Any) -> int:
        ticket = submit(request, sampling, **more)
        requests[ticket] = request
        return ticket

    def polled() -> list[tuple[int, Any]]:
        found = poll()
        for ticket, completion in found:
            request = requests.pop(ticket)
            asked = Asked(request.role, request.prompt_ids, completion.token_ids)
            (choices if request.choices else texts).append(asked)
        return found

    engine.submit, engine.poll = submitted, polled
    return texts, choices


def counted_steps(engine: Any) -> list[int]:
    """An entry for every step of vLLM in process from now on; none over HTTP, where nobody sees them."""
    steps = list[int]()
    if vllm := getattr(engine, "_vllm", None):
        step = vllm.step

        def counting() -> Any:
            steps.append(1)
            return step()

        vllm.step = counting
    return steps


def _ask_in_process(engine: Any, requests: Sequence[OneShot]) -> tuple[int, int]:
    from vllm import SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    vllm, lora_requests = engine._vllm, engine._lora_requests
    for number, request in enumerate(requests):
        params = SamplingParams(
            max_tokens=request.num_tokens, ignore_eos=True, seed=number, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
        vllm.add_request(f"plain{number}", prompt, params, lora_request=lora_requests.get(request.role))
    left, tokens, read = len(requests), 0, 0
    while left:
        for output in vllm.step():
            if output.finished:
                left -= 1
                tokens += len(output.outputs[0].token_ids)
                read += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
    return tokens, read


def _ask_over_http(engine: Any, requests: Sequence[OneShot]) -> tuple[int, int]:
    from flow_dpo.engines.vllm.requests import plain_params
    from flow_dpo.models.http_client import Address

    address = Address(f"{engine.url}/v1", api_key="", deadline_s=3600.0)

    def ask(numbered: tuple[int, OneShot]) -> tuple[int, int]:
        number, request = numbered
        body: dict[str, Any] = {"model": engine._served[request.role].name, "prompt": list(request.prompt_ids)}
        body |= plain_params(max_tokens=request.num_tokens, temperature=1.0, seed=number) | {"return_token_ids": True}
        answer = address.exchange("POST", "/completions", json.dumps(body).encode())
        if answer.status != 200:
            raise SystemExit(f"expected an answer, found {answer.status}: {answer.text[:500]}")
        found = json.loads(answer.text)
        cached = (found["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return len(found["choices"][0]["token_ids"]), found["usage"]["prompt_tokens"] - cached

    with ThreadPoolExecutor(engine.batch_size) as threads:
        tokens, read = zip(*threads.map(ask, enumerate(requests)), strict=True)
    return sum(tokens), sum(read)


def served_model(settings: argparse.Namespace) -> tuple[str, str]:
    """Where vLLM finds the model, and the precision that it is trained in."""
    from flow_dpo.models.load import ModelSettings, load_model

    model = load_model(ModelSettings(model_name_or_path=settings.model_name_or_path)).model
    return str(model.name_or_path), str(model.dtype).removeprefix("torch.")


@contextmanager
def served_to(settings: argparse.Namespace) -> Iterator[Server]:
    """A server for these settings."""
    with tempfile.TemporaryDirectory() as folder:
        model, dtype = served_model(settings)
        words = ("--max-num-seqs", str(settings.batch_size), "--dtype", dtype, "--max-model-len", str(window(settings)))
        threads = {"OMP_NUM_THREADS": str(settings.num_threads), "VLLM_CPU_KVCACHE_SPACE": "2"}
        never = getattr(settings, "partial_blocks", "always") == "never"
        words = words if never else (*words, "--kv-transfer-config", json.dumps(PARTIAL_BLOCKS))
        with serving(Path(model), Path(folder) / "vllm.log", *words, **threads) as server:
            yield server
