"""Is noise told as no change, and a change as one?"""

from __future__ import annotations

import random

import pytest

from flow_dpo.runs.trends import Trend, trend
from flow_dpo.traces.sft import loss_trend, loss_words


def left_over(seed: int) -> tuple[Trend, str]:
    """21 updates of flat loss, and a last one of a single easy row; the trend, and what is said of it."""
    noise = random.Random(seed)
    log = [{"loss": 0.032 + noise.gauss(0, 0.006), "num_tokens": 800.0 * (k + 1)} for k in range(21)]
    found = loss_trend([*log, {"loss": 0.007, "num_tokens": 800.0 * 21 + 50}, {"train_loss": 0.03}])
    assert found is not None
    facts = {"first_loss": found.first, "last_loss": found.last, "loss_change": [found.low, found.high]}
    return found, loss_words({**facts, "num_updates": found.num})


def test_a_left_over_row_at_the_end_is_not_learning() -> None:
    made = [left_over(seed) for seed in range(60)]
    assert sum(found.is_told for found, _ in made) <= 6
    assert all(found.last == pytest.approx(0.032, abs=0.01) and found.num == 22 for found, _ in made)
    assert all(("no change can be shown" in words) != found.is_told for found, words in made)


def test_a_change_is_told() -> None:
    found = trend([2.1, 1.9, 1.2, 1.1, 0.4, 0.5])
    assert found is not None
    assert (found.first, found.last, found.is_told) == (pytest.approx(2.0), pytest.approx(0.45), True)
    # By hand: Welch's t with two values a side; variances .02 and .005 halved, 1.47 degrees of freedom.
    assert found.low == pytest.approx(-2.242, abs=1e-3)
    facts = {"first_loss": 2.0, "last_loss": 0.45, "loss_change": [found.low, found.high], "num_updates": 6}
    assert loss_words(facts).endswith("changed by -2.24 to -0.858, 95 %")


def test_thirds_hold_the_same_weight() -> None:
    found = trend([1.0, 3.0, 5.0, 9.0], [3.0, 3.0, 2.0, 1.0])
    assert found is not None
    assert (found.first, found.last) == (1.0, pytest.approx((9.0 * 1 + 5.0 * 2) / 3))


def test_few_values_tell_nothing() -> None:
    assert trend([]) is None
    assert trend([None, None]) is None
    for values in ([1.0], [1.0, 0.1], [5.0, 1.0, 0.1]):
        found = trend(values)
        assert found is not None
        assert (found.low, found.is_told) == (None, False)
    assert loss_words({"first_loss": None, "last_loss": None}) == "no update was made"
    assert "too few to tell a change" in loss_words({"first_loss": 1.0, "last_loss": 0.1, "num_updates": 2})


@pytest.mark.parametrize("num", [6, 22, 100])
def test_noise_is_told_in_one_of_twenty_series_at_most(num: int) -> None:
    noise = random.Random(num)
    made = [trend([noise.gauss(1, 0.3) for _ in range(num)]) for _ in range(400)]
    assert sum(one is not None and one.is_told for one in made) <= 0.05 * 400 + 3 * (400 * 0.05 * 0.95) ** 0.5
