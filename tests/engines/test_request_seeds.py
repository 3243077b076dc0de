"""Has a request to vLLM a seed where the setting says so, and is nothing greedy where the fast sampler needs that?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from flow_dpo.core.types import Request, Sampling
from flow_dpo.engines.settings import (
    LocalSettings,
    VllmServerSettings,
    VllmSettings,
    seeds_fact,
    seeds_from_top_p,
)
from flow_dpo.engines.vllm.requests import ModelFacts, Reply, completion_steps

TEXT = Request(role="answer", prompt_ids=(1,), max_tokens=2)
CHOICE = Request(role="stop", prompt_ids=(1,), choices=(3, 4))
LIKELIEST = {3: math.log(0.6), 4: math.log(0.4)}


def _asked(
    request: Request, sampling: Sampling, least: float, excluded: tuple[int, ...] = ()
) -> list[Mapping[str, Any]]:
    """The parameters of all vLLM requests of one completion."""
    facts = ModelFacts(end_ids=frozenset({2}), vocab_size=5, num_top_logprobs=5, seeds_from_top_p=least)
    steps = completion_steps(request, sampling, seed=7, excluded=excluded, facts=facts, policy_version=0)
    asked, reply = list[Mapping[str, Any]](), None
    while True:
        try:
            found = next(steps) if reply is None else steps.send(reply)
        except StopIteration:
            return asked
        asked.append(found.params)
        ids = (3,) * found.params["max_tokens"]
        reply = Reply(ids, (LIKELIEST[3],) * len(ids), (LIKELIEST,) * len(ids))


@pytest.mark.parametrize(
    ("setting", "on_gpu", "seeded"),
    [
        ("auto", False, {1.0, 0.9}),
        ("auto", True, {1.0}),
        ("always", True, {1.0, 0.9}),
        ("never", False, set[float]()),
    ],
)
def test_which_requests_have_a_seed(setting: Any, on_gpu: bool, seeded: set[float]) -> None:
    least = seeds_from_top_p(setting, on_gpu=on_gpu)
    for top_p in (1.0, 0.9):
        [params] = _asked(TEXT, Sampling(top_p=top_p), least)
        assert ("seed" in params) == (top_p in seeded)


def test_what_is_only_read_is_greedy_unless_seeds_are_left_out() -> None:
    """A greedy request keeps its whole step from the fast sampler."""
    for least, temperature in ((0.0, 0.0), (1.0, 1.0), (math.inf, 1.0)):
        [choice] = _asked(CHOICE, Sampling(), least)
        first, rest = _asked(TEXT, Sampling(top_p=0.99), least, excluded=(4,))
        assert choice["temperature"] == first["temperature"] == temperature
        assert rest["temperature"] == 1.0


def test_a_record_of_a_run_says_which() -> None:
    assert seeds_fact(LocalSettings(), on_gpu=True) == {}
    assert seeds_fact(VllmSettings(), on_gpu=False) == {"request_seeds": "always"}
    assert seeds_fact(VllmSettings(), on_gpu=True) == {"request_seeds": "from top-p 1"}
    assert seeds_fact(VllmServerSettings(), on_gpu=True) == {"request_seeds": "always"}
    assert seeds_fact(VllmServerSettings(request_seeds="never"), on_gpu=True) == {"request_seeds": "never"}
