"""What is known of the next token when only its likeliest candidates were told?

A server tells the log-probabilities of the K likeliest tokens, not of all 150,000. What is missing is the tail's mass,
1 minus the sum of the told ones, and that no token in it is likelier than the last one told. From this follows, with
p the told probabilities, a = 1 / temperature and n the number of tokens not told:

    temperature 1    the tail has weight m, exactly
    below (a > 1)    its weight is at most m * p_K**(a - 1), as if all of it were tokens as likely as the last told
    above (a < 1)    at least that, and at most n**(1 - a) * m**a, as if it were spread evenly

    keep({4: -0.2, 9: -2.0}, Sampling(top_p=0.8), num_words=12)      # Kept(weights={4: 1.0}, mass=1.0, tail=0.0, ...)
    keep({4: -0.2, 9: -2.0}, Sampling(temperature=1.5), num_words=12)     # None: the whole distribution is needed

Invariant: what is returned is right to `TOLERANCE` in nats, or nothing is. With all tokens told nothing is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flow_dpo.core.types import Sampling
from flow_dpo.engines.sampling_rule import Drawn

TOLERANCE = 0.01
"""Nats. Half precision moves a log-probability by 0.01 to 0.03."""
_ROUNDING = 1e-5
"""Mass below which a tail is the rounding of single-precision sums."""
_LEAST = -500.0
"""Log-probabilities below it are taken for it, where powers of them would be too large for a number."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that can be drawn, those that were told: unnormalised weights after temperature and top-p."""

    weights: Mapping[int, float]
    mass: float
    """Of everything that can be drawn, told or not."""
    tail: float
    """The part of it that was not told; 0 where top-p ends before it."""
    temperature: float
    peak: float
    """Log-probability of the likeliest token, whose weight is 1."""

    def sampled_logprob(self, logprob: float) -> float:
        """Of a kept token that has this log-probability before temperature and top-p."""
        return min(0.0, (logprob - self.peak) / self.temperature - math.log(self.mass))


def find_candidates(top_logprobs: Mapping[int, float], sampling: Sampling, *, vocab_size: int) -> Candidates | None:
    """What can be drawn, given log-probabilities of the likeliest of `num_words` tokens (and of no others); None where
    too few are told.

    Kept is the smallest set of likeliest tokens whose weight reaches `top_p` of all (`chance` has the rule).
    """
    power = 1 / sampling.temperature
    ranked = sorted(top_logprobs, key=lambda token: (-top_logprobs[token], token))
    peak = top_logprobs[ranked[0]]
    weights = {token: math.exp((top_logprobs[token] - peak) * power) for token in ranked}
    summed = math.fsum(weights.values())
    least, most = (
        each * math.exp(-peak * power) for each in _tail_bounds(top_logprobs, power, vocab_size - len(top_logprobs))
    )
    if least > most:
        return None  # what was told does not sum up
    if sampling.top_p >= 1:
        if math.log(summed + most) - math.log(summed + least) > 2 * TOLERANCE:
            return None
        tail = (least + most) / 2
        return Candidates(weights, summed + tail, tail, sampling.temperature, peak)
    first, last = (_count_to_mass(weights, ranked, sampling.top_p * (summed + tail)) for tail in (least, most))
    if first is None or first != last:
        return None
    candidates = {token: weights[token] for token in ranked[:first]}
    return Candidates(candidates, math.fsum(candidates.values()), 0.0, sampling.temperature, peak)


def draw_candidate(
    candidates: Candidates,
    top_logprobs: Mapping[int, float],
    *,
    uniform: float,
    greedy: bool,
    excluded: Collection[int],
) -> Drawn | None:
    """Draw a token other than `excluded`; None where it may be one that was not told, or where nothing is left."""
    left = {token: weight for token, weight in candidates.weights.items() if token not in excluded and weight > 0}
    if greedy:
        token = min(left, key=lambda token: (-left[token], token), default=None)
    elif candidates.tail > 0 and not all(token in top_logprobs for token in excluded):
        return None  # how much of the tail they take away is not known
    else:
        token = _pick(left, uniform * (math.fsum(left.values()) + candidates.tail))
        if token is None and not candidates.tail and left:
            token = max(left)  # the rounding of the sums
    if token is None:
        return None
    return Drawn(
        token, logprob=min(0.0, top_logprobs[token]), sampled_logprob=candidates.sampled_logprob(top_logprobs[token])
    )


def _pick(weights: Mapping[int, float], target: float) -> int | None:
    """The inverse of the cumulative sum, over tokens in ascending order of ids."""
    cumulative = 0.0
    for token in sorted(weights):
        cumulative += weights[token]
        if cumulative > target:
            return token
    return None


def _tail_bounds(top_logprobs: Mapping[int, float], power: float, num_others: int) -> tuple[float, float]:
    """The least and the most weight that the tokens have which were not told."""
    missing = 1 - math.fsum(math.exp(value) for value in top_logprobs.values())
    if num_others <= 0:
        return 0.0, 0.0
    last = min(top_logprobs.values())
    if power < 1:
        # Spread over many tokens, even the rounding of the sum can weigh much.
        most = num_others ** (1 - power) * (max(missing, 0.0) + _ROUNDING) ** power
        return max(0.0, missing - _ROUNDING) * math.exp(max(last, _LEAST) * (power - 1)), most
    if missing < _ROUNDING:
        return 0.0, 0.0
    return (missing, missing) if power == 1 else (0.0, missing * math.exp(last * (power - 1)))


def _count_to_mass(weights: Mapping[int, float], ranked: list[int], target: float) -> int | None:
    """How many of the likeliest tokens it takes to reach this weight; None where all that are told do not."""
    cumulative = 0.0
    for count, token in enumerate(ranked, start=1):
        cumulative += weights[token]
        if cumulative >= target:
            return count
    return None
