"""Is the policy gradient what its papers and TRL's trainers compute, off policy too, and the same however it is cut?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flow_dpo.cli import train
from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import ScoredCompletion
from flow_dpo.learner.learner import Learner
from flow_dpo.learner.policy import LoraSettings, Policy
from flow_dpo.learner.settings import LearnerSettings, RowSettings
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from flow_dpo.recipes.presets import RECIPES
from flow_dpo.runs.files import read_jsonl
from tests.support.packed_builders import ROLES
from tests.support.tiny_models import tiny_model
from tests.support.tree_builders import completion, request

LENGTHS = (2, 6, 3, 1)
LONGEST = 8


def answer(node: int, length: int, advantage: float, *, old: Sequence[float] | None = None) -> ScoredCompletion:
    """An answer of its own, with what was recorded while it was sampled."""
    said = completion(*range(5, 5 + length))
    recorded = tuple(old) if old is not None else said.logprobs
    return ScoredCompletion(
        request=replace(request("answer", 1), max_tokens=LONGEST),
        completion=replace(said, logprobs=recorded),
        advantage=advantage,
        problem_id="p",
        node=node,
    )


def drawn(seed: int = 0) -> tuple[list[ScoredCompletion], list[torch.Tensor], list[torch.Tensor]]:
    """Answers of several lengths with log-probabilities of now, far enough from the old ones for every clip to bind."""
    generator = torch.Generator().manual_seed(seed)
    examples, now, reference = [], [], []
    for node, (length, advantage) in enumerate(zip(LENGTHS, (0.7, -1.2, 0.4, -0.9), strict=True)):
        old = -torch.rand(length, generator=generator) - 0.2
        examples.append(answer(node, length, advantage, old=old.tolist()))
        now.append((old + 0.5 * torch.randn(length, generator=generator)).requires_grad_())
        reference.append(old + 0.3 * torch.randn(length, generator=generator))
    return examples, now, reference


def ours(
    objective: ClippedPolicyGradient,
    examples: Sequence[ScoredCompletion],
    now: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
) -> tuple[float, list[torch.Tensor]]:
    """The mean that the learner takes, and its gradient by each token's log-probability."""
    rows = [[each] for each in reference] if objective.needs_reference else []
    mean = objective(examples, [[each] for each in now], rows).total / len(examples)
    return mean.item(), list(torch.autograd.grad(mean, list(now)))


# ---- TRL's trainers, asked on the same tensors -----------------------------------------------------------------------


def padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def of_trl(
    trainer: Any,
    examples: Sequence[ScoredCompletion],
    now: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    **settings: Any,
) -> tuple[float, list[torch.Tensor]]:
    """The loss of a trainer's own code, handed these log-probabilities in place of a model's."""
    logps, mask = padded(now), padded([torch.ones_like(each) for each in now])
    old = padded([torch.tensor(e.completion.logprobs) for e in examples])
    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    stub = SimpleNamespace(
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.0,
        epsilon_low=0.2, epsilon_high=0.2, use_vllm=False, aux_loss_enabled=False, _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=LONGEST,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        accelerator=accelerator, _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
    )  # fmt: skip
    vars(stub).update(settings)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": mask,
        "advantages": torch.tensor([e.advantage for e in examples]), "old_per_token_logps": old,
        "ref_per_token_logps": padded(reference), "num_items_in_batch": mask.sum(), "old_logps": (old * mask).sum(1),
    }  # fmt: skip
    loss = trainer._compute_loss(stub, None, inputs)
    return loss.item(), list(torch.autograd.grad(loss, list(now)))


GRPO_LOSSES = {
    "grpo": (ClippedPolicyGradient(kl_coef=0.0), {"loss_type": "grpo"}),
    "grpo with kl": (ClippedPolicyGradient(kl_coef=0.3), {"loss_type": "grpo", "beta": 0.3}),
    "dr_grpo": (ClippedPolicyGradient(reduction="constant", kl_coef=0.0), {"loss_type": "dr_grpo"}),
    "dapo": (
        ClippedPolicyGradient(clip_high=0.28, reduction="tokens", kl_coef=0.0),
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "bnpo with kl": (ClippedPolicyGradient(reduction="tokens", kl_coef=0.3), {"loss_type": "bnpo", "beta": 0.3}),
    "cispo": (
        ClippedPolicyGradient(surrogate="weight", clip_low=1.0, clip_high=0.1, reduction="tokens", kl_coef=0.0),
        {"loss_type": "cispo", "epsilon_high": 1.1},
    ),
    "gspo": (
        ClippedPolicyGradient(ratio_level="sequence", clip_low=0.1, clip_high=0.15, kl_coef=0.0),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.1, "epsilon_high": 0.15},
    ),
    "gspo by tokens": (
        ClippedPolicyGradient(ratio_level="sequence", reduction="tokens", kl_coef=0.0),
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
    ),
}


@pytest.mark.filterwarnings("ignore")  # TRL's own warnings are not ours to mend
def test_losses_and_gradients_are_those_of_trl_off_policy() -> None:
    from trl import GRPOTrainer, RLOOTrainer

    losses = {name: (GRPOTrainer, *case) for name, case in GRPO_LOSSES.items()}
    losses["rloo"] = (RLOOTrainer, ClippedPolicyGradient(ratio_level="product", kl_coef=0.0), {})
    clipped = 0.0
    for name, (trainer, objective, settings) in losses.items():
        for seed in range(3):
            examples, now, reference = drawn(seed)
            found, gradient = ours(objective, examples, now, reference)
            wanted, wanted_gradient = of_trl(trainer, examples, now, reference, **settings)
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-7), name
            for mine, theirs in zip(gradient, wanted_gradient, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7, msg=name)
            clipped += float(objective(examples, [[t] for t in now], [[t] for t in reference]).measures["clipped"])
    assert clipped > 10, "no case in which the clip takes a gradient shows that it does"


# ---- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "gradients"),
    [
        # Two answers of 2 and 6 tokens, advantages 0.7 and -0.7, on policy: d loss / d logp of each token.
        ("answer", (-0.7 / 4, 0.7 / 12)),
        ("tokens", (-0.7 / 8, 0.7 / 8)),
        ("constant", (-0.7 / (2 * 8), 0.7 / (2 * 8))),
        ("sum", (-0.7 / 2, 0.7 / 2)),
    ],
)
def test_tokens_are_averaged_as_told(reduction: Any, gradients: tuple[float, float]) -> None:
    examples = [answer(0, 2, 0.7), answer(1, 6, -0.7)]
    now = [torch.full((n,), -0.5, requires_grad=True) for n in (2, 6)]
    _, found = ours(ClippedPolicyGradient(reduction=reduction, kl_coef=0.0), examples, now, [])
    for gradient, wanted in zip(found, gradients, strict=True):
        assert gradient.tolist() == pytest.approx([wanted] * len(gradient))


def test_the_steps_of_an_answer_are_one_answer() -> None:
    """Nodes 0 and 1 at depths 0 and 1 are an answer of 5 tokens, node 2 at depth 0 one of 1 token."""
    examples = [answer(0, 2, 1.0), replace(answer(1, 3, 1.0), depth=1), answer(2, 1, 1.0)]
    now = [torch.full((n,), -0.5, requires_grad=True) for n in (2, 3, 1)]
    _, found = ours(ClippedPolicyGradient(kl_coef=0.0), examples, now, [])
    assert [g[0].item() for g in found] == pytest.approx([-1 / 10, -1 / 10, -1 / 2])


def test_vineppos_divergence_is_a_sum_over_an_answer_and_its_policy_part_a_mean_over_tokens() -> None:
    """The authors' loss written out: masked mean of the clipped part, and kl.sum(dim=1).mean()."""
    examples, now, reference = drawn(1)
    examples = [
        replace(examples[0], node=0),
        replace(examples[1], node=1, depth=1),
        *examples[2:],
    ]  # two answers of one
    objective: Any = RECIPES["vineppo"]["paper"].recipe.objective
    objective = replace(objective, kl_coef=0.05)
    found, gradient = ours(objective, examples, now, reference)
    flat, old = torch.cat(now), torch.cat([torch.tensor(e.completion.logprobs) for e in examples])
    advantages = torch.cat([torch.full((len(t),), e.advantage) for e, t in zip(examples, now, strict=True)])
    ratio = (flat - old).exp()
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()
    away = torch.cat(reference) - flat
    loss = policy + 0.05 * (away.exp() - away - 1).clamp(0, 10).sum() / 3
    assert found == pytest.approx(loss.item(), rel=1e-6)
    for mine, theirs in zip(gradient, torch.autograd.grad(loss, list(now)), strict=True):
        torch.testing.assert_close(mine, theirs)
    # As a mean over tokens the divergence would be weaker by the tokens of an answer.
    alone = [replace(e, advantage=1e-9) for e in examples]
    weak = ours(replace(objective, kl_reduction="as_policy"), alone, now, reference)[0]
    assert ours(objective, alone, now, reference)[0] / weak == pytest.approx(sum(LENGTHS) / 3, rel=1e-3)


def test_a_sequence_is_clipped_as_a_whole() -> None:
    """Ratios e^0.2 and e^0 of two tokens: their geometric mean is e^0.1, beyond 1.05, so that neither has a gradient;
    at a negative advantage both have -A s / 2 each, with s = e^0.1, whatever their own ratios."""
    now = [torch.tensor([-0.3, -0.5], requires_grad=True)]
    objective = ClippedPolicyGradient(ratio_level="sequence", clip_high=0.05, kl_coef=0.0)
    value, (gradient,) = ours(objective, [answer(0, 2, 1.0)], now, [])
    assert (value, gradient.tolist()) == (pytest.approx(-1.05), [0.0, 0.0])
    value, (gradient,) = ours(objective, [answer(0, 2, -1.0)], now, [])
    assert value == pytest.approx(math.exp(0.1))
    assert gradient.tolist() == pytest.approx([math.exp(0.1) / 2] * 2)
    # As a product the ratio is e^0.2, and each token has all of it.
    value, (gradient,) = ours(replace(objective, ratio_level="product"), [answer(0, 2, -1.0)], now, [])
    assert (value, gradient.tolist()) == (pytest.approx(math.exp(0.2)), pytest.approx([math.exp(0.2)] * 2))


@pytest.mark.parametrize("advantage", [0.7, -0.7])
def test_a_long_answer_that_ran_away_leaves_all_numbers_finite(advantage: float) -> None:
    """A thousand tokens that moved by 0.1 each: their product is e^100, which is no float32."""
    example = answer(0, 1000, advantage, old=[-2.0] * 1000)
    policy = torch.full((1000,), -1.9, requires_grad=True)
    loss = ClippedPolicyGradient(ratio_level="product", kl_coef=0.03)([example], [[policy]], [[policy.detach()]])
    gradient = torch.autograd.grad(loss.total, policy)[0]
    assert gradient.tolist() == [0.0] * 1000
    assert all(bool(torch.isfinite(value).all()) for value in loss.measures.values())


def test_a_weight_is_clipped_and_its_token_still_learned() -> None:
    """Ratios e^1 and e^-1, at most 1.5 and with no lower limit: gradients -1.5 A / 2 and -e^-1 A / 2."""
    now = [torch.tensor([0.5, -1.5], requires_grad=True)]
    objective = ClippedPolicyGradient(surrogate="weight", clip_low=1.0, clip_high=0.5, reduction="tokens", kl_coef=0.0)
    value, (gradient,) = ours(objective, [answer(0, 2, 0.8)], now, [])
    assert gradient.tolist() == pytest.approx([-1.5 * 0.8 / 2, -math.exp(-1) * 0.8 / 2])
    assert value == pytest.approx(-0.8 * (1.5 * 0.5 - math.exp(-1) * 1.5) / 2)


def test_a_higher_clip_leaves_room_above_alone() -> None:
    """Ratios 1.25 and 0.75 at a positive advantage: 1.25 is within 0.28, and 0.75 is never clipped on that side."""
    now = [torch.tensor([-0.5 + math.log(1.25), -0.5 + math.log(0.75)], requires_grad=True)]
    objective = ClippedPolicyGradient(clip_high=0.28, kl_coef=0.0)
    _, (gradient,) = ours(objective, [answer(0, 2, 1.0)], now, [])
    assert gradient.tolist() == pytest.approx([-1.25 / 2, -0.75 / 2])
    _, (gradient,) = ours(replace(objective, clip_high=0.2), [answer(0, 2, 1.0)], now, [])
    assert gradient.tolist() == pytest.approx([0.0, -0.75 / 2])


def test_the_divergence_as_k2() -> None:
    now, reference = [torch.tensor([-0.5, -0.5], requires_grad=True)], [torch.tensor([-0.3, -0.9])]
    objective = ClippedPolicyGradient(kl_coef=0.1, kl_estimator="k2")
    value, (gradient,) = ours(objective, [answer(0, 2, 1.0)], now, reference)
    assert value == pytest.approx(-1 + 0.1 * (0.2**2 / 2 + 0.4**2 / 2) / 2)
    assert gradient.tolist() == pytest.approx([-0.5 - 0.1 * 0.2 / 2, -0.5 + 0.1 * 0.4 / 2])


def test_a_completion_that_ran_away_is_left_out() -> None:
    """A mean ratio of (e^4 + 1) / 2 > 10: no gradient, and the other answer keeps its half."""
    now = [torch.tensor([3.5, -0.5], requires_grad=True), torch.tensor([-0.5], requires_grad=True)]
    examples = [answer(0, 2, -1.0), answer(1, 1, 1.0)]
    objective = ClippedPolicyGradient(kl_coef=0.0, max_ratio=10.0)
    loss = objective(examples, [[each] for each in now], [])
    assert float(loss.measures["left_out"]) == 1
    gradients = torch.autograd.grad(loss.total / 2, now)
    assert [g.tolist() for g in gradients] == [[0.0, 0.0], [-0.5]]
    with pytest.raises(ConfigError, match="max_ratio above 1"):
        ClippedPolicyGradient(max_ratio=0.5)


# ---- however an update is cut ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["answer", "tokens", "constant", "sum"])
def test_rows_add_up_to_the_update(reduction: Any) -> None:
    examples, now, reference = drawn()
    objective = ClippedPolicyGradient(reduction=reduction, kl_coef=0.2, kl_reduction="sum")
    whole, settled = objective(examples, [[t] for t in now], [[t] for t in reference]), objective.for_update(examples)
    rows = [settled(examples[a:b], [[t] for t in now[a:b]], [[t] for t in reference[a:b]]) for a, b in ((0, 1), (1, 4))]
    assert sum(row.total.item() for row in rows) == pytest.approx(whole.total.item(), rel=1e-6)


def test_a_learners_gradient_does_not_depend_on_its_rows() -> None:
    """Means over tokens need the update's number of tokens, which no row knows: answers of 1 to 6 tokens, in one row
    and in as many as there are answers."""

    def learned(max_tokens: int) -> tuple[list[float], list[torch.Tensor]]:
        policy = Policy(tiny_model("llama"), ROLES, LoraSettings(lora_r=4), seed=5)
        rows = RowSettings(max_tokens=max_tokens)
        learner = Learner(policy, LearnerSettings(learning_rate=1e-2, examples_per_update=0, rows=rows))
        objective = ClippedPolicyGradient(reduction="tokens", kl_coef=0.0)
        examples = [
            replace(answer(node, length, advantage), problem_id=f"p{node}",
                    completion=replace(completion(*range(5, 5 + length)), policy_version=-1))
            for node, (length, advantage) in enumerate(zip(LENGTHS, (0.7, -1.2, 0.4, -0.9), strict=True))
        ]  # fmt: skip
        row = learner.update(objective, examples)
        assert (row["learn/answer/rows"] == 1) is (max_tokens > 100)
        return [row["learn/answer/loss"], row["learn/answer/grad_norm"]], policy.weights("answer")

    (measures, together), (again, apart) = learned(4096), learned(2)
    assert measures == pytest.approx(again, rel=1e-5)
    for a, b in zip(together, apart, strict=True):  # Adam makes much of the rounding of gradients that are next to 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=5e-5)


# ---- every preset of the family learns -------------------------------------------------------------------------------

FAMILY = ("grpo", "dapo", "dr-grpo", "gspo", "cispo", "rloo", "reinforce-pp", "reinforce-baseline", "vineppo")


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["paper", "chat", "small"])
@pytest.mark.parametrize("name", FAMILY)
def test_every_preset_learns_on_the_seed(name: str, scale: str, tmp_path: Path) -> None:
    """Cut down in numbers and lengths, as the seed's context and a test's patience want it; nothing else is changed."""
    words = ["--recipe", name, "--preset", scale, "--dataset_name", "seed", "--max_problems", "16"]
    words += ["--problems_per_batch", "8", "--flow.max_tokens", "128", "--minibatches", "1", "--warmup_updates", "0"]
    words += [] if name in ("gspo", "vineppo") else ["--examples_per_update", "4"]
    words += [] if name == "reinforce-pp" else ["--num_rollouts", "4"]
    words += ["--num_completions", "2", "--temperature", "1"] if name == "vineppo" else []
    assert train.train([*words, "--model_name_or_path", "seed", "--output_dir", str(tmp_path / "run")]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert sum(row["learn/updates"] for row in rows) > 0
