"""Here is the maths: values derived by hand, and TRL's own trainer asked for the same loss and gradient."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError, ObjectiveError
from flow_dpo.core.objective import TokenLogprobs, check_examples
from flow_dpo.core.types import Pair, ScoredCompletion
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from flow_dpo.recipes.ipo import Ipo
from flow_dpo.recipes.policy_gradient import ClippedPolicyGradient
from tests.support.packed_builders import answer_pair
from tests.support.tree_builders import completion, request

PAIR = answer_pair((5,), (6, 7), (8, 9))
POLICY = [[torch.tensor([-0.2, -0.1]), torch.tensor([-0.3, -1.0])]]
REFERENCE = [[torch.tensor([-0.3, -0.2]), torch.tensor([-0.3, -0.9])]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_example_of_the_docstring() -> None:
    loss = Dpo(beta=0.5)([PAIR], POLICY, REFERENCE)
    # log-ratios 0.2 and -0.1, h = 0.5 * 0.3
    assert loss.total.item() == pytest.approx(-math.log(sigmoid(0.15)), rel=1e-6)
    assert {name: pytest.approx(float(value), abs=1e-6) for name, value in loss.measures.items()} == {
        "loss": -math.log(sigmoid(0.15)),
        "margin": 0.15,
        "accuracy": 1.0,
        "chosen_ratio": 0.2,
        "chosen_logprobs": -0.3,
        "rejected_logprobs": -1.3,
    }


def test_options_of_dpo() -> None:
    smooth = Dpo(beta=0.5, label_smoothing=0.2)([PAIR], POLICY, REFERENCE)
    wanted = -0.8 * math.log(sigmoid(0.15)) - 0.2 * math.log(sigmoid(-0.15))
    assert smooth.total.item() == pytest.approx(wanted, rel=1e-6)
    sft = Dpo(beta=0.5, sft_weight=0.1)([PAIR], POLICY, REFERENCE)
    assert sft.total.item() == pytest.approx(-math.log(sigmoid(0.15)) + 0.1 * 0.15, rel=1e-6)


def test_where_policy_and_reference_are_equal() -> None:
    policy = [[t.clone().requires_grad_() for t in REFERENCE[0]]]
    loss = Dpo(beta=2.0)([PAIR], policy, REFERENCE)
    assert loss.total.item() == pytest.approx(math.log(2), rel=1e-6)
    assert float(loss.measures["accuracy"]) == 0.5  # a draw is neither won nor lost
    loss.total.backward()
    chosen, rejected = (t.grad for t in policy[0])
    assert chosen is not None
    assert rejected is not None
    # d/dr of -log sigmoid(beta r) is -beta sigmoid(-beta r): the same at every token, 1/2 beta here.
    assert chosen.tolist() == [-1.0, -1.0]
    assert rejected.tolist() == [1.0, 1.0]


def test_a_vanishing_beta_leaves_log_two_and_a_vanishing_gradient() -> None:
    policy = [[t.clone().requires_grad_() for t in POLICY[0]]]
    loss = Dpo(beta=1e-6)([PAIR], policy, REFERENCE)
    assert loss.total.item() == pytest.approx(math.log(2), rel=1e-6)
    gradient = torch.autograd.grad(loss.total, policy[0])
    assert gradient[0].tolist() == pytest.approx([-0.5e-6] * 2, rel=1e-5)


def test_weights_are_factors() -> None:
    half = answer_pair((5,), (6, 7), (8, 9), weight=0.5)
    one, both = (Dpo()(pairs, POLICY * n, REFERENCE * n) for n, pairs in ((1, [PAIR]), (2, [PAIR, half])))
    assert both.total.item() == pytest.approx(1.5 * one.total.item(), rel=1e-6)
    assert float(both.measures["margin"]) == pytest.approx(2 * float(one.measures["margin"]), rel=1e-6)


def test_ipo_by_hand() -> None:
    # means over tokens 0.1 and -0.05, distance 0.15, pulled to 1 / (2 * 2)
    loss = Ipo(beta=2.0)([PAIR], POLICY, REFERENCE)
    assert loss.total.item() == pytest.approx((0.15 - 0.25) ** 2, rel=1e-5)
    assert float(loss.measures["margin"]) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}, {"sft_weight": -0.1}], ids=str
)
def test_settings_that_make_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Dpo(**settings)


def test_an_objective_refuses_what_it_does_not_eat() -> None:
    check_examples(Dpo(), [PAIR])
    with pytest.raises(ObjectiveError, match="Dpo accepts Pair, found str"):
        check_examples(Dpo(), [PAIR, "advantage"])


def test_a_pair_of_equals_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="two different completions"):
        answer_pair((5,), (6, 7), (6, 7))


def trl_trainer(folder: Any, **settings: Any) -> Any:
    """TRL's stable trainer with LoRA on a tiny model, its adapter moved off its first values."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import DPOConfig, DPOTrainer

    from tests.support.tiny_models import tiny_model

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w0")
    rows = [{"prompt": "w5 w6", "chosen": " w7", "rejected": " w8"}]
    config = DPOConfig(
        output_dir=str(folder), report_to="none", use_cpu=True, gradient_checkpointing=False, bf16=False, **settings
    )
    trainer = DPOTrainer(
        tiny_model("llama"),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainer


def as_trl_has_it(pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """TRL's batch: all chosen, then all rejected, padded on the right."""
    rows = [(p.request.prompt_ids, p.chosen.token_ids) for p in pairs]
    rows += [(p.request.prompt_ids, p.rejected.token_ids) for p in pairs]
    width = max(len(a) + len(b) for a, b in rows)
    pad = [[0] * (width - len(a) - len(b)) for a, b in rows]
    fields = {
        "input_ids": [[*a, *b, *p] for (a, b), p in zip(rows, pad, strict=True)],
        "attention_mask": [[1] * (len(a) + len(b)) + p for (a, b), p in zip(rows, pad, strict=True)],
        "completion_mask": [[0] * len(a) + [1] * len(b) + p for (a, b), p in zip(rows, pad, strict=True)],
    }
    return {name: torch.tensor(value) for name, value in fields.items()}


def ours(model: Any, pairs: list[Pair]) -> list[TokenLogprobs]:
    """Per-token log-probabilities from plain logits, one completion at a time."""
    out: list[TokenLogprobs] = []
    for pair in pairs:
        sides = []
        for said in pair.completions:
            ids = torch.tensor([pair.request.prompt_ids + said.token_ids])
            start = len(pair.request.prompt_ids) - 1
            logprobs = model(input_ids=ids).logits[0, start:-1].log_softmax(-1)
            sides.append(logprobs[range(len(said.token_ids)), list(said.token_ids)])
        out.append(sides)
    return out


@pytest.mark.filterwarnings("ignore")  # TRL's own warnings are not ours to mend
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (Dpo(beta=0.7), {"beta": 0.7, "loss_type": ["sigmoid"]}),
        (Ipo(beta=0.7), {"beta": 0.7, "loss_type": ["ipo"]}),
        (DpoAndVerdicts(beta=0.7), {"beta": 0.7, "loss_type": ["sigmoid"]}),
    ],
    ids=["dpo", "ipo", "pairs of dpo and verdicts"],
)
def test_loss_and_gradient_are_those_of_trl(objective: Any, settings: dict[str, Any], tmp_path: Any) -> None:
    trainer = trl_trainer(tmp_path, **settings)
    rng = random.Random(0)
    ids = lambda: tuple(rng.randrange(3, 128) for _ in range(rng.randint(2, 9)))  # noqa: E731
    pairs = [answer_pair(ids(), ids(), ids()) for _ in range(5)]
    wanted = trainer.compute_loss(trainer.model, as_trl_has_it(pairs))
    parameters = [p for n, p in trainer.model.named_parameters() if "lora_" in n]
    wanted_gradient = torch.autograd.grad(wanted, parameters)
    with torch.no_grad(), trainer.model.disable_adapter():
        reference = ours(trainer.model, pairs)
    loss = objective(pairs, ours(trainer.model, pairs), reference)
    mean = loss.total / len(pairs)
    assert mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    largest = max(float(g.abs().max()) for g in wanted_gradient)
    torch.testing.assert_close(torch.autograd.grad(mean, parameters), wanted_gradient, rtol=1e-5, atol=1e-5 * largest)


# ---- single completions with an advantage ---------------------------------------------------------------------------


def scored(advantage: float, weight: float = 1.0) -> ScoredCompletion:
    """Two tokens, each recorded at -0.5 when it was sampled."""
    return ScoredCompletion(
        request=request("answer", 1), completion=completion(5, 6), advantage=advantage, weight=weight
    )


def test_on_policy_it_is_the_policy_gradient() -> None:
    policy = [[torch.tensor([-0.5, -0.5], requires_grad=True)]]
    loss = ClippedPolicyGradient(kl_coef=0.0)([scored(0.7)], policy, [])
    assert loss.total.item() == pytest.approx(-0.7)
    # d/d logp of -A mean(r) at r = 1.
    assert torch.autograd.grad(loss.total, policy[0])[0].tolist() == pytest.approx([-0.35, -0.35])


@pytest.mark.parametrize(
    ("advantage", "gains", "gradient"),
    [
        # r = e^0.5 = 1.649 and e^-0.5 = 0.607; clipped to 1.2 and 0.8. The smaller gain counts, and only what is not
        # clipped has a gradient, -A r / 2.
        (1.0, [1.2, math.exp(-0.5)], [0.0, -math.exp(-0.5) / 2]),
        (-1.0, [-math.exp(0.5), -0.8], [math.exp(0.5) / 2, 0.0]),
    ],
)
def test_ratios_are_clipped_on_the_side_that_gains(advantage: float, gains: list[float], gradient: list[float]) -> None:
    policy = [[torch.tensor([0.0, -1.0], requires_grad=True)]]
    loss = ClippedPolicyGradient(kl_coef=0.0)([scored(advantage)], policy, [])
    assert loss.total.item() == pytest.approx(-sum(gains) / 2)
    assert torch.autograd.grad(loss.total, policy[0])[0].tolist() == pytest.approx(gradient)
    assert float(loss.measures["clipped"]) == 0.5


def test_the_divergence_is_k3() -> None:
    policy = [[torch.tensor([-0.5, -0.5], requires_grad=True)]]
    reference = [[torch.tensor([-0.3, -0.9])]]
    loss = ClippedPolicyGradient(kl_coef=0.1)([scored(1.0)], policy, reference)
    kl = [math.exp(d) - d - 1 for d in (0.2, -0.4)]
    assert min(kl) > 0
    assert loss.total.item() == pytest.approx(-1.0 + 0.1 * sum(kl) / 2)
    assert float(loss.measures["kl"]) == pytest.approx(sum(kl) / 2)
    # d/d logp: -1/2 of the gain, and 0.1 (1 - e^d) / 2 of the divergence.
    wanted = [-0.5 + 0.1 * (1 - math.exp(d)) / 2 for d in (0.2, -0.4)]
    assert torch.autograd.grad(loss.total, policy[0])[0].tolist() == pytest.approx(wanted)


def test_losses_of_scored_completions_are_sums_with_weights() -> None:
    policy = [[torch.tensor([-0.4, -0.6])], [torch.tensor([-0.5, -0.1])]]
    objective = ClippedPolicyGradient(kl_coef=0.0)
    both = objective([scored(1.0), scored(-0.5, weight=3.0)], policy, [])
    apart = [objective([scored(1.0)], policy[:1], []), objective([scored(-0.5)], policy[1:], [])]
    assert both.total.item() == pytest.approx(apart[0].total.item() + 3 * apart[1].total.item())
    assert not ClippedPolicyGradient(kl_coef=0.0).needs_reference
    with pytest.raises(ObjectiveError, match="accepts ScoredCompletion, found Pair"):
        check_examples(objective, [PAIR])
    with pytest.raises(ConfigError, match="clip_low above 0 and at most 1"):
        ClippedPolicyGradient(clip_low=1.5)


@pytest.mark.parametrize("advantage", [0.0, math.nan, math.inf])
def test_an_advantage_that_teaches_nothing_is_refused(advantage: float) -> None:
    with pytest.raises(ValueError, match="finite advantage"):
        scored(advantage)
