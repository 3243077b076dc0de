"""Which engines over vLLM do the benchmarks play with, and how much could a prefix cache have held?

    with engine_of(settings, "http", loaded, preset) as (engine, ask_all): ...

The engine is the one that commands build; it listens to what it is asked, and `ask_all` goes around
it to the same vLLM.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from benchmarks.vllm_server import BLOCK, Server, serving

AskAll = Callable[[Any, Sequence[list[int]], int], int]


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
    """The engine that listens to what it is asked, and a way around it to plain vLLM. Its policy is `engine.policy`."""
    from flow_dpo.engine_kinds import Shelf, reached
    from flow_dpo.engines.vllm_client import VllmServerSettings
    from flow_dpo.engines.vllm_local import VllmSettings
    from flow_dpo.policy import Policy

    roles = roles or preset.recipe.flow.roles
    with tempfile.TemporaryDirectory() as folder:
        if kind == "process":
            played: Any = VllmSettings(max_batch_size=settings.batch_size, block_tokens=BLOCK, sync=sync)
            served, ask_all = nullcontext(), _ask_in_process
        else:
            served, ask_all = served_to(settings), _ask_over_http
        with served as server:
            url = server.url if server else ""
            if url:
                played = VllmServerSettings(base_url=url, concurrency=settings.batch_size)
            with reached(played, loaded, num_roles=len(roles)) as reach:
                policy = Policy(loaded.model, roles, preset.lora)
                engine = listening(reach.build(policy, Shelf(policy, Path(folder) / "served")))
                engine.refresh(versions(roles, 0))
                engine.url, engine.batch_size, engine.policy = url, settings.batch_size, policy
                try:
                    yield engine, ask_all
                finally:
                    engine.close()


def versions(roles: Sequence[str], version: int) -> dict[str, Any]:
    from flow_dpo.types import Adapter

    return {role: Adapter(role=role, version=version) for role in roles}


def forget(engine: Any, roles: Sequence[str]) -> None:
    """The same adapters under new names: nothing that was computed so far is known to the prefix cache."""
    engine.refresh({})
    engine.refresh(versions(roles, 0))


def listening(engine: Any) -> Any:
    """The engine, and in `asked` what it is asked: request, excluded first tokens, completion."""
    engine.asked = []
    pending: dict[int, tuple[Any, Any]] = {}
    submit, poll = engine.submit, engine.poll

    def submitted(request: Any, sampling: Any, *, seed: int, excluded: Any = ()) -> int:
        ticket = submit(request, sampling, seed=seed, excluded=excluded)
        pending[ticket] = (request, excluded)
        return ticket

    def polled() -> list[tuple[int, Any]]:
        found = poll()
        for ticket, completion in found:
            engine.asked.append((*pending.pop(ticket), completion))
        return found

    engine.submit, engine.poll = submitted, polled
    return engine


def reusable(asked: Sequence[tuple[Any, Any, Any]], block: int) -> int:
    """Prompt tokens that a cache of such blocks can hold before they are asked for, in the order of the answers."""
    known: set[int] = set()
    total = 0
    for request, excluded, completion in asked:
        ids = [*request.prompt_ids, *completion.token_ids[:-1]]
        prefixes, chain = list[int](), hash(request.role)
        for token in ids:
            chain = hash((chain, token))
            prefixes.append(chain)
        lengths = [len(request.prompt_ids)]
        if excluded and not request.choices and len(completion.token_ids) > 1:
            lengths.append(len(request.prompt_ids) + 1)  # the first token is a question of its own
        for length in lengths:
            room = (length - 1) // block * block
            at = block
            while at <= room and prefixes[at - 1] in known:
                at += block
            total += at - block
            known.update(prefixes[:length])
        known.update(prefixes)
    return total


def _ask_in_process(engine: Any, prompts: Sequence[list[int]], max_tokens: int) -> int:
    from vllm import SamplingParams, TokensPrompt  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    vllm, voice = engine._vllm, engine._voices.get("answer")
    for number, prompt in enumerate(prompts):
        params = SamplingParams(
            max_tokens=max_tokens, ignore_eos=True, seed=number, detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        vllm.add_request(f"plain{number}", TokensPrompt(prompt_token_ids=prompt), params, lora_request=voice)
    left, tokens = len(prompts), 0
    while left:
        for said in vllm.step():
            left -= said.finished
            tokens += len(said.outputs[0].token_ids) if said.finished else 0
    return tokens


def _ask_over_http(engine: Any, prompts: Sequence[list[int]], max_tokens: int) -> int:
    from flow_dpo.address import Address

    address = Address(f"{engine.url}/v1", api_key="", deadline_s=3600.0)
    name = engine._voices["answer"].name

    def ask(numbered: tuple[int, list[int]]) -> int:
        body = {"model": name, "prompt": numbered[1], "max_tokens": max_tokens, "ignore_eos": True}
        body |= {"temperature": 1.0, "seed": numbered[0], "return_token_ids": True}
        answer = address.exchange("POST", "/completions", json.dumps(body).encode())
        if answer.status != 200:
            raise SystemExit(f"expected an answer, found {answer.status}: {answer.text[:500]}")
        return len(json.loads(answer.text)["choices"][0]["token_ids"])

    with ThreadPoolExecutor(engine.batch_size) as threads:
        return sum(threads.map(ask, enumerate(prompts)))


def model_folder(settings: argparse.Namespace) -> str:
    """Where vLLM finds the model."""
    from flow_dpo.models import ModelSettings, load_model

    return str(load_model(ModelSettings(model_name_or_path=settings.model_name_or_path)).model.name_or_path)


@contextmanager
def served_to(settings: argparse.Namespace) -> Iterator[Server]:
    """A server for these settings."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("--max-num-seqs", str(settings.batch_size))
        threads = {"OMP_NUM_THREADS": str(settings.num_threads), "VLLM_CPU_KVCACHE_SPACE": "2"}
        with serving(Path(model_folder(settings)), Path(folder) / "vllm.log", *words, **threads) as server:
            yield server
