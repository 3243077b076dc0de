"""Do merged weights say the same as the adapters beside them, and are they anybody's?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flow_dpo.core.errors import ModelError
from flow_dpo.engines.merged_lora import MergedModels, can_merge, save_merged
from flow_dpo.learner.policy import LoraSettings, Policy
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import KINDS, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])


def move(policy: Policy, role: str, strength: float) -> None:
    drawn = torch.Generator().manual_seed(len(role))
    with torch.no_grad():
        for weight in policy.weights(role):
            weight.add_(torch.randn(weight.shape, generator=drawn) * strength)
    policy.publish(role)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_twin_says_the_same(kind: str) -> None:
    """Every role's, after every change of its adapter, and the model itself stays as it was."""
    model = tiny_model(kind)
    with torch.no_grad():
        base = model(input_ids=IDS).logits
    policy = Policy(model, ROLES, LoraSettings(lora_r=4, lora_alpha=12), seed=3)
    merged = MergedModels(policy)
    for strength in (0.3, 0.1):
        for role in ROLES:
            move(policy, role, strength)
        for role in ROLES:
            with policy.using(role), torch.no_grad():
                expected = policy.model(input_ids=IDS).logits
            with merged.using(role) as twin, torch.inference_mode():
                assert not [name for name, _ in twin.named_modules() if "lora" in name]
                found = twin(input_ids=IDS).logits
            assert not torch.allclose(expected, base, atol=1e-2)
            torch.testing.assert_close(found, expected, rtol=5e-4, atol=5e-4)
    with policy.using(None), torch.no_grad():
        assert torch.equal(policy.model(input_ids=IDS).logits, base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-4), (torch.bfloat16, 0.25)])
def test_a_merged_model_is_anybodys(kind: str, dtype: torch.dtype, within: float, tmp_path: Path) -> None:
    policy = Policy(tiny_model(kind).to(dtype), ROLES, LoraSettings(lora_r=4, lora_alpha=12), seed=3)
    for role in ROLES:
        move(policy, role, 0.1)
    save_merged(policy, "stop", tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype)
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name or "base_layer" in name]
    with policy.using("stop"), torch.no_grad():
        expected = policy.model(input_ids=IDS).logits.log_softmax(-1)
    with torch.no_grad():
        found = loaded(input_ids=IDS).logits.log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=within)


def test_a_twin_is_merged_anew_only_when_its_adapter_moved() -> None:
    policy = Policy(tiny_model("llama"), ROLES)
    move(policy, "answer", 0.1)
    merged = MergedModels(policy)

    def weights() -> list[torch.Tensor]:
        with merged.using("answer") as twin:
            return [p for name, p in twin.named_parameters() if name.endswith("q_proj.weight")]

    first = weights()
    move(policy, "stop", 0.1)
    assert all(a is b for a, b in zip(first, weights(), strict=True))
    move(policy, "answer", 0.1)
    assert not any(a is b for a, b in zip(first, weights(), strict=True))
    # What no adapter changes is shared, not copied.
    with merged.using("answer") as twin:
        assert twin.get_input_embeddings().weight is policy.model.get_input_embeddings().weight


def test_half_precision_is_not_merged() -> None:
    policy = Policy(tiny_model("llama").to(torch.bfloat16), ROLES)
    assert not can_merge(policy)
    with pytest.raises(ModelError, match="in float32"):
        MergedModels(policy)
    assert can_merge(Policy(tiny_model("llama"), ROLES))
    assert not can_merge(Policy(tiny_model("llama"), ROLES), within=1000)
