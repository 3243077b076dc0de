"""Is a deviation drawn from the sampling distribution conditioned on differing? Exactly, by enumeration."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter

import pytest
from scipy.stats import chisquare

from flow_dpo.core.divergence import draw_divergence, splice
from flow_dpo.core.types import Completion

END, LENGTH = 0, 3
"""Three tokens, of which 0 ends; completions hold at most three."""


@functools.cache
def next_probs(prefix: tuple[int, ...]) -> list[float]:
    """Some distribution that depends on the whole prefix; after (1,) token 2 has no probability at all."""
    if prefix == (1,):
        return [0.25, 0.75, 0.0]
    rng = random.Random(str(prefix))
    weights = [rng.random() + 0.1 for _ in range(3)]
    return [weight / sum(weights) for weight in weights]


@functools.cache
def completion(token_ids: tuple[int, ...]) -> Completion:
    logs = [
        math.log(p) if (p := next_probs(token_ids[:i])[token]) > 0 else -math.inf for i, token in enumerate(token_ids)
    ]
    return Completion(
        token_ids=token_ids,
        logprobs=tuple(logs),
        sampled_logprobs=tuple(logs),
        finish_reason="stop" if token_ids[-1] == END else "length",
        policy_version=0,
    )


def everything() -> dict[tuple[int, ...], float]:
    """Every completion with its probability."""
    found = {}
    for length in range(1, LENGTH + 1):
        for ids in itertools.product(range(3), repeat=length):
            whole = END not in ids[:-1] and (ids[-1] == END or length == LENGTH)
            if whole and (p := math.exp(math.fsum(completion(ids).sampled_logprobs))) > 0:
                found[ids] = p
    assert sum(found.values()) == pytest.approx(1.0)
    return found


def draw_rest(prefix: tuple[int, ...], excluded_ids: tuple[int, ...], rng: random.Random) -> Completion:
    """What an engine does: the first token without `excluded_ids`, the others freely."""
    said: tuple[int, ...] = ()
    while len(prefix) + len(said) < LENGTH and END not in said:
        probs = next_probs(prefix + said)
        weights = [0.0 if not said and token in excluded_ids else p for token, p in enumerate(probs)]
        said += (rng.choices(range(3), weights)[0],)
    whole = completion(prefix + said)
    return Completion(
        token_ids=said,
        logprobs=whole.logprobs[len(prefix) :],
        sampled_logprobs=whole.sampled_logprobs[len(prefix) :],
        finish_reason=whole.finish_reason,
        policy_version=0,
    )


@pytest.mark.parametrize(
    "excluded",
    [
        [(0,)],
        [(1, 1, 1)],
        [(2, 1, 0)],
        [(2, 1, 0), (2, 1, 1)],
        [(1, 0), (2, 2, 2), (0,)],
        [(1, 1, 0), (1, 1, 1), (1, 1, 2)],
    ],
)
def test_draws_follow_the_conditional_distribution(excluded: list[tuple[int, ...]]) -> None:
    """20,000 draws against the enumerated conditional. False alarm: below 1e-6 a case."""
    rng = random.Random(5)
    done = [completion(ids) for ids in excluded]
    num_draws = 20_000
    drawn: Counter[tuple[int, ...]] = Counter()
    for _ in range(num_draws):
        divergence = draw_divergence(done, rng)
        assert divergence is not None
        rest = draw_rest(divergence.of.token_ids[: divergence.kept], divergence.excluded_ids, rng)
        whole = splice(divergence, rest)
        assert whole == completion(whole.token_ids)
        drawn[whole.token_ids] += 1
    conditional = {ids: p for ids, p in everything().items() if ids not in excluded}
    assert set(drawn) <= set(conditional)
    total = sum(conditional.values())
    expected = [num_draws * p / total for p in conditional.values()]
    assert chisquare([drawn[ids] for ids in conditional], expected).pvalue > 1e-6


def test_one_excluded_completion_is_the_formula() -> None:
    """P(t) is proportional to (q_1 ... q_{t-1}) (1 - q_t). False alarm below 1e-6."""
    y, rng = completion((2, 1, 0)), random.Random(1)
    q = [math.exp(value) for value in y.sampled_logprobs]
    weights = [math.prod(q[:t]) * (1 - q[t]) for t in range(3)]
    kept = Counter(d.kept for _ in range(20_000) if (d := draw_divergence([y], rng)))
    expected = [20_000 * w / sum(weights) for w in weights]
    assert chisquare([kept[t] for t in range(3)], expected).pvalue > 1e-6


def test_where_nothing_else_has_probability_there_is_no_divergence() -> None:
    sure = Completion(
        token_ids=(1, 1), logprobs=(-0.1, -0.1), sampled_logprobs=(0.0, 0.0), finish_reason="length", policy_version=0
    )
    assert draw_divergence([sure], random.Random(0)) is None
    all_of_them = [completion(ids) for ids in everything()]
    assert draw_divergence(all_of_them, random.Random(0)) is None


def test_what_rounding_leaves_is_no_probability() -> None:
    """Two completions that take all of the first token but 1e-7, which no engine could draw from."""
    first, second = (
        Completion(
            token_ids=(token, 1),
            logprobs=(math.log(q), -5.0),
            sampled_logprobs=(math.log(q), math.log(0.9999)),
            finish_reason="length",
            policy_version=0,
        )
        for token, q in ((0, 0.75), (1, 0.25 - 1e-7))
    )
    rng = random.Random(2)
    kept = Counter(d.kept for _ in range(20_000) if (d := draw_divergence([first, second], rng)))
    assert kept == {1: 20_000}, "with the 1e-7, 20 of them in the mean would be at 0"


def test_a_sure_token_is_always_kept() -> None:
    """Where top-p left one token, the divergence is never there."""
    y = Completion(
        token_ids=(1, 1, 2),
        logprobs=(-0.1,) * 3,
        sampled_logprobs=(0.0, -0.7, 0.0),
        finish_reason="length",
        policy_version=0,
    )
    rng = random.Random(3)
    found = [draw_divergence([y], rng) for _ in range(200)]
    assert {(d.kept, d.excluded_ids) for d in found if d} == {(1, (1,))}
