"""Sampling rule: the token that a request's seed picks, by temperature and nucleus sampling (top-p), in plain Python.

Every engine of this package follows it: `local.sampling` is the same rule for a batch of tensors, and the scripted
engines call it directly. Two invariants:

- The uniform number for a request's token at a position depends only on its seed and that position (`uniform`), so
  neither the batch nor the engine changes it.
- The token is the first, in ascending order of ids, at which the cumulative probability of the nucleus exceeds
  `uniform` times all of it. The nucleus is the smallest set of most probable tokens (the lower id first where two are
  equally probable) whose mass reaches `top_p` (Holtzman et al. 2020), without what is excluded. If that leaves none of
  it, the most probable other token is drawn: an alternative's nucleus can be smaller than its trunk's by a rounding.

    uniform(seed=7, position=0)                                   # 0.7215081806049702, on any machine
    draw({4: -0.7, 9: -0.7}, Sampling(), uniform=0.6)             # Drawn(token=9, ...)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flow_dpo.core.types import Sampling

_MASK_64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's stride: odd, and near 2**64 divided by the golden ratio."""
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled token: its log-probability under the model, and after temperature and top-p but before exclusions."""

    token: int
    logprob: float
    sampled_logprob: float


def _mix(z: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014): every bit of `z` affects every bit of the result."""
    z = ((z ^ (z >> 30)) * MIX_1) & _MASK_64
    z = ((z ^ (z >> 27)) * MIX_2) & _MASK_64
    return z ^ (z >> 31)


def stream(seed: int) -> int:
    """The initial state of this seed's random numbers, mixed so that streams of neighbouring seeds do not overlap."""
    return _mix((seed + GOLDEN) & _MASK_64)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that decides the token at this position of a completion (0 is the first)."""
    return (_mix((stream(seed) + (position + 1) * GOLDEN) & _MASK_64) >> 11) * 2.0**-53


def draw(
    logprobs: Mapping[int, float],
    sampling: Sampling,
    *,
    uniform: float,
    excluded: Collection[int] = (),
    num_tokens: int | None = None,
) -> Drawn | None:
    """Sample a token, given (possibly unnormalised) log-probabilities; None if no token is left.

    The result's log-probabilities are normalised. Ids from `num_tokens` on are never drawn.
    """
    peak = max(logprobs.values())
    total = math.fsum(math.exp(value - peak) for value in logprobs.values())
    limit = math.inf if num_tokens is None else num_tokens
    known = {token: value for token, value in logprobs.items() if token < limit}
    top = max(known.values())
    scaled = {token: math.exp((value - top) / sampling.temperature) for token, value in known.items()}
    ranked = sorted(scaled, key=lambda token: (-scaled[token], token))
    kept, mass = _nucleus(scaled, ranked, sampling.top_p)
    left = [token for token in kept if token not in excluded and scaled[token] > 0]
    if not left:
        left = [token for token in ranked if token not in excluded and scaled[token] > 0][:1]
    if not left:
        return None
    token = left[0] if sampling.greedy else _pick({t: scaled[t] for t in sorted(left)}, uniform)
    return Drawn(
        token,
        logprob=min(0.0, logprobs[token] - peak - math.log(total)),
        sampled_logprob=min(0.0, (logprobs[token] - top) / sampling.temperature - math.log(mass)),
    )


def _nucleus(weights: Mapping[int, float], ranked: list[int], top_p: float) -> tuple[list[int], float]:
    """The tokens of the nucleus, most probable first, and their summed weight."""
    total = math.fsum(weights.values())
    if top_p >= 1:
        return ranked, total
    mass = 0.0
    for count, token in enumerate(ranked, start=1):
        mass += weights[token]
        if mass >= top_p * total:
            return ranked[:count], mass
    return ranked, total


def _pick(weights: Mapping[int, float], uniform: float) -> int:
    """Inverse-CDF sampling over tokens in ascending order of ids."""
    target, cumulative = uniform * math.fsum(weights.values()), 0.0
    for token, weight in weights.items():
        cumulative += weight
        if cumulative > target:
            return token
    return max(weights)
