"""Are products in 8-bit integers those of their formula, and does an engine with them tell how far it is off?"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from flow_dpo.cli.evaluate import evaluate
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Adapter, Request, Sampling
from flow_dpo.engines import int8_drift
from flow_dpo.engines.factory import AdapterStore, open_base, open_engine, role_model_of
from flow_dpo.engines.local import int8
from flow_dpo.engines.local.int8 import Int8Product
from flow_dpo.engines.local.products import ProductCache
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models.dense_decoder import Weights
from flow_dpo.models.drift_causes import own_logprobs
from flow_dpo.models.load import LoadedModel, load_model
from flow_dpo.models.settings import ModelSettings
from tests.learner.test_logprobs import stir

needs_vnni = pytest.mark.skipif(bool(int8.why_not()), reason=int8.why_not())
SETTINGS = LocalSettings(int8=True)


def wide_model() -> PreTrainedModel:
    """Of weights that are multiplied in integers: those of the MLP and the head."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=1024, hidden_size=128, intermediate_size=1100, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=256, pad_token_id=0, initializer_range=0.1, attention_bias=True, mlp_bias=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.1)
        return model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The wide model with the seed's tokenizer, loaded as any folder is."""
    folder = tmp_path_factory.mktemp("wide")
    seed = load_model(ModelSettings(model_name_or_path="seed"))
    seed.renderer.tokenizer.save_pretrained(folder)
    wide_model().save_pretrained(folder)
    return load_model(ModelSettings(model_name_or_path=str(folder)))


def by_formula(x_NC: torch.Tensor, layers: list[Weights]) -> torch.Tensor:
    """The product in whole numbers of 64 bits."""
    t_N1 = x_NC.abs().amax(1, keepdim=True).double() / 127
    q_NC = (x_NC.double() / t_N1).round().long()
    outs: list[torch.Tensor] = []
    for layer in layers:
        s_O1 = layer.weight.abs().amax(1, keepdim=True).double() / 127
        rows_OC = (layer.weight.double() / s_O1).round().long()
        found_NO = (q_NC @ rows_OC.T).double() * t_N1 * s_O1.T
        outs.append(found_NO if layer.bias is None else found_NO + layer.bias.double())
    return torch.cat(outs, 1)


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first = Weights(torch.randn(96, 200, dtype=dtype), torch.randn(96, dtype=dtype))
    layers = [first, Weights(torch.randn(40, 200, dtype=dtype), None)]
    layers[1].weight[3] = 0
    x_NC = torch.randn(37, 200, dtype=dtype)
    x_NC[5] *= 1e4  # a token of its own scale
    product = Int8Product(layers)
    found_NO = product(x_NC).double()
    expected_NO = by_formula(x_NC.float(), [Weights(w.weight.float(), w.bias) for w in layers])
    # A quotient that lies at a half is rounded up here and to the even one there: a step of one input and weight.
    step_NO = (x_NC.abs().amax(1, keepdim=True).double() / 127) * layers[0].weight.abs().max().double()
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-5
    assert ((found_NO - expected_NO).abs() <= step_NO + rounding * expected_NO.abs()).all()
    assert (found_NO - expected_NO).abs().median() < (0.5 if dtype == torch.bfloat16 else 0.01) * step_NO.median()
    # And near the plain product: a hundredth of its size.
    plain_NO = torch.cat([torch.nn.functional.linear(x_NC, w.weight, w.bias) for w in layers], 1).double()
    assert 1e-4 < float((found_NO - plain_NO).norm() / plain_NO.norm()) < 0.02


@needs_vnni
def test_a_token_does_not_depend_on_those_beside_it() -> None:
    torch.manual_seed(1)
    product = Int8Product([Weights(torch.randn(512, 300), None)])
    x_NC = torch.randn(64, 300) * torch.logspace(-4, 4, 64)[:, None]
    whole_NO = product(x_NC)
    for count in (1, 3, 17):
        assert torch.equal(product(x_NC[:count]), whole_NO[:count])
    into_NO = torch.ones(64, 512)
    product.write(x_NC, 8, 24, into_NO)
    assert torch.equal(into_NO[8:24], whole_NO[8:24])
    assert torch.equal(into_NO[24:], torch.ones(40, 512))
    product.write(x_NC, 8, 24, into_NO, add=True)
    assert torch.equal(into_NO[8:24], whole_NO[8:24] + whole_NO[8:24])


@needs_vnni
def test_what_is_not_finite_stays_so_and_zeros_stay_zeros() -> None:
    product = Int8Product([Weights(torch.randn(8, 16), None)])
    x_NC = torch.zeros(3, 16)
    x_NC[1, 4], x_NC[2, 4] = torch.nan, torch.inf
    found_NO = product(x_NC)
    assert torch.equal(found_NO[0], torch.zeros(8))
    assert not found_NO[1:].isfinite().any()


@needs_vnni
def test_small_weights_stay_as_they_are() -> None:
    cache = ProductCache(1 << 30, int8=True)
    small, large = Weights(torch.randn(128, 128), None), Weights(torch.randn(1024, 128), None)
    kinds = [type(cache.get([weights])).__name__ for weights in (small, large)]
    assert kinds == ["Product", "Int8Product"]
    assert type(ProductCache(1 << 30).get([large])).__name__ == "Product"


@needs_vnni
def test_an_engine_samples_with_them_and_tells_how_far_it_is(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [Request(role="model", prompt_ids=(5, 6, 7 + i), max_tokens=24) for i in range(8)]
    with caplog.at_level(logging.INFO), open_base(SETTINGS, loaded) as engine:
        assert "8-bit integers: log-probabilities of" in caplog.text
        assert engine.take_stats()["sampled_tokens"] == 0
        completions = engine.sample(requests, Sampling(), seeds=list(range(8)))
    own = [own_logprobs(loaded.model, r, c) for r, c in zip(requests, completions, strict=True)]
    away = torch.cat([o - torch.tensor(c.logprobs) for o, c in zip(own, completions, strict=True)]).abs()
    assert 1e-4 < float(away.mean()) < 0.1


@needs_vnni
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}])
@pytest.mark.parametrize("merge", ["auto", "always"])
def test_adapters_are_beside_the_integers_or_in_them(loaded: LoadedModel, lora: dict[str, Any], merge: Any) -> None:
    """What a run's engine records is near the role's own log-probabilities, before and after its adapters change."""
    settings = LocalSettings(int8=True, merge_adapters=merge)
    with open_engine(settings, loaded, num_roles=2) as access:
        policy = Policy(wide_model(), ("answer", "stop"), LoraSettings(lora_r=4, **lora))
        beside = merge == "auto" and not lora
        assert (role_model_of(policy, settings) == policy.using) == beside
        with contextlib.closing(access.build(policy, AdapterStore(policy, Path("unused")))) as engine:
            for seed in range(2):
                stir(policy)
                engine.refresh({role: Adapter(role=role, version=seed) for role in policy.roles})
                prompts = [(role, (5, 6, 7, 8 + i)) for role in policy.roles for i in range(4)]
                requests = [Request(role=role, prompt_ids=ids, max_tokens=12) for role, ids in prompts]
                completions = engine.sample(requests, Sampling(), seeds=list(range(8)))
                away: dict[bool, list[torch.Tensor]] = {True: [], False: []}
                for request, completion in zip(requests, completions, strict=True):
                    for role in policy.roles:
                        with policy.using(role) as model:
                            own = own_logprobs(model, request, completion)
                        away[role == request.role].append(own - torch.tensor(completion.logprobs))
                own, others = (float(torch.cat(each).abs().mean()) for each in away.values())
                assert 1e-5 < own < 0.15
                assert others > 2 * own, "another role's adapter does not give what was recorded"


@needs_vnni
def test_a_model_with_no_large_layer_is_refused() -> None:
    seed = load_model(ModelSettings(model_name_or_path="seed"))
    with (
        pytest.raises(ConfigError, match=r"at least 131,072 weights.*98,304 in the largest"),
        open_base(SETTINGS, seed),
    ):
        pass


@needs_vnni
def test_a_short_window_has_room_for_the_measurement(loaded: LoadedModel) -> None:
    with open_base(SETTINGS, replace(loaded, context_tokens=24)):
        pass


@needs_vnni
@pytest.mark.parametrize(("change", "reason"), [({"lean": False}, "dense model"), ({}, "too coarse")])
def test_what_it_cannot_sample_is_refused(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, change: dict[str, bool], reason: str
) -> None:
    monkeypatch.setattr(int8_drift, "MOST", 0.0)
    with pytest.raises(ConfigError, match=reason), open_base(LocalSettings(int8=True, **change), loaded):
        pass


def test_a_processor_without_them_is_refused(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    int8.why_not.cache_clear()
    with pytest.raises(ConfigError, match=r"processor.*int8.*VNNI"), open_base(SETTINGS, loaded):
        pass
    int8.why_not.cache_clear()
    with pytest.raises(ConfigError, match="the model is on a GPU"):
        int8_drift.refuse(torch.device("cuda"))


@needs_vnni
def test_an_evaluation_says_that_it_was_sampled_so(loaded: LoadedModel, tmp_path: Path) -> None:
    words = ["--model_name_or_path", str(loaded.model.name_or_path), "--dataset_name", "seed", "--max_problems", "2"]
    words += ["--mode", "single", "--preset", "seed"]
    for name, more in (("exact", []), ("int8", ["--engine.int8", "true"])):
        assert evaluate([*words, *more, "--output_dir", str(tmp_path / name)]) == 0
    found = [json.loads((tmp_path / name / "summary.json").read_text()).get("int8") for name in ("exact", "int8")]
    assert found == [None, True]
