"""Is a server that cannot play what is trained refused before anything is played, with what to change?"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.core.types import Adapter
from flow_dpo.engines.factory import open_engine
from flow_dpo.engines.vllm.checks import ExpectedModel, connect
from flow_dpo.engines.vllm.client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm.in_process import VllmSettings
from flow_dpo.engines.vllm.requests import VllmRequest, plain_params
from tests.support.vllm_stand_in import StandIn, adapter_folder, engine_of

WORDS = 12
FACTS: dict[str, Any] = {"num_words": WORDS, "end_ids": {2}, "context_tokens": 96}
ENCODED = {"2 + 3": tuple(ord(char) % 7 for char in "2 + 3")}


def _logprobs(_folder: str, prefix: tuple[int, ...]) -> list[float]:
    """Another distribution behind every prompt."""
    weights = [1 + (token + sum(prefix)) % WORDS for token in range(WORDS)]
    return [math.log(weight / sum(weights)) for weight in weights]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(_logprobs, num_words=WORDS) as server:
        yield server


def _expected(num_roles: int = 2) -> ExpectedModel:
    said = {ids: _logprobs("", ids) for ids in ((1, 5, 6), (1, 5))}
    return ExpectedModel(name="ours", encoded=ENCODED, logprobs=said, num_roles=num_roles)


def _connect(server: StandIn, **settings: Any) -> None:
    connect(
        VllmClient(VllmServerSettings(base_url=f"{server.url}/v1", patience_s=0, **settings), api_key=""), _expected()
    )


def test_the_right_server_is_taken(server: StandIn) -> None:
    _connect(server)
    _connect(server, served_model="base")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"encode": lambda text: [1] * len(text)}, r"tokenizer of ours.*'2 \+ 3'.*serve the same model"),
        ({"next_logprobs": lambda *_: [math.log(p) for p in (*[0.03] * 11, 0.67)]}, r"weights of ours.*differs"),
        ({"next_logprobs": lambda *_: [math.log(1 / 11)] * 11}, r"12 tokens of ours.*a model of 11"),
        ({"max_logprobs": 20}, "--max-logprobs -1"),
        ({"processed": True}, "--logprobs-mode raw_logprobs"),
        ({"token_ids": False}, "must return token ids"),
        ({"max_loras": 1}, "--max-loras 2"),
        ({"key": "secret"}, "OPENAI_API_KEY"),
    ],
)
def test_a_server_that_cannot_play_is_refused(server: StandIn, fault: dict[str, Any], message: str) -> None:
    for name, value in fault.items():
        setattr(server, name, value)
    with pytest.raises(ConfigError, match=message):
        _connect(server)


def test_a_server_that_completes_nothing_is_refused(server: StandIn) -> None:
    answer = server.answer
    server.answer = lambda method, path, asked: (
        (404, {"detail": "Not Found"}) if path == "/v1/completions" else answer(method, path, asked)
    )
    with pytest.raises(ConfigError, match="serve a model that generates"):
        _connect(server)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_refused_before_anything_is_made() -> None:
    nothing: Any = None
    with pytest.raises(ConfigError, match="make setup-vllm"), open_engine(VllmSettings(), nothing, num_roles=1):
        pass


def test_a_server_that_is_not_there_or_is_none_is_refused(server: StandIn) -> None:
    with pytest.raises(ConfigError, match=r"one base model|the model other.*--served_model"):
        _connect(server, served_model="other")
    server.answer = lambda *_: (200, "<html>")
    with pytest.raises(ConfigError, match=r"list of models.*is a vLLM server there"):
        _connect(server)
    server.kill()
    with pytest.raises(ConfigError, match=r"ConnectionRefused.*--base_url"):
        _connect(server)
    server.start()


@pytest.mark.parametrize(
    ("fault", "rank", "message"),
    [
        ({}, 32, "--max-lora-rank"),
        ({"runtime_lora": False}, 8, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ({"_load": lambda _: (500, "LoRA is not enabled. Use --enable-lora to enable LoRA.")}, 8, "--enable-lora"),
        ({}, None, "same path"),
    ],
)
def test_adapters_that_cannot_be_loaded_are_refused(
    server: StandIn, tmp_path: Path, fault: dict[str, Any], rank: int | None, message: str
) -> None:
    for name, value in fault.items():
        setattr(server, name, value)
    folder = tmp_path / "adapter" if rank is None else adapter_folder(tmp_path / "adapter", rank=rank)
    engine = engine_of(server.url, "base", root=tmp_path, **FACTS, patience_s=0)
    with closing(engine), pytest.raises(ConfigError, match=message):
        engine.refresh({"answer": Adapter(role="answer", version=1, path=str(folder))})


def test_a_server_whose_fault_is_its_own_is_not_asked_for_ever(server: StandIn) -> None:
    client = VllmClient(VllmServerSettings(base_url=server.url, backoff_s=0.001), api_key="")
    server.answer = lambda *_: (500, {"error": "broken"})
    with pytest.raises(EngineError, match="status 500"):
        client.complete("base", VllmRequest((1,), plain_params(max_tokens=1)))
    assert client.num_retries == 4


def test_settings_that_mean_nothing_are_refused() -> None:
    for settings in ({"base_url": "ftp://x"}, {"concurrency": 0}, {"deadline_s": 0.0}, {"base_url": "http://a:b@c"}):
        with pytest.raises(ConfigError):
            VllmServerSettings(**settings)
