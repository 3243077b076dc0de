"""Is imitation the cross-entropy that it says? Values derived by hand, and torch's own loss on a tiny model."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from flow_dpo.core.errors import ObjectiveError
from flow_dpo.core.objective import check_examples
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.learner.learner import Learner, LearnerSettings
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import ReferenceSettings
from flow_dpo.recipes.likelihood import Nll
from tests.support.packed_builders import ROLES, answer_pair
from tests.support.tiny_models import tiny_model
from tests.support.tree_builders import completion, request


def kept(*ids: int, advantage: float = 1.0, weight: float = 1.0) -> ScoredCompletion:
    said = completion(*ids, version=-1)
    return ScoredCompletion(request=request("answer", 5, 6), completion=said, advantage=advantage, weight=weight)


def test_the_example_of_the_docstring() -> None:
    policy = [[torch.tensor([-0.2, -0.6], requires_grad=True)]]
    loss = Nll()([kept(7, 8)], policy, [])
    assert loss.total.item() == pytest.approx(0.4)
    assert torch.autograd.grad(loss.total, policy[0])[0].tolist() == pytest.approx([-0.5, -0.5])
    assert {name: pytest.approx(float(value)) for name, value in loss.measures.items()} == {
        "loss": 0.4, "token_logprobs": -0.4, "completion_logprobs": -0.8, "advantage": 1.0,
    }  # fmt: skip


def test_lengths_weigh_alike_and_weights_and_advantages_are_factors() -> None:
    policy = [[torch.tensor([-0.3] * 3, requires_grad=True)], [torch.tensor([-0.5], requires_grad=True)]]
    loss = Nll()([kept(7, 8, 9), kept(7, advantage=0.5, weight=3.0)], policy, [])
    assert loss.total.item() == pytest.approx(0.3 + 1.5 * 0.5)
    long, short = torch.autograd.grad(loss.total, [policy[0][0], policy[1][0]])
    assert long.tolist() == pytest.approx([-1 / 3] * 3)
    assert short.tolist() == pytest.approx([-1.5])


def test_it_eats_scored_completions_above_zero_and_needs_no_reference() -> None:
    assert not Nll().needs_reference
    with pytest.raises(ObjectiveError, match="accepts ScoredCompletion, found Pair"):
        check_examples(Nll(), [answer_pair((5,), (6,), (7,))])
    with pytest.raises(ObjectiveError, match=r"expects advantages of at least 0, found -0\.5 in 2 examples"):
        Nll()([kept(7), kept(8, advantage=-0.5)], [[torch.zeros(1)]] * 2, [])


def test_an_update_steps_along_the_cross_entropy_of_torch() -> None:
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)
    examples = [kept(7, 8, 9), kept(10, 11, weight=2.0), kept(12)]
    # The unshared forward, one completion at a time.
    losses: list[torch.Tensor] = []
    with policy.using("answer", training=True):
        for example in examples:
            prompt, said = example.request.prompt_ids, example.completion.token_ids
            logits = policy.model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            losses.append(example.weight * cross_entropy(logits, torch.tensor(said)))
        mean = torch.stack(losses).mean()
        gradient = torch.autograd.grad(mean, policy.parameters("answer"), materialize_grads=True)
    norm = torch.nn.utils.get_total_norm(gradient)
    learner = Learner(policy, LearnerSettings(examples_per_update=3, reference=ReferenceSettings(kind="snapshot")))
    row = learner.update(Nll(), examples)
    assert row["learn/answer/loss"] == pytest.approx(mean.item(), rel=1e-5)
    assert row["learn/answer/grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_what_is_kept_becomes_likelier_update_by_update() -> None:
    policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)
    learner = Learner(policy, LearnerSettings(learning_rate=1e-2, examples_per_update=2))
    rows = [learner.update(Nll(), [kept(7, 8, 9), kept(10, 11)]) for _ in range(4)]
    losses = [row["learn/answer/loss"] for row in rows]
    assert losses == sorted(losses, reverse=True)
