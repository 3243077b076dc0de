"""Are differences paired, tests exact and intervals those of the formulas?"""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert found["seed_low"] == pytest.approx(0.125 - 12.7062 * math.sqrt(0.03125) / math.sqrt(2), rel=1e-3)


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
