"""Exact sampling, in one draw, of a completion that differs from given ones.

Redrawing until the result differs wastes draws, and never ends if the policy is certain. But the distribution
conditioned on differing factorises. Let q be the distribution that completions are drawn from (after temperature and
top-p) and y the completion to differ from. The first position t at which a different completion z leaves y has

    P(t | z != y)  =  q(y_1 | x) ... q(y_{t-1} | x y_{<t-1}) * (1 - q(y_t | x y_<t))  /  (1 - q(y | x))

Then z_t is drawn from q without y_t, renormalised, and the rest is drawn freely. Several completions to differ from
form a trie of their common prefixes, and a walk down the trie generalises the formula: at a node with excluded mass e,
leave with probability (1 - sum_c q(c)) / (1 - e), or continue to child c with probability q(c) (1 - e_c) / (1 - e).

    y = [5 6 7], q = .9 .5 .8   ->   t = 1, 2, 3 with weights .1, .9 * .5 = .45, .9 * .5 * .2 = .09   (of .64 in all)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from flow_dpo.core.steps import join, split
from flow_dpo.core.types import Completion, TokenIds

_LEAST_MASS = 1e-6
"""Less probability than this outside the excluded completions is rounding error: there is nothing to draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Where the new completion leaves the ones that it must differ from."""

    kept: int
    """Number of leading tokens that it shares with `of`."""
    of: Completion
    """An excluded completion that begins with the kept tokens; their log-probabilities are taken from it."""
    excluded_ids: TokenIds
    """Token ids that the next token must not be."""


def draw_divergence(excluded: Sequence[Completion], rng: random.Random) -> Divergence | None:
    """Draw the position at which to leave `excluded`; None if nothing else has any probability.
    The completions must be whole draws for one request, so none is a prefix of another; their `sampled_logprobs` are
    log q. Draws one number from `rng` for each kept token and one for the token that differs.
    """
    if _outside(excluded, 0) < _LEAST_MASS:
        return None
    alive, depth = list(excluded), 0
    while True:
        children = _children(alive, depth)
        weights = [_q(group[0], depth) * _outside(group, depth + 1) for group in children.values()]
        leave = _leaving(children, depth)
        total = leave + math.fsum(weights)
        at = rng.random() * total
        if at < leave or not any(weights):
            return Divergence(kept=depth, of=alive[0], excluded_ids=tuple(sorted(children)))
        at -= leave
        # If rounding leaves a remainder, it goes to the last group that has weight.
        chosen = max(index for index, weight in enumerate(weights) if weight > 0)
        for index, weight in enumerate(weights):
            if weight > 0 and at < weight:
                chosen = index
                break
            at -= weight
        alive, depth = list(children.values())[chosen], depth + 1


def splice(divergence: Divergence, rest: Completion) -> Completion:
    """The kept tokens and the newly drawn rest, as one completion."""
    return join(split(divergence.of, (divergence.kept,))[0], rest)


def _q(completion: Completion, position: int) -> float:
    return math.exp(completion.sampled_logprobs[position])


def _children(alive: Sequence[Completion], depth: int) -> dict[int, list[Completion]]:
    groups: dict[int, list[Completion]] = {}
    for completion in alive:
        if len(completion.token_ids) > depth:
            groups.setdefault(completion.token_ids[depth], []).append(completion)
    return groups


def _leaving(children: dict[int, list[Completion]], depth: int) -> float:
    """Probability of a token that no excluded completion has at this position."""
    if len(children) == 1:
        (group,) = children.values()
        return -math.expm1(min(0.0, group[0].sampled_logprobs[depth]))
    left = 1.0 - math.fsum(_q(group[0], depth) for group in children.values())
    return left if left >= _LEAST_MASS else 0.0


def _outside(alive: Sequence[Completion], depth: int) -> float:
    """Probability, given the first `depth` tokens that all of `alive` share, of ending up outside them."""
    if any(len(completion.token_ids) == depth for completion in alive):
        return 0.0
    if len(alive) == 1:
        return max(0.0, -math.expm1(min(0.0, math.fsum(alive[0].sampled_logprobs[depth:]))))
    children = _children(alive, depth)
    inside = math.fsum(_q(group[0], depth) * _outside(group, depth + 1) for group in children.values())
    return _leaving(children, depth) + inside
