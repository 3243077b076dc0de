"""Statistics of evaluations: shares with intervals, rater agreement, AUC, calibration, paired differences, tests.

Distributions come from scipy; Wilson's interval is in the core, since progressive validation needs it. The difference
between two models that answered the same questions, under several seeds, is a mean over seeds and questions:

    question   arm      baseline    difference
    q1         1 1 0    0 1 0       (1 + 0 + 0) / 3
    q2         1 1 1    1 1 1       0

It has two intervals, each with a p:

- about the method (`seed_low`, `seed_high`, `seed_p`), which another training would have changed: seeds and questions
  are two crossed random factors (`two_level`). This one says whether a method is better.
- about these models (`low`, `high`, `p`), which are held fixed: only questions are resampled (paired bootstrap). The p
  is exact and answers McNemar's question: if a coin flip swapped the two models on each question, how often would the
  difference be as large? All seeds of a question are swapped together; with one seed this is McNemar's exact test
  (1947). It says nothing about another training: between two runs of one method it is below 0.05 far more often than
  in 5 of 100 cases.
Invariant: an answer that could not be graded counts as not right wherever an accuracy or a difference of accuracies is
stated; the number of such answers, and the reasons, are reported beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import fmean, stdev
from typing import Any

from flow_dpo.core.errors import DataError
from flow_dpo.core.stats import wilson
from flow_dpo.core.types import Verdict

Rewards = Mapping[str, float | None]
"""By question id; None if the question could not be graded."""
RESAMPLES = 10_000


# ---- shares, raters, rankings ----------------------------------------------------------------------------------------


def ungraded_reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Counts of ungraded verdicts by the cause at the beginning of their reason: "timeout", or "the gold answer cannot
    be parsed", which is the data's fault and not a model's."""
    causes = Counter(verdict.reason.partition(":")[0] for verdict in verdicts if verdict.status == "ungraded")
    return {cause or "no verdict": count for cause, count in causes.most_common()}


def ungraded_words(found: Mapping[str, Any]) -> str:
    """A sentence on the answers that could not be graded in a summary's accuracy; "" if there are none."""
    if not found.get("num_ungraded"):
        return ""
    known = found.get("accuracy_graded")
    reasons = ", ".join(f"{count:.0f} {cause}" for cause, count in (found.get("ungraded_reasons") or {}).items())
    return (
        f"{found['num_ungraded']:.0f} could not be graded{f' ({reasons})' if reasons else ''} and count as not right; "
        + ("none could" if known is None else f"{known:.1%} of the graded ones are right")
    )


def share(count: float, total: int) -> dict[str, Any]:
    """A share, its 95 % Wilson interval, and the total; share and interval are None if the total is 0."""
    return {
        "rate": count / total if total else None,
        "interval": list(wilson(count, total)) if total else None,
        "num": total,
    }


def sign_test(one: int, other: int) -> dict[str, Any]:
    """The share of `one`, and the two-sided p of the sign test that both are equally likely."""
    from scipy.stats import binomtest

    p = float(binomtest(one, one + other, 0.5).pvalue) if one + other else None
    return share(one, one + other) | {"p": p}


def agreement(both: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How often the two orders prefer the same (a, b or tie), and Cohen's kappa: (p - e) / (1 - e), where e is the
    agreement of independent orders with these margins. Kappa is None if e is 1: both raters gave only one label."""
    num = len(both)
    if not num:
        return {"rate": None, "kappa": None, "num": 0}
    same = sum(one == other for one, other in both)
    margins = [Counter(pair[index] for pair in both) for index in (0, 1)]
    # In whole numbers, so that 1 is found exactly: same / num and chance / num^2.
    chance = sum(margins[0][name] * margins[1][name] for name in margins[0])
    kappa = None if chance == num * num else (same * num - chance) / (num * num - chance)
    return {"rate": same / num, "kappa": kappa, "num": num}


def auc(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Area under the ROC curve: the probability that a value of `above` exceeds one of `below`, ties counting half.

    None if either is empty.
    """
    from scipy import stats

    if not above or not below:
        return None
    rank_sum = float(stats.rankdata([*above, *below])[: len(above)].sum())
    return (rank_sum - len(above) * (len(above) + 1) / 2) / (len(above) * len(below))


def clustered_auc(above: Sequence[tuple[str, float]], below: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """`auc` of values with their problems, with a 95 % interval over problems: DeLong's, for values correlated in a
    problem (Obuchowski 1997, Biometrics 53, 567). None if a side is empty; no interval if it has only one problem."""
    import numpy as np

    area = auc([value for _, value in above], [value for _, value in below])
    if area is None:
        return {"area": None, "interval": None}
    # 1. The share of the other side that each value is above (or below), minus the area; summed by problem.
    x, y = (np.asarray([value for _, value in side]) for side in (above, below))
    ids = sorted({id for id, _ in (*above, *below)})
    at = {id: index for index, id in enumerate(ids)}
    sums, num_problems = [], []
    for side, mine, other, upper in ((above, x, y, True), (below, y, x, False)):
        ordered = np.sort(other)
        over = (np.searchsorted(ordered, mine, "left") + np.searchsorted(ordered, mine, "right")) / (2 * len(other))
        indices = [at[id] for id, _ in side]
        summed = np.zeros(len(ids))
        np.add.at(summed, indices, (over if upper else 1 - over) - area)
        sums.append(summed / len(mine))
        num_problems.append(len(set(indices)))
    # 2. Their variance over problems, and the covariance of the two sides within a problem.
    if min(num_problems) < 2:
        return {"area": area, "interval": None}
    own = sum(num / (num - 1) * float(summed @ summed) for num, summed in zip(num_problems, sums, strict=True))
    variance = own + 2 * len(ids) / (len(ids) - 1) * float(sums[0] @ sums[1])
    half = 1.959964 * math.sqrt(max(variance, 0.0))
    return {"area": area, "interval": [max(0.0, area - half), min(1.0, area + half)]}


def reliability(probabilities: Sequence[float], rewards: Sequence[float], num_bins: int = 10) -> dict[str, Any]:
    """Calibration of probabilities that a reward is 1: the Brier score (mean squared difference), also for a constant
    prediction of the share of right ones; bins of equal width; and the expected calibration error, the mean over all of
    the difference between their bin's mean and its share. Values are None for no probabilities.

    A bin includes its lower bound, and the last one also 1.
    """
    num = len(probabilities)
    bins: list[dict[str, Any]] = []
    for index in range(num_bins):
        inside = [
            (p, reward)
            for p, reward in zip(probabilities, rewards, strict=True)
            if min(int(p * num_bins), num_bins - 1) == index
        ]
        bins.append({
            "low": index / num_bins, "high": (index + 1) / num_bins, "num": len(inside),
            "mean": fmean(p for p, _ in inside) if inside else None,
            "right": fmean(reward for _, reward in inside) if inside else None,
        })  # fmt: skip
    right = fmean(rewards) if num else None
    return {
        "brier": fmean((p - reward) ** 2 for p, reward in zip(probabilities, rewards, strict=True)) if num else None,
        "brier_of_share": None if right is None else right * (1 - right),
        "calibration_error": sum(one["num"] / num * abs(one["mean"] - one["right"]) for one in bins if one["num"])
        if num
        else None,
        "bins": bins,
    }


def interval(means: Sequence[float], num_draws: int) -> tuple[float, float]:
    """95 % Wilson interval of a share that is a mean over problems of means over draws, `num_draws` in total.

    With one draw per problem it is Wilson's own. With more, the number of observations is the one that would explain
    the variance found between problems: at most the draws; the problems, if all draws were right or all wrong.
    """
    n = len(means)
    if n == 0:
        return (0.0, 1.0)
    p = math.fsum(means) / n
    between = math.fsum((value - p) ** 2 for value in means) / n
    effective = float(n) if p in (0.0, 1.0) else num_draws if between == 0 else n * p * (1 - p) / between
    effective = min(effective, float(num_draws))
    return wilson(p * effective, effective)


# ---- paired differences ----------------------------------------------------------------------------------------------


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t-interval of a mean; None for fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def two_level(table: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Mean of a table of differences, one row per seed and one column per question, with a 95 % interval and two-sided
    p for which both seeds and questions are random.

    The variance of the mean is (seeds + questions - rest) / cells, in mean squares of the two-way table, and at least
    that of the seeds alone; degrees of freedom follow Satterthwaite (1946). This is the analysis of two crossed random
    factors (Clark 1973; Quene and van den Bergh 2008). None for fewer than two seeds or questions.

    With few seeds this claims too much where mean squares are subtracted from each other or agree by chance (Gaylor and
    Hopper 1969). So the interval is the widest, and p the largest, of this and of what seeds alone, questions alone and
    independent cells give.
    """
    import numpy as np

    cells = np.asarray(table, dtype=float)
    seeds, questions = cells.shape
    if min(seeds, questions) < 2:
        return None
    # 1. Mean squares of seeds, of questions, and of what neither explains; mere rounding counts as 0.
    mean, rows, columns = cells.mean(), cells.mean(axis=1), cells.mean(axis=0)
    rest = cells - rows[:, None] - columns + mean
    least, both = 1e-18 * float((cells**2).max()), (seeds - 1) * (questions - 1)
    squares = (
        questions * float(((rows - mean) ** 2).sum()) / (seeds - 1),
        seeds * float(((columns - mean) ** 2).sum()) / (questions - 1),
        float((rest**2).sum()) / both,
    )
    of_seeds, of_questions, of_rest = (0.0 if square <= least else square for square in squares)
    # 2. Their sum; its degrees of freedom are those of its parts, weighted by their squares.
    total, parts = of_seeds, [(of_seeds, seeds - 1)]
    if of_questions > of_rest * (1 + 1e-9):  # equal ones differ by rounding
        total = of_seeds + of_questions - of_rest
        parts += [(of_questions, questions - 1), (of_rest, both)]
    fewest, spread = min(degrees for _, degrees in parts), sum(part**2 / degrees for part, degrees in parts)
    freedom = total**2 / spread if spread else 0.0
    # 3. The interval and p: of four, the one that claims least.
    known = [(total, max(freedom, fewest)), (of_seeds, seeds - 1), (of_questions, questions - 1), (of_rest, both)]
    found = [_student(float(mean), one / cells.size, degrees) for one, degrees in known]
    half, p = max(half for half, _ in found), max(p for _, p in found)
    return {"mean": float(mean), "low": float(mean) - half, "high": float(mean) + half, "p": p}


def _student(mean: float, variance: float, freedom: float) -> tuple[float, float]:
    """Half of the 95 % t-interval of a mean, and its two-sided p; without variance 0, and p is 0 or 1."""
    from scipy import stats

    if not variance:
        return 0.0, 0.0 if mean else 1.0
    error = math.sqrt(variance)
    return float(stats.t.ppf(0.975, freedom)) * error, float(2 * stats.t.sf(abs(mean) / error, freedom))


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """A mean over seeds with its t-interval, and the values."""
    interval = t_interval(values)
    low, high = interval or (None, None)
    return {"mean": fmean(values), "low": low, "high": high, "per_seed": list(values)}


def difference(arm: Sequence[Rewards], baseline: Sequence[Rewards], *, seed: int = 0) -> dict[str, Any]:
    """Mean of arm minus baseline over seeds and questions, as a share, with intervals and p (see the module).

    One mapping per seed, all over the same questions. Raises `DataError` if the questions differ, or if neither side
    has a graded one.
    """
    num_better = num_worse = num_ungraded = 0
    gaps: dict[str, list[float]] = {}
    for mine, theirs in zip(arm, baseline, strict=True):
        if mine.keys() != theirs.keys():
            raise DataError(
                f"expected the same test questions, found {len(mine.keys() ^ theirs.keys())} that only one side has; "
                "compare evaluations of one problem set"
            )
        if all(value is None for values in (mine, theirs) for value in values.values()):
            raise DataError("expected test questions that were graded, found none")
        pairs = [(id, a or 0.0, theirs[id] or 0.0) for id, a in mine.items()]
        num_ungraded += sum(a is None or theirs[id] is None for id, a in mine.items())
        num_better += sum(a > b for _, a, b in pairs)
        num_worse += sum(a < b for _, a, b in pairs)
        for id, a, b in pairs:
            gaps.setdefault(id, []).append(a - b)
    means = [fmean(values) for values in gaps.values()]
    low, high = bootstrap(means, seed=seed)
    return {
        "mean": fmean(means),
        "low": low,
        "high": high,
        "p": exchange_p(_whole([sum(values) for values in gaps.values()])),
        **method_difference(arm, baseline),
        "num_questions": len(means),
        "num_better": num_better,
        "num_worse": num_worse,
        "num_ungraded": num_ungraded,
    }


def method_difference(arm: Sequence[Rewards], baseline: Sequence[Rewards]) -> dict[str, Any]:
    """The part of `difference` that is about the method: the mean of each seed, and over seeds and questions an
    interval and p (None with one seed). Here rewards can be any numbers, for example means over many draws."""
    gaps = [
        {id: (value or 0.0) - (theirs[id] or 0.0) for id, value in mine.items()}
        for mine, theirs in zip(arm, baseline, strict=True)
    ]
    per_seed = [fmean(one.values()) for one in gaps]
    # If each seed has its own questions, its mean varies with them: the table is then two columns of means.
    crossed = all(one.keys() == gaps[0].keys() for one in gaps)
    table = [[one[id] for id in gaps[0]] for one in gaps] if crossed else [[value, value] for value in per_seed]
    method = two_level(table)
    low, high, p = (None, None, None) if method is None else (method["low"], method["high"], method["p"])
    return {"per_seed": per_seed, "seed_low": low, "seed_high": high, "seed_p": p}


def _whole(values: Sequence[float]) -> list[int]:
    """The values in units that make each a whole number: halves, for means over two draws."""
    parts = [Fraction(value).limit_denominator(1000) for value in values]
    unit = math.lcm(*(part.denominator for part in parts))
    return [int(part * unit) for part in parts]


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of a mean, by resampling the values. How often a resample has each distinct value is
    multinomial, so only these counts are drawn."""
    import numpy as np

    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(drawn @ distinct / len(values), (2.5, 97.5))
    return float(low), float(high)


def exchange_p(gaps: Sequence[int]) -> float:
    """Two-sided exact p for a sum of whole numbers, one per question, if each sign could as likely be the opposite.

    With differences of 1, 0 and -1 it is McNemar's test. Below about 1e-300 it is 0.
    """
    import numpy as np
    from scipy import stats

    if not sum(gaps):
        return 1.0
    # The sum of n signs of size k is k (2 B - n), with B from Binomial(n, 1/2); the distributions are convolved.
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
