"""Are steps of several roles, and memory that outlives a refresh, invisible in what the local engine samples?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Request, Sampling, TokenIds
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.settings import LocalSettings
from tests.engines.test_local_engine import answer, build, ids, plain_logprobs, requests_of_a_flow, said, two_adapters
from tests.support.tiny_models import tiny_model


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("lean", [True, False])
def test_a_refresh_keeps_memory_and_no_bit_of_what_was_in_it(lean: bool) -> None:
    """As a resumed run must equal an uninterrupted one: the batch before had longer rows, in other places."""
    first = [Request(role=role, prompt_ids=ids(40 + i, i), max_tokens=30) for i in range(9) for role in ("one", "two")]
    engine, fresh = (build(tiny_model("llama"), lean=lean) for _ in range(2))
    engine.sample(first, Sampling(), seeds=range(len(first)))
    memory = engine._schedulers["one"].rows.keys[0].untyped_storage()
    engine.refresh({})
    assert engine.kv_bytes > 0
    requests = [
        replace(request, role="one") if request.role == "answer" else request for request in requests_of_a_flow()
    ]
    found, expected = (each.sample(requests, Sampling(), seeds=range(len(requests))) for each in (engine, fresh))
    assert engine._schedulers["one"].rows.keys[0].untyped_storage().data_ptr() == memory.data_ptr()
    assert found == expected
    engine.close()
    assert engine.kv_bytes == 0


def test_memory_that_held_what_is_not_finite_is_not_kept() -> None:
    model = tiny_model("llama")
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    kept = weight.detach().clone()
    engine = build(model)
    engine.sample([answer(ids(5, 0))], Sampling(), seeds=[0])
    engine.refresh({})
    with torch.no_grad():
        weight.fill_(torch.nan)
    engine.submit(answer(ids(90, 0)), Sampling(), seed=0)
    with pytest.raises(EngineError, match="not finite"):
        engine.poll()
    with torch.no_grad():
        weight.copy_(kept)
    engine.refresh({})
    requests = [answer(ids(5 + i, i)) for i in range(4)]
    found = engine.sample(requests, Sampling(), seeds=range(4))
    assert found == build(tiny_model("llama")).sample(requests, Sampling(), seeds=range(4))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_roles_share_a_forward_where_it_takes_them() -> None:
    model, peft = two_adapters("qwen2")

    @contextlib.contextmanager
    def speaking(role: str) -> Iterator[PreTrainedModel]:
        peft.set_adapter(role)
        yield model

    requests = [replace(one, role=role) for one in requests_of_a_flow() for role in ("answer", "stop")]
    tokens: list[list[tuple[TokenIds, int | None]]] = []
    forwards: list[float] = []
    for lean in (True, False):
        settings = LocalSettings(lean=lean)
        engine = LocalEngine(model, role_model=speaking, end_ids=[2], context_tokens=400, settings=settings)
        completions = engine.sample(requests, Sampling(), seeds=range(len(requests)))
        for request, one in list(zip(requests, completions, strict=True))[::5]:
            if not request.choices:
                peft.set_adapter(request.role)
                expected = plain_logprobs(model, request.prompt_ids, one.token_ids)
                assert one.logprobs == pytest.approx(expected, abs=1e-5)
        tokens.append(said(completions))
        forwards.append(engine.take_stats()["num_forwards"])
    assert tokens[0] == tokens[1]
    assert forwards[0] <= forwards[1] * 0.6
