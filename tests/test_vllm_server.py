"""Does the engine for a vLLM server lose nothing, whatever the server does, and refuse one that cannot play?"""

from __future__ import annotations

import importlib.util
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.engine_kinds import reached
from flow_dpo.engines.vllm_asking import Ask, plain_params
from flow_dpo.engines.vllm_checks import Wanted, connect
from flow_dpo.engines.vllm_client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm_local import VllmSettings
from flow_dpo.engines.vllm_server import VllmServerEngine
from flow_dpo.errors import ConfigError, EngineError
from flow_dpo.types import Adapter, Completion, Request, Sampling
from tests.vllm_stand_in import StandIn, adapter_folder, engine_of, wait_until

WORDS = 12
FACTS: dict[str, Any] = {"num_words": WORDS, "end_ids": {2}, "context_tokens": 96}
TABLE = [0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]
ENCODED = {"2 + 3": tuple(ord(char) % 7 for char in "2 + 3")}


def _logprobs(folder: str, prefix: tuple[int, ...]) -> list[float]:
    """Another order of the table for every adapter and prompt."""
    at = (sum(prefix) + sum(map(ord, folder))) % WORDS
    return [math.log(p) for p in TABLE[at:] + TABLE[:at]]


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(_logprobs, num_words=WORDS) as server:
        yield server


@pytest.fixture
def build(server: StandIn, tmp_path: Path) -> Iterator[Callable[..., VllmServerEngine]]:
    engines: list[VllmServerEngine] = []

    def build(**settings: Any) -> VllmServerEngine:
        engines.append(
            engine_of(
                server.url, server.base, root=tmp_path, num_words=WORDS, end_ids={2}, context_tokens=96, **settings
            )
        )
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def _adapters(version: int) -> dict[str, Adapter]:
    return {role: Adapter(role=role, version=version) for role in ("answer", "stop")}


def _requests(count: int) -> list[Request]:
    return [
        Request(role="stop", prompt_ids=(1, index % 7), choices=(7, 4))
        if index % 5 == 4
        else Request(role="answer", prompt_ids=(1, index % 7), max_tokens=8)
        for index in range(count)
    ]


def _all(engine: VllmServerEngine) -> dict[int, Completion]:
    answered: dict[int, Completion] = {}
    while finished := engine.poll():
        for ticket, said in finished:
            assert ticket not in answered
            answered[ticket] = said
    return answered


def test_who_waits_holds_back_nobody(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    engine, go_on, arrived = build(), threading.Event(), list[str]()

    def before(path: str) -> None:
        arrived.append(path)
        if len(arrived) == 1:
            go_on.wait()

    server.before = before
    slow = engine.submit(_requests(1)[0], Sampling(), seed=1)
    wait_until(lambda: len(arrived) == 1)
    others = {engine.submit(request, Sampling(), seed=2) for request in _requests(6)}
    seen: set[int] = set()
    while not others <= seen:
        seen |= {ticket for ticket, _ in engine.poll()}
    assert slow not in seen
    go_on.set()
    assert [ticket for ticket, _ in engine.poll()] == [slow]


def test_so_many_are_under_way_at_once_and_no_more(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    engine, lock = build(concurrency=3), threading.Lock()
    under_way, most = 0, 0
    go_on = threading.Event()

    def before(_: str) -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        go_on.wait()
        with lock:
            under_way -= 1

    server.before = before
    for seed, request in enumerate(_requests(10)):
        engine.submit(request, Sampling(), seed=seed)
    wait_until(lambda: under_way == 3)
    go_on.set()
    assert len(_all(engine)) == 10
    assert most == 3


def test_a_server_killed_again_and_again_costs_nothing_and_repeats_nothing(
    server: StandIn, build: Callable[..., VllmServerEngine]
) -> None:
    requests, seeds = _requests(60), range(60)
    quiet = build()
    quiet.refresh(_adapters(3))
    expected = quiet.sample(requests, Sampling(top_p=0.9), seeds=seeds)
    engine = build(concurrency=4)
    engine.refresh(_adapters(3))
    loaded = dict(server.adapters)
    server.before = lambda _: time.sleep(0.01)
    tickets = [engine.submit(r, Sampling(top_p=0.9), seed=s) for r, s in zip(requests, seeds, strict=True)]
    answered: dict[int, Completion] = {}
    for kill in range(5):
        while len(answered) < 8 * (kill + 1):
            for ticket, said in engine.poll():
                assert ticket not in answered
                answered[ticket] = said
        server.kill()
        server.start()
        assert server.adapters == {}
    answered |= _all(engine)
    assert [answered[ticket] for ticket in tickets] == expected
    assert any("answer" in name for name in server.adapters)
    assert server.adapters.items() <= loaded.items()
    assert engine.take_stats()["num_retries"] > 0


def test_patience_ends(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    engine = build(patience_s=0.05)
    server.kill()
    engine.submit(_requests(1)[0], Sampling(), seed=0)
    with pytest.raises(EngineError, match=r"ConnectionRefused.*--patience_s.*resume"):
        engine.poll()
    assert engine.poll() == []
    server.start()
    assert len(engine.sample(_requests(2), Sampling(), seeds=[0, 1])) == 2


def test_an_answer_that_never_comes_is_asked_for_again(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    engine, never = build(deadline_s=0.2), threading.Event()
    calls: list[str] = []

    def before(path: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            never.wait()

    server.before = before
    [said] = engine.sample(_requests(1), Sampling(), seeds=[5])
    assert len(calls) == 2
    never.set()
    assert engine.sample(_requests(1), Sampling(), seeds=[5]) == [said]
    assert engine.take_stats()["num_retries"] == 1


_ABORTED = (200, {"model": "base", "choices": [{"finish_reason": "abort", "token_ids": [], "logprobs": None}]})


@pytest.mark.parametrize("passing", [(503, "draining"), (500, {"error": "EngineCore died"}), _ABORTED], ids=str)
def test_a_server_that_ends_politely_costs_nothing(
    server: StandIn, build: Callable[..., VllmServerEngine], passing: tuple[int, Any]
) -> None:
    """Patience begins with what fails, not with an answer that was long under way; loads are asked again, too."""
    engine, answer, paths = build(patience_s=0.3), server.answer, list[str]()
    expected = engine.sample(_requests(1), Sampling(), seeds=[5])

    def ending(method: str, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        paths.append(path)
        if paths.count(path) > 1:
            return answer(method, path, asked)
        time.sleep(0.4)
        return passing

    server.answer = ending
    assert engine.sample(_requests(1), Sampling(), seeds=[5]) == expected
    if passing is not _ABORTED:
        engine.refresh({"answer": Adapter(role="answer", version=1)})
        assert paths.count("/v1/load_lora_adapter") == 2


def test_what_is_refused_is_not_asked_again(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    server.max_logprobs = 2
    engine = build(top_logprobs=5)
    engine.submit(_requests(1)[0], Sampling(top_p=0.5), seed=0)
    with pytest.raises(EngineError, match="--max-logprobs -1"):
        engine.poll()
    assert len(server.asked) == 1


def test_every_refresh_speaks_under_a_name_of_its_own(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    engine, other = build(), build()
    seen: set[str] = set()
    for version in (0, 1, 2):
        engine.refresh(_adapters(version))
        assert len(server.adapters) == 2
        assert seen.isdisjoint(server.adapters)
        seen |= set(server.adapters)
        said = engine.sample(_requests(5), Sampling(), seeds=range(5))
        assert {one.policy_version for one in said} == {version}
        assert {asked["model"] for asked in server.asked[-5:]} == set(server.adapters)
    names = dict(server.adapters)
    engine.refresh(_adapters(2))
    assert server.adapters == names  # nothing has changed, so nothing is loaded
    other.refresh(_adapters(2))
    assert len(server.adapters) == 4
    engine.refresh({})
    engine.sample(_requests(1), Sampling(), seeds=[0])
    assert server.asked[-1]["model"] == server.base
    other.close()
    assert server.adapters == {}


def test_what_could_not_be_loaded_leaves_nothing_behind(server: StandIn, tmp_path: Path) -> None:
    fine, broken = adapter_folder(tmp_path / "fine", rank=8), tmp_path / "broken"
    engine = engine_of(server.url, "base", root=tmp_path, **FACTS, patience_s=0)
    folders = {"answer": str(fine), "stop": str(broken)}
    with closing(engine), pytest.raises(ConfigError, match="same path"):
        engine.refresh({role: Adapter(role=role, version=1, path=path) for role, path in folders.items()})
    assert server.adapters == {}


def test_whoever_leaves_in_the_midst_of_play_leaves_nothing_behind(
    server: StandIn, build: Callable[..., VllmServerEngine], caplog: pytest.LogCaptureFixture
) -> None:
    engine, asked = build(), threading.Event()
    engine.refresh(_adapters(1))
    assert len(server.adapters) == 2

    def hang(path: str) -> None:
        if path == "/v1/completions":
            asked.set()
            time.sleep(0.5)

    server.before = hang
    engine.submit(_requests(1)[0], Sampling(), seed=0)
    assert asked.wait(5)
    engine.close()
    assert server.adapters == {}
    assert not caplog.records


def test_an_adapter_that_stays_is_told_of(
    server: StandIn, build: Callable[..., VllmServerEngine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = build()
    engine.refresh(_adapters(1))
    answer = server.answer
    server.answer = lambda method, path, asked: (500, "broken") if "unload" in path else answer(method, path, asked)
    engine.refresh(_adapters(2))
    assert [record.getMessage().split(": ")[-1] for record in caplog.records] == ["status 500, 'broken'"] * 2
    server.answer = answer


def test_an_answer_of_another_adapter_stops_the_run(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    engine = build()
    engine.refresh(_adapters(3))
    answer = server.answer

    def stale(method: str, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        status, said = answer(method, path, asked)
        return status, {**said, "model": "answer-v2"} if path == "/v1/completions" else said

    server.answer = stale  # a router that sends on to a server that was not refreshed
    engine.submit(_requests(1)[0], Sampling(), seed=0)
    with pytest.raises(EngineError, match=r"expected an answer of the adapter answer-v3.*found one of 'answer-v2'"):
        engine.poll()


def test_another_server_in_its_place_stops_the_run(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    engine = build()
    engine.refresh(_adapters(1))
    server.kill()
    server.root = "models/another"
    server.start()
    engine.submit(_requests(1)[0], Sampling(), seed=0)
    with pytest.raises(EngineError, match=r"expected .* to serve base from models/base .*models/another"):
        engine.poll()


def test_nothing_is_left_to_the_servers_own_defaults(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    """A model's generation config may hold a repetition penalty or top-k, which would bend what is drawn."""
    engine = build()
    engine.sample([Request(role="answer", prompt_ids=(1, 5), max_tokens=8)], Sampling(top_p=0.7), seeds=[-3])
    asked = server.asked[-1]
    assert asked["prompt"] == [1, 5]
    assert asked["stop_token_ids"] == [2]
    assert asked["ignore_eos"] is True
    assert (asked["temperature"], asked["top_p"], asked["top_k"], asked["min_p"]) == (1.0, 0.7, 0, 0.0)
    assert (asked["repetition_penalty"], asked["presence_penalty"], asked["frequency_penalty"]) == (1.0, 0.0, 0.0)
    assert 0 <= asked["seed"] < 2**63


def test_a_temperature_that_vllm_would_change_is_refused(build: Callable[..., VllmServerEngine]) -> None:
    engine = build()
    for temperature in (0.001, 2.5):
        with pytest.raises(EngineError, match=r"temperature from 0\.01 to 2"):
            engine.submit(_requests(1)[0], Sampling(temperature=temperature), seed=0)
    assert engine.poll() == []


def _wanted(num_roles: int = 2) -> Wanted:
    said = {ids: _logprobs("", ids) for ids in ((1, 5, 6), (1, 5))}
    return Wanted(name="ours", encoded=ENCODED, said=said, num_roles=num_roles)


def _connect(server: StandIn, **settings: Any) -> None:
    connect(
        VllmClient(VllmServerSettings(base_url=f"{server.url}/v1", patience_s=0, **settings), api_key=""), _wanted()
    )


def test_the_right_server_is_taken(server: StandIn) -> None:
    _connect(server)
    _connect(server, served_model="base")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"encode": lambda text: [1] * len(text)}, r"tokenizer of ours.*'2 \+ 3'.*serve the same model"),
        ({"next_logprobs": lambda *_: [math.log(p) for p in (*[0.03] * 11, 0.67)]}, r"weights of ours.*otherwise"),
        ({"next_logprobs": lambda *_: [math.log(1 / 11)] * 11}, r"12 tokens of ours.*a model of 11"),
        ({"max_logprobs": 20}, "--max-logprobs -1"),
        ({"processed": True}, "--logprobs-mode raw_logprobs"),
        ({"token_ids": False}, "must tell token ids"),
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


def test_numbers_that_are_none_make_no_choice(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
    server.next_logprobs = lambda *_: [-math.inf] * WORDS
    server.answer = lambda *_: (
        200,
        {
            "model": server.base,
            "choices": [{"token_ids": [4], "logprobs": {"token_logprobs": [-9999.0], "top_logprobs": [
                {f"token_id:{token}": -9999.0 for token in range(WORDS)}]}}],
            "usage": {"prompt_tokens": 2},
        },
    )  # fmt: skip
    engine = build()
    engine.submit(Request(role="stop", prompt_ids=(1, 2), choices=(7, 4)), Sampling(), seed=0)
    with pytest.raises(EngineError, match="no numbers"):
        engine.poll()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_refused_before_anything_is_made() -> None:
    nothing: Any = None
    with pytest.raises(ConfigError, match="make setup-vllm"), reached(VllmSettings(), nothing, num_roles=1):
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
        client.complete("base", Ask((1,), plain_params(max_tokens=1)))
    assert client.num_retries == 4


def test_settings_that_mean_nothing_are_refused() -> None:
    for settings in ({"base_url": "ftp://x"}, {"concurrency": 0}, {"deadline_s": 0.0}, {"base_url": "http://a:b@c"}):
        with pytest.raises(ConfigError):
            VllmServerSettings(**settings)
