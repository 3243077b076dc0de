"""Are shared, separate and chunked log-probabilities those of the model's own logits, and their gradients too?"""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from flow_dpo.core.types import Pair
from flow_dpo.learner.logprobs import Logprobs, PackedLogprobs, PlainLogprobs, PromptedCompletion
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models import head, tree_attention
from flow_dpo.models.drift_causes import own_logprobs
from tests.support.packed_builders import ROLES, answer_pair, pair_lists, pairs_of_tree, stop_pair
from tests.support.tiny_models import KINDS, tiny_model


@torch.no_grad()
def disagreement(model: PreTrainedModel, completions: list[PromptedCompletion], logprobs: Logprobs) -> torch.Tensor:
    """Absolute differences, in nats, from log-probabilities of the model's own logits, one completion at a time."""
    pairs = zip(completions, logprobs(), strict=True)
    # A NaN counts as an infinite difference.
    return torch.cat([(found - own_logprobs(model, *s)).abs().nan_to_num(nan=torch.inf) for s, found in pairs])


def stir(policy: Policy, seed: int = 0, scale: float = 0.1) -> Policy:
    """Move all adapters off their first values, at which half of the gradients are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in policy.adapters:
            for weight in policy.weights(adapter):
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
            policy.publish(adapter)
    return policy


@cache
def policy_of(kind: str) -> Policy:
    """Shared by all examples: nothing here moves it."""
    return stir(Policy(tiny_model(kind), ROLES, LoraSettings(lora_r=4)))


def spoken_of(pairs: list[Pair]) -> list[PromptedCompletion]:
    return [(p.request, c) for p in pairs for c in p.completions]


def with_gradient(
    policy: Policy, way: type[PackedLogprobs | PlainLogprobs], spoken: list[PromptedCompletion]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All log-probabilities in one, and the gradient of a random mixture of them."""
    with policy.using("answer", training=True):
        found = torch.cat(way(policy.model, spoken)())
        mixture = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
        gradient = torch.autograd.grad((found * mixture).sum(), policy.parameters("answer"))
    return found.detach(), list(gradient)


def assert_same_gradient(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Relative to the largest entry: sums of a hundred terms cancel in the small ones."""
    largest = max(float(w.abs().max()) for w in wanted)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * largest)


@given(pair_lists(), st.sampled_from(KINDS))
@settings(max_examples=150, deadline=None)
def test_shared_prefixes_change_nothing(pairs: list[Pair], kind: str) -> None:
    policy, spoken = policy_of(kind), spoken_of(pairs)
    found, gradient = with_gradient(policy, PackedLogprobs, spoken)
    wanted, wanted_gradient = with_gradient(policy, PlainLogprobs, spoken)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert_same_gradient(gradient, wanted_gradient)


@given(pair_lists(max_trees=2), st.sampled_from(KINDS), st.sampled_from((*ROLES, None)))
@settings(max_examples=60, deadline=None)
def test_both_ways_are_the_models_own_logits(pairs: list[Pair], kind: str, adapter: str | None) -> None:
    policy, spoken = policy_of(kind), spoken_of(pairs)
    with torch.no_grad(), policy.using(adapter):
        for way in (PackedLogprobs, PlainLogprobs):
            assert disagreement(policy.model, spoken, way(policy.model, spoken)).max() < 2e-5


def test_windows_are_tested_beyond_their_reach() -> None:
    # 8 positions are seen in the sliding layers: a deep tree must differ from one without them.
    pairs = pairs_of_tree(random.Random(0), "p", num_nodes=6, prompt_tokens=20)
    for kind in ("phi3", "gemma3"):
        policy, spoken = policy_of(kind), spoken_of(pairs)
        with torch.no_grad(), policy.using(None):
            assert disagreement(policy.model, spoken, PackedLogprobs(policy.model, spoken)).max() < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_in_chunks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, spoken = policy_of(kind), spoken_of(pairs_of_tree(random.Random(1), "p"))
    whole, wanted = with_gradient(policy, PackedLogprobs, spoken)
    chunks, chunked = list[int](), head._chunks
    monkeypatch.setattr(head, "MAX_LOGITS", 3 * 128)
    monkeypatch.setattr(
        head, "_chunks", lambda num, rows, size: chunks.append(-(-num // size)) or chunked(num, rows, size)
    )
    pieces, gradient = with_gradient(policy, PackedLogprobs, spoken)
    read = {
        request.prompt_ids + completion.token_ids[:index]
        for request, completion in spoken
        if not request.choices
        for index in range(len(completion.token_ids))
    }
    assert chunks == [-(-len(read) // 3)], "the head is applied where labels are read alone, three rows at a time"
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)
    assert_same_gradient(gradient, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gathered_keys_are_kept_for_the_backward_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, spoken = policy_of(kind), spoken_of(pairs_of_tree(random.Random(1), "p"))
    gathers, gather = list[int](), tree_attention._gather
    monkeypatch.setattr(tree_attention, "_gather", lambda *words: gathers.append(1) or gather(*words))
    with policy.using("answer", training=True):
        found = torch.cat(PackedLogprobs(policy.model, spoken)())
        forward = len(gathers)
        torch.autograd.grad(found.sum(), policy.parameters("answer"))
    assert len(gathers) == 2 * forward > 0


@pytest.mark.parametrize("chunk", [1 << 20, 3 * 128])
@pytest.mark.parametrize("field", [{}, {"final_logit_softcapping": 5.0}, {"logit_scale": 0.3}, {"logits_scaling": 4.0}])
@pytest.mark.parametrize("over", [1.0, 0.6])
def test_gradients_of_every_kind_of_head(
    field: dict[str, float], chunk: int, over: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen head's own backward against autograd through the plain formula."""
    monkeypatch.setattr(head, "MAX_LOGITS", chunk)
    model = tiny_model("llama")
    for name, value in field.items():
        setattr(model.config, name, value)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 32, generator=generator, requires_grad=True)
    rows = torch.tensor([0, 4, 4, 10, 2, 7, 10, 10])
    ids = torch.tensor([1, 5, 127, 0, 9, 9, 3, 77])
    found_head = head.Head(model)
    logits = model.get_output_embeddings()(hidden)
    cap, scale = field.get("final_logit_softcapping"), field.get("logit_scale", 1.0) / field.get("logits_scaling", 1.0)
    wanted = ((cap * torch.tanh(logits / cap) if cap else logits) * scale / over).log_softmax(-1)[rows, ids]
    found = found_head.logprobs(hidden, rows, ids, over)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    mixture = torch.randn(8, generator=generator)
    gradients = [torch.autograd.grad((out * mixture).sum(), hidden)[0] for out in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    few = torch.tensor([3, 4])
    wanted_few = ((cap * torch.tanh(logits / cap) if cap else logits) * scale)[:, few]
    torch.testing.assert_close(found_head.logits(hidden, few), wanted_few, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [("lm_head", "q_proj"), ("embed_tokens",), ("lm_head", "embed_tokens")], ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_an_adapter_on_head_and_embeddings(kind: str, targets: tuple[str, ...]) -> None:
    """Llama's and Gemma's share one weight here, and each side has an adapter of its own."""
    policy = stir(Policy(tiny_model(kind), ROLES, LoraSettings(lora_target_modules=targets)))
    spoken = spoken_of(pairs_of_tree(random.Random(1), "p"))
    read = dict[str | None, torch.Tensor]()
    for adapter in ("answer", "stop", None):
        with torch.no_grad(), policy.using(adapter):
            assert disagreement(policy.model, spoken, PackedLogprobs(policy.model, spoken)).max() < 2e-5
            read[adapter] = torch.cat(PackedLogprobs(policy.model, spoken)())
    assert (read["answer"] - read["stop"]).abs().max() > 1e-2
    assert (read["answer"] - read[None]).abs().max() > 1e-2
    found, wanted = (with_gradient(policy, way, spoken)[1] for way in (PackedLogprobs, PlainLogprobs))
    assert_same_gradient(found, wanted)
    assert all(piece.abs().sum() > 0 for piece in found)


def test_labels_one_by_one() -> None:
    """The cases of the docstring, against numbers read off the logits by hand."""
    policy = policy_of("llama")
    pairs = [answer_pair((5, 6), (7, 8), (7, 9)), stop_pair((5, 6), yes=True), answer_pair((5,), (6,), (2,))]
    with torch.no_grad(), policy.using("answer"):
        way = PackedLogprobs(policy.model, spoken_of(pairs))
        chosen, rejected, yes, no, short, end = way()
        logits = policy.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0]
    assert way.num_tokens == 3
    free = logits.log_softmax(-1)
    torch.testing.assert_close(chosen, free[[1, 2], [7, 8]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rejected, free[[1, 2], [7, 9]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([short, end]), free[0, [6, 2]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([yes, no]), logits[1, [3, 4]].log_softmax(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_no_worse_than_without_sharing(kind: str) -> None:
    """Against the same rounded weights in float32, so that all that is left is the rounding on the way."""
    half = stir(Policy(tiny_model(kind).to(torch.bfloat16), ROLES, LoraSettings(lora_r=4)))
    exact = stir(Policy(tiny_model(kind).to(torch.bfloat16).float(), ROLES, LoraSettings(lora_r=4)))
    with torch.no_grad():
        for role in ROLES:
            for weight in exact.weights(role):
                weight.copy_(weight.bfloat16())
            exact.publish(role)
    errors = dict.fromkeys((PackedLogprobs, PlainLogprobs), torch.zeros(2))
    for seed in range(6):
        spoken = spoken_of(pairs_of_tree(random.Random(seed), "p", num_nodes=5))
        truth, true_gradient = with_gradient(exact, PlainLogprobs, spoken)
        for way in errors:
            found, gradient = with_gradient(half, way, spoken)
            off = sum((g.float() - t).square().sum() for g, t in zip(gradient, true_gradient, strict=True))
            size = sum(t.square().sum() for t in true_gradient)
            errors[way] = errors[way] + torch.stack([(found - truth).square().mean(), off / size])
    packed, plain = (errors[way].sqrt() for way in (PackedLogprobs, PlainLogprobs))
    assert (packed < 1.15 * plain).all(), (packed, plain)  # root mean squares of many roundings: within chance


@pytest.mark.parametrize("way", [PackedLogprobs, PlainLogprobs])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_layers_change_nothing(kind: str, way: type[PackedLogprobs | PlainLogprobs]) -> None:
    spoken = spoken_of(pairs_of_tree(random.Random(3), "p"))
    wanted, wanted_gradient = with_gradient(policy_of(kind), way, spoken)
    policy = stir(Policy(tiny_model(kind), ROLES, LoraSettings(lora_r=4)))
    policy.checkpoint_activations()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    policy.model.get_decoder().layers[0].self_attn.register_forward_hook(count)
    found, gradient = with_gradient(policy, way, spoken)
    assert calls == 2, "the layer was computed again in the backward"
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert_same_gradient(gradient, wanted_gradient)
