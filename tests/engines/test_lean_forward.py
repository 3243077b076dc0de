"""Does the lean forward give transformers' own logits, and is what it does not know left to the plain one?"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from flow_dpo.core.types import Request, Sampling
from flow_dpo.engines.factory import role_model_of
from flow_dpo.engines.local import products as products_module
from flow_dpo.engines.local.compatibility import choose_forward, probe
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.local.flat_batch import FlatBatch, RowInput
from flow_dpo.engines.local.forward import Forward, PlainForward, RoleModel, RoleSlice
from flow_dpo.engines.local.kv_rows import KvRows
from flow_dpo.engines.local.lean_forward import LeanForward, lean_forward
from flow_dpo.engines.local.products import ProductCache, bucket, can_pack
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models import attention
from flow_dpo.models.dense_decoder import Weights, read_decoder, read_linear
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import tiny_model

SHARED: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ON_INTEL = products_module._on_intel()
"""Of this machine; the fixture `library` replaces the function."""
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}


def model_of(kind: str) -> PreTrainedModel:
    """A random model with biases that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        match kind:
            case "biases, wide heads, tied":
                config = LlamaConfig(
                    **SHARED, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
                )
                model: PreTrainedModel = LlamaForCausalLM(config)
            case "llama3 rotary":
                model = LlamaForCausalLM(LlamaConfig(**SHARED, rope_parameters=LLAMA3))
            case "yarn":
                model = Qwen2ForCausalLM(Qwen2Config(**SHARED, rope_parameters=YARN))
            case "mistral's window":
                model = MistralForCausalLM(MistralConfig(**SHARED, sliding_window=8, head_dim=8))
            case "windows in some layers":
                config = Qwen2Config(**SHARED, use_sliding_window=True, sliding_window=8, max_window_layers=1)
                model = Qwen2ForCausalLM(config)
            case "rotated in part":
                rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
                model = Phi3ForCausalLM(Phi3Config(**SHARED, rope_parameters=rope, sliding_window=None))
            case _:
                return tiny_model(kind)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


KINDS = (
    "llama", "qwen2", "qwen3", "phi3", "biases, wide heads, tied", "llama3 rotary", "yarn", "mistral's window",
    "windows in some layers", "rotated in part",
)  # fmt: skip


def in_bfloat16(model: PreTrainedModel) -> PreTrainedModel:
    model.bfloat16()
    return model


def policy_of(model: PreTrainedModel) -> Policy:
    return stir(Policy(model, ROLES, LoraSettings(lora_r=4, lora_alpha=12)))


def forwards(role_model: RoleModel, *, packed: int = 1 << 30) -> tuple[Forward, Forward]:
    """The lean forward of these roles, and the plain one."""
    lean = lean_forward(role_model, ROLES[0], max_packed_bytes=packed)
    assert lean is not None
    return lean, PlainForward(role_model, torch.device("cpu"))


STEPS = (
    [RowInput(0, 3), RowInput(0, 9), RowInput(0, 14)],
    [RowInput(3, 4), RowInput(9, 10), RowInput(14, 15), RowInput(0, 20)],
    [RowInput(4, 5), RowInput(10, 11), RowInput(15, 16), RowInput(20, 21)],
)


def logits(forward: Forward, role_model: RoleModel, role: str) -> torch.Tensor:
    """Of prefill, of a step of both kinds, of decode."""
    with role_model(role) as model:
        rows = KvRows(probe(model))
    rows.reserve(4, 32, 32, 0)
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for number, inputs in enumerate(STEPS):
            count = sum(each.end - each.begin for each in inputs)
            ids = [(11 * index + 5 + number) % 128 for index in range(count)]
            batch = FlatBatch(rows, inputs)
            found.append(forward(ids, batch, [RoleSlice(role, 0, count)], wants_choices=False).logits_AV)
    return torch.cat(found)


@pytest.fixture(params=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which library multiplies small weights in float32."""
    monkeypatch.setattr(
        products_module, "_on_intel", lambda: request.param == "MKL" and torch.backends.mkl.is_available()
    )
    return request.param


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapters", ["none", "merged", "beside"])
def test_the_logits_are_transformers_own(kind: str, adapters: str) -> None:
    model = model_of(kind)
    attention.prepare(model)
    role_model: RoleModel = lambda _: contextlib.nullcontext(model)  # noqa: E731
    if adapters != "none":
        policy = policy_of(model)
        merge = "always" if adapters == "merged" else "never"
        role_model = role_model_of(policy, LocalSettings(merge_adapters=merge))
    for packed in (0, 1 << 30):
        lean, plain = forwards(role_model, packed=packed)
        for role in ROLES:
            expected = logits(plain, role_model, role)
            torch.testing.assert_close(logits(lean, role_model, role), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_half_precision_is_as_near_to_float32_as_transformers_own_forward(kind: str) -> None:
    policy, exact = policy_of(in_bfloat16(model_of(kind))), policy_of(model_of(kind))
    with torch.no_grad():
        for rounded, weight in zip(policy.model.parameters(), exact.model.parameters(), strict=True):
            weight.copy_(rounded)
    lean, plain = forwards(policy.using)
    yardstick = logits(PlainForward(exact.using, torch.device("cpu")), exact.using, "stop")
    own = (logits(plain, policy.using, "stop").float() - yardstick).abs().mean()
    found = logits(lean, policy.using, "stop").float()
    assert 0 < (found - yardstick).abs().mean() < 1.25 * own
    assert (found - logits(plain, policy.using, "stop").float()).abs().mean() < 0.1 * own, "it rounds where they do"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("merge", ["auto", "never"])
def test_several_roles_go_through_one_forward(dtype: torch.dtype, merge: Any) -> None:
    """Each row's logits, and those of its choices, are what a step of its role alone gives."""
    policy = policy_of(model_of("qwen2") if dtype == torch.float32 else in_bfloat16(model_of("qwen2")))
    role_model = role_model_of(policy, LocalSettings(merge_adapters=merge))
    lean, _ = forwards(role_model)
    with role_model("answer") as model:
        shapes = probe(model)
    lengths, roles = [1, 1, 1, 6, 7, 19], ["answer", "answer", "stop", "stop", "answer", "stop"]
    ids = [[(13 * index + 7 * at) % 128 for index in range(length)] for at, length in enumerate(lengths)]

    def step(places: Sequence[int]) -> tuple[torch.Tensor, list[list[float]]]:
        rows = KvRows(shapes)
        rows.reserve(len(places), 32, 32, 0)
        slices: list[RoleSlice] = []
        for place in places:
            at = slices[-1].end if slices else 0
            if slices and slices[-1].role == roles[place]:
                slices[-1] = slices[-1]._replace(end=at + lengths[place])
            else:
                slices.append(RoleSlice(roles[place], at, at + lengths[place]))
        batch = FlatBatch(rows, [RowInput(0, lengths[place]) for place in places])
        with torch.inference_mode():
            output = lean([id for place in places for id in ids[place]], batch, slices, wants_choices=True)
            asked = list(range(len(places)))[::-1]
            return output.logits_AV, output.choice_logits(asked, [(7, 9)] * len(places))[::-1]

    mixed, mixed_choices = step(range(6))
    rtol, atol = (1e-5, 2e-5) if dtype == torch.float32 else (0.02, 0.05)
    for role in ROLES:
        places = [place for place in range(6) if roles[place] == role]
        alone, choices = step(places)
        torch.testing.assert_close(mixed[places], alone, rtol=rtol, atol=atol)
        torch.testing.assert_close([mixed_choices[place] for place in places], choices, rtol=rtol, atol=atol)
    assert (mixed[0] - mixed[2]).abs().max() > 0.1


def test_adapters_are_read_again_after_a_refresh_and_the_base_is_kept() -> None:
    policy = policy_of(model_of("llama"))
    lean, plain = forwards(policy.using)
    before = logits(lean, policy.using, "answer")
    logits(lean, policy.using, "stop")
    assert isinstance(lean, LeanForward)
    products = lean._roles["answer"].products
    assert all(map(operator.is_, products, lean._roles["stop"].products))  # one base for both roles
    with torch.no_grad():
        for weight in policy.weights("answer"):
            weight.mul_(1.5)
    policy.publish("answer")
    lean.refresh()
    after = logits(lean, policy.using, "answer")
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, logits(plain, policy.using, "answer"), rtol=1e-5, atol=2e-5)
    assert all(map(operator.is_, products, lean._roles["answer"].products))


@pytest.mark.parametrize("kind", ["gemma3", "granite"])
def test_another_model_keeps_the_plain_forward(kind: str) -> None:
    """Gemma 3 is built otherwise; Granite is built alike, and multiplies on the way."""
    if kind == "granite":
        config = GraniteConfig(**SHARED, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: PreTrainedModel = GraniteForCausalLM(config).eval()
    else:
        model = tiny_model(kind)
    attention.prepare(model)
    role_model: RoleModel = lambda _: contextlib.nullcontext(model)  # noqa: E731
    assert (lean_forward(role_model, "answer", max_packed_bytes=0) is None) == (kind == "gemma3")
    for each in (model, in_bfloat16(model)):
        chosen = choose_forward(role_model, "answer", probe(each), LocalSettings(), most_positions=None)
        assert isinstance(chosen, PlainForward)


def test_the_engine_samples_the_same_with_either_forward() -> None:
    model = model_of("qwen3")
    requests = [Request(role="answer", prompt_ids=tuple(range(5, 9 + at)), max_tokens=20) for at in range(6)]
    drawn = []
    for lean in (True, False):
        engine = LocalEngine(
            model,
            role_model=lambda _: contextlib.nullcontext(model),
            end_ids=(2,),
            context_tokens=400,
            settings=LocalSettings(lean=lean),
        )
        drawn.append([each.token_ids for each in engine.sample(requests, Sampling(), seeds=range(6))])
        assert isinstance(engine._forward, LeanForward) == lean
    assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("rows", [1, 16, 64, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_weights_give_the_same_products(rows: int, dtype: torch.dtype) -> None:
    """In half precision bit by bit; with biases and without, of one layer and of several."""
    generator = torch.Generator().manual_seed(0)
    if not can_pack(torch.empty(1, dtype=dtype)):
        pytest.skip("oneDNN packs no such weights here")
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    x = draw(rows, 96)
    for biases in ((False,), (True,), (True, False, True)):
        layers = [Weights(draw(40 + 8 * at, 96), draw(40 + 8 * at) if bias else None) for at, bias in enumerate(biases)]
        packed = ProductCache(1 << 20).get(layers)
        plain = ProductCache(0).get(layers)
        assert packed.packed_bytes == sum(layer.weight.nbytes for layer in layers)
        assert plain.packed_bytes == 0
        if dtype == torch.bfloat16:
            assert torch.equal(packed(x), plain(x))
        else:
            torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-4)


def test_a_token_s_product_does_not_depend_on_those_beside_it(library: str) -> None:
    """To the bit on Intel's processors, which alone use these products; in any slice, written or added."""
    if library != "MKL" or not products_module._on_intel() or not can_pack(torch.empty(1)):
        pytest.skip("of transposed weights")
    tolerance = {"rtol": 0, "atol": 0} if ON_INTEL else {"rtol": 1e-5, "atol": 1e-4}
    generator = torch.Generator().manual_seed(0)
    for inputs, outputs in ((128, 384), (384, 128), (512, 114)):
        layers = [Weights(torch.randn(outputs, inputs, generator=generator), None)]
        product, x = ProductCache(1 << 30).get(layers), torch.randn(150, inputs, generator=generator)
        assert product.adds
        whole, below = product(x), torch.randn(150, outputs, generator=generator)
        for begin, end in ((0, 1), (7, 8), (0, 2), (3, 20), (20, 53), (60, 150)):
            written, added = torch.zeros(150, outputs), below.clone()
            product.write(x, begin, end, written)
            product.write(x, begin, end, added, add=True)
            torch.testing.assert_close(written[begin:end], whole[begin:end], **tolerance)
            torch.testing.assert_close(added[begin:end], (below + whole)[begin:end], rtol=1e-5, atol=1e-4)
            assert not written[:begin].any()
            assert not written[end:].any()
            assert torch.equal(added[:begin], below[:begin])
            assert torch.equal(added[end:], below[end:])


def test_packed_copies_keep_within_their_budget_and_go_with_their_products() -> None:
    if not can_pack(torch.empty(1)):
        pytest.skip("oneDNN packs no weights here")
    cache = ProductCache(max_packed_bytes=2 * 16 * 16 * 4)
    weights = [Weights(torch.randn(16, 16), None) for _ in range(3)]
    products = [cache.get([weight]) for weight in weights]
    assert [product.packed_bytes > 0 for product in products] == [True, True, False]
    assert cache.get([weights[0]]) is products[0]
    del products[0]
    assert cache.packed_bytes == 16 * 16 * 4


def test_few_shapes_are_met() -> None:
    sizes = [bucket(count) for count in range(1, 5000)]
    assert all(count <= size <= 1.25 * count + 7 for count, size in zip(range(1, 5000), sizes, strict=True))
    assert len(set(sizes)) < 60


def test_what_is_not_a_plain_linear_layer_is_not_read() -> None:
    assert read_linear(torch.nn.Linear(4, 4)) is not None
    assert read_linear(torch.nn.Embedding(4, 4)) is None
    assert read_linear(None) is None
    policy = Policy(model_of("llama"), ROLES, LoraSettings(use_dora=True))
    with policy.using("answer"):
        assert lean_forward(policy.using, "answer", max_packed_bytes=0) is None


def test_a_model_with_hooks_or_a_forward_of_its_own_is_not_read() -> None:
    """As those are whose weights are spread over devices."""
    for spoil in (
        lambda model: model.model.norm.register_forward_pre_hook(lambda *_: None),
        lambda model: setattr(model.lm_head, "forward", model.lm_head.forward),
    ):
        model = model_of("llama")
        attention.prepare(model)
        assert read_decoder(model) is not None
        spoil(model)
        assert read_decoder(model) is None


def test_a_budget_for_one_role_alone_changes_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """One role's weights are transposed and add in place, the other's are as they are."""
    monkeypatch.setattr(products_module, "_on_intel", lambda: True)
    torch.manual_seed(0)
    first, second = (Weights(torch.randn(64, 48), torch.randn(64)) for _ in range(2))
    cache = ProductCache(first.weight.nbytes)
    products = [cache.get([weights]) for weights in (first, second)]
    assert [product.adds for product in products] == [True, False]
    x_NC, onto_NO = torch.randn(10, 48), torch.randn(10, 64)
    found_NO = onto_NO.clone()
    for product, begin, end in ((products[0], 0, 6), (products[1], 6, 10)):
        product.write(x_NC, begin, end, found_NO, add=True)
    for weights, begin, end in ((first, 0, 6), (second, 6, 10)):
        own_NO = torch.nn.functional.linear(x_NC[begin:end], weights.weight, weights.bias)
        torch.testing.assert_close(found_NO[begin:end], onto_NO[begin:end] + own_NO)
