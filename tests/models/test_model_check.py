"""Does the check see what is wrong where it is hard to see, and leave the model as it was?"""

from __future__ import annotations

import warnings
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import BloomConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, MambaConfig

from flow_dpo.core.errors import ModelError
from flow_dpo.core.types import Request, Sampling
from flow_dpo.engines.factory import open_base, open_engine
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.local.flat_batch import FlatBatch
from flow_dpo.engines.model_check import Subject, choose_engine
from flow_dpo.engines.plain import PlainEngine
from flow_dpo.engines.settings import LocalSettings, PlainSettings
from flow_dpo.learner.check import choose_way
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.models import load, probes
from flow_dpo.models.facts import context_tokens, named_lengths
from flow_dpo.models.own_forward import Case, OwnForward, stirred
from flow_dpo.models.reduced import WINDOW, reduced
from flow_dpo.models.tree_attention import PathLayout
from tests.support.model_families import build
from tests.support.tiny_models import tiny_model

ROLES = ("answer", "stop")


def policy_of(name: str, dtype: torch.dtype = torch.float32, **fields: Any) -> Policy:
    return Policy(build(name, dtype=dtype, **fields), ROLES, LoraSettings(lora_r=4))


def engine_of(policy: Policy, settings: Any = None) -> Any:
    """The engine that a run would get."""
    loaded = cast(Any, SimpleNamespace(model=policy.model, context_tokens=400, end_ids=frozenset(), num_tokens=None))
    with open_engine(settings or LocalSettings(), loaded, num_roles=2) as access:
        return access.build(policy, cast(Any, None))


def without_windows(monkeypatch: pytest.MonkeyPatch, layout: Any) -> None:
    """A fault that no prompt shorter than the window shows."""
    attend = layout.attend
    monkeypatch.setattr(
        layout, "attend", lambda self, *tensors, **words: attend(self, *tensors, **{**words, "window": None})
    )


def test_a_long_window_is_passed_by_the_reduced_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = policy_of("mistral", sliding_window=4096)
        assert isinstance(engine_of(policy), LocalEngine)
        assert choose_way(policy, packed=True) == (True, False)
    without_windows(monkeypatch, FlatBatch)
    without_windows(monkeypatch, PathLayout)
    with pytest.warns(UserWarning, match=r"sampled by the plain engine, .* local engine is not correct .* differ by"):
        assert isinstance(engine_of(policy), PlainEngine)
    with pytest.warns(UserWarning, match=r"prefixes are not shared .* nats off the model's own forward"):
        assert choose_way(policy, packed=True) == (False, False)


def test_chunks_longer_than_any_probe_are_seen() -> None:
    policy = policy_of("llama4_text", attention_chunk_size=8192)
    with pytest.warns(UserWarning, match="sampled by the plain engine") as caught:
        assert isinstance(engine_of(policy), PlainEngine)
    assert len(caught) == 1, "said once"
    with pytest.warns(UserWarning, match="not shared"):
        assert choose_way(policy, packed=True) == (False, False)


def test_what_cannot_be_tried_is_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Any) -> Any:
        raise ValueError("a size that does not fit")

    monkeypatch.setattr(probes, "reduced", refuse)
    policy = policy_of("mistral", sliding_window=4096)
    with pytest.warns(UserWarning, match="past sliding_window 4096: ValueError: a size that does not fit"):
        engine = engine_of(policy)
    assert isinstance(engine, PlainEngine)
    assert not engine._cached
    with pytest.warns(UserWarning, match="past sliding_window 4096"):
        assert choose_way(policy, packed=True) == (False, False)


def test_a_model_that_reads_both_ways_is_refused() -> None:
    policy = policy_of("bert", is_decoder=False)
    with pytest.raises(ModelError, match=r"BertLMHeadModel cannot be sampled from token by token: the local engine: "):
        engine_of(policy)
    with pytest.raises(ModelError, match=r"cannot be trained here: .*not causal"):
        choose_way(policy, packed=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_that_are_scaled_in_an_unknown_way_come_from_the_models_own_head(dtype: torch.dtype) -> None:
    policy = policy_of("falcon_h1", dtype, lm_head_multiplier=0.05)
    with pytest.warns(UserWarning, match="prefixes are not shared"):
        assert choose_way(policy, packed=True) == (False, True)


def test_another_roles_adapter_is_seen() -> None:
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4))
    swapped = dict(zip(ROLES, reversed(ROLES), strict=True))

    def wrong(subject: Subject) -> Any:
        return PlainEngine(
            subject.model, role_model=lambda role: policy.using(swapped[role]), end_ids=(), context_tokens=400
        )  # fmt: skip

    def right(subject: Subject) -> Any:
        return PlainEngine(subject.model, role_model=subject.using, end_ids=(), context_tokens=400)

    with pytest.warns(UserWarning, match="a swapped one is not correct"):
        name = choose_engine(
            Subject.of(policy, context_tokens=400), {"a swapped one": (wrong, "cached"), "another": (right, "cached")}
        )
    assert name == "another"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_check_leaves_everything_as_it_was(dtype: torch.dtype) -> None:
    policy = policy_of("qwen2", dtype)
    ids = torch.arange(5, 30)[None]
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    with torch.no_grad(), policy.using("stop"):
        logits = policy.model(input_ids=ids).logits
    random_state = torch.get_rng_state()
    engine_of(policy)
    choose_way(policy, packed=True)
    assert torch.equal(random_state, torch.get_rng_state())
    after = policy.model.state_dict()
    assert before.keys() == after.keys()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )
    with torch.no_grad(), policy.using("stop"):
        assert torch.equal(policy.model(input_ids=ids).logits, logits)


@pytest.mark.parametrize(
    ("dtype", "large", "size"),
    [(torch.float32, False, 0.1), (torch.float32, True, 0.02), (torch.bfloat16, False, 0.02)],
)
def test_zeros_are_stirred_and_come_back(dtype: torch.dtype, large: bool, size: float) -> None:
    """Gently in half precision and in a large model, where rounding would drown what is looked for."""
    trained, fresh, model = torch.ones(3), torch.zeros(40, 20), build("llama", dtype=dtype)
    if large:
        vars(model)["num_parameters"] = lambda: (1 << 24) + 1
    with stirred([trained, fresh], 1, model):
        assert fresh.abs().min() > 0
        assert float(fresh.std()) == pytest.approx(size, rel=0.1)
        assert torch.equal(trained, torch.ones(3))
    assert torch.equal(fresh, torch.zeros(40, 20))


def test_the_own_forward_tells_a_fault_from_rounding() -> None:
    model = build("llama", dtype=torch.bfloat16)
    own = OwnForward(model, [Case((5, 6, 7, 8), (9, 10, 11, 12, 13, 14))])
    right = own._own.clone()
    assert own.complaint([right + 0.01 * torch.randn(6, generator=torch.Generator().manual_seed(0))]) == ""
    assert "0.55 nats off" in own.complaint([(own._exact if own._exact is not None else right) + 0.55])
    assert "inf nats off" in own.complaint([torch.full((6,), torch.nan)])


@pytest.mark.parametrize(("settings", "kind"), [(LocalSettings(), LocalEngine), (PlainSettings(), PlainEngine)])
def test_families_that_are_right_get_the_engine_that_was_asked_for(settings: Any, kind: type) -> None:
    assert isinstance(engine_of(policy_of("llama"), settings), kind)


def test_the_judges_engine_is_checked_too() -> None:
    loaded = cast(Any, SimpleNamespace(model=build("gemma2"), context_tokens=400, end_ids=frozenset(), num_tokens=None))
    base = open_base(LocalSettings(), loaded)
    with pytest.warns(UserWarning, match="Gemma2ForCausalLM is sampled by the plain engine"):
        engine = base.__enter__()
    with closing(engine):
        assert isinstance(engine, PlainEngine)
        [done] = engine.sample([Request(role="any", prompt_ids=(5, 6), max_tokens=3)], Sampling(), seeds=[1])
        assert len(done.token_ids) == 3


def test_a_reduced_config_keeps_every_kind_of_layer_and_what_shapes_logits() -> None:
    config = Gemma3TextConfig(num_hidden_layers=26, final_logit_softcapping=30.0)
    small = reduced(config)
    assert small.layer_types == ["sliding_attention"] * 2 + ["full_attention"] * 2
    assert (small.sliding_window, small.num_hidden_layers, small.hidden_size) == (WINDOW, 4, 64)
    assert small.final_logit_softcapping == 30.0
    assert config.num_hidden_layers == 26


def test_lengths_and_contexts_that_configs_name() -> None:
    assert named_lengths(LlamaConfig()) == {}
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama = LlamaConfig(rope_parameters={**rope, "original_max_position_embeddings": 8192})
    assert named_lengths(llama) == {"rope_parameters.original_max_position_embeddings": 8192}
    assert named_lengths(Gemma3TextConfig(sliding_window=512))["sliding_window"] == 512
    assert (context_tokens(GPT2Config()), context_tokens(BloomConfig())) == (1024, None)


def test_a_model_that_names_no_longest_context_takes_its_tokenizers() -> None:
    limited, unlimited = (cast(Any, SimpleNamespace(model_max_length=n)) for n in (4096, int(1e30)))
    assert load.context_window(BloomConfig(), limited) == 4096
    with pytest.warns(UserWarning, match=r"states no maximum context \(mamba\): .* limited to 2048 tokens"):
        assert load.context_window(MambaConfig(), unlimited) == 2048
