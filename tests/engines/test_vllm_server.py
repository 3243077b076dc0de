"""Does the engine for a vLLM server lose nothing, whatever the server does, and refuse one that cannot play?"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.core.errors import ConfigError, EngineError
from flow_dpo.core.types import Adapter, Completion, Request, Sampling
from flow_dpo.engines.vllm.server import VllmServerEngine
from tests.support.vllm_stand_in import StandIn, adapter_folder, engine_of, wait_until

WORDS = 12
FACTS: dict[str, Any] = {"num_words": WORDS, "end_ids": {2}, "context_tokens": 96}
TABLE = [0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]


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
    loads: list[str] = []

    def before(path: str) -> None:
        time.sleep(0.01)
        loads.extend([path] if path == "/v1/load_lora_adapter" else [])

    server.before = before
    tickets = [engine.submit(r, Sampling(top_p=0.9), seed=s) for r, s in zip(requests, seeds, strict=True)]
    answered: dict[int, Completion] = {}
    for kill in range(5):
        while len(answered) < 8 * (kill + 1):
            for ticket, said in engine.poll():
                assert ticket not in answered
                answered[ticket] = said
        server.kill()
        server.start()
    assert len(loads) >= 4, "a server that is started anew knows no adapter"
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
    with pytest.raises(EngineError, match=r"expected an answer from the adapter answer-v3.*found one from 'answer-v2'"):
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


def test_numbers_that_are_none_make_no_choice(server: StandIn, build: Callable[..., VllmServerEngine]) -> None:
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
