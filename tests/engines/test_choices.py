"""Is a choice taken by its threshold, its seed or its rank as the rule says, to the last bit?"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_dpo.core.errors import EngineError
from flow_dpo.core.types import Completion, Request, Sampling
from flow_dpo.engines.choices import choose

REQUEST = Request(role="stop", prompt_ids=(1,), choices=(8, 9))


def taken(scores: list[float], sampling: Sampling, **more: object) -> Completion:
    return choose(scores, REQUEST, sampling, **{"seed": 7, **more})  # type: ignore[arg-type]


@given(
    score=st.floats(-50, 50), odds=st.floats(-30, 30), threshold=st.floats(0, 1), greedy=st.booleans(),
    temperature=st.sampled_from([0.1, 1.0, 3.0]), seed=st.integers(0, 2**40),
)  # fmt: skip
def test_the_first_exceeds_the_threshold_or_the_second_is_taken(
    score: float, odds: float, threshold: float, greedy: bool, temperature: float, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, greedy=greedy, threshold=threshold)
    scores = [score + odds, score]
    found, free = taken(scores, sampling, seed=seed), taken(scores, Sampling(), seed=seed)
    assert found.choice_logprobs == free.choice_logprobs
    p = 1 / (1 + math.exp(scores[1] - scores[0]))
    if abs(p - threshold) > 1e-9:
        assert found.choice == (0 if p > threshold else 1)
    assert found.token_ids == (REQUEST.choices[found.choice or 0],)
    scaled = [value / temperature for value in found.choice_logprobs]
    total = max(scaled) + math.log(sum(math.exp(value - max(scaled)) for value in scaled))
    assert found.sampled_logprobs[0] == pytest.approx(scaled[found.choice or 0] - total, abs=1e-9)
    assert found.sampled_logprobs[0] <= 0


@given(score=st.floats(-1000, 1000), greedy=st.booleans(), seed=st.integers(0, 2**40))
def test_a_tie_does_not_exceed_one_half(score: float, greedy: bool, seed: int) -> None:
    """Logits in bfloat16 tie often; neither rounding nor the seed makes a Yes of it, unless nothing else decides."""
    found = taken([score, score], Sampling(greedy=greedy, threshold=0.5), seed=seed)
    assert found.choice == 1
    assert taken([score, score], Sampling(greedy=greedy, threshold=math.nextafter(0.5, 0)), seed=seed).choice == 0
    assert {taken([score, score], Sampling(greedy=True), seed=each).choice for each in range(20)} == {0, 1}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(greedy=True), Sampling(greedy=True, threshold=0.5)])
def test_a_model_that_has_diverged_says_so(sampling: Sampling) -> None:
    with pytest.raises(EngineError, match="the model's logits are not finite"):
        taken([math.nan, math.nan], sampling)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_tie_above_or_below_the_threshold_is_no_coin_toss(greedy: bool) -> None:
    for threshold, choice in ((0.3, 0), (0.7, 1)):
        sampling = Sampling(greedy=greedy, threshold=threshold)
        assert {taken([2.0, 2.0], sampling, seed=seed).choice for seed in range(50)} == {choice}


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_a_word_without_probability_is_never_taken(threshold: float) -> None:
    sampling = Sampling(threshold=threshold)
    assert taken([-math.inf, 1.0], sampling).choice == 1
    assert taken([1.0, -math.inf], sampling).choice == 0
    with pytest.raises(EngineError, match="none with probability"):
        taken([1.0, -math.inf], sampling, excluded=(8,))


def test_a_word_is_taken_however_improbable_its_temperature_makes_it() -> None:
    """At 0.01 the second's weight is zero in floating point; its threshold takes it all the same."""
    found = taken([10.0, 0.0], Sampling(temperature=0.01, threshold=0.99999))
    assert found.choice == 1
    assert found.sampled_logprobs == (pytest.approx(-1000.0),)


def test_drawn_without_a_threshold_as_before() -> None:
    """Half of the seeds and no more: the fraction of a fair coin, within five standard errors."""
    drawn = [taken([0.0, 0.0], Sampling(), seed=seed).choice == 0 for seed in range(4000)]
    assert abs(Fraction(sum(drawn), 4000) - Fraction(1, 2)) < 0.04
