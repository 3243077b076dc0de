"""Does a refresh change who speaks, over every engine that has adapters, and is nothing stale heard after it?

The oracle is PEFT's own model with the adapter's folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from flow_dpo.core.engine import Engine
from flow_dpo.core.types import Adapter, Request, Sampling
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.merged_lora import MergedModels
from flow_dpo.engines.plain import PlainEngine
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from tests.support.vllm_servers import ROLES, VOCAB, real_vllm, save_adapters, taught, tiny_llama
from tests.support.vllm_stand_in import StandIn, engine_of

PROMPT = tuple(3 + index * index % 9 for index in range(100))
"""Longer than three blocks of vLLM's prefix cache."""
ALL = tuple(range(VOCAB))
Refresh = Callable[[Engine, dict[str, Adapter]], None]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("adapters")
    return {seed: save_adapters(folder, seed) for seed in (1, 2)}


@contextmanager
def _in_process(name: str) -> Iterator[tuple[Engine, Refresh]]:
    """The policy's own weights speak, so that they are changed before the engine is told."""
    policy = Policy(tiny_llama(), ROLES, LoraSettings(lora_r=8, lora_alpha=8))
    role_model = MergedModels(policy).using if name == "local_merged" else policy.using
    engine: Engine
    if name == "plain":
        engine = PlainEngine(policy.model, role_model=role_model, end_ids={2}, context_tokens=512)
    else:
        engine = LocalEngine(
            policy.model,
            role_model=role_model,
            end_ids={2},
            context_tokens=512,
            settings=LocalSettings(max_batch_size=4),
        )

    def refresh(engine: Engine, adapters: dict[str, Adapter]) -> None:
        for role, adapter in adapters.items():
            policy.load_adapter(role, adapter.path)
        engine.refresh(adapters)

    with closing(engine):
        yield engine, refresh


@contextmanager
def _opened(name: str, folder: Path) -> Iterator[tuple[Engine, Refresh]]:
    if name in ("plain", "local_adapters", "local_merged"):
        with _in_process(name) as found:
            yield found
        return
    with ExitStack() as stack:
        if name == "vllm_server":
            says = functools.cache(lambda adapter, prefix: taught(Path(adapter), prefix))
            server = stack.enter_context(StandIn(says, num_words=VOCAB))
            engine: Engine = engine_of(
                server.url, server.base, root=folder, num_words=VOCAB, end_ids={2}, context_tokens=512, top_logprobs=4
            )
        else:
            build, _ = stack.enter_context(real_vllm(name, folder, context_tokens=512))
            engine = build()
        stack.enter_context(closing(engine))
        yield engine, lambda engine, adapters: engine.refresh(adapters)


REAL = [pytest.param(name, marks=pytest.mark.vllm) for name in ("real_vllm", "real_vllm_server")]


@pytest.mark.parametrize("name", ["plain", "local_adapters", "local_merged", "vllm_server", *REAL])
def test_each_refresh_is_heard_and_nothing_stale_is(
    name: str, adapters: dict[int, dict[str, Path]], tmp_path: Path
) -> None:
    """Forwards and back, with every prompt in the prefix cache: each role speaks with its adapter in force."""
    with _opened(name, tmp_path) as (engine, refresh):
        for version, seed in enumerate((1, 2, 1, 2), start=1):
            refresh(engine, {r: Adapter(role=r, version=version, path=str(adapters[seed][r])) for r in ROLES})
            for role in ROLES:
                expected = taught(adapters[seed][role], PROMPT)
                for _ in range(2):
                    request = Request(role=role, prompt_ids=PROMPT, choices=ALL)
                    [said] = engine.sample([request], Sampling(), seeds=[0])
                    assert said.policy_version == version
                    assert said.choice_logprobs == pytest.approx(expected, abs=2e-4)
    assert taught(adapters[1]["answer"], PROMPT) != pytest.approx(taught(adapters[2]["answer"], PROMPT), abs=0.1)
