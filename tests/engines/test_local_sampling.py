"""Do the tensors draw what the rule in plain Python draws?"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_dpo.core.types import Sampling
from flow_dpo.engines import sampling_rule
from flow_dpo.engines.local.sampling import _Block, draw_batch, uniforms


def test_uniforms_are_the_same_in_tensors_and_everywhere() -> None:
    seeds, positions = [0, 1, 7, -3, 2**63 - 1, 2**70 + 5], [0, 1, 2, 500, 3, 0]
    expected = [sampling_rule.uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    assert uniforms([sampling_rule.stream(seed) for seed in seeds], positions) == expected
    assert expected[2] != sampling_rule.uniform(7, 0) == 0.7215081806049702


def test_uniforms_are_uniform_across_neighbouring_seeds_and_positions() -> None:
    """The mean of 40,000 has a standard error of .0014; the correlations one of .005. Five of those, fixed seeds."""
    grid = torch.tensor([[sampling_rule.uniform(seed, position) for position in range(200)] for seed in range(200)])
    assert abs(grid.mean() - 0.5) < 0.0072
    for one, other in ((grid[:-1], grid[1:]), (grid[:, :-1], grid[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.025


def _samplings(rng: random.Random) -> Sampling:
    return Sampling(
        temperature=rng.choice([1.0, 1.0, 0.7, 1.3]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.3, 0.999]),
        greedy=rng.random() < 0.3,
    )


EDGE = 1e-6
"""How near a cumulative sum in float32 may come to top-p and still fall on either side."""


def _edge_distance(logits_V: torch.Tensor, sampling: Sampling) -> float:
    """How near the likeliest words' summed probability comes to top-p, in double precision."""
    if sampling.top_p >= 1:
        return 1.0
    probs = (logits_V.double() / sampling.temperature).softmax(-1).sort(descending=True).values
    return float((probs.cumsum(-1) - sampling.top_p).abs().min())


def test_few_rows_lie_on_the_edge_of_top_p() -> None:
    """Or the test below would be empty."""
    rng = random.Random(0)
    distances = [
        _edge_distance(torch.randn(1500, generator=torch.Generator().manual_seed(seed)) * 3, _samplings(rng))
        for seed in range(200)
    ]
    assert sum(distance >= EDGE for distance in distances) > 180


@pytest.mark.parametrize("num_words", [2, 81, 1500, 5000])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16, with many ties"])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_a_batch_draws_what_the_rule_draws(num_words: int, half: bool, seed: int) -> None:
    rng = random.Random(seed)
    num_rows = rng.randrange(1, 5)
    logits = torch.randn(num_rows, num_words, generator=torch.Generator().manual_seed(seed)) * rng.choice([0.3, 3, 8])
    logits = logits.bfloat16() if half else logits
    samplings = [_samplings(rng) for _ in range(num_rows)]
    numbers = [rng.random() for _ in range(num_rows)]
    excluded = {
        row: (int(logits[row].argmax()), rng.randrange(num_words)) for row in range(num_rows) if rng.random() < 0.5
    }
    tokens, logprobs, sampled_logprobs = draw_batch(logits, samplings, numbers, excluded)
    for row in range(num_rows):
        if _edge_distance(logits[row], samplings[row]) < EDGE:
            continue  # which word is the last of the set is then a matter of rounding
        expected = sampling_rule.draw(
            dict(enumerate(logits[row].double().tolist())),
            samplings[row],
            uniform=numbers[row],
            excluded=excluded.get(row, ()),
        )
        if expected is None:
            assert tokens[row] == -1
        else:
            assert tokens[row] == expected.token
            assert logprobs[row] == pytest.approx(expected.logprob, abs=1e-5)
            assert sampled_logprobs[row] == pytest.approx(expected.sampled_logprob, abs=1e-5)


def test_a_row_draws_the_same_in_any_company() -> None:
    logits = torch.randn(12, 5000, generator=torch.Generator().manual_seed(0)) * 3
    rng = random.Random(0)
    samplings, numbers = [_samplings(rng) for _ in range(12)], [rng.random() for _ in range(12)]
    together = draw_batch(logits, samplings, numbers, {3: (5, 6), 9: (7,)})
    for row in range(12):
        excluded = {3: (5, 6), 9: (7,)}.get(row)
        alone = draw_batch(logits[row : row + 1], samplings[row : row + 1], [numbers[row]], excluded and {0: excluded})
        assert [values[row] for values in together] == [value for [value] in alone]


def test_the_end_of_the_number_line_never_overruns() -> None:
    """The largest number below one, and a distribution whose last words have no probability."""
    logits = torch.full((2, 3000), -torch.inf)
    logits[:, 5:1100] = 0.0
    tokens, logprobs, _ = draw_batch(logits, [Sampling()] * 2, [1 - 2.0**-53, 0.0])
    assert tokens == [1099, 5]
    assert logprobs == pytest.approx([-math.log(1095)] * 2)


def test_a_certain_token_has_exactly_no_log_probability() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5], [3.0, 1.0, 0.5]])
    drawn = draw_batch(logits, [Sampling(top_p=0.5), Sampling(top_p=0.5)], [0.9, 0.9], {1: (0, 1, 2)})
    assert drawn[0] == [0, -1]
    assert drawn[2][0] == 0.0


@pytest.mark.parametrize("num_words", [81, 5000])
@pytest.mark.parametrize("greedy", [False, True])
def test_if_the_whole_nucleus_is_excluded_the_most_probable_other_token_is_drawn(num_words: int, greedy: bool) -> None:
    """An alternative's nucleus can be smaller than its trunk's by a rounding."""
    logits = torch.randn(2, num_words, generator=torch.Generator().manual_seed(1))
    logits[:, 7], logits[:, 30:60] = 9.0, -5.0  # 7 alone is the nucleus
    ranked = logits[1].argsort(descending=True).tolist()
    sampling = Sampling(top_p=0.01, greedy=greedy)
    # Of row 1, more are excluded than the first search ranks.
    excluded = {0: (7,), 1: tuple(ranked[:70])}
    tokens, logprobs, sampled = draw_batch(logits, [sampling] * 2, [0.3, 0.9], excluded)
    assert tokens == [int(logits[0].argsort(descending=True)[1]), ranked[70]]
    for row in range(2):
        known = dict(enumerate(logits[row].double().tolist()))
        expected = sampling_rule.draw(known, sampling, uniform=0.5, excluded=excluded[row])
        assert expected is not None
        assert expected.token == tokens[row]
        assert (logprobs[row], sampled[row]) == pytest.approx((expected.logprob, expected.sampled_logprob), abs=1e-5)


@pytest.mark.parametrize("scale", [0.3, 3.0, 12.0])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_a_small_vocabulary_is_drawn_from_as_a_large_one(scale: float, seed: int) -> None:
    """Sure rows and others, tied, greedy, cold and excluded ones: the same tokens in numpy as in tensors."""
    rng = random.Random(seed)
    num_rows = rng.randrange(1, 9)
    logits = torch.randn(num_rows, 81, generator=torch.Generator().manual_seed(seed)) * scale
    logits = logits.round() if rng.random() < 0.5 else logits
    samplings = [replace(_samplings(rng), top_p=rng.choice([0.97, 0.3, 0.999])) for _ in range(num_rows)]
    if rng.random() < 0.5:
        samplings = [replace(sampling, temperature=1.0) for sampling in samplings]
    excluded = {row: (int(logits[row].argmax()), rng.randrange(81)) for row in range(num_rows) if rng.random() < 0.3}
    block = _Block(logits, samplings, [rng.random() for _ in range(num_rows)], excluded)
    small, large = block._from_small(), block._from_nucleus()
    assert torch.equal(small[0], large[0])
    drawn = small[0] >= 0
    assert torch.allclose(small[:, drawn], large[:, drawn], rtol=1e-12, atol=1e-12)


def test_a_row_that_is_not_finite_draws_nothing() -> None:
    """In either way, and its neighbours draw what they would without it."""
    for num_words in (81, 3000):
        logits = torch.randn(3, num_words, generator=torch.Generator().manual_seed(0))
        logits[1, 7] = torch.nan
        tokens, _, _ = draw_batch(logits, [Sampling(top_p=0.9)] * 3, [0.5] * 3)
        assert tokens[1] == -1
        assert tokens[::2] == draw_batch(logits[::2], [Sampling(top_p=0.9)] * 2, [0.5] * 2)[0]
