"""Do roles share one base without touching one another, and do others read what is saved?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from flow_dpo.core.errors import ModelError
from flow_dpo.learner.policy import LoraSettings, Policy
from tests.learner.test_logprobs import stir
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import KINDS, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])


@torch.no_grad()
def logits(policy: Policy, adapter: str | None) -> torch.Tensor:
    with policy.using(adapter):
        return policy.model(input_ids=IDS).logits


def requiring(policy: Policy) -> set[str]:
    """Which adapters ask for gradients, all of their parameters or none."""
    states = {a: {p.requires_grad for p in policy.parameters(a)} for a in policy.adapters}
    assert all(len(s) == 1 for s in states.values()), states
    assert not any(p.requires_grad for n, p in policy.model.named_parameters() if ".lora_" not in n)
    return {a for a, s in states.items() if s == {True}}


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_adapter_the_base_speaks(kind: str) -> None:
    base = tiny_model(kind)(input_ids=IDS).logits.detach()
    policy = Policy(tiny_model(kind), ROLES)
    assert torch.equal(logits(policy, None), base)
    assert torch.equal(logits(policy, "answer"), base), "a new adapter adds nothing"
    stir(policy)
    assert torch.equal(logits(policy, None), base)
    spoken = [logits(policy, role) for role in ROLES]
    assert not torch.allclose(spoken[0], base)
    assert not torch.allclose(spoken[0], spoken[1])


def test_gradients_are_asked_for_by_the_training_role_alone() -> None:
    policy = Policy(tiny_model("llama"), ROLES)
    assert requiring(policy) == set()
    for role in ROLES:
        with policy.using(role):
            assert requiring(policy) == set()
            with policy.using(role, training=True):
                assert requiring(policy) == {role}
                with policy.using(None):
                    assert requiring(policy) == set()
                assert requiring(policy) == {role}
        assert requiring(policy) == set()
    with policy.using("stop", training=True):
        pass
    assert requiring(policy) == set(), "training is never left on"
    policy.snapshot("answer")
    assert requiring(policy) == set(), "PEFT makes a new adapter trainable"


def test_contexts_nest() -> None:
    policy = stir(Policy(tiny_model("llama"), ROLES))
    answer, stop, base = (logits(policy, a) for a in ("answer", "stop", None))
    with torch.no_grad(), policy.using("answer"):
        with policy.using("stop"):
            assert torch.equal(policy.model(input_ids=IDS).logits, stop)
            with policy.using(None):
                assert torch.equal(policy.model(input_ids=IDS).logits, base)
            assert torch.equal(policy.model(input_ids=IDS).logits, stop)
        assert torch.equal(policy.model(input_ids=IDS).logits, answer)
        with pytest.raises(ZeroDivisionError), policy.using("stop"):
            raise ZeroDivisionError
        assert torch.equal(policy.model(input_ids=IDS).logits, answer)


def test_parameter_lists_are_disjoint_complete_and_of_one_order() -> None:
    policy = Policy(tiny_model("qwen3"), ROLES)
    policy.snapshot("stop")
    lists = {a: [id(p) for p in policy.parameters(a)] for a in policy.adapters}
    assert len({i for ids in lists.values() for i in ids}) == 3 * len(lists["answer"]) == 3 * 2 * 14
    everything = {id(p) for n, p in policy.model.named_parameters() if ".lora_" in n}
    assert everything == {i for ids in lists.values() for i in ids}
    assert policy.names("answer") == policy.names("stop") == policy.names("reference_stop")
    assert [p.shape for p in policy.parameters("answer")] == [p.shape for p in policy.parameters("stop")]


def test_first_weights_come_from_the_seed_and_nothing_else_is_drawn() -> None:
    before = torch.random.get_rng_state()
    one = Policy(tiny_model("llama"), ROLES, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = (Policy(tiny_model("llama"), ROLES, seed=seed) for seed in (1, 2))
    for role in ROLES:
        first, second, third = (torch.cat([w.flatten() for w in p.weights(role)]) for p in (one, again, other))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
    answer, stop = (torch.cat([w.flatten() for w in one.weights(role)]) for role in ROLES)
    assert not torch.equal(answer, stop)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # PEFT asks transformers by an old name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_is_anybodys(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("qwen2").to(dtype)
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    policy = stir(Policy(model, ROLES, LoraSettings(lora_r=4, lora_alpha=12)))
    policy.save_adapter("stop", tmp_path / "stop")
    assert sorted(f.name for f in (tmp_path / "stop").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    names = list(load_file(tmp_path / "stop" / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert not any("stop" in name or "answer" in name for name in names)
    config = json.loads((tmp_path / "stop" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 12, str(tmp_path / "base"))
    assert config["target_modules"] == sorted(config["target_modules"])
    theirs = PeftModel.from_pretrained(
        tiny_model("qwen2").to(dtype), str(tmp_path / "stop"), autocast_adapter_dtype=False
    )
    torch.testing.assert_close(theirs(input_ids=IDS).logits, logits(policy, "stop"), rtol=1e-5, atol=1e-5)

    fresh = Policy(tiny_model("qwen2").to(dtype), ROLES, LoraSettings(lora_r=4, lora_alpha=12), seed=3)
    fresh.load_adapter("answer", tmp_path / "stop")
    assert torch.equal(logits(fresh, "answer"), logits(policy, "stop"))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    policy = stir(Policy(tiny_model("llama"), ROLES))
    for folder in ("a", "b"):
        policy.save_adapter("answer", tmp_path / folder)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_adapter_of_another_shape_or_model_is_refused(tmp_path: Path) -> None:
    Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4)).save_adapter("answer", tmp_path / "r4")
    with pytest.raises(ModelError, match="r = 4, this policy has 8"):
        Policy(tiny_model("llama"), ROLES).load_adapter("answer", tmp_path / "r4")
    Policy(tiny_model("gemma3"), ROLES).save_adapter("answer", tmp_path / "gemma")
    with pytest.raises(ModelError, match="for another model"):
        Policy(tiny_model("llama"), ROLES).load_adapter("answer", tmp_path / "gemma")


@pytest.mark.parametrize("content", [None, "{", "{}", '{"peft_type": "NEW"}', '{"peft_type": "LORA", "r": 8}'])
def test_a_folder_that_peft_cannot_read(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ModelError, match="expected an adapter in PEFT's layout"):
        Policy(tiny_model("llama"), ROLES).load_adapter("answer", tmp_path)


@pytest.mark.parametrize("targets", [("q_proj", "w_proj"), "w_proj"])
def test_a_target_that_does_not_exist(targets: str | tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"no linear layer .*w_proj") as caught:
        Policy(tiny_model("llama"), ROLES, LoraSettings(lora_target_modules=targets))
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(caught.value)


@pytest.mark.parametrize("roles", [(), ("answer", "answer"), ("a.b",), ("layers",), ("reference_answer",)])
def test_role_names_that_would_be_mistaken(roles: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match="role"):
        Policy(tiny_model("llama"), roles)


def test_an_unknown_adapter_is_named_with_the_known_ones() -> None:
    policy = Policy(tiny_model("llama"), ROLES)
    with pytest.raises(ModelError, match=r"'planner'.*\['answer', 'stop'\]"), policy.using("planner"):
        pass


def test_snapshots_are_frozen_and_move_when_told() -> None:
    policy = stir(Policy(tiny_model("llama"), ROLES), seed=1)
    name = policy.snapshot("answer")
    first = logits(policy, "answer")
    assert torch.equal(logits(policy, name), first)
    before = [w.clone() for w in policy.weights("answer")]
    stir_only = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in policy.weights("answer"):
            weight += torch.randn(weight.shape, generator=stir_only) * 0.1
    assert torch.equal(logits(policy, name), first)
    policy.move_snapshot("answer", 0.25)
    for old, new, frozen in zip(before, policy.weights("answer"), policy.weights(name), strict=True):
        torch.testing.assert_close(frozen, 0.75 * old + 0.25 * new)
    policy.move_snapshot("answer", 1.0)
    assert torch.equal(logits(policy, name), logits(policy, "answer"))


def test_half_precision_adapters_have_float32_weights_behind_them() -> None:
    policy = Policy(tiny_model("llama").to(torch.bfloat16), ROLES)
    parameters, weights = policy.parameters("answer"), policy.weights("answer")
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert {w.dtype for w in weights} == {torch.float32}
    with torch.no_grad():
        for _ in range(64):
            weights[0] += 1e-5  # each far below what bfloat16 resolves at 0.1
    policy.publish("answer")
    torch.testing.assert_close(parameters[0].float(), weights[0], rtol=2**-8, atol=1e-6)
    full = Policy(tiny_model("llama"), ROLES)
    assert all(p is w for p, w in zip(full.parameters("answer"), full.weights("answer"), strict=True))


def test_the_bases_own_dropout_stays_off() -> None:
    model = tiny_model("llama")
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    policy = stir(Policy(model, ROLES))
    quiet = logits(policy, "answer")
    with policy.using("answer", training=True):
        assert torch.equal(policy.model(input_ids=IDS).logits.detach(), quiet)


def test_dropout_is_on_while_training_only_and_drawn_from_its_seed() -> None:
    policy = stir(Policy(tiny_model("llama"), ROLES, LoraSettings(lora_dropout=0.5)))
    quiet = logits(policy, "answer")
    state = torch.random.get_rng_state()

    def noisy(seed: int) -> torch.Tensor:
        with policy.dropout_from(seed), policy.using("answer", training=True):
            return policy.model(input_ids=IDS).logits.detach()

    assert torch.equal(noisy(1), noisy(1))
    assert not torch.equal(noisy(1), noisy(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(logits(policy, "answer"), quiet)
