"""Do rows in several threads give the same bytes as one after another, and is none left over where one fails?"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import LearningError
from flow_dpo.core.types import Pair
from flow_dpo.learner.deal import RowResult, alone
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import ReferenceSettings, RowSettings
from flow_dpo.models import fused_decoder
from flow_dpo.ranks import threads
from flow_dpo.ranks.threads import Threads, threads_of
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import ROLES, pairs_of_tree
from tests.support.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pairs(seed: int) -> list[Pair]:
    rng = random.Random(seed)
    return [pair for n in range(4) for pair in pairs_of_tree(rng, f"{seed}.{n}")]


class NoReference(Dpo):
    """Rows of several threads at once; with a reference they take turns."""

    needs_reference: Any = False

    def __call__(self, examples: Any, policy: Any, reference: Any) -> Any:
        return super().__call__(examples, policy, [[each.detach() * 0.9 for each in one] for one in policy])


@pytest.mark.parametrize("objective", [Dpo(), NoReference()], ids=["reference", "none"])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_any_number_of_threads_learns_the_same_bytes(kind: str, objective: Any) -> None:
    found: list[tuple[list[torch.Tensor], dict[str, float], Any]] = []
    for deal in (alone, Threads(2), Threads(3)):
        policy = Policy(tiny_model(kind), ROLES, LoraSettings(lora_r=4))
        settings = LearnerSettings(rows=RowSettings(max_tokens=40), reference=ReferenceSettings(kind="snapshot"))
        learner = Learner(policy, replace(settings, examples_per_update=16), deal=deal)
        rows = [learner.update(objective, pairs(seed)) for seed in range(3)]
        assert rows[0]["learn/answer/rows"] > 3
        assert bool(fused_decoder.of(policy.model)) == (kind == "llama")
        assert not any(parameter.requires_grad for parameter in policy.parameters("answer"))
        kept = {name: value for name, value in rows[-1].items() if not name.endswith(("seconds", "_s"))}
        found.append(([w.clone() for role in ROLES for w in policy.weights(role)], kept, learner.learned))
    for weights, row, learned in found[1:]:
        assert all(map(torch.equal, weights, found[0][0]))
        assert row == found[0][1]
        assert [one.policy for one in learned] == [one.policy for one in found[0][2]]


def test_what_was_recorded_is_brought_to_a_temperature_under_one_adapter() -> None:
    """Whichever thread is done first, and whichever role was on before: a model of its own modules, switched often."""
    switch = sys.getswitchinterval()
    sampled = [pair for seed in range(3) for pair in pairs(seed)]
    examples = [
        replace(p, chosen=replace(p.chosen, policy_version=0), rejected=replace(p.rejected, policy_version=0))
        for p in sampled
    ]

    def learner(deal: Any) -> Learner:
        policy = stir(Policy(tiny_model("gemma3"), ROLES, LoraSettings(lora_r=4), seed=5))
        settings = LearnerSettings(logit_temperature=0.6, rows=RowSettings(max_tokens=40))
        made = Learner(policy, settings, deal=deal)
        made.check()
        return made

    wanted, several = learner(alone)._scaled(examples), learner(Threads(2))
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(4):
            assert several._scaled(examples) == wanted
    finally:
        sys.setswitchinterval(switch)


def test_results_come_in_order_and_from_several_threads() -> None:
    together = threading.Barrier(2)
    seen: set[str] = set()

    def compute(place: int) -> RowResult:
        seen.add(threading.current_thread().name)
        assert torch.get_num_threads() == 1
        together.wait(20)
        return RowResult(tokens=place, policy=[])

    assert [result.tokens for result in Threads(2)(6, compute)] == list(range(6))
    assert len(seen) == 2


def test_the_first_row_that_failed_is_the_error_and_nothing_goes_on() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def compute(place: int) -> RowResult:
        begun.append(place)
        if place in (1, 2):
            raise LearningError(f"row {place}")
        time.sleep(0.05)
        ended.append(place)
        return RowResult(tokens=place, policy=[])

    with pytest.raises(LearningError, match="row 1"):
        list(Threads(2)(40, compute))
    assert len(begun) == len(ended) + 2 < 40
    known = len(begun)
    time.sleep(0.1)
    assert len(begun) == known


@pytest.mark.parametrize(
    ("why", "num"),
    [
        ("", 3), ("a setting", 2), ("environment", 2), ("one core", 1), ("dropout", 1), ("large", 1), ("kernels", 1),
    ],
)  # fmt: skip
def test_how_many(why: str, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if why == "one core":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    if why == "large":
        monkeypatch.setattr(threads, "MOST_WEIGHTS", 100)
    if why == "kernels":
        torch.set_num_threads(2)
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4, lora_dropout=0.1 if why == "dropout" else 0.0))
    deal = threads_of(policy, 2 if why == "a setting" else 0)
    assert (deal.num if isinstance(deal, Threads) else 1) == num
