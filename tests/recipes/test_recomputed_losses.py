"""Are the losses that a run of a recipe reports its paper's, computed in plain floats from what the run recorded?

From the log-probabilities of every learned token, those it was sampled with, advantages, margins and weights. Nothing
of a recipe is imported. Four updates: the first on policy, where reference and policy are one, the others off it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import pytest

from tests.support.recipe_runs import Recorded, Row, Runs, above, each

LONGEST = 128
"""Tokens that an answer of the seed may have."""


@dataclass(frozen=True)
class Learned:
    """An example in one update."""

    row: Row
    """Its own, in pairs.jsonl or scored.jsonl."""
    policy: list[list[float]]
    reference: list[list[float]]
    old: list[float]
    """Of a completion, when it was sampled."""
    answer: tuple[str, int]
    """Problem and first node of the rollout from the beginning that it is of."""

    @property
    def now(self) -> list[float]:
        [only] = self.policy
        return only

    @property
    def away(self) -> list[float]:
        """log ref - log pi of each token."""
        return [r - p for r, p in zip(self.reference[0], self.now, strict=True)]

    @property
    def ratios(self) -> list[float]:
        return [math.exp(p - o) for p, o in zip(self.now, self.old, strict=True)]


Update = Sequence[Learned]
Loss = Callable[[Update], dict[str, tuple[float, int]]]
"""Of an update each measure, and of how many examples it is the mean."""


def updates(run: Recorded) -> dict[str, list[Update]]:
    """By role."""
    pairs = {(row["problem_id"], row["node"], row["rejected_node"]): row for row in run.pairs}
    scored = {(row["problem_id"], row["node"], None): row for row in run.scored}
    found: dict[tuple[str, int], list[Learned]] = {}
    for row in run.learned:
        key = (row["problem_id"], row["node"], row["rejected_node"])
        tree = run.tree(row["problem_id"])
        one = Learned(
            (scored if row["rejected_node"] is None else pairs)[key],
            row["policy"], row["reference"], tree["nodes"][row["node"]]["logprobs"],
            (row["problem_id"], above(tree, row["node"])[0]),
        )  # fmt: skip
        found.setdefault((row["role"], row["version"]), []).append(one)
    return {role: [one for (whose, _), one in sorted(found.items()) if whose == role] for role, _ in found}


def k3(away: float) -> float:
    return math.exp(away) - away - 1


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def gains(one: Learned, ratios: Sequence[float], low: float, high: float) -> list[float]:
    """min(r A, clip(r) A) of each token."""
    advantage = one.row["advantage"]
    return [min(r * advantage, min(max(r, 1 - low), 1 + high) * advantage) for r in ratios]


def whole(losses: Sequence[float]) -> dict[str, tuple[float, int]]:
    return {"loss": (fmean(losses), len(losses))}


# ---- policy gradients ------------------------------------------------------------------------------------------------


def grpo(update: Update) -> dict[str, tuple[float, int]]:
    return whole([fmean(map(k3, one.away)) * 0.04 - fmean(gains(one, one.ratios, 0.2, 0.2)) for one in update])


def dr_grpo(update: Update) -> dict[str, tuple[float, int]]:
    return whole([-sum(gains(one, one.ratios, 0.2, 0.2)) / LONGEST for one in update])


def dapo(update: Update) -> dict[str, tuple[float, int]]:
    every = [gain for one in update for gain in gains(one, one.ratios, 0.2, 0.28)]
    return {"loss": (-fmean(every), len(update))}


def gspo(update: Update) -> dict[str, tuple[float, int]]:
    means = [math.exp(fmean(p - o for p, o in zip(one.now, one.old, strict=True))) for one in update]
    return whole([-gains(one, [mean], 3e-4, 4e-4)[0] for one, mean in zip(update, means, strict=True)])


def cispo(update: Update) -> dict[str, tuple[float, int]]:
    every = [min(r, 5.0) * one.row["advantage"] * p for one in update for r, p in zip(one.ratios, one.now, strict=True)]
    return {"loss": (-fmean(every), len(update))}


def rloo(update: Update) -> dict[str, tuple[float, int]]:
    return whole(
        [
            0.03 * sum(away**2 / 2 for away in one.away) - gains(one, [math.prod(one.ratios)], 0.2, 0.2)[0]
            for one in update
        ]
    )


def reinforce_pp(kl: float) -> Loss:
    def loss(update: Update) -> dict[str, tuple[float, int]]:
        every = [
            kl * away**2 / 2 - gain
            for one in update
            for away, gain in zip(one.away, gains(one, one.ratios, 0.2, 0.2), strict=True)
        ]
        return {"loss": (fmean(every), len(update))}

    return loss


def vineppo(update: Update) -> dict[str, tuple[float, int]]:
    """A mean over tokens, and a divergence summed over each answer, whose steps are examples."""
    every = [gain for one in update for gain in gains(one, one.ratios, 0.2, 0.2)]
    divergences: dict[tuple[str, int], float] = {}
    for one in update:
        assert fmean(one.ratios) <= 10
        divergences[one.answer] = divergences.get(one.answer, 0.0) + sum(min(k3(away), 10.0) for away in one.away)
    assert 1 < len(divergences) < len(update)
    return {"loss": (0.02 * fmean(divergences.values()) - fmean(every), len(update))}


def segments(*, high: float, kl: float, summed: bool, sure: float, most: float = math.inf) -> Loss:
    """Of the tokens that were less sure: a mean times the weight, and a divergence of at most so much a token; nothing
    where their mean ratio is above that."""

    def of(one: Learned) -> float:
        kept = [at for at, value in enumerate(one.old) if math.exp(value) < sure]
        if fmean(one.ratios[at] for at in kept) > most:
            return 0.0
        policy = gains(one, one.ratios, 0.2, high)
        divergence = [min(k3(one.away[at]), most) for at in kept] if kl else [0.0]
        penalty = sum(divergence) if summed else one.row["weight"] * fmean(divergence)
        return kl * penalty - one.row["weight"] * fmean(policy[at] for at in kept)

    return lambda update: whole([of(one) for one in update])


spo = segments(high=0.2, kl=0.05, summed=True, sure=0.9, most=10.0)

# ---- pairs and imitation ---------------------------------------------------------------------------------------------


def dpo_of(one: Learned, beta: float, *, sft: float = 0.0, margin: float = 0.0) -> float:
    chosen, rejected = (sum(p) - sum(r) for p, r in zip(one.policy, one.reference, strict=True))
    wanted = beta * (chosen - rejected) - margin * one.row["margin"]
    return one.row["weight"] * (-log_sigmoid(wanted) - sft * fmean(one.policy[0]))


def dpo(beta: float, **more: float) -> Loss:
    return lambda update: whole([dpo_of(one, beta, **more) for one in update])


def odds_ratio(update: Update) -> dict[str, tuple[float, int]]:
    """Likelihood of the chosen path, and log odds of the means of what is not common to both."""
    losses: list[float] = []
    for one in update:
        sides = one.row["chosen_ids"], one.row["rejected_ids"]
        shared = next(at for at, (a, b) in enumerate(zip(*sides, strict=False)) if a != b)
        means = [fmean(logprobs[shared:]) for logprobs in one.policy]
        chosen, rejected = (mean - math.log(1 - math.exp(mean)) for mean in means)
        losses.append(one.row["weight"] * (-fmean(one.policy[0]) - 0.3 * log_sigmoid(chosen - rejected)))
    return whole(losses)


def nll_of(one: Learned) -> float:
    assert one.row["advantage"] == one.row["weight"] == 1.0
    return -fmean(one.now)


def nll(update: Update) -> dict[str, tuple[float, int]]:
    return whole([nll_of(one) for one in update])


def kinds(update: Update) -> tuple[list[Learned], list[Learned]]:
    """Pairs, and what is scored."""
    return [one for one in update if "margin" in one.row], [one for one in update if "advantage" in one.row]


def malt(update: Update) -> dict[str, tuple[float, int]]:
    pairs, scored = kinds(update)
    found = {"loss": [dpo_of(one, 0.2) for one in pairs], "likelihood_loss": [nll_of(one) for one in scored]}
    return {name: (fmean(values), len(values)) for name, values in found.items() if values}


def cpl(update: Update) -> dict[str, tuple[float, int]]:
    """Each kind's mean: Step-APO, likelihood, and the squared error of a value from -1 to 1."""
    pairs, scored = kinds(update)
    words = [one for one in scored if one.row["role"] == "value"]
    found = {
        "loss": [dpo_of(one, 0.3, margin=1.0) for one in pairs],
        "likelihood_loss": [nll_of(one) for one in scored if one.row["role"] != "value"],
        "value_loss": [(2 * math.exp(one.now[0]) - 1 - (2 * one.row["advantage"] - 1)) ** 2 for one in words],
    }
    return {name: (fmean(values), len(values)) for name, values in found.items() if values}


LOSSES: dict[str, Loss] = {
    "flow-dpo-paper": dpo(1.0), "online-dpo": dpo(0.1), "step-dpo": dpo(0.5),
    "iterative-rpo": dpo(0.1, sft=1.0), "cpl": cpl, "malt": malt, "rpo": odds_ratio,
    "grpo": grpo, "dapo": dapo, "dr-grpo": dr_grpo, "gspo": gspo, "cispo": cispo, "rloo": rloo,
    "reinforce-pp": reinforce_pp(0.01), "reinforce-baseline": reinforce_pp(0.1), "vineppo": vineppo,
    "spo-chain": spo, "spo-tree": spo,
    "treerpo": segments(high=0.2, kl=1e-3, summed=False, sure=math.inf),
    "treerl": segments(high=0.26, kl=0.0, summed=False, sure=math.inf),
    "rejection-sampling": nll, "regenesis": nll, "dots": nll,
}  # fmt: skip


@pytest.mark.parametrize("recipe", each(LOSSES))
def test_losses_of_a_run(recipe: str, runs: Runs) -> None:
    run = runs(recipe)
    [metrics] = run.metrics
    moved = 0.0
    for role, mine in updates(run).items():
        found: dict[str, list[tuple[float, int]]] = {}
        for update in mine:
            for name, measure in LOSSES[recipe](update).items():
                found.setdefault(name, []).append(measure)
        for name, measures in found.items():
            wanted = sum(value * count for value, count in measures) / sum(count for _, count in measures)
            # Log-probabilities are recorded to four decimals, rounded either way.
            assert metrics[f"learn/{role}/{name}"] == pytest.approx(wanted, rel=0, abs=2e-5), (role, name)
        assert metrics[f"learn/{role}/pairs"] == sum(map(len, mine))
        first, last = (
            {(one.row["problem_id"], one.row["node"]): one.policy for one in update} for update in (mine[0], mine[-2])
        )
        moved = max([moved, *(abs(sum(a[0]) - sum(b[0])) for k, a in first.items() if (b := last.get(k)))])
    assert moved > 0.05, "the same completions are learned twice, the second time off policy"
