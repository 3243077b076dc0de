"""Are the logits of a few tokens the model's own, and exact in half precision too?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from flow_dpo.core.types import Request, Sampling
from flow_dpo.engines.choices import choose
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.plain import PlainEngine
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models.head import Head, choice_logits, head_inputs
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import NO, ROLES, YES, completion
from tests.support.tiny_models import tiny_model

IDS_1T = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
CHOICES = (YES, NO, 17)


def with_head(dtype: torch.dtype, fields: dict[str, float], *, adapter: bool) -> Policy:
    """A model whose head's output is treated in this way, and has an adapter where wanted."""
    model = tiny_model("qwen2").to(dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)  # logits of some 20, where bfloat16 has steps of 1/8
    for name, value in fields.items():
        setattr(model.config, name, value)
    targets = ("q_proj", "lm_head") if adapter else ("q_proj",)
    return stir(Policy(model, ROLES, LoraSettings(lora_r=4, lora_target_modules=targets)))


@pytest.mark.parametrize("adapter", [False, True], ids=["plain head", "adapted head"])
@pytest.mark.parametrize("fields", [{}, {"final_logit_softcapping": 5.0}, {"logits_scaling": 4.0}], ids=str)
def test_a_few_logits_are_products_in_float32(fields: dict[str, float], adapter: bool) -> None:
    policy = with_head(torch.bfloat16, fields, adapter=adapter)
    exact = with_head(torch.float32, fields, adapter=adapter)
    with torch.no_grad(), policy.using("answer"), exact.using("answer"):
        # The same rounded weights and hidden states, in float64.
        for theirs, ours in zip(exact.model.parameters(), policy.model.parameters(), strict=True):
            theirs.copy_(ours)
        exact.model.double()
        hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
        ids = torch.tensor(CHOICES)
        few = Head(policy.model).logits(hidden, ids)
        logits = exact.model.get_output_embeddings()(hidden.double())[:, ids]
        cap, scale = fields.get("final_logit_softcapping"), fields.get("logits_scaling", 1.0)
        wanted = (cap * torch.tanh(logits / cap) if cap else logits) / scale
        assert few.dtype == torch.float32
        torch.testing.assert_close(few.double(), wanted, rtol=1e-5, atol=1e-5)
        rounded = policy.model.get_output_embeddings()(hidden)[:, ids]
        assert (rounded.double() - logits).abs().max() > 0.02, "what the model's own head would have given"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("adapter", [False, True], ids=["plain head", "adapted head"])
def test_engines_and_learner_read_the_same_choice(dtype: torch.dtype, adapter: bool) -> None:
    policy = with_head(dtype, {}, adapter=adapter)
    request = Request(role="stop", prompt_ids=tuple(IDS_1T[0].tolist()), choices=(YES, NO))
    common: dict[str, Any] = {"role_model": policy.using, "end_ids": {2}, "context_tokens": 128}
    said = [
        engine.sample([request], Sampling(), seeds=[0])[0].choice_logprobs
        for engine in (LocalEngine(policy.model, **common), PlainEngine(policy.model, **common))
    ]
    words = [(request, completion((word,), choice=at)) for at, word in enumerate(request.choices)]
    with torch.no_grad(), policy.using("stop"):
        learned = torch.cat(PlainLogprobs(policy.model, words)()).tolist()
        with head_inputs(policy.model) as kept:
            own = policy.model(input_ids=IDS_1T).logits[0, -1:]
        assert len(kept) == (dtype != torch.float32)
    # Hidden states differ by how sums are ordered; the head rounds nothing more.
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for found in (*said, learned):
        assert found == pytest.approx(own[0, [YES, NO]].float().log_softmax(-1).tolist(), abs=3 * tolerance)
        assert found == pytest.approx(learned, abs=tolerance)


@torch.no_grad()
def test_no_steps_are_left_in_log_odds_in_half_precision() -> None:
    """The model's own of logits above 8 are multiples of 1/16; the engine's and the learner's of the same are not."""
    policy = with_head(torch.bfloat16, {}, adapter=False)
    policy.model.get_output_embeddings().weight.mul_(8)
    asked = [
        Request(role="stop", prompt_ids=tuple(5 + (11 * i + 3 * j) % 100 for j in range(8)), choices=(YES, NO))
        for i in range(48)
    ]
    with policy.using("stop"):
        own = [policy.model(input_ids=torch.tensor([r.prompt_ids])).logits[0, -1, [YES, NO]].float() for r in asked]
    coarse = [at for at, logits in enumerate(own) if logits.abs().min() >= 8]
    assert len(coarse) >= 5
    asked, rounded = [asked[at] for at in coarse], [float(own[at][0] - own[at][1]) for at in coarse]
    engine = LocalEngine(policy.model, role_model=policy.using, end_ids={2}, context_tokens=128)
    said = [each.choice_logprobs for each in engine.sample(asked, Sampling(), seeds=range(len(asked)))]
    words = [(request, completion((word,), choice=at)) for request in asked for at, word in enumerate(request.choices)]
    with policy.using("stop"):
        learned = torch.cat(PackedLogprobs(policy.model, words)()).view(-1, 2).tolist()
    played, taught = ([yes - no for yes, no in each] for each in (said, learned))
    on_grid = [
        sum(abs(16 * v - round(16 * v)) < 1e-2 for v in each) / len(coarse) for each in (rounded, played, taught)
    ]
    assert on_grid[0] == 1
    assert max(on_grid[1:]) < 0.3
    # Both differ from one another by how hidden states are rounded, and from the model's own by its head as well.
    assert sum(abs(a - b) for a, b in zip(played, taught, strict=True)) / len(coarse) < 0.03


@torch.no_grad()
def test_engine_and_learner_make_the_same_log_odds_of_the_same_hidden_state() -> None:
    policy = with_head(torch.bfloat16, {}, adapter=True)
    with policy.using("stop") as model:
        with head_inputs(model) as kept:
            logits = model(input_ids=IDS_1T).logits[0]
        [found] = choice_logits(model, kept, logits, [7], [(YES, NO)])
        wanted = Head(model).logits(kept[0][0, 7:8], torch.tensor([YES, NO]))[0].tolist()
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_head_that_is_treated_in_an_unknown_way_is_the_models_own() -> None:
    model: PreTrainedModel = tiny_model("qwen2").to(torch.bfloat16)
    plain = type(model).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        found = plain(model, *args, **kwargs)
        found.logits = found.logits * 0.05
        return found

    model.forward = forward
    with torch.no_grad(), head_inputs(model) as kept:
        logits = model(input_ids=IDS_1T).logits[0]
        found = choice_logits(model, kept, logits, [2, 7], [CHOICES, (YES, NO)])
    assert found == [logits[2, list(CHOICES)].tolist(), logits[7, [YES, NO]].tolist()]


def test_choices_are_read_at_their_places_and_lists_may_differ_in_length() -> None:
    model = tiny_model("qwen2")
    with torch.no_grad(), head_inputs(model) as kept:
        logits = model(input_ids=IDS_1T).logits[0]
    assert kept == [], "float32 needs nothing more"
    found = choice_logits(model, kept, logits, [2, 7], [CHOICES, (YES, NO)])
    assert found == [logits[2, list(CHOICES)].tolist(), logits[7, [YES, NO]].tolist()]


def test_a_greedy_tie_is_the_seeds_and_no_choice_is_preferred() -> None:
    request, greedy = Request(role="stop", prompt_ids=(1,), choices=(YES, NO)), Sampling(greedy=True)
    drawn = [choose([2.5, 2.5], request, greedy, seed=seed).choice for seed in range(400)]
    assert drawn == [choose([2.5, 2.5], request, greedy, seed=seed).choice for seed in range(400)]
    assert 160 <= sum(choice == 0 for choice in drawn) <= 240  # four standard deviations
    assert choose([2.5, 2.5], request, greedy, seed=0).choice_logprobs == pytest.approx([-0.6931472] * 2)
    assert {choose([2.5, 2.6], request, greedy, seed=seed).choice for seed in range(50)} == {1}
    assert {choose([2.5, 2.5], request, greedy, seed=seed, excluded=(YES,)).choice for seed in range(50)} == {1}
    three = Request(role="stop", prompt_ids=(1,), choices=CHOICES)
    assert {choose([1.0, 3.0, 3.0], three, greedy, seed=seed).choice for seed in range(50)} == {1, 2}
