"""Judgement of an attempt: P(right) from Stop's log-odds of Yes and from how likely Answer itself found it.

Two pieces of evidence cost nothing more once an attempt has been written and judged: Stop's log-odds of Yes, and the
mean log-probability of the attempt's tokens under Answer. A logistic regression on the verdicts of earlier attempts
weighs them, and a threshold on P(right) decides whether accepting an attempt is worth more than trying again:

    Judgement()                                        P(right) is Stop's P(Yes)
    judgement, threshold = calibrate(evidence, ...)    from the attempts at the last problems, each with its verdict
    judgement.least_yes(threshold, mean_logprob=-.05)  the P(Yes) that accepts an attempt of that likelihood

Invariant: neither weight is ever negative: what Stop likes, or Answer found likely, never counts against an attempt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_FEWEST = 8
"""Attempts of each verdict that a fit of the weights needs; with fewer, Stop's P(Yes) is used as it is."""
_PRIOR = 8.0
"""Pseudo-attempts, distributed like all attempts, added to those that the value of trying again is estimated from."""
_RIDGE = 1.0
"""Precision of the weights' prior, for features in units of their standard deviation."""
_GRID = 200
"""Number of steps in the grid of P(right) that thresholds are chosen from."""
_MOST = 100.0
"""Log-odds and log-probabilities are clamped to this size, infinite ones too; beyond it no probability changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One judged attempt of a problem's trunk, and its verdict."""

    log_odds: float
    """Stop's log-odds of Yes."""
    mean_logprob: float
    """Mean log-probability of the attempt's tokens under Answer, in nats."""
    right: bool
    after: bool | None = None
    """Whether the attempt before it was right; None for a first one, or if that is not known."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The log-odds of an attempt being right: bias + stop * Stop's log-odds + likelihood * mean log-probability."""

    bias: float = 0.0
    stop: float = 1.0
    """Weight of Stop's log-odds of Yes, 0 or more."""
    likelihood: float = 0.0
    """Weight of the mean log-probability of the attempt's tokens under Answer, 0 or more."""

    def log_odds(self, stop_log_odds: float, mean_logprob: float) -> float:
        """The log-odds that the attempt is right."""
        return self.bias + self.stop * _bounded(stop_log_odds) + self.likelihood * _bounded(mean_logprob)

    def chance(self, stop_log_odds: float, mean_logprob: float) -> float:
        """P(right) of the attempt."""
        return _sigmoid(self.log_odds(stop_log_odds, mean_logprob))

    def least_yes(self, threshold: float, mean_logprob: float) -> float:
        """The P(Yes) that must be exceeded for P(right) to exceed a threshold: 0 if any suffices, 1 if none does."""
        if self == Judgement():
            return threshold  # exactly, without rounding errors
        short = _logit(threshold) - self.log_odds(0.0, mean_logprob)
        if self.stop == 0 or math.isinf(short):
            return 0.0 if short < 0 else 1.0
        return _sigmoid(short / self.stop)


def calibrate(evidence: Sequence[Evidence], *, least_gain: float, recall: bool) -> tuple[Judgement, float] | None:
    """The judgement that fits the evidence best, and the threshold of best value; None if there is too little evidence.

    Accepting an attempt with P(right) p is worth p. Trying again is worth what the next attempt brings: with `recall`,
    where the best of all attempts answers, the greater of p and the next one's P(right); otherwise the next one's. What
    the next one brings is estimated from the evidence, after right attempts with weight p and after wrong ones with
    weight 1 - p. The threshold is the highest p at which trying again gains at least `least_gain`.
    """
    num_right = sum(one.right for one in evidence)
    if min(num_right, len(evidence) - num_right) < _FEWEST:
        return None
    judgement = _fit(evidence)
    chances = np.array([judgement.chance(one.log_odds, one.mean_logprob) for one in evidence])
    after = {
        before: chances[[one.after is not None and one.after == before for one in evidence]] for before in (True, False)
    }
    grid = np.linspace(0, 1, _GRID + 1)[:, None]

    def worth(found: np.ndarray) -> np.ndarray:
        """The worth of trying again at each p of the grid, from these attempts and a few pseudo-attempts."""
        brought, prior = (np.maximum(grid, each) if recall else each + 0 * grid for each in (found, chances))
        return (brought.sum(1) + _PRIOR * prior.mean(1)) / (len(found) + _PRIOR)

    p = grid[:, 0]
    gain = p * worth(after[True]) + (1 - p) * worth(after[False]) - p
    worthwhile = np.flatnonzero(gain >= least_gain - 1e-9)  # equal up to rounding is equal on every machine
    return judgement, float(p[worthwhile[-1]]) if len(worthwhile) else 0.0


def _fit(evidence: Sequence[Evidence]) -> Judgement:
    """Logistic regression with a normal prior on the weights, neither of which is allowed below 0.

    The objective is strictly concave, so the best non-negative weights are those of a fit of only the features with a
    weight above 0: the best of the fits of all subsets of features without a weight below 0.
    """
    features = np.array([[_bounded(one.log_odds), _bounded(one.mean_logprob)] for one in evidence])
    right = np.array([float(one.right) for one in evidence])
    means, scales = features.mean(0), features.std(0)
    scales[scales < 1e-12] = 1.0
    standard = (features - means) / scales
    found = [(kept, *_newton(standard[:, kept], right)) for kept in ([0, 1], [0], [1], [])]
    kept, weights, _ = max((one for one in found if all(one[1][1:] >= 0)), key=lambda one: one[2])
    by_column = dict(zip(kept, weights[1:] / scales[kept], strict=True))
    stop, likelihood = float(by_column.get(0, 0.0)), float(by_column.get(1, 0.0))
    bias = float(weights[0] - stop * means[0] - likelihood * means[1])
    return Judgement(bias=bias, stop=stop, likelihood=likelihood)


def _newton(features: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """The intercept and weights of greatest posterior density, and the density's logarithm, by Newton's method. The
    objective is concave; a step is halved until the density does not fall."""
    design = np.column_stack([np.ones(len(features)), features])
    ridge = np.full(design.shape[1], _RIDGE)
    ridge[0] = 0.0

    def density(weights: np.ndarray) -> float:
        scores = design @ weights
        return float(right @ scores - np.logaddexp(0, scores).sum() - ridge @ weights**2 / 2)

    weights = np.zeros(design.shape[1])
    for _ in range(100):
        chance = np.exp(-np.logaddexp(0, -(design @ weights)))
        gradient = design.T @ (right - chance) - ridge * weights
        curvature = design.T @ (design * (chance * (1 - chance))[:, None]) + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        while density(weights + step) < density(weights) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return weights, density(weights)


def _bounded(value: float) -> float:
    return min(max(value, -_MOST), _MOST)


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def _sigmoid(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))
