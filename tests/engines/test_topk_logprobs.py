"""Is what is said of a distribution right, when only its likeliest tokens are told?"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_dpo.core.types import Request, Sampling
from flow_dpo.engines.sampling_rule import draw
from flow_dpo.engines.vllm.requests import ModelFacts, Reply, completion_steps
from flow_dpo.engines.vllm.topk_logprobs import (
    TOLERANCE,
    TopLogprobs,
    draw_candidate,
    find_candidates,
    sampled_logprobs,
)

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([1.0, 1.0, 0.6, 0.8, 1.3]),
    top_p=st.sampled_from([1.0, 1.0, 0.97, 0.8, 0.3]),
)


def distribution(seed: int, num_words: int) -> dict[int, float]:
    rng = random.Random(seed)
    scores = [rng.gauss(0, 3) for _ in range(num_words)]
    total = math.log(math.fsum(map(math.exp, scores)))
    return {token: score - total for token, score in enumerate(scores)}


def likeliest(logprobs: dict[int, float], count: int) -> dict[int, float]:
    return dict(sorted(logprobs.items(), key=lambda item: -item[1])[:count])


@given(st.integers(0, 10**6), st.integers(1, 60), SAMPLINGS)
def test_what_is_told_is_enough_or_more_is_asked_for(seed: int, count: int, sampling: Sampling) -> None:
    logprobs = distribution(seed, 60)
    told = likeliest(logprobs, count)
    candidates, whole = (
        find_candidates(told, sampling, vocab_size=60),
        find_candidates(logprobs, sampling, vocab_size=60),
    )
    assert whole is not None
    assert whole.tail == 0
    if candidates is None:
        assert count < 60
        return
    for token in told:
        assert (token in candidates.weights) == (token in whole.weights)
        if token in whole.weights:
            expected = draw({**logprobs}, sampling, uniform=0.5, excluded=set(logprobs) - {token})
            assert expected is not None
            assert candidates.sampled_logprob(logprobs[token]) == pytest.approx(expected.sampled_logprob, abs=TOLERANCE)


@pytest.mark.parametrize(
    "sampling", [Sampling(top_p=0.97), Sampling(temperature=0.8), Sampling(temperature=0.6, top_p=0.9)], ids=str
)
def test_enough_is_told_most_of_the_time(sampling: Sampling) -> None:
    """Or the test above would be empty: 20 of 60 tokens at the settings of our presets."""
    known = [
        find_candidates(likeliest(distribution(seed, 60), 20), sampling, vocab_size=60) is not None
        for seed in range(100)
    ]
    assert sum(known) > 60


@given(st.integers(0, 10**6), SAMPLINGS, st.booleans(), st.floats(0, 0.999))
def test_with_everything_told_the_draw_is_the_rules(seed: int, sampling: Sampling, greedy: bool, number: float) -> None:
    logprobs = distribution(seed, 12)
    sampling = Sampling(temperature=sampling.temperature, top_p=sampling.top_p, greedy=greedy)
    excluded = {max(logprobs, key=lambda token: logprobs[token]), 3}
    candidates = find_candidates(logprobs, sampling, vocab_size=12)
    assert candidates is not None
    found = draw_candidate(candidates, logprobs, uniform=number, greedy=greedy, excluded=excluded)
    expected = draw(logprobs, sampling, uniform=number, excluded=excluded)
    assert (found and found.token) == (expected and expected.token)
    if found is not None and expected is not None:
        assert found.logprob == pytest.approx(expected.logprob)
        assert found.sampled_logprob == pytest.approx(expected.sampled_logprob, abs=1e-9)


def test_where_the_whole_nucleus_is_excluded_the_most_probable_other_token_is_drawn() -> None:
    logprobs = {4: math.log(0.9), 6: math.log(0.04), 2: math.log(0.04), 1: math.log(0.02)}
    sampling = Sampling(top_p=0.5)
    candidates = find_candidates(logprobs, sampling, vocab_size=4)
    assert candidates is not None
    for greedy in (False, True):
        found = draw_candidate(candidates, logprobs, uniform=0.9, greedy=greedy, excluded={4})
        assert found == draw(logprobs, sampling, uniform=0.9, excluded={4})
        assert found is not None
        assert found.token == 2
    assert draw_candidate(candidates, logprobs, uniform=0.9, greedy=False, excluded=set(logprobs)) is None


@pytest.mark.parametrize("temperature", [1.5, 2.0])
def test_a_tail_as_small_as_rounding_may_still_weigh_much(temperature: float) -> None:
    """Mass of 8e-6 over 150,000 tokens: at a temperature of 2 it weighs as much as the likeliest token."""
    tail = 8e-6
    told = {0: math.log(1 - tail - 19e-7), **{token: math.log(1e-7) for token in range(1, 20)}}
    assert find_candidates(told, Sampling(temperature=temperature), vocab_size=150_000) is None
    assert find_candidates(told, Sampling(temperature=0.8), vocab_size=150_000) is not None


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=t, top_p=p) for t in (0.8, 1.3) for p in (1.0, 0.95)], ids=str
)
def test_more_is_asked_for_where_the_likeliest_do_not_tell(sampling: Sampling) -> None:
    """Of 2,000 words 20 are told, and the one that was drawn, as vLLM does; then 512, and all at last."""
    counts: list[int] = []
    for seed in range(40):
        logprobs, rng = distribution(seed, 2000), random.Random(seed)
        drawn = draw(logprobs, sampling, uniform=rng.random())
        assert drawn is not None
        request = Request(role="answer", prompt_ids=(1,), max_tokens=1)
        facts = ModelFacts(end_ids=frozenset(), vocab_size=2000, num_top_logprobs=20)
        steps = completion_steps(request, sampling, seed=seed, excluded=(), facts=facts, policy_version=0)
        try:
            vllm_request = next(steps)
            while True:
                count = vllm_request.params["logprobs"]
                counts.append(count)
                told = likeliest(logprobs, count if count > 0 else 2000) | {drawn.token: logprobs[drawn.token]}
                vllm_request = steps.send(Reply((drawn.token,), (logprobs[drawn.token],), (told,)))
        except StopIteration as done:
            [found] = done.value.sampled_logprobs
        assert found == pytest.approx(drawn.sampled_logprob, abs=TOLERANCE)
    assert {20, 512} <= set(counts) <= {20, 512, -1}


def test_a_draw_is_exact_whatever_is_told() -> None:
    """Over all numbers, each told token comes up as often as it should, and the rest of the time more is asked for."""
    logprobs = distribution(5, 40)
    told = likeliest(logprobs, 6)
    first = next(iter(told))
    candidates = find_candidates(told, Sampling(), vocab_size=40)
    assert candidates is not None
    steps = 20_000
    drawn = [
        draw_candidate(candidates, told, uniform=(i + 0.5) / steps, greedy=False, excluded={first})
        for i in range(steps)
    ]
    left = 1 - math.exp(logprobs[first])
    for token in told:
        share = sum(one is not None and one.token == token for one in drawn) / steps
        assert share == pytest.approx(0 if token == first else math.exp(logprobs[token]) / left, abs=2 / steps)
    untold = next(token for token in logprobs if token not in told)
    assert draw_candidate(candidates, told, uniform=0.0, greedy=False, excluded={untold}) is None


@given(st.integers(0, 10**6), st.integers(1, 60), SAMPLINGS)
def test_all_positions_at_once_are_each_by_itself(seed: int, count: int, sampling: Sampling) -> None:
    rng = random.Random(seed)
    rows = [distribution(seed + at, 60) for at in range(5)]
    tokens = [rng.choice([*likeliest(row, 3)] if rng.random() < 0.8 else [*row]) for row in rows]
    told = [likeliest(row, count) for row in rows]
    top = TopLogprobs(np.array([[*row] for row in told]), np.array([[*row.values()] for row in told]))
    assert [dict(position) for position in top] == told
    logprobs = [row[token] for row, token in zip(rows, tokens, strict=True)]
    found = sampled_logprobs(tokens, logprobs, top, sampling, vocab_size=60)
    for at, token in enumerate(tokens):
        candidates = find_candidates(told[at], sampling, vocab_size=60)
        if candidates is None or (sampling.top_p < 1 and token not in candidates.weights):
            assert math.isnan(found[at])
        else:
            assert found[at] == pytest.approx(candidates.sampled_logprob(logprobs[at]), abs=1e-9)
