"""Are rsLoRA, DoRA and modules that learn whole what PEFT makes of them, in learner, engine and files?

The oracle is PEFT alone: a fresh copy of the base on which `PeftModel.from_pretrained` loads what was saved.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError, ModelError
from flow_dpo.core.types import Completion, Request, Sampling
from flow_dpo.engines.factory import check_readable, role_model_of
from flow_dpo.engines.local.engine import LocalEngine
from flow_dpo.engines.merged_lora import MergedModels, can_merge, save_merged
from flow_dpo.engines.model_check import Subject, choose_engine
from flow_dpo.engines.settings import LocalSettings
from flow_dpo.learner.check import choose_way
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.logprobs import PackedLogprobs, PlainLogprobs
from flow_dpo.learner.policy import Policy
from flow_dpo.learner.settings import LearnerSettings, LoraSettings
from tests.support.packed_builders import ROLES, pairs_of_tree
from tests.support.tiny_models import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
BASE = LoraSettings(lora_r=4, lora_alpha=12)
SETTINGS = {
    "rslora": replace(BASE, use_rslora=True),
    "dora": replace(BASE, use_dora=True),
    "dora_head": replace(BASE, use_dora=True, lora_target_modules=("q_proj", "lm_head")),
    "whole": replace(BASE, modules_to_save=("embed_tokens", "lm_head", "model.norm")),
    "all": replace(BASE, use_rslora=True, use_dora=True, modules_to_save=("lm_head",)),
}
CASES = [
    ("llama", "rslora"), ("phi3", "dora"), ("gemma3", "dora"),
    ("llama", "dora_head"), ("llama", "whole"), ("gemma3", "whole"), ("qwen3", "all"),
]  # fmt: skip
kinds = pytest.mark.parametrize(("family", "kind"), CASES)


def moved(family: str, kind: str, seed: int = 0) -> Policy:
    """A policy whose adapters have left their first values: factors at random, magnitudes and modules a little."""
    policy = Policy(tiny_model(family), ROLES, SETTINGS[kind])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for role in ROLES:
            for name, weight in zip(policy.names(role), policy.weights(role), strict=True):
                noise = torch.randn(weight.shape, generator=generator) * 0.1
                weight.copy_(noise if ".lora_A" in name or ".lora_B" in name else weight * (1 + noise))
            policy.publish(role)
    return policy


def theirs(policy: Policy, family: str, role: str, folder: Path) -> Any:
    """The role's adapter, saved and loaded by PEFT alone."""
    policy.save_adapter(role, folder)
    return PeftModel.from_pretrained(tiny_model(family), str(folder)).eval()


@torch.no_grad()
def own_logprobs(model: Any, request: Request, sampled: Completion) -> torch.Tensor:
    ids = torch.tensor([request.prompt_ids + sampled.token_ids[:-1]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt_ids) - 1 :]
    if request.choices:
        return logits[:, list(request.choices)].log_softmax(-1)[0, [request.choices.index(sampled.token_ids[0])]]
    return logits.log_softmax(-1)[range(len(sampled.token_ids)), list(sampled.token_ids)]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*tie_word_embeddings")
@kinds
def test_log_probabilities_are_those_of_what_was_saved_by_peft_alone(family: str, kind: str, tmp_path: Path) -> None:
    policy = moved(family, kind)
    pairs = pairs_of_tree(random.Random(3), "p", num_nodes=2)
    for role in ROLES:
        oracle = theirs(policy, family, role, tmp_path / role)
        prompted = [(pair.request, one) for pair in pairs if pair.request.role == role for one in pair.completions]
        expected = [own_logprobs(oracle, *each) for each in prompted]
        with torch.no_grad(), policy.using(role) as model:
            for way in (PackedLogprobs, PlainLogprobs):
                for found, right in zip(way(model, prompted)(), expected, strict=True):
                    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
        base = tiny_model(family)
        with torch.no_grad(), policy.using(None) as model:
            found = PackedLogprobs(model, prompted)()
            torch.testing.assert_close(found[0], own_logprobs(base, *prompted[0]), rtol=1e-4, atol=1e-4)
            assert not torch.allclose(found[0], expected[0], atol=1e-2)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*tie_word_embeddings")
@kinds
def test_the_engine_samples_from_what_was_saved(family: str, kind: str, tmp_path: Path) -> None:
    policy = moved(family, kind)
    oracles = {role: theirs(policy, family, role, tmp_path / role) for role in ROLES}
    assert can_merge(policy) == (kind not in ("whole", "all"))
    for merge in ("auto", "never"):
        settings = LocalSettings(merge_adapters=merge)
        engine = LocalEngine(
            policy.model, role_model=role_model_of(policy, settings), end_ids=(), context_tokens=512, settings=settings
        )
        requests = [Request(role=role, prompt_ids=tuple(range(5, 20)), max_tokens=5) for role in ROLES]
        requests.append(Request(role="stop", prompt_ids=(5, 6, 7, 8), choices=(9, 30)))
        for request, one in zip(requests, engine.sample(requests, Sampling(), seeds=[1, 2, 3]), strict=True):
            right = own_logprobs(oracles[request.role], request, one)
            torch.testing.assert_close(torch.tensor(one.logprobs), right, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_a_merged_model_on_disk_is_the_same(kind: str, tmp_path: Path) -> None:
    policy = moved("qwen2", kind)
    oracle = theirs(policy, "qwen2", "answer", tmp_path / "adapter")
    merged = type(tiny_model("qwen2")).from_pretrained(save_merged(policy, "answer", tmp_path / "merged"))
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, oracle(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "kind"), [case for case in CASES if case[1] != "dora_head"])
def test_updates_move_every_kind_of_weight_of_one_role_and_resume(family: str, kind: str, tmp_path: Path) -> None:
    def learner() -> Learner:
        policy = Policy(tiny_model(family), ROLES, SETTINGS[kind], seed=4)
        return Learner(policy, LearnerSettings(learning_rate=1e-2, examples_per_update=0))

    pairs = [pair for pair in pairs_of_tree(random.Random(3), "p", num_nodes=3) if pair.request.role == "answer"]
    one = learner()
    before = {role: [weight.clone() for weight in one.policy.weights(role)] for role in ROLES}
    first = one.update(Dpo(), pairs)
    # At the start policy and reference are equal, whatever kind of adapter it is.
    weight = sum(pair.weight for pair in pairs) / len(pairs)
    assert first["learn/answer/loss"] == pytest.approx(weight * math.log(2), abs=1e-5)
    one.save(tmp_path / "saved")
    losses = [one.update(Dpo(), pairs)["learn/answer/loss"] for _ in range(2)]
    assert losses[-1] < first["learn/answer/loss"]
    still = [
        name
        for name, old, new in zip(
            one.policy.names("answer"), before["answer"], one.policy.weights("answer"), strict=True
        )
        if torch.equal(old, new)
    ]
    assert not still
    assert all(torch.equal(old, new) for old, new in zip(before["stop"], one.policy.weights("stop"), strict=True))
    again = learner()
    again.load(tmp_path / "saved")
    assert [again.update(Dpo(), pairs)["learn/answer/loss"] for _ in range(2)] == losses
    for left, right in zip(one.policy.weights("answer"), again.policy.weights("answer"), strict=True):
        assert torch.equal(left, right)


def test_what_is_loaded_must_be_of_the_same_kind(tmp_path: Path) -> None:
    Policy(tiny_model("qwen3", vocab_size=64), ROLES, SETTINGS["all"]).save_adapter("answer", tmp_path / "small")
    with pytest.raises(ModelError, match=r"1 names or shapes differ, such as base_model\.model\.lm_head\.weight"):
        Policy(tiny_model("qwen3"), ROLES, SETTINGS["all"]).load_adapter("answer", tmp_path / "small")
    for kind in ("rslora", "dora", "whole"):
        moved("qwen2", kind).save_adapter("answer", tmp_path / kind)
        with pytest.raises(
            ModelError,
            match=r"was made with use_rslora|was made with use_dora|modules_to_save: \d+ names or shapes differ",
        ):
            Policy(tiny_model("qwen2"), ROLES, BASE).load_adapter("answer", tmp_path / kind)
        fresh = Policy(tiny_model("qwen2"), ROLES, SETTINGS[kind])
        fresh.load_adapter("stop", tmp_path / kind)
        for left, right in zip(fresh.weights("stop"), moved("qwen2", kind).weights("answer"), strict=True):
            assert torch.equal(left, right)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_an_adapter_that_peft_made_may_name_its_modules_as_it_likes(tmp_path: Path) -> None:
    policy = Policy(tiny_model("qwen3"), ROLES, replace(BASE, modules_to_save=("lm_head", "embed_tokens")))
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=list(policy.targets.modules), modules_to_save=["embed_tokens", "lm_head"]
    )
    made = get_peft_model(tiny_model("qwen3", seed=1), config)
    made.save_pretrained(str(tmp_path))
    policy.load_adapter("answer", tmp_path)
    with torch.no_grad(), policy.using("answer"):
        embedding = policy.model.get_input_embeddings()(IDS)
        assert torch.equal(embedding, made.get_input_embeddings()(IDS))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*lora_bias", "ignore:.*LoRA tensor")
def test_an_adapter_that_no_setting_describes_is_refused(more: dict[str, Any], named: str, tmp_path: Path) -> None:
    policy = Policy(tiny_model("qwen3"), ROLES, BASE)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=list(policy.targets.modules), **more)
    get_peft_model(tiny_model("qwen3"), config).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match=named):
        policy.load_adapter("answer", tmp_path)


def test_what_vllm_cannot_load_and_what_cannot_be_merged_is_refused() -> None:
    for kind in ("dora", "whole"):
        with pytest.raises(ConfigError, match="vLLM does not support"):
            check_readable(Policy(tiny_model("qwen2"), ROLES, SETTINGS[kind]))
    check_readable(Policy(tiny_model("qwen2"), ROLES, SETTINGS["rslora"]))
    with pytest.raises(ModelError, match="modules_to_save"):
        MergedModels(Policy(tiny_model("qwen2"), ROLES, SETTINGS["whole"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (replace(BASE, modules_to_save=("head",)), "no module 'head'"),
        (
            replace(BASE, modules_to_save=("q_proj",), lora_target_modules=("q_proj",)),
            "would both have an adapter and train in full",
        ),
    ],
)
def test_modules_that_cannot_learn_whole(settings: LoraSettings, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Policy(tiny_model("qwen2"), ROLES, settings)


def test_what_learns_whole_has_no_adapter_beside() -> None:
    policy = Policy(tiny_model("qwen2"), ROLES, replace(BASE, modules_to_save=("q_proj",)))
    assert not any("q_proj.lora_" in name for name in policy.names("answer"))
    assert sum("q_proj.weight" in name for name in policy.names("answer")) == 2


@kinds
def test_a_snapshot_is_the_adapter_as_it_was(family: str, kind: str) -> None:
    policy = moved(family, kind)
    name = policy.snapshot("answer")

    @torch.no_grad()
    def logits(adapter: str) -> torch.Tensor:
        with policy.using(adapter):
            return policy.model(input_ids=IDS).logits

    before = logits("answer")
    assert torch.equal(logits(name), before)
    with torch.no_grad():
        for weight in policy.weights("answer"):
            weight *= 1.1
    policy.publish("answer")
    assert torch.equal(logits(name), before)
    assert not torch.allclose(logits("answer"), before, atol=1e-3)


@pytest.mark.parametrize("kind", ["dora", "whole", "all"])
def test_engine_and_learner_pass_the_check_in_half_precision(kind: str) -> None:
    policy = Policy(tiny_model("qwen3").to(torch.bfloat16), ROLES, SETTINGS[kind])
    subject = Subject.of(policy, context_tokens=512)

    def local(subject: Subject) -> LocalEngine:
        return LocalEngine(subject.model, role_model=subject.using, end_ids=(), context_tokens=subject.context_tokens)

    assert choose_engine(subject, {"the local engine": (local, "layout")}) == "the local engine"
    assert choose_way(policy, packed=True) == (True, False)
