"""Top-k log-probabilities: temperature and nucleus sampling (top-p) from the k most probable tokens alone.

A server reports the log-probabilities of the k most probable tokens, not of all 150,000. The rest is the tail: its mass
is 1 minus the sum of the reported probabilities, and none of its tokens is more probable than the last one reported.
With p the reported probabilities, m the tail's mass, a = 1 / temperature and n the number of tokens in the tail:

    temperature 1    the tail's weight is m, exactly
    below (a > 1)    its weight is at most m * p_k**(a - 1), as if all its tokens were as probable as the last reported
    above (a < 1)    at least that, and at most n**(1 - a) * m**a, as if the mass were spread evenly

    find_candidates({4: -0.2, 9: -2.0}, Sampling(top_p=0.8), vocab_size=12)          # Candidates(weights={4: 1.0}, ...)
    find_candidates({4: -0.2, 9: -2.0}, Sampling(temperature=1.5), vocab_size=12)    # None: more tokens are needed

`sampled_logprobs` does the same for all positions of a text at once, in arrays. Invariant: a result is right to within
`TOLERANCE`, or it is None or NaN. With all tokens reported it is exact.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from flow_dpo.core.types import Sampling
from flow_dpo.engines.sampling_rule import Drawn

TOLERANCE = 0.01
"""In nats. Half precision changes a log-probability by 0.01 to 0.03."""
_ROUNDING = 1e-5
"""Mass below which a tail counts as rounding of single-precision sums."""
_LEAST = -500.0
"""Lower bound on log-probabilities, because powers of smaller ones would overflow."""


@dataclass(frozen=True, slots=True, eq=False)
class TopLogprobs(Sequence[Mapping[int, float]]):
    """The reported log-probabilities at each position of a text. Indexing one position gives a mapping by token id."""

    token_ids: NDArray[np.int64]
    """Shape [positions, reported tokens], in any order."""
    values: NDArray[np.float64]
    """Log-probabilities of the same shape, in nats."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> Mapping[int, float]: ...
    @overload
    def __getitem__(self, index: slice) -> TopLogprobs: ...
    def __getitem__(self, index: int | slice) -> Mapping[int, float] | TopLogprobs:
        if isinstance(index, slice):
            return TopLogprobs(self.token_ids[index], self.values[index])
        return dict(zip(self.token_ids[index].tolist(), self.values[index].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Candidates:
    """The reported tokens that can be sampled: unnormalised weights after temperature and top-p."""

    weights: Mapping[int, float]
    mass: float
    """Total weight of all tokens that can be sampled, reported or not."""
    tail: float
    """The part of `mass` that was not reported; 0 if the nucleus ends before the tail."""
    temperature: float
    peak: float
    """Log-probability of the most probable token, whose weight is 1."""

    def sampled_logprob(self, logprob: float) -> float:
        """A candidate's log-probability after temperature and top-p, given the one before."""
        return min(0.0, (logprob - self.peak) / self.temperature - math.log(self.mass))


def find_candidates(top_logprobs: Mapping[int, float], sampling: Sampling, *, vocab_size: int) -> Candidates | None:
    """The tokens that can be sampled, given a vocabulary's top log-probabilities; None if too few are reported.

    With top-p they are the nucleus: the smallest set of most probable tokens whose weight reaches `top_p` of the total
    (`sampling_rule`).
    """
    # 1. Weights of the reported tokens after temperature, relative to the most probable one's.
    power = 1 / sampling.temperature
    ranked = sorted(top_logprobs, key=lambda token: (-top_logprobs[token], token))
    peak = top_logprobs[ranked[0]]
    weights = {token: math.exp((top_logprobs[token] - peak) * power) for token in ranked}
    summed = math.fsum(weights.values())
    # 2. Bounds on the tail's weight, on the same scale.
    least, most = (
        each * math.exp(-peak * power) for each in _tail_bounds(top_logprobs, power, vocab_size - len(top_logprobs))
    )
    if least > most:
        return None  # the reported probabilities are inconsistent
    # 3. Without top-p all reported tokens are candidates, and the middle of the bounds must be within the tolerance.
    if sampling.top_p >= 1:
        if math.log(summed + most) - math.log(summed + least) > 2 * TOLERANCE:
            return None
        tail = (least + most) / 2
        return Candidates(weights, summed + tail, tail, sampling.temperature, peak)
    # 4. With top-p the nucleus must be the same for every weight of the tail within the bounds.
    first, last = (_count_to_mass(weights, ranked, sampling.top_p * (summed + tail)) for tail in (least, most))
    if first is None or first != last:
        return None
    nucleus = {token: weights[token] for token in ranked[:first]}
    return Candidates(nucleus, math.fsum(nucleus.values()), 0.0, sampling.temperature, peak)


def sampled_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[float], top: TopLogprobs, sampling: Sampling, *, vocab_size: int
) -> list[float]:
    """Log-probability after temperature and top-p of each token of a text, like `find_candidates` at each position. NaN
    if too few tokens are reported, or if the token is not in the known part of the nucleus."""
    power, num_others = 1 / sampling.temperature, vocab_size - top.values.shape[1]
    # 1. Most probable first; the lower id first where two are equally probable.
    order = np.lexsort((top.token_ids, -top.values), axis=-1)
    values, ids = np.take_along_axis(top.values, order, -1), np.take_along_axis(top.token_ids, order, -1)
    # 2. Weights of the reported tokens, relative to the most probable one's, and bounds on the tail's.
    peak = values[:, 0]
    weights = np.exp((values - peak[:, None]) * power)
    cumulative = weights.cumsum(-1)
    least, most = (bound * np.exp(-peak * power) for bound in _tails_bounds(values, power, num_others))
    known = least <= most
    # 3. Weight of all candidates: with the middle of the tail's bounds, or up to the nucleus' end if both bounds agree.
    mass = cumulative[:, -1] + (least + most) / 2
    if sampling.top_p >= 1:
        known &= np.log(cumulative[:, -1] + most) - np.log(cumulative[:, -1] + least) <= 2 * TOLERANCE
    else:
        first, last = (
            (cumulative < sampling.top_p * (cumulative[:, -1] + tail)[:, None]).sum(-1) for tail in (least, most)
        )
        known &= (first == last) & (first < values.shape[1])
        end = np.minimum(first, values.shape[1] - 1)
        mass = np.take_along_axis(cumulative, end[:, None], -1)[:, 0]
        known &= ((ids == np.asarray(token_ids)[:, None]) & (np.arange(values.shape[1]) <= end[:, None])).any(-1)
    found = np.minimum(0.0, (np.asarray(logprobs) - peak) * power - np.log(mass))
    return np.where(known, found, np.nan).tolist()


def draw_candidate(
    candidates: Candidates,
    top_logprobs: Mapping[int, float],
    *,
    uniform: float,
    greedy: bool,
    excluded: Collection[int],
) -> Drawn | None:
    """Sample a token that is not `excluded`; None if it could be an unreported one, or if no token is left. Without a
    token left in the nucleus, the most probable other one is drawn (`sampling_rule`)."""
    left = {token: weight for token, weight in candidates.weights.items() if token not in excluded and weight > 0}
    if not left and not candidates.tail:
        others = [token for token in top_logprobs if token not in excluded]
        likeliest = min(others, key=lambda token: (-top_logprobs[token], token), default=None)
        if likeliest is not None:
            weight = math.exp((top_logprobs[likeliest] - candidates.peak) / candidates.temperature)
            left = {likeliest: weight} if weight > 0 else {}
    if greedy:
        token = min(left, key=lambda token: (-left[token], token), default=None)
    elif candidates.tail > 0 and not all(token in top_logprobs for token in excluded):
        return None  # the excluded tokens' share of the tail is not known
    else:
        token = _pick(left, uniform * (math.fsum(left.values()) + candidates.tail))
        if token is None and not candidates.tail and left:
            token = max(left)  # the sums were rounded below the target
    if token is None:
        return None
    return Drawn(
        token, logprob=min(0.0, top_logprobs[token]), sampled_logprob=candidates.sampled_logprob(top_logprobs[token])
    )


def _pick(weights: Mapping[int, float], target: float) -> int | None:
    """Inverse-CDF sampling over tokens in ascending order of ids."""
    cumulative = 0.0
    for token in sorted(weights):
        cumulative += weights[token]
        if cumulative > target:
            return token
    return None


def _tail_bounds(top_logprobs: Mapping[int, float], power: float, num_others: int) -> tuple[float, float]:
    """Lower and upper bound on the weight of the unreported tokens (the formulas above)."""
    missing = 1 - math.fsum(math.exp(value) for value in top_logprobs.values())
    if num_others <= 0:
        return 0.0, 0.0
    last = min(top_logprobs.values())
    if power < 1:
        # Spread over many tokens, even the rounding error of the sum can weigh a lot.
        most = num_others ** (1 - power) * (max(missing, 0.0) + _ROUNDING) ** power
        return max(0.0, missing - _ROUNDING) * math.exp(max(last, _LEAST) * (power - 1)), most
    if missing < _ROUNDING:
        return 0.0, 0.0
    return (missing, missing) if power == 1 else (0.0, missing * math.exp(last * (power - 1)))


def _tails_bounds(
    values: NDArray[np.float64], power: float, num_others: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`_tail_bounds` for every row of values, the most probable first."""
    none = np.zeros(len(values))
    if num_others <= 0:
        return none, none
    missing, last = 1 - np.exp(values).sum(-1), values[:, -1]
    if power < 1:
        most = num_others ** (1 - power) * (np.maximum(missing, 0.0) + _ROUNDING) ** power
        return np.maximum(0.0, missing - _ROUNDING) * np.exp(np.maximum(last, _LEAST) * (power - 1)), most
    most = np.where(missing < _ROUNDING, 0.0, missing * np.exp(last * (power - 1)))
    return (most, most) if power == 1 else (none, most)


def _count_to_mass(weights: Mapping[int, float], ranked: list[int], target: float) -> int | None:
    """How many of the ranked tokens it takes to reach this weight; None if all reported ones fall short."""
    cumulative = 0.0
    for count, token in enumerate(ranked, start=1):
        cumulative += weights[token]
        if cumulative >= target:
            return count
    return None
