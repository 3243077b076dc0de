"""How sure is a difference between two models that answered the same questions, under several seeds?

Each question gives, for each seed, a pair of verdicts; what differs is a mean over seeds and questions:

    question   arm      baseline    difference
    q1         1 1 0    0 1 0       (1 + 0 + 0) / 3
    q2         1 1 1    1 1 1       0

The interval resamples questions (paired bootstrap, by scipy), with the seeds as they are; how much seeds vary is a
t-interval of its own. The p-value is exact, of McNemar's question: had the two names been exchanged on each question
with the flip of a coin, how often would the difference be as large? All seeds of a question are exchanged together, for
they answer the same question; of one seed this is McNemar's exact test (1947).
Invariant: a question that could not be graded on either side enters neither, and is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from flow_dpo.core.errors import DataError

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
    num_better = num_worse = 0
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
        num_better += sum(a > b for _, a, b in pairs)
        num_worse += sum(a < b for _, a, b in pairs)
        for id, a, b in pairs:
            gaps.setdefault(id, []).append(a - b)
    means = [fmean(values) for values in gaps.values()]
    low, high = bootstrap(means, seed=seed)
    seed_interval = t_interval(per_seed)
    return {
        "mean": fmean(means),
        "low": low,
        "high": high,
        "p": exchange_p([round(sum(values)) for values in gaps.values()]),
        "per_seed": per_seed,
        "seed_low": None if seed_interval is None else seed_interval[0],
        "seed_high": None if seed_interval is None else seed_interval[1],
        "num_questions": len(means),
        "num_better": num_better,
        "num_worse": num_worse,
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


def exchange_p(gaps: Sequence[int]) -> float:
    """Two-sided exact p of the sum of whole numbers, one a question, whose signs were as likely the other way.

    With differences of 1, 0 and -1 it is McNemar's. Below about 1e-300 it is 0.
    """
    import numpy as np
    from scipy import stats

    if not sum(gaps):
        return 1.0
    # The sum of n signs of size k is k (2 B - n), with B of Binomial(n, 1/2): their distributions, one after another.
    chances, most = np.ones(1), 0
    for size, num in sorted(Counter(abs(gap) for gap in gaps if gap).items()):
        spread = np.zeros(2 * size * num + 1)
        spread[:: 2 * size] = stats.binom.pmf(np.arange(num + 1), num, 0.5)
        chances, most = np.convolve(chances, spread), most + size * num
    tail = chances[most + abs(sum(gaps)) :].sum()
    return float(min(1.0, 2 * tail))


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction over several comparisons (Holm 1979)."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(values) - rank) * p))
        corrected[name] = largest
    return {name: corrected[name] for name in values}
