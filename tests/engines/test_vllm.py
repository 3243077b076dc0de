"""What does only a real vLLM show? The other questions are asked of every engine (`test_engine_contract`).

Marked `vllm`: `make test-vllm` runs them in the environment that `make setup-vllm` makes.
"""

from __future__ import annotations

import json
import math
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.vllm_server import Server
from flow_dpo.core.engine import Engine
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Adapter, Request, Sampling, TokenIds
from flow_dpo.engines.merged_lora import save_merged
from flow_dpo.engines.vllm.checks import ExpectedModel, connect
from flow_dpo.engines.vllm.client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm.requests import ModelFacts
from flow_dpo.engines.vllm.server import VllmServerEngine
from flow_dpo.learner.policy import LoraSettings, Policy
from tests.support.vllm_servers import (
    ROLES,
    VOCAB,
    merging_vllm,
    real_vllm,
    save_adapters,
    save_model,
    serving,
    spoken,
    taught,
    tiny_llama,
)

pytestmark = pytest.mark.vllm
PROMPT = tuple(3 + index * index % 9 for index in range(100))
"""Longer than three blocks of the prefix cache."""
ALL = tuple(range(VOCAB))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("adapters")
    return {seed: save_adapters(folder, seed) for seed in (1, 2)}


def _version(adapters: dict[int, dict[str, Path]], seed: int) -> dict[str, Adapter]:
    return {role: Adapter(role=role, version=seed, path=str(adapters[seed][role])) for role in ROLES}


@pytest.fixture(scope="module", params=["real_vllm", "real_vllm_server"])
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Engine]]:
    with real_vllm(request.param, tmp_path_factory.mktemp("vllm"), context_tokens=512) as (build, _):
        yield build


def _said(engine: Engine, role: str) -> tuple[float, ...]:
    [said] = engine.sample([Request(role=role, prompt_ids=PROMPT, choices=ALL)], Sampling(), seeds=[0])
    return said.choice_logprobs


def test_old_adapters_are_forgotten(build: Callable[[], Engine], adapters: dict[int, dict[str, Path]]) -> None:
    engine: Any = build()

    def held() -> set[object]:
        if isinstance(engine, VllmServerEngine):
            return {one.id for one in engine._client.models() if one.parent}
        return set(engine._vllm.list_loras())

    others = held()
    for seed in (1, 2, 1):
        engine.refresh(_version(adapters, seed))
        _said(engine, "answer")
        assert len(held() - others) == len(ROLES)


def test_merged_weights_are_heard_at_each_refresh(
    adapters: dict[int, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Forwards, back, and the base again, with the prompt in the prefix cache."""
    folder, policy = tmp_path_factory.mktemp("merged"), Policy(tiny_llama(), ("answer",), LoraSettings(lora_r=8))
    base = save_model(folder / "base")
    policy.model.name_or_path = str(base)

    def merged(adapter: Adapter) -> Path:
        policy.load_adapter(adapter.role, adapter.path)
        return save_merged(policy, adapter.role, folder / str(adapter.version))

    with merging_vllm(base, folder_of=merged) as engine:
        for seed in (1, 2, 1, 0, 2):
            engine.refresh({"answer": _version(adapters, seed)["answer"]} if seed else {})
            expected = taught(adapters[seed]["answer"], PROMPT) if seed else spoken(tiny_llama(), PROMPT)
            for _ in range(2):
                assert _said(engine, "answer") == pytest.approx(expected, abs=2e-4)
        assert engine.take_stats()["reused_tokens"] > 0


def test_what_was_cached_changes_nothing(build: Callable[[], Engine], adapters: dict[int, dict[str, Path]]) -> None:
    engine = build()
    engine.refresh(_version(adapters, 1))
    requests = [Request(role="answer", prompt_ids=PROMPT[: 40 + n], max_tokens=20) for n in range(8)]
    first = engine.sample(requests, Sampling(top_p=0.9), seeds=range(8))
    before = engine.take_stats()["reused_tokens"]
    second = engine.sample(requests, Sampling(top_p=0.9), seeds=range(8))
    assert engine.take_stats()["reused_tokens"] > before
    for one, other in zip(first, second, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)


def test_more_prompts_than_fit_into_a_step(build: Callable[[], Engine]) -> None:
    """Each is drawn by its own seed, also where vLLM would read some prompt in two parts."""
    engine = build()
    prompts = [(3 + number % 9, 3 + number // 9, *PROMPT[:78]) for number in range(80)]
    requests = [Request(role="answer", prompt_ids=prompt, max_tokens=2) for prompt in prompts]
    first = engine.sample(requests, Sampling(), seeds=range(80))
    assert [one.token_ids for one in first] == [
        engine.sample([request], Sampling(), seeds=[seed])[0].token_ids for seed, request in enumerate(requests)
    ]


def test_logprobs_over_a_whole_completion_are_those_of_teacher_forcing(
    build: Callable[[], Engine], adapters: dict[int, dict[str, Path]]
) -> None:
    """2e-4 nats in single precision, for any adapter and any place."""
    engine = build()
    engine.refresh(_version(adapters, 2))
    for role in ROLES:
        [said] = engine.sample([Request(role=role, prompt_ids=PROMPT, max_tokens=12)], Sampling(), seeds=[4])
        for at, (token, logprob) in enumerate(zip(said.token_ids, said.logprobs, strict=True)):
            expected = taught(adapters[2][role], PROMPT + said.token_ids[:at])
            assert logprob == pytest.approx(expected[token], abs=2e-4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(save_model(folder / "model"), folder / "vllm.log") as server:
        yield server


def _post(server: Server, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith("{") else text


def _choices_of(server: Server, name: str) -> list[float]:
    asked = {"model": name, "prompt": list(PROMPT), "max_tokens": 1, "temperature": 0, "logprobs": VOCAB}
    told = _post(server, "/v1/completions", asked | {"return_tokens_as_token_ids": True})["choices"][0]["logprobs"]
    return [told["top_logprobs"][0][f"token_id:{token}"] for token in ALL]


def test_a_name_that_is_used_again_would_speak_from_the_old_weights(
    server: Server, adapters: dict[int, dict[str, Path]], tmp_path: Path
) -> None:
    """The trap that names of their own avoid: reloaded in place, the prefix cache still holds the old keys."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapters[1]["answer"], folder)
    _post(server, "/v1/load_lora_adapter", {"lora_name": "again", "lora_path": str(folder)})
    first = _choices_of(server, "again")
    assert first == pytest.approx(taught(adapters[1]["answer"], PROMPT), abs=2e-4)
    shutil.copytree(adapters[2]["answer"], folder, dirs_exist_ok=True)
    _post(server, "/v1/load_lora_adapter", {"lora_name": "again", "lora_path": str(folder), "load_inplace": True})
    stale, fresh = _choices_of(server, "again"), taught(adapters[2]["answer"], PROMPT)
    assert stale != pytest.approx(fresh, abs=0.01)
    engine = _engine(server)
    with closing(engine):
        engine.refresh({"answer": Adapter(role="answer", version=1, path=str(folder))})
        assert _said(engine, "answer") == pytest.approx(fresh, abs=2e-4)


def _engine(server: Server) -> VllmServerEngine:
    client = VllmClient(VllmServerSettings(base_url=server.url), api_key="")
    base = connect(client, _expected())
    facts = ModelFacts(end_ids=frozenset({2}), vocab_size=VOCAB, num_top_logprobs=12)
    return VllmServerEngine(client, facts, base=base, context_tokens=512, folder_of=lambda adapter: Path(adapter.path))


def _expected(seed: int = 0, encoded: TokenIds = (3,), num_roles: int = 2) -> ExpectedModel:
    model, said = tiny_llama(seed), dict[TokenIds, Sequence[float]]()
    for prompt in ((3, 4, 5), (7, 3)):
        with torch.no_grad():
            said[prompt] = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1).tolist()
    return ExpectedModel(name="tiny", encoded={"w3": encoded}, logprobs=said, num_roles=num_roles)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"seed": 1}, "weights of tiny"),
        ({"encoded": (5, 6)}, "tokenizer of tiny"),
        ({"num_roles": 9}, "--max-loras 9"),
    ],
)
def test_a_server_of_something_else_is_refused(server: Server, wanted: dict[str, Any], message: str) -> None:
    client = VllmClient(VllmServerSettings(base_url=server.url), api_key="")
    with pytest.raises(ConfigError, match=message):
        connect(client, _expected(**wanted))


def test_an_adapter_of_too_high_a_rank_is_refused(server: Server, tmp_path: Path) -> None:
    folder = Policy(tiny_llama(), ("answer",), LoraSettings(lora_r=16)).save_adapter("answer", tmp_path / "wide")
    engine = _engine(server)
    with closing(engine), pytest.raises(ConfigError, match="--max-lora-rank"):
        engine.refresh({"answer": Adapter(role="answer", version=1, path=str(folder))})


def test_a_real_server_that_is_killed_and_started_again_costs_nothing(
    server: Server, adapters: dict[int, dict[str, Path]]
) -> None:
    requests = [Request(role=ROLES[n % 2], prompt_ids=PROMPT[: 20 + n], max_tokens=16) for n in range(40)]
    engine = _engine(server)
    engine.refresh(_version(adapters, 2))
    expected = engine.sample(requests, Sampling(), seeds=range(40))
    tickets = [engine.submit(request, Sampling(), seed=seed) for seed, request in enumerate(requests)]
    answered = dict(engine.poll())
    server.kill()
    server.start()
    while finished := engine.poll():
        assert answered.keys().isdisjoint(ticket for ticket, _ in finished)
        answered |= dict(finished)
    engine.close()
    for ticket, said in zip(tickets, expected, strict=True):
        assert answered[ticket].token_ids == said.token_ids
        assert answered[ticket].logprobs == pytest.approx(said.logprobs, abs=2e-4)
    assert math.isfinite(sum(answered[tickets[0]].logprobs))
