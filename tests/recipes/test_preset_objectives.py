"""Is the objective of every recipe, with its own numbers, its paper's formula: value and gradient, on policy and off?

The formulas are written out on tensors as the papers, or the authors' code, have them, over a whole update: losses of a
mini-batch, not sums over examples. Trainers of TRL are asked for the same in `test_policy_gradient`,
`test_pair_objectives` and `core/test_objectives`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flow_dpo.core.types import Example, Pair, Request, ScoredCompletion
from flow_dpo.recipes.presets import RECIPES
from tests.support.tree_builders import completion, request

LONGEST = 9
LENGTHS = (2, 6, 3, 1, 8)
ADVANTAGES = (0.7, -1.2, 0.4, -0.9, 1.5)
CHOICES = (90, 91)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples with the log-probabilities of every token: now, under the reference, and when a completion was sampled.

    Scored completions have one tensor, pairs two.
    """

    examples: Sequence[Any]
    now: Sequence[Sequence[Tensor]]
    ref: Sequence[Sequence[Tensor]]

    @property
    def flat(self) -> list[Tensor]:
        return [one for pieces in self.now for one in pieces]

    @property
    def old(self) -> list[Tensor]:
        return [torch.tensor(e.completion.logprobs) for e in self.examples]

    @property
    def ratios(self) -> list[Tensor]:
        return [(now - old).exp() for (now,), old in zip(self.now, self.old, strict=True)]

    @property
    def away(self) -> list[Tensor]:
        """log pi - log ref."""
        return [now - ref for (now,), (ref,) in zip(self.now, self.ref, strict=True)]

    def of(self, kind: type) -> Batch:
        """The examples of a kind."""
        at = [n for n, one in enumerate(self.examples) if isinstance(one, kind)]
        return Batch(
            examples=[self.examples[n] for n in at], now=[self.now[n] for n in at], ref=[self.ref[n] for n in at]
        )


def drawn(examples: Sequence[Example], *, off: bool) -> Batch:
    """On policy what is sampled, learned and referred to is one; off it they are far enough apart for clips to bind."""
    generator = torch.Generator().manual_seed(len(examples))
    found, now, ref = list[Any](), list[list[Tensor]](), list[list[Tensor]]()
    for example in examples:
        sizes = [len(one.token_ids) for one in example.completions]
        old = [-1.5 * torch.rand(size, generator=generator) - 0.05 for size in sizes]
        moved = [0.5 * off * torch.randn(size, generator=generator) for size in sizes]
        old[0][0], moved[0][0] = -2.5, 2.0 * off  # beyond CISPO's limit of 5
        away = [0.3 * off * torch.randn(size, generator=generator) for size in sizes]
        found.append(example)
        if isinstance(example, ScoredCompletion):
            recorded = replace(example.completion, logprobs=tuple(old[0].tolist()))
            found[-1] = replace(example, completion=recorded)
        now.append([(a + b).clamp(max=-0.01).requires_grad_() for a, b in zip(old, moved, strict=True)])
        ref.append([a + b for a, b in zip(old, away, strict=True)])
    return Batch(examples=found, now=now, ref=ref)


def answers(advantages: Sequence[float] = ADVANTAGES, *, weights: Sequence[float] = (1.0,) * 5) -> list[Example]:
    """An answer each; the second and third are two steps of one."""
    places = ((0, 0), (1, 0), (2, 1), (3, 0), (4, 0))
    return [
        ScoredCompletion(
            request=replace(request("answer", 1), max_tokens=LONGEST), completion=completion(*range(5, 5 + length)),
            advantage=advantage, weight=weight, problem_id="p", node=node, depth=depth,
        )
        for length, advantage, weight, (node, depth) in zip(LENGTHS, advantages, weights, places, strict=True)
    ]  # fmt: skip


def alone(*_: object) -> list[Example]:
    """Answers of one completion each."""
    return [replace(one, depth=0) for one in answers()]


def pairs() -> list[Example]:
    """Completions that begin alike, of which some go on together longer than others."""
    sides = (((5, 6, 7), (5, 8)), ((9, 4), (3, 4, 5, 6)), ((5, 6, 7, 8), (5, 6, 7, 9)), ((4,), (6, 7)))
    return [
        Pair(request=request("answer", 1), chosen=completion(*a), rejected=completion(*b), margin=margin, weight=weight)
        for (a, b), margin, weight in zip(sides, (0.6, 1.5, 2.0, 0.4), (1.0, 8.0, 0.5, 1.0), strict=True)
    ]


def texts() -> list[Example]:
    return answers([1.0] * 5)


def words(role: str, advantages: Sequence[float]) -> list[Example]:
    """Choices between two words."""
    asked = Request(role=role, prompt_ids=(1,), choices=CHOICES)
    return [
        ScoredCompletion(request=asked, completion=completion(CHOICES[n % 2], choice=n % 2), advantage=advantage)
        for n, advantage in enumerate(advantages)
    ]


# ---- policy gradients ------------------------------------------------------------------------------------------------


def surrogate(ratio: Tensor, advantage: float, low: float = 0.2, high: float = 0.2) -> Tensor:
    """PPO's loss of each ratio."""
    return torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))


def ppo(batch: Batch, **clip: float) -> list[Tensor]:
    return [surrogate(r, e.advantage, **clip) for r, e in zip(batch.ratios, batch.examples, strict=True)]


def k3(away: Tensor) -> Tensor:
    return (-away).exp() + away - 1


def mean(rows: Sequence[Tensor]) -> Tensor:
    """Of an update's answers."""
    return torch.stack([*rows]).mean()


def grpo(b: Batch) -> Tensor:
    """Equation 3 with 4: of each answer a mean over its tokens."""
    return mean([(loss + 0.04 * k3(away)).mean() for loss, away in zip(ppo(b), b.away, strict=True)])


def dr_grpo(b: Batch) -> Tensor:
    return mean([loss.sum() / LONGEST for loss in ppo(b)])


def dapo(b: Batch) -> Tensor:
    """Equation 8: over all tokens of the group."""
    return torch.cat(ppo(b, low=0.2, high=0.28)).mean()


def gspo(b: Batch) -> Tensor:
    """Equation 5, with the ratio of equation 7."""
    ratios = [(now - old).mean().exp() for (now,), old in zip(b.now, b.old, strict=True)]
    return mean([surrogate(r, e.advantage, 3e-4, 4e-4) for r, e in zip(ratios, b.examples, strict=True)])


def cispo(b: Batch) -> Tensor:
    """Equation 4: a clipped ratio without a gradient, over all tokens."""
    rows = zip(b.ratios, b.examples, b.now, strict=True)
    return torch.cat([-r.detach().clamp(max=5.0) * e.advantage * now for r, e, (now,) in rows]).mean()


def rloo(b: Batch) -> Tensor:
    """A ratio of whole answers' probabilities, and k2 summed over each."""
    rows = zip(b.now, b.old, b.examples, b.away, strict=True)
    return mean([
        surrogate((now - old).sum().exp(), e.advantage) + 0.03 * (away.square() / 2).sum()
        for (now,), old, e, away in rows
    ])  # fmt: skip


def reinforce_pp(kl: float) -> Callable[[Batch], Tensor]:
    """OpenRLHF's `PolicyLoss` and its KL loss, both means over all tokens (3c3be623, models/loss.py, ppo_actor.py)."""
    return lambda b: torch.cat(ppo(b)).mean() + kl * (torch.cat(b.away).square() / 2).mean()


def vineppo(b: Batch) -> Tensor:
    """The authors' `_compute_actor_loss`: a mean over tokens, and kl.sum(dim=1).mean() over the four answers."""
    return torch.cat(ppo(b)).mean() + 1e-4 * k3(torch.cat(b.away)).clamp(0, 10).sum() / 4


def spo(b: Batch) -> Tensor:
    """The authors' loss over the tokens below 0.9, by the weights that a segment's share of them gives."""
    kept = [old.exp() < 0.9 for old in b.old]
    rows = zip(ppo(b), b.away, kept, b.examples, strict=True)
    return mean([e.weight * loss[k].mean() + 1e-4 * k3(away)[k].sum() for loss, away, k, e in rows if k.any()])


def treerpo(b: Batch) -> Tensor:
    rows = zip(ppo(b), b.away, b.examples, strict=True)
    return mean([e.weight * (loss + 1e-3 * k3(away)).mean() for loss, away, e in rows])


def treerl(b: Batch) -> Tensor:
    """The authors' `ReinforcePolicyLoss`, of each sequence a mean."""
    return mean([e.weight * loss.mean() for loss, e in zip(ppo(b, high=0.26), b.examples, strict=True)])


# ---- pairs and imitation ---------------------------------------------------------------------------------------------


def logits(b: Batch) -> Tensor:
    """Differences of log-ratios."""
    rows = zip(b.now, b.ref, strict=True)
    return torch.stack([(now[0] - ref[0]).sum() - (now[1] - ref[1]).sum() for now, ref in rows])


def weights(b: Batch) -> Tensor:
    return torch.tensor([e.weight for e in b.examples])


def dpo(beta: float) -> Callable[[Batch], Tensor]:
    return lambda b: -(weights(b) * logsigmoid(beta * logits(b))).mean()


def iterative_rpo(b: Batch) -> Tensor:
    """Equation 1: the likelihood of the chosen answer divided by its length, and DPO's loss."""
    likelihood = torch.stack([now[0].sum() / len(now[0]) for now in b.now])
    return (weights(b) * (-likelihood - logsigmoid(0.1 * logits(b)))).mean()


def odds_ratio(b: Batch) -> Tensor:
    """The authors' run_orpo.py: the likelihood of the chosen path, and log odds of the means of what is not in the
    longest common prefix, found by a running product of matches."""
    losses: list[Tensor] = []
    for example, now in zip(b.examples, b.now, strict=True):
        size = max(map(len, now))
        ids = torch.stack([
            torch.tensor([*one.token_ids, *[-100 - side] * (size - len(one.token_ids))])
            for side, one in enumerate(example.completions)
        ])  # fmt: skip
        common = torch.cumprod(ids[0] == ids[1], dim=0).bool()
        chosen, rejected = (one[~common[: len(one)]].mean() for one in now)
        odds = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
        losses.append(example.weight * (-now[0].mean() - 0.3 * logsigmoid(odds)))
    return mean(losses)


def nll(b: Batch) -> Tensor:
    return mean([-now.mean() for (now,) in b.now])


def cpl(b: Batch) -> Tensor:
    """The authors' "sigmoid_a_1.0" (train/dpo/trainer.py): alpha times the difference of the values is added to beta
    times that of the log-ratios, the rejected one's first; and the squared error of tanh of a logit to a state's Q."""
    plans, scored = b.of(Pair), b.of(ScoredCompletion)
    behind = torch.tensor([-e.margin for e in plans.examples])
    total = -(weights(plans) * logsigmoid(0.3 * logits(plans) + behind)).sum()
    for example, (now,) in zip(scored.examples, scored.now, strict=True):
        if not example.request.choices:
            total = total - now.mean()
            continue
        # Of two words with probabilities p and 1 - p, half their log-odds is the logit of the first.
        logit = (now[0] - torch.log1p(-now[0].exp())) / 2
        total = total + (logit.tanh() - (2 * example.advantage - 1)) ** 2
    return total / len(b.examples)


def beside(beta: float, others: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """DPO of the pairs, and a loss of what is scored, each example counted once."""

    def loss(b: Batch) -> Tensor:
        twos, ones = b.of(Pair), b.of(ScoredCompletion)
        return (dpo(beta)(twos) * len(twos.examples) + others(ones) * len(ones.examples)) / len(b.examples)

    return loss


SEGMENTS = lambda: [replace(one, depth=0) for one in answers(weights=(0.5, 2.0, 1.0, 0.25, 1.25))]  # noqa: E731
STOPS = lambda: [*pairs(), *words("stop", [1.0] * 3)]  # noqa: E731
ORACLES: dict[str, tuple[Callable[[], list[Example]], Callable[[Batch], Tensor]]] = {
    "flow-dpo": (STOPS, beside(1.0, nll)), "flow-dpo-paper": (pairs, dpo(1.0)),
    "online-dpo": (pairs, dpo(0.1)), "step-dpo": (pairs, dpo(0.5)), "iterative-rpo": (pairs, iterative_rpo),
    "rpo": (pairs, odds_ratio),
    "cpl": (lambda: [*pairs(), *texts(), *words("value", [0.9, 0.55, 0.7])], cpl),
    "malt": (lambda: [*pairs(), *texts()], beside(0.2, nll)),
    "grpo": (alone, grpo), "dapo": (alone, dapo), "dr-grpo": (alone, dr_grpo), "gspo": (alone, gspo),
    "cispo": (alone, cispo), "rloo": (alone, rloo), "reinforce-pp": (alone, reinforce_pp(0.01)),
    "reinforce-baseline": (alone, reinforce_pp(1e-5)), "vineppo": (answers, vineppo),
    "spo-chain": (SEGMENTS, spo), "spo-tree": (SEGMENTS, spo), "treerpo": (SEGMENTS, treerpo),
    "treerl": (SEGMENTS, treerl),
    "rejection-sampling": (texts, nll), "regenesis": (texts, nll), "dots": (texts, nll),
}  # fmt: skip


def test_every_recipe_has_an_oracle() -> None:
    assert set(ORACLES) == set(RECIPES)


@pytest.mark.parametrize("off", [False, True], ids=["on policy", "off policy"])
@pytest.mark.parametrize("recipe", ORACLES)
def test_value_and_gradient_are_the_papers(recipe: str, off: bool) -> None:
    # Flow-DPO's paper has pairs alone.
    objective: Any = RECIPES[recipe]["chat" if recipe == "flow-dpo" else "paper"].recipe.objective
    make, oracle = ORACLES[recipe]
    batch = drawn(make(), off=off)
    kinds = objective.needs_reference
    kinds = objective.accepts if kinds is True else kinds or ()
    references = [ref if isinstance(e, kinds) else () for e, ref in zip(batch.examples, batch.ref, strict=True)]
    loss = objective(batch.examples, batch.now, references if kinds else [])
    found, wanted = loss.total / len(batch.examples), oracle(batch)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-7)
    mine, theirs = (torch.autograd.grad(one, batch.flat, materialize_grads=True) for one in (found, wanted))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert any(bool(one.abs().sum()) for one in mine)
    assert bool(loss.measures.get("clipped", torch.tensor(float(off)))) is off, "off policy some clip binds"
