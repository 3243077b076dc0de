"""Are differences paired, tests exact and intervals those of the formulas?"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flow_dpo.core.errors import DataError
from flow_dpo.evaluate import statistics


def verdicts(text: str) -> dict[str, float | None]:
    return {f"q{i}": {"1": 1.0, "0": 0.0, "?": None}[char] for i, char in enumerate(text)}


def test_a_difference_is_a_mean_over_seeds_and_questions() -> None:
    found = statistics.difference([verdicts("1101"), verdicts("1001")], [verdicts("0101"), verdicts("0011")])
    # By question: (1 + 1) / 2, (0 + 0) / 2, (0 - 1) / 2, (0 + 0) / 2.
    assert found["mean"] == pytest.approx((1 + 0 - 0.5 + 0) / 4)
    assert found["per_seed"] == [0.25, 0.0]
    assert (found["num_questions"], found["num_better"], found["num_worse"]) == (4, 2, 1)
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["seed_p"] == pytest.approx(_two_level_by_loops([[1, 0, 0, 0], [1, 0, -1, 0]])[3])


def _mean_squares(table: list[list[float]]) -> tuple[float, float, float, float]:
    """Mean, and the mean squares of seeds, of questions and of the rest, cell by cell."""
    s, q = len(table), len(table[0])
    mean = sum(map(sum, table)) / (s * q)
    rows = [sum(row) / q for row in table]
    columns = [sum(row[j] for row in table) / s for j in range(q)]
    seeds = q * sum((row - mean) ** 2 for row in rows) / (s - 1)
    questions = s * sum((column - mean) ** 2 for column in columns) / (q - 1)
    rest = sum((table[i][j] - rows[i] - columns[j] + mean) ** 2 for i in range(s) for j in range(q))
    seeds, questions, rest = (0.0 if one < 1e-20 else one for one in (seeds, questions, rest / ((s - 1) * (q - 1))))
    return mean, seeds, questions, rest


def _two_level_by_loops(table: list[list[float]]) -> tuple[float, float, float, float]:
    """Mean, lower and upper bound and p, by the formula written out."""
    s, q = len(table), len(table[0])
    mean, seeds, questions, rest = _mean_squares(table)
    if questions > rest * (1 + 1e-9):
        total, least = seeds + questions - rest, min(s, q) - 1
        parts = seeds**2 / (s - 1) + questions**2 / (q - 1) + rest**2 / ((s - 1) * (q - 1))
    else:
        total, parts, least = seeds, seeds**2 / (s - 1), s - 1
    freedom = max(total**2 / parts if parts else 0.0, least)
    found = [
        _student(mean, total / (s * q), freedom),
        _student(mean, seeds / (s * q), s - 1),
        _student(mean, questions / (s * q), q - 1),
        _student(mean, rest / (s * q), (s - 1) * (q - 1)),
    ]
    return mean, min(one[1] for one in found), max(one[2] for one in found), max(one[3] for one in found)


def _student(mean: float, variance: float, freedom: float) -> tuple[float, float, float, float]:
    if not variance:
        return mean, mean, mean, float(not mean)
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)
    return mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), freedom))


TABLES = st.integers(2, 5).flatmap(
    lambda num: st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=num, max_size=num), min_size=2, max_size=4
    )
)


@given(TABLES)
def test_seeds_and_questions_are_two_crossed_factors(table: list[list[float]]) -> None:
    found = statistics.two_level(table)
    assert found is not None
    assert [found[name] for name in ("mean", "low", "high", "p")] == pytest.approx(_two_level_by_loops(table))


def _by_questions(*seeds: dict[int, list[int]], num: int) -> list[list[float]]:
    """A row a seed: each difference at the questions that are named, 0 elsewhere."""
    return [[float(sum(gap for gap, at in seed.items() if i in at)) for i in range(num)] for seed in seeds]


ALIKE = {
    # Questions differ as much as the rest does, so that no variance but rounding's is left.
    "no_variance": _by_questions({1: [*range(20)]}, {1: [*range(16, 36)]}, num=100),
    "three_seeds": _by_questions(
        {1: [0], -1: [24]}, {1: [31, 42], -1: [14, 48]}, {1: [3, 47], -1: [9, 12]}, num=50
    ),
    # Questions differ by a hair more.
    "a_hair": _by_questions(
        {1: [*range(22)], -1: [*range(22, 30)]}, {1: [0, *range(30, 51)], -1: [*range(51, 59)]}, num=200
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_seeds_that_came_out_alike_by_chance(name: str) -> None:
    """As if cells were independent at least: no division by 0, and no interval beyond all that there is."""
    table = ALIKE[name]
    found = statistics.two_level(table)
    assert found is not None
    mean, seeds, _, rest = _mean_squares(table)
    assert seeds == 0
    s, q = len(table), len(table[0])
    _, low, high, p = _student(mean, rest / (s * q), (s - 1) * (q - 1))
    assert found["low"] <= low + 1e-12
    assert found["high"] >= high - 1e-12
    assert found["p"] >= p - 1e-12
    assert found["high"] - found["low"] < 3 * (high - low)


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_no_interval_is_absurd(num_seeds: int) -> None:
    """Small tables, of cells that most often are 0: finite, as wide as the variance over seeds asks, and no wider than
    the sum of all variances with the least degrees of freedom."""
    rng, unsure = np.random.default_rng(num_seeds), 0
    for _ in range(400):
        q = int(rng.integers(2, 40))
        table = rng.choice([-1.0, 0.0, 1 / 3, 1.0], p=[0.06, 0.7, 0.1, 0.14], size=(num_seeds, q)).tolist()
        found = statistics.two_level(table)
        assert found is not None
        mean, seeds, questions, rest = _mean_squares(table)
        half = (found["high"] - found["low"]) / 2
        if seeds == questions == rest == 0:
            assert (half, found["p"]) == (pytest.approx(0, abs=1e-12), float(mean == 0))
            continue
        assert (
            0
            < half
            <= 1e-12
            + float(stats.t.ppf(0.975, min(num_seeds, q) - 1)) * math.sqrt((seeds + questions + rest) / (num_seeds * q))
        )
        assert (found["p"] < 0.05) == (abs(mean) > half)
        for square, degrees in (
            (seeds, num_seeds - 1), (questions, q - 1), (rest, (num_seeds - 1) * (q - 1)),
        ):  # fmt: skip
            assert half >= float(stats.t.ppf(0.975, degrees)) * math.sqrt(square / (num_seeds * q)) - 1e-12
        total = max(seeds, seeds + questions - rest)
        squares = ((seeds, num_seeds - 1), (questions, q - 1), (rest, (num_seeds - 1) * (q - 1)))
        unsure += questions > rest and total**2 < (min(num_seeds, q) - 1) * sum(
            square**2 / degrees for square, degrees in squares
        )
    assert unsure > 5, "tables whose degrees of freedom are fewer than any part's"


def test_of_seeds_alone_it_is_the_t_test() -> None:
    """Where all questions of a seed are alike, and where each seed has questions of its own."""
    per_seed = [0.1, 0.25, -0.05]
    expected: Any = stats.ttest_1samp(per_seed, 0.0)
    interval = expected.confidence_interval()
    found = statistics.two_level([[value] * 7 for value in per_seed])
    assert found is not None
    assert [found["low"], found["high"], found["p"]] == pytest.approx([interval.low, interval.high, expected.pvalue])
    arms = [{f"{s}/{i}": float(text[i] == "1") for i in range(4)} for s, text in enumerate(("1101", "0110", "1111"))]
    base = [{f"{s}/{i}": float(text[i] == "1") for i in range(4)} for s, text in enumerate(("0101", "0100", "1000"))]
    apart = statistics.difference(arms, base)
    assert apart["seed_p"] == pytest.approx(float(stats.ttest_1samp([0.25, 0.25, 0.75], 0.0)[1]))


def test_seeds_that_are_all_alike_leave_the_doubt_of_the_questions() -> None:
    """Three seeds with the same mean, on questions that differ from seed to seed: p is not 0."""
    found = statistics.two_level([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
    assert found is not None
    assert found["mean"] == pytest.approx(1 / 3)
    assert found["low"] < found["mean"] < found["high"]
    assert 0 < found["p"] < 0.05
    certain = statistics.two_level([[1.0] * 4] * 3)
    assert certain is not None
    assert (certain["low"], certain["high"], certain["p"]) == (1, 1, 0)


def test_of_one_seed_there_is_no_interval_of_the_method() -> None:
    found = statistics.difference([verdicts("1101")], [verdicts("0101")])
    assert (found["seed_low"], found["seed_high"], found["seed_p"]) == (None, None, None)
    same = statistics.difference([verdicts("1101")] * 2, [verdicts("1101")] * 2)
    assert (same["seed_low"], same["seed_high"], same["seed_p"]) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("num_seeds", "spread", "own", "exchange_above"), [
    (2, 0.0, 0.0, 0.0), (2, 0.03, 0.0, 0.15), (2, 0.1, 0.3, 0.3), (3, 0.0, 0.0, 0.0), (3, 0.03, 0.0, 0.15),
    (3, 0.1, 0.1, 0.4), (3, 0.1, 0.3, 0.3), (5, 0.07, 0.0, 0.3), (5, 0.1, 0.1, 0.4), (10, 0.03, 0.0, 0.15),
])  # fmt: skip
def test_a_method_against_itself_is_rarely_told_apart(
    num_seeds: int, spread: float, own: float, exchange_above: float
) -> None:
    """Two arms that are equally good, 600 times: trainings differ by `spread` (a standard deviation), questions too,
    and how hard a question is for one arm by `own`.

    At 5 % the method's p may be wrong in 6 % of cases, and 1.8 for chance (two standard errors of 600); the exchange
    of two sets of models, which is not about the method, is wrong far more often once trainings differ.
    """
    rng, num_questions, times = np.random.default_rng(num_seeds), 200, 600
    method = models = 0
    for _ in range(times):
        easy = rng.beta(2, 0.5, num_questions)
        one, two = (
            rng.random((num_seeds, num_questions))
            < easy + rng.normal(0, own, num_questions) + rng.normal(0, spread, (num_seeds, 1))
            for _ in range(2)
        )
        gaps = one.astype(int) - two.astype(int)
        found = statistics.two_level(gaps.tolist())
        assert found is not None
        method += found["p"] < 0.05
        models += statistics.exchange_p(gaps.sum(axis=0).tolist()) < 0.05
    assert method / times <= 0.078
    assert models / times >= exchange_above


def test_what_could_not_be_graded_is_not_right_on_either_side() -> None:
    found = statistics.difference([verdicts("1?10")], [verdicts("01?0")])
    assert (found["num_questions"], found["mean"], found["num_ungraded"]) == (4, 0.25, 2)
    assert (found["num_better"], found["num_worse"]) == (2, 1)
    assert statistics.difference([verdicts("?1")], [verdicts("1?")])["mean"] == 0.0
    with pytest.raises(DataError, match="that were graded, found none"):
        statistics.difference([verdicts("??")], [verdicts("??")])


def test_other_questions_are_refused() -> None:
    with pytest.raises(DataError, match="same test questions, found 1 "):
        statistics.difference([verdicts("11")], [verdicts("111")])


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 1), (1, 5), (7, 7), (30, 12)])
def test_mcnemar_by_counting_all_outcomes(better: int, worse: int) -> None:
    """Twice the share of coin sequences that are as uneven, by the binomial sum."""
    n, k = better + worse, max(better, worse)
    tail = sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n
    assert statistics.exchange_p([1] * better + [-1] * worse) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("gaps", [(2, -1, 0, 3), (1, 1, -2, 2, 3), (-3, -3, -1), (1, -1, 2, -2), (3,)])
def test_whole_questions_are_exchanged(gaps: tuple[int, ...]) -> None:
    """Of all signs that the questions could have had, the share with as large a sum; seeds go together."""
    sums = [
        sum(s * g for s, g in zip(signs, gaps, strict=True)) for signs in itertools.product((1, -1), repeat=len(gaps))
    ]
    assert statistics.exchange_p(gaps) == pytest.approx(sum(abs(x) >= abs(sum(gaps)) for x in sums) / len(sums))


def test_the_same_answers_under_more_seeds_are_no_more_evidence() -> None:
    arm, other = verdicts("1111111000"), verdicts("0000100011")
    one = statistics.difference([arm], [other])["p"]
    assert statistics.difference([arm] * 3, [other] * 3)["p"] == pytest.approx(one)
    assert statistics.exchange_p([3] * 3000 + [-1] * 10) < 1e-290


def test_holm_by_hand() -> None:
    found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_the_bootstrap_agrees_with_all_resamples() -> None:
    """Of four values there are 256 resamples; the percentiles of their means are the interval."""
    values = [1.0, 0.0, 0.0, -1.0]
    means = sorted(sum(chosen) / 4 for chosen in itertools.product(values, repeat=4))
    low, high = statistics.bootstrap(values)
    assert low == pytest.approx(means[round(0.025 * 255)], abs=0.25)
    assert high == pytest.approx(means[round(0.975 * 255)], abs=0.25)
    assert statistics.bootstrap([0.5, 0.5]) == (0.5, 0.5)


VALUES = st.lists(st.integers(-3, 3).map(float), max_size=8)


@given(VALUES, VALUES)
def test_auc_counts_the_pairs(above: list[float], below: list[float]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in above for b in below]
    assert statistics.auc(above, below) == (sum(pairs) / len(pairs) if pairs else None)


Valued = list[tuple[str, float]]
valued = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 4).map(float)), max_size=8)


@given(valued, valued)
def test_the_interval_of_an_area_over_problems(above: Valued, below: Valued) -> None:
    """Obuchowski's variance by double loops over pairs."""
    found = statistics.clustered_auc(above, below)
    pairs = [[(x > y) + (x == y) / 2 for _, y in below] for _, x in above]
    if not above or not below:
        assert found == {"area": None, "interval": None}
        return
    m, n = len(above), len(below)
    area = sum(map(sum, pairs)) / (m * n)
    assert found["area"] == pytest.approx(area)
    ids = {id for id, _ in above} | {id for id, _ in below}
    of_above = {id: sum(sum(pairs[i]) / n - area for i in range(m) if above[i][0] == id) for id in ids}
    of_below = {
        id: sum(sum(pairs[i][j] for i in range(m)) / m - area for j in range(n) if below[j][0] == id) for id in ids
    }
    num_above, num_below = len({id for id, _ in above}), len({id for id, _ in below})
    if min(num_above, num_below) < 2:
        assert found["interval"] is None
        return
    s10 = num_above / ((num_above - 1) * m) * sum(value**2 for value in of_above.values())
    s01 = num_below / ((num_below - 1) * n) * sum(value**2 for value in of_below.values())
    s11 = len(ids) / (len(ids) - 1) * sum(of_above[id] * of_below[id] for id in ids)
    half = 1.959964 * math.sqrt(max(s10 / m + s01 / n + 2 * s11 / (m * n), 0.0))
    assert found["interval"] == pytest.approx([max(0.0, area - half), min(1.0, area + half)])


def test_the_same_draw_made_twice_is_no_more_evidence() -> None:
    above, below = [("a", 0.9), ("b", 0.4), ("c", 0.7)], [("a", 0.5), ("b", 0.6), ("d", 0.1)]
    once = statistics.clustered_auc(above, below)
    assert statistics.clustered_auc(above * 2, below * 2) == {
        "area": pytest.approx(once["area"]), "interval": pytest.approx(once["interval"]),
    }  # fmt: skip
    # One candidate a problem: DeLong's own (1988), with the variances of the shares on each side.
    alone = statistics.clustered_auc([("a", 3.0), ("b", 2.0), ("c", 1.0)], [("d", 2.0), ("e", 0.0)])
    shares = ([1, 0.75, 0.5], [0.5, 1.0])
    variance = sum(sum((v - sum(side) / len(side)) ** 2 for v in side) / (len(side) - 1) / len(side) for side in shares)
    assert alone["area"] == 0.75
    assert alone["interval"] == pytest.approx([0.75 - 1.959964 * math.sqrt(variance), 1.0])


def test_reliability_by_hand() -> None:
    found = statistics.reliability([0.05, 0.1, 0.15, 0.95, 1.0], [0.0, 1.0, 0.0, 1.0, 1.0])
    assert found["brier"] == pytest.approx((0.0025 + 0.81 + 0.0225 + 0.0025 + 0) / 5)
    assert found["brier_of_share"] == pytest.approx(0.24)
    there = {one["low"]: one for one in found["bins"] if one["num"]}
    assert there == {
        0.0: {"low": 0.0, "high": 0.1, "num": 1, "mean": 0.05, "right": 0.0},
        0.1: {"low": 0.1, "high": 0.2, "num": 2, "mean": pytest.approx(0.125), "right": 0.5},
        0.9: {"low": 0.9, "high": 1.0, "num": 2, "mean": pytest.approx(0.975), "right": 1.0},
    }
    assert found["calibration_error"] == pytest.approx((1 * 0.05 + 2 * 0.375 + 2 * 0.025) / 5)
    assert len(found["bins"]) == 10
    nothing = statistics.reliability([], [])
    assert (nothing["brier"], nothing["brier_of_share"], nothing["calibration_error"]) == (None, None, None)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1))
def test_every_probability_is_in_one_bin(pairs: list[tuple[float, float]]) -> None:
    found = statistics.reliability(*zip(*pairs, strict=True))
    assert sum(one["num"] for one in found["bins"]) == len(pairs)
    for one in found["bins"]:
        assert one["mean"] is None or one["low"] - 1e-12 <= one["mean"] <= one["high"] + 1e-12
    assert 0 <= found["calibration_error"] <= 1
