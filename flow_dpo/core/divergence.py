"""Exact sampling, in one draw, of a completion that differs from those already there.

Redrawing until something differs wastes draws and never ends where the policy is sure. The distribution conditioned on
differing factorises. Let q be the distribution that completions are drawn from (after temperature and top-p) and y the
one to differ from. The first position t at which a differing completion z leaves y has

    P(t | z != y)  =  q(y_1 | x) ... q(y_{t-1} | x y_{<t-1}) * (1 - q(y_t | x y_<t))  /  (1 - q(y | x))

after which z_t is drawn from q with y_t excluded and renormalised, and all that follows is free. With several
completions to differ from, their common prefixes form a trie, and the walk down it generalises the line above: at a
node reached with excluded mass e, leave with probability (1 - sum_c q(c)) / (1 - e), or go on to child c with
probability q(c) (1 - e_c) / (1 - e).

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
"""Below this much probability outside the excluded completions there is nothing to draw: it is rounding error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Where the new completion leaves the ones it must differ from."""

    kept: int
    """Number of first tokens that it shares with `of`."""
    of: Completion
    """An excluded completion that begins with the kept tokens, and has their log-probabilities."""
    excluded_ids: TokenIds
    """What the next token may not be."""


def draw_divergence(excluded: Sequence[Completion], rng: random.Random) -> Divergence | None:
    """Draw where to leave `excluded`, or None where nothing else has any probability.
    The completions must be whole draws of one request, so that none is a prefix of another; their `sampled_logprobs`
    are log q. Uses a number of `rng` per token kept.
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
        # The last group with weight takes what rounding leaves over.
        chosen = max(index for index, weight in enumerate(weights) if weight > 0)
        for index, weight in enumerate(weights):
            if weight > 0 and at < weight:
                chosen = index
                break
            at -= weight
        alive, depth = list(children.values())[chosen], depth + 1


def splice(divergence: Divergence, rest: Completion) -> Completion:
    """The kept tokens of the one left and the freshly drawn rest, as one completion."""
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
    """Probability of a token that no excluded completion has here."""
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
