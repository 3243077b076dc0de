"""How sure is a difference between two models that answered the same questions, under several seeds?

Each question gives, for each seed, a pair of verdicts; what differs is a mean over seeds and questions:

    question   arm      baseline    difference
    q1         1 1 0    0 1 0       (1 + 0 + 0) / 3
    q2         1 1 1    1 1 1       0

The interval resamples questions (paired bootstrap, by scipy), with the seeds as they are; how much seeds vary is a
t-interval of its own. The p-value is McNemar's exact one of each seed, put together over seeds by Stouffer's signed z.
Invariant: a question that could not be graded on either side enters neither, and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from flow_dpo.errors import DataError

Rewards = Mapping[str, float | None]
"""By a question's id; None where it could not be graded."""
RESAMPLES = 10_000


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t-interval of a mean; None of fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds with its t-interval, and the values."""
    interval = t_interval(values)
    low, high = interval or (None, None)
    return {"mean": fmean(values), "low": low, "high": high, "per_seed": list(values)}


def difference(arm: Sequence[Rewards], baseline: Sequence[Rewards], *, seed: int = 0) -> dict[str, Any]:
    """Mean of arm minus baseline over seeds and questions, in shares of 1, with intervals and p (see the module).

    One mapping a seed, over the same questions. Raises `DataError` where the questions differ or none is graded.
    """
    per_seed: list[float] = []
    discordant: list[tuple[int, int]] = []
    gaps: dict[str, list[float]] = {}
    for mine, theirs in zip(arm, baseline, strict=True):
        if mine.keys() != theirs.keys():
            raise DataError(
                f"expected the same test questions, found {len(mine.keys() ^ theirs.keys())} that only one side has; "
                "compare evaluations of one problem set"
            )
        pairs = [(id, a, b) for id, a in mine.items() if a is not None and (b := theirs[id]) is not None]
        if not pairs:
            raise DataError("expected test questions that were graded on both sides, found none")
        per_seed.append(fmean(a - b for _, a, b in pairs))
        discordant.append((sum(a > b for _, a, b in pairs), sum(a < b for _, a, b in pairs)))
        for id, a, b in pairs:
            gaps.setdefault(id, []).append(a - b)
    means = [fmean(values) for values in gaps.values()]
    low, high = bootstrap(means, seed=seed)
    seed_interval = t_interval(per_seed)
    return {
        "mean": fmean(means),
        "low": low,
        "high": high,
        "p": stouffer([mcnemar_z(better, worse) for better, worse in discordant]),
        "per_seed": per_seed,
        "seed_low": None if seed_interval is None else seed_interval[0],
        "seed_high": None if seed_interval is None else seed_interval[1],
        "num_questions": len(means),
        "num_better": sum(better for better, _ in discordant),
        "num_worse": sum(worse for _, worse in discordant),
    }


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a mean, by resampling the values."""
    import numpy as np
    from scipy import stats

    if len(set(values)) == 1:
        return values[0], values[0]
    found = stats.bootstrap(
        (np.asarray(values),), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar_p(better: int, worse: int) -> float:
    """Two-sided exact p of `better` against `worse` discordant questions (McNemar 1947, by the binomial)."""
    from scipy import stats

    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def mcnemar_z(better: int, worse: int) -> float:
    """The exact p as a normal deviate, positive where `better` is more."""
    from scipy import stats

    deviate = float(stats.norm.isf(mcnemar_p(better, worse) / 2))
    # Too small a p for a float: by the normal approximation.
    if not math.isfinite(deviate):
        deviate = abs(better - worse) / math.sqrt(better + worse)
    return math.copysign(deviate, better - worse) if deviate else 0.0


def stouffer(deviates: Sequence[float]) -> float:
    """Two-sided p of all seeds together: the sum of signed deviates over the root of their number."""
    from scipy import stats

    return float(min(1.0, 2 * stats.norm.sf(abs(sum(deviates)) / math.sqrt(len(deviates)))))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction over several comparisons (Holm 1979)."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(values) - rank) * p))
        corrected[name] = largest
    return {name: corrected[name] for name in values}
