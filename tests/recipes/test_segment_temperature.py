"""Does every learned token of a segment count the same where the learner divides logits by a temperature?"""

from __future__ import annotations

import math

import pytest
import torch

from flow_dpo.core.types import Completion, Request, ScoredCompletion
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient, num_learned


def segment(raw: tuple[float, ...], scaled: tuple[float, ...], advantage: float) -> ScoredCompletion:
    """As credit weighs it, by its tokens below 0.9 at temperature 1, and as the learner hands it on."""
    ids = tuple(range(5, 5 + len(raw)))
    recorded, at_temperature = (tuple(map(math.log, each)) for each in (raw, scaled))
    completion = Completion(
        token_ids=ids, logprobs=at_temperature, raw_logprobs=recorded, sampled_logprobs=recorded,
        finish_reason="length", policy_version=0,
    )  # fmt: skip
    found = Completion(
        token_ids=ids, logprobs=recorded, sampled_logprobs=recorded, finish_reason="length", policy_version=0
    )
    request = Request(role="answer", prompt_ids=(1,), max_tokens=8)
    weight = num_learned(found, 0.9) / 2
    return ScoredCompletion(request=request, completion=completion, advantage=advantage, weight=weight)


def test_the_mask_is_of_the_temperature_and_the_mean_of_the_credit() -> None:
    # Of two and three tokens below 0.9 at temperature 1, one and two are so at the learner's.
    examples = [
        segment((0.8, 0.5, 0.95), (0.93, 0.55, 0.99), 2.0),
        segment((0.6, 0.85, 0.4), (0.7, 0.96, 0.3), -1.0),
    ]
    now = [torch.tensor(e.completion.logprobs, requires_grad=True) for e in examples]
    loss = ClippedPolicyGradient(reduction="completion", kl_coef=0.0, mask_above=0.9)(
        examples, [[each] for each in now], []
    )
    gradients = torch.autograd.grad(loss.total, now)
    # On policy: minus the advantage, times the weight of a token, 1/2 in both.
    assert gradients[0].tolist() == pytest.approx([0.0, -2.0 / 2, 0.0])
    assert gradients[1].tolist() == pytest.approx([1.0 / 2, 0.0, 1.0 / 2])
