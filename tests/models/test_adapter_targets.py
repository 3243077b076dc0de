"""Do adapters reach what is said, on every kind of model, and does anybody who reads them get the same?"""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ModelError
from flow_dpo.engines.merged_lora import MergedModels, save_merged
from flow_dpo.learner.gradients import Gradients
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import RowSettings
from flow_dpo.models.adapter_targets import find_targets
from tests.learner.test_logprobs import assert_same_gradient, stir
from tests.support.model_families import build, names
from tests.support.packed_builders import ROLES, pairs_of_tree
from tests.support.tiny_models import tiny_model

SAMPLE = {
    "bloom": 0.9,
    "ctrl": 0.8,  # modules that are called "0" and "2"
    "deepseek_v3": 0.8,  # names that PEFT takes for experts of an older layout
    "falcon": 0.8,  # a linear class of its own
    "falcon_h1": 0.7,  # "out_proj" of a Mamba block
    "gemma3": 0.4,  # a tower for images, whose layers are called like those of the text
    "gpt_oss": 0.9,  # experts with rows and columns exchanged
    "nemotron_h": 0.6,
    "qwen3_moe": 0.8,
}
"""Families with something of their own, and the share that is reached at least."""
IDS_BT = torch.randint(3, 100, (2, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS_BT, use_cache=False).logits


def changed_share(model: PreTrainedModel, adapter: Path) -> float:
    """The share of weights that differ once PEFT has merged the adapter: counted without our targets."""
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    changed = [w.numel() for name, w in merged.named_parameters() if not torch.equal(w, before[name])]
    return sum(changed) / sum(w.numel() for w in before.values())


def check_family(name: str, folder: Path) -> float:
    """Roles, snapshots, switching, gradients, saving, others' reading and merging; the share that is reached."""
    base = logits(build(name))
    policy = Policy(build(name), ROLES, LoraSettings(lora_r=2))
    for adapter in (None, "answer"):
        with policy.using(adapter):
            torch.testing.assert_close(logits(policy.model), base, rtol=1e-5, atol=1e-5)
    frozen = policy.snapshot("answer")
    stir(policy)
    with policy.using("answer", training=True):
        found = policy.model(input_ids=IDS_BT, use_cache=False).logits
        mixture = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
        gradient = torch.autograd.grad((found * mixture).sum(), policy.parameters("answer"))
    assert all(piece.abs().sum() > 0 for piece in gradient)
    said = dict[str | None, torch.Tensor]()
    for adapter in (*ROLES, frozen, None):
        with policy.using(adapter), torch.inference_mode():
            said[adapter] = logits(policy.model)
    torch.testing.assert_close(said[None], base, rtol=1e-5, atol=1e-5)
    assert all((said[a] - said[b]).abs().max() > 1e-3 for a, b in (("answer", "stop"), (frozen, "answer")))
    policy.save_adapter("stop", folder)
    theirs = PeftModel.from_pretrained(build(name), str(folder), autocast_adapter_dtype=False)
    torch.testing.assert_close(logits(theirs.eval()), said["stop"], rtol=1e-4, atol=1e-4)  # pyright: ignore[reportArgumentType]
    with MergedModels(policy).using("stop") as twin:
        torch.testing.assert_close(logits(twin), said["stop"], rtol=1e-3, atol=1e-3)
    assert changed_share(build(name), folder) == pytest.approx(policy.targets.share)
    return policy.targets.share


@pytest.mark.filterwarnings("ignore")  # transformers and PEFT have much to say of families that few people use
@pytest.mark.parametrize("name", sorted(SAMPLE))
def test_adapters_reach_what_is_said(name: str, tmp_path: Path) -> None:
    assert check_family(name, tmp_path) >= SAMPLE[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", names())
def test_no_family_ends_in_an_error_of_pefts_own(name: str) -> None:
    try:
        model = build(name)
        logits(model)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ImportError) as error:
        pytest.skip(f"cannot be built tiny: {error}")
    for dropout in (0.0, 0.1):
        policy = Policy(build(name), ROLES, LoraSettings(lora_r=2, lora_dropout=dropout))
        assert 0 < policy.targets.share < 1
        assert policy.snapshot("answer")


def test_experts_are_reached_in_half_precision_too() -> None:
    policy = stir(Policy(build("qwen3_moe", dtype=torch.bfloat16), ROLES, LoraSettings(lora_r=2)))
    assert policy.targets.parameters == ("down_proj", "gate_up_proj")
    with policy.using("answer", training=True):
        found = policy.model(input_ids=IDS_BT, use_cache=False).logits
        gradient = torch.autograd.grad(found.float().square().sum(), policy.parameters("answer"))
    assert all(piece.abs().sum() > 0 for piece in gradient)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_experts_learn_the_same_with_shared_prefixes_and_checkpoints(name: str) -> None:
    made = [p for p in pairs_of_tree(random.Random(0), "p", num_nodes=3) if p.request.role == "answer"]
    found: list[list[torch.Tensor]] = []
    for rows in (RowSettings(), RowSettings(packed=False), RowSettings(gradient_checkpointing=True)):
        policy = stir(Policy(build(name), ROLES, LoraSettings(lora_r=2)))
        if rows.gradient_checkpointing:
            policy.checkpoint_activations()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="prefixes are not shared")  # attention sinks
            gradient = Gradients(policy, rows, dict.fromkeys(ROLES)).compute(Dpo(), "answer", made, 0)
        found.append(gradient.pieces)
    assert all(piece.abs().sum() > 0 for piece in found[0])
    for other in found[1:]:
        assert_same_gradient(other, found[0], tolerance=1e-4)


def test_a_run_is_told_what_learns_where_experts_have_no_adapter() -> None:
    with pytest.warns(UserWarning, match=r"Adapters reach 27% of the model's weights \(experts without .* hold 54%\).*"
                                         "set lora_dropout to 0"):  # fmt: skip
        targets = find_targets(build("qwen3_moe"), "all-linear", without="dropout")
    assert targets.parameters == ()
    assert targets.missed_share == targets.expert_share > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_targets(build("qwen3_moe"), "all-linear").missed_share == 0
        assert find_targets(build("qwen3_moe"), ("q_proj",)).share < 0.1, "who names layers is not warned"
    with pytest.raises(ModelError, match=r"PEFT has no dropout for .*gate_up_proj.*set lora_dropout to 0"):
        find_targets(build("qwen3_moe"), ("gate_up_proj",), without="dropout")


def test_names_mean_what_they_say_and_no_more() -> None:
    gemma = find_targets(build("gemma3"), "all-linear")
    assert not [name for name in gemma.modules if name in ("k_proj", "self_attn.k_proj")], "also in the vision tower"
    assert find_targets(build("ctrl"), "all-linear").modules == ("Wk", "Wq", "Wv", "dense", "ffn.0", "ffn.2")
    llama = tiny_model("llama")
    assert find_targets(llama, "all-linear").modules == (
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    )  # fmt: skip
    only = find_targets(llama, ("layers.1.self_attn.q_proj", "lm_head"))
    assert only.modules == ("layers.1.self_attn.q_proj", "lm_head")
    policy = Policy(llama, ROLES, LoraSettings(lora_target_modules=("layers.1.self_attn.q_proj", "lm_head")))
    assert len(policy.parameters("answer")) == 4


@pytest.mark.parametrize(
    ("family", "wanted", "expected"),
    [
        ("falcon_h1", ("out_proj",), r"PEFT puts no adapter on .*out_proj of FalconH1.*leave it out"),
        ("qwen3_moe", ("w_proj",), r"no linear layer w_proj; its linear layers are .*q_proj.*gate_up_proj"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(family: str, wanted: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        find_targets(build(family), wanted)


def test_a_model_that_carries_an_adapter_is_no_base() -> None:
    model = tiny_model("llama")
    Policy(model, ROLES)
    with pytest.raises(ModelError, match="already has an adapter; give the base model, or merge"):
        Policy(model, ROLES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt_oss", "qwen3_moe"])
def test_merged_experts_are_anybodys(name: str, tmp_path: Path) -> None:
    policy = stir(Policy(build(name), ROLES, LoraSettings(lora_r=2)))
    save_merged(policy, "stop", tmp_path)
    theirs = type(policy.model).from_pretrained(tmp_path)
    with policy.using("stop"):
        torch.testing.assert_close(logits(theirs), logits(policy.model), rtol=1e-3, atol=1e-3)


def test_a_failing_trial_leaves_nothing_out() -> None:
    model = tiny_model("llama")

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("expected pixels")

    model.forward = forward
    assert find_targets(model, "all-linear").modules == find_targets(tiny_model("llama"), "all-linear").modules
