"""Are parts of blocks reused rightly, whatever is under way and however little room there is?

Over a real vLLM: `make test-vllm` runs it in its own environment.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tree_demand import Asked, demanded_tokens
from flow_dpo.core.types import Adapter, Completion, Request, Sampling, TokenIds
from flow_dpo.engines.vllm.client import VllmClient, VllmServerSettings
from flow_dpo.engines.vllm.in_process import PARTIAL_BLOCKS, VllmEngine
from flow_dpo.engines.vllm.requests import VllmRequest, plain_params
from tests.support.vllm_servers import ROLES, opened_vllm, save_adapters, save_model, serving, taught

pytestmark = pytest.mark.vllm
PROMPT = tuple(3 + number * number % 9 for number in range(25))
"""Fills no whole block."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_adapters(tmp_path_factory.mktemp("adapters"), 1)


@pytest.fixture(scope="module", params=[None, 40], ids=["room", "40 blocks"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmEngine, bool]]:
    """And whether nothing is ever given away that could be read again."""
    blocks: int | None = request.param
    more: dict[str, Any] = {"num_gpu_blocks_override": blocks} if blocks else {}
    folder = tmp_path_factory.mktemp("model")
    with opened_vllm(folder / "model", engine_args=more, max_batch_size=16) as engine:
        yield engine, blocks is None


_VERSIONS = itertools.count(1)


def _refresh(engine: VllmEngine, adapter: Path) -> None:
    """Both roles sample with this adapter from now on, and nothing that was computed before is known."""
    version = next(_VERSIONS)
    engine.refresh({role: Adapter(role=role, version=version, path=str(adapter)) for role in ROLES})
    engine.take_stats()


def _sampled(engine: VllmEngine, rng: random.Random) -> list[tuple[Request, Completion]]:
    """Texts that grow by chunks and are cut anywhere, each read by both roles, with other words behind them."""
    grown: list[TokenIds] = [tuple(rng.randrange(3, 12) for _ in range(rng.randrange(20, 90))) for _ in range(6)]
    done: list[tuple[Request, Completion]] = []
    for _ in range(4):
        requests = [
            Request(
                role=role,
                prompt_ids=ids[: rng.randrange(5, len(ids) + 1)] + tuple(rng.choices(range(3, 12), k=rng.randrange(8))),
                max_tokens=rng.choice((1, 3, 20, 40)),
            )
            for ids in grown
            for role in ROLES
        ]
        completions = engine.sample(requests, Sampling(), seeds=range(len(requests)))
        done += zip(requests, completions, strict=True)
        grown = [(r.prompt_ids + c.content_ids)[:300] for r, c in done[-len(requests) :: 2]]
    return done


def test_what_is_copied_is_what_would_be_computed(opened: tuple[VllmEngine, bool], adapters: dict[str, Path]) -> None:
    """Log-probabilities are those of teacher forcing, also where blocks are given away all the time."""
    engine, has_room = opened
    _refresh(engine, adapters["answer"])
    done = _sampled(engine, random.Random(0))
    for request, said in done[::4]:
        for at in {0, len(said.token_ids) - 1}:
            expected = taught(adapters["answer"], request.prompt_ids + said.token_ids[:at])
            assert said.logprobs[at] == pytest.approx(expected[said.token_ids[at]], abs=2e-4)
    demanded = demanded_tokens([Asked(r.role, r.prompt_ids, c.token_ids) for r, c in done])
    read = engine.take_stats()["prefilled_tokens"]
    # A token of each prompt is computed at least, and in the first step nobody waits for a few.
    assert read <= demanded + 8 * len(done) if has_room else read >= demanded


def test_one_prompt_is_read_once(opened: tuple[VllmEngine, bool], adapters: dict[str, Path]) -> None:
    """Eight rollouts of one prompt that fills no whole block, all asked for at once."""
    engine, _ = opened
    _refresh(engine, adapters["answer"])
    engine.sample([Request(role="answer", prompt_ids=PROMPT, max_tokens=3)] * 8, Sampling(), seeds=range(8))
    assert engine.take_stats()["prefilled_tokens"] == 25 + 7


def test_other_adapters_read_for_themselves(opened: tuple[VllmEngine, bool], adapters: dict[str, Path]) -> None:
    """After a refresh, and for the other role, nothing that was computed before is used."""
    engine, _ = opened
    for name in ("stop", "answer"):
        _refresh(engine, adapters[name])
        for role in ROLES:
            [said] = engine.sample([Request(role=role, prompt_ids=PROMPT, max_tokens=1)], Sampling(), seeds=[0])
            assert engine.take_stats()["prefilled_tokens"] == 25
            expected = taught(adapters[name], PROMPT)[said.token_ids[0]]
            assert said.logprobs[0] == pytest.approx(expected, abs=2e-4)


def test_a_server_reuses_parts_of_blocks(tmp_path: Path) -> None:
    """Told by the flag that the documentation has, and shown by the counts that the server reports."""
    words = ("--kv-transfer-config", json.dumps(PARTIAL_BLOCKS))
    with serving(save_model(tmp_path / "model"), tmp_path / "vllm.log", *words) as server:
        client = VllmClient(VllmServerSettings(base_url=server.url), api_key="")
        for cached in (0, 24):
            request = VllmRequest(PROMPT, plain_params(max_tokens=1))
            assert client.complete("base", request).cached_tokens == cached
    assert f"'{json.dumps(PARTIAL_BLOCKS)}'" in Path("docs/engines.md").read_text(encoding="utf-8")
