"""Is the loss of verdicts what its derivation says, and the loss of pairs beside it still DPO's?"""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from flow_dpo.core.dpo import Dpo
from flow_dpo.core.errors import ConfigError, ObjectiveError
from flow_dpo.core.objective import TokenLogprobs, check_examples
from flow_dpo.core.types import Completion, Example, Pair, Request, ScoredCompletion
from flow_dpo.learner.logprobs import PlainLogprobs
from flow_dpo.recipes.flow_dpo.objective import DpoAndVerdicts
from tests.support.attempt_worlds import NO, YES, word
from tests.support.packed_builders import answer_pair
from tests.support.tiny_models import tiny_model

OBJECTIVE = DpoAndVerdicts(beta=0.7)


def scored(choice: int, weight: float = 1.0, request: Request | None = None) -> ScoredCompletion:
    """What Stop should have said of a candidate: Yes where `choice` is 0."""
    request = request or Request(role="stop", prompt_ids=(5, 6), choices=(YES, NO))
    return ScoredCompletion(request=request, completion=word(choice), advantage=1.0, weight=weight)


def logprobs_of(log_odds: torch.Tensor, example: ScoredCompletion) -> list[torch.Tensor]:
    """Of the word, between the two, by the log-odds of Yes."""
    return [logsigmoid(log_odds if example.completion.choice == 0 else -log_odds).reshape(1)]


@pytest.mark.parametrize("choice", [0, 1])
@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("odds", [-6.0, -1.3, 0.0, 0.4, 1.386, 9.0])
def test_the_gradient_by_the_log_odds_is_p_minus_y(odds: float, choice: int, weight: float) -> None:
    z = torch.tensor(odds, dtype=torch.float64, requires_grad=True)
    example = scored(choice, weight)
    loss = OBJECTIVE([example], [logprobs_of(z, example)], [[torch.zeros(1)]])
    p, y = 1 / (1 + math.exp(-odds)), 1 - choice
    assert loss.total.item() == pytest.approx(-weight * math.log(p if y else 1 - p), rel=1e-6)
    [gradient] = torch.autograd.grad(loss.total, z)
    assert gradient.item() == pytest.approx(weight * (p - y), rel=1e-6, abs=1e-12)
    assert set(loss.measures) == {"verdict_loss", "verdict_accuracy"}
    assert float(loss.measures["verdict_loss"]) == pytest.approx(loss.total.item(), rel=1e-6)
    assert float(loss.measures["verdict_accuracy"]) == float(odds != 0 and (odds > 0) == bool(y))


def test_the_example_of_the_docstring() -> None:
    z = torch.tensor(math.log(0.8 / 0.2), requires_grad=True)
    loss = OBJECTIVE([scored(1)], [logprobs_of(z, scored(1))], [[torch.zeros(1)]])
    assert loss.total.item() == pytest.approx(1.61, abs=5e-3)
    assert torch.autograd.grad(loss.total, z)[0].item() == pytest.approx(0.8)


def mixed(num: int, seed: int) -> tuple[list[Example], list[TokenLogprobs], list[TokenLogprobs]]:
    """Pairs and words in any order, with log-probabilities of policy and reference."""
    rng = random.Random(seed)
    examples: list[Example] = []
    for _ in range(num):
        weight = rng.choice([0.25, 1.0, 2.0])
        pair = answer_pair((5,), (6, 7), (8, 9, 4), weight=weight)
        examples.append(scored(rng.randrange(2), weight) if rng.random() < 0.5 else pair)
    lengths = [[len(one.token_ids) for one in example.completions] for example in examples]

    def drawn() -> list[TokenLogprobs]:
        return [[torch.tensor([-2 * rng.random() for _ in range(num)]) for num in sizes] for sizes in lengths]

    policy = drawn()
    for one in policy:
        for values in one:
            values.requires_grad_()
    return examples, policy, drawn()


def leaves(policy: list[TokenLogprobs]) -> list[torch.Tensor]:
    return [values for one in policy for values in one]


@pytest.mark.parametrize("seed", range(4))
def test_losses_and_measures_are_sums_however_a_batch_is_split(seed: int) -> None:
    examples, policy, reference = mixed(12, seed)
    whole = OBJECTIVE(examples, policy, reference)
    gradient = torch.autograd.grad(whole.total, leaves(policy))
    for cuts in ([3, 7], [1], [11], list(range(1, 12))):
        edges = [0, *cuts, 12]
        parts = [OBJECTIVE(examples[a:b], policy[a:b], reference[a:b]) for a, b in pairwise(edges)]
        assert sum(one.total.item() for one in parts) == pytest.approx(whole.total.item(), rel=1e-5)
        for name, value in whole.measures.items():
            found = sum(float(one.measures.get(name, 0.0)) for one in parts)
            assert found == pytest.approx(float(value), rel=1e-5, abs=1e-6), name
        again = torch.autograd.grad(sum(one.total for one in parts), leaves(policy))  # type: ignore[arg-type]
        torch.testing.assert_close(again, gradient)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_learned_as_dpo_learns_them_and_words_add_to_it(seed: int) -> None:
    examples, policy, reference = mixed(12, seed)
    both = OBJECTIVE(examples, policy, reference)
    at = [i for i, one in enumerate(examples) if isinstance(one, Pair)]
    rest = [i for i in range(12) if i not in at]
    pairs: list[Pair] = [one for one in examples if isinstance(one, Pair)]
    dpo = Dpo(beta=0.7)(pairs, [policy[i] for i in at], [reference[i] for i in at])
    # 1. Pairs alone: the same loss, gradient and measures, to the bit.
    alone = OBJECTIVE(pairs, [policy[i] for i in at], [reference[i] for i in at])
    assert alone.total.item() == dpo.total.item()
    assert alone.measures == dpo.measures
    mine = leaves([policy[i] for i in at])
    for one, other in zip(torch.autograd.grad(alone.total, mine), torch.autograd.grad(dpo.total, mine), strict=True):
        assert torch.equal(one, other)
    # 2. Words alone: by hand, and nothing of the reference.
    words = OBJECTIVE([examples[i] for i in rest], [policy[i] for i in rest], [reference[i] for i in rest])
    by_hand = -sum(examples[i].weight * policy[i][0].item() for i in rest)
    assert words.total.item() == pytest.approx(by_hand, rel=1e-6)
    right = sum(policy[i][0].item() > math.log(0.5) for i in rest)
    assert float(words.measures["verdict_accuracy"]) == right
    # 3. Both.
    assert both.total.item() == pytest.approx(dpo.total.item() + by_hand, rel=1e-6)
    assert {name: float(value) for name, value in both.measures.items()} == pytest.approx(
        {name: float(value) for name, value in (*dpo.measures.items(), *words.measures.items())}, rel=1e-6
    )
    assert words.total.requires_grad
    assert not any(value.requires_grad for value in both.measures.values())


def test_through_a_model_it_is_cross_entropy_over_the_choices_logits() -> None:
    """The learner's own log-probabilities of a choice; the gradient reaches every weight as autograd's own does."""
    model, choices = tiny_model("llama", vocab_size=128), (40, 17)
    prompts = [(1, 5, 6), (1, 9, 9, 3), (1, 7)]
    examples = [
        scored(choice, weight, Request(role="stop", prompt_ids=prompt, choices=choices))
        for prompt, choice, weight in zip(prompts, (0, 1, 1), (1.0, 0.5, 2.0), strict=True)
    ]

    def taken(one: ScoredCompletion) -> Completion:
        index = one.completion.choice or 0
        return Completion(
            token_ids=(choices[index],), logprobs=(-0.5,), sampled_logprobs=(-0.5,), finish_reason="choice",
            policy_version=0, choice=index, choice_logprobs=(-0.7, -0.7),
        )  # fmt: skip

    found = PlainLogprobs(model, [(one.request, taken(one)) for one in examples], own_head=True)()
    loss = OBJECTIVE(examples, [[one] for one in found], [[torch.zeros(1)]] * 3)
    wanted = torch.zeros(())
    for one in examples:
        logits = model(input_ids=torch.tensor([one.request.prompt_ids])).logits[0, -1, list(choices)]
        wanted = wanted + one.weight * cross_entropy(logits, torch.tensor(one.completion.choice))
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    weights = list(model.parameters())
    ours, theirs = (torch.autograd.grad(total, weights, materialize_grads=True) for total in (loss.total, wanted))
    largest = max(float(one.abs().max()) for one in theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * largest)


def test_what_it_accepts_and_refuses() -> None:
    check_examples(OBJECTIVE, [answer_pair((5,), (6,), (7,)), scored(0)])
    with pytest.raises(ObjectiveError, match="accepts Pair or ScoredCompletion, found str"):
        check_examples(OBJECTIVE, ["word"])
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="beta"):
            DpoAndVerdicts(beta=beta)
    assert OBJECTIVE.needs_reference
