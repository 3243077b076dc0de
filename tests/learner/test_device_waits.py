"""Does an update wait for its device a handful of times, however many layers, weights and examples there are?"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.objective import Loss
from flow_dpo.core.types import Example, ScoredCompletion
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import LearnerSettings, ReferenceSettings, RowSettings
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from tests.models.test_flex_attention import QUIET
from tests.support.device_waits import DeviceWaits, Host
from tests.support.packed_builders import ROLES, pairs_of_tree

FORWARDS, UPDATE = 2, 3
"""Waits of a row: its values under the reference and under the policy. And of an update of two roles: the norm of each
gradient, and whether every adapter moved that should."""


def model_of(layers: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=layers, **sizes)).eval()


def examples_of(kind: str, num_trees: int) -> list[Example]:
    pairs = [
        pair for tree in range(num_trees) for pair in pairs_of_tree(random.Random(tree), f"p{tree}", shared=(5, 6))
    ]
    if kind == "pairs":
        return [*pairs]
    scored = [
        ScoredCompletion(request=p.request, completion=c, advantage=a, problem_id=p.problem_id)
        for p in pairs for c, a in ((p.chosen, 1.0), (p.rejected, -0.5))
        if kind == "scored" or p.request.choices
    ]  # fmt: skip
    return [*scored, *(p for p in pairs if not p.request.choices)] if kind == "both" else [*scored]


OBJECTIVES: dict[str, Any] = {
    "pairs": Dpo(beta=0.1),
    "scored": ClippedPolicyGradient(kl_coef=0.1, mask_above=0.9, max_ratio=9.0),
    "both": DpoAndVerdicts(),
}


def learner_of(layers: int, device: str = "cpu") -> Learner:
    reference = ReferenceSettings(kind="snapshot")  # two adapters more, which must not move
    rows = RowSettings(max_tokens=1 << 14)
    settings = LearnerSettings(learning_rate=1e-2, examples_per_update=0, reference=reference, rows=rows)
    policy = Policy(model_of(layers).to(device), ROLES, LoraSettings(lora_r=2))  # pyright: ignore[reportArgumentType]
    learner = Learner(policy, settings)
    learner.check()
    return learner


class OnHost:
    """An objective that finds what it reads on the host, whatever it does with that."""

    def __init__(self, objective: Any, waits: DeviceWaits) -> None:
        self._objective, self._waits = objective, waits
        self.accepts, self.needs_reference = objective.accepts, objective.needs_reference

    def for_update(self, examples: Sequence[Any]) -> OnHost:
        made = getattr(self._objective, "for_update", lambda _: self._objective)(examples)
        return OnHost(made, self._waits)

    def __call__(self, examples: Sequence[Any], policy: Sequence[Any], reference: Sequence[Any]) -> Loss:
        assert all(isinstance(each, Host) for side in (*policy, *reference) for each in side)
        with self._waits.on_host():  # and so does its own backward pass
            leaves = [[each.detach().requires_grad_() for each in pieces] for pieces in policy]
            loss = self._objective(examples, leaves, reference)
            flat = [each for pieces in leaves for each in pieces]
            gradients = torch.autograd.grad(loss.total, flat, materialize_grads=True)
            pieces = torch.cat([each for pieces in policy for each in pieces])
            total = (pieces * torch.cat(gradients)).sum()
        return Loss(total, {n: v.as_subclass(Host) for n, v in loss.measures.items()}, loss.counts)


def waits_of(kind: str, *, layers: int, num_trees: int) -> DeviceWaits:
    learner = learner_of(layers)
    learner.update(OBJECTIVES[kind], examples_of(kind, 1))
    # Adam counts its steps on the CPU, on a GPU too.
    for optimizer in learner._optimizers.values():
        for state in optimizer.state.values():
            state["step"] = state["step"].as_subclass(Host)
    with DeviceWaits() as waits:
        row = learner.update(OnHost(OBJECTIVES[kind], waits), examples_of(kind, num_trees))
    assert row["learn/answer/rows"] == row["learn/stop/rows"] == 1
    return waits


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_update_waits_as_often_for_many_layers_and_examples_as_for_few(kind: str) -> None:
    few = waits_of(kind, layers=1, num_trees=1)
    many = waits_of(kind, layers=3, num_trees=4)
    assert few.counts == many.counts
    assert many.total <= 2 * FORWARDS + UPDATE, many.counts


def test_what_waits_is_counted() -> None:
    values = torch.arange(4.0)
    with DeviceWaits() as waits:
        assert torch.equal(values, values)
        assert values.sum().item() == 6
        assert len(values[values > 1]) == 2
        host = values.cpu()
        assert host.tolist() == [0, 1, 2, 3]
        assert bool((host * 2).sum() > 0)
    expected = {"aten.equal": 1, "aten._local_scalar_dense": 1, "aten.index": 1, "cpu": 1}
    assert waits.counts == expected


@pytest.mark.gpu
@QUIET
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_gpu_is_waited_for_no_more_often(kind: str) -> None:
    """By CUDA's own count. Copies to the device are asynchronous, and are none."""
    learner = learner_of(3, "cuda")
    learner.update(OBJECTIVES[kind], examples_of(kind, 4))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            learner.update(OBJECTIVES[kind], examples_of(kind, 4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in seen if "synchroniz" in str(each.message)]
    assert 0 < len(waits) <= 2 * FORWARDS + UPDATE, waits
