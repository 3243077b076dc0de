"""Is a judgement the best fit of its evidence, and its threshold what trying again is worth?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from flow_dpo.core.errors import ConfigError
from flow_dpo.core.types import Problem, Request, Sampling
from flow_dpo.engines.choices import choose
from flow_dpo.recipes.flow_dpo.attempts import Attempts
from flow_dpo.recipes.flow_dpo.judgement import Evidence, Judgement, calibrate
from tests.support import attempt_worlds as worlds
from tests.support.attempt_worlds import PROBLEMS, plain, word


def some(seed: int, num: int = 60, *, mix: float = 0.0, weights: tuple[float, float] = (1.0, 1.0)) -> list[Evidence]:
    """Random evidence whose two features hang together by `mix`, and verdicts that depend on both."""
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=num), rng.normal(size=num)
    second = mix * one + math.sqrt(1 - mix * mix) * other
    chance = 1 / (1 + np.exp(-(weights[0] * one + weights[1] * second - 0.3)))
    rights = rng.random(num) < chance
    afters = [[None, True, False][at] for at in rng.integers(3, size=num)]
    return [
        Evidence(log_odds=2 * float(a) + 1, mean_logprob=0.05 * float(b) - 0.2, right=bool(right), after=after)
        for a, b, right, after in zip(one, second, rights, afters, strict=True)
    ]


def fitted(evidence: Sequence[Evidence]) -> Judgement:
    found = calibrate(evidence, least_gain=0.02, recall=True)
    assert found is not None
    return found[0]


def loss(evidence: Sequence[Evidence], bias: float, stop: float, likelihood: float) -> float:
    """Minus the log-likelihood, and half the squares of the weights of features in standard deviations: a plain sum."""
    total = 0.0
    for one in evidence:
        score = bias + stop * one.log_odds + likelihood * one.mean_logprob
        score = score if one.right else -score
        total += math.log1p(math.exp(-score)) if score > -30 else -score
    scales = [float(np.std([getattr(one, name) for one in evidence])) for name in ("log_odds", "mean_logprob")]
    return total + ((stop * scales[0]) ** 2 + (likelihood * scales[1]) ** 2) / 2


def best_by_scipy(evidence: Sequence[Evidence]) -> tuple[float, Any]:
    """The least loss of non-negative weights, by a general optimizer from two starts, of scaled weights."""
    spread = np.array([1.0, np.std([one.log_odds for one in evidence]), np.std([one.mean_logprob for one in evidence])])

    def scaled(x: Any) -> float:
        return loss(evidence, *(x / spread))

    bounds = [(None, None), (0, None), (0, None)]
    starts = ([0.0, 0.0, 0.0], [0.5, 1.0, 1.0])
    runs = [
        optimize.minimize(scaled, start, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9})
        for start in starts
    ]
    best = min(runs, key=lambda run: run.fun)
    return float(best.fun), best.x / spread


CASES = [
    (mix, weights)
    for mix in (-0.9, 0.0, 0.9)
    for weights in ((1.0, 1.0), (1.5, -1.0), (-1.0, 1.5), (-1.0, -0.3), (-1.5, -1.0), (-1.0, -1.0))
]


# ---- the fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mix", "weights"), CASES)
def test_the_fit_is_the_best_of_weights_from_0(mix: float, weights: tuple[float, float]) -> None:
    for seed in range(3):
        evidence = some(seed, mix=mix, weights=weights)
        judgement = fitted(evidence)
        least, found = best_by_scipy(evidence)
        assert min(judgement.stop, judgement.likelihood) >= 0
        assert loss(evidence, judgement.bias, judgement.stop, judgement.likelihood) <= least + 1e-7
        for one in evidence:
            mine = judgement.chance(one.log_odds, one.mean_logprob)
            other = 1 / (1 + math.exp(-(found[0] + found[1] * one.log_odds + found[2] * one.mean_logprob)))
            assert mine == pytest.approx(other, abs=2e-3)


def test_one_feature_helps_where_both_would_be_against_it_together() -> None:
    """Leaving out both that are negative beside each other would lose what each says alone."""
    rng = np.random.default_rng(5)
    one = rng.normal(size=400)
    second = -0.95 * one + math.sqrt(1 - 0.95**2) * rng.normal(size=400)
    right = rng.random(400) < 1 / (1 + np.exp(2 * one + 1.2 * second))
    evidence = [
        Evidence(log_odds=float(a), mean_logprob=float(b), right=bool(r))
        for a, b, r in zip(one, second, right, strict=True)
    ]
    # Unconstrained, both weights are negative.
    free = optimize.minimize(lambda x: loss(evidence, *x), [0.0, 0.0, 0.0], method="BFGS").x
    assert max(free[1:]) < 0
    judgement = fitted(evidence)
    assert (judgement.stop, judgement.likelihood > 0.1) == (0.0, True)
    assert loss(evidence, judgement.bias, judgement.stop, judgement.likelihood) <= best_by_scipy(evidence)[0] + 1e-7


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 99),
    scales=st.tuples(st.floats(0.02, 5), st.floats(0.02, 5)),
    moves=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
)
def test_units_change_no_probability(seed: int, scales: tuple[float, float], moves: tuple[float, float]) -> None:
    evidence = some(seed, 40, mix=0.3)
    other = [
        replace(one, log_odds=scales[0] * one.log_odds + moves[0], mean_logprob=scales[1] * one.mean_logprob + moves[1])
        for one in evidence
    ]
    first, second = (calibrate(each, least_gain=0.0213, recall=True) for each in (evidence, other))
    if first is None or second is None:
        assert first is second
        return
    assert first[1] == pytest.approx(second[1], abs=0.0051)
    for one, two in zip(evidence, other, strict=True):
        before = first[0].chance(one.log_odds, one.mean_logprob)
        assert before == pytest.approx(second[0].chance(two.log_odds, two.mean_logprob), abs=1e-6)


@pytest.mark.parametrize("kind", ["constant", "one constant", "collinear", "huge", "infinite", "separable"])
def test_what_degenerates_still_gives_a_probability(kind: str) -> None:
    evidence = some(1, 40)
    if kind == "constant":
        evidence = [replace(one, log_odds=0.1, mean_logprob=-0.3) for one in evidence]
    if kind == "one constant":
        evidence = [replace(one, mean_logprob=-0.3) for one in evidence]
    if kind == "collinear":
        evidence = [replace(one, mean_logprob=0.1 * one.log_odds) for one in evidence]
    if kind == "huge":
        evidence = [
            replace(one, log_odds=one.log_odds * 1e300, mean_logprob=one.mean_logprob * 1e9) for one in evidence
        ]
    if kind == "infinite":
        evidence = [replace(one, log_odds=math.copysign(math.inf, one.log_odds)) for one in evidence]
    if kind == "separable":
        evidence = [replace(one, log_odds=60.0 if one.right else -60.0) for one in evidence]
    found = calibrate(evidence, least_gain=0.02, recall=True)
    assert found is not None
    judgement, threshold = found
    assert all(math.isfinite(value) for value in (*asdict(judgement).values(), threshold))
    assert min(judgement.stop, judgement.likelihood) >= 0
    chances = [judgement.chance(one.log_odds, one.mean_logprob) for one in evidence]
    share = sum(one.right for one in evidence) / len(evidence)
    # The intercept has no prior: the mean of the probabilities is the share of right attempts.
    assert sum(chances) / len(chances) == pytest.approx(share, abs=1e-6)
    if kind == "constant":
        assert chances == pytest.approx([share] * len(chances))
        assert threshold == pytest.approx(math.floor((share - 0.02) * 200 + 1e-9) / 200)
    if kind == "separable":
        assert min(c for c, one in zip(chances, evidence, strict=True) if one.right) > 0.8
        assert max(c for c, one in zip(chances, evidence, strict=True) if not one.right) < 0.2


@pytest.mark.parametrize(("num_right", "num_wrong"), [(7, 100), (100, 7), (0, 0), (0, 50)])
def test_too_little_evidence_says_nothing(num_right: int, num_wrong: int) -> None:
    rows = [Evidence(log_odds=1.0, mean_logprob=-0.1, right=at < num_right) for at in range(num_right + num_wrong)]
    assert calibrate(rows, least_gain=0.02, recall=True) is None
    flow = Attempts(threshold=0.7)
    assert flow.calibrated([asdict(one) for one in rows]) is flow
    enough = [Evidence(log_odds=1.0, mean_logprob=-0.1, right=at < 8) for at in range(16)]
    assert calibrate(enough, least_gain=0.02, recall=True) is not None


# ---- the threshold ---------------------------------------------------------------------------------------------------


def worth_by_hand(evidence: Sequence[Evidence], judgement: Judgement, p: float, *, recall: bool) -> float:
    """What trying again is worth at p, attempt by attempt."""
    chances = [judgement.chance(one.log_odds, one.mean_logprob) for one in evidence]
    every = sum(max(p, c) if recall else c for c in chances) / len(chances)
    found: dict[bool, float] = {}
    for before in (True, False):
        total, num = 0.0, 0
        for one, chance in zip(evidence, chances, strict=True):
            if one.after is before:
                total, num = total + (max(p, chance) if recall else chance), num + 1
        found[before] = (total + 8 * every) / (num + 8)
    return p * found[True] + (1 - p) * found[False]


@pytest.mark.parametrize("recall", [True, False])
def test_the_threshold_is_where_trying_again_adds_too_little(recall: bool) -> None:
    for seed in range(8):
        evidence = some(seed, 50, weights=(2.0, 0.5))
        last = 1.0
        for least_gain in (0.0, 0.011, 0.023, 0.051, 0.13, 1.0):
            found = calibrate(evidence, least_gain=least_gain, recall=recall)
            assert found is not None
            judgement, threshold = found
            worthwhile = [
                at / 200
                for at in range(201)
                if worth_by_hand(evidence, judgement, at / 200, recall=recall) - at / 200 >= least_gain - 1e-9
            ]
            assert threshold == pytest.approx(max(worthwhile, default=0.0), abs=1e-12)
            # The more that a further attempt must add, the sooner one is accepted.
            assert threshold <= last
            last = threshold
        assert last == 0.0


def test_a_threshold_by_hand() -> None:
    """All attempts are alike, a quarter right: trying again is worth a quarter, and .02 are asked for."""
    rows = [Evidence(log_odds=1.0, mean_logprob=-0.1, right=at < 10, after=None) for at in range(40)]
    for recall in (True, False):
        found = calibrate(rows, least_gain=0.02, recall=recall)
        assert found is not None
        assert found[1] == pytest.approx(0.23)
        assert found[0].chance(1.0, -0.1) == pytest.approx(0.25)
    # With recall nothing is lost by going on, so that for no gain at all one never stops.
    assert (calibrate(rows, least_gain=0.0, recall=True) or ("", 0.0))[1] == 1.0
    assert (calibrate(rows, least_gain=0.0, recall=False) or ("", 0.0))[1] == pytest.approx(0.25)


# ---- the choice that follows -----------------------------------------------------------------------------------------

WEIGHTS = st.one_of(st.just(0.0), st.floats(1e-3, 10))


@settings(deadline=None, max_examples=300)
@given(
    judgement=st.builds(Judgement, bias=st.floats(-8, 8), stop=WEIGHTS, likelihood=WEIGHTS),
    threshold=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0.001, 0.999)),
    yes=st.floats(-20, 20),
    mean=st.floats(-3, 0),
)
def test_an_attempt_is_accepted_where_its_probability_exceeds_the_threshold(
    judgement: Judgement, threshold: float, yes: float, mean: float
) -> None:
    """By the engine's own rule for a choice, which sees the threshold of P(Yes) alone."""
    chance = judgement.chance(yes, mean)
    if 0 < threshold < 1 and math.isclose(chance, threshold, rel_tol=1e-9, abs_tol=1e-9):
        return
    flow = Attempts(threshold=threshold, judgement=judgement, chunk_tokens=4, max_chunks=1)
    state = flow.start(Problem(id="p", question="?", gold="1"))
    written = replace(plain(5, worlds.END, ended=True), logprobs=(mean, mean))
    turn = flow.turn(state := flow.advance(state, written))
    assert turn is not None
    assert turn.threshold is not None
    assert 0 <= turn.threshold <= 1
    least_odds = math.inf if turn.threshold == 1 else -math.inf if turn.threshold == 0 else (
        math.log(turn.threshold) - math.log1p(-turn.threshold)
    )  # fmt: skip
    if math.isclose(least_odds, yes, rel_tol=1e-6, abs_tol=1e-6):
        return
    request = Request(role="stop", prompt_ids=(1,), choices=(worlds.YES, worlds.NO))
    completion = choose([yes, 0.0], request, Sampling(threshold=turn.threshold), seed=0)
    if abs(least_odds) < 30:  # beyond, a threshold of P(Yes) is 0 or 1 in floating point
        assert (completion.choice == 0) == (chance > threshold)
    after = flow.advance(state, completion)
    judged = after.refused[0] if after.refused else after.attempt
    assert judged.log_odds == pytest.approx(judgement.log_odds(yes, mean), abs=1e-9)


def test_a_plain_judgement_leaves_the_threshold_as_it_is() -> None:
    for threshold in (0.0, 0.1, 0.8500660267800519, 1 / 3, 1.0):
        assert Judgement().least_yes(threshold, mean_logprob=-2.0) == threshold
    assert Judgement(stop=2.0).least_yes(0.5, -1.0) == 0.5


def test_the_best_by_the_judgement_answers() -> None:
    """What Stop likes less was found likelier by Answer, by more than that."""
    flow = Attempts(chunk_tokens=2, max_chunks=1, max_attempts=2, threshold=1.0, judgement=Judgement(likelihood=4.0))
    state = flow.start(PROBLEMS[0])
    for token, mean, odds in ((5, -0.9, 2.0), (6, -0.1, 1.0)):
        state = flow.advance(state, replace(plain(token, worlds.END, ended=True), logprobs=(mean, mean)))
        state = flow.advance(state, word(1, odds, 0.0))
    assert flow.turn(state) is None
    assert worlds.flat(flow.solution(state).pieces) == (6,)
    assert [one.log_odds for one in state.refused] == pytest.approx([2.0 - 3.6, 1.0 - 0.4])


@pytest.mark.parametrize("threshold", [0.5, None])
def test_a_least_gain_that_is_no_probability_is_refused(threshold: float | None) -> None:
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="least_gain"):
            Attempts(threshold=threshold, least_gain=wrong)
