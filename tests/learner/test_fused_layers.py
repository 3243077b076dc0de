"""Are fused layers the model's own, in log-probabilities and in all gradients, and used only where they are?"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.types import Pair
from flow_dpo.learner.check import choose_way
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models import fused_decoder
from flow_dpo.models.fused_layers import FusedBlock
from tests.engines.test_lean_forward import model_of
from tests.learner.test_logprobs import assert_same_gradient, spoken_of, stir, with_gradient
from tests.support.packed_builders import ROLES, answer_pair, pair_lists, pairs_of_tree
from tests.support.tiny_models import tiny_model

KINDS = (
    "llama", "qwen2", "qwen3", "phi3", "biases, wide heads, tied", "llama3 rotary", "yarn", "mistral's window",
    "windows in some layers",
)  # fmt: skip
OTHERS = ("gemma3", "rotated in part")
"""Built otherwise."""
_policies: dict[str, Policy] = {}


def policy_of(kind: str, **lora: Any) -> Policy:
    """Shared by examples: nothing here moves it."""
    key = f"{kind} {lora}"
    if key not in _policies:
        _policies[key] = stir(Policy(model_of(kind), ROLES, replace(LoraSettings(lora_r=3, lora_alpha=5), **lora)))
    return _policies[key]


@pytest.mark.parametrize("kind", KINDS)
@given(pairs=pair_lists())
@settings(max_examples=15, deadline=None)
def test_fused_layers_change_nothing(kind: str, pairs: list[Pair]) -> None:
    policy, spoken = policy_of(kind), spoken_of(pairs)
    fused_decoder.give_up(policy.model)
    wanted, wanted_gradient = with_gradient(policy, PlainLogprobs, spoken)
    own, own_gradient = with_gradient(policy, PackedLogprobs, spoken)
    assert fused_decoder.prepare(policy.model)
    found, gradient = with_gradient(policy, PackedLogprobs, spoken)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(found, own, rtol=2e-5, atol=2e-5)
    assert_same_gradient(gradient, wanted_gradient, 5e-5)
    assert_same_gradient(gradient, own_gradient, 5e-5)


@given(st.sampled_from((("q_proj",), ("v_proj", "up_proj"), ("o_proj", "gate_proj"), ("down_proj",))))
@settings(max_examples=8, deadline=None)
def test_layers_without_an_adapter_have_no_gradient(targets: tuple[str, ...]) -> None:
    policy, spoken = policy_of("qwen2", lora_target_modules=targets), spoken_of(pairs_of_tree(random.Random(2), "p"))
    wanted, wanted_gradient = with_gradient(policy, PlainLogprobs, spoken)
    assert fused_decoder.prepare(policy.model)
    found, gradient = with_gradient(policy, PackedLogprobs, spoken)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
    assert_same_gradient(gradient, wanted_gradient, 5e-5)


def test_rows_longer_than_a_piece_and_labels_far_apart() -> None:
    policy = policy_of("llama")
    rng = random.Random(1)
    prompt = tuple(rng.randrange(5, 128) for _ in range(400))
    pairs = [answer_pair(prompt[:n], prompt[n : n + 3], (7, 9), str(n)) for n in (3, 150, 390)]
    fused_decoder.give_up(policy.model)
    wanted, wanted_gradient = with_gradient(policy, PackedLogprobs, spoken_of(pairs))
    assert fused_decoder.prepare(policy.model)
    found, gradient = with_gradient(policy, PackedLogprobs, spoken_of(pairs))
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
    assert_same_gradient(gradient, wanted_gradient, 5e-5)


def test_each_adapter_has_its_weights_and_the_present_ones() -> None:
    policy, spoken = stir(Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4))), spoken_of(
        pairs_of_tree(random.Random(3), "p")
    )  # fmt: skip
    snapshot = policy.snapshot("answer")
    assert fused_decoder.prepare(policy.model)

    def found(adapter: str | None, fused: Callable[..., bool]) -> torch.Tensor:
        with torch.no_grad(), policy.using(adapter):
            fused(policy.model)
            return torch.cat(PackedLogprobs(policy.model, spoken)())

    for seed in (0, 5):  # the second time with other weights in the same tensors
        stir(policy, seed)
        policy.move_snapshot("answer", 0.5)
        for adapter in (*ROLES, snapshot, None):
            fused = found(adapter, lambda model: True)
            other = found(adapter, lambda model: fused_decoder.give_up(model) is None)
            torch.testing.assert_close(fused, other, rtol=2e-5, atol=2e-5)
            assert fused_decoder.prepare(policy.model)


def test_a_fresh_adapter_gives_the_bases_very_bits() -> None:
    policy = Policy(tiny_model("qwen3"), ROLES, LoraSettings(lora_r=4))
    assert fused_decoder.prepare(policy.model)
    spoken = spoken_of(pairs_of_tree(random.Random(3), "p"))
    with policy.using("answer", training=True):
        own = torch.cat(PackedLogprobs(policy.model, spoken)())
    with torch.no_grad(), policy.using(None):
        assert torch.equal(own.detach(), torch.cat(PackedLogprobs(policy.model, spoken)()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_takes_them(kind: str) -> None:
    policy = Policy(model_of(kind), ROLES, LoraSettings(lora_r=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_way(policy, packed=True) == (True, False)
    assert fused_decoder.of(policy.model)
    assert choose_way(policy, packed=False) == (False, False)
    assert not fused_decoder.of(policy.model)


@pytest.mark.parametrize("kind", [*OTHERS, "in bfloat16", "with dropout", "too large"])
def test_others_are_computed_by_their_own_modules(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(kind) if kind in OTHERS else tiny_model("llama")
    if kind == "too large":
        monkeypatch.setattr(fused_decoder, "MOST_WEIGHTS", model.num_parameters() - 1)
    if kind == "in bfloat16":
        model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType, reportCallIssue]
    policy = Policy(model, ROLES, LoraSettings(lora_r=4, lora_dropout=0.1 if kind == "with dropout" else 0.0))
    assert choose_way(policy, packed=True) == (True, False)
    assert not fused_decoder.of(policy.model)


def test_layers_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = FusedBlock.__init__

    def wrong(self: FusedBlock, *arguments: Any) -> None:
        made(self, *arguments)
        self.mlp_eps = 0.3

    monkeypatch.setattr(FusedBlock, "__init__", wrong)
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4))
    assert choose_way(policy, packed=True) == (True, False)
    assert not fused_decoder.of(policy.model)
