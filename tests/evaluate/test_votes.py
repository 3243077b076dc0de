"""Do votes, the best by P(Yes) and a threshold's rule come to what enumerating them by hand does?"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flow_dpo.core.stats import wilson
from flow_dpo.core.types import Verdict
from flow_dpo.evaluate import votes
from flow_dpo.evaluate.votes import Attempted

GOLD = "5"


def attempt(answer: str, yes: float | None, tokens: int = 10) -> Attempted:
    """A dash is no answer, a question mark one that could not be graded."""
    if answer == "?":
        return Attempted(verdict=Verdict(status="ungraded", answer="?"), yes=yes, tokens=tokens)
    verdict = Verdict(status="correct" if answer == GOLD else "wrong", answer=None if answer == "-" else answer)
    return Attempted(verdict=verdict, yes=yes, tokens=tokens)


attempts = st.builds(
    attempt,
    st.sampled_from(["5", "3", "7", "-", "?"]),
    st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 0.875])),  # sums of these are exact
    st.integers(1, 9),
)


def by_hand(group: Sequence[Attempted], *, weighted: bool) -> float:
    """The vote with a tally and a list of winners."""
    voters = [one for one in group if one.yes is not None and one.verdict.answer is not None] or list(group)
    tally: dict[str, Fraction] = defaultdict(Fraction)
    for one in voters:
        if one.verdict.answer is not None:
            tally[one.verdict.answer] += Fraction(one.yes or 0.0) if weighted else 1
    winners = [answer for answer, votes in tally.items() if votes == max(tally.values())]
    return sum(answer == GOLD for answer in winners) / len(winners) if winners else 0.0


@given(st.lists(attempts, min_size=1, max_size=6))
def test_votes_are_a_tally(group: list[Attempted]) -> None:
    assert votes.majority(group) == pytest.approx(by_hand(group, weighted=False))
    assert votes.weighted_majority(group) == pytest.approx(by_hand(group, weighted=True))
    assert votes.best(group) <= votes.oracle(group)
    assert votes.oracle(group) == any(one.reward for one in group)


def with_right(one: Attempted, right: float) -> Attempted:
    return replace(one, right=None if one.yes is None else right)


@given(st.lists(st.tuples(attempts, st.sampled_from([0.0, 0.25, 0.5, 0.75])), min_size=1, max_size=6))
def test_what_p_right_comes_to_is_what_p_yes_would(drawn: list[tuple[Attempted, float]]) -> None:
    """Tallied by hand with P(right) in its place; the rules of P(Yes) go by P(Yes) all the same."""
    group = [with_right(*one) for one in drawn]
    plain = [one for one, _ in drawn]
    as_yes = [replace(one, yes=one.right) for one in group]
    assert votes.BY_RIGHT["weighted_by_right"](group) == pytest.approx(by_hand(as_yes, weighted=True))
    voters = [one for one in as_yes if one.yes is not None and one.verdict.answer is not None] or as_yes
    first = voters[0]
    for one in voters[1:]:
        first = one if (one.yes or -1.0 * (one.yes is None)) > (first.yes or -1.0 * (first.yes is None)) else first
    assert votes.BY_RIGHT["best_by_right"](group) == first.reward
    for name, rule in votes.RULES.items():
        assert rule(group) == rule(plain), name


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ([("3", 0.3), ("5", 0.6), ("3", 0.3)], 0.5),  # equal sums share
        ([("3", 0.1), ("5", 0.3), ("3", 0.1), ("3", 0.1)], 0.5),  # equal but for rounding
        ([("3", 0.3), ("5", 0.61), ("3", 0.3)], 1.0),
        ([("3", 0.2), ("7", 0.2), ("5", 0.2)], 1 / 3),
        ([("-", 0.9), ("5", 0.1)], 1.0),  # no answer is no vote
        ([("3", None), ("5", 0.1)], 1.0),  # nor is one that was cut
        ([("5", None), ("5", None), ("-", 0.9)], 1.0),  # unless all are such
        ([("-", 0.9), ("-", None)], 0.0),
        ([("?", 0.9), ("5", 0.1)], 0.0),  # it won, and was not shown to be right
        ([("5", 0.0), ("3", 0.0)], 0.5),
    ],
)
def test_weighted_majority(group: list[tuple[str, float | None]], expected: float) -> None:
    assert votes.weighted_majority([attempt(*one) for one in group]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ([("3", 0.3), ("5", 0.6), ("3", 0.5)], 1.0),
        ([("5", 0.4), ("3", 0.4)], 1.0),  # the first of equal ones
        ([("3", 0.4), ("5", 0.4)], 0.0),
        ([("-", 0.9), ("5", 0.1)], 1.0),
        ([("5", None), ("3", 0.0)], 0.0),
        ([("5", None), ("3", None)], 1.0),
        ([("3", None), ("5", None)], 0.0),
    ],
)
def test_best_by_yes(group: list[tuple[str, float | None]], expected: float) -> None:
    assert votes.best([attempt(*one) for one in group]) == expected


def played(order: Sequence[Attempted], threshold: float) -> tuple[float, int, int]:
    """The threshold's rule, step by step: reward, tokens, attempts."""
    tokens = 0
    for made, one in enumerate(order, start=1):
        tokens += one.tokens
        if one.yes is not None and one.yes > threshold:
            return one.reward, tokens, made
    kept = order[0]
    for one in order[1:]:
        if (-1.0 if one.yes is None else one.yes) > (-1.0 if kept.yes is None else kept.yes):
            kept = one
    return kept.reward, tokens, len(order)


@given(st.lists(attempts, min_size=1, max_size=5), st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.75, 1.0]), st.data())
def test_a_threshold_is_the_mean_over_all_orders(drawn: list[Attempted], threshold: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(drawn)))
    orders = [played(order[:k], threshold) for order in itertools.permutations(drawn)]
    found = votes.accepting(drawn, k, threshold)
    means = [math.fsum(values) / len(orders) for values in zip(*orders, strict=True)]
    assert (found.reward, found.tokens, found.attempts) == pytest.approx(tuple(means))


def test_a_threshold_needs_as_many_draws() -> None:
    with pytest.raises(ValueError, match="1 to 1 attempts of 1 draws"):
        votes.accepting([attempt("5", 0.5)], 2, 0.5)


FOUR = [attempt("5", 0.9, 10), attempt("3", 0.2, 20), attempt("3", 0.6, 30), attempt("5", None, 40)]
OTHER = [attempt("3", 0.9, 10), attempt("3", 0.8, 10), attempt("5", 0.95, 10), attempt("3", 0.1, 10)]


def test_k_attempts_read_the_same_tokens() -> None:
    two = votes.at_k([FOUR, OTHER], 2)
    assert two["tokens"] == pytest.approx((50 + 20) / 2)
    assert two["one_attempt"]["accuracy"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    # The first problem's groups: 5 and 3; 3 and one that was cut. The second's: twice 3; 5 and 3.
    assert two["majority"]["accuracy"] == pytest.approx(((0.5 + 0) / 2 + (0 + 0.5) / 2) / 2)
    assert two["weighted_majority"]["accuracy"] == pytest.approx(((1 + 0) / 2 + (0 + 1) / 2) / 2)
    assert two["best"]["accuracy"] == pytest.approx(((1 + 0) / 2 + (0 + 1) / 2) / 2)
    assert two["oracle"]["accuracy"] == pytest.approx(((1 + 1) / 2 + (0 + 1) / 2) / 2)
    four = votes.at_k([FOUR, OTHER], 4)
    assert four["oracle"] == {"accuracy": 1.0, "interval": list(wilson(2, 2))}
    assert four["majority"]["accuracy"] == 0.0
    assert votes.at_k([FOUR, OTHER], 3)["tokens"] == pytest.approx((60 + 30) / 2), "the fourth is left over"


def test_one_attempt_is_what_all_rules_say() -> None:
    group = [[one] for one in (*FOUR, attempt("-", 0.4), attempt("-", None), attempt("?", 0.4))]
    for rule in votes.RULES.values():
        assert [rule(one) for one in group] == [one[0].reward for one in group]


def test_summary_of_draws() -> None:
    found = votes.summary([FOUR, OTHER])
    assert list(found["by_k"]) == ["1", "2", "4"]
    curve = {(row["max_attempts"], row["threshold"]): row for row in found["threshold_curve"]}
    assert {k for k, _ in curve} == {2, 4}
    assert curve[4, 0.0]["attempts"] == pytest.approx((1.25 + 1) / 2), "one of four was cut, and is passed by"
    assert curve[4, 1.0]["tokens"] == pytest.approx((100 + 40) / 2)
    assert curve[4, 1.0]["accuracy"] == found["by_k"]["4"]["best"]["accuracy"] == 1.0
    assert curve[4, 0.9]["accuracy"] == 1.0
    assert curve[4, 0.8]["accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert votes.summary([])["by_k"] == {}
    assert "right_curve" not in found
    assert not {*votes.BY_RIGHT} & {*found["by_k"]["4"]}


def test_thresholds_of_p_right_are_beside_those_of_p_yes() -> None:
    """The judgement turns P(Yes) round in the first problem: its right attempts are the likelier ones."""
    first = [with_right(one, right) for one, right in zip(FOUR, (0.3, 0.9, 0.4, 0.0), strict=True)]
    second = [with_right(one, one.yes or 0.0) for one in OTHER]
    found = votes.summary([first, second])
    plain = votes.summary([FOUR, OTHER])
    assert found["threshold_curve"] == plain["threshold_curve"]
    assert {name: found["by_k"]["4"][name] for name in plain["by_k"]["4"]} == plain["by_k"]["4"]
    four = found["by_k"]["4"]
    assert four["best_by_right"]["accuracy"] == pytest.approx((0 + 1) / 2)
    assert four["best"]["accuracy"] == 1.0
    curve = {(row["max_attempts"], row["threshold"]): row for row in found["right_curve"]}
    for (k, threshold), row in curve.items():
        means = [0.0, 0.0, 0.0]
        for drawn in (first, second):
            judged = [replace(one, yes=one.right) for one in drawn]
            orders = [played(order[:k], threshold) for order in itertools.permutations(judged)]
            of_one = [math.fsum(values) / len(orders) for values in zip(*orders, strict=True)]
            means = [mean + value / 2 for mean, value in zip(means, of_one, strict=True)]
        assert [row["accuracy"], row["tokens"], row["attempts"]] == pytest.approx(means)
